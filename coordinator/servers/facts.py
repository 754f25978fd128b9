"""What the target says of itself before a run: who it is, node by node.

A server may keep things to itself, by its ACL or because it is no original Redis. What it does not tell is left out;
that it cannot be reached, or is no Redis at all, is a TargetError. Every wait is bounded by the target's timeouts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

from common.clock import monotonic_ns
from common.errors import TargetError
from common.plan.schema import Target
from common.plan.target_url import TargetKind, redact_url
from common.redis_client import (
    PRIMARY,
    TARGET_ERRORS,
    Node,
    address_of,
    checked_replies,
    failure_of,
    nodes_of,
    open_node_client,
    ping_target,
    translated,
)
from coordinator.core.records import TargetFacts

UNKNOWN_SERVER = "unknown server"

_PINGS = 5
_DIGITS = 18
# The first of these fields that a server has names it; all of them claim a redis_version for old clients' sake.
_VERSION_FIELDS = {
    "dragonfly_version": "dragonfly",
    "valkey_version": "valkey",
    "rlec_version": "redis enterprise",
    "redis_version": "redis",
}


class Asked(Protocol):
    """A client as this module uses it: redis-py's own signatures are not fully typed."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """One command and its parsed reply."""


def probe(target: Target) -> TargetFacts:
    """Who the target is and how quickly it answers. Raises TargetError when it cannot be used, PlanError for a URL
    that is none."""
    ping_target(target)
    with translated(target):
        nodes = nodes_of(target)
    told = [_told_by(target, node) for node in nodes]
    primaries = [node for node in told if node.node.role == PRIMARY]
    if not primaries:
        raise TargetError(f"target {address_of(target)} names no primary: wait for its failover, or start a server")
    limits = [node.max_clients for node in told if node.max_clients is not None]
    keys = [node.keys for node in primaries]
    if problem := misaddressed(target, told[0].topology):
        raise TargetError(f"target {address_of(target)} {problem}")
    kind = address_of(target).kind
    return TargetFacts(
        url=redact_url(target.url),
        topology=told[0].topology if kind is TargetKind.STANDALONE else kind.value,
        server=", ".join(sorted({node.server for node in told})),
        max_clients=min(limits, default=None),
        ping_us=max(node.ping_us for node in primaries),
        primaries=len(primaries),
        replicas=len(told) - len(primaries),
        keys=None if None in keys else sum(filter(None, keys)),
    )


@dataclass(frozen=True, slots=True)
class _Told:
    """What one node said of itself."""

    node: Node
    server: str
    topology: str
    max_clients: int | None
    ping_us: float
    keys: int | None


def _told_by(target: Target, node: Node) -> _Told:
    with asking(target, node) as client:
        server = info(client, "server")
        return _Told(
            node=node,
            server=server_name(server),
            topology=topology(server, info(client, "replication")),
            max_clients=max_clients(client),
            ping_us=ping_us(client),
            keys=keys_in(client),
        )


@contextmanager
def asking(target: Target, node: Node) -> Iterator[Any]:
    """A `redis.Redis` of exactly this node. What it does wrong is a TargetError that names it, not the whole target."""
    with translated(target, node.name), open_node_client(target, node) as client, checked_replies(node.name, client):
        yield client


def misaddressed(target: Target, found: str) -> str:
    """What is wrong with a URL of one server where another kind was found, and what would be right; "" when nothing."""
    address = address_of(target)
    if address.kind is not TargetKind.STANDALONE:
        return ""
    scheme, hosts = "rediss" if address.tls else "redis", ",".join(map(str, address.hosts)) or "HOST:PORT"
    return {
        "cluster": f"is a node of a cluster, which holds a part of the keys only: use {scheme}+cluster://{hosts}",
        "sentinel": f"is a Sentinel, which holds no data: use {scheme}+sentinel://{hosts}/SERVICE",
    }.get(found, "")


def ask(client: Asked, *command: str | bytes) -> Any:
    """The target's reply, or None where it refuses the question: not permitted to us, or not known to it."""
    try:
        return client.execute_command(*command)
    except TARGET_ERRORS as error:
        if failure_of(error).replied:
            return None
        raise


def info(client: Asked, section: str) -> dict[str, Any]:
    """One section of INFO; empty where the target keeps it to itself."""
    return dictionary(ask(client, "INFO", section))


def ping_us(client: Asked) -> float:
    """The median round trip of a few PINGs, in microseconds, on a connection that is open already."""
    trips_ns = []
    for _ in range(_PINGS):
        sent_ns = monotonic_ns()
        client.execute_command("PING")
        trips_ns.append(monotonic_ns() - sent_ns)
    return median(trips_ns) / 1000


def keys_in(client: Asked) -> int | None:
    """How many keys the node holds in the plan's database, or None where it does not tell."""
    return whole(ask(client, "DBSIZE"))


def server_name(server: dict[str, Any]) -> str:
    """Product and version from INFO server, such as "valkey 9.1.2"."""
    for field, product in _VERSION_FIELDS.items():
        if field in server:
            if "keydb" in str(server.get("executable", "")).lower():
                product = "keydb"
            return f"{product} {str(server[field]).removeprefix('df-v')}"
    return UNKNOWN_SERVER


def topology(server: dict[str, Any], replication: dict[str, Any]) -> str:
    """ "standalone", "replica", "cluster" or "sentinel", from INFO server and INFO replication."""
    mode = str(server.get("server_mode") or server.get("redis_mode") or "standalone")
    return "replica" if mode == "standalone" and replication.get("role") == "slave" else mode


def max_clients(client: Asked) -> int | None:
    """How many clients the server takes, or None where it does not tell."""
    # INFO first: it is permitted more often, and a refused CONFIG would stand in the server's ACL log.
    told = whole(info(client, "clients").get("maxclients"))
    if told is None:
        told = whole(dictionary(ask(client, "CONFIG GET", "maxclients")).get("maxclients"))
    return told


def dictionary(reply: Any) -> dict[str, Any]:
    """A reply that is a map; an empty one for anything else."""
    return reply if isinstance(reply, dict) else {}


def write_commands(client: Asked) -> frozenset[str] | None:
    """Lower-case names of all commands that may change data, as the server lists them; None where it does not tell. A
    command with subcommands is in it twice: as "xgroup", and as "xgroup|create"."""
    listed = ask(client, "COMMAND LIST", "FILTERBY", "ACLCAT", "write")
    if listed is None:
        return None
    names = {(name.decode() if isinstance(name, bytes) else str(name)).lower() for name in listed}
    return frozenset(names | {name.partition("|")[0] for name in names})


def whole(value: object) -> int | None:
    """A whole number that the server told, or None for anything else."""
    text = str(value) if isinstance(value, int | str | bytes) else ""
    # A longer number does not fit the journal's integers, and no count is that large.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _DIGITS else None
