"""The contract with redis.asyncio's cluster client, against a real cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from common.lifeline import Lifeline
from common.plan.schema import Cluster, Pools, Target
from common.target.async_cluster import AsyncClusterClient, build_async_cluster
from tests.support.clients import Events
from tests.support.shapes import Group, start_cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Group]:
    with start_cluster(replicas=0) as group:
        yield group


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_node_has_no_more_connections_than_the_plan_allows_not_even_the_one_that_told_the_topology(
    cluster: Group, dynamic: bool
) -> None:
    target = Target(url=cluster.url, cluster=Cluster(dynamic_startup_nodes=dynamic))
    events = Events()
    client = build_async_cluster(target, Pools(max_connections=1), events=events, lifeline=Lifeline())

    async def call_every_node_and_count(client: AsyncClusterClient) -> list[int]:
        for number in range(60):
            await client.execute_command("SET", f"key:{number}", number)
        # The one that asks is counted, too.
        return [len(node.ask("CLIENT LIST", "TYPE", "normal")) - 1 for node in cluster.nodes]

    async def play() -> None:
        await client.open()
        assert await call_every_node_and_count(client) == [1, 1, 1]
        await client.nodes_manager.initialize()  # as a redirection may make it do
        assert await call_every_node_and_count(client) == [1, 1, 1]
        assert len(events["opened"]) - len(events["closed"]) == 3
        await client.close_all()
        assert len(events["opened"]) == len(events["closed"])

    asyncio.run(play())
