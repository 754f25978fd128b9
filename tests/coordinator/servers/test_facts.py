from __future__ import annotations

from typing import Any

import pytest

from common.clock import monotonic_ns
from common.errors import PlanError, TargetError
from common.plan.schema import Cluster, ReadFrom, Target
from common.units import NS_PER_S, Seconds
from coordinator.journal.records import Reading, TargetFacts
from coordinator.servers import facts as probing
from coordinator.servers.check import check
from coordinator.servers.commandstats import read_server_counts
from coordinator.servers.facts import UNKNOWN_SERVER, max_clients, probe, server_name, topology
from tests.support.groups import ClusterGroup, SentinelGroup
from tests.support.plans import plan_for
from tests.support.servers import Server, SocketServer, closed_port

QUICK_S = Seconds(0.1)
BOUND_S = 5.0


def quick(url: str, **options: Any) -> Target:
    return Target(url=url, connect_timeout_s=QUICK_S, socket_timeout_s=QUICK_S, **options)


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_server_has_its_name_version_and_limits(valkey: Server, protocol: int) -> None:
    facts = probe(Target(url=valkey.url, protocol=protocol))
    assert facts.url == valkey.url
    assert facts.topology == "standalone"
    assert facts.server.startswith("valkey 9.")
    assert facts.max_clients == int(valkey.client(decode_responses=True).config_get("maxclients")["maxclients"])
    assert facts.ping_us is not None
    assert 0 < facts.ping_us < 1e6


def test_keys_are_counted_in_the_database_of_the_plan(valkey: Server) -> None:
    valkey.client().mset({"a": 1, "b": 2})
    assert probe(Target(url=valkey.url)).keys == 2
    assert probe(Target(url=f"{valkey.url}/1")).keys == 0


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_facts_of_a_cluster_include_all_nodes(shared_cluster: ClusterGroup, protocol: int) -> None:
    client = shared_cluster.client()
    for number in range(30):
        client.set(f"key {number}", number)
    shared_cluster.at(shared_cluster.ports[4]).config_set("maxclients", 77)
    try:
        facts = probe(Target(url=shared_cluster.url, protocol=protocol))
    finally:
        shared_cluster.at(shared_cluster.ports[4]).config_set("maxclients", 10000)
    assert (facts.topology, facts.server.split()[0]) == ("cluster", "valkey")
    assert (facts.primaries, facts.replicas, facts.nodes) == (3, 3, 6)
    assert (facts.keys, facts.max_clients) == (30, 77)


def test_a_sentinel_target_has_one_primary_and_its_replicas(shared_sentinel: SentinelGroup) -> None:
    shared_sentinel.client().set("a", 1)
    facts = probe(Target(url=shared_sentinel.url))
    assert (facts.topology, facts.primaries, facts.replicas, facts.nodes) == ("sentinel", 1, 1, 1)
    assert facts.keys == 1


def test_a_plain_url_of_a_cluster_node_names_the_right_url(shared_cluster: ClusterGroup) -> None:
    place = f"127.0.0.1:{shared_cluster.ports[0]}"
    with pytest.raises(
        TargetError, match=rf"^target {place} is a node of a cluster, .*: use redis\+cluster://{place}$"
    ):
        probe(Target(url=f"redis://{place}"))


@pytest.mark.parametrize(("read_from", "pools"), [(ReadFrom.PRIMARY, 1), (ReadFrom.REPLICAS, 2)])
def test_each_client_has_a_tcp_pool_for_the_replicas_that_it_reads_from(
    shared_sentinel: SentinelGroup, read_from: ReadFrom, pools: int
) -> None:
    cluster = Cluster(read_from=read_from)
    assert probe(Target(url=shared_sentinel.url, cluster=cluster)).nodes == pools
    url, replica = f"redis://127.0.0.1:{shared_sentinel.primary}", f"127.0.0.1:{shared_sentinel.replica}"
    facts = probe(Target(url=url, replicas=(replica,), cluster=cluster))
    assert (facts.topology, facts.primaries, facts.replicas, facts.nodes) == ("standalone", 1, 1, pools)


