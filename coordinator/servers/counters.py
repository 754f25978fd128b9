"""What the target's servers counted: read before and after a run, for the ledger.

Which servers: those that clients may send the plan's commands to. Of a cluster these are all its nodes; of what
Sentinels watch, the primary alone, because clients are never sent to its replicas. A replica's own count of calls also
grows by what it repeats after its primary, which no client sent it: so of a replica, commands that are repeated so
count only where it refused them (a redirection is a refusal), and all others, such as reads, in full.
"""

from __future__ import annotations

from typing import Any

from common.commands import COMMANDS
from common.errors import TargetError
from common.metrics.intervals import merge_counts
from common.plan.schema import Target
from common.plan.target_url import TargetKind
from common.redis_client import PRIMARY, Node, address_of, got_no_reply, nodes_of, translated
from common.units import show
from coordinator.core.records import NodeCounted, ServerCounted, When
from coordinator.servers.facts import Asked, asking, dictionary, keys_in, whole, write_commands

# What a primary passes on besides commands that write.
_PASSED_ON = frozenset({"multi", "exec", "publish", "spublish", "ping", "select", "replconf"})


def read_server_counts(target: Target, when: When) -> ServerCounted:
    """The target's own counters. Raises nothing for what the target does: then the reading says why it is none."""
    try:
        with translated(target):
            nodes = nodes_of(target)
        if address_of(target).kind is TargetKind.SENTINEL:
            nodes = tuple(node for node in nodes if node.role == PRIMARY)
        readings = [_read_node(target, node) for node in nodes]
    except TargetError as error:
        return ServerCounted(when=when, error=str(error), unreachable=got_no_reply(error))
    counted = tuple(reading[0] for reading in readings)
    # Asking alone is a call, so no calls at all means no counters.
    silent = [node.name for node in counted if not node.calls]
    keys = [held for node, _, held in readings if node.role == PRIMARY]
    return ServerCounted(
        when=when,
        server_run_id=counted[0].run_id if len(counted) == 1 else "",
        connected_clients=sum(clients for _, clients, _ in readings),
        calls=dict(merge_counts(node.calls for node in counted)),
        nodes=() if silent else counted,
        keys=None if None in keys else sum(filter(None, keys)),
        error=f"target {silent[0]} keeps no count of calls: INFO commandstats is empty" if silent else "",
    )


def _read_node(target: Target, node: Node) -> tuple[NodeCounted, int, int | None]:
    """(its counters, its connected clients, its keys)."""
    with asking(target, node) as client:
        # Before the counters, as what is asked counts, too.
        repeated = frozenset[str]() if node.role == PRIMARY else _replicated(client)
        keys = keys_in(client)
        # One section a time: servers before Redis 7 know only one in a call.
        server, clients, stats = (
            dictionary(client.execute_command("INFO", section)) for section in ("server", "clients", "commandstats")
        )
        calls = {
            name: _count(row, "rejected_calls") + (0 if name in repeated else _count(row, "calls"))
            for name, row in ((name.removeprefix("cmdstat_").lower(), row) for name, row in stats.items())
            if isinstance(row, dict)
        }
    counted = NodeCounted(name=node.name, role=node.role, run_id=str(server.get("run_id", "")), calls=calls)
    return counted, whole(clients.get("connected_clients")) or 0, keys


def _count(row: dict[str, Any], field: str) -> int:
    """A count from INFO commandstats. Raises ValueError if the field is not a count."""
    count = whole(row.get(field, 0))
    if count is None:
        raise ValueError(f"expected a count, got {show(row[field])}")
    return count


def _replicated(client: Asked) -> frozenset[str]:
    """Lower-case names of the commands that a replica repeats after its primary: those that write, by our own table
    where the server does not tell, and a few others."""
    writing = write_commands(client)
    if writing is None:
        writing = frozenset(name.lower() for name, row in COMMANDS.items() if row.writes)
    return writing | _PASSED_ON
