"""plan.target -> clients. One builder for the load, one for questions beside it; both for every shape of target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import msgspec
import redis
from redis.sentinel import SentinelConnectionPool

from common.cancellation import Cancellation
from common.plan import schema
from common.plan.target_url import Address, TargetKind
from common.redis_client.address import address_of, connection_arguments, place_arguments, server_name
from common.redis_client.clusters import ClusterClient, node_arguments, open_cluster
from common.redis_client.connections import (
    ConnectionEvents,
    Observed,
    Unobserved,
    connection_class_of,
    sentinel_connection_class_of,
)
from common.redis_client.control_client import ControlClient, checked_replies
from common.redis_client.error_translation import TARGET_ERRORS, lacks_database, translated
from common.redis_client.retry_policy import no_retry, observed_retry
from common.redis_client.sentinels import BlockingSentinelPool, PrimaryClient, Sentinels

Client: TypeAlias = redis.Redis | ClusterClient


def connects_when_built(target: schema.Target) -> bool:
    """Whether `build_client` is a call of the target: a cluster's client reads the topology first. Raises PlanError."""
    return address_of(target).kind is TargetKind.CLUSTER


def build_client(
    target: schema.Target, pools: schema.Pools, *, events: ConnectionEvents, cancellation: Cancellation
) -> Client:
    """A client with a TCP pool of its own (one for each node of a cluster) and the plan's retry policy.

    Opens nothing yet, but for a cluster (see `connects_when_built`). Raises PlanError; for a cluster also TargetError,
    and CutShort after cancellation.
    """
    if connects_when_built(target):
        with translated(target):
            return open_cluster(target, _node_pool_arguments(pools), events=events, cancellation=cancellation)
    arguments = {"retry": observed_retry(target.retry, events, cancellation), **pool_arguments(pools)}
    client: Client = assemble(_KIT, target, arguments, events=events, cancellation=cancellation)
    return client


def open_control_client(target: schema.Target) -> Client:
    """A client of one connection (to each node of a cluster) that tries nothing twice, with the target's timeouts; for
    questions to the target beside the load. The connection opens with the first call, but for a cluster, whose topology
    is read at once; close the client to close it. Raises PlanError; for a cluster also what TARGET_ERRORS names."""
    cancellation, one = Cancellation(), {"max_connections": 1}
    if connects_when_built(target):
        # When redis-py makes one, it asks a primary of its own choice for its commands: another one, if that is down.
        patient = msgspec.structs.replace(target, retry=_UNTIL_MADE)
        cluster = open_cluster(patient, one, events=Unobserved(), cancellation=cancellation)
        cluster.retry.update_retries(0)
        return cluster
    client: Client = assemble(
        _ASKING_KIT, target, {"retry": no_retry(), **one}, events=Unobserved(), cancellation=cancellation
    )
    return client


_UNTIL_MADE = schema.Retry(retries=3, backoff=schema.BackoffKind.NONE)


def ping_target(target: schema.Target) -> None:
    """Raises TargetError unless the target, asked once, answers as a Redis does; PlanError for a URL that is none.

    A cluster answers when one of its nodes tells the topology: the others may be down.
    """
    with translated(target):
        try:
            _ping(target)
        except TARGET_ERRORS as error:
            if lacks_database(error):
                error.databases = _count_databases(target)  # type: ignore[attr-defined]
            raise


def _ping(target: schema.Target) -> None:
    with open_control_client(target) as client:
        if isinstance(client, ClusterClient):
            return
        with checked_replies(address_of(target), client):
            reply = client.execute_command("PING")
        if reply is not True:
            raise redis.InvalidResponse(f"PING was answered with {reply!r:.40}")


def _count_databases(target: schema.Target) -> int | None:
    """How many databases the target has; None if it does not answer CONFIG GET."""
    address = address_of(target)
    name = "cluster-databases" if address.kind is TargetKind.CLUSTER else "databases"
    first = msgspec.structs.replace(target, url=msgspec.structs.replace(address, db=0).url)
    try:
        with open_control_client(first) as client:
            told: Any = client.execute_command("CONFIG GET", name)
            return int(told.get(name, 0)) or None
    except TARGET_ERRORS:
        return None


