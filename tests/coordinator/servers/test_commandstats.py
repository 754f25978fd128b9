from __future__ import annotations

import pytest
import redis

from common.plan.schema import Embedded, Target
from common.redis_client import slot_of
from common.units import Seconds
from coordinator.embedded import open_embedded
from coordinator.journal.records import CountersRead, Reading
from coordinator.servers.commandstats import read_server_counts
from tests.support.groups import ClusterGroup, SentinelGroup
from tests.support.servers import Server, SocketServer


def gained(before: CountersRead, after: CountersRead, command: str) -> int:
    return after.calls.get(command, 0) - before.calls.get(command, 0)


def test_the_counts_grow_by_exactly_the_calls_between_two_readings(valkey: Server) -> None:
    target, client = Target(url=valkey.url), valkey.client()
    client.ping()
    before = read_server_counts(target, Reading.BEFORE)
    for _ in range(7):
        client.set("a", 1)
    client.get("a")
    after = read_server_counts(target, Reading.AFTER)
    assert (before.when, after.when) == (Reading.BEFORE, Reading.AFTER)
    assert after.calls["set"] - before.calls.get("set", 0) == 7
    assert after.calls["get"] - before.calls.get("get", 0) == 1
    assert before.server_run_id == after.server_run_id != ""
    assert after.connected_clients == before.connected_clients == 2


def test_rejected_calls_count_as_calls(valkey: Server) -> None:
    client = valkey.client()
    client.acl_setuser("reader", enabled=True, passwords=["+word"], commands=["+get"], keys=["*"])
    target = Target(url=valkey.url)
    before = read_server_counts(target, Reading.BEFORE)
    with valkey.client(username="reader", password="word") as reader:
        refused = reader.pipeline(transaction=False).set("a", 1).set("a", 2).execute(raise_on_error=False)
    assert all(isinstance(reply, redis.ResponseError) for reply in refused)
    after = read_server_counts(target, Reading.AFTER)
    assert after.calls["set"] - before.calls.get("set", 0) == 2


def test_another_server_has_another_run_id(valkey: Server) -> None:
    first = read_server_counts(Target(url=valkey.url), Reading.BEFORE)
    with open_embedded(Embedded.STANDALONE) as other:
        second = read_server_counts(Target(url=other.url), Reading.AFTER)
    assert first.server_run_id != second.server_run_id


def test_a_user_who_may_not_read_the_counters_gets_an_error(valkey: Server) -> None:
    valkey.client().acl_setuser("narrow", enabled=True, passwords=["+word"], commands=["+ping"], keys=["*"])
    target = Target(url=valkey.url, username="narrow", password="word", client_name=None)
    counted = read_server_counts(target, Reading.BEFORE)
    assert counted.calls == {}
    assert "does not permit a command: NOPERM User narrow has no permissions to run the 'info' command" in counted.error


def test_a_server_without_counters_is_an_error() -> None:
    with SocketServer(reply=b"+OK\r\n") as server:
        counted = read_server_counts(Target(url=server.url, protocol=2), Reading.BEFORE)
    assert counted.calls == {}
    assert counted.error == f"target 127.0.0.1:{server.port} does not count calls: INFO commandstats is empty"


def test_replicated_commands_of_a_cluster_do_not_count(shared_cluster: ClusterGroup) -> None:
    target, client = Target(url=shared_cluster.url), shared_cluster.client()
    before = read_server_counts(target, Reading.BEFORE)
    for number in range(30):
        client.set(f"key {number}", number)
    with client.pipeline(transaction=True) as transaction:
        transaction.set("{a}1", 1).incr("{a}2").execute()
    for port in shared_cluster.primaries:
        shared_cluster.at(port).wait(1, 5000)
    after = read_server_counts(target, Reading.AFTER)
    repeated = sum(shared_cluster.calls("set", port) for port in shared_cluster.replicas)
    assert repeated >= 30
    assert [gained(before, after, name) for name in ("set", "incrby", "multi", "exec")] == [31, 1, 1, 1]
    assert (before.keys, after.keys) == (0, 32)
    assert [(node.name, node.role) for node in before.nodes] == [(node.name, node.role) for node in after.nodes]
    assert len({node.run_id for node in after.nodes}) == 6


def test_reads_at_a_replica_and_its_redirections_count(shared_cluster: ClusterGroup) -> None:
    target = Target(url=shared_cluster.url)
    replica = shared_cluster.at(shared_cluster.replicas[0])
    [mine] = [node for node in shared_cluster.nodes if node.port == shared_cluster.replicas[0]]
    assert mine.primary is not None
    key = next(f"key {number}" for number in range(100) if shared_cluster.owner(_slot(f"key {number}")) == mine.primary)
    before = read_server_counts(target, Reading.BEFORE)
    with redis.Redis(port=mine.port, single_connection_client=True) as reader:
        reader.execute_command("READONLY")
        assert reader.get(key) is None
    with pytest.raises(redis.exceptions.MovedError):
        replica.set(key, 1)
    after = read_server_counts(target, Reading.AFTER)
    assert [gained(before, after, name) for name in ("get", "set")] == [1, 1]


def _slot(key: str) -> int:
    return slot_of(key.encode())


def test_only_the_primary_behind_sentinels_is_read(shared_sentinel: SentinelGroup) -> None:
    target = Target(url=shared_sentinel.url)
    before = read_server_counts(target, Reading.BEFORE)
    shared_sentinel.client().set("a", 1)
    shared_sentinel.at(shared_sentinel.primary).wait(1, 5000)
    after = read_server_counts(target, Reading.AFTER)
    assert gained(before, after, "set") == 1
    assert [(node.name, node.role) for node in after.nodes] == [(f"127.0.0.1:{shared_sentinel.primary}", "primary")]
    assert after.keys == 1


def test_a_node_that_refuses_the_query_is_named(shared_cluster: ClusterGroup) -> None:
    port = shared_cluster.ports[2]
    for each in shared_cluster.ports:
        commands = ["+@all"] if each != port else ["+@all", "-info"]
        shared_cluster.at(each).acl_setuser("narrow", enabled=True, passwords=["+word"], commands=commands, keys=["*"])
    counted = read_server_counts(Target(url=shared_cluster.url, username="narrow", password="word"), Reading.BEFORE)
    assert counted.error.startswith(f"target 127.0.0.1:{port} does not permit a command")


def test_an_unreachable_target_differs_from_one_that_refuses(
    valkey: Server, silent_server: SocketServer, refusing_url: str
) -> None:
    short = {"connect_timeout_s": Seconds(0.2), "socket_timeout_s": Seconds(0.2)}
    for url in (refusing_url, f"redis://127.0.0.1:{silent_server.port}", "redis+cluster" + refusing_url[5:]):
        counted = read_server_counts(Target(url=url, **short), Reading.AFTER)
        assert (counted.unreachable, bool(counted.error)) == (True, True), url
    valkey.client().acl_setuser("narrow", enabled=True, passwords=["+word"], commands=["+@all", "-info"], keys=["*"])
    for user, password in (("narrow", "word"), ("narrow", "other")):
        counted = read_server_counts(Target(url=valkey.url, username=user, password=password), Reading.AFTER)
        assert (counted.unreachable, bool(counted.error)) == (False, True), counted.error
    assert not read_server_counts(Target(url=valkey.url), Reading.AFTER).unreachable
