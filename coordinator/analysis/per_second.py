"""The rows of a run, one for each second: for the live view, log lines and `timeseries.csv`. Pure.

A load rarely ends with a whole second: a run with a number of requests, or an interrupted run, ends within one, and the
last replies come after the load. A row for such a partial second would look like a collapse of the target. So:

- A last second that is at least half used is a row; its rate is per second of the time used.
- A shorter last second is added to the row before.
- Operations that end in the first second after the load are added to the load's last row.
- A longer drain is shown second by second, because replies that are so late are a result.

Every operation is in exactly one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil, floor

from common.metrics.intervals import merge_counts
from common.plan.timeline import Leg
from common.units import NS_PER_S
from coordinator.analysis.backlog import Backlog
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.analysis.totals.tallies import BusyTime, Second, add_by_name

OWN_ROW_S = 0.5
"""A last second that the load used for less than this is added to the row before."""
_WHOLE = 1e-6
"""A load that ends this close to a whole second counts as ending with that second."""


@dataclass(frozen=True, slots=True)
class ShownSecond:
    """One row: a second, or the load's last second with the seconds added to it.

    length_s: how long the load lasted in the row, the divisor of its rate; 1 after the load. leg: the leg in which the
    row begins. wanted_per_s: the mean rate that the plan wants; None in a closed loop and after the load. backlog:
    operations that were due by the end of the row, but not sent; None without an open loop. drains: the row is after
    the load.
    """

    number: int
    length_s: float
    second: Second
    leg: Leg
    wanted_per_s: float | None
    backlog: int | None = None
    drains: bool = False

    @property
    def ops_per_s(self) -> float:
        """Successful operations, per second of its length."""
        return self.second.ok / self.length_s


class ShownSeconds:
    """The rows of a run so far. stopped_s: when the load was stopped early; used until its actual end is known."""

    def __init__(self, run: Aggregate, stopped_s: float | None = None) -> None:
        self._run = run
        self._has_ended = run.closed is not None or (bool(run.agents) and all(one.end for one in run.agents.values()))
        self._end_s = _load_end_s(run, self._has_ended, stopped_s)
        known = max(run.seconds, default=-1)
        self._last, self._added_through = _last_row(self._end_s, known)
        self.numbers = (*range(min(self._last, known) + 1), *range(self._added_through + 1, known + 1))

    def __iter__(self) -> Iterator[ShownSecond]:
        return (self.row(number) for number in self.numbers)

    @property
    def complete(self) -> tuple[int, ...]:
        """Rows that every agent has reported."""
        return tuple(number for number in self.numbers if number <= self._run.complete_through)

    @property
    def final_through(self) -> int:
        """The last row that will not change any more, unless an agent that was cut off reports its share. The end of
        the load may still be added to a later row."""
        through = self._run.complete_through
        if self._has_ended:
            return through
        if self._end_s is None:
            return through - 1  # this row may be the last one: the end is not known in advance
        return self._last - 1 if self._last <= through < self._added_through else through

    @property
    def corrected(self) -> tuple[int, ...]:
        """Final rows that may have changed: an agent that was cut off has reported its share, or the load ended earlier
        than planned, and its end was added to a row."""
        ending = {self._last} if self._has_ended else set()
        return tuple(
            number
            for number in self.complete
            if number <= self.final_through and (number in self._run.recovered or number in ending)
        )

    @property
    def mean_ops_per_s(self) -> float:
        """Successful operations in all complete rows without the warmup, per second of the load."""
        complete, legs = self.complete, self._run.timeline.legs
        first = ceil(min((leg.begin_ns for leg in legs if leg.measured), default=0) / NS_PER_S)
        if not complete or complete[-1] < first:
            return 0.0
        until = min(complete[-1], self._last)
        ends_s = self._end_s if until == self._last and self._end_s is not None else until + 1
        known = range(first, (self._added_through if complete[-1] == self._last else complete[-1]) + 1)
        return sum(second.ok for number, second in self._run.seconds.items() if number in known) / (ends_s - first)

    def row(self, number: int) -> ShownSecond:
        """Return the row that begins with this second, one of `numbers`."""
        is_last, drains = number == self._last, number > self._last
        folded = range(number, self._added_through + 1 if is_last else number + 1)
        found = [second for each in folded if (second := self._run.seconds.get(each)) is not None]
        length_s = self._end_s - number if is_last and self._end_s is not None else 1.0
        begin_ns = number * NS_PER_S
        end_ns = begin_ns + round(length_s * NS_PER_S)
        legs = self._legs(begin_ns, end_ns)
        due = float(sum(_due(leg, end_ns, most) - _due(leg, begin_ns, most) for leg, most in legs))
        return ShownSecond(
            number=number,
            length_s=length_s,
            second=found[0] if len(found) == 1 else _as_one(found),
            leg=legs[0][0],
            wanted_per_s=due / length_s if all(leg.is_open for leg, _ in legs) and not drains else None,
            backlog=self._backlog_at(folded[-1], self._load_until_ns(end_ns)),
            drains=drains,
        )

    def _legs(self, begin_ns: int, end_ns: int) -> list[tuple[Leg, int | None]]:
        """The legs of all scenarios in this span, and how many requests each issues at most; outside the load, the
        nearest leg of the first scenario."""
        found: list[tuple[Leg, int | None]] = []
        for run in self._run.scenarios:
            line = run.timeline
            if line.legs[0].begin_ns < end_ns and (line.end_ns is None or begin_ns < line.end_ns):
                requests = run.opened.plan.load.requests if run.opened is not None else None
                legs = line.legs[line.at(begin_ns) : line.at(end_ns - 1) + 1]
                found += [(leg, requests if leg.measured else None) for leg in legs]
        first = self._run.scenarios[0].timeline
        return found or [(first.legs[first.at(begin_ns)], None)]

    @cached_property
    def _backlogs(self) -> list[Backlog]:
        return [Backlog(run) for run in self._run.scenarios if any(leg.is_open for leg in run.timeline.legs)]

    def _backlog_at(self, second: int, until_ns: int) -> int | None:
        return sum(backlog.at(second, until_ns) for backlog in self._backlogs) if self._backlogs else None

    def _load_until_ns(self, end_ns: int) -> int:
        return end_ns if self._end_s is None else min(end_ns, round(self._end_s * NS_PER_S))


def _due(leg: Leg, until_ns: int, most: int | None) -> Fraction:
    due = leg.due(until_ns)
    return due if most is None else min(due, Fraction(most))


def _as_one(seconds: list[Second]) -> Second:
    """Merge seconds into one: counts are summed, gauges of connections keep their maximum."""
    merged = Second()
    if any(second.past_gauges for second in seconds):
        fullest = max(seconds, key=lambda second: second.connections_open)
        merged.past_gauges, merged.connections_open = fullest.gauges, fullest.connections_open
    for second in seconds:
        merged.operations += second.operations
        merged.begun += second.begun
        merged.ended_open += second.ended_open
        merged.ok += second.ok
        merged.errors += second.errors
        merged.failures = merge_counts((merged.failures, second.failures))
        merged.refusals = merge_counts((merged.refusals, second.refusals))
        add_by_name(merged.hits, second.hits)
        add_by_name(merged.misses, second.misses)
        merged.service.add(second.service.merged)
        merged.response.add(second.response.merged)
        merged.loop_lag.add(second.loop_lag.merged)
        if merged.past_gauges is not None:
            continue
        for peaks, more in ((merged.open_peaks, second.open_peaks), (merged.wanted_peaks, second.wanted_peaks)):
            peaks |= {agent_id: max(peaks.get(agent_id, 0), peak) for agent_id, peak in more.items()}
        for agent_id, busy in second.busy.items():
            merged.busy.setdefault(agent_id, BusyTime()).add(busy.watched_ns, busy.cpu_ns, busy.loop_ns)
    if merged.past_gauges is None:
        merged.connections_open = sum(merged.open_peaks.values())
    return merged


def _load_end_s(run: Aggregate, has_ended: bool, stopped_s: float | None) -> float | None:
    """Return when the load ended, or will end; None if that is not known."""
    finals = [agent.end.final for agent in run.agents.values() if agent.end is not None and agent.end.final is not None]
    if run.closed is not None:
        end_s = run.closed.duration_s
    elif has_ended and finals:
        end_s = max(final.ran_ns for final in finals) / NS_PER_S
    elif stopped_s is not None:
        end_s = stopped_s
    elif run.end_ns is not None:
        end_s = run.end_ns / NS_PER_S
    else:
        return None
    end_s = float(round(end_s)) if abs(end_s - round(end_s)) < _WHOLE else end_s
    return end_s if end_s > 0 else None


def _last_row(end_s: float | None, known: int) -> tuple[int, int]:
    """Return (the last row of the load, the last second added to that row). known: the last second with data."""
    if end_s is None:
        return known, known
    return max(floor(end_s) - (end_s % 1 < OWN_ROW_S), 0), ceil(end_s)
