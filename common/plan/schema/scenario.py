"""Scenarios: several loads at the same time, each with its own target, pools, workload, load and start."""

from __future__ import annotations

from typing import Annotated, ClassVar

from msgspec import Meta, field

from common.plan.schema.base import LOAD, Name, NameOrNone, Section, described
from common.plan.schema.load import Load
from common.plan.schema.pools import Pools
from common.plan.schema.workload import Workload
from common.units import Seconds


class Scenario(Section, frozen=True, kw_only=True):
    """One named load of several. `pools`, `workload` and `load` at the top of the plan are the defaults of all
    scenarios."""

    heading: ClassVar[str] = LOAD

    name: Annotated[Name, described("name in the report")]
    target: Annotated[NameOrNone, described("one of the plan's `targets` by name; without it, the plan's target")] = ""
    start_s: Annotated[
        Seconds, described("when it starts: this long after the run, or after the scenario that `after` names")
    ] = field(default=Seconds(0), name="start")
    after: Annotated[NameOrNone, described("the scenario whose planned end it follows")] = ""
    pools: Annotated[
        tuple[Pools, ...],
        Meta(min_length=1),
        described("its groups of client instance pools, in place of the plan's", repeats_top=True),
    ] = (Pools(),)
    workload: Annotated[Workload, described("what it issues, as in the plan's `workload`", repeats_top=True)] = (
        Workload()
    )
    load: Annotated[Load, described("how much it issues, as in the plan's `load`", repeats_top=True)] = Load()
