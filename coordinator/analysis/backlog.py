"""The backlog of an open loop: how many operations are due, but not sent. Pure.

    backlog = due - ended - in flight

- due: operations that the timeline intends until then. With Poisson arrivals this is a mean, so a difference within
  chance counts as 0.
- ended: operations that ended, as frames report them second by second.
- in flight: operations that have begun, but not ended. Frames count operations that began until shortly after the
  second, which may be too many, so this number is limited to what the workers can have in flight.

What was due in the share of a lost agent counts until another agent takes the share over, and not after that: the new
agent does not send it.
"""

from __future__ import annotations

from itertools import accumulate
from math import ceil

from common.plan.schema import Arrivals, Driver
from common.units import NS_PER_S
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.analysis.totals.tallies import Second
from coordinator.analysis.unassigned_shares import unassigned_shares

_DEVIATIONS = 4
"""Standard deviations of a Poisson process: a larger difference happens once in 30,000 runs."""

_NOTHING = Second()


class Backlog:
    """The backlog of a run at the end of each of its seconds."""

    def __init__(self, run: Aggregate) -> None:
        self._run = run
        known = [run.seconds.get(number, _NOTHING) for number in range(max(run.seconds, default=-1) + 1)]
        self._begun = list(accumulate(second.begun for second in known))
        self._ended = list(accumulate(second.operations for second in known))
        self._ended_open = list(accumulate(second.ended_open for second in known))
        self._max_in_flight = _max_in_flight(run)
        self._taken_over = [share for share in unassigned_shares(run) if share.successor] if run.takeovers else []

    def at(self, second: int, until_ns: int) -> int:
        """Return the backlog after a second, or after the last known second if that is earlier. until_ns: count
        operations due until then, in ns after the start."""
        second = min(second, len(self._begun) - 1)
        if second < 0:
            return 0
        in_flight = min(max(0, self._begun[second] - self._ended[second]), self._max_in_flight)
        due = self._due(until_ns)
        never_sent = sum(share.operations.total() for share in self._taken_over if share.until_s * NS_PER_S <= until_ns)
        backlog = due - self._ended_open[second] - in_flight - never_sent
        opened = self._run.opened
        is_poisson = opened is not None and opened.plan.load.arrivals is Arrivals.POISSON
        return backlog if backlog > (_DEVIATIONS * due**0.5 if is_poisson else 0) else 0

    def _due(self, until_ns: int) -> int:
        timeline, opened = self._run.timeline, self._run.opened
        leg = timeline.legs[timeline.at(until_ns)]
        due = ceil(leg.due_before + leg.due(until_ns))
        if opened is None or opened.plan.load.requests is None:
            return due
        warmup = next((ceil(leg.due_before) for leg in timeline.legs if leg.measured), 0)
        return min(due, warmup + opened.plan.load.requests)


def _max_in_flight(run: Aggregate) -> int:
    """Return how many operations can be in flight at one time."""
    if run.opened is None:
        return 0
    plan = run.opened.plan
    batch = max(plan.workload.pipeline, plan.workload.transaction, 1)
    # A worker of the wire driver has a batch in flight on each of its connections.
    wire = any(pools.driver is Driver.WIRE for pools in plan.pools)
    return batch * (run.opened.threads_total + (run.opened.connection_ceiling if wire else 0))
