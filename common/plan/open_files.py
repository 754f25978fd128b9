"""Whether a worker process may open enough files for its connections: each connection is a file. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from common.plan.schema import Connections, Driver, Plan
from common.units import counted

SPARE_FILES = 32
"""Files that a worker process opens briefly: TLS files, and a second descriptor of a socket during its handshake."""
USUAL_FILES = 32
"""Files that a worker process usually has open before its connections, for use where they cannot be counted."""

T = TypeVar("T")

REMEDY = "raise `ulimit -n`, use more worker processes (--processes) and pools, or use fewer connections"


class PoolOfGroup(Protocol):
    """A client pool of the plan."""

    @property
    def group(self) -> int:
        """Index of its pool group in `plan.pools`."""


@dataclass(frozen=True, slots=True)
class Needed:
    """Connections of several pools to each node. all_at_once: opened at the start, with `wire` and with `prewarm`.
    as_needed: opened by calls, at most one for each client instance that a worker can use."""

    all_at_once: int = 0
    as_needed: int = 0


def needed(plan: Plan, pools: Iterable[PoolOfGroup]) -> Needed:
    """The connections that these pools need together."""
    all_at_once = as_needed = 0
    for share in pools:
        group = plan.pools[share.group]
        if group.driver is Driver.WIRE or group.connections is Connections.PREWARM:
            all_at_once += group.client_instances_per_pool * group.max_connections
        else:
            as_needed += min(group.client_instances_per_pool, group.workers_per_pool)
    return Needed(all_at_once, as_needed)


def pools_by_process(pools: Sequence[T], processes: int) -> list[tuple[T, ...]]:
    """The pools of each process, assigned in turn; fewer processes if there are fewer pools."""
    used = min(processes, len(pools))
    return [tuple(pools[number::used]) for number in range(used)]


def shortage(limit: int | None, in_use: int, connections: int) -> str:
    """Why a worker process with `in_use` open files cannot open `connections` more; "" if it can. limit: maximum number
    of open files, None for no limit."""
    if limit is None or in_use + SPARE_FILES + connections <= limit:
        return ""
    return (
        f"may open {counted(limit, 'file')} (`ulimit -n`), but needs {in_use + SPARE_FILES + connections:,}: "
        f"{counted(connections, 'connection')} and {in_use + SPARE_FILES} others"
    )


def shortage_note(plan: Plan, pools: Iterable[PoolOfGroup], limit: int | None, nodes: int = 1) -> str:
    """The note before the start if calls may need more connections than a worker process with these pools can open; ""
    if all fit. Connections that are opened at the start need no note: if they do not fit, the run is refused."""
    wanted = needed(plan, pools)
    connections = nodes * (wanted.all_at_once + wanted.as_needed)
    found = shortage(limit, USUAL_FILES, connections) if wanted.as_needed else ""
    return f"a worker process {found}, if calls need all of them; {REMEDY}" if found else ""
