"""Reads from replicas behind Sentinels, and from the replicas of a standalone server, with real servers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from common.cancellation import Cancellation
from common.errors import PlanError
from common.plan.schema import Cluster, Pools, ReadFrom, Target
from common.redis_client import build_client, nodes_of, open_control_client
from common.redis_client.address import replicas_of
from common.redis_client.async_clients import async_tcp_pools, build_async_client, close_async_client
from common.redis_client.clients import count_nodes, tcp_pools
from common.redis_client.read_split import places
from tests.support.clients import Events
from tests.support.shapes import Group, start_sentinels


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    with start_sentinels() as group:
        yield group


def behind_sentinels(group: Group, read_from: ReadFrom = ReadFrom.REPLICAS) -> Target:
    return Target(url=group.url, cluster=Cluster(read_from=read_from))


def with_replica(group: Group, read_from: ReadFrom) -> Target:
    primary, replica = nodes_of(Target(url=group.url))
    return Target(url=f"redis://{primary.name}", replicas=(replica.name,), cluster=Cluster(read_from=read_from))


TARGETS = {"sentinels": behind_sentinels, "standalone": with_replica}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest, group: Group) -> Target:
    return TARGETS[request.param](group, ReadFrom.REPLICAS)


def role(events: Events) -> str:
    """The role of the server of the last command."""
    return "replica" if events.endpoints.is_replica(events.endpoint) else "primary"


def test_reads_go_to_a_replica_and_everything_else_to_the_primary(target: Target) -> None:
    events = Events()
    with build_client(target, Pools(), events=events, cancellation=Cancellation()) as client:
        assert (count_nodes(client), len(tcp_pools(client))) == (2, 2)
        roles = {}
        for command in (("SET", "key", "1"), ("GET", "key"), ("INCR", "key"), ("EXISTS", "key"), ("PING",)):
            client.execute_command(*command)
            roles[command[0]] = role(events)
    assert roles == {"SET": "primary", "GET": "replica", "INCR": "primary", "EXISTS": "replica", "PING": "primary"}
    assert events.kinds == {"opened": 2, "closed": 2}


@pytest.mark.parametrize(
    ("commands", "transaction", "wanted"),
    [
        ([("GET", "key"), ("EXISTS", "key")], False, "replica"),
        ([("GET", "key"), ("SET", "key", "1")], False, "primary"),
        ([("GET", "key"), ("EXISTS", "key")], True, "primary"),
    ],
)
def test_a_pipeline_goes_to_a_replica_if_all_its_commands_read(
    target: Target, commands: list[tuple[str, ...]], transaction: bool, wanted: str
) -> None:
    events = Events()
    with build_client(target, Pools(), events=events, cancellation=Cancellation()) as client:
        pipeline: Any = client.pipeline(transaction=transaction)
        for command in commands:
            pipeline.execute_command(*command)
        assert len(pipeline.execute(raise_on_error=False)) == 2
    assert role(events) == wanted


def test_asyncio_reads_from_the_same_servers(target: Target) -> None:
    events = Events()

    async def roles() -> list[str]:
        client: Any = build_async_client(target, Pools(), events=events, cancellation=Cancellation())
        assert len(async_tcp_pools(client)) == 2
        found = []
        for command in (("SET", "key", "1"), ("GET", "key")):
            await client.execute_command(*command)
            found.append(role(events))
        for command in (("GET", "key"), ("DEL", "key")):
            pipeline = client.pipeline(transaction=False)
            pipeline.execute_command(*command)
            await pipeline.execute(raise_on_error=False)
            found.append(role(events))
        await close_async_client(client)
        return found

    assert asyncio.run(roles()) == ["primary", "replica", "replica", "primary"]
    assert events.kinds == {"opened": 2, "closed": 2}


def test_a_control_client_reads_from_the_primary(target: Target) -> None:
    with open_control_client(target) as client:
        assert len(tcp_pools(client)) == 1


def test_the_replicas_of_the_plan_are_nodes_of_the_target(group: Group) -> None:
    target = with_replica(group, ReadFrom.PRIMARY)
    assert [node.role for node in nodes_of(target)] == ["primary", "replica"]
    with build_client(target, Pools(), events=Events(), cancellation=Cancellation()) as client:
        assert len(tcp_pools(client)) == 1


def test_a_malformed_replica_is_refused() -> None:
    with pytest.raises(PlanError, match=r'target\.replicas: expected HOST:PORT, got "h:0"'):
        replicas_of(Target(url="redis://h", replicas=("h:0",)))


@pytest.mark.parametrize(
    ("read_from", "wanted"),
    [
        (ReadFrom.ANY, {0, 1, 2}),
        (ReadFrom.REPLICAS, {1, 2}),
        (ReadFrom.RANDOM, {0, 1, 2}),
        (ReadFrom.RANDOM_REPLICA, {1, 2}),
    ],
)
def test_reads_are_spread_over_the_servers_of_the_plan(read_from: ReadFrom, wanted: set[int]) -> None:
    counts = Counter(islice(places(read_from, 2), 600))
    assert counts.keys() == wanted
    is_in_turn = read_from in (ReadFrom.ANY, ReadFrom.REPLICAS)
    assert not is_in_turn or set(counts.values()) == {600 // len(wanted)}
