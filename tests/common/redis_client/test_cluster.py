"""The contract with redis-py's cluster client, and what we count, with a real cluster."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import redis
from redis.cluster import LoadBalancingStrategy, key_slot
from redis.exceptions import ClusterError

from common.cancellation import Cancellation, CutShort
from common.errors import TargetError
from common.plan.schema import Cluster, Pools, ReadFrom, Retry, RetryError, Target, TcpPool
from common.redis_client import (
    Client,
    build_client,
    failure_of,
    nodes_of,
    open_control_client,
    open_node_client,
    ping_target,
)
from common.redis_client.clients import tcp_pools
from common.units import Seconds
from tests.support.clients import Events
from tests.support.shapes import Group, ServerNode, start_cluster, uncovered, until

ONCE = Retry(retries=0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Group]:
    with start_cluster() as group:
        yield group


def target_of(cluster: Group, /, **settings: Any) -> Target:
    return Target(url=cluster.url, **{"socket_timeout_s": Seconds(2.0), "retry": ONCE, **settings})


def client_of(cluster: Group, events: Events, cancellation: Cancellation | None = None, /, **settings: Any) -> Client:
    pools = Pools(
        max_connections=settings.pop("max_connections", 3), tcp_pool=settings.pop("tcp_pool", TcpPool.RAISING)
    )
    return build_client(
        target_of(cluster, **settings), pools, events=events, cancellation=cancellation or Cancellation()
    )


def owner_and_other(cluster: Group, key: str) -> tuple[ServerNode, ServerNode]:
    """The primary that serves a key, and another primary."""
    slot = key_slot(key.encode())
    primaries = cluster.nodes[:3]
    rows = primaries[0].ask("CLUSTER", "SLOTS")
    port = next(row[2][1] for row in rows if row[0] <= slot <= row[1])
    return (
        next(node for node in primaries if node.port == port),
        next(node for node in primaries if node.port != port),
    )


def rejected(node: ServerNode, command: str) -> int:
    with node.client() as client:
        return int(client.info("commandstats").get(f"cmdstat_{command}", {}).get("rejected_calls", 0))


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("pool", list(TcpPool))
def test_keys_of_every_slot_are_reached_and_every_connection_is_reported(
    cluster: Group, protocol: int, pool: TcpPool
) -> None:
    events = Events()
    with client_of(cluster, events, protocol=protocol, tcp_pool=pool) as client:
        for number in range(60):
            client.execute_command("SET", f"key:{number}", number)
            assert client.execute_command("GET", f"key:{number}") == str(number).encode()
        assert {type(each).__name__ for each in tcp_pools(client)} == {
            "ConnectionPool" if pool is TcpPool.RAISING else "BlockingConnectionPool"
        }
        # One read the topology, and is given up for the ones that stay.
        assert events.kinds == {"opened": 4, "closed": 1}
    assert events.kinds == {"opened": 4, "closed": 4}


def test_the_first_reading_of_the_topology_is_no_refresh(cluster: Group) -> None:
    events = Events()
    with client_of(cluster, events) as client:
        assert events["topology refreshed"] == []
        client.nodes_manager.initialize()
    assert len(events["topology refreshed"]) == 1


@pytest.mark.parametrize(
    ("read_from", "strategy"),
    [
        (ReadFrom.PRIMARY, None),
        (ReadFrom.ANY, LoadBalancingStrategy.ROUND_ROBIN),
        (ReadFrom.REPLICAS, LoadBalancingStrategy.ROUND_ROBIN_REPLICAS),
        (ReadFrom.RANDOM, LoadBalancingStrategy.RANDOM),
        (ReadFrom.RANDOM_REPLICA, LoadBalancingStrategy.RANDOM_REPLICA),
    ],
)
def test_reads_go_to_the_nodes_that_the_plan_names(
    cluster: Group, read_from: ReadFrom, strategy: LoadBalancingStrategy | None
) -> None:
    replicas = cluster.nodes[3:]
    before = sum(reads(node) for node in replicas)
    with client_of(cluster, Events(), cluster=Cluster(read_from=read_from)) as client:
        assert client.load_balancing_strategy is strategy
        for number in range(100):
            client.execute_command("GET", f"key:{number}")
    at_replicas = sum(reads(node) for node in replicas) - before
    assert (at_replicas > 0) == (strategy is not None)
    assert (at_replicas == 100) == ("replica" in read_from.value)


def reads(node: ServerNode) -> int:
    with node.client() as client:
        return int(client.info("commandstats").get("cmdstat_get", {}).get("calls", 0))


def test_settings_that_redis_py_would_not_pass_on_reach_every_connection(cluster: Group) -> None:
    events = Events()
    settings = {"health_check_interval_s": Seconds(7.0), "client_name": "tested", "socket_timeout_s": Seconds(1.5)}
    steps = Cluster(reinitialize_steps=9, require_full_coverage=True, dynamic_startup_nodes=False)
    with client_of(cluster, events, max_connections=2, cluster=steps, **settings) as client:
        for pool in tcp_pools(client):
            connection = pool.get_connection()
            assert (connection.health_check_interval, connection.socket_timeout) == (7.0, 1.5)
            assert connection.client_name == "tested"
            assert connection.retry.get_retries() == 0
            assert pool.max_connections == 2
            pool.release(connection)
        assert len(tcp_pools(client)) == len(cluster.nodes)
        assert client.reinitialize_steps == 9
        assert client.nodes_manager._require_full_coverage
        assert not client.nodes_manager._dynamic_startup_nodes


def test_a_moved_slot_is_followed_and_counted_like_the_server_counts_it(cluster: Group) -> None:
    key = "{moved}"
    owner, other = owner_and_other(cluster, key)
    slot, events = key_slot(key.encode()), Events()
    ids = {node: node.ask("CLUSTER", "MYID") for node in (owner, other)}
    with client_of(cluster, events) as client:
        client.execute_command("GET", key)
        before = rejected(owner, "get")
        for node in (other, owner):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[other])
        try:
            assert client.execute_command("GET", key) is None
            assert client.execute_command("GET", key) is None
            assert events["redirected"] == ["MOVED"]
            assert len(events["topology refreshed"]) == 1
            assert rejected(owner, "get") - before == 1
        finally:
            for node in (owner, other):
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[owner])


def test_a_migrating_slot_redirects_and_each_redirection_is_a_rejected_call(cluster: Group) -> None:
    here, there = "{moving}1", "{moving}2"
    owner, other = owner_and_other(cluster, here)
    slot, events = key_slot(here.encode()), Events()
    with client_of(cluster, events) as client:
        client.execute_command("SET", here, "x")
        ids = {node: node.ask("CLUSTER", "MYID") for node in (owner, other)}
        before = rejected(owner, "get"), rejected(owner, "mget")
        other.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[owner])
        owner.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[other])
        try:
            assert client.execute_command("GET", there) is None
            assert events["redirected"] == ["ASK"]
            assert rejected(owner, "get") - before[0] == 1
            with pytest.raises(ClusterError, match="TTL exhausted") as caught:
                client.execute_command("MGET", here, there)
            # redis-py gives up after 16, and says nothing of the server's.
            assert failure_of(caught.value).name == "ClusterError"
            assert events["redirected"] == ["ASK", *["TRYAGAIN"] * 16]
            assert rejected(owner, "mget") - before[1] == 16
        finally:
            for node in (owner, other):
                node.ask("CLUSTER", "SETSLOT", slot, "STABLE")
            client.execute_command("DEL", here)


def test_a_slot_without_a_node_is_counted_and_reported_by_its_code(cluster: Group) -> None:
    key = "{down}"
    owner, _ = owner_and_other(cluster, key)
    slot, events = key_slot(key.encode()), Events()
    with client_of(cluster, events) as client:
        client.execute_command("GET", key)
        before = rejected(owner, "get")
        owner.ask("CLUSTER", "DELSLOTS", slot)
        try:
            with pytest.raises(redis.exceptions.ClusterDownError) as caught:
                client.execute_command("GET", key)
            assert (failure_of(caught.value).replied, failure_of(caught.value).name) == (True, "CLUSTERDOWN")
            assert events["redirected"] == ["CLUSTERDOWN"]
            # redis-py closes connections then, to make new ones; none was lost.
            assert events["dropped"] == []
            assert rejected(owner, "get") - before == 1
        finally:
            owner.ask("CLUSTER", "ADDSLOTS", slot)
            until(lambda: all("cluster_state:ok" in node.ask("CLUSTER", "INFO") for node in cluster.nodes))


@pytest.mark.parametrize("kind", ["command", "pipeline", "transaction"])
def test_a_slot_without_a_node_is_an_error_until_it_is_back_and_then_used_again(cluster: Group, kind: str) -> None:
    key = "{down}"
    slot, events = key_slot(key.encode()), Events()

    def set_it() -> bool:
        if kind == "command":
            return bool(client.execute_command("SET", key, "1"))
        pipeline = client.pipeline(transaction=kind == "transaction")
        pipeline.execute_command("SET", key, "1")
        return bool(pipeline.execute()[0])

    def is_set() -> bool:
        try:
            return set_it()
        except redis.exceptions.SlotNotCoveredError:
            return False

    with uncovered(cluster, slot, slot) as give_back, client_of(cluster, events) as client:
        for _ in range(3):
            with pytest.raises(redis.exceptions.SlotNotCoveredError):
                set_it()
        give_back()
        until(is_set)
    # At most one reading in a quarter of a second.
    assert len(events["topology refreshed"]) < 20


@pytest.mark.parametrize(
    ("arguments", "code"), [(("MGET", "a", "b"), "CROSSSLOT"), (("INCR", "text"), "ERR"), (("GET",), "ERR")]
)
def test_an_error_reply_of_a_node_is_named_by_its_code(cluster: Group, arguments: tuple[str, ...], code: str) -> None:
    owner, _ = owner_and_other(cluster, arguments[1] if len(arguments) > 1 else "text")
    with owner.client() as client:
        if arguments[0] == "INCR":
            client.set("text", "abc")
        with pytest.raises(redis.ResponseError) as caught:
            client.execute_command(*arguments)
    assert (failure_of(caught.value).replied, failure_of(caught.value).name) == (True, code)


def test_a_pipeline_reports_redirections_too(cluster: Group) -> None:
    key = "{piped}"
    owner, other = owner_and_other(cluster, key)
    slot, events = key_slot(key.encode()), Events()
    ids = {node: node.ask("CLUSTER", "MYID") for node in (owner, other)}
    with client_of(cluster, events, cluster=Cluster(reinitialize_steps=0)) as client:
        client.execute_command("GET", key)
        before = rejected(owner, "get")
        for node in (other, owner):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[other])
        try:
            pipeline = client.pipeline(transaction=False)
            for _ in range(3):
                pipeline.execute_command("GET", key)
            assert pipeline.execute(raise_on_error=False) == [None, None, None]
            assert set(events["redirected"]) == {"MOVED"}
            assert rejected(owner, "get") - before == len(events["redirected"])
            # Followed, and nothing lost: no retry of the policy.
            assert events["retried"] == []
        finally:
            for node in (owner, other):
                node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[owner])


def test_each_repetition_of_a_command_is_reported_up_to_the_plans_number(cluster: Group) -> None:
    events = Events()
    with client_of(cluster, events, retry=Retry(retries=2), socket_timeout_s=Seconds(0.2)) as client:
        client.execute_command("SET", "{paused}", "x")
        owner, _ = owner_and_other(cluster, "{paused}")
        owner.ask("CLIENT", "PAUSE", 30_000, "WRITE")
        try:
            with pytest.raises(redis.TimeoutError):
                client.execute_command("SET", "{paused}", "y")
            assert len(events["retried"]) == 2
            assert len(events["dropped"]) == 3
        finally:
            owner.ask("CLIENT", "UNPAUSE")


@pytest.mark.parametrize(
    ("is_transaction", "retries", "reported"), [(False, 0, 2), (False, 1, 4), (True, 0, 0), (True, 2, 2)]
)
def test_repetitions_of_a_batch_are_reported(cluster: Group, is_transaction: bool, retries: int, reported: int) -> None:
    # redis-py first repeats each lost command of a pipeline once, regardless of the policy, and then by the policy. It
    # repeats a transaction as a whole.
    events = Events()
    with client_of(cluster, events, retry=Retry(retries=retries), socket_timeout_s=Seconds(0.2)) as client:
        client.execute_command("SET", "{paused}", "x")
        owner, _ = owner_and_other(cluster, "{paused}")
        owner.ask("CLIENT", "PAUSE", 30_000, "WRITE")
        try:
            pipeline = client.pipeline(transaction=is_transaction)
            for value in ("y", "z"):
                pipeline.execute_command("SET", "{paused}", value)
            try:
                replies = pipeline.execute(raise_on_error=False)
            except redis.TimeoutError as error:
                replies = [error, error]
            assert [type(reply) for reply in replies] == [redis.TimeoutError] * 2
            assert len(events["retried"]) == reported
        finally:
            owner.ask("CLIENT", "UNPAUSE")


def test_an_error_that_the_plan_does_not_name_is_not_repeated(cluster: Group) -> None:
    events = Events()
    policy = Retry(retries=3, errors=(RetryError.CONNECTION,))
    with client_of(cluster, events, retry=policy, socket_timeout_s=Seconds(0.2)) as client:
        client.execute_command("SET", "{paused}", "x")
        owner, _ = owner_and_other(cluster, "{paused}")
        owner.ask("CLIENT", "PAUSE", 30_000, "WRITE")
        try:
            with pytest.raises(redis.TimeoutError):
                client.execute_command("SET", "{paused}", "y")
            assert events["retried"] == []
        finally:
            owner.ask("CLIENT", "UNPAUSE")


def test_nothing_connects_or_repeats_after_cancellation(cluster: Group) -> None:
    events, cancellation = Events(), Cancellation()
    with client_of(cluster, events, cancellation, retry=Retry(retries=9)) as client:
        client.execute_command("GET", "x")
        cancellation.cancel()
        with pytest.raises((CutShort, redis.RedisError, redis.RedisClusterException)):
            client.execute_command("GET", "x")
        assert len(events["retried"]) <= 1
    with pytest.raises(CutShort):
        client_of(cluster, events, cancellation)


def test_all_nodes_have_roles_and_clients_of_their_own(cluster: Group) -> None:
    target = target_of(cluster)
    nodes = nodes_of(target)
    assert [node.role for node in nodes] == ["primary"] * 3 + ["replica"] * 3
    assert {node.port for node in nodes} == {node.port for node in cluster.nodes}
    for node in nodes:
        with open_node_client(target, node) as client:
            assert client.info("server")["tcp_port"] == node.port


def test_the_control_client_of_a_cluster_has_one_connection_to_each_node(cluster: Group) -> None:
    ping_target(target_of(cluster))
    with open_control_client(target_of(cluster)) as client:
        assert client.execute_command("PING") is True
        assert {pool.max_connections for pool in tcp_pools(client)} == {1}


def test_some_nodes_of_the_url_may_be_down(cluster: Group) -> None:
    ping_target(Target(url=f"redis+cluster://127.0.0.1:1,127.0.0.1:{cluster.nodes[0].port}"))


def test_a_cluster_with_one_node_down_still_works() -> None:
    with start_cluster(replicas=0) as group:
        group.nodes[0].kill()
        target = target_of(group, retry=Retry())
        ping_target(target)
        with open_control_client(target) as control:
            assert control.retry.get_retries() == 0
        with build_client(target, Pools(), events=Events(), cancellation=Cancellation()) as client:
            assert len(tcp_pools(client)) == 3


def test_a_cluster_with_all_nodes_down_is_one_line() -> None:
    target = Target(url="redis+cluster://127.0.0.1:1,127.0.0.1:2")
    line = "target cluster 127.0.0.1:1,127.0.0.1:2 has no node that can be used; the last one asked refused"
    with pytest.raises(TargetError, match=line):
        ping_target(target)
    with pytest.raises(TargetError, match=line):
        build_client(target, Pools(), events=Events(), cancellation=Cancellation())


def test_the_server_of_each_command_is_reported(cluster: Group) -> None:
    events = Events()
    with client_of(cluster, events) as client:
        for number in range(30):
            owner, _ = owner_and_other(cluster, f"key:{number}")
            client.execute_command("SET", f"key:{number}", number)
            assert events.endpoints.names[events.endpoint].endswith(f":{owner.port}")


def test_the_server_of_each_command_of_a_pipeline_is_reported(cluster: Group) -> None:
    events = Events()
    with client_of(cluster, events) as client:
        for _ in range(2):
            pipeline = client.pipeline()
            for number in range(30):
                pipeline.execute_command("GET", f"key:{number}")
            pipeline.execute()
            ports = [int(events.endpoints.names[endpoint].rpartition(":")[2]) for endpoint in events.batch]
            assert ports == [owner_and_other(cluster, f"key:{number}")[0].port for number in range(30)]


def test_the_role_of_each_server_is_reported(cluster: Group) -> None:
    events = Events()
    with client_of(cluster, events, cluster=Cluster(read_from=ReadFrom.REPLICAS)) as client:
        client.execute_command("SET", "key", 1)
        assert not events.endpoints.is_replica(events.endpoint)
        client.execute_command("GET", "key")
        assert events.endpoints.is_replica(events.endpoint)
