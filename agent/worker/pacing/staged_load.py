"""Turns of a load of several legs: a warmup, stages, ramps. See `agent.worker.pacing.pacer`.

An open leg has a schedule. Operations that are behind schedule are sent late, even after the end of the leg. In a
closed leg, a thread sends as soon as it can, from the beginning of the leg to its end; the intended time of the first
turn is the beginning of the leg. An operation of a closed leg belongs to the leg in which its turn was yielded, even if
it begins after the end of the leg because it waited for a client instance. So an open leg has exactly the operations
that were due in it, and the plan's number of requests is issued exactly. The end of a leg does not shorten a batch;
only the end of the run or of the quota does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import count, islice, takewhile
from math import ceil
from typing import TypeAlias

import numpy as np

from agent.worker.pacing.pacer import NEVER_NS, NO_DUE_TIME, Pacer, Schedule, Span, Turn
from common.clock import MonotonicNs, monotonic_ns
from common.plan.schema import Arrivals, Load
from common.plan.seeds import SeedPurpose, seed_sequence
from common.plan.timeline import Floats, Leg, Timeline
from common.units import NS_PER_S

_BLOCK = 512
_COUNTED = 20_000

Schedules: TypeAlias = tuple[Schedule | None, ...]
"""By leg: the intended send times of one thread in ns after the start, ascending, up to the end of the leg; None for a
closed leg."""


def schedules_of(load: Load, line: Timeline, seed: int, thread: int, threads: int, from_ns: int = 0) -> Schedules:
    """One thread's schedules, beginning `from_ns` after the start. thread: its number among the fleet's `threads`."""
    seeds = seed_sequence(seed, thread, SeedPurpose.ARRIVALS).spawn(len(line.legs))
    by_chance = load.arrivals is Arrivals.POISSON
    return tuple(
        None
        if not leg.is_open
        else _poisson(leg, threads, np.random.default_rng(root), max(from_ns, leg.begin_ns))
        if by_chance
        else _constant(leg, thread, threads, max(from_ns, leg.begin_ns))
        for leg, root in zip(line.legs, seeds, strict=True)
    )


def _constant(leg: Leg, thread: int, threads: int, from_ns: int) -> Schedule:
    """Thread i of n gets every n-th operation of the fleet. Operations are counted through all legs."""
    first = ceil(leg.due_before + leg.due(from_ns))
    first += (thread - first) % threads
    if leg.end_ns is None:
        return _even(leg, count(first, threads))
    numbers = range(first, ceil(leg.due_before + leg.due(leg.end_ns)), threads)
    return _ramp(leg, numbers, from_ns) if leg.is_ramp else _even(leg, numbers)


def _even(leg: Leg, numbers: Iterable[int]) -> Schedule:
    """Evenly spaced times of a constant rate: computed exactly, and rounded down once."""
    assert leg.to_per_s is not None
    gap_ns = NS_PER_S / Fraction(leg.to_per_s)
    offset_ns = leg.begin_ns - leg.due_before * gap_ns
    denominator = gap_ns.denominator * offset_ns.denominator
    step, base = gap_ns.numerator * offset_ns.denominator, offset_ns.numerator * gap_ns.denominator
    for number in numbers:
        yield (base + number * step) // denominator


def _ramp(leg: Leg, numbers: range, from_ns: int) -> Schedule:
    whole = int(leg.due_before)
    fraction = float(leg.due_before - whole)
    latest_ns = from_ns
    for at in range(0, len(numbers), _BLOCK):
        block = numbers[at : at + _BLOCK]
        counts = np.arange(block.start - whole, block.stop - whole, block.step, dtype=np.float64) - fraction
        times_ns = _within(leg, counts, latest_ns)
        latest_ns = times_ns[-1]
        yield from times_ns


def _poisson(leg: Leg, threads: int, generator: np.random.Generator, from_ns: int) -> Schedule:
    """Gaps with a mean of n in the integral of the rate, converted to times. Together, the schedules of all n threads
    are an inhomogeneous Poisson process with the leg's rate."""
    most = float(leg.due(leg.end_ns)) if leg.end_ns is not None else float("inf")
    reached, latest_ns = float(leg.due(from_ns)), from_ns
    while reached < most:
        counts = reached + np.cumsum(generator.exponential(threads, _BLOCK))
        reached = float(counts[-1])
        counts = counts[counts < most]
        if counts.size:
            times_ns = _within(leg, counts, latest_ns)
            latest_ns = times_ns[-1]
            yield from times_ns


def _within(leg: Leg, counts: Floats, earliest_ns: int) -> list[int]:
    last_ns = NEVER_NS if leg.end_ns is None else leg.end_ns - 1
    times_ns: list[int] = np.clip(leg.times(counts), earliest_ns, last_ns).tolist()
    return times_ns


