"""How much load, and when."""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar

from msgspec import field

from common.plan.schema.base import LOAD, Name, Option, Section, described, setting
from common.plan.schema.short_forms import stage
from common.units import Count, PerSecond, Seconds

DEFAULT_DURATION = Seconds(10)
"""Length of a load without a duration, requests and stages."""


class Arrivals(enum.Enum):
    """How intended send times are spaced in an open loop."""

    CONSTANT = "constant"
    POISSON = "poisson"


class Ramp(enum.Enum):
    """How a stage reaches its rate from the rate before it: at once, or evenly over the stage."""

    STEP = "step"
    LINEAR = "linear"


class Stage(Section, frozen=True, kw_only=True):
    """A part of the load with its own figures in the report. A linear ramp begins at the final rate of the previous
    stage, 0 for the first stage."""

    name: Annotated[Name | None, described("name in the report; its number without one")] = None
    duration_s: Annotated[Seconds, described("how long")] = field(name="duration")
    rate_per_s: Annotated[PerSecond | None, described("rate of an open loop; closed loop without it")] = field(
        default=None, name="rate"
    )
    ramp: Annotated[Ramp, described("whether the rate applies at once or is approached evenly over the stage")] = (
        Ramp.STEP
    )


class Load(Section, frozen=True, kw_only=True):
    """How much load: for `duration`, or exactly `requests` operations; in a closed loop, or at `rate`. `stages`, one
    after the other, replace all of these. A plan with none of these gets the default duration when it is loaded."""

    heading: ClassVar[str] = LOAD

    duration_s: Annotated[
        Seconds | None,
        setting(
            "--duration",
            "--test-time",
            help="how long, such as 30s or 2m; 0: until stopped by Ctrl-C",
            default=f"{DEFAULT_DURATION}, without --requests and --stage",
        ),
    ] = field(default=None, name="duration")
    requests: Annotated[Count | None, setting("--requests", "-n", help="how many operations, fleet-wide and exact")] = (
        None
    )
    rate_per_s: Annotated[
        PerSecond | None,
        setting("--rate", help="open loop at this rate of the whole fleet, such as 50k/s; closed loop without it"),
    ] = field(default=None, name="rate")
    arrivals: Annotated[Arrivals, setting("--arrivals", help="spacing of an open loop's intended send times")] = (
        Arrivals.CONSTANT
    )
    warmup_s: Annotated[
        Seconds, setting("--warmup", help="the same load for this long before the measurement, not reported")
    ] = field(default=Seconds(0), name="warmup")
    stages: Annotated[
        tuple[Stage, ...],
        described(
            "the stages of the load, in order",
            Option(
                flag="--stage",
                metavar="[NAME=]TIME[@RATE[:linear]]",
                repeatable=True,
                parse=stage,
                help='a stage of the load, such as "30s@10k/s" or "1m@50k/s:linear"; may be repeated',
            ),
        ),
    ] = ()

    @property
    def runs_until_stopped(self) -> bool:
        """Whether only the user ends the load."""
        return self.duration_s is not None and not self.duration_s