def tcp_pools(client: Client) -> list[redis.ConnectionPool]:
    """The TCP pools of a client: its one, or that of each node of a cluster."""
    if isinstance(client, ClusterClient):
        return [client.get_redis_connection(node).connection_pool for node in client.nodes()]
    return [client.connection_pool]


def count_nodes(client: Client) -> int:
    """How many servers a client may connect to: all nodes of a cluster, one otherwise."""
    return len(client.nodes()) if isinstance(client, ClusterClient) else 1


def node_pool(
    target: schema.Target, pools: schema.Pools, *, events: ConnectionEvents, cancellation: Cancellation, **place: Any
) -> redis.ConnectionPool:
    """A pool as a cluster's client makes one for each node, connected to nothing. place: host and port, and what else
    is of this node's connections alone. Raises PlanError."""
    arguments = _node_pool_arguments(pools)
    kind: Any = arguments.pop("connection_pool_class", redis.ConnectionPool)
    pool: redis.ConnectionPool = kind(**node_arguments(target, events, cancellation), **arguments, **place)
    return pool


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """What clients that are no cluster's are assembled of. connection_class: by where the target is. pool,
    blocking_pool: for servers; sentinel_pool, blocking_sentinel_pool: for whichever server Sentinels name. sentinels:
    what asks them."""

    connection_class: Callable[[Address], type]
    pool: Any
    blocking_pool: Any
    sentinel_pool: Any
    blocking_sentinel_pool: Any
    sentinels: Callable[[schema.Target, Cancellation], Any]
    client: Any
    primary_client: Any


def assemble(
    kit: Kit,
    target: schema.Target,
    pool_arguments: dict[str, Any],
    *,
    events: ConnectionEvents,
    cancellation: Cancellation,
) -> Any:
    """A client of the kit's kind for a target that is no cluster. Opens nothing. Raises PlanError."""
    address = address_of(target)
    arguments = {
        "connection_class": kit.connection_class(address),
        "events": events,
        "cancellation": cancellation,
        "is_announced": address.kind is TargetKind.SENTINEL,
        **connection_arguments(target),
        **pool_arguments,
    }
    if address.tls:
        arguments["server_name"] = server_name(target)
    is_blocking = "timeout" in pool_arguments
    if address.kind is TargetKind.SENTINEL:
        kind = kit.blocking_sentinel_pool if is_blocking else kit.sentinel_pool
        return kit.primary_client.from_pool(kind(address.service, kit.sentinels(target, cancellation), **arguments))
    pool = kit.blocking_pool if is_blocking else kit.pool
    return kit.client.from_pool(pool(**place_arguments(address), **arguments))


def pool_arguments(pools: schema.Pools) -> dict[str, Any]:
    """What `assemble` is to know of a TCP pool, but for its retry policy. Of standalone servers and Sentinels."""
    arguments: dict[str, Any] = {"max_connections": pools.max_connections}
    if pools.tcp_pool is schema.TcpPool.BLOCKING:
        arguments["timeout"] = float(pools.tcp_pool_wait_s)
    return arguments


def _node_pool_arguments(pools: schema.Pools) -> dict[str, Any]:
    """The same for the pools of a cluster's nodes, which redis-py makes."""
    arguments = pool_arguments(pools)
    if pools.tcp_pool is schema.TcpPool.BLOCKING:
        arguments["connection_pool_class"] = redis.BlockingConnectionPool
    return arguments


def _connection_class(address: Address) -> type[Observed]:
    if address.kind is TargetKind.SENTINEL:
        return sentinel_connection_class_of(tls=address.tls)
    return connection_class_of(path=address.path is not None, tls=address.tls)


_KIT = Kit(
    connection_class=_connection_class,
    pool=redis.ConnectionPool,
    blocking_pool=redis.BlockingConnectionPool,
    sentinel_pool=SentinelConnectionPool,
    blocking_sentinel_pool=BlockingSentinelPool,
    sentinels=Sentinels,
    client=redis.Redis,
    primary_client=PrimaryClient,
)
_ASKING_KIT = replace(_KIT, client=ControlClient)
