"""The primary that Sentinels know: redis-py's Sentinel client, with connections and users of our own."""

from __future__ import annotations

from typing import Any

import redis
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool

from common.cancellation import Cancellation
from common.plan import schema
from common.plan.address_map import AddressMap
from common.plan.target_url import Host
from common.redis_client.address import address_of, sentinel_arguments, server_name
from common.redis_client.connections import ObservedTcp, ObservedTls, Unobserved
from common.redis_client.retry_policy import no_retry


class PrimaryUnknown(MasterNotFoundError):
    """No Sentinel named a primary that can be used. knows_service: one of them has heard of the service. refusal: why
    the last of those that gave no answer did not; None where all did."""

    def __init__(self, text: str, knows_service: bool, refusal: Exception | None) -> None:
        super().__init__(text)
        self.knows_service = knows_service
        self.refusal = refusal


class _Asked(redis.Redis):
    """A client of one Sentinel, which remembers how it last answered."""

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


class Sentinels(Sentinel):
    """redis-py's Sentinel client on our connections: no retries, cancellable, with mapped addresses. Its errors say why
    there is no primary (`PrimaryUnknown`)."""

    def __init__(self, target: schema.Target, cancellation: Cancellation) -> None:
        super().__init__([], sentinel_kwargs={})  # type: ignore[no-untyped-call]
        self._remap = AddressMap(target.address_remap)
        self.sentinels: Any = [_sentinel(target, host, cancellation) for host in address_of(target).hosts]

    def discover_master(self, service_name: str) -> Any:
        try:
            return self._remap.resolve(*super().discover_master(service_name))  # type: ignore[no-untyped-call]
        except MasterNotFoundError as error:
            knows = any(service_name in sentinel.known for sentinel in self.sentinels)
            refusals = [sentinel.refusal for sentinel in self.sentinels if sentinel.refusal is not None]
            raise PrimaryUnknown(str(error), knows, refusals[-1] if refusals else None) from error

    def discover_slaves(self, service_name: str) -> Any:
        found: Any = super().discover_slaves(service_name)  # type: ignore[no-untyped-call]
        return [self._remap.resolve(*place) for place in found]


def _sentinel(target: schema.Target, host: Host, cancellation: Cancellation) -> _Asked:
    arguments = sentinel_arguments(target)
    if address_of(target).tls:
        arguments |= {"connection_class": ObservedTls, "server_name": server_name(target)}
    else:
        arguments |= {"connection_class": ObservedTcp}
    pool = redis.BlockingConnectionPool(  # type: ignore[no-untyped-call]
        max_connections=1,
        timeout=float(target.connect_timeout_s) + float(target.socket_timeout_s),
        host=host.name,
        port=host.port,
        retry=no_retry(),
        events=Unobserved(),
        cancellation=cancellation,
        **arguments,
    )
    return _Asked.from_pool(pool)  # type: ignore[return-value]


class BlockingSentinelPool(SentinelConnectionPool, redis.BlockingConnectionPool):
    """redis-py has no such class, but its two bear to be put together: one finds the server, the other waits."""


class PrimaryClient(redis.Redis):
    """A client of the primary; closing it closes what it asks Sentinels by, too."""

    def close(self) -> None:
        super().close()
        pool = getattr(self, "connection_pool", None)
        if isinstance(pool, SentinelConnectionPool):
            pool.sentinel_manager.close()
