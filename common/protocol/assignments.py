"""How an agent's share is divided among its worker processes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from common.plan.open_files import pools_by_process
from common.protocol.messages import Assignment


def processes_of(assignments: Sequence[Assignment], processes: int) -> tuple[Assignment, ...]:
    """The assignment of each worker process: a process runs pools of one scenario, and every scenario has at least one.
    Processes are assigned to scenarios by their number of pools; fewer processes if there are fewer pools."""
    counts = [min(1, len(assignment.pools)) for assignment in assignments]
    while sum(counts) < processes:
        most = max(range(len(counts)), key=lambda at: len(assignments[at].pools) / counts[at] if counts[at] else 0)
        if counts[most] >= len(assignments[most].pools):
            break
        counts[most] += 1
    return tuple(
        msgspec.structs.replace(assignment, pools=hand)
        for assignment, count in zip(assignments, counts, strict=True)
        for hand in pools_by_process(assignment.pools, count)
    )
