from __future__ import annotations

import pytest

from common.target import slot_of
from tests.support.groups import ClusterGroup


def test_keys_with_one_hash_tag_share_a_slot() -> None:
    assert slot_of(b"{user}:a") == slot_of(b"user") == slot_of(b"b{user}c{d}")


@pytest.mark.parametrize("key", [b"a", b"{a}b", b"{}a", b"a{", b"{{a}}", b"\xff\x00", b""])
def test_a_slot_is_what_the_server_says_it_is(shared_cluster: ClusterGroup, key: bytes) -> None:
    assert slot_of(key) == shared_cluster.at(shared_cluster.ports[0]).execute_command("CLUSTER KEYSLOT", key)