def test_a_listed_replica_that_is_none_is_refused(shared_sentinel: SentinelGroup) -> None:
    url, primary = f"redis://127.0.0.1:{shared_sentinel.replica}", f"127.0.0.1:{shared_sentinel.primary}"
    with pytest.raises(TargetError, match=rf"^target\.replicas: expected a replica, got {primary}, which is none$"):
        probe(Target(url=url, replicas=(primary,)))


def test_a_plain_url_of_a_sentinel_names_the_right_url(shared_sentinel: SentinelGroup) -> None:
    place = f"127.0.0.1:{shared_sentinel.sentinels[0]}"
    with pytest.raises(
        TargetError, match=rf"^target {place} is a Sentinel, .*: use redis\+sentinel://{place}/SERVICE$"
    ):
        probe(Target(url=f"redis://{place}"))


def test_a_replica_is_recognized(valkey: Server) -> None:
    valkey.client().replicaof("127.0.0.1", closed_port())
    assert probe(Target(url=valkey.url)).topology == "replica"


@pytest.mark.usefixtures("no_leaks")
def test_a_password_in_the_url_is_not_in_the_facts(valkey_with_password: Server) -> None:
    password = "a%20word%20for%20the%20test"
    facts = probe(Target(url=f"redis://:{password}@127.0.0.1:{valkey_with_password.port}"))
    assert "word" not in repr(facts)


def test_a_user_who_may_only_ping_gets_the_remaining_facts(valkey: Server) -> None:
    valkey.client().acl_setuser("narrow", enabled=True, passwords=["+word"], commands=["+ping"], keys=["*"])
    facts = probe(Target(url=valkey.url, username="narrow", password="word", client_name=None))
    assert facts == TargetFacts(
        url=valkey.url, topology="standalone", server=UNKNOWN_SERVER, max_clients=None, ping_us=facts.ping_us
    )


class FixedReplies:
    """A client with one fixed reply per command."""

    def __init__(self, **replies: dict[str, Any]) -> None:
        self._replies = replies

    def execute_command(self, *args: Any, **_options: Any) -> Any:
        return self._replies["_".join(args).replace(" ", "_").lower()]


def test_maxclients_is_read_from_config_if_info_has_none() -> None:
    assert (
        max_clients(FixedReplies(info_clients={"connected_clients": 1}, config_get_maxclients={"maxclients": "7"})) == 7
    )
    assert max_clients(FixedReplies(info_clients={"maxclients": 9})) == 9
    assert max_clients(FixedReplies(info_clients={}, config_get_maxclients={})) is None


