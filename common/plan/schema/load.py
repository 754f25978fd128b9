"""How much is issued, and when."""

from __future__ import annotations

import enum

from msgspec import field

from common.plan.schema.base import Name, Section
from common.units import Count, PerSecond, Seconds


class Arrivals(enum.Enum):
    """How intended send times are spaced in an open loop."""

    CONSTANT = "constant"
    POISSON = "poisson"


class Ramp(enum.Enum):
    """How a stage comes from the rate before it to its own: at once, or evenly over its whole length."""

    STEP = "step"
    LINEAR = "linear"


class Stage(Section, frozen=True, kw_only=True):
    """A part of the load with numbers of its own in the report. rate unset: closed loop. A linear ramp begins at the
    rate at which the stage before ended, 0 for the first."""

    name: Name | None = None
    duration_s: Seconds = field(name="duration")
    rate_per_s: PerSecond | None = field(default=None, name="rate")
    ramp: Ramp = Ramp.STEP


class Load(Section, frozen=True, kw_only=True):
    """How much: for `duration`, or exactly `requests` operations; as fast as replies come, or at `rate`; or `stages`,
    one after the other, instead of all these. warmup: before that, at the same load, and not reported."""

    duration_s: Seconds | None = field(default=None, name="duration")
    requests: Count | None = None
    rate_per_s: PerSecond | None = field(default=None, name="rate")
    arrivals: Arrivals = Arrivals.CONSTANT
    warmup_s: Seconds = field(default=Seconds(0), name="warmup")
    stages: tuple[Stage, ...] = ()
