"""plan.target -> redis.asyncio clients, for every shape of target: the same settings, the same events, on a loop.

Facts about redis.asyncio that this stands on, beside those of redis-py (see the package):
- `_connect` opens one socket; `connect_check_health` is that and the handshake; `disconnect` is the only way out, may
  come twice, and is awaited while the error that caused it is being handled;
- `Backoff.compute` is called exactly once for every retry, and the wait that follows is a plain `asyncio.sleep`: like
  everything else that waits, it ends when its task is cancelled;
- a call that is cancelled closes its connection and gives it back to its TCP pool; but a cancellation that meets the
  end of the sending is forgotten (by asyncio.wait_for of Python 3.11), and must be repeated;
- clients, pools and locks are made without a loop, and belong to the one on which they are first used.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import redis.asyncio
from redis.asyncio.connection import AbstractConnection, BlockingConnectionPool, ConnectionPool
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool

from common.cancellation import Cancellation
from common.plan import schema
from common.plan.address_map import AddressMap
from common.plan.target_url import Address, Host, TargetKind
from common.redis_client.address import address_of, sentinel_arguments, server_name
from common.redis_client.async_cluster import AsyncClusterClient, NodePool, build_async_cluster
from common.redis_client.async_connections import (
    AsyncObserved,
    AsyncObservedSentinel,
    AsyncObservedSentinelTls,
    AsyncObservedTcp,
    AsyncObservedTls,
    AsyncObservedUnix,
)
from common.redis_client.async_retry_policy import no_async_retry, observed_async_retry
from common.redis_client.clients import Kit, assemble, connects_when_built, pool_arguments
from common.redis_client.connections import ConnectionEvents, Unobserved
from common.redis_client.error_translation import translated
from common.redis_client.sentinels import PrimaryUnknown

AsyncClient: TypeAlias = redis.asyncio.Redis | AsyncClusterClient
AsyncConnection: TypeAlias = AbstractConnection


def build_async_client(
    target: schema.Target, pools: schema.Pools, *, events: ConnectionEvents, cancellation: Cancellation
) -> AsyncClient:
    """A client with a TCP pool of its own (one for each node of a cluster) and the plan's retry policy. Opens nothing
    yet, and needs no loop for that. Raises PlanError."""
    if connects_when_built(target):
        return build_async_cluster(target, pools, events=events, cancellation=cancellation)
    retry = observed_async_retry(target.retry, events, cancellation)
    client: redis.asyncio.Redis = assemble(
        _KIT, target, {"retry": retry, **pool_arguments(pools)}, events=events, cancellation=cancellation
    )
    return client


async def open_async_client(client: AsyncClient, target: schema.Target) -> None:
    """What a client needs before its first call: a cluster's reads the topology. Raises TargetError, CutShort."""
    if isinstance(client, AsyncClusterClient):
        with translated(target):
            await client.open()


async def close_async_client(client: AsyncClient) -> None:
    """Close all its connections. Idempotent."""
    if isinstance(client, AsyncClusterClient):
        await client.close_all()
    else:
        await client.aclose()


def async_tcp_pools(client: AsyncClient) -> list[Any]:
    """What has `get_connection` and `release`, both to be awaited: its TCP pool, or that of each node of a cluster."""
    if isinstance(client, AsyncClusterClient):
        return [NodePool(node) for node in client.get_nodes()]
    return [client.connection_pool]


def count_async_nodes(client: AsyncClient) -> int:
    """How many servers a client may connect to: all nodes of a cluster, one otherwise."""
    return len(client.get_nodes()) if isinstance(client, AsyncClusterClient) else 1


class _Sentinels(Sentinel):
    """redis-py's Sentinel client on connections of our own: nothing is tried twice, and addresses are those that the
    plan maps the announced ones to."""

    def __init__(self, target: schema.Target, cancellation: Cancellation) -> None:
        super().__init__([], sentinel_kwargs={})  # type: ignore[no-untyped-call]
        self._remap = AddressMap(target.address_remap)
        self.sentinels: Any = [_sentinel(target, host, cancellation) for host in address_of(target).hosts]

    async def discover_master(self, service_name: str) -> Any:
        try:
            return self._remap.resolve(*await super().discover_master(service_name))
        except MasterNotFoundError as error:
            # Whether the service is known at all was looked at before the run, by clients that can tell.
            raise PrimaryUnknown(str(error), knows_service=True, refusal=None) from error


def _sentinel(target: schema.Target, host: Host, cancellation: Cancellation) -> Any:
    arguments = sentinel_arguments(target)
    if address_of(target).tls:
        arguments |= {"connection_class": AsyncObservedTls, "server_name": server_name(target)}
    else:
        arguments |= {"connection_class": AsyncObservedTcp}
    pool = BlockingConnectionPool(
        max_connections=1,
        timeout=float(target.connect_timeout_s) + float(target.socket_timeout_s),
        host=host.name,
        port=host.port,
        retry=no_async_retry(),
        events=Unobserved(),
        cancellation=cancellation,
        **arguments,
    )
    return redis.asyncio.Redis.from_pool(pool)


class _BlockingSentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """redis-py has no such class, but its two bear to be put together: one finds the server, the other waits."""


class _PrimaryClient(redis.asyncio.Redis):
    """A client of the primary; closing it closes what it asks Sentinels by, too."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        pool: Any = self.connection_pool
        await pool.sentinel_manager.aclose()


def _connection_class(address: Address) -> type[AsyncObserved]:
    if address.kind is TargetKind.SENTINEL:
        return AsyncObservedSentinelTls if address.tls else AsyncObservedSentinel
    if address.path is not None:
        return AsyncObservedUnix
    return AsyncObservedTls if address.tls else AsyncObservedTcp


_KIT = Kit(
    connection_class=_connection_class,
    pool=ConnectionPool,
    blocking_pool=BlockingConnectionPool,
    sentinel_pool=SentinelConnectionPool,
    blocking_sentinel_pool=_BlockingSentinelPool,
    sentinels=_Sentinels,
    client=redis.asyncio.Redis,
    primary_client=_PrimaryClient,
)