@pytest.mark.parametrize(
    ("server", "name"),
    [
        ({"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "9.1.2"}, "valkey 9.1.2"),
        ({"redis_version": "8.2.1", "executable": "/usr/bin/redis-server"}, "redis 8.2.1"),
        ({"redis_version": 7.4}, "redis 7.4"),
        ({"redis_version": "7.4.0", "dragonfly_version": "df-v1.21.2"}, "dragonfly 1.21.2"),
        ({"redis_version": "6.3.4", "executable": "/usr/local/bin/keydb-server"}, "keydb 6.3.4"),
        ({"redis_version": "7.2.4", "rlec_version": "7.4.2-54"}, "redis enterprise 7.4.2-54"),
        ({}, UNKNOWN_SERVER),
    ],
)
def test_each_product_has_its_own_version(server: dict[str, Any], name: str) -> None:
    assert server_name(server) == name


@pytest.mark.parametrize(
    ("server", "replication", "expected"),
    [
        ({"server_mode": "standalone"}, {"role": "master"}, "standalone"),
        ({"redis_mode": "standalone"}, {"role": "slave"}, "replica"),
        ({"redis_mode": "cluster"}, {"role": "slave"}, "cluster"),
        ({"redis_mode": "sentinel"}, {}, "sentinel"),
        ({}, {}, "standalone"),
    ],
)
def test_the_topology_follows_from_mode_and_role(
    server: dict[str, Any], replication: dict[str, Any], expected: str
) -> None:
    assert topology(server, replication) == expected


def probe_it(target: Target) -> object:
    return probe(target)


def check_it(target: Target) -> object:
    return check(plan_for(target), 1)


def count_it(target: Target) -> object:
    error = read_server_counts(target, Reading.BEFORE).error
    assert error
    raise TargetError(error)


WAYS = pytest.mark.parametrize("way", [probe_it, check_it, count_it])


@WAYS
@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("silent_server", r"did not answer \(waited up to 100ms .*\): is it up"),
        ("closing_server", r"(ended|reset) the connection.*: is it Redis"),
        ("http_server", r"does not speak RESP: is it Redis"),
        ("smtp_server", r"does not speak RESP: is it Redis"),
    ],
)
@pytest.mark.usefixtures("no_leaks")
def test_a_server_other_than_redis_is_named_in_one_line_and_in_time(
    way: Any, name: str, finding: str, request: pytest.FixtureRequest
) -> None:
    server: SocketServer = request.getfixturevalue(name)
    began_ns = monotonic_ns()
    with pytest.raises(TargetError, match=rf"^target 127\.0\.0\.1:{server.port} {finding}[^\n]*$"):
        way(quick(server.url))
    assert monotonic_ns() - began_ns < BOUND_S * NS_PER_S


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize(
    "reply",
    [
        b"+PON",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"\x00" * 50,
    ],
)
def test_a_malformed_reply_is_one_line(reply: bytes, protocol: int) -> None:
    with SocketServer(reply=reply) as server, pytest.raises(TargetError, match=r"^target [^\n]+$"):
        probe(quick(server.url, protocol=protocol))


@WAYS
def test_a_closed_port_is_refused(way: Any, refusing_url: str) -> None:
    with pytest.raises(TargetError, match="refused the connection: nothing listens there; start the server"):
        way(quick(refusing_url))


@WAYS
@pytest.mark.usefixtures("no_leaks")
def test_a_port_that_drops_packets_times_out(way: Any, deaf_url: str) -> None:
    with pytest.raises(TargetError, match="did not answer"):
        way(quick(deaf_url))


@WAYS
def test_a_server_that_hangs_times_out(way: Any, valkey: Server) -> None:
    valkey.pause()
    with pytest.raises(TargetError, match="did not answer"):
        way(quick(valkey.url))


@WAYS
@pytest.mark.parametrize("protocol", [2, 3])
def test_a_missing_or_wrong_password_is_named_and_not_repeated(
    way: Any, protocol: int, valkey_with_password: Server
) -> None:
    with pytest.raises(TargetError, match=r"requires a password: set target\.password_env"):
        way(Target(url=valkey_with_password.url, protocol=protocol))
    with pytest.raises(TargetError, match="refused our user name and password") as caught:
        way(Target(url=valkey_with_password.url, protocol=protocol, password="hunter2"))
    assert "hunter2" not in str(caught.value)


def test_the_right_password_is_accepted(valkey_with_password: Server) -> None:
    target = Target(url=valkey_with_password.url, password=valkey_with_password.password)
    assert probe(target).server.startswith("valkey")
    assert not read_server_counts(target, Reading.BEFORE).error


def test_a_server_that_dies_between_two_queries_is_a_target_error(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(_client: object, _section: str) -> dict[str, Any]:
        valkey.kill()
        return {}

    monkeypatch.setattr(probing, "info", dies)
    with pytest.raises(TargetError, match=r"nothing listens there|ended the connection|reset the connection"):
        probe(Target(url=valkey.url))


def test_a_url_with_another_scheme_is_a_plan_error() -> None:
    with pytest.raises(PlanError, match="expected redis://"):
        probe(Target(url="http://localhost"))
