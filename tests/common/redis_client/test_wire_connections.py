"""Connections for the wire driver: the contract with redis-py, for every kind of target."""

from __future__ import annotations

import gc
import select
import socket
import struct
import warnings
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import hiredis
import msgspec
import pytest
import redis
from redis.exceptions import AskError, MovedError

from common.cancellation import Cancellation, CutShort
from common.plan.schema import BackoffKind, Pools, Retry, Target
from common.redis_client import failure_of
from common.redis_client.connections.cluster_topology import slot_of
from common.redis_client.connections.connection_tracking import Unobserved
from common.redis_client.wire_connections import (
    PENDING,
    SINGLE_NODE,
    SLOTS,
    WOULD_BLOCK,
    InstancePools,
    SlotMap,
    WireConnection,
    is_push,
    is_read_only,
    redirect_kind,
    redirect_target,
    reply_timeout_error,
    socket_error,
)
from common.units import Seconds
from tests.support.clients import Events, quick_target
from tests.support.groups import ClusterGroup
from tests.support.servers import Server, SocketServer
from tests.support.shapes import Group

pytestmark = pytest.mark.usefixtures("no_leaks")

PING = b"*1\r\n$4\r\nPING\r\n"


@pytest.fixture
def target(shape: tuple[Group, Target]) -> Target:
    """A target of each shape, which is asked once and not again."""
    return msgspec.structs.replace(shape[1], retry=Retry(retries=0))


def replies(link: WireConnection, sock: socket.socket, request: bytes, count: int = 1) -> list[Any]:
    """The next replies; error replies that were noted come last."""
    notes: list[Any] = []
    reader, found = link.reader(notes), []
    sock.send(request)
    while len(found) < count:
        select.select([sock], [], [], 10)
        try:
            reader.feed(sock.recv(65536))
        except WOULD_BLOCK:
            continue
        while (reply := reader.gets()) is not PENDING:
            found.append(reply)
    return [*found, *notes]


@pytest.fixture
def pools(target: Target, _leak_check_first: None) -> Iterator[tuple[InstancePools, Events, str]]:
    """A client instance's pools, what its connections go through, and the name of a node."""
    events = Events()
    with closing(SlotMap(target)) as primaries:
        name = primaries.slots()[0]
    with closing(InstancePools(target, Pools(max_connections=2), events=events, cancellation=Cancellation())) as made:
        yield made, events, name


def test_an_open_connection_has_shaken_hands_and_does_not_block(
    pools: tuple[InstancePools, Events, str],
) -> None:
    made, events, name = pools
    link = WireConnection(made.pool_for(name))
    sock = link.open()
    assert sock.getblocking() is False
    with pytest.raises(WOULD_BLOCK):
        sock.recv(1)
    named = b"*2\r\n$6\r\nCLIENT\r\n$7\r\nGETNAME\r\n"
    assert replies(link, sock, PING + named, 2) == [b"PONG", b"stampede"]
    assert events.kinds == {"opened": 1}
    link.close()
    link.close()
    assert events.kinds == {"opened": 1, "closed": 1}
    assert sock.fileno() == -1


def test_a_loss_is_reported_with_its_cause_and_the_connection_reopened(
    pools: tuple[InstancePools, Events, str],
) -> None:
    made, events, name = pools
    link = WireConnection(made.pool_for(name))
    for error, cause in (
        (socket_error(None), "closed by server"),
        (socket_error(ConnectionResetError(104, "reset")), "closed by server"),
        (reply_timeout_error(), "timeout"),
        (socket_error(redis.InvalidResponse("odd")), "InvalidResponse"),
    ):
        sock = link.open()
        link.drop(error)
        assert events["dropped"][-1] == cause
        assert sock.fileno() == -1
    assert replies(link, link.open(), PING) == [b"PONG"]
    assert events.kinds == {"opened": 5, "dropped": 4}
    # Each but the first took the place of one that was lost.
    assert [since is None for since in events["opened"]] == [True, False, False, False, False]


def test_a_pool_has_all_its_connections_and_no_more(pools: tuple[InstancePools, Events, str]) -> None:
    made, _, name = pools
    links = [WireConnection(made.pool_for(name)) for _ in range(3)]
    first, second = links[0].open(), links[1].open()
    assert first is not second
    with pytest.raises(redis.ConnectionError):
        links[2].open()
    made.close()
    assert (first.fileno(), second.fileno()) == (-1, -1)
    made.close()