class StagedPacer(Pacer):
    """Yields the turns of one thread, through all legs.

    quota: measured operations, None without a limit. threads: number of threads in the fleet. missed: `unsent` adds its
    result here, by leg.
    """

    def __init__(
        self,
        span: Span,
        line: Timeline,
        *,
        batch: int,
        quota: int | None,
        schedules: Schedules,
        threads: int,
        missed: Counter[int],
        now: MonotonicNs = monotonic_ns,
    ) -> None:
        super().__init__(span, batch=batch, quota=quota, schedule=None)
        self._line = line
        self._schedules = schedules
        self._threads = threads
        self._missed = missed
        self._now = now
        self._number = 0
        self._pending: list[int] = []

    @property
    def steady_turn(self) -> Turn | None:
        """None: legs differ."""
        return None

    @property
    def steady_turns(self) -> int | None:
        """See `steady_turn`."""
        return None

    @property
    def closed_until_ns(self) -> int | None:
        """The end of the current leg, if it is closed and no quota applies."""
        leg = self._line.legs[self._number]
        if self._schedules[self._number] is not None or (self._left is not None and leg.measured):
            return None
        return NEVER_NS if leg.end_ns is None else self._span.t0_ns + leg.end_ns

    def turns(self) -> Iterator[Turn]:
        """Turns until the quota is used up or the last leg ends. Call it once."""
        for number, (leg, schedule) in enumerate(zip(self._line.legs, self._schedules, strict=True)):
            self._number = number
            yield from self._closed(leg) if schedule is None else self._open(leg, schedule)
        if self._pending:
            yield self._take()

    def _open(self, leg: Leg, schedule: Schedule) -> Iterator[Turn]:
        t0_ns = self._span.t0_ns
        while self._may_send(leg):
            offset_ns = next(schedule, None)
            if offset_ns is None or t0_ns + offset_ns >= self._span.end_ns:
                return
            self._pending.append(t0_ns + offset_ns)
            self._use_quota(leg, 1)
            if len(self._pending) == self._batch:
                yield self._take()

    def _closed(self, leg: Leg) -> Iterator[Turn]:
        begin_ns = max(self._span.t0_ns + leg.begin_ns, self._span.begin_ns)
        end_ns = NEVER_NS if leg.end_ns is None else self._span.t0_ns + leg.end_ns
        if begin_ns >= self._span.end_ns:
            return
        comes_early = self._number > 0 and self._now() < begin_ns and self._may_send(leg)
        if self._pending or comes_early:
            yield self._filled(leg, begin_ns)
        while self._now() < end_ns and (size := self._room(leg)):
            self._use_quota(leg, size)
            yield Turn((NO_DUE_TIME,) * size, self._number)

    def _filled(self, leg: Leg, due_ns: int) -> Turn:
        """The pending operations, filled up to a batch with operations that are due when the closed leg begins."""
        size = min(self._batch - len(self._pending), self._room(leg))
        self._use_quota(leg, size)
        self._pending += [due_ns] * size
        return self._take()

    def _take(self) -> Turn:
        times_ns = tuple(self._pending)
        self._pending.clear()
        return Turn(times_ns)

    def _room(self, leg: Leg) -> int:
        return self._batch if self._left is None or not leg.measured else min(self._batch, self._left)

    def _may_send(self, leg: Leg) -> bool:
        return self._room(leg) > 0

    def _use_quota(self, leg: Leg, size: int) -> None:
        if self._left is not None and leg.measured:
            self._left -= size

    def unsent(self, times_ns: tuple[int, ...] = ()) -> int:
        """See `Pacer.unsent`."""
        t0_ns, end_ns = self._span.t0_ns, self._span.end_ns
        missed: Counter[int] = Counter()
        for due_ns in times_ns:
            number = self._line.at(due_ns - t0_ns)
            missed[number] += 0 <= due_ns < end_ns and self._line.legs[number].is_open
        for number in range(self._number, len(self._line.legs)):
            leg, schedule = self._line.legs[number], self._schedules[number]
            if schedule is not None:
                most = self._left if leg.measured else None
                left = self._count_before(end_ns - t0_ns, leg, schedule, most)
                self._use_quota(leg, left)
                missed[number] += left
        self._missed.update(+missed)
        return missed.total()

    def _count_before(self, limit_ns: int, leg: Leg, schedule: Schedule, most: int | None) -> int:
        """How many times of the schedule are before a limit, at most `most`. Counts the first `_COUNTED`, and estimates
        the rest from the rate, because a schedule far faster than the target may have too many to count."""
        times_ns = takewhile(lambda offset_ns: offset_ns < limit_ns, islice(schedule, most))
        counted = list(islice(times_ns, _COUNTED))
        if len(counted) < _COUNTED:
            return len(counted)
        following = int((leg.due(limit_ns) - leg.due(counted[-1])) / self._threads)
        return _COUNTED + (following if most is None else min(following, most - _COUNTED))
