"""What the load costs this process: CPU time, and how busy its event loops are, by place as the collector has it.

The CPU time is the whole process', the binning of rows included, as the system counts it. It is read at moments as they
come, mostly every 50 ms; what it was at the border of a second or a leg lies on the line between two readings. Places
follow each other, and each gets what was used since the one before: so nothing is missing, and nothing counts twice.

What is used after the load's end, to bin its last second above all, belongs to the last place, but is no share of a
core: nobody was loading any more.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np

from agent.worker.loop_watch import LoopRecord
from agent.worker.recorder import Place, distinct
from common.clock import MonotonicNs, monotonic_ns
from common.histogram import EMPTY, Histogram, RunningHistogram
from common.metrics import GeneratorMetrics
from common.plan.timeline import MAX_LEGS, Timeline
from common.units import NS_PER_S

_LONG_ENOUGH_NS = NS_PER_S // 2
"""A share over less than this says more of the moment than of the load."""


class _CpuTime:
    """The CPU time of this process since the start instant, along the run's clock."""

    def __init__(self, t0_ns: int, now: MonotonicNs, cpu: Callable[[], int]) -> None:
        self._t0_ns = t0_ns
        self._now = now
        self._cpu = cpu
        self._offsets_ns: list[int] = []
        self._read_ns: list[int] = []
        self.through_ns = 0
        self._told_ns: int | None = None

    def read(self) -> int:
        """Read it now. Returns the offset from the start instant."""
        offset_ns = self._now() - self._t0_ns
        self._offsets_ns.append(offset_ns)
        self._read_ns.append(self._cpu())
        return offset_ns

    def advance(self, to_ns: int) -> int:
        """What was used from where the last call ended, at first the start instant, up to `to_ns` after the start."""
        if self._told_ns is None:
            self._told_ns = self._at(0)
        to_ns = max(to_ns, self.through_ns)
        reached_ns = self._at(to_ns)
        used_ns = reached_ns - self._told_ns
        self.through_ns, self._told_ns = to_ns, reached_ns
        keep = max(0, int(np.searchsorted(self._offsets_ns, to_ns, side="right")) - 1)
        del self._offsets_ns[:keep], self._read_ns[:keep]
        return used_ns

    def _at(self, offset_ns: int) -> int:
        if not self._offsets_ns:
            return 0
        return round(float(np.interp(offset_ns, self._offsets_ns, self._read_ns)))


class _Loop:
    """One event loop: how long each of its turns was that is not yet released, by place."""

    def __init__(self, record: LoopRecord) -> None:
        self._record = record
        self._busy_ns: defaultdict[Place, RunningHistogram] = defaultdict(RunningHistogram)

    def gather(self, t0_ns: int, line: Timeline) -> None:
        """Take in what the loop left since the last call. What was before the start instant is of no interest."""
        turns = self._record.take() - np.array([t0_ns, 0])
        turns = turns[turns[:, 0] > 0]
        offsets_ns = turns[:, 0]
        busy_ns = np.minimum(turns[:, 1], offsets_ns)
        legs = np.searchsorted(np.array(line.begins_ns), offsets_ns, side="right") - 1
        places = offsets_ns // NS_PER_S * MAX_LEGS + legs
        for place in distinct(places):
            self._busy_ns[divmod(place, MAX_LEGS)].add(busy_ns[places == place])

    def places(self) -> set[Place]:
        """Where what was gathered belongs."""
        return set(self._busy_ns)

    def release(self, place: Place) -> Histogram:
        """How long each of its turns in this place was, in ns; they are forgotten."""
        return self._busy_ns.pop(place).histogram() if place in self._busy_ns else EMPTY


class SelfWatch:
    """Watches this process through one run. loops: the records of its event loops, each once however often named."""

    def __init__(
        self,
        loops: Iterable[LoopRecord],
        t0_ns: int,
        line: Timeline,
        now: MonotonicNs = monotonic_ns,
        cpu: Callable[[], int] = time.process_time_ns,
    ) -> None:
        self._t0_ns = t0_ns
        self._line = line
        self._cpu = _CpuTime(t0_ns, now, cpu)
        self._loops = [_Loop(record) for record in dict.fromkeys(loops)]

    def look(self) -> int:
        """Read the CPU time; to be called often, and before anything is released. Returns the offset from the start
        instant in ns."""
        return self._cpu.read()

    def gather(self) -> None:
        """Take in what the loops left since the last call."""
        for loop in self._loops:
            loop.gather(self._t0_ns, self._line)

    def places(self) -> set[Place]:
        """Where what loops left belongs."""
        return set[Place]().union(*(loop.places() for loop in self._loops))

    def release(self, place: Place, late: bool, end_ns: int | None = None) -> GeneratorMetrics:
        """What the load cost in this place; each is to be released once, in order. late: its second was reported
        before, so there is only what loops left since then. end_ns: the load ended there, after the start."""
        turns = [loop.release(place) for loop in self._loops]
        found = GeneratorMetrics(
            busiest_loop_ns=max((busy_ns.total for busy_ns in turns), default=0),
            loop_lag=Histogram.merge(turns),
        )
        if late:
            return found
        begin_ns = self._cpu.through_ns
        until_ns = self._end_of(place) if end_ns is None else min(self._end_of(place), end_ns)
        cpu_ns = self._cpu.advance(until_ns)
        watched_ns = self._cpu.through_ns - begin_ns
        return GeneratorMetrics(
            cpu_ns=cpu_ns,
            watched_ns=watched_ns,
            busiest_cpu_ns=cpu_ns,
            busiest_loop_ns=found.busiest_loop_ns,
            core_share_max=cpu_ns / watched_ns if watched_ns >= _LONG_ENOUGH_NS else 0.0,
            loop_lag=found.loop_lag,
        )

    def rest(self) -> int:
        """CPU time from the last place until now, in ns. To be called once, when all else is over."""
        return self._cpu.advance(self.look())

    def _end_of(self, place: Place) -> int:
        second, number = place
        ends_ns = [(second + 1) * NS_PER_S, *self._line.begins_ns[number + 1 : number + 2]]
        return min(ends_ns)