def test_a_prewarmed_connection_is_used(pools: tuple[InstancePools, Events, str]) -> None:
    made, events, name = pools
    pool = made.pool_for(name)
    pool.release(pool.get_connection())
    link = WireConnection(pool)
    assert replies(link, link.open(), PING) == [b"PONG"]
    assert events.kinds == {"opened": 1}


def test_an_error_reply_is_redis_pys_own_and_appended(pools: tuple[InstancePools, Events, str]) -> None:
    made, _, name = pools
    link = WireConnection(made.pool_for(name))
    found, noted = replies(link, link.open(), b"*1\r\n$5\r\nNEVER\r\n")
    assert found is noted
    assert isinstance(found, redis.ResponseError)
    assert failure_of(found).name == "ERR"


# Trouble


def test_a_connect_is_tried_as_often_as_the_plan_says(refusing_url: str) -> None:
    events = Events()
    policy = Retry(retries=3, backoff=BackoffKind.CONSTANT, base_s=Seconds(0.001))
    target = quick_target(refusing_url, retry=policy)
    with closing(InstancePools(target, Pools(), events=events, cancellation=Cancellation())) as made:
        link = WireConnection(made.pool_for(SINGLE_NODE))
        for rounds in (1, 2):
            with pytest.raises(redis.ConnectionError):
                link.open()
            assert events.kinds == {"attempt failed": 4 * rounds, "retried": 3 * rounds}
        link.close()


def test_a_silent_server_is_not_a_connection(silent_server: SocketServer) -> None:
    events = Events()
    target = quick_target(silent_server.url, retry=Retry(retries=0))
    with closing(InstancePools(target, Pools(), events=events, cancellation=Cancellation())) as made:
        with pytest.raises(redis.TimeoutError):
            WireConnection(made.pool_for(SINGLE_NODE)).open()
        assert events.kinds == {"attempt failed": 1}


def test_a_wire_connection_does_not_open_after_cancellation(valkey: Server) -> None:
    cancellation = Cancellation()
    with closing(
        InstancePools(Target(url=valkey.url), Pools(), events=Unobserved(), cancellation=cancellation)
    ) as made:
        link = WireConnection(made.pool_for(SINGLE_NODE))
        sock = link.open()
        cancellation.cancel()
        assert sock.recv(1) == b""
        with pytest.raises(CutShort):
            WireConnection(made.pool_for(SINGLE_NODE)).open()


def test_a_loss_after_cancellation_counts_as_closed(valkey: Server) -> None:
    cancellation, events = Cancellation(), Events()
    with closing(InstancePools(Target(url=valkey.url), Pools(), events=events, cancellation=cancellation)) as made:
        link = WireConnection(made.pool_for(SINGLE_NODE))
        link.open()
        cancellation.cancel()
        link.drop(socket_error(None))
    assert events.kinds == {"opened": 1, "closed": 1}


def test_a_connection_that_is_cancelled_before_its_tls_handshake_is_closed(silent_server: SocketServer) -> None:
    class Hasty(Cancellation):
        def watch(self, sock: socket.socket) -> None:
            self.cancel()
            super().watch(sock)

    target = quick_target(silent_server.url.replace("redis", "rediss"))
    made = InstancePools(target, Pools(), events=Unobserved(), cancellation=Hasty())
    with closing(made), pytest.raises(CutShort):
        WireConnection(made.pool_for(SINGLE_NODE)).open()
    # A socket that was not closed warns when it is collected.
    gc.collect()


@pytest.mark.parametrize("is_cut", [False, True], ids=["retried", "cut short"])
def test_a_connection_that_is_reset_before_its_tls_handshake_is_closed(is_cut: bool) -> None:
    resets = 0

    class Resetting(Cancellation):
        """The server resets each connection at the moment at which the client is about to begin TLS."""

        def watch(self, sock: socket.socket) -> None:
            nonlocal resets
            accepted, _ = server.accept()
            with accepted:
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            resets += 1
            super().watch(sock)
            if is_cut:
                self.cancel()

    with socket.create_server(("127.0.0.1", 0)) as server, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        target = quick_target(f"rediss://127.0.0.1:{server.getsockname()[1]}", retry=Retry(retries=1))
        made = InstancePools(target, Pools(), events=Unobserved(), cancellation=Resetting())
        with closing(made), pytest.raises(CutShort if is_cut else redis.ConnectionError):
            WireConnection(made.pool_for(SINGLE_NODE)).open()
        # A socket that was not closed warns when it is collected.
        gc.collect()
    assert resets == (1 if is_cut else 2)
    assert [str(each.message) for each in warned] == []


