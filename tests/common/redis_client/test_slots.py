from __future__ import annotations

import pytest

from common.redis_client import slot_of
from common.redis_client.slots import Rereading
from common.units import NS_PER_S
from tests.support.groups import ClusterGroup


def test_keys_with_one_hash_tag_share_a_slot() -> None:
    assert slot_of(b"{user}:a") == slot_of(b"user") == slot_of(b"b{user}c{d}")


@pytest.mark.parametrize("key", [b"a", b"{a}b", b"{}a", b"a{", b"{{a}}", b"\xff\x00", b""])
def test_a_slot_is_what_the_server_says_it_is(shared_cluster: ClusterGroup, key: bytes) -> None:
    assert slot_of(key) == shared_cluster.at(shared_cluster.ports[0]).execute_command("CLUSTER KEYSLOT", key)


def test_a_topology_without_a_slot_is_read_less_and_less_often_and_soon_when_another_slot_is_lost_later() -> None:
    now_ns = 0
    rereading = Rereading(lambda: now_ns)
    read_ms = []
    for ms in range(0, 20_000, 10):
        now_ns = ms * NS_PER_S // 1000
        if rereading.is_due():
            read_ms.append(ms)
    assert read_ms == [0, 250, 750, 1750, 3750, 7750, 11_750, 15_750, 19_750]
    now_ns += 60 * NS_PER_S
    assert rereading.is_due()
    now_ns += NS_PER_S // 4
    assert rereading.is_due()
