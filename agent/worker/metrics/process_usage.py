"""What the load costs this process, and what holds the process up, by the collector's keys: CPU time, how busy event
loops are, throttling by CPU quotas, and stalls.

The CPU time is the whole process', the binning of rows included, as the system counts it. It is read at moments as they
come, mostly every 50 ms; what it was at the border of a second or a leg lies on the line between two readings. Places
follow each other, and each gets what was used since the one before: so nothing is missing, and nothing counts twice.

What is used after the load's end, to bin its last second above all, belongs to the last key, but is no share of a
core: nobody was loading any more.

The main thread detects stalls: it waits for some time and wakes up much later, while the whole process used next to no
CPU time. Then the process was stopped, or its machine had no time or memory for it. A main thread that is late because
other threads have the interpreter's lock is no stall: these threads use CPU time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np

from agent.worker.metrics.loop_usage import LoopRecord
from agent.worker.metrics.rows import IntervalKey, distinct
from common.cgroup import CpuGroups, QuotaReading
from common.clock import MonotonicNs, monotonic_ns
from common.metrics.histogram import EMPTY, Histogram, RunningHistogram
from common.metrics.intervals import STALL_NS, GeneratorMetrics, HoldUps, Merge, merge_hold_ups
from common.plan.timeline import MAX_LEGS, Timeline
from common.units import NS_PER_S

_LONG_ENOUGH_NS = NS_PER_S // 2
"""A share over less than this says more of the moment than of the load."""

_IDLE_BELOW = 4
"""A process that used more than this part (one of 4) of a core was running, not stalled."""


class _Meter:
    """A counter that never falls, such as CPU time, along the run's clock."""

    def __init__(self, from_ns: int) -> None:
        self._offsets_ns: list[int] = []
        self._values: list[int] = []
        self.through_ns = from_ns
        self._reported: int | None = None

    def note(self, offset_ns: int, value: int) -> None:
        """Add a reading. offset_ns: from the start instant."""
        self._offsets_ns.append(offset_ns)
        self._values.append(max([value, *self._values[-1:]]))

    def advance(self, to_ns: int) -> int:
        """The growth since the end of the last call (at first `from_ns`) up to `to_ns` after the start."""
        if self._reported is None:
            self._reported = self._at(self.through_ns)
        to_ns = max(to_ns, self.through_ns)
        reached = self._at(to_ns)
        grown = reached - self._reported
        self.through_ns, self._reported = to_ns, reached
        keep = max(0, int(np.searchsorted(self._offsets_ns, to_ns, side="right")) - 1)
        del self._offsets_ns[:keep], self._values[:keep]
        return grown

    def _at(self, offset_ns: int) -> int:
        if not self._offsets_ns:
            return 0
        return round(float(np.interp(offset_ns, self._offsets_ns, self._values)))


class _Quota:
    """The CPU quotas of this process, and how often they throttled it."""

    def __init__(self, read: Callable[[], QuotaReading], from_ns: int) -> None:
        self._read, self._from_ns = read, from_ns
        self._meters = [_Meter(from_ns) for _ in range(4)]
        self._cores = 0.0
        self._began = False

    def look(self, offset_ns: int, *, closely: bool) -> None:
        """Read the counters if `closely`, and always before the load begins, so that their values at its begin are
        known."""
        if self._began and not closely:
            return
        self._began = offset_ns >= self._from_ns
        found = self._read()
        self._cores = found.cores or 0.0
        values = (found.used_ns, found.periods, found.throttled_periods, found.throttled_ns)
        for meter, value in zip(self._meters, values, strict=True):
            meter.note(offset_ns, value)

    def release(self, begin_ns: int, until_ns: int) -> HoldUps:
        """The hold-ups from `begin_ns`, the end of the last call, to `until_ns`."""
        used_ns, periods, throttled, throttled_ns = (meter.advance(until_ns) for meter in self._meters)
        return HoldUps(
            allowed_ns=round(self._cores * (until_ns - begin_ns)),
            quota_used_ns=used_ns,
            quota_periods=periods,
            throttled_periods=throttled,
            throttled_ns=throttled_ns,
        )


class _Stalls:
    """Stalls: times in which this process had work, but did not run."""

    def __init__(self, t0_ns: int, now: MonotonicNs, cpu: Callable[[], int]) -> None:
        self._t0_ns, self._now, self._cpu = t0_ns, now, cpu
        self._found: list[tuple[int, int]] = []
        self.skip()

    def skip(self) -> None:
        """Begin again now: the time since the last call was a wait for another process, not a stall."""
        self._seen_ns, self._cpu_ns = self._now(), self._cpu()

    def look(self, waited_ns: int) -> None:
        """Detect a stall since the last call. waited_ns: for how long this thread meant to wait; for the rest it had
        work."""
        seen_ns, cpu_ns = self._seen_ns, self._cpu_ns
        self.skip()
        late_ns, used_ns = self._seen_ns - seen_ns - waited_ns, self._cpu_ns - cpu_ns
        if late_ns >= STALL_NS and used_ns * _IDLE_BELOW <= late_ns:
            ended_ns = self._seen_ns - self._t0_ns
            self._found.append((ended_ns - late_ns, ended_ns))

    def release(self, begin_ns: int, until_ns: int) -> HoldUps:
        """The stalls from `begin_ns` to `until_ns`. Stalls that ended by then are forgotten."""
        here = [(max(0, began_ns), ended_ns) for began_ns, ended_ns in self._found if ended_ns > begin_ns]
        here = [(began_ns, ended_ns) for began_ns, ended_ns in here if began_ns < until_ns]
        self._found = [stall for stall in self._found if stall[1] > until_ns]
        longest_ns, at_ns = max(((ended_ns - began_ns, began_ns) for began_ns, ended_ns in here), default=(0, 0))
        return HoldUps(
            stalled_ns=sum(min(ended_ns, until_ns) - max(began_ns, begin_ns) for began_ns, ended_ns in here),
            stall_max_ns=longest_ns,
            stall_at_ns=at_ns,
        )


