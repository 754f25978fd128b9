"""The usage of this process by interval, and what delayed the process: CPU time, busy time of event loops, throttling
by CPU quotas, and stalls.

CPU time is the whole process's, as the system counts it, including the work of the collector. It is read about every
50 ms, and interpolated at the ends of seconds and legs. Each interval gets the CPU time since the interval before, so
all CPU time counts exactly once. CPU time after the end of the load, used mostly to collect the last second, counts in
the last interval, but not in its share of a core, because the load was over.

Event loops record a row for each turn, from one wait to the next. A reply that comes while a loop is busy is read in
the next turn. So the length of turns limits the delay that the generator itself may add to measured times, and the sum
of turns is the loop's busy time. Turns do not include waits, nor the wait for the interpreter lock after a wait.

The main thread detects stalls: it wakes up much later than intended, and the whole process used almost no CPU time
meanwhile. Then the process was stopped, or the machine had no CPU or memory for it. If the main thread is late because
other threads keep the interpreter lock, that is not a stall: these threads use CPU time.
"""

from __future__ import annotations

import struct
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.worker.metrics.rows import IntervalKey, distinct, take_rows
from common.cgroup import CpuGroups, QuotaReading
from common.clock import MonotonicNs, monotonic_ns
from common.metrics.histogram import EMPTY, Histogram, RunningHistogram
from common.metrics.intervals import STALL_NS, GeneratorDelays, GeneratorMetrics, Merge, merge_delays
from common.plan.timeline import MAX_LEGS, Timeline
from common.units import NS_PER_S

_LONG_ENOUGH_NS = NS_PER_S // 2
"""The shortest time over which a share of a core is computed: over less time it would say little about the load."""

_IDLE_BELOW = 4
"""A process counts as stalled if it used at most 1/4 of a core."""

LoopTurns: TypeAlias = NDArray[np.int64]
"""Shape (n, 2): ended_ns, busy_ns. ended_ns: when the loop began to wait again."""

pack_turn: Callable[[int, int], bytes] = struct.Struct("=2q").pack


class LoopRecord:
    """The turns of one event loop. Only its thread writes: `add(pack_turn(ended_ns, busy_ns))`. A loop that serves
    several pools has one record."""

    __slots__ = ("_buffer", "add")

    def __init__(self) -> None:
        self._buffer = array("q")
        self.add = self._buffer.frombytes

    def take(self) -> LoopTurns:
        """All turns since the last call."""
        return take_rows(self._buffer, 2)


