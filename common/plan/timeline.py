"""The timeline of a load: its legs, one after the other, from the start of its scenario.

The legs are the warmup, if there is one, and then either one leg named "measure" or the stages in order. The warmup is
not measured: no figure of the report includes it. A stage without a name gets the name "stage 1", by its number.

The rate of an open leg is constant or changes linearly, so the number of operations due at a time is linear or
quadratic in the time. The fleet's operations are numbered from 0 through all open legs: operation k is due when the
integral of the rate reaches k. Sums are exact fractions. Due times in a leg of constant rate are exact, rounded down to
the nanosecond. Due times in a ramp are computed from k alone in 64-bit floats; their error is at most 10^-15 of the
leg's length, which is a nanosecond in a leg of eleven days.

A linear ramp begins at the final rate of the previous stage; at 0 if there is no previous stage, or if that stage is a
closed loop. The warmup has the load of the first stage; if that is a ramp, the warmup has the ramp's final rate.
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
    """One leg, from `begin_ns` up to but not including `end_ns` after the start; end_ns None: it ends when its
    operations are done, or when the user stops the run.

    from_per_s, to_per_s: the rate at the beginning and at the end, both None in a closed loop. due_before: the integral
    of the rate over all earlier legs. measured: whether the report's figures include the leg.
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
        """Whether operations are sent at a rate. In a closed loop, each is sent after a reply."""
        return self.to_per_s is not None

    @property
    def is_ramp(self) -> bool:
        """Whether the rate changes within the leg."""
        return self.from_per_s != self.to_per_s

    def rate_at(self, offset_ns: int) -> float | None:
        """The rate at a time within the leg, None in a closed loop."""
        if self.from_per_s is None or self.to_per_s is None or self.end_ns is None:
            return self.to_per_s
        passed = min(max((offset_ns - self.begin_ns) / (self.end_ns - self.begin_ns), 0.0), 1.0)
        return self.from_per_s + (self.to_per_s - self.from_per_s) * passed

    def due(self, until_ns: int) -> Fraction:
        """The integral of the rate from the leg's beginning to `until_ns`, or to the leg's end if that is earlier; 0 in
        a closed loop."""
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
        """When the integral of this leg's rate reaches each of the ascending `counts`, in ns after the start. For open
        legs only."""
        assert self.from_per_s is not None
        assert self.to_per_s is not None
        start, end, slope = self.from_per_s, self.to_per_s, 0.0
        if self.is_ramp and self.end_ns is not None:
            slope = (end - start) * NS_PER_S / (self.end_ns - self.begin_ns)
        # Solves start * t + slope * t^2 / 2 = count in a form that never subtracts numbers of similar size. The root
        # contains the rate at the due time, squared: start^2 + 2 * slope * count. A ramp down computes it from its end.
        squares = start * start + 2 * slope * counts if slope >= 0 else end * end - 2 * slope * self._left_after(counts)
        root = start + np.sqrt(squares)
        seconds = np.divide(2 * counts, root, out=np.zeros_like(counts), where=root > 0)
        return self.begin_ns + np.maximum.accumulate(np.floor(seconds * NS_PER_S)).astype(np.int64)

    def _left_after(self, counts: Floats) -> Floats:
        """The rest of the integral over the whole leg after each of `counts`, at least 0."""
        assert self.end_ns is not None
        whole = self.due(self.end_ns)
        # As two floats: near the end, the rest is smaller than the last bits of one float.
        rounded = float(whole)
        return np.maximum(rounded - counts + float(whole - Fraction(rounded)), 0.0)


@dataclass(frozen=True)
class Timeline:
    """All legs of a load, at least one."""

    legs: tuple[Leg, ...]

    @property
    def end_ns(self) -> int | None:
        """When the load ends, after the start; None if it ends with the number of requests, or when it is stopped."""
        return self.legs[-1].end_ns

    @property
    def has_one_leg(self) -> bool:
        """Whether the load has one leg."""
        return len(self.legs) == 1

    @cached_property
    def begins_ns(self) -> tuple[int, ...]:
        """The beginning of each leg."""
        return tuple(leg.begin_ns for leg in self.legs)

    def at(self, offset_ns: int) -> int:
        """The index of the leg at a time after the start: of the first leg for earlier times, of the last leg for later
        times."""
        return max(0, bisect_right(self.begins_ns, offset_ns) - 1)

    def in_second(self, second: int) -> range:
        """The indexes of all legs that overlap a second of the run; none before the first leg begins."""
        if (second + 1) * NS_PER_S <= self.legs[0].begin_ns:
            return range(0)
        return range(self.at(second * NS_PER_S), self.at((second + 1) * NS_PER_S - 1) + 1)

    def lengths_ns(self, ran_ns: int) -> tuple[int, ...]:
        """How long each leg lasted in a run of this length. Time after the end belongs to the last leg."""
        ends_ns = [*(min(begin_ns, ran_ns) for begin_ns in self.begins_ns[1:]), ran_ns]
        return tuple(max(0, end_ns - begin_ns) for begin_ns, end_ns in zip(self.begins_ns, ends_ns, strict=True))


def timeline(load: Load, start_ns: int = 0) -> Timeline:
    """The timeline of a load that `check_plan` accepts. start_ns: when the load starts, after the common start."""
    legs: list[Leg] = []

    def add(
        name: str, length_ns: int | None, rates_per_s: tuple[float | None, float | None], measured: bool = True
    ) -> None:
        before = legs[-1] if legs else None
        begin_ns = start_ns if before is None else before.end_ns
        assert begin_ns is not None
        due_before = Fraction(0) if before is None else before.due_before + before.due(begin_ns)
        end_ns = None if length_ns is None else begin_ns + length_ns
        from_per_s, to_per_s = (None if rate is None else float(rate) for rate in rates_per_s)
        legs.append(Leg(name, begin_ns, end_ns, from_per_s, to_per_s, due_before, measured))

    first_per_s = load.stages[0].rate_per_s if load.stages else load.rate_per_s
    if load.warmup_s > 0:
        add(WARMUP, load.warmup_s.ns, (first_per_s, first_per_s), measured=False)
    if not load.stages:
        length_ns = load.duration_s.ns if load.duration_s else None
        add(MEASURE, length_ns, (load.rate_per_s, load.rate_per_s))
    ended_per_s: float | None = None
    for number, stage in enumerate(load.stages, 1):
        begins_per_s = (ended_per_s or 0.0) if stage.ramp is Ramp.LINEAR else stage.rate_per_s
        add(stage.name or f"stage {number}", stage.duration_s.ns, (begins_per_s, stage.rate_per_s))
        ended_per_s = stage.rate_per_s
    return Timeline(tuple(legs))


def operations_due(leg: Leg, until_ns: int) -> int:
    """How many operations of the fleet are due in a leg until `until_ns`; the mean if arrivals are random."""
    return ceil(leg.due_before + leg.due(until_ns)) - ceil(leg.due_before)
