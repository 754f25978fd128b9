"""Collects the results of one process's workers, by second of the run and leg of the timeline.

Each pair of second and leg is one interval. A row belongs to the second in which its operation completed, and to its
leg (see `metrics.rows`). A connection event belongs to the second and leg in which it happened. So a second has several
intervals if a leg ends in it, or if operations of an earlier leg complete in it. An interval exists for every leg that
overlaps the second, even without operations, because gauges and the usage of the process count too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter

import msgspec

from agent.worker.metrics.connection_events import ConnectionEvent, ConnectionTally, EventLog
from agent.worker.metrics.deliveries import CollectedDeliveries, DeliveryRecord
from agent.worker.metrics.endpoints import Endpoints
from agent.worker.metrics.outcomes import Outcomes
from agent.worker.metrics.process_usage import ProcessUsage
from agent.worker.metrics.rows import (
    NOTHING_BEGUN,
    IntervalKey,
    RowSums,
    WorkerRecord,
    by_interval,
    join_rows,
)
from common.metrics.intervals import IntervalMetrics, PoolMetrics
from common.plan.timeline import Timeline
from common.units import NS_PER_S

_GATHER_AFTER = 5000
"""Operations after which rows are added up: enough to justify numpy's calls, few enough for the CPU cache."""


class CollectedGroup:
    """One group of pools: the sources of its rows and events, and the rows and events that are not reported yet.

    first: (when the earliest operation began, how long after its intended time); NOTHING_BEGUN before any operation.
    """

    def __init__(
        self,
        name: str,
        records: Sequence[WorkerRecord],
        logs: Sequence[EventLog],
        deliveries: DeliveryRecord | None = None,
        begin_ns: int = 0,
    ) -> None:
        """deliveries: only for a mix with subscribers. begin_ns: when the load of this process begins. Earlier
        connection events count as if they happened then."""
        self.name = name
        self.records = records
        self._deliveries = CollectedDeliveries(deliveries or DeliveryRecord())
        self._logs = logs
        self._begin_ns = begin_ns
        self._sums: dict[IntervalKey, RowSums] = {}
        self.first = NOTHING_BEGUN
        self._events: list[ConnectionEvent] = []
        self._connections = ConnectionTally()

    def gather(self, t0_ns: int, line: Timeline, commands: int, outcomes: Outcomes | None = None) -> None:
        """Take all rows and events since the last call. commands: number of rows of the mix. outcomes: of the rows."""
        for key, rows in by_interval(join_rows([record.take() for record in self.records]), t0_ns, line):
            if (sums := self._sums.get(key)) is None:
                leg = line.legs[key[1]]
                end_ns = None if leg.end_ns is None or not leg.is_open else t0_ns + leg.end_ns
                begin_ns = max(t0_ns + leg.begin_ns, self._begin_ns)
                sums = self._sums[key] = RowSums(leg.is_open, begin_ns, end_ns, commands, outcomes)
            sums.add(rows)
            self.first = min(self.first, sums.first)
        self._events.extend(event for log in self._logs for event in log.take())
        # Sorted over all logs, because one gauge counts the connections of all client instances.
        self._events.sort(key=itemgetter(0))
        self._deliveries.gather(t0_ns, line)

    def keys(self, t0_ns: int, line: Timeline) -> set[IntervalKey]:
        """The intervals of all gathered rows and events."""
        of_events = {self._key_of(event, t0_ns, line) for event in self._events}
        return self._sums.keys() | of_events | self._deliveries.keys()

    def never_opened(self) -> dict[str, int]:
        """Wanted connections that were never open so far, by cause."""
        return self._connections.never_opened()

    def release(
        self,
        key: IntervalKey,
        t0_ns: int,
        line: Timeline,
        names: tuple[str, ...],
        outcomes: Outcomes,
        endpoints: Endpoints,
        late: bool,
    ) -> tuple[PoolMetrics, int]:
        """(metrics of this interval, how many of its operations began after the end of their open leg). Call it once
        for each interval. late: the second has been reported already."""
        sums = self._sums.pop(key, None) or RowSums()
        events = [event for event in self._events if self._key_of(event, t0_ns, line) == key]
        self._events = [event for event in self._events if self._key_of(event, t0_ns, line) != key]
        connections = self._connections.add_up(events, is_late=late)
        deliveries = self._deliveries.release(key)
        found = sums.metrics(names, outcomes.names, endpoints, t0_ns)
        return msgspec.structs.replace(found, connections=connections, deliveries=deliveries), sums.begun_after

    def _key_of(self, event: ConnectionEvent, t0_ns: int, line: Timeline) -> IntervalKey:
        offset_ns = max(0, max(event[0], self._begin_ns) - t0_ns)
        return offset_ns // NS_PER_S, line.at(offset_ns)


