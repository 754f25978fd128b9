"""Finds the primary that Sentinels know: redis-py's Sentinel clients for threads and for asyncio, with our connections.
Each twin has `sentinels`, `discover_master` and a pool of connections to the primary."""

from __future__ import annotations

from typing import Any

import redis
import redis.asyncio
import redis.asyncio.sentinel
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool

from common.cancellation import Cancellation
from common.plan import schema
from common.plan.schema.address_map import AddressMap
from common.plan.schema.target_url import Host
from common.redis_client.address import address_of, sentinel_arguments, server_name
from common.redis_client.connections.async_connections import async_connection_class_of
from common.redis_client.connections.connection_tracking import PRIMARY, REPLICA, ConnectionEvents, Unobserved
from common.redis_client.connections.retry_policy import no_async_retry, no_retry
from common.redis_client.connections.thread_connections import connection_class_of


class PrimaryUnknown(MasterNotFoundError):
    """No Sentinel named a usable primary. knows_service: one of them knows the service. refusal: the error of the last
    Sentinel that gave no answer; None if all answered."""

    def __init__(self, text: str, knows_service: bool, refusal: Exception | None) -> None:
        super().__init__(text)
        self.knows_service = knows_service
        self.refusal = refusal


class _SentinelClient(redis.Redis):
    """A client of one Sentinel. known: the services of its last answer; refusal: the error if there was no answer."""

    known: frozenset[str] = frozenset()
    refusal: Exception | None = None

    def sentinel_masters(self, *args: Any, **kwargs: Any) -> Any:
        self.known, self.refusal = frozenset(), None
        try:
            primaries: Any = super().sentinel_masters(*args, **kwargs)
        except Exception as error:
            self.refusal = error
            raise
        self.known = frozenset(primaries)
        return primaries


class SentinelDiscovery(Sentinel):
    """Queries the Sentinels of a target: without retries, cancellable, with mapped addresses. Raises PrimaryUnknown,
    which explains why no primary was found."""

    def __init__(
        self, target: schema.Target, cancellation: Cancellation, events: ConnectionEvents | None = None
    ) -> None:
        """events: gets the role of each server."""
        super().__init__([], sentinel_kwargs={})  # type: ignore[no-untyped-call]
        self._events = events or Unobserved()
        self._remap = AddressMap(target.address_remap)
        self.sentinels: Any = [_sentinel(target, host, cancellation) for host in address_of(target).hosts]

    def discover_master(self, service_name: str) -> Any:
        try:
            place = self._remap.resolve(*super().discover_master(service_name))  # type: ignore[no-untyped-call]
        except MasterNotFoundError as error:
            knows = any(service_name in sentinel.known for sentinel in self.sentinels)
            refusals = [sentinel.refusal for sentinel in self.sentinels if sentinel.refusal is not None]
            raise PrimaryUnknown(str(error), knows, refusals[-1] if refusals else None) from error
        self._events.has_role(*place, PRIMARY)
        return place

    def discover_slaves(self, service_name: str) -> Any:
        found: Any = super().discover_slaves(service_name)  # type: ignore[no-untyped-call]
        places = [self._remap.resolve(*place) for place in found]
        for place in places:
            self._events.has_role(*place, REPLICA)
        return places


class AsyncSentinelDiscovery(redis.asyncio.sentinel.Sentinel):
    """The twin of `SentinelDiscovery`, for the load only. Its error gives no reason, because the checks before a run
    find the reason."""

    def __init__(
        self, target: schema.Target, cancellation: Cancellation, events: ConnectionEvents | None = None
    ) -> None:
        """events: gets the role of each server."""
        super().__init__([], sentinel_kwargs={})  # type: ignore[no-untyped-call]
        self._events = events or Unobserved()
        self._remap = AddressMap(target.address_remap)
        self.sentinels: Any = [_async_sentinel(target, host, cancellation) for host in address_of(target).hosts]

    async def discover_master(self, service_name: str) -> Any:
        try:
            place = self._remap.resolve(*await super().discover_master(service_name))
        except redis.asyncio.sentinel.MasterNotFoundError as error:
            raise PrimaryUnknown(str(error), knows_service=True, refusal=None) from error
        self._events.has_role(*place, PRIMARY)
        return place

    async def discover_slaves(self, service_name: str) -> Any:
        found: Any = await super().discover_slaves(service_name)
        places = [self._remap.resolve(*place) for place in found]
        for place in places:
            self._events.has_role(*place, REPLICA)
        return places


class BlockingSentinelPool(SentinelConnectionPool, redis.BlockingConnectionPool):
    """A blocking TCP pool for a primary, which redis-py does not have. One base class finds the primary, the other
    waits for a free connection."""


class AsyncBlockingSentinelPool(redis.asyncio.sentinel.SentinelConnectionPool, redis.asyncio.BlockingConnectionPool):
    """The twin of `BlockingSentinelPool`."""


class PrimaryClient(redis.Redis):
    """A client of the primary. Closing it also closes the connections to Sentinels."""

    def close(self) -> None:
        super().close()
        pool = getattr(self, "connection_pool", None)
        if isinstance(pool, SentinelConnectionPool):
            pool.sentinel_manager.close()


class AsyncPrimaryClient(redis.asyncio.Redis):
    """The twin of `PrimaryClient`."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        pool: Any = self.connection_pool
        if isinstance(pool, redis.asyncio.sentinel.SentinelConnectionPool):
            await pool.sentinel_manager.aclose()


def _sentinel(target: schema.Target, host: Host, cancellation: Cancellation) -> _SentinelClient:
    connection_class = connection_class_of(path=False, tls=address_of(target).tls)
    arguments = _pool_arguments(target, host, cancellation)
    pool: Any = redis.BlockingConnectionPool(connection_class=connection_class, retry=no_retry(), **arguments)  # type: ignore[no-untyped-call]
    return _SentinelClient.from_pool(pool)  # type: ignore[return-value]


def _async_sentinel(target: schema.Target, host: Host, cancellation: Cancellation) -> redis.asyncio.Redis:
    connection_class: Any = async_connection_class_of(path=False, tls=address_of(target).tls)
    arguments = _pool_arguments(target, host, cancellation)
    pool = redis.asyncio.BlockingConnectionPool(connection_class=connection_class, retry=no_async_retry(), **arguments)
    return redis.asyncio.Redis.from_pool(pool)


def _pool_arguments(target: schema.Target, host: Host, cancellation: Cancellation) -> dict[str, Any]:
    """Arguments of a TCP pool of one connection to one Sentinel."""
    arguments = sentinel_arguments(target)
    if address_of(target).tls:
        arguments["server_name"] = server_name(target)
    return {
        "max_connections": 1,
        "timeout": float(target.connect_timeout_s) + float(target.socket_timeout_s),
        "host": host.name,
        "port": host.port,
        "events": Unobserved(),
        "cancellation": cancellation,
        **arguments,
    }
