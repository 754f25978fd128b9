"""What the target says of itself: before a run who it is, around a run what it counted.

A server may keep things to itself, by its ACL or because it is no original Redis. What it does not tell is left out;
that it cannot be reached, or is no Redis at all, is a TargetError. Every wait is bounded by the target's timeouts.
"""

from __future__ import annotations

from statistics import median
from typing import Any, Protocol

from common.clock import monotonic_ns
from common.errors import TargetError
from common.plan.schema import Target
from common.plan.url import redact_url
from common.target import TARGET_ERRORS, address_of, ending_of, open_control_client, ping_target, translated
from coordinator.records import ServerCounted, TargetFacts, When

UNKNOWN_SERVER = "unknown server"

_PINGS = 5
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
    with translated(target), open_control_client(target) as client:
        server = info(client, "server")
        return TargetFacts(
            url=redact_url(target.url),
            topology=topology(server, info(client, "replication")),
            server=server_name(server),
            max_clients=max_clients(client),
            ping_us=ping_us(client),
            keys=whole(ask(client, "DBSIZE")),
        )


def read_server_counts(target: Target, when: When) -> ServerCounted:
    """The server's own counters. Raises nothing for what the target does: then the reading says why it is none."""
    try:
        with translated(target), open_control_client(target) as client:
            # One section a time: servers before Redis 7 know only one in a call.
            server, clients, stats = (
                _dictionary(client.execute_command("INFO", section))
                for section in ("server", "clients", "commandstats")
            )
            keys = whole(ask(client, "DBSIZE"))
    except TargetError as error:
        return ServerCounted(when=when, error=str(error))
    calls = {
        name.removeprefix("cmdstat_").lower(): int(row.get("calls", 0)) + int(row.get("rejected_calls", 0))
        for name, row in stats.items()
        if name.startswith("cmdstat_") and isinstance(row, dict)
    }
    return ServerCounted(
        when=when,
        server_run_id=str(server.get("run_id", "")),
        connected_clients=whole(clients.get("connected_clients")) or 0,
        calls=calls,
        keys=keys,
        # Asking alone is a call, so no calls at all means no counters.
        error="" if calls else f"target {address_of(target)} keeps no count of calls: INFO commandstats is empty",
    )


def ask(client: Asked, *command: str | bytes) -> Any:
    """The target's reply, or None where it refuses the question: not permitted to us, or not known to it."""
    try:
        return client.execute_command(*command)
    except TARGET_ERRORS as error:
        if ending_of(error).replied:
            return None
        raise


def info(client: Asked, section: str) -> dict[str, Any]:
    """One section of INFO; empty where the target keeps it to itself."""
    return _dictionary(ask(client, "INFO", section))


def ping_us(client: Asked) -> float:
    """The median round trip of a few PINGs, in microseconds, on a connection that is open already."""
    trips_ns = []
    for _ in range(_PINGS):
        sent_ns = monotonic_ns()
        client.execute_command("PING")
        trips_ns.append(monotonic_ns() - sent_ns)
    return median(trips_ns) / 1000


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
        told = whole(_dictionary(ask(client, "CONFIG GET", "maxclients")).get("maxclients"))
    return told


def _dictionary(reply: Any) -> dict[str, Any]:
    return reply if isinstance(reply, dict) else {}


def whole(value: object) -> int | None:
    """A whole number that the server told, or None for anything else."""
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() else None
