"""Makes clients for threads from `plan.target`: clients for the load, and control clients for use outside the load."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias

import msgspec
import redis
from redis.sentinel import SentinelConnectionPool

from common.cancellation import Cancellation
from common.plan import schema
from common.plan.schema.target_url import TargetKind
from common.redis_client.address import address_of
from common.redis_client.client_assembly import (
    ClientClasses,
    assemble_client,
    connects_when_built,
    pool_arguments,
)
from common.redis_client.cluster import ClusterClient, node_arguments, open_cluster
from common.redis_client.connections.connection_tracking import ConnectionEvents, Unobserved
from common.redis_client.connections.retry_policy import no_retry, observed_retry
from common.redis_client.connections.thread_connections import connection_class_of, sentinel_connection_class_of
from common.redis_client.control_client import ControlClient, checked_replies
from common.redis_client.error_translation import TARGET_ERRORS, lacks_database, translated
from common.redis_client.read_split import ReadSplitClient
from common.redis_client.sentinels import BlockingSentinelPool, PrimaryClient, SentinelDiscovery

Client: TypeAlias = redis.Redis | ClusterClient


def build_client(
    target: schema.Target, pools: schema.Pools, *, events: ConnectionEvents, cancellation: Cancellation
) -> Client:
    """A client with its own TCP pool (one for each node of a cluster) and the plan's retry policy.

    Opens no connection, except for a cluster (see `connects_when_built`). Raises PlanError; for a cluster also
    TargetError, and CutShort after cancellation.
    """
    if connects_when_built(target):
        with translated(target):
            return open_cluster(target, _node_pool_arguments(pools), events=events, cancellation=cancellation)
    arguments = {"retry": observed_retry(target.retry, events, cancellation), **pool_arguments(pools)}
    client: Client = assemble_client(_CLASSES, target, arguments, events=events, cancellation=cancellation)
    return client


def open_control_client(target: schema.Target, cancellation: Cancellation | None = None) -> Client:
    """A client for control commands: one connection (to each node of a cluster), no retries, and the target's timeouts.
    The connection opens with the first call; a cluster's topology is read at once. Close it.
    cancellation: ends all its waits. Raises PlanError; for a cluster also TARGET_ERRORS."""
    cancellation, one = cancellation or Cancellation(), {"max_connections": 1}
    if connects_when_built(target):
        # A new cluster client sends COMMAND to a random primary. It retries while it is built, in case that primary is
        # down.
        patient = msgspec.structs.replace(target, retry=_WHILE_BUILT)
        cluster = open_cluster(patient, one, events=Unobserved(), cancellation=cancellation)
        cluster.retry.update_retries(0)
        return cluster
    client: Client = assemble_client(
        _CONTROL_CLASSES, target, {"retry": no_retry(), **one}, events=Unobserved(), cancellation=cancellation
    )
    return client


_WHILE_BUILT = schema.Retry(retries=3, backoff=schema.BackoffKind.NONE)


def ping_target(target: schema.Target) -> None:
    """Check once that the target answers PING like Redis. Raises TargetError if not, PlanError for a malformed URL.

    In a cluster, one node that reports the topology is enough; the others may be down.
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
            found: Any = client.execute_command("CONFIG GET", name)
            return int(found.get(name, 0)) or None
    except TARGET_ERRORS:
        return None


def tcp_pools(client: Client) -> list[redis.ConnectionPool]:
    """The TCP pools of a client: one, or one for each node of a cluster, or further ones for replicas."""
    if isinstance(client, ClusterClient):
        return [client.get_redis_connection(node).connection_pool for node in client.nodes()]
    readers = client.readers if isinstance(client, ReadSplitClient) else ()
    return [client.connection_pool, *(reader.connection_pool for reader in readers)]


def count_nodes(client: Client) -> int:
    """How many TCP pools a client has."""
    return len(client.nodes()) if isinstance(client, ClusterClient) else len(tcp_pools(client))


def node_pool(
    target: schema.Target, pools: schema.Pools, *, events: ConnectionEvents, cancellation: Cancellation, **place: Any
) -> redis.ConnectionPool:
    """A TCP pool like the ones that a cluster client makes for its nodes. Opens no connection. place: host and port,
    and further arguments of this node's connections. Raises PlanError."""
    arguments = _node_pool_arguments(pools)
    kind: Any = arguments.pop("connection_pool_class", redis.ConnectionPool)
    pool: redis.ConnectionPool = kind(**node_arguments(target, events, cancellation), **arguments, **place)
    return pool


def _node_pool_arguments(pools: schema.Pools) -> dict[str, Any]:
    """`pool_arguments` for the pools of cluster nodes, which redis-py makes."""
    arguments = pool_arguments(pools)
    if pools.tcp_pool is schema.TcpPool.BLOCKING:
        arguments["connection_pool_class"] = redis.BlockingConnectionPool
    return arguments


_CLASSES = ClientClasses(
    connection=connection_class_of,
    sentinel_connection=sentinel_connection_class_of,
    pool=redis.ConnectionPool,
    blocking_pool=redis.BlockingConnectionPool,
    sentinel_pool=SentinelConnectionPool,
    blocking_sentinel_pool=BlockingSentinelPool,
    sentinels=SentinelDiscovery,
    client=redis.Redis,
    primary_client=PrimaryClient,
    split_client=ReadSplitClient,
)
_CONTROL_CLASSES = replace(_CLASSES, client=ControlClient, split_client=None)
