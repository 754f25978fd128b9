"""Assembles a client for a standalone server or Sentinels, for threads and for asyncio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from common.cancellation import Cancellation
from common.plan import schema
from common.plan.planned_commands import reads_replicas
from common.plan.schema.target_url import TargetKind
from common.redis_client.address import (
    address_of,
    connection_arguments,
    place_arguments,
    replicas_of,
    server_name,
)
from common.redis_client.connections.connection_tracking import REPLICA, ConnectionEvents


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientClasses:
    """The classes of one kind of client. connection, sentinel_connection: functions that return the class for a path or
    TLS. pool, blocking_pool: TCP pools for a server; sentinel_pool, blocking_sentinel_pool: for the primary that
    Sentinels know. sentinels: queries Sentinels. client, primary_client: the clients on these pools.
    split_client: sends reads to replicas."""

    connection: Callable[..., type]
    sentinel_connection: Callable[..., type]
    pool: Any
    blocking_pool: Any
    sentinel_pool: Any
    blocking_sentinel_pool: Any
    sentinels: Callable[[schema.Target, Cancellation, ConnectionEvents], Any]
    client: Any
    primary_client: Any
    split_client: Any


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
    splits = reads_replicas(target) and classes.split_client is not None
    if has_sentinels:
        arguments["connection_class"] = classes.sentinel_connection(tls=address.tls)
        kind = classes.blocking_sentinel_pool if is_blocking else classes.sentinel_pool
        sentinels = classes.sentinels(target, cancellation, events)
        pool = kind(address.service, sentinels, **arguments)
        if not splits:
            return classes.primary_client.from_pool(pool)
        return _split(classes, target, pool, [kind(address.service, sentinels, is_master=False, **arguments)])
    arguments["connection_class"] = classes.connection(
        path=address.path is not None, tls=address.tls, **({"member": True} if splits else {})
    )
    kind = classes.blocking_pool if is_blocking else classes.pool
    pool = kind(**place_arguments(address), **arguments)
    if not splits:
        return classes.client.from_pool(pool)
    replicas = replicas_of(target)
    for host in replicas:
        events.has_role(host.name, host.port, REPLICA)
    pools = [kind(host=host.name, port=host.port, **arguments) for host in replicas]
    return _split(classes, target, pool, pools)


def _split(classes: ClientClasses, target: schema.Target, primary: Any, replicas: Sequence[Any]) -> Any:
    """A client of the pool `primary` that sends reads to the pools `replicas`."""
    client = classes.split_client.from_pool(primary)
    client.split(target.cluster.read_from, [classes.client.from_pool(pool) for pool in replicas])
    return client