class _Counter:
    """Readings of a counter that never falls, such as CPU time, over the time of the run."""

    def __init__(self, from_ns: int) -> None:
        self._offsets_ns: list[int] = []
        self._values: list[int] = []
        self.through_ns = from_ns
        self._reported: int | None = None

    def add(self, offset_ns: int, value: int) -> None:
        """Add a reading. offset_ns: from the start instant."""
        self._offsets_ns.append(offset_ns)
        self._values.append(max([value, *self._values[-1:]]))

    def advance(self, to_ns: int) -> int:
        """The growth from `through_ns`, where the last call ended, to `to_ns` (from the start instant)."""
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
        self._counters = [_Counter(from_ns) for _ in range(4)]
        self._cores = 0.0
        self._began = False

    def look(self, offset_ns: int, *, closely: bool) -> None:
        """Read the counters: if `closely`, and always until the load has begun, so that their values at its beginning
        are known."""
        if self._began and not closely:
            return
        self._began = offset_ns >= self._from_ns
        found = self._read()
        self._cores = found.cores or 0.0
        values = (found.used_ns, found.periods, found.throttled_periods, found.throttled_ns)
        for counter, value in zip(self._counters, values, strict=True):
            counter.add(offset_ns, value)

    def release(self, begin_ns: int, until_ns: int) -> GeneratorDelays:
        """The delays from `begin_ns`, the last call's `until_ns`, to `until_ns`."""
        used_ns, periods, throttled, throttled_ns = (counter.advance(until_ns) for counter in self._counters)
        return GeneratorDelays(
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
        """Restart the measurement: the time since the last call was a wait for another process, not a stall."""
        self._seen_ns, self._cpu_ns = self._now(), self._cpu()

    def look(self, waited_ns: int) -> None:
        """Detect a stall since the last call. waited_ns: how long this thread intended to wait. For the rest of the
        time, it had work."""
        seen_ns, cpu_ns = self._seen_ns, self._cpu_ns
        self.skip()
        late_ns, used_ns = self._seen_ns - seen_ns - waited_ns, self._cpu_ns - cpu_ns
        if late_ns >= STALL_NS and used_ns * _IDLE_BELOW <= late_ns:
            ended_ns = self._seen_ns - self._t0_ns
            self._found.append((ended_ns - late_ns, ended_ns))

    def release(self, begin_ns: int, until_ns: int) -> GeneratorDelays:
        """The stalls from `begin_ns` to `until_ns`. Stalls that ended by then are forgotten."""
        here = [(max(0, began_ns), ended_ns) for began_ns, ended_ns in self._found if ended_ns > begin_ns]
        here = [(began_ns, ended_ns) for began_ns, ended_ns in here if began_ns < until_ns]
        self._found = [stall for stall in self._found if stall[1] > until_ns]
        longest_ns, at_ns = max(((ended_ns - began_ns, began_ns) for began_ns, ended_ns in here), default=(0, 0))
        return GeneratorDelays(
            stalled_ns=sum(min(ended_ns, until_ns) - max(began_ns, begin_ns) for began_ns, ended_ns in here),
            stall_max_ns=longest_ns,
            stall_at_ns=at_ns,
        )


class _Loop:
    """The turns of one event loop that are not yet released, by interval."""

    def __init__(self, record: LoopRecord) -> None:
        self._record = record
        self._busy_ns: defaultdict[IntervalKey, RunningHistogram] = defaultdict(RunningHistogram)

    def gather(self, t0_ns: int, line: Timeline, from_ns: int) -> None:
        """Take the turns since the last call, except turns before the load."""
        turns = self._record.take() - np.array([t0_ns, 0])
        turns = turns[turns[:, 0] > from_ns]
        offsets_ns = turns[:, 0]
        busy_ns = np.minimum(turns[:, 1], offsets_ns - from_ns)
        legs = np.searchsorted(np.array(line.begins_ns), offsets_ns, side="right") - 1
        keys = offsets_ns // NS_PER_S * MAX_LEGS + legs
        for key in distinct(keys):
            self._busy_ns[divmod(key, MAX_LEGS)].add(busy_ns[keys == key])

    def keys(self) -> set[IntervalKey]:
        """The intervals of these turns."""
        return set(self._busy_ns)

    def release(self, key: IntervalKey) -> Histogram:
        """The lengths of all turns in this interval, in ns; call it once."""
        return self._busy_ns.pop(key).histogram() if key in self._busy_ns else EMPTY


class ProcessUsage:
    """The usage of this process in one run. loops: records of its event loops; duplicates are ignored."""

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
        """quota: reads the CPU quota; None: of this process. from_ns: when the load of this process begins, from the
        start instant."""
        self._t0_ns, self._line, self._now, self._read_cpu = t0_ns, line, now, cpu
        self._from_ns = from_ns
        self._cpu = _Counter(from_ns)
        self._loops = [_Loop(record) for record in dict.fromkeys(loops)]
        self._quota = _Quota(quota or CpuGroups().read, from_ns)
        self._stalls = _Stalls(t0_ns, now, cpu)

    def look(self, *, closely: bool = False) -> int:
        """Read the CPU time. Call it often. closely: also read the quota's counters, which is necessary before each
        `release`. Returns the time since the start instant in ns."""
        offset_ns = self._now() - self._t0_ns
        self._cpu.add(offset_ns, self._read_cpu())
        self._quota.look(offset_ns, closely=closely)
        return offset_ns

    def woke(self, waited_ns: int) -> None:
        """The main thread has woken up. waited_ns: how long it intended to wait since the last call of `woke` or
        `reported`."""
        self._stalls.look(waited_ns)

    def reported(self) -> None:
        """The main thread has reported to the agent. The time that this took is not a stall."""
        self._stalls.skip()

    def gather(self) -> None:
        """Take the turns of all loops since the last call."""
        for loop in self._loops:
            loop.gather(self._t0_ns, self._line, self._from_ns)

    def keys(self) -> set[IntervalKey]:
        """The intervals that have turns of event loops."""
        return set[IntervalKey]().union(*(loop.keys() for loop in self._loops))

    def release(self, key: IntervalKey, late: bool, end_ns: int | None = None) -> GeneratorMetrics:
        """The usage in this interval. Call it once for each interval, in order.

        late: the second has been reported already, so only turns of loops are left. end_ns: when the load ended, from
        the start instant.
        """
        turns = [loop.release(key) for loop in self._loops]
        found = GeneratorMetrics(
            busiest_loop_ns=max((busy_ns.value_sum for busy_ns in turns), default=0),
            loop_lag=Histogram.merge(turns),
        )
        if late:
            return found
        begin_ns = self._cpu.through_ns
        until_ns = self._end_of(key) if end_ns is None else min(self._end_of(key), end_ns)
        cpu_ns = self._cpu.advance(until_ns)
        until_ns = self._cpu.through_ns
        watched_ns = until_ns - begin_ns
        delays = merge_delays(
            [self._quota.release(begin_ns, until_ns), self._stalls.release(begin_ns, until_ns)], Merge.CONSECUTIVE
        )
        return GeneratorMetrics(
            cpu_ns=cpu_ns,
            watched_ns=watched_ns,
            busiest_cpu_ns=cpu_ns,
            busiest_loop_ns=found.busiest_loop_ns,
            core_share_max=cpu_ns / watched_ns if watched_ns >= _LONG_ENOUGH_NS else 0.0,
            loop_lag=found.loop_lag,
            delays=delays,
        )

    def rest(self) -> int:
        """CPU time since the last interval, in ns. Call it once, after everything else."""
        return self._cpu.advance(self.look())

    def _end_of(self, key: IntervalKey) -> int:
        second, number = key
        ends_ns = [(second + 1) * NS_PER_S, *self._line.begins_ns[number + 1 : number + 2]]
        return min(ends_ns)
