"""Records of a made-up run with several scenarios."""

from __future__ import annotations

import msgspec

from common.metrics.intervals import CommandMetrics
from common.plan.schema import Load, Plan, Scenario, Target
from common.protocol.messages import PoolShare, ScenarioFinal
from common.units import PerSecond, Seconds
from coordinator.journal.records import AnyRecord, Reading, RunOpened, RunStarted
from tests.support import records
from tests.support.records import accepted, command, histogram, interval, noted, reading


def done(count: int) -> CommandMetrics:
    return command(histogram(*[1000] * count))


def load(duration_s: float, rate_per_s: float | None = None) -> Load:
    return Load(duration_s=Seconds(duration_s), rate_per_s=None if rate_per_s is None else PerSecond(rate_per_s))


def plan_of(*scenarios: Scenario, targets: dict[str, Target] | None = None) -> Plan:
    alone = records.plan()
    return msgspec.structs.replace(alone, scenarios=scenarios, targets=targets or {})


def scenario(name: str, the_load: Load, **fields: object) -> Scenario:
    alone = records.plan()
    return Scenario(name=name, load=the_load, pools=alone.pools, workload=alone.workload, **fields)  # type: ignore[arg-type]


def opened(plan: Plan, **fields: object) -> RunOpened:
    several = len(plan.scenarios)
    first = records.opened(plan, ["a1"])
    pools = tuple(PoolShare(group=0, number=at, first_thread=0, scenario=at) for at in range(several))
    agents = tuple(msgspec.structs.replace(agent, pools=pools) for agent in first.agents)
    given = {"threads": (1,) * several, "connection_ceilings": (50,) * several, "threads_total": several}
    return msgspec.structs.replace(first, agents=agents, **(given | fields))


def two() -> list[AnyRecord]:
    """Two seconds: "reads" at 5/s from the start, "writes" in the second second."""
    plan = plan_of(scenario("reads", load(2, 5)), scenario("writes", load(1), start_s=Seconds(1)))
    finals = (
        ScenarioFinal(scenario=0, issued=10, counted=10, ran_ns=2 * 10**9, drained=True),
        ScenarioFinal(scenario=1, issued=7, counted=7, ran_ns=2 * 10**9, drained=True),
    )
    return [
        opened(plan),
        reading(Reading.BEFORE, {}),
        RunStarted(t0_ns=123),
        accepted("a1", 0, interval(0, {"GET": done(5)})),
        accepted("a1", 1, interval(1, {"GET": done(5)}), interval(1, {"SET": done(7)}, stage=1)),
        noted("a1", 17, scenarios=finals),
        reading(Reading.AFTER, {"get": 10, "set": 7}),
        records.closed(duration_s=2.0),
    ]
