"""Finds orders that are impossible, or that this machine cannot execute. Pure.

A broken or hostile coordinator must not end an agent, or make it take all memory or all threads of its machine. So the
agent checks an order before it builds anything. These checks refuse impossible orders only; worker processes report
limits that they reach later, such as too few open files for connections that open during the load.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec

from common.errors import PlanError
from common.plan.open_files import REMEDY, USUAL_FILES, needed, shortage
from common.plan.rules.checks import MAX_AGENTS, MAX_POOLS, MAX_THREADS, check_plan
from common.plan.scenarios import MAX_SCENARIOS, MAX_START_NS
from common.plan.schema import Driver
from common.plan.timeline import MAX_LEGS
from common.protocol.assignments import processes_of
from common.protocol.messages import Assignment, TakeOver
from common.units import NS_PER_S, counted, format_bytes, format_seconds

THREAD_BYTES, INSTANCE_BYTES, CONNECTION_BYTES = 1 << 14, 1 << 13, 1 << 11
"""Minimum memory of a worker thread or task, of a client instance, and of a connection that opens before the start."""
SPARE_THREADS = 64
"""Threads of an agent and of a worker process, without its workers."""
AHEAD_NS = 60 * NS_PER_S
LATE_NS = 3600 * NS_PER_S
"""Limits of a start instant: coordinators set it 0.6 s ahead, and send it again to agents that were cut off."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Limits of this machine. threads: in total, None if unknown. open_files: of one process, None for no limit.
    memory_bytes: 0 if unknown."""

    threads: int | None = None
    open_files: int | None = None
    memory_bytes: int = 0


NO_LIMITS = Capacity()


def misfit(assignments: Sequence[Assignment], processes: int, capacity: Capacity) -> str:
    """Why this number of worker processes cannot execute the share; "" if it can. assignments: one for each scenario
    of which the agent has pools."""
    for assignment in assignments:
        if found := _out_of_range(assignment) or _nonsense_in_plan(assignment):
            return found
    return _clash(assignments) or _too_much(assignments, processes, capacity)


def odd_start(starts_ns: int, takeover: TakeOver | None, now_ns: int) -> str:
    """Why the load cannot begin then; "" if it can. starts_ns, now_ns: on the clock of this host; takeover: from when
    on after the start instant."""
    ahead_ns = starts_ns + (takeover.from_ns if takeover else 0) - now_ns
    if -LATE_NS <= ahead_ns <= AHEAD_NS:
        return ""
    way = "ahead" if ahead_ns > 0 else "back"
    wanted = f"at most {format_seconds(AHEAD_NS / NS_PER_S)} ahead or {format_seconds(LATE_NS / NS_PER_S)} back"
    return f"expected a start instant {wanted}, got one {format_seconds(abs(ahead_ns) // NS_PER_S)} {way}"


def _out_of_range(assignment: Assignment) -> str:
    """Indexes out of range, and threads that belong to two pools."""
    groups, pools, total = assignment.plan.pools, assignment.pools, assignment.threads_total
    if len(pools) > MAX_POOLS:
        return f"expected at most {counted(MAX_POOLS, 'client pool')}, got {len(pools):,}"
    if total > MAX_THREADS * MAX_AGENTS:
        return f"expected at most {MAX_THREADS * MAX_AGENTS:,} worker threads in the fleet, got {total:,}"
    for share in pools:
        if share.group >= len(groups):
            return f"client pool {share.number}: expected a group below {len(groups)}, got {share.group}"
    spans = sorted((share.first_thread, share.first_thread + groups[share.group].workers_per_pool) for share in pools)
    if spans and spans[-1][1] > total:
        return f"expected worker threads below {total:,}, the number in the fleet, got {spans[-1][1] - 1:,}"
    if any(end > begin for (_, end), (begin, _) in pairwise(spans)):
        return "expected worker threads of their own for each client pool, got two with the same"
    if len({share.scenario for share in pools}) > 1:
        return "expected client pools of one scenario, got several"
    if assignment.start_ns > MAX_START_NS:
        wanted, found = format_seconds(MAX_START_NS / NS_PER_S), format_seconds(assignment.start_ns / NS_PER_S)
        return f"expected a scenario that starts within {wanted}, got one that starts after {found}"
    if assignment.first_leg > MAX_SCENARIOS * MAX_LEGS:
        return f"expected legs below {MAX_SCENARIOS * MAX_LEGS:,}, got {assignment.first_leg:,}"
    return ""


def _clash(assignments: Sequence[Assignment]) -> str:
    """Scenarios and pools that the share has twice."""
    pools = [share for assignment in assignments for share in assignment.pools]
    if len({share.number for share in pools}) < len(pools):
        return "expected client pools of different numbers, got two with the same"
    scenarios = [assignment.pools[0].scenario for assignment in assignments if assignment.pools]
    if len(set(scenarios)) < len(scenarios):
        return "expected one assignment for each scenario, got two"
    return ""


def _nonsense_in_plan(assignment: Assignment) -> str:
    """What no plan may say. Numbers of pools are those of this share: the fleet's may add up to more."""
    plan = assignment.plan
    dealt = Counter(share.group for share in assignment.pools)
    own = tuple(msgspec.structs.replace(group, client_pools=dealt[at] or 1) for at, group in enumerate(plan.pools))
    # An embedded server has a URL once it runs.
    target = msgspec.structs.replace(plan.target, embedded=None if plan.target.url else plan.target.embedded)
    try:
        check_plan(msgspec.structs.replace(plan, pools=own, target=target))
    except PlanError as error:
        return str(error)
    return ""


def _too_much(assignments: Sequence[Assignment], processes: int, capacity: Capacity) -> str:
    groups = [assignment.plan.pools[share.group] for assignment in assignments for share in assignment.pools]
    threads = sum(group.workers_per_pool for group in groups if group.driver is Driver.CLIENT)
    if capacity.threads is not None and threads + SPARE_THREADS > capacity.threads:
        return f"it needs {counted(threads, 'worker thread')}, but this machine allows {capacity.threads:,} in all"
    for hand in processes_of(assignments, processes):
        if found := shortage(capacity.open_files, USUAL_FILES, needed(hand.plan, hand.pools).all_at_once):
            return f"a worker process {found}; {REMEDY}"
    memory = sum(
        group.workers_per_pool * THREAD_BYTES + group.client_instances_per_pool * INSTANCE_BYTES for group in groups
    )
    at_once = sum(needed(assignment.plan, assignment.pools).all_at_once for assignment in assignments)
    memory += at_once * CONNECTION_BYTES
    if capacity.memory_bytes and memory > capacity.memory_bytes:
        least, most = format_bytes(-(-memory >> 20 << 20)), format_bytes(capacity.memory_bytes >> 20 << 20)
        return f"it needs at least {least} of memory, but this machine has {most}"
    return ""
