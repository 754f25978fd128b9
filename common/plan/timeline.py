"""What a load does when: its legs, one after the other from the common start. The one owner of these facts. Pure.

Legs are the warmup, if there is any, and then either the plain load, called "measure", or the stages in order. What is
not measured (the warmup) is in no number of the report. An unnamed stage is called by its number, "stage 1".

The rate of an open leg is constant or a straight line, so how many operations are due up to a moment is at most a
quadratic of it. Operations of the whole fleet are numbered from 0 through all open legs: number k is due when the
integral of the rate reaches k. Sums are exact fractions. In a leg of constant rate so are the times, rounded down once
to the nanosecond; in a ramp, up or down, they are computed from k alone in 64-bit floats, which errs by no more than
10^-15 of the leg's length: by a nanosecond in a leg of eleven days.

A linear ramp begins at the rate at which the stage before ended, at 0 where there is none or that was closed. The
warmup has the load of the first stage; one that is a ramp from 0 is warmed up for at the rate which it ramps to.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil

import numpy as np
from numpy.typing import NDArray

from common.metrics.histogram import Ints
from common.plan.schema import Load, Ramp
from common.units import NS_PER_S

MEASURE = "measure"
WARMUP = "warmup"
MAX_STAGES = 1000
MAX_LEGS = MAX_STAGES + 1

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Leg:
    """A part of the load, from `begin_ns` to before `end_ns` after the start; end None: only its operations end it.

    from_per_s, to_per_s: the rate at its begin and at its end, both None in a closed loop. due_before: the integral of
    the rate over all legs before it. measured: it is in the report's numbers.
    """

    name: str
    begin_ns: int
    end_ns: int | None
    from_per_s: float | None
    to_per_s: float | None
    due_before: Fraction
    measured: bool

    @property
    def is_open(self) -> bool:
        """Operations are sent at a rate, not whenever a reply came."""
        return self.to_per_s is not None

    @property
    def is_ramp(self) -> bool:
        """The rate changes within it."""
        return self.from_per_s != self.to_per_s

    def rate_at(self, offset_ns: int) -> float | None:
        """The rate at a moment within it, None in a closed loop."""
        if self.from_per_s is None or self.to_per_s is None or self.end_ns is None:
            return self.to_per_s
        passed = min(max((offset_ns - self.begin_ns) / (self.end_ns - self.begin_ns), 0.0), 1.0)
        return self.from_per_s + (self.to_per_s - self.from_per_s) * passed

    def due(self, until_ns: int) -> Fraction:
        """The integral of the rate from its begin until then, or until its end if that comes first; 0 in a closed loop.

        Raises ValueError for no end at all.
        """
        if self.from_per_s is None or self.to_per_s is None:
            return Fraction(0)
        passed = Fraction(max(0, min(until_ns, until_ns if self.end_ns is None else self.end_ns) - self.begin_ns))
        whole = passed * Fraction(self.from_per_s)
        if self.is_ramp:
            assert self.end_ns is not None
            slope = (Fraction(self.to_per_s) - Fraction(self.from_per_s)) / (self.end_ns - self.begin_ns)
            whole += slope * passed * passed / 2
        return whole / NS_PER_S

    def times(self, counts: Floats) -> Ints:
        """When, in ns after the start, the integral of its rate alone reaches each of `counts`, which ascend.

        Never before its begin. Of an open leg only.
        """
        assert self.from_per_s is not None
        assert self.to_per_s is not None
        start, end, slope = self.from_per_s, self.to_per_s, 0.0
        if self.is_ramp and self.end_ns is not None:
            slope = (end - start) * NS_PER_S / (self.end_ns - self.begin_ns)
        # The root of start * t + slope * t^2 / 2 = count, in the form that subtracts nothing of like size: the square
        # of the rate then is start^2 + 2 * slope * count, which a ramp down has to find from its other end.
        squares = start * start + 2 * slope * counts if slope >= 0 else end * end - 2 * slope * self._left_after(counts)
        root = start + np.sqrt(squares)
        seconds = np.divide(2 * counts, root, out=np.zeros_like(counts), where=root > 0)
        return self.begin_ns + np.maximum.accumulate(np.floor(seconds * NS_PER_S)).astype(np.int64)

    def _left_after(self, counts: Floats) -> Floats:
        """How much of the integral over the whole leg is left when it has reached each of `counts`; never below 0."""
        assert self.end_ns is not None
        whole = self.due(self.end_ns)
        # As two floats: of one alone, the last bits are more than what is left near the end.
        rounded = float(whole)
        return np.maximum(rounded - counts + float(whole - Fraction(rounded)), 0.0)


@dataclass(frozen=True)
class Timeline:
    """All legs of a load, at least one."""

    legs: tuple[Leg, ...]

    @property
    def end_ns(self) -> int | None:
        """When nothing more may begin, after the start; None where only the number of requests ends it."""
        return self.legs[-1].end_ns

    @property
    def is_plain(self) -> bool:
        """One load from begin to end."""
        return len(self.legs) == 1

    @cached_property
    def begins_ns(self) -> tuple[int, ...]:
        """The begin of each leg."""
        return tuple(leg.begin_ns for leg in self.legs)

    def at(self, offset_ns: int) -> int:
        """The number of the leg at a moment after the start: the first one before it, the last one after the end."""
        return max(0, bisect_right(self.begins_ns, offset_ns) - 1)

    def in_second(self, second: int) -> range:
        """The numbers of all legs that some of a second of the run lies in."""
        return range(self.at(second * NS_PER_S), self.at((second + 1) * NS_PER_S - 1) + 1)

    def lengths_ns(self, ran_ns: int) -> tuple[int, ...]:
        """How long each leg lasted in a run of this length. What is beyond the end belongs to the last leg."""
        ends_ns = [*(min(begin_ns, ran_ns) for begin_ns in self.begins_ns[1:]), ran_ns]
        return tuple(max(0, end_ns - begin_ns) for begin_ns, end_ns in zip(self.begins_ns, ends_ns, strict=True))


def timeline(load: Load) -> Timeline:
    """The legs of a load that `check_plan` found right."""
    legs: list[Leg] = []

    def add(
        name: str, length_ns: int | None, rates_per_s: tuple[float | None, float | None], measured: bool = True
    ) -> None:
        before = legs[-1] if legs else None
        begin_ns = 0 if before is None else before.end_ns
        assert begin_ns is not None
        due_before = Fraction(0) if before is None else before.due_before + before.due(begin_ns)
        end_ns = None if length_ns is None else begin_ns + length_ns
        from_per_s, to_per_s = (None if rate is None else float(rate) for rate in rates_per_s)
        legs.append(Leg(name, begin_ns, end_ns, from_per_s, to_per_s, due_before, measured))

    first_per_s = load.stages[0].rate_per_s if load.stages else load.rate_per_s
    if load.warmup_s > 0:
        add(WARMUP, load.warmup_s.ns, (first_per_s, first_per_s), measured=False)
    if not load.stages:
        length_ns = None if load.duration_s is None else load.duration_s.ns
        add(MEASURE, length_ns, (load.rate_per_s, load.rate_per_s))
    ended_per_s: float | None = None
    for number, stage in enumerate(load.stages, 1):
        begins_per_s = (ended_per_s or 0.0) if stage.ramp is Ramp.LINEAR else stage.rate_per_s
        add(stage.name or f"stage {number}", stage.duration_s.ns, (begins_per_s, stage.rate_per_s))
        ended_per_s = stage.rate_per_s
    return Timeline(tuple(legs))


def operations_due(leg: Leg, until_ns: int) -> int:
    """How many operations of the fleet are due in a leg until then, with constant arrivals; in the mean with others."""
    return ceil(leg.due_before + leg.due(until_ns)) - ceil(leg.due_before)
