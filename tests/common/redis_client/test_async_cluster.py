"""The contract with redis.asyncio's cluster client, against a real cluster."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import redis
from redis.cluster import key_slot

from common.cancellation import Cancellation
from common.clock import monotonic_ns
from common.plan.schema import Cluster, Pools, Retry, Target
from common.redis_client.async_cluster import AsyncClusterClient, build_async_cluster
from common.units import NS_PER_S
from tests.support.clients import Events
from tests.support.shapes import Group, uncovered


@pytest.mark.parametrize("dynamic", [True, False])
def test_no_node_has_more_connections_than_the_plan_allows(cluster: Group, dynamic: bool) -> None:
    target = Target(url=cluster.url, cluster=Cluster(dynamic_startup_nodes=dynamic))
    events = Events()
    client = build_async_cluster(target, Pools(max_connections=1), events=events, cancellation=Cancellation())

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


@pytest.mark.parametrize("kind", ["command", "pipeline", "transaction"])
def test_a_slot_without_a_node_is_an_error_until_it_is_back_and_then_used_again(cluster: Group, kind: str) -> None:
    key = "{down}"
    slot = key_slot(key.encode())
    target = Target(url=cluster.url, retry=Retry(retries=0))
    client = build_async_cluster(target, Pools(), events=Events(), cancellation=Cancellation())

    async def set_it() -> bool:
        if kind == "command":
            return bool(await client.execute_command("SET", key, "1"))
        pipeline = client.pipeline(transaction=kind == "transaction")
        pipeline.execute_command("SET", key, "1")
        return await pipeline.execute() == [True]

    async def play() -> None:
        with uncovered(cluster, slot, slot) as give_back:
            await client.open()
            for _ in range(3):
                with pytest.raises(redis.exceptions.SlotNotCoveredError):
                    await set_it()
            give_back()
            give_up_ns = monotonic_ns() + 10 * NS_PER_S
            while monotonic_ns() < give_up_ns:
                with contextlib.suppress(redis.exceptions.SlotNotCoveredError):
                    assert await set_it()
                    break
            else:
                pytest.fail("the slot was not used again")
        await client.close_all()

    asyncio.run(play())
