"""Visibility: how long a write takes until another server shows it."""

from __future__ import annotations

import enum
from typing import Annotated, ClassVar

from msgspec import field

from common.plan.schema.base import LOAD, Name, NameOrNone, Section, described
from common.units import PerSecond, Seconds


class StampRole(enum.Enum):
    """What a scenario does with stamps: SET writes them, GET looks for them."""

    WRITE = "write"
    READ = "read"


class Stamps(Section, frozen=True, kw_only=True):
    """Values that contain the time of their writing. `visibility` makes the two scenarios that have this section; one
    agent runs both."""

    role: Annotated[StampRole, described("whether the scenario writes stamps or looks for them")]
    rate_per_s: Annotated[PerSecond, described("how many stamps are written")] = field(name="rate")
    timeout_s: Annotated[Seconds, described("how long to look for a stamp")] = field(name="timeout")


class Visibility(Section, frozen=True, kw_only=True):
    """Writes stamped values on one target, and looks for each on another one until it is there: the lag of replication,
    seen by clients. Adds the scenarios `visibility-write` and `visibility-read`."""

    heading: ClassVar[str] = LOAD

    write: Annotated[NameOrNone, described("target to write on, by its name in `targets`; without it, the plan's")] = ""
    read: Annotated[Name, described("target to read from, by its name in `targets`")]
    rate_per_s: Annotated[PerSecond, described("how many values are written")] = field(
        default=PerSecond(20), name="rate"
    )
    poll_s: Annotated[Seconds, described("time between two reads, which limits the resolution")] = field(
        default=Seconds(0.001), name="poll"
    )
    timeout_s: Annotated[Seconds, described("how long to look for a value before it counts as unseen")] = field(
        default=Seconds(5), name="timeout"
    )
