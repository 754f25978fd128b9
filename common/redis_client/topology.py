"""The nodes of a target, and clients of a single node."""

from __future__ import annotations

from typing import Any

import msgspec
import redis

from common.cancellation import Cancellation
from common.plan import schema
from common.plan.schema.target_url import Host, TargetKind
from common.redis_client.address import address_of, connection_arguments, replicas_of, server_name
from common.redis_client.clients import open_control_client
from common.redis_client.cluster import ClusterClient
from common.redis_client.connections.connection_tracking import PRIMARY as PRIMARY
from common.redis_client.connections.connection_tracking import REPLICA as REPLICA
from common.redis_client.connections.connection_tracking import Unobserved
from common.redis_client.connections.retry_policy import no_retry
from common.redis_client.connections.thread_connections import connection_class_of
from common.redis_client.control_client import ControlClient
from common.redis_client.sentinels import SentinelDiscovery


class Node(msgspec.Struct, frozen=True):
    """One server of a target. role: "primary" or "replica". name: `host:port` or a path."""

    host: str
    port: int
    role: str
    name: str


def nodes_of(target: schema.Target, cancellation: Cancellation | None = None) -> tuple[Node, ...]:
    """All servers with the target's data: a standalone server; the primary that Sentinels know, and its replicas; all
    nodes of a cluster, primaries first. A standalone server counts as a primary, and the replicas that the plan lists
    count as replicas; none of them is called.

    Raises PlanError, TARGET_ERRORS; with a cancellation also CutShort.
    """
    address = address_of(target)
    if address.kind is TargetKind.SENTINEL:
        return _known_to_sentinels(target, cancellation or Cancellation())
    if address.kind is TargetKind.CLUSTER:
        with open_control_client(target, cancellation) as client:
            assert isinstance(client, ClusterClient)
            found = [_node(node.host, node.port, node.server_type) for node in client.nodes()]
        return tuple(sorted(found, key=lambda node: (node.role, node.host, node.port)))
    if address.path is not None:
        return (Node("", 0, PRIMARY, address.path),)
    replicas = (_node(host.name, host.port, REPLICA) for host in replicas_of(target))
    return (_node(address.hosts[0].name, address.hosts[0].port, PRIMARY), *replicas)


def open_node_client(target: schema.Target, node: Node, cancellation: Cancellation | None = None) -> ControlClient:
    """A client with one connection to this node, without retries and redirections. Opens no connection yet. Close it.
    cancellation: ends all its waits. Raises PlanError."""
    address = address_of(target)
    arguments: dict[str, Any] = {**connection_arguments(target), "retry": no_retry(), "max_connections": 1}
    place = {"path": address.path} if address.path is not None else {"host": node.host, "port": node.port}
    if address.tls:
        arguments["server_name"] = server_name(target)
    pool = redis.ConnectionPool(
        connection_class=connection_class_of(path=address.path is not None, tls=address.tls),
        events=Unobserved(),
        cancellation=cancellation or Cancellation(),
        is_announced=address.kind is not TargetKind.STANDALONE,
        **place,
        **arguments,
    )
    client: ControlClient = ControlClient.from_pool(pool)  # type: ignore[assignment]  # typed as its base
    return client


def _known_to_sentinels(target: schema.Target, cancellation: Cancellation) -> tuple[Node, ...]:
    sentinels: Any = SentinelDiscovery(target, cancellation)
    service = address_of(target).service
    try:
        host, port = sentinels.discover_master(service)
        replicas = sentinels.discover_slaves(service)
    finally:
        sentinels.close()
    return (_node(host, port, PRIMARY), *(_node(host, port, REPLICA) for host, port in sorted(replicas)))


def _node(host: str, port: int, role: str) -> Node:
    return Node(host, int(port), role, str(Host(host, int(port))))
