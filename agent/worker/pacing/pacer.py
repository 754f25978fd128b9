"""Decides when a worker may begin operations. The same for every driver.

A pacer yields *turns*: the operations of one round trip, with their intended send times. Intended times follow from the
schedule alone, never from the time of a reply. Every operation has its own, also in a batch. A batch is due when its
last operation is, because it is sent as a whole, but the response time of each operation counts from its own intended
time. So response times show the waits that batches cause. A closed loop has no intended times.

`Pacer` yields the turns of a load with one leg, `agent.worker.pacing.staged_load` the turns of any other load.

Pure, except that `Span` sleeps. Its clock and its sleep function are arguments.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice, repeat, takewhile
from math import ceil
from typing import TypeAlias

import numpy as np

from common.clock import MonotonicNs, monotonic_ns
from common.plan.schema import Arrivals, Load
from common.plan.schema.workload import part_of_total
from common.plan.seeds import SeedPurpose, seed_sequence
from common.units import NS_PER_S

NO_DUE_TIME = -1
"""The intended send time of an operation in a closed loop: as soon as possible."""

LEG_BY_TIME = -1
"""The leg of operations that belong to the leg of their intended send time, or, without one, of their begin."""

NEVER_NS = (1 << 63) - 1
"""An end that never comes."""


@dataclass(slots=True)
class Turn:
    """The operations of one round trip. Not changed after it is made; not frozen, because that takes longer.

    times_ns: intended send times in order, each NO_DUE_TIME in a closed loop. leg: number of the leg of the timeline in
    a closed loop of several legs, else LEG_BY_TIME.
    """

    times_ns: tuple[int, ...]
    leg: int = LEG_BY_TIME


Schedule: TypeAlias = Iterator[int]
"""Endless intended send times of one thread, ascending, in monotonic ns."""

_BLOCK = 512
_NAP_NS = 50_000_000
_COUNTED = 20_000


class Span:
    """When operations may begin: begin_ns <= begin < end_ns. All threads of a process share it.

    t0_ns: the start instant of the run. begin_ns: the same, or later if another agent had this share before. The end
    can only become earlier. A waiting thread notices a new end within 50 ms.
    """

    def __init__(
        self,
        t0_ns: int,
        end_ns: int,
        now: MonotonicNs = monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
        *,
        from_ns: int = 0,
    ) -> None:
        """from_ns: how long after the start instant operations may begin."""
        self.t0_ns = t0_ns
        self.begin_ns = t0_ns + from_ns
        self.end_ns = end_ns
        self._now = now
        self._sleep = sleep
        self._on_new_end: list[Callable[[], None]] = []

    def end_at(self, end_ns: int) -> None:
        """Set an earlier end: no operation may begin at or after `end_ns`."""
        self.end_ns = min(self.end_ns, end_ns)
        for call in self._on_new_end:
            call()

    def on_new_end(self, call: Callable[[], None]) -> None:
        """Make each `end_at` call this function, on its own thread. For workers with a copy of the end."""
        self._on_new_end.append(call)

    def nap_ns(self, due_ns: int) -> int:
        """How long to sleep now, while waiting for `due_ns` or the end, whichever is first; <= 0 once it has come."""
        return min(min(due_ns, self.end_ns) - self._now(), _NAP_NS)

    def wait_until(self, due_ns: int) -> None:
        """Sleep until `due_ns`, or until the end if that comes first."""
        while (nap_ns := self.nap_ns(due_ns)) > 0:
            self._sleep(nap_ns / NS_PER_S)


def quota_of(requests: int | None, thread: int, threads: int) -> int | None:
    """How many of the `requests` one thread issues; None without a limit. thread: its number among `threads`.

    The quotas of all threads add up to exactly `requests`.
    """
    return None if requests is None else len(part_of_total(requests, thread, threads))


def constant_schedule(t0_ns: int, rate_per_s: float, thread: int, threads: int, from_ns: int = 0) -> Schedule:
    """Thread i of n gets every n-th of evenly spaced times: t0 + (k * n + i) / rate for k = 0, 1, 2, ..., beginning
    `from_ns` after t0.

    Each time is computed from k alone, exactly, and rounded once, so the schedule does not drift.
    """
    gap_ns = NS_PER_S / Fraction(rate_per_s)
    numerator, denominator = gap_ns.numerator, gap_ns.denominator
    turn = ceil(from_ns / gap_ns)
    turn += (thread - turn) % threads
    while True:
        yield t0_ns + turn * numerator // denominator
        turn += threads


def poisson_schedule(
    t0_ns: int, rate_per_s: float, threads: int, generator: np.random.Generator, from_ns: int = 0
) -> Schedule:
    """Exponential gaps with a mean of n / rate, beginning `from_ns` after t0. Together, the schedules of all n threads
    are a Poisson process with the whole rate. A Poisson process has no memory, so it may begin at any time."""
    mean_ns = threads * NS_PER_S / rate_per_s
    base_ns = float(from_ns)
    while True:
        offsets = base_ns + np.cumsum(generator.exponential(mean_ns, _BLOCK))
        base_ns = float(offsets[-1])
        for offset_ns in offsets.astype(np.int64).tolist():
            yield t0_ns + offset_ns


def schedule_of(load: Load, seed: int, thread: int, threads: int, t0_ns: int, from_ns: int = 0) -> Schedule | None:
    """One thread's schedule, beginning `from_ns` after the start instant; None for a closed loop. thread: its number
    among the fleet's `threads`."""
    if load.rate_per_s is None:
        return None
    if load.arrivals is Arrivals.POISSON:
        generator = np.random.default_rng(seed_sequence(seed, thread, SeedPurpose.ARRIVALS))
        return poisson_schedule(t0_ns, load.rate_per_s, threads, generator, from_ns)
    return constant_schedule(t0_ns, load.rate_per_s, thread, threads, from_ns)


