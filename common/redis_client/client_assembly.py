"""Assembles a client for a standalone server or Sentinels, for threads and for asyncio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.cancellation import Cancellation
from common.plan import schema
from common.plan.schema.target_url import TargetKind
from common.redis_client.address import address_of, connection_arguments, place_arguments, server_name
from common.redis_client.connections.connection_tracking import ConnectionEvents


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientClasses:
    """The classes of one kind of client. connection, sentinel_connection: functions that return the class for a path or
    TLS. pool, blocking_pool: TCP pools for a server; sentinel_pool, blocking_sentinel_pool: for the primary that
    Sentinels know. sentinels: queries Sentinels. client, primary_client: the clients on these pools."""

    connection: Callable[..., type]
    sentinel_connection: Callable[..., type]
    pool: Any
    blocking_pool: Any
    sentinel_pool: Any
    blocking_sentinel_pool: Any
    sentinels: Callable[[schema.Target, Cancellation], Any]
    client: Any
    primary_client: Any


def connects_when_built(target: schema.Target) -> bool:
    """Whether building a client for threads calls the target. A cluster client does: it reads the topology. Raises
    PlanError."""
    return address_of(target).kind is TargetKind.CLUSTER


def pool_arguments(pools: schema.Pools) -> dict[str, Any]:
    """Arguments of a TCP pool, except its retry policy. Only those of a blocking pool contain `timeout`."""
    arguments: dict[str, Any] = {"max_connections": pools.max_connections}
    if pools.tcp_pool is schema.TcpPool.BLOCKING:
        arguments["timeout"] = float(pools.tcp_pool_wait_s)
    return arguments


def assemble_client(
    classes: ClientClasses,
    target: schema.Target,
    pool_arguments: dict[str, Any],
    *,
    events: ConnectionEvents,
    cancellation: Cancellation,
) -> Any:
    """A client of these classes for a standalone server or Sentinels. Opens nothing. Raises PlanError."""
    address = address_of(target)
    has_sentinels = address.kind is TargetKind.SENTINEL
    arguments = {
        "events": events,
        "cancellation": cancellation,
        "is_announced": has_sentinels,
        **connection_arguments(target),
        **pool_arguments,
    }
    if address.tls:
        arguments["server_name"] = server_name(target)
    is_blocking = "timeout" in pool_arguments
    if has_sentinels:
        arguments["connection_class"] = classes.sentinel_connection(tls=address.tls)
        kind = classes.blocking_sentinel_pool if is_blocking else classes.sentinel_pool
        pool = kind(address.service, classes.sentinels(target, cancellation), **arguments)
        return classes.primary_client.from_pool(pool)
    arguments["connection_class"] = classes.connection(path=address.path is not None, tls=address.tls)
    kind = classes.blocking_pool if is_blocking else classes.pool
    return classes.client.from_pool(kind(**place_arguments(address), **arguments))
