"""Collects what the threads of one worker process did, second by second of the run."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import msgspec
import numpy as np

from agent.worker.deliveries import CollectedDeliveries, DeliveryRecord
from agent.worker.events import ConnectionFold, Event, EventLog
from agent.worker.recorder import NO_ROWS, WAIT_ONLY, Outcomes, Rows, ThreadRecord, bin_rows, seconds_of
from common.metrics import IntervalMetrics, PoolMetrics
from common.units import NS_PER_S


class CollectedGroup:
    """One group of pools: where its rows and events come from, and those that belong to seconds still to come."""

    def __init__(
        self,
        name: str,
        records: Sequence[ThreadRecord],
        logs: Sequence[EventLog],
        deliveries: DeliveryRecord | None = None,
    ) -> None:
        """deliveries: of a mix with subscribers."""
        self.name = name
        self.records = records
        self._deliveries = CollectedDeliveries(deliveries or DeliveryRecord())
        self._logs = logs
        self._rows: Rows = NO_ROWS
        self._seconds = seconds_of(NO_ROWS, 0)  # of each row
        self._events: list[Event] = []
        self._fold = ConnectionFold()

    def gather(self, t0_ns: int) -> Rows:
        """Take in all that threads and connections left since the last call; returns the new rows."""
        fresh = np.concatenate([NO_ROWS, *(record.take() for record in self.records)])
        self._rows = np.concatenate([self._rows, fresh])
        self._seconds = np.concatenate([self._seconds, seconds_of(fresh, t0_ns)])
        self._events.extend(event for log in self._logs for event in log.take())
        # By time, not log by log: connections of all its client instances count towards one gauge.
        self._events.sort(key=itemgetter(0))
        self._deliveries.gather()
        return fresh

    def seconds(self, t0_ns: int) -> set[int]:
        """The seconds to which what was gathered belongs."""
        of_rows = {*np.unique(self._seconds).tolist(), *(_second(event, t0_ns) for event in self._events)}
        return of_rows | self._deliveries.seconds(t0_ns)

    def release(self, second: int, t0_ns: int, names: tuple[str, ...], outcomes: Outcomes, late: bool) -> PoolMetrics:
        """Metrics of what was gathered of this second, which is forgotten. late: the second was reported before."""
        mine = self._seconds == second
        rows = self._rows[mine]
        self._rows, self._seconds = self._rows[~mine], self._seconds[~mine]
        events = [event for event in self._events if _second(event, t0_ns) == second]
        self._events = [event for event in self._events if _second(event, t0_ns) != second]
        return msgspec.structs.replace(
            bin_rows(rows, names, outcomes.endings),
            connections=self._fold.add_up(events, is_late=late),
            deliveries=self._deliveries.release(second, t0_ns),
        )


def _second(event: Event, t0_ns: int) -> int:
    return max(0, event[0] - t0_ns) // NS_PER_S


class Collector:
    """Turns what threads leave behind into intervals, each operation counted once and each second once.

    counted: operations in the intervals so far. first_begin_ns: when the earliest of them began, None without any.
    """

    def __init__(
        self, groups: Sequence[CollectedGroup], names: tuple[str, ...], outcomes: Outcomes, t0_ns: int
    ) -> None:
        self._groups = groups
        self._names = names
        self._outcomes = outcomes
        self._t0_ns = t0_ns
        self._next_second = 0
        self._reported = (0, 0, 0)
        self.counted = 0
        self.first_begin_ns: int | None = None

    @property
    def issued(self) -> int:
        """Operations begun so far, as the threads themselves counted."""
        return self._tallies()[0]

    @property
    def transactions(self) -> int:
        """MULTI/EXEC pairs sent so far."""
        return self._tallies()[1]

    def collect(self, through: int) -> tuple[IntervalMetrics, ...]:
        """Intervals of all seconds up to `through` that were not reported yet, and, before them, one of each second
        that was but of which something came late."""
        self._gather()
        return self._report(through, through)

    def collect_rest(self, at_least: int) -> tuple[int, tuple[IntervalMetrics, ...]]:
        """(last second, intervals) when all is over: everything, up to `at_least`, the second in which the last
        operations began, or to the last thing that happened after it."""
        self._gather()
        seconds = set[int]().union(*(group.seconds(self._t0_ns) for group in self._groups))
        through = max(at_least, self._next_second - 1, *seconds, -1)
        return through, self._report(through, max(at_least, 0))

    def _gather(self) -> None:
        for group in self._groups:
            rows = group.gather(self._t0_ns)
            rows = rows[rows[:, 1] != WAIT_ONLY]
            if len(rows):
                begin_ns = int((rows[:, 0] - rows[:, 2]).min())
                self.first_begin_ns = min(begin_ns, self.first_begin_ns or begin_ns)

    def _report(self, through: int, tallied: int) -> tuple[IntervalMetrics, ...]:
        fresh = range(self._next_second, through + 1)
        found = {group.name: group.seconds(self._t0_ns) for group in self._groups}
        tallies = self._tallies()
        issued, transactions, unsent = (now - then for now, then in zip(tallies, self._reported, strict=True))
        # The tallies bear no time: what they grew by is put into the second `tallied`.
        seconds = {second for seconds in found.values() for second in seconds if second <= through} | {*fresh}
        if issued or transactions or unsent:
            seconds.add(tallied)
        intervals = []
        for second in sorted(seconds):
            late = second < fresh.start
            pools = {
                group.name: group.release(second, self._t0_ns, self._names, self._outcomes, late)
                for group in self._groups
                if not late or second in found[group.name]
            }
            interval = IntervalMetrics(first=second, last=second, pools=pools)
            if second == tallied:
                interval = msgspec.structs.replace(interval, issued=issued, transactions=transactions, unsent=unsent)
            self.counted += interval.operations
            intervals.append(interval)
        self._next_second = max(self._next_second, through + 1)
        self._reported = tallies
        return tuple(intervals)

    def _tallies(self) -> tuple[int, int, int]:
        records = [record for group in self._groups for record in group.records]
        return (
            sum(record.issued for record in records),
            sum(record.transactions for record in records),
            sum(record.unsent for record in records),
        )