class Pacer:
    """Yields the turns of one thread, for a load with one leg.

    batch: operations per turn; the last turn may be shorter, at the end of the quota or the span. quota: operations of
    all turns, None without a limit. schedule: None for a closed loop.
    """

    def __init__(self, span: Span, *, batch: int, quota: int | None, schedule: Schedule | None) -> None:
        self._span = span
        self._batch = batch
        self._left = quota
        self._schedule = schedule

    @property
    def steady_turn(self) -> Turn | None:
        """The turn that a closed loop repeats, `steady_turns` times; None if turns differ."""
        return _closed_turn(self._batch) if self._schedule is None else None

    @property
    def steady_turns(self) -> int | None:
        """How often `steady_turn` is repeated; None: without a limit."""
        return None if self._left is None else self._left // self._batch

    @property
    def closed_until_ns(self) -> int | None:
        """In a load of several legs: until when the latest turn may be repeated instead of taking the next one; None if
        it may not."""
        return None

    def rest(self) -> Iterator[Turn]:
        """The turns after the steady ones."""
        rest = (self._left or 0) % self._batch
        return repeat(_closed_turn(rest), 1 if rest else 0)

    def turns(self) -> Iterator[Turn]:
        """Turns until the quota is used up or the schedule passes the end. Call it once.

        In a closed loop the caller must notice the end: only it knows when its operation would begin.
        """
        if self._schedule is not None:
            return self._scheduled(self._schedule)
        if self._left is None:
            return repeat(_closed_turn(self._batch))
        return chain(repeat(_closed_turn(self._batch), self._left // self._batch), self.rest())

    def _scheduled(self, schedule: Schedule) -> Iterator[Turn]:
        if self._batch == 1:  # the same as the loop below, but faster
            while self._left != 0 and (due_ns := next(schedule, NEVER_NS)) < self._span.end_ns:
                if self._left is not None:
                    self._left -= 1
                yield Turn((due_ns,))
            return
        while True:
            times_ns = []
            for due_ns in islice(schedule, self._batch if self._left is None else min(self._batch, self._left)):
                if due_ns >= self._span.end_ns:
                    break
                times_ns.append(due_ns)
            if not times_ns:
                return
            if self._left is not None:
                self._left -= len(times_ns)
            yield Turn(tuple(times_ns))

    def unsent(self, times_ns: tuple[int, ...] = ()) -> int:
        """How many operations were due before the end but were not sent; 0 in a closed loop. Call it once, at the end.
        times_ns: intended times of yielded operations that were not sent. Operations that were not yielded count
        too."""
        if self._schedule is None:
            return 0
        end_ns = self._span.end_ns
        missed = sum(due_ns < end_ns for due_ns in times_ns)
        return missed + _count_before(end_ns, islice(self._schedule, self._left), self._left)


def _closed_turn(count: int) -> Turn:
    return Turn((NO_DUE_TIME,) * count)


def _count_before(end_ns: int, schedule: Iterator[int], most: int | None) -> int:
    """How many times of the schedule are before `end_ns`, at most `most`. Counts the first `_COUNTED`, and estimates
    the rest from their mean gap, because a schedule far faster than the target may have too many to count."""
    counted = list(takewhile(lambda due_ns: due_ns < end_ns, islice(schedule, _COUNTED)))
    if len(counted) < _COUNTED:
        return len(counted)
    gap_ns = max(1, counted[-1] - counted[0]) / (_COUNTED - 1)
    following = int((end_ns - 1 - counted[-1]) / gap_ns)
    return _COUNTED + (following if most is None else min(following, most - _COUNTED))
