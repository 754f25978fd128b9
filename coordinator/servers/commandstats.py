"""The server's own counts of calls (INFO commandstats), read before and after a run for the ledger.

Counts come from the servers to which clients send the plan's commands. In a cluster these are all nodes; otherwise the
primary, and its replicas only if they get reads.

A replica also counts replicated commands, which no client sent to it. So on a replica, only rejected calls count for a
command that primaries replicate; a redirection is a rejection. For all other commands, such as reads, all calls count.
"""

from __future__ import annotations

from typing import Any

from common.commands import COMMANDS
from common.errors import TargetError
from common.metrics.intervals import merge_counts
from common.plan.planned_commands import reads_replicas
from common.plan.schema import Target
from common.plan.schema.target_url import TargetKind
from common.redis_client import PRIMARY, Node, address_of, got_no_reply, nodes_of, translated
from common.units import show
from coordinator.journal.records import CountersRead, NodeCounters, Reading
from coordinator.servers.queries import CommandClient, dictionary, key_count, open_node, whole_number, write_commands

# Besides write commands, a primary passes these on to its replicas.
_REPLICATED = frozenset({"multi", "exec", "publish", "spublish", "ping", "select", "replconf"})


def read_server_counts(target: Target, when: Reading) -> CountersRead:
    """Read the counters of the target. Does not raise for errors of the target: `error` then gives the reason."""
    try:
        with translated(target):
            nodes = nodes_of(target)
        if address_of(target).kind is not TargetKind.CLUSTER and not reads_replicas(target):
            nodes = tuple(node for node in nodes if node.role == PRIMARY)
        readings = [_read_node(target, node) for node in nodes]
    except TargetError as error:
        return CountersRead(when=when, error=str(error), unreachable=got_no_reply(error))
    counted = tuple(reading[0] for reading in readings)
    # Our own queries are calls, so a server without any calls has no counters.
    silent = [node.name for node in counted if not node.calls]
    keys = [node_keys for node, _, node_keys in readings if node.role == PRIMARY]
    return CountersRead(
        when=when,
        server_run_id=counted[0].run_id if len(counted) == 1 else "",
        connected_clients=sum(clients for _, clients, _ in readings),
        calls=dict(merge_counts(node.calls for node in counted)),
        nodes=() if silent else counted,
        keys=None if None in keys else sum(filter(None, keys)),
        error=f"target {silent[0]} does not count calls: INFO commandstats is empty" if silent else "",
    )


def _read_node(target: Target, node: Node) -> tuple[NodeCounters, int, int | None]:
    """Return (counters, connected clients, keys) of a node."""
    with open_node(target, node) as client:
        # These queries are calls too, so they come before the counters are read.
        replicated = frozenset[str]() if node.role == PRIMARY else _replicated(client)
        keys = key_count(client)
        # One section in each call, because servers before Redis 7 do not accept several.
        server, clients, stats = (
            dictionary(client.execute_command("INFO", section)) for section in ("server", "clients", "commandstats")
        )
        calls = {
            name: _count(row, "rejected_calls") + (0 if name in replicated else _count(row, "calls"))
            for name, row in ((name.removeprefix("cmdstat_").lower(), row) for name, row in stats.items())
            if isinstance(row, dict)
        }
    own = {"info": 2, "dbsize": 1} | ({} if node.role == PRIMARY else {"command|list": 1})
    counted = NodeCounters(name=node.name, role=node.role, run_id=str(server.get("run_id", "")), calls=calls, own=own)
    return counted, whole_number(clients.get("connected_clients")) or 0, keys


def _count(row: dict[str, Any], field: str) -> int:
    """Return a count from INFO commandstats. Raises ValueError if the field is not a count."""
    count = whole_number(row.get(field, 0))
    if count is None:
        raise ValueError(f"expected a count, got {show(row[field])}")
    return count


def _replicated(client: CommandClient) -> frozenset[str]:
    """Return the lower-case names of the commands that a primary replicates. Write commands come from our own table if
    the server does not list them."""
    writing = write_commands(client)
    if writing is None:
        writing = frozenset(name.lower() for name, row in COMMANDS.items() if row.writes)
    return writing | _REPLICATED