class Collector:
    """Converts rows and events into intervals. Each operation counts once, and so does each second.

    counted: operations in the intervals so far.
    """

    def __init__(
        self,
        groups: Sequence[CollectedGroup],
        names: tuple[str, ...],
        outcomes: Outcomes,
        t0_ns: int,
        line: Timeline,
        usage: ProcessUsage,
        *,
        from_ns: int = 0,
        first_leg: int = 0,
        endpoints: Endpoints | None = None,
    ) -> None:
        """from_ns: when the load of this process begins, from the start instant; the first interval is of that
        second. first_leg: the number of the first leg of `line` in the intervals, see `IntervalMetrics.stage`.
        endpoints: those that rows name."""
        self._groups = groups
        self._usage = usage
        self._names = names
        self._outcomes = outcomes
        self._endpoints = endpoints or Endpoints()
        self._t0_ns = t0_ns
        self._line = line
        self._first_leg = first_leg
        self._first_second = self._next_second = from_ns // NS_PER_S
        self._issued_then = 0
        self._reported = (0, 0)
        self._unsent_reported: Counter[int] = Counter()
        self.counted = 0

    @property
    def issued(self) -> int:
        """Operations begun so far, as counted by the workers."""
        return self._tallies()[0]

    @property
    def transactions(self) -> int:
        """MULTI/EXEC pairs sent so far."""
        return self._tallies()[1]

    @property
    def start_skew_ns(self) -> int:
        """The delay of the earliest operation after its intended time; 0 before any operation. In a closed loop, the
        intended time is the beginning of the leg."""
        _, skew_ns = min((group.first for group in self._groups), default=NOTHING_BEGUN)
        return skew_ns

    def look(self) -> None:
        """Read the CPU time, and add up rows if there are many. Call it often: then the CPU time of each second is
        exact, and each call has little to do."""
        self._usage.look()
        if self.issued - self._issued_then >= _GATHER_AFTER:
            self._gather()

    def woke(self, waited_ns: int) -> None:
        """See `ProcessUsage.woke`."""
        self._usage.woke(waited_ns)

    def reported(self) -> None:
        """See `ProcessUsage.reported`."""
        self._usage.reported()

    def collect(self, through: int) -> tuple[IntervalMetrics, ...]:
        """The intervals of all seconds up to `through` that are not reported yet; before them, further intervals of
        reported seconds for which rows or events came late."""
        self._usage.look(closely=True)
        self._gather()
        return self._report(through, through)

    def collect_rest(self, at_least: int, ended_ns: int | None = None) -> tuple[int, tuple[IntervalMetrics, ...]]:
        """(last second, all remaining intervals). Call it once, at the very end.

        at_least: the second in which the last operations began; the last second is not before it. ended_ns: when the
        load ended; None: now.
        """
        self._usage.look(closely=True)
        self._gather()
        load_ns = None if ended_ns is None else ended_ns - self._t0_ns
        keys = set[IntervalKey]().union(*(group.keys(self._t0_ns, self._line) for group in self._groups))
        through = max(at_least, self._next_second - 1, *(second for second, _ in keys), -1)
        tallied = max(at_least, self._first_second)
        intervals = self._report(through, tallied, load_ns)
        if through < 0:
            return through, intervals
        return through, self._with_unopened(self._with_rest(intervals, tallied), tallied)

    def _with_rest(self, intervals: tuple[IntervalMetrics, ...], tallied: int) -> tuple[IntervalMetrics, ...]:
        """The intervals. Adds the CPU time since the end of the load, this report included, to the last one."""
        rest_ns = self._usage.rest()
        if not rest_ns:
            return intervals
        *others, last = intervals or (self._nothing_in(tallied),)
        generator = msgspec.structs.replace(last.generator, cpu_ns=last.generator.cpu_ns + rest_ns)
        return (*others, msgspec.structs.replace(last, generator=generator))

    def _with_unopened(self, intervals: tuple[IntervalMetrics, ...], tallied: int) -> tuple[IntervalMetrics, ...]:
        """The intervals. Adds the connections that never opened, which are known only now, to the last one."""
        unopened = {group.name: found for group in self._groups if (found := group.never_opened())}
        if not unopened:
            return intervals
        *others, last = intervals or (self._nothing_in(tallied),)
        pools = dict(last.pools)
        for name, found in unopened.items():
            pool = pools.get(name, PoolMetrics())
            connections = msgspec.structs.replace(pool.connections, never_opened=found)
            pools[name] = msgspec.structs.replace(pool, connections=connections)
        return (*others, msgspec.structs.replace(last, pools=pools))

    def _nothing_in(self, second: int) -> IntervalMetrics:
        return IntervalMetrics(first=second, last=second, stage=self._first_leg + self._last_leg(second))

    def _last_leg(self, second: int) -> int:
        return self._line.at((second + 1) * NS_PER_S - 1)

    def _gather(self) -> None:
        self._issued_then = self.issued
        self._usage.gather()
        for group in self._groups:
            group.gather(self._t0_ns, self._line, len(self._names), self._outcomes)

    def _report(self, through: int, tallied: int, load_ns: int | None = None) -> tuple[IntervalMetrics, ...]:
        t0_ns, line = self._t0_ns, self._line
        fresh = range(self._next_second, through + 1)
        found = {group.name: group.keys(t0_ns, line) for group in self._groups}
        tallies, all_unsent = self._tallies(), self._unsent()
        issued, transactions = (now - then for now, then in zip(tallies, self._reported, strict=True))
        unsent = all_unsent - self._unsent_reported
        # Tallies have no time: their growth counts in the second `tallied`.
        tally_key = (tallied, self._last_leg(tallied))
        found_any = self._usage.keys().union(*found.values())
        keys = {key for key in found_any if key[0] <= through}
        keys |= {(second, leg) for second in fresh for leg in line.in_second(second)}
        keys |= {(tallied, leg) for leg in unsent}
        if issued or transactions:
            keys.add(tally_key)
        intervals = []
        for key in sorted(keys):
            second, leg = key
            late = second < fresh.start
            released = {
                group.name: group.release(key, t0_ns, line, self._names, self._outcomes, self._endpoints, late)
                for group in self._groups
                if not late or key in found[group.name]
            }
            interval = IntervalMetrics(
                first=second,
                last=second,
                stage=self._first_leg + leg,
                late=sum(begun_after for _, begun_after in released.values()),
                generator=self._usage.release(key, late, load_ns),
                pools={name: pool for name, (pool, _) in released.items()},
            )
            if key == tally_key:
                interval = msgspec.structs.replace(interval, issued=issued, transactions=transactions)
            if second == tallied and leg in unsent:
                interval = msgspec.structs.replace(interval, unsent=unsent[leg])
            self.counted += interval.operations
            intervals.append(interval)
        self._next_second = max(self._next_second, through + 1)
        self._reported, self._unsent_reported = tallies, all_unsent
        return tuple(intervals)

    def _records(self) -> list[WorkerRecord]:
        return [record for group in self._groups for record in group.records]

    def _tallies(self) -> tuple[int, int]:
        records = self._records()
        return sum(record.issued for record in records), sum(record.transactions for record in records)

    def _unsent(self) -> Counter[int]:
        """Unsent operations by leg. If a worker does not know the leg, they count for the last leg."""
        unsent: Counter[int] = Counter()
        last = len(self._line.legs) - 1
        for record in self._records():
            # Read in this order: a worker updates `missed` before it adds the sum to `unsent`.
            if in_all := record.unsent:
                missed = Counter(record.missed)
                unsent.update(missed)
                unsent[last] += in_all - missed.total()
        return +unsent
