"""Each scenario of a plan as a plan of its own.

Most of the program runs, checks and reports one load: a plan without scenarios. `scenario_plans` gives such a plan for
each scenario, with the scenario's place in the whole: when it starts, and where its legs are among the legs of all
scenarios, by which frames and journals number them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from common.errors import PlanError
from common.plan.planned_commands import subscribes
from common.plan.schema import CleanUp, Load, Plan, Pools, Scenario, Target, Workload
from common.plan.timeline import Leg, Timeline, timeline
from common.units import NS_PER_S, PerSecond, Seconds

MAIN = "main"
"""The name of the one scenario of a plan without `scenarios`."""
PROBE = "probe"
MAX_SCENARIOS = 16
"""Every agent runs at least one worker process for each scenario."""
MAX_START_NS = 366 * 24 * 3600 * NS_PER_S
"""Latest start of a scenario."""


@dataclass(frozen=True, slots=True)
class ScenarioPlan:
    """One scenario. number: 0-based in the plan. plan: without scenarios. target: the name of its target, "" for the
    plan's own. line: its timeline; times count from the common start. first_leg: the number of its first leg among the
    legs of all scenarios."""

    number: int
    name: str
    plan: Plan
    target: str
    timeline: Timeline
    first_leg: int

    @property
    def start_ns(self) -> int:
        """When it starts, after the common start."""
        return self.timeline.legs[0].begin_ns

    @property
    def legs(self) -> range:
        """The numbers of its legs among the legs of all scenarios."""
        return range(self.first_leg, self.first_leg + len(self.timeline.legs))


def scenario_plans(plan: Plan) -> tuple[ScenarioPlan, ...]:
    """All scenarios, in the order of the plan; one named "main" for a plan without `scenarios`."""
    if not plan.scenarios:
        return (ScenarioPlan(0, MAIN, plan, "", timeline(plan.load), 0),)
    starts_ns = start_times_ns(plan.scenarios)
    found: list[ScenarioPlan] = []
    for number, scenario in enumerate(plan.scenarios):
        line = timeline(scenario.load, starts_ns[scenario.name])
        first_leg = found[-1].legs.stop if found else 0
        alone = scenario_plan(plan, number)
        found.append(ScenarioPlan(number, scenario.name, alone, scenario.target, line, first_leg))
    return tuple(found)


def scenario_plan(plan: Plan, number: int) -> Plan:
    """One scenario of a plan with `scenarios`, as a plan without."""
    scenario = plan.scenarios[number]
    return msgspec.structs.replace(
        plan,
        target=plan.targets[scenario.target] if scenario.target else plan.target,
        pools=scenario.pools,
        workload=scenario.workload,
        load=scenario.load,
        targets={},
        scenarios=(),
        probe_per_s=None,
        visibility=None,
        seed=_seed(plan.seed, number, scenario.name),
    )


def start_times_ns(scenarios: Sequence[Scenario]) -> dict[str, int]:
    """When each scenario starts, after the common start. A scenario may only follow one that stands before it and has
    an end in time; `check_scenarios` refuses others."""
    ends_ns: dict[str, int | None] = {}
    starts_ns: dict[str, int] = {}
    for scenario in scenarios:
        start_ns = scenario.start_s.ns + (ends_ns.get(scenario.after, 0) or 0)
        starts_ns[scenario.name] = start_ns
        ends_ns[scenario.name] = timeline(scenario.load, start_ns).end_ns
    return starts_ns


def with_scenarios(plan: Plan, parts: Sequence[tuple[Scenario, Plan]]) -> Plan:
    """The plan whose scenarios are these plans. The sections that they fill in are the schema's defaults at the top."""
    scenarios = tuple(
        msgspec.structs.replace(scenario, pools=part.pools, workload=part.workload, load=part.load)
        for scenario, part in parts
    )
    targets = {scenario.target: part.target for scenario, part in parts if scenario.target}
    own = next((part.target for scenario, part in parts if not scenario.target), Target())
    return msgspec.structs.replace(
        plan,
        target=own,
        pools=(Pools(),),
        workload=Workload(),
        load=Load(),
        targets=targets,
        scenarios=scenarios,
    )


def all_legs(plan: Plan) -> tuple[Leg, ...]:
    """The legs of all scenarios, in the order in which frames and journals number them."""
    return tuple(leg for scenario in scenario_plans(plan) for leg in scenario.timeline.legs)