class _Loop:
    """One event loop: how long each of its turns was that is not yet released, by key."""

    def __init__(self, record: LoopRecord) -> None:
        self._record = record
        self._busy_ns: defaultdict[IntervalKey, RunningHistogram] = defaultdict(RunningHistogram)

    def gather(self, t0_ns: int, line: Timeline, from_ns: int) -> None:
        """Take in what the loop left since the last call. What was before the load is of no interest."""
        turns = self._record.take() - np.array([t0_ns, 0])
        turns = turns[turns[:, 0] > from_ns]
        offsets_ns = turns[:, 0]
        busy_ns = np.minimum(turns[:, 1], offsets_ns - from_ns)
        legs = np.searchsorted(np.array(line.begins_ns), offsets_ns, side="right") - 1
        keys = offsets_ns // NS_PER_S * MAX_LEGS + legs
        for key in distinct(keys):
            self._busy_ns[divmod(key, MAX_LEGS)].add(busy_ns[keys == key])

    def keys(self) -> set[IntervalKey]:
        """Where what was gathered belongs."""
        return set(self._busy_ns)

    def release(self, key: IntervalKey) -> Histogram:
        """How long each of its turns in this key was, in ns; they are forgotten."""
        return self._busy_ns.pop(key).histogram() if key in self._busy_ns else EMPTY


class SelfWatch:
    """Watches this process through one run. loops: the records of its event loops, each once however often named."""

    def __init__(
        self,
        loops: Iterable[LoopRecord],
        t0_ns: int,
        line: Timeline,
        now: MonotonicNs = monotonic_ns,
        cpu: Callable[[], int] = time.process_time_ns,
        quota: Callable[[], QuotaReading] | None = None,
        *,
        from_ns: int = 0,
    ) -> None:
        """quota: reads the CPU quota, by default the one of this process. from_ns: how long after the start instant the
        load of this process begins."""
        self._t0_ns, self._line, self._now, self._read_cpu = t0_ns, line, now, cpu
        self._from_ns = from_ns
        self._cpu = _Meter(from_ns)
        self._loops = [_Loop(record) for record in dict.fromkeys(loops)]
        self._quota = _Quota(quota or CpuGroups().read, from_ns)
        self._stalls = _Stalls(t0_ns, now, cpu)

    def look(self, *, closely: bool = False) -> int:
        """Read the CPU time; call it often. closely: also the quota's counters; needed before each `release`. Returns
        the offset from the start instant in ns."""
        offset_ns = self._now() - self._t0_ns
        self._cpu.note(offset_ns, self._read_cpu())
        self._quota.look(offset_ns, closely=closely)
        return offset_ns

    def woke(self, waited_ns: int) -> None:
        """The main thread goes on. waited_ns: for how long it meant to wait since the last call of `woke` or
        `talked`."""
        self._stalls.look(waited_ns)

    def talked(self) -> None:
        """The main thread goes on after a wait for another process, which is not a stall."""
        self._stalls.skip()

    def gather(self) -> None:
        """Take in what the loops left since the last call."""
        for loop in self._loops:
            loop.gather(self._t0_ns, self._line, self._from_ns)

    def keys(self) -> set[IntervalKey]:
        """Where what loops left belongs."""
        return set[IntervalKey]().union(*(loop.keys() for loop in self._loops))

    def release(self, key: IntervalKey, late: bool, end_ns: int | None = None) -> GeneratorMetrics:
        """What the load cost in this key; each is to be released once, in order. late: its second was reported
        before, so there is only what loops left since then. end_ns: the load ended there, after the start."""
        turns = [loop.release(key) for loop in self._loops]
        found = GeneratorMetrics(
            busiest_loop_ns=max((busy_ns.total for busy_ns in turns), default=0),
            loop_lag=Histogram.merge(turns),
        )
        if late:
            return found
        begin_ns = self._cpu.through_ns
        until_ns = self._end_of(key) if end_ns is None else min(self._end_of(key), end_ns)
        cpu_ns = self._cpu.advance(until_ns)
        until_ns = self._cpu.through_ns
        watched_ns = until_ns - begin_ns
        hold_ups = merge_hold_ups(
            [self._quota.release(begin_ns, until_ns), self._stalls.release(begin_ns, until_ns)], Merge.NEIGHBOURS
        )
        return GeneratorMetrics(
            cpu_ns=cpu_ns,
            watched_ns=watched_ns,
            busiest_cpu_ns=cpu_ns,
            busiest_loop_ns=found.busiest_loop_ns,
            core_share_max=cpu_ns / watched_ns if watched_ns >= _LONG_ENOUGH_NS else 0.0,
            loop_lag=found.loop_lag,
            hold_ups=hold_ups,
        )

    def rest(self) -> int:
        """CPU time from the last key until now, in ns. To be called once, when all else is over."""
        return self._cpu.advance(self.look())

    def _end_of(self, key: IntervalKey) -> int:
        second, number = key
        ends_ns = [(second + 1) * NS_PER_S, *self._line.begins_ns[number + 1 : number + 2]]
        return min(ends_ns)