# What errors and messages are


def parsed(text: bytes) -> Any:
    """An error reply as the reader of a connection gives it."""
    link = WireConnection(redis.ConnectionPool())
    link._connection = redis.Connection()
    reader = link.reader([])
    reader.feed(text)
    return reader.gets()


@pytest.mark.parametrize(("how", "kind"), [("MOVED", MovedError), ("ASK", AskError)])
def test_a_redirection_has_slot_and_node(how: str, kind: type[Exception]) -> None:
    error = parsed(f"-{how} 3999 127.0.0.1:6381\r\n".encode())
    assert type(error) is kind
    assert (redirect_kind(error), redirect_target(error)) == (how, (3999, "127.0.0.1:6381"))


@pytest.mark.parametrize("text", ["TRYAGAIN Multiple keys", "CLUSTERDOWN The cluster is down"])
def test_other_redirections_have_no_node(text: str) -> None:
    assert redirect_kind(parsed(f"-{text}\r\n".encode())) == text.split()[0]


def test_no_other_error_is_a_redirection() -> None:
    assert redirect_kind(parsed(b"-ERR MOVED is no code here\r\n")) is None
    assert redirect_kind(socket_error(None)) is None


def test_a_read_only_error_means_a_replica() -> None:
    assert is_read_only(parsed(b"-READONLY You can't write against a read only replica.\r\n"))
    assert not is_read_only(parsed(b"-ERR READONLY\r\n"))


def test_a_push_message_is_not_a_reply() -> None:
    reader = hiredis.Reader()
    reader.feed(b">2\r\n+a\r\n+b\r\n*2\r\n+a\r\n+b\r\n")
    assert [is_push(reader.gets()), is_push(reader.gets())] == [True, False]


# Who has which slots


def test_a_target_that_is_not_a_cluster_has_one_node(valkey: Server) -> None:
    with closing(SlotMap(Target(url=valkey.url))) as primaries:
        assert not primaries.is_cluster
        assert set(primaries.slots()) == {SINGLE_NODE}


def test_each_slot_of_a_cluster_belongs_to_its_primary(shared_cluster: ClusterGroup) -> None:
    with closing(SlotMap(Target(url=shared_cluster.url))) as primaries:
        assert primaries.is_cluster
        found = primaries.slots()
        assert len(found) == SLOTS
        for node in shared_cluster.nodes:
            for served in node.slots:
                assert {found[slot] for slot in served} == {f"127.0.0.1:{node.port}"}


def test_a_moved_slot_is_found_when_the_topology_is_read_again(valkey_cluster: ClusterGroup) -> None:
    with closing(SlotMap(Target(url=valkey_cluster.url))) as primaries:
        source, to = valkey_cluster.primaries[:2]
        slot = next(node.slots[0][0] for node in valkey_cluster.nodes if node.port == source)
        valkey_cluster.move_slot(slot, to)
        assert primaries.slots()[slot] == f"127.0.0.1:{source}"
        primaries.refresh()
        assert primaries.slots()[slot] == f"127.0.0.1:{to}"


def test_the_slot_of_a_command_follows_from_its_keys(shared_cluster: ClusterGroup) -> None:
    with closing(SlotMap(Target(url=shared_cluster.url))) as primaries:
        for arguments in (
            ("GET", b"key"),
            ("MSET", b"{key}a", b"1", b"{key}b", b"2"),
            ("EVAL", b"return 1", b"1", b"key", b"x"),
            ("XREAD", b"COUNT", b"1", b"STREAMS", b"key", b"0"),
            ("ZUNION", b"1", b"key"),
        ):
            assert primaries.slot_of(arguments) == slot_of(b"key"), arguments
        assert len({primaries.slot_of(("PING",)) for _ in range(50)}) > 1


def test_the_slot_of_a_command_is_random_if_no_node_answers(valkey_cluster: ClusterGroup) -> None:
    with closing(SlotMap(Target(url=valkey_cluster.url))) as primaries:
        for port in valkey_cluster.ports:
            valkey_cluster.kill(port)
        assert primaries.slot_of(("ZUNION", b"1", b"key")) in range(SLOTS)
        assert primaries.slot_of(("GET", b"key")) == slot_of(b"key")
