"""Facts about the target before a run: product, version, topology, limits and round trip, from every node.

A fact that a server does not report is left out, see `coordinator.servers.queries`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common.errors import TargetError
from common.plan.planned_commands import is_behind_sentinels, reads_replicas
from common.plan.schema import Target
from common.plan.schema.target_url import TargetKind, redact_url
from common.redis_client import PRIMARY, REPLICA, Node, address_of, nodes_of, ping_target, translated
from coordinator.journal.records import TargetFacts
from coordinator.servers.queries import info, key_count, max_clients, open_node, ping_us

UNKNOWN_SERVER = "unknown server"

# The first of these fields that a server reports names the product. All products report redis_version, for old clients.
_VERSION_FIELDS = {
    "dragonfly_version": "dragonfly",
    "valkey_version": "valkey",
    "rlec_version": "redis enterprise",
    "redis_version": "redis",
}


def probe(target: Target) -> TargetFacts:
    """Return the facts about the target. Raises TargetError if the target cannot be used, PlanError for an invalid
    URL."""
    ping_target(target)
    with translated(target):
        nodes = nodes_of(target)
    all_facts = [_facts_of(target, node) for node in nodes]
    primaries = [facts for facts in all_facts if facts.node.role == PRIMARY]
    if not primaries:
        raise TargetError(f"target {address_of(target)} has no primary: wait for its failover, or start a server")
    limits = [facts.max_clients for facts in all_facts if facts.max_clients is not None]
    keys = [facts.keys for facts in primaries]
    if problem := wrong_url(target, all_facts[0].topology):
        raise TargetError(f"target {address_of(target)} {problem}")
    kind = address_of(target).kind
    if kind is TargetKind.STANDALONE:
        for facts in all_facts:
            if facts.node.role == REPLICA and facts.topology != "replica":
                raise TargetError(f"target.replicas: expected a replica, got {facts.node.name}, which is none")
    return TargetFacts(
        url=redact_url(target.url),
        topology=all_facts[0].topology if kind is TargetKind.STANDALONE else kind.value,
        server=", ".join(sorted({facts.server for facts in all_facts})),
        max_clients=min(limits, default=None),
        ping_us=max(facts.ping_us for facts in primaries),
        primaries=len(primaries),
        replicas=len(all_facts) - len(primaries),
        replica_pools=_replica_pools(target),
        keys=None if None in keys else sum(filter(None, keys)),
    )


def _replica_pools(target: Target) -> int:
    if not reads_replicas(target):
        return 0
    return 1 if is_behind_sentinels(target) else len(target.replicas)


@dataclass(frozen=True, slots=True)
class _NodeFacts:
    """The facts about one node."""

    node: Node
    server: str
    topology: str
    max_clients: int | None
    ping_us: float
    keys: int | None


def _facts_of(target: Target, node: Node) -> _NodeFacts:
    with open_node(target, node) as client:
        server = info(client, "server")
        return _NodeFacts(
            node=node,
            server=server_name(server),
            topology=topology(server, info(client, "replication")),
            max_clients=max_clients(client),
            ping_us=ping_us(client),
            keys=key_count(client),
        )


def wrong_url(target: Target, found: str) -> str:
    """Return what is wrong with the URL of a standalone server if another topology was found, and the right URL; "" if
    nothing is wrong."""
    address = address_of(target)
    if address.kind is not TargetKind.STANDALONE:
        return ""
    scheme, hosts = "rediss" if address.tls else "redis", ",".join(map(str, address.hosts)) or "HOST:PORT"
    return {
        "cluster": f"is a node of a cluster, which has only a part of the keys: use {scheme}+cluster://{hosts}",
        "sentinel": f"is a Sentinel, which has no data: use {scheme}+sentinel://{hosts}/SERVICE",
    }.get(found, "")


def server_name(server: dict[str, Any]) -> str:
    """Return product and version from INFO server, such as "valkey 9.1.2"."""
    for field, product in _VERSION_FIELDS.items():
        if field in server:
            if "keydb" in str(server.get("executable", "")).lower():
                product = "keydb"
            return f"{product} {str(server[field]).removeprefix('df-v')}"
    return UNKNOWN_SERVER


def topology(server: dict[str, Any], replication: dict[str, Any]) -> str:
    """Return "standalone", "replica", "cluster" or "sentinel", from INFO server and INFO replication."""
    mode = str(server.get("server_mode") or server.get("redis_mode") or "standalone")
    return "replica" if mode == "standalone" and replication.get("role") == "slave" else mode
