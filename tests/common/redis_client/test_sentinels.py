"""The primary that Sentinels know: found, followed when it changes, and one line for why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from common.cancellation import Cancellation, CutShort
from common.errors import TargetError
from common.plan.schema import Pools, Sentinel, Target, TcpPool
from common.redis_client import build_client, nodes_of, open_control_client, open_node_client, ping_target
from common.redis_client.clients import tcp_pools
from common.units import Seconds
from tests.support.clients import Events
from tests.support.servers import Server
from tests.support.shapes import Group, start_sentinels, until

DATA, WATCH = "of the data", "of the sentinels"


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    with start_sentinels(DATA, WATCH) as group:
        yield group


def target_of(group: Group, **settings: Any) -> Target:
    usual = {"url": group.url, "password": DATA, "sentinel": Sentinel(password=WATCH), "socket_timeout_s": Seconds(2.0)}
    return Target(**{**usual, **settings})


def finding(target: Target) -> str:
    with pytest.raises(TargetError) as caught:
        ping_target(target)
    text = str(caught.value)
    assert "\n" not in text
    assert DATA not in text
    assert WATCH not in text
    return text


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("pool", list(TcpPool))
def test_only_connections_to_the_primary_are_reported(group: Group, protocol: int, pool: TcpPool) -> None:
    events = Events()
    target = target_of(group, protocol=protocol)
    ping_target(target)
    with build_client(
        target, Pools(max_connections=2, tcp_pool=pool), events=events, cancellation=Cancellation()
    ) as client:
        assert events.seen == []
        assert client.execute_command("SET", "key", "value") is True
        [tcp_pool] = tcp_pools(client)
        assert ("Blocking" in type(tcp_pool).__name__) == (pool is TcpPool.BLOCKING)
    assert events.kinds == {"opened": 1, "closed": 1}


def test_a_blocking_pool_waits_as_long_as_the_plan_says(group: Group) -> None:
    pools = Pools(max_connections=1, tcp_pool=TcpPool.BLOCKING, tcp_pool_wait_s=Seconds(0.05))
    with build_client(target_of(group), pools, events=Events(), cancellation=Cancellation()) as client:
        [pool] = tcp_pools(client)
        held = pool.get_connection()
        with pytest.raises(Exception, match="No connection available"):
            pool.get_connection()
        pool.release(held)
        assert pool.get_connection() is held
        pool.release(held)


def test_nothing_is_asked_after_cancellation(group: Group) -> None:
    cancellation, events = Cancellation(), Events()
    cancellation.cancel()
    with (
        build_client(target_of(group), Pools(), events=events, cancellation=cancellation) as client,
        pytest.raises(CutShort),
    ):
        client.execute_command("PING")
    assert events.seen == []


def test_the_primary_and_its_replica_have_clients_of_their_own(group: Group) -> None:
    target = target_of(group)
    primary, replica = nodes_of(target)
    assert [primary.role, replica.role] == ["primary", "replica"]
    assert [primary.port, replica.port] == [node.port for node in group.nodes]
    with open_node_client(target, replica) as client:
        assert client.info("replication")["role"] == "slave"
    with open_control_client(target) as client:
        assert client.execute_command("INFO", "replication")["role"] == "master"


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"sentinel": Sentinel()}, "has Sentinels that require their own user and password (NOAUTH)"),
        ({"sentinel": Sentinel(password="wrong")}, "has Sentinels that require their own user and password (WRONG"),
        ({"password": None}, "has a primary that requires a password"),
        ({"password": "wrong"}, "has a primary that refused our user name and password"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 3])
def test_the_error_says_whose_password_is_missing(
    group: Group, settings: dict[str, Any], line: str, protocol: int
) -> None:
    assert line in finding(target_of(group, protocol=protocol, **settings))


def test_a_service_that_no_sentinel_knows_is_one_line(group: Group) -> None:
    target = target_of(group, url=group.url.replace("/mymaster", "/other"))
    assert "is not known to its Sentinels" in finding(target)


def test_one_sentinel_that_answers_is_enough(group: Group) -> None:
    ping_target(target_of(group, url=group.url.replace("//", "//127.0.0.1:1,")))


def test_sentinels_that_are_all_down_are_one_line() -> None:
    text = finding(Target(url="redis+sentinel://127.0.0.1:1,127.0.0.1:2/mymaster"))
    assert "has no Sentinel that can be used; the last one asked refused the connection" in text


def test_servers_that_are_not_sentinels_are_one_line(valkey: Server) -> None:
    text = finding(Target(url=f"redis+sentinel://127.0.0.1:{valkey.port}/mymaster"))
    assert "has no Sentinels at these ports" in text


def test_a_sentinel_in_place_of_a_cluster_node_is_one_line() -> None:
    with start_sentinels(count=1) as group:
        text = finding(Target(url=f"redis+cluster://127.0.0.1:{group.sentinels[0].port}"))
    assert "the last one asked knows no CLUSTER commands" in text
    assert "redis+sentinel://" in text


def test_a_lost_primary_is_one_line_until_its_successor_is_found() -> None:
    with start_sentinels() as group:
        target = Target(url=group.url)
        old, new = group.nodes
        events = Events()
        with build_client(target, Pools(), events=events, cancellation=Cancellation()) as client:
            assert client.execute_command("SET", "key", "value") is True
            old.kill()
            assert f"has a server that Sentinels announce at 127.0.0.1:{old.port}, which refused" in finding(target)
            until(lambda: new.ask("ROLE")[0] == "master")
            until(lambda: nodes_of(target)[0].port == new.port)
            assert client.execute_command("SET", "key", "value") is True
        assert len(events["dropped"]) == 1
        assert len(events["opened"]) == 2
        new.kill()
        until(lambda: "has no primary that its Sentinels consider up" in finding(target))
