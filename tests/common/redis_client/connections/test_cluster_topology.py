"""Slots, and the addresses that servers announce: none, unusable ones, and ones that the plan maps."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import redis
from redis.exceptions import AskError, MovedError

from common.cancellation import Cancellation
from common.errors import TargetError
from common.plan.schema import Pools, Target
from common.plan.schema.address_map import AddressMap
from common.plan.schema.target_url import Host
from common.redis_client import build_client, nodes_of, ping_target, slot_of, translate
from common.redis_client.async_clients import build_async_client, close_async_client, open_async_client
from common.redis_client.connections.cluster_topology import AnnouncedAddresses, NoSlots, RefreshLimit
from common.redis_client.connections.connection_tracking import Unobserved
from common.redis_client.wire_connections import InstancePools, WireConnection
from common.units import NS_PER_S
from coordinator.servers.facts import probe
from tests.support.clients import Events, quick_target
from tests.support.drivers import EVERY_WAY, KEYS, WRITTEN, Reach, ask_link, by_asyncio, by_client, by_wire
from tests.support.groups import ClusterGroup
from tests.support.servers import closed_port
from tests.support.shapes import (
    SERVICE,
    Group,
    start_sentinels,
    start_standalone,
    until,
)

pytestmark = pytest.mark.usefixtures("no_leaks")

ID = b"0" * 40


# Replies of a node


@pytest.mark.parametrize(
    ("node", "place"),
    [
        ([b"10.0.0.1", 7000, ID], ["10.0.0.1", 7000]),
        (["10.0.0.1", 7000, ID, []], ["10.0.0.1", 7000]),
        ([b"", 7000, ID], ["asked", 7000]),
        ([None, 7000, ID, [b"ip", b"10.0.0.9"]], ["asked", 7000]),
        ([b"?", 7000, ID], ["asked", 7000]),
        ([b"?", 7000, ID, []], ["asked", 7000]),
        ([b"?", 7000, ID, [b"ip", b"10.0.0.2"]], ["10.0.0.2", 7000]),
        ([b"?", 7000, ID, {b"ip": b"10.0.0.2"}], ["10.0.0.2", 7000]),
        ([b"10.0.0.3", 7000, ID], ["mapped", 7000]),
        ([b"fd00::1", 7000, ID], ["fd00::1", 7000]),
    ],
)
def test_a_node_has_the_address_at_which_clients_reach_it(node: list[Any], place: list[Any]) -> None:
    announced = AnnouncedAddresses("asked", AddressMap({"10.0.0.3": "mapped"}))
    row = [0, 100, node, node]
    [[first, last, primary, replica]] = announced.topology([row])
    assert (first, last, primary[:2], replica[:2]) == (0, 100, place, place)
    assert primary[2:] == node[2:]


def test_a_link_local_address_has_the_zone_of_the_node_that_was_asked() -> None:
    [[_, _, one, other]] = AnnouncedAddresses("fe80::1%eth0", AddressMap({})).topology(
        [[0, 1, [b"fe80::2", 1], [b"fd00::2", 1]]]
    )
    assert (one[0], other[0]) == ("fe80::2%eth0", "fd00::2")


@pytest.mark.parametrize("kind", [MovedError, AskError])
@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("3999 :7001", ("asked", 7001)),
        ("3999 ?:7001", ("asked", 7001)),
        ("3999 10.0.0.1:7001", ("mapped", 17001)),
        ("3999 10.0.0.2:7001", ("10.0.0.2", 7001)),
        ("3999 ::1:7001", ("::1", 7001)),
    ],
)
def test_a_redirection_has_the_address_at_which_clients_reach_the_node(
    kind: type[AskError], text: str, place: tuple[str, int]
) -> None:
    error = kind(text)
    AnnouncedAddresses("asked", AddressMap({"10.0.0.1:7001": "mapped:17001"})).correct(error)
    assert (error.host, error.port) == error.node_addr == place
    assert (error.slot_id, error.args) == (3999, (text,))


@pytest.mark.parametrize("reply", [[], [[0, 100]], [[0, 100], [200, 300]]])
def test_a_topology_without_slots_or_nodes_has_an_error_of_its_own(reply: Any) -> None:
    with pytest.raises(NoSlots):
        AnnouncedAddresses("asked", AddressMap({})).topology(reply)


@pytest.mark.parametrize(
    "reply",
    [None, 5, b"OK", [5], [[]], [[1]], [["a", "b", ["h", 1]]], [[0, 1, None]], [[0, 1, []]], [[0, 1, ["h"]]],
     [[0, 1, ["h", "port"]]], [[0, 1, ["h", None]]], [[0, 16384, ["h", 1]]], [[-1, 0, ["h", 1]]], [[9, 8, ["h", 1]]],
     [[0, 1, ["?", 1, ID, 7]]], {b"slots": 1}],
)  # fmt: skip
def test_a_malformed_topology_is_refused(reply: Any) -> None:
    with pytest.raises(redis.InvalidResponse, match="CLUSTER SLOTS"):
        AnnouncedAddresses("asked", AddressMap({})).topology(reply)


# A real cluster


@contextmanager
def announced_as(cluster: Group, *settings: dict[str, str]) -> Iterator[None]:
    """Each node has these settings during the block, and every other node knows them."""
    before = cluster.nodes[0].ask("CLUSTER", "SLOTS")

    def agreed() -> Any:
        seen = [sorted((row[0], row[2][:3]) for row in node.ask("CLUSTER", "SLOTS")) for node in cluster.nodes]
        return seen[0] if seen[0] == seen[1] == seen[2] else None

    def have(each: Sequence[dict[str, str]], is_so: Callable[[], bool]) -> None:
        for node, values in zip(cluster.nodes, each, strict=True):
            for name, value in values.items():
                node.ask("CONFIG", "SET", name, value)
        # Nodes pass these settings on in their messages to each other.
        until(is_so)

    original = sorted((row[0], row[2][:3]) for row in before)
    have(settings, lambda: agreed() not in (None, original) and len({str(row[1]) for row in agreed()}) == 3)
    try:
        yield
    finally:
        have(
            [dict.fromkeys(values, _DEFAULTS[next(iter(values))]) for values in settings], lambda: agreed() == original
        )


_DEFAULTS = {"cluster-preferred-endpoint-type": "ip", "cluster-announce-port": "0"}


@contextmanager
def behind_nat(cluster: Group) -> Iterator[dict[str, str]]:
    """Every node announces a closed port. Yields the address map that corrects it."""
    ports = {node.port: closed_port() for node in cluster.nodes}
    with announced_as(cluster, *({"cluster-announce-port": str(ports[node.port])} for node in cluster.nodes)):
        yield {f"127.0.0.1:{announced}": f"127.0.0.1:{port}" for port, announced in ports.items()}


@pytest.fixture(params=["unknown endpoint", "no hostname", "behind NAT"])
def announcing(request: pytest.FixtureRequest, cluster: Group) -> Iterator[Target]:
    """A target whose nodes announce no address that clients can use, and that can be used nevertheless."""
    with ExitStack() as stack:
        remap = {}
        if request.param == "behind NAT":
            remap = stack.enter_context(behind_nat(cluster))
        else:
            kind = "unknown-endpoint" if request.param == "unknown endpoint" else "hostname"
            stack.enter_context(announced_as(cluster, *[{"cluster-preferred-endpoint-type": kind}] * 3))
        yield Target(url=cluster.url, address_remap=remap)


def test_a_cluster_works_with_every_kind_of_announced_address(cluster: Group, announcing: Target) -> None:
    places = {(node.host, node.port) for node in nodes_of(announcing)}
    assert places == {("127.0.0.1", node.port) for node in cluster.nodes}
    for reach in EVERY_WAY:
        assert reach(announcing) == WRITTEN
    facts = probe(announcing)
    assert (facts.primaries, facts.keys) == (3, len(KEYS))


def test_a_redirection_works_with_every_kind_of_announced_address(cluster: Group, announcing: Target) -> None:
    key = KEYS[0]
    slot = slot_of(key.encode())
    rows = cluster.nodes[0].ask("CLUSTER", "SLOTS")
    ids = {node: node.ask("CLUSTER", "MYID") for node in cluster.nodes}
    owner = next(node for row in rows for node in cluster.nodes if row[0] <= slot <= row[1] and ids[node] == row[2][2])
    other = next(node for node in cluster.nodes if node is not owner)

    def move(to: Any) -> None:
        for node in (to, *(each for each in cluster.nodes if each is not to)):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[to])

    events = Events()
    with build_client(announcing, Pools(), events=events, cancellation=Cancellation()) as client:
        client.execute_command("GET", key)
        move(other)
        assert client.execute_command("GET", key) is None
        assert events["redirected"] == ["MOVED"]
        # redis-py would reach this machine by no host too, and other ports after it has read the topology again.
        assert {node.host for node in client.nodes()} == {"127.0.0.1"}
        assert events["attempt failed"] == []

    async def play() -> None:
        events = Events()
        client = build_async_client(announcing, Pools(), events=events, cancellation=Cancellation())
        try:
            await open_async_client(client, announcing)
            await client.execute_command("GET", key)
            move(owner)
            assert await client.execute_command("GET", key) is None
            assert events["redirected"] == ["MOVED"]
        finally:
            await close_async_client(client)

    asyncio.run(play())
    pools = InstancePools(announcing, Pools(), events=Unobserved(), cancellation=Cancellation())
    try:
        [error] = ask_link(WireConnection(pools.pool_for(f"127.0.0.1:{other.port}")), ["GET", key])
        assert isinstance(error, MovedError)
        assert (error.host, error.port) == ("127.0.0.1", owner.port)
    finally:
        pools.close()


def test_the_error_of_an_unreachable_announced_address_names_the_map(cluster: Group) -> None:
    target = Target(url=f"redis+cluster://127.0.0.1:{cluster.nodes[0].port}")
    with behind_nat(cluster) as remap, pytest.raises(TargetError) as caught:
        probe(target)
    text = str(caught.value)
    (announced,) = [place for place in remap if place in text]
    # redis-py's own client may find it first, or we do, node by node.
    assert re.search(
        r"^target .*(, as the cluster announces it,| that the cluster announces at .*, which) refused", text
    )
    assert text.endswith(f"is it up? If it is behind NAT, use --address-remap {announced}=HOST:PORT")
    dead = closed_port()
    mapped = Target(url=target.url, address_remap={"127.0.0.1": f"127.0.0.1:{dead}"})
    with pytest.raises(TargetError, match=r"target .*address_remap maps .* refused the .*Or correct the map$"):
        probe(mapped)


@pytest.mark.parametrize("reach", [by_client, by_asyncio, by_wire])
def test_a_cluster_without_slots_is_one_line(reach: Reach) -> None:
    with start_standalone("--cluster-enabled", "yes", "--cluster-port", str(closed_port())) as group:
        target = Target(url=group.url.replace("redis:", "redis+cluster:"))
        with pytest.raises(TargetError, match="serves no slots"):
            ping_target(target)
        with pytest.raises((TargetError, redis.RedisClusterException)) as caught:
            reach(target)
        assert "serves no slots" in str(translate(caught.value, target)) + str(caught.value)


# Sentinels


def test_addresses_from_sentinels_are_mapped_too() -> None:
    with start_sentinels(count=1) as group, start_standalone() as proxy:
        (node,) = proxy.nodes
        primary = group.nodes[0].port
        target = Target(url=group.url, address_remap={f"127.0.0.1:{primary}": f"127.0.0.1:{node.port}"})
        for reach in (by_client, by_asyncio, by_wire):
            node.ask("FLUSHALL")
            assert reach(target) == WRITTEN
            assert node.ask("DBSIZE") == len(KEYS)
        assert [(each.port, each.role) for each in nodes_of(target)] == [
            (node.port, "primary"),
            (group.nodes[1].port, "replica"),
        ]
        dead = closed_port()
        with pytest.raises(TargetError, match=r"has a server that target\.address_remap maps to") as caught:
            ping_target(Target(url=group.url, address_remap={"127.0.0.1": f"127.0.0.1:{dead}"}))
        assert f"127.0.0.1:{dead}, which refused the connection" in str(caught.value)


@pytest.mark.parametrize("url", ["redis+cluster://127.0.0.1:1", f"redis+sentinel://127.0.0.1:1/{SERVICE}"])
@pytest.mark.parametrize(
    ("cause", "what"),
    [
        (OSError(errno.ENETUNREACH, "Network is unreachable"), r"cannot be reached \(Network is unreachable\)"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "refused the connection"),
        (redis.TimeoutError("Timeout connecting to server"), "did not answer"),
        (socket.gaierror(-2, "Name or service not known"), r"has a host name that cannot be resolved\. If it"),
    ],
)
def test_the_error_of_an_announced_address_says_so_for_every_cause(url: str, cause: Exception, what: str) -> None:
    error: Any = cause if isinstance(cause, redis.TimeoutError) else redis.ConnectionError("Error connecting")
    error.__cause__ = None if error is cause else cause
    error.announced_address = Host("192.0.2.1", 7000)
    text = str(translate(error, quick_target(url)))
    assert re.search(rf"announces? at 192\.0\.2\.1:7000, which {what}", text)
    assert "use --address-remap 192.0.2.1:7000=HOST:PORT" in text


def test_keys_with_one_hash_tag_share_a_slot() -> None:
    assert slot_of(b"{user}:a") == slot_of(b"user") == slot_of(b"b{user}c{d}")


@pytest.mark.parametrize("key", [b"a", b"{a}b", b"{}a", b"a{", b"{{a}}", b"\xff\x00", b""])
def test_a_slot_is_the_one_that_the_server_computes(shared_cluster: ClusterGroup, key: bytes) -> None:
    assert slot_of(key) == shared_cluster.at(shared_cluster.ports[0]).execute_command("CLUSTER KEYSLOT", key)


def test_the_topology_is_read_less_and_less_often_while_a_slot_has_no_node() -> None:
    now_ns = 0
    limit = RefreshLimit(lambda: now_ns)
    read_ms = []
    for ms in range(0, 20_000, 10):
        now_ns = ms * NS_PER_S // 1000
        if limit.is_due():
            read_ms.append(ms)
    assert read_ms == [0, 250, 750, 1750, 3750, 7750, 11_750, 15_750, 19_750]
    now_ns += 60 * NS_PER_S
    assert limit.is_due()
    now_ns += NS_PER_S // 4
    assert limit.is_due()
