"""How far an open loop is behind: the number of operations that are due but not sent. Pure.

    backlog = due - ended - in flight

- due: what the timeline intends. With Poisson arrivals this is a mean, so a difference within chance counts as 0.
- ended: frames report it second by second.
- in flight: begun, but not ended. Frames report operations begun up to a moment shortly after the second, which may
  be too many, so this number is limited to what the workers can have in flight at once.

What was due in the share of a lost agent counts until another agent takes the share over, and not after that.
"""

from __future__ import annotations

from itertools import accumulate
from math import ceil

from common.plan.schema import Arrivals, Driver
from common.units import NS_PER_S
from coordinator.analysis.aggregate import Aggregate
from coordinator.analysis.tallies import Second
from coordinator.analysis.unassigned_shares import uncarried

_CHANCE = 4
"""Standard deviations of a Poisson process: it is off by more once in 30,000 runs."""

_NOTHING = Second()


class Backlog:
    """The backlog of a run at the end of each of its seconds."""

    def __init__(self, run: Aggregate) -> None:
        self._run = run
        known = [run.seconds.get(number, _NOTHING) for number in range(max(run.seconds, default=-1) + 1)]
        self._begun = list(accumulate(second.begun for second in known))
        self._ended = list(accumulate(second.operations for second in known))
        self._ended_open = list(accumulate(second.ended_open for second in known))
        self._room = _room(run)
        # What was due while a share had no agent is not made up for: the agent that took it over sends none of that.
        self._given_up = [share for share in uncarried(run) if share.successor] if run.takeovers else []

    def at(self, second: int, until_ns: int) -> int:
        """The backlog after a second, or after the last known one if that is earlier. until_ns: operations that were
        due until then count, in ns after the start."""
        second = min(second, len(self._begun) - 1)
        if second < 0:
            return 0
        under_way = min(max(0, self._begun[second] - self._ended[second]), self._room)
        due = self._due(until_ns)
        given_up = sum(share.operations.total() for share in self._given_up if share.until_s * NS_PER_S <= until_ns)
        behind = due - self._ended_open[second] - under_way - given_up
        opened = self._run.opened
        by_chance = opened is not None and opened.plan.load.arrivals is Arrivals.POISSON
        return behind if behind > (_CHANCE * due**0.5 if by_chance else 0) else 0

    def _due(self, until_ns: int) -> int:
        line, opened = self._run.line, self._run.opened
        leg = line.legs[line.at(until_ns)]
        due = ceil(leg.due_before + leg.due(until_ns))
        if opened is None or opened.plan.load.requests is None:
            return due
        warmup = next((ceil(leg.due_before) for leg in line.legs if leg.measured), 0)
        return min(due, warmup + opened.plan.load.requests)


def _room(run: Aggregate) -> int:
    """Most operations that can be in flight at one time."""
    if run.opened is None:
        return 0
    plan = run.opened.plan
    batch = max(plan.workload.pipeline, plan.workload.transaction, 1)
    # A worker of the wire driver has a batch under way on each of its connections.
    wire = any(pools.driver is Driver.WIRE for pools in plan.pools)
    return batch * (run.opened.threads_total + (run.opened.connection_ceiling if wire else 0))
