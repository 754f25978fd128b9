"""When a worker thread may begin operations: the one abstraction of load that every driver uses.

A pacer deals *turns*. A turn is the batch of operations of one round trip, given as their intended send times in order;
in a closed loop, where nothing is intended, each is `WHENEVER`. A load of one leg is dealt by `Pacer`, any other by
`agent.worker.pacing.staged_load`. Intended times come from the schedule alone, never from
when a reply came. Every operation has its own, also in a batch: a batch is due at the time of its last one, because
only then may all of it be sent, and the response time of each counts from its own. So batching shows up as the waiting
that it is.

Everything here is pure but for `Span`, which is given its clock and its way to sleep.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain, islice, repeat, takewhile
from math import ceil
from typing import TypeAlias

import numpy as np

from agent.worker.seeds import SeedPurpose, seed_sequence
from common.clock import MonotonicNs, monotonic_ns
from common.metrics.histogram import Ints
from common.plan.schema import Arrivals, Load
from common.plan.schema.workload import deal
from common.plan.timeline import MAX_LEGS
from common.units import NS_PER_S

WHENEVER = -1
"""Intended send time of an operation in a closed loop: as soon as its thread comes to it. With a warmup or stages, one
below that says to which leg it belongs, see `whenever_of`; whatever is below 0 is no time."""

_FIRST_CODE = -2

UNSENT = _FIRST_CODE - MAX_LEGS
"""This less so many ns, as the lag of an operation: it was not sent, and was late by so many when it gave up."""

NEVER_NS = (1 << 63) - 1
"""An end that never comes."""

Turn: TypeAlias = tuple[int, ...]
Schedule: TypeAlias = Iterator[int]
"""Intended send times of one thread, ascending and without end, in monotonic ns."""

_BLOCK = 512
_NAP_NS = 50_000_000
_COUNTED = 20_000


class Span:
    """From when to when operations may begin: begin_ns <= begin < end_ns. Shared by all threads of a process.

    t0_ns: the start instant of the run. begin_ns: the same, but later where another agent had the share until then.
    The end only ever moves nearer. A thread that waits notices it within 50 ms.
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
        self._told: list[Callable[[], None]] = []

    def end_at(self, end_ns: int) -> None:
        """Nothing may begin at or after `end_ns` any more."""
        self.end_ns = min(self.end_ns, end_ns)
        for tell in self._told:
            tell()

    def tell(self, whom: Callable[[], None]) -> None:
        """Call this whenever the end may have moved, on the thread that moved it: for who looks elsewhere, which is to
        spare a step of each operation."""
        self._told.append(whom)

    def nap_ns(self, due_ns: int) -> int:
        """How long to sleep before looking again whether it is then, or the end if that comes first; <= 0 if so."""
        return min(min(due_ns, self.end_ns) - self._now(), _NAP_NS)

    def wait_until(self, due_ns: int) -> None:
        """Sleep until then, or until the end if that comes first."""
        while (nap_ns := self.nap_ns(due_ns)) > 0:
            self._sleep(nap_ns / NS_PER_S)


def whenever_of(leg: int) -> int:
    """`WHENEVER`, for an operation that belongs to the leg of this number, whenever it begins."""
    return _FIRST_CODE - leg


def leg_of(lag: Ints) -> Ints:
    """The number of the leg for lags that are those of `whenever_of`."""
    return _FIRST_CODE - lag


def lag_of_unsent(due_ns: int, began_ns: int) -> int:
    """The lag of an operation that was to be sent at `due_ns`, began at `began_ns`, and was not sent."""
    return due_ns if due_ns < 0 else UNSENT - max(0, began_ns - due_ns)


def quota_of(requests: int | None, thread: int, threads: int) -> int | None:
    """Operations that thread number `thread` of `threads` issues of `requests` in all; None when there is no limit.

    Quotas of all threads add up to `requests` exactly.
    """
    return None if requests is None else len(deal(requests, thread, threads))


