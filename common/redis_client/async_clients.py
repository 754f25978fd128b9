"""Makes clients for asyncio from `plan.target`, with the same settings and events as clients for threads.

This module relies on these facts about redis.asyncio, in addition to the facts in the package's docstring:
- `_connect` opens one socket; `connect_check_health` calls it and does the handshake; `disconnect` is the only way to
  close, may be called twice, and is awaited while the error that caused it is being handled;
- `Backoff.compute` is called exactly once for each retry, and the wait that follows is a plain `asyncio.sleep`: like
  every other wait, it ends when its task is cancelled;
- a call that is cancelled closes its connection and returns it to its TCP pool; but `asyncio.wait_for` of Python 3.11
  loses a cancellation that arrives as the sending ends, so cancel again;
- clients, pools and locks are made without a loop, and belong to the loop that uses them first.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import redis.asyncio
from redis.asyncio.connection import BlockingConnectionPool, ConnectionPool
from redis.asyncio.sentinel import SentinelConnectionPool

from common.cancellation import Cancellation
from common.plan import schema
from common.redis_client.async_cluster import AsyncClusterClient, NodePool, build_async_cluster
from common.redis_client.client_assembly import ClientClasses, assemble_client, connects_when_built, pool_arguments
from common.redis_client.connections.async_connections import (
    async_connection_class_of,
    async_sentinel_connection_class_of,
)
from common.redis_client.connections.connection_tracking import ConnectionEvents
from common.redis_client.connections.retry_policy import observed_async_retry
from common.redis_client.error_translation import translated
from common.redis_client.read_split import AsyncReadSplitClient
from common.redis_client.sentinels import AsyncBlockingSentinelPool, AsyncPrimaryClient, AsyncSentinelDiscovery

AsyncClient: TypeAlias = redis.asyncio.Redis | AsyncClusterClient


def build_async_client(
    target: schema.Target, pools: schema.Pools, *, events: ConnectionEvents, cancellation: Cancellation
) -> AsyncClient:
    """A client with its own TCP pool (one for each node of a cluster) and the plan's retry policy. Opens no connection,
    and needs no running loop. Raises PlanError."""
    if connects_when_built(target):
        return build_async_cluster(target, pools, events=events, cancellation=cancellation)
    retry = observed_async_retry(target.retry, events, cancellation)
    client: redis.asyncio.Redis = assemble_client(
        _CLASSES, target, {"retry": retry, **pool_arguments(pools)}, events=events, cancellation=cancellation
    )
    return client


async def open_async_client(client: AsyncClient, target: schema.Target) -> None:
    """Prepare a client for its first call: a cluster client reads the topology. Raises TargetError, CutShort."""
    if isinstance(client, AsyncClusterClient):
        with translated(target):
            await client.open()


async def close_async_client(client: AsyncClient) -> None:
    """Close all connections of a client. Idempotent."""
    if isinstance(client, AsyncClusterClient):
        await client.close_all()
    else:
        await client.aclose()


def async_tcp_pools(client: AsyncClient) -> list[Any]:
    """The TCP pools of a client, as for threads. They have coroutines `get_connection` and
    `release`."""
    if isinstance(client, AsyncClusterClient):
        return [NodePool(node) for node in client.get_nodes()]
    readers = client.readers if isinstance(client, AsyncReadSplitClient) else ()
    return [client.connection_pool, *(reader.connection_pool for reader in readers)]


def count_async_nodes(client: AsyncClient) -> int:
    """How many TCP pools a client has."""
    return len(async_tcp_pools(client))


_CLASSES = ClientClasses(
    connection=async_connection_class_of,
    sentinel_connection=async_sentinel_connection_class_of,
    pool=ConnectionPool,
    blocking_pool=BlockingConnectionPool,
    sentinel_pool=SentinelConnectionPool,
    blocking_sentinel_pool=AsyncBlockingSentinelPool,
    sentinels=AsyncSentinelDiscovery,
    client=redis.asyncio.Redis,
    primary_client=AsyncPrimaryClient,
    split_client=AsyncReadSplitClient,
)