def with_probe(plan: Plan) -> Plan:
    """The plan with a scenario `probe` for its `probe` rate, or one for each target: `probe-NAME`. It issues the
    commands of the first scenario with this target one by one, for as long as that one lasts; scenarios that a probe
    cannot go with are passed over. Raises PlanError, without a place, if that cannot be."""
    if plan.probe_per_s is None:
        return plan
    own = Scenario(name=MAIN, pools=plan.pools, workload=plan.workload, load=plan.load)
    scenarios = plan.scenarios or (own,)
    by_target: dict[str, list[Scenario]] = {}
    for scenario in scenarios:
        if scenario.workload.stamps is None:
            by_target.setdefault(scenario.target, []).append(scenario)
    if not by_target:
        raise PlanError("expected a scenario that issues commands beside the probe, got none")
    probes = tuple(
        _probe(_beside(candidates), PROBE if len(by_target) == 1 else f"{PROBE}-{target or MAIN}", plan.probe_per_s)
        for target, candidates in by_target.items()
    )
    if (count := len(scenarios) + len(probes)) > MAX_SCENARIOS:
        raise PlanError(f"expected at most {MAX_SCENARIOS} scenarios, got {count} with the probe")
    names = [scenario.name for scenario in (*scenarios, *probes)]
    if len(set(names)) < len(names):
        raise PlanError(f"expected no scenario named {probes[0].name}, because the probe has this name")
    parts = [
        (each, scenario_plan(msgspec.structs.replace(plan, scenarios=(each,)), 0)) for each in (*scenarios, *probes)
    ]
    return msgspec.structs.replace(with_scenarios(plan, parts), probe_per_s=None)


def _beside(candidates: Sequence[Scenario]) -> Scenario:
    """The first of these scenarios that a probe can go with."""
    problems = [_probe_problem(scenario) for scenario in candidates]
    if "" not in problems:
        raise PlanError(problems[0])
    return candidates[problems.index("")]


def _probe_problem(scenario: Scenario) -> str:
    load = scenario.load
    if timeline(load).end_ns is None and not load.runs_until_stopped:
        return f"expected a load with a duration or stages beside the probe, got {load.requests} requests"
    if subscribes(scenario.workload):
        return "expected a load without subscribers beside the probe, which would take part in their channels"
    return ""


def _probe(beside: Scenario, name: str, rate_per_s: PerSecond) -> Scenario:
    line = timeline(beside.load)
    workload = msgspec.structs.replace(
        beside.workload,
        pipeline=1,
        transaction=0,
        setup=(),
        preload=(),
        flush_before=False,
        clean_up=CleanUp.NONE,
    )
    measured_s = Seconds(0 if line.end_ns is None else (line.end_ns - beside.load.warmup_s.ns) / NS_PER_S)
    return Scenario(
        name=name,
        target=beside.target,
        start_s=beside.start_s,
        after=beside.after,
        pools=(Pools(name=PROBE, client_pools=1, max_connections=1),),
        workload=workload,
        load=Load(duration_s=measured_s, warmup_s=beside.load.warmup_s, rate_per_s=rate_per_s),
    )


def load_end_ns(plan: Plan) -> int | None:
    """When the load of all scenarios ends, after the common start; None if the end of one is not planned in time."""
    ends_ns = [scenario.timeline.end_ns for scenario in scenario_plans(plan)]
    known_ns = [each for each in ends_ns if each is not None]
    return max(known_ns) if len(known_ns) == len(ends_ns) else None


def preloads(plan: Plan) -> bool:
    """Whether any scenario writes keys before the start."""
    return any(scenario.plan.workload.preload for scenario in scenario_plans(plan))


def cleans_up(plan: Plan) -> bool:
    """Whether keys of any scenario are deleted after the load."""
    return any(scenario.plan.workload.clean_up is not CleanUp.NONE for scenario in scenario_plans(plan))


def targets_of(plan: Plan) -> dict[str, Target]:
    """The targets that scenarios use, by name: "" for the plan's own."""
    if not plan.scenarios:
        return {"": plan.target}
    return {each.target: plan.targets[each.target] if each.target else plan.target for each in plan.scenarios}


def scenario_subject(plan: Plan, scenario: ScenarioPlan) -> str:
    """How errors name a scenario; "" in a plan without `scenarios`."""
    return f"scenario {scenario.name}" if plan.scenarios else ""


def target_subject(name: str) -> str:
    """How errors name a target of `targets`; "" for the plan's own."""
    return f"targets.{name}" if name else ""


def map_targets(plan: Plan, change: Callable[[str, Target], Target]) -> Plan:
    """The plan with each of its targets changed. change: from (name, target); the name is "" for the plan's own."""
    targets = {name: change(name, target) for name, target in plan.targets.items()}
    return msgspec.structs.replace(plan, target=change("", plan.target), targets=targets)


def _seed(seed: int, number: int, name: str) -> int:
    # The first scenario draws what the same plan without scenarios draws; others are independent of it.
    if number == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7])