def constant_schedule(t0_ns: int, rate_per_s: float, thread: int, threads: int, from_ns: int = 0) -> Schedule:
    """Thread i of n gets every n-th of evenly spaced times: t0 + (k * n + i) / rate for k = 0, 1, 2, ... Those that lie
    less than `from_ns` after t0 are left out.

    Each is computed from k alone, in exact arithmetic and rounded once, so nothing drifts.
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
    """Exponential gaps of mean n / rate, from `from_ns` after t0 on. The n threads' schedules together are a Poisson
    process of the whole rate, which has no memory: wherever it begins, it is one."""
    mean_ns = threads * NS_PER_S / rate_per_s
    base_ns = float(from_ns)
    while True:
        offsets = base_ns + np.cumsum(generator.exponential(mean_ns, _BLOCK))
        base_ns = float(offsets[-1])
        for offset_ns in offsets.astype(np.int64).tolist():
            yield t0_ns + offset_ns


def schedule_of(load: Load, seed: int, thread: int, threads: int, t0_ns: int, from_ns: int = 0) -> Schedule | None:
    """The schedule of thread number `thread` of the fleet's `threads`, from `from_ns` after the start instant on; None
    in a closed loop."""
    if load.rate_per_s is None:
        return None
    if load.arrivals is Arrivals.POISSON:
        generator = np.random.default_rng(seed_sequence(seed, thread, SeedPurpose.ARRIVALS))
        return poisson_schedule(t0_ns, load.rate_per_s, threads, generator, from_ns)
    return constant_schedule(t0_ns, load.rate_per_s, thread, threads, from_ns)


class Pacer:
    """Deals one thread its turns.

    batch: operations a turn; the last turn is shorter where the quota or the end of the span says so.
    """

    def __init__(self, span: Span, *, batch: int, quota: int | None, schedule: Schedule | None) -> None:
        self._span = span
        self._batch = batch
        self._left = quota
        self._schedule = schedule

    @property
    def steady(self) -> Turn | None:
        """The turn that it deals over and over, in a closed loop; None in an open one. See `steady_turns`."""
        return (WHENEVER,) * self._batch if self._schedule is None else None

    @property
    def steady_turns(self) -> int | None:
        """How often it deals that; None for ever."""
        return None if self._left is None else self._left // self._batch

    @property
    def closed_until_ns(self) -> int | None:
        """Until when turns like the last one dealt may be repeated without asking, of a load whose turns differ; None
        where they may not."""
        return None

    def rest(self) -> Iterator[Turn]:
        """Turns after the steady ones."""
        rest = (self._left or 0) % self._batch
        return repeat((WHENEVER,) * rest, 1 if rest else 0)

    def turns(self) -> Iterator[Turn]:
        """Turns until the quota is used up or the schedule passes the end; to be called once.

        In a closed loop the end is for the caller to see: only it knows when its operation would begin.
        """
        if self._schedule is not None:
            return self._scheduled(self._schedule)
        if self._left is None:
            return repeat((WHENEVER,) * self._batch)
        full, rest = divmod(self._left, self._batch)
        return chain(repeat((WHENEVER,) * self._batch, full), repeat((WHENEVER,) * rest, 1 if rest else 0))

    def _scheduled(self, schedule: Schedule) -> Iterator[Turn]:
        while True:
            turn = []
            for due_ns in islice(schedule, self._batch if self._left is None else min(self._batch, self._left)):
                if due_ns >= self._span.end_ns:
                    break
                turn.append(due_ns)
            if not turn:
                return
            if self._left is not None:
                self._left -= len(turn)
            yield tuple(turn)

    def unsent(self, turn: Turn) -> int:
        """How many operations should have been sent before the end, but were not: of `turn`, the last one dealt, and
        of all that would have followed. For a thread that saw the end come; 0 in a closed loop."""
        if self._schedule is None:
            return 0
        end_ns = self._span.end_ns
        missed = sum(due_ns < end_ns for due_ns in turn)
        return missed + _count_before(end_ns, islice(self._schedule, self._left), self._left)


def _count_before(end_ns: int, schedule: Iterator[int], most: int | None) -> int:
    """How many of the times lie before `end_ns`, `most` at the most. Beyond `_COUNTED` of them by their mean gap: a
    schedule far ahead of what can be sent has more than there is time to look at."""
    counted = list(takewhile(lambda due_ns: due_ns < end_ns, islice(schedule, _COUNTED)))
    if len(counted) < _COUNTED:
        return len(counted)
    gap_ns = max(1, counted[-1] - counted[0]) / (_COUNTED - 1)
    following = int((end_ns - 1 - counted[-1]) / gap_ns)
    return _COUNTED + (following if most is None else min(following, most - _COUNTED))
