"""Collects what the workers of one process did, by second of the run and leg of the timeline.

Each second and leg is one interval. A row belongs to the second in which it completed, and to its leg (see
`metrics.rows`); a connection event to the second and leg in which it happened. So a second has two intervals if one leg
ends and the next begins in it, or if operations completed in it that were due in an earlier leg. Every leg that a
second touches has an interval even if nothing happened: its gauges and the usage of the process count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from operator import itemgetter

import msgspec

from agent.worker.metrics.connection_events import ConnectionEvent, ConnectionTally, EventLog
from agent.worker.metrics.deliveries import CollectedDeliveries, DeliveryRecord
from agent.worker.metrics.process_usage import ProcessUsage
from agent.worker.metrics.rows import (
    NOTHING_BEGUN,
    IntervalKey,
    Outcomes,
    RowSums,
    WorkerRecord,
    by_interval,
    join_rows,
)
from common.metrics.intervals import IntervalMetrics, PoolMetrics
from common.plan.timeline import Timeline
from common.units import NS_PER_S

_MANY = 5000
"""Rows are added up after this many operations: enough to be worth the calls of numpy, few enough for the cache."""


class CollectedGroup:
    """One group of pools: the sources of its rows and events, and those that are not yet reported.

    first: (when the earliest operation began, how long after its intended time); NOTHING_BEGUN without any.
    """

    def __init__(
        self,
        name: str,
        records: Sequence[WorkerRecord],
        logs: Sequence[EventLog],
        deliveries: DeliveryRecord | None = None,
        begin_ns: int = 0,
    ) -> None:
        """deliveries: only for a mix with subscribers. begin_ns: when the load of this process begins; earlier
        connection events count at that moment."""
        self.name = name
        self.records = records
        self._deliveries = CollectedDeliveries(deliveries or DeliveryRecord())
        self._logs = logs
        self._begin_ns = begin_ns
        self._sums: dict[IntervalKey, RowSums] = {}
        self.first = NOTHING_BEGUN
        self._events: list[ConnectionEvent] = []
        self._connections = ConnectionTally()

    def gather(self, t0_ns: int, line: Timeline) -> None:
        """Take all rows and events since the last call."""
        for key, rows in by_interval(join_rows([record.take() for record in self.records]), t0_ns, line):
            if (sums := self._sums.get(key)) is None:
                leg = line.legs[key[1]]
                end_ns = None if leg.end_ns is None or not leg.is_open else t0_ns + leg.end_ns
                sums = self._sums[key] = RowSums(leg.is_open, max(t0_ns + leg.begin_ns, self._begin_ns), end_ns)
            sums.add(rows)
            self.first = min(self.first, sums.first)
        self._events.extend(event for log in self._logs for event in log.take())
        # By time, over all logs: connections of all client instances count in one gauge.
        self._events.sort(key=itemgetter(0))
        self._deliveries.gather(t0_ns, line)

    def keys(self, t0_ns: int, line: Timeline) -> set[IntervalKey]:
        """The intervals of what was gathered."""
        of_events = {self._key_of(event, t0_ns, line) for event in self._events}
        return self._sums.keys() | of_events | self._deliveries.keys()

    def never_opened(self) -> dict[str, int]:
        """Wanted connections that were never open so far, by cause."""
        return self._connections.never_opened()

    def release(
        self, key: IntervalKey, t0_ns: int, line: Timeline, names: tuple[str, ...], outcomes: Outcomes, late: bool
    ) -> tuple[PoolMetrics, int]:
        """(metrics of this interval, how many of its operations began after the end of their open leg). Call it once
        for each interval. late: the second was reported before."""
        sums = self._sums.pop(key, None) or RowSums()
        events = [event for event in self._events if self._key_of(event, t0_ns, line) == key]
        self._events = [event for event in self._events if self._key_of(event, t0_ns, line) != key]
        connections = self._connections.add_up(events, is_late=late)
        deliveries = self._deliveries.release(key)
        found = sums.metrics(names, outcomes.names)
        return msgspec.structs.replace(found, connections=connections, deliveries=deliveries), sums.begun_after

    def _key_of(self, event: ConnectionEvent, t0_ns: int, line: Timeline) -> IntervalKey:
        offset_ns = max(0, max(event[0], self._begin_ns) - t0_ns)
        return offset_ns // NS_PER_S, line.at(offset_ns)


class Collector:
    """Turns rows and events into intervals: each operation counts once, and so does each second.

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
    ) -> None:
        """from_ns: when the load of this process begins, from the start instant; the first interval is of that
        second."""
        self._groups = groups
        self._usage = usage
        self._names = names
        self._outcomes = outcomes
        self._t0_ns = t0_ns
        self._line = line
        self._first_second = self._next_second = from_ns // NS_PER_S
        self._issued_then = 0
        self._reported = (0, 0)
        self._unsent_reported: Counter[int] = Counter()
        self.counted = 0

    @property
    def issued(self) -> int:
        """Operations begun so far, as the workers themselves counted."""
        return self._tallies()[0]

    @property
    def transactions(self) -> int:
        """MULTI/EXEC pairs sent so far."""
        return self._tallies()[1]

    @property
    def start_skew_ns(self) -> int:
        """Delay of the earliest operation so far after its intended time; 0 without any operation. The intended time in
        a closed loop is the begin of the leg."""
        _, skew_ns = min((group.first for group in self._groups), default=NOTHING_BEGUN)
        return skew_ns

    def look(self) -> None:
        """Read the CPU time, and add up rows if there are many. The oftener it is called, the more exact is the CPU
        time of each second, and the less is to do at once."""
        self._usage.look()
        if self.issued - self._issued_then >= _MANY:
            self._gather()

    def woke(self, waited_ns: int) -> None:
        """See `ProcessUsage.woke`."""
        self._usage.woke(waited_ns)

    def reported(self) -> None:
        """See `ProcessUsage.reported`."""
        self._usage.reported()

    def collect(self, through: int) -> tuple[IntervalMetrics, ...]:
        """Intervals of all seconds up to `through` that were not reported yet; before them those of reported seconds of
        which something came late."""
        self._usage.look(closely=True)
        self._gather()
        return self._report(through, through)

    def collect_rest(self, at_least: int, ended_ns: int | None = None) -> tuple[int, tuple[IntervalMetrics, ...]]:
        """(last second, all remaining intervals). Call it once, when all is over.

        at_least: the last second is not before this one, in which the last operations began. ended_ns: when the load
        ended, by default now.
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
        """The intervals; the last one has the CPU time since the end of the load, this report included."""
        rest_ns = self._usage.rest()
        if not rest_ns:
            return intervals
        *others, last = intervals or (self._nothing_in(tallied),)
        generator = msgspec.structs.replace(last.generator, cpu_ns=last.generator.cpu_ns + rest_ns)
        return (*others, msgspec.structs.replace(last, generator=generator))

    def _with_unopened(self, intervals: tuple[IntervalMetrics, ...], tallied: int) -> tuple[IntervalMetrics, ...]:
        """The intervals; the last one has the connections that never opened, which are only known now."""
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
        return IntervalMetrics(first=second, last=second, stage=self._line.in_second(second)[-1])

    def _gather(self) -> None:
        self._issued_then = self.issued
        self._usage.gather()
        for group in self._groups:
            group.gather(self._t0_ns, self._line)

    def _report(self, through: int, tallied: int, load_ns: int | None = None) -> tuple[IntervalMetrics, ...]:
        t0_ns, line = self._t0_ns, self._line
        fresh = range(self._next_second, through + 1)
        found = {group.name: group.keys(t0_ns, line) for group in self._groups}
        tallies, all_unsent = self._tallies(), self._unsent()
        issued, transactions = (now - then for now, then in zip(tallies, self._reported, strict=True))
        unsent = all_unsent - self._unsent_reported
        # Tallies have no time: their growth counts in the second `tallied`.
        tally_key = (tallied, line.in_second(tallied)[-1])
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
                group.name: group.release(key, t0_ns, line, self._names, self._outcomes, late)
                for group in self._groups
                if not late or key in found[group.name]
            }
            interval = IntervalMetrics(
                first=second,
                last=second,
                stage=leg,
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
        """By leg. Operations of which a worker does not know the leg count in the last one."""
        unsent: Counter[int] = Counter()
        last = len(self._line.legs) - 1
        for record in self._records():
            # A worker completes `missed` before it adds the sum to `unsent`.
            if in_all := record.unsent:
                missed = Counter(record.missed)
                unsent.update(missed)
                unsent[last] += in_all - missed.total()
        return +unsent
