"""Rules for the scenarios of a plan together. The rules of one scenario are those of any plan."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from common.errors import PlanError
from common.plan.key_path import DescribeSource, KeyPath
from common.plan.scenarios import MAX_SCENARIOS, MAX_START_NS, start_times_ns
from common.plan.schema import Load, Scenario
from common.plan.timeline import timeline
from common.units import NS_PER_S, format_seconds, listed, show


def check_scenarios(
    scenarios: Sequence[Scenario], targets: Sequence[str], where: DescribeSource, used: Sequence[str] = ()
) -> None:
    """Raises PlanError for the first fault, with its place. targets: the names that the plan has. used: those that
    something else than a scenario names. Does not look at `load`, which may still lack its defaults."""
    for path, problem in (*_list_faults(scenarios), *_target_faults(scenarios, targets, used)):
        raise PlanError(f"{where(path)}: {problem}")


def added_problem(names: Sequence[str]) -> str:
    """Why a plan cannot have the scenarios that a key adds; "" if it can. names: of all scenarios."""
    twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
    if twice is not None:
        return f"expected no scenario named {twice}, because this adds one"
    if len(names) > MAX_SCENARIOS:
        return f"expected at most {MAX_SCENARIOS} scenarios together with those that this adds, got {len(names)}"
    return ""


def check_order(scenarios: Sequence[Scenario], where: DescribeSource) -> None:
    """Raises PlanError if a scenario cannot follow another one. Their loads are complete."""
    known: dict[str, Load] = {}
    for number, scenario in enumerate(scenarios):
        if scenario.after and (problem := _order_problem(scenario.after, known)):
            raise PlanError(f"{where(('scenarios', number, 'after'))}: {problem}")
        known[scenario.name] = scenario.load
    for number, (name, start_ns) in enumerate(start_times_ns(scenarios).items()):
        if start_ns > MAX_START_NS:
            wanted, found = format_seconds(MAX_START_NS / NS_PER_S), format_seconds(start_ns / NS_PER_S)
            place = where(("scenarios", number, "start"))
            raise PlanError(f"{place}: expected a start within {wanted}, got {name} after {found}")


def _list_faults(scenarios: Sequence[Scenario]) -> Iterator[tuple[KeyPath, str]]:
    if len(scenarios) > MAX_SCENARIOS:
        yield ("scenarios",), f"expected at most {MAX_SCENARIOS} scenarios, got {len(scenarios)}"
    names: set[str] = set()
    for number, scenario in enumerate(scenarios):
        if scenario.name in names:
            path = ("scenarios", number, "name")
            yield path, f"expected a unique name, got {show(scenario.name)} a second time"
        names.add(scenario.name)


def _target_faults(
    scenarios: Sequence[Scenario], targets: Sequence[str], used_elsewhere: Sequence[str]
) -> Iterator[tuple[KeyPath, str]]:
    for number, scenario in enumerate(scenarios):
        if scenario.target and scenario.target not in targets:
            wanted = f"one of {listed(list(targets))}" if targets else "a target under $.targets, which has none"
            yield ("scenarios", number, "target"), f"expected {wanted}, got {show(scenario.target)}"
    used = {scenario.target for scenario in scenarios}.union(used_elsewhere)
    for name in targets:
        if name not in used:
            yield ("targets", name), "expected a scenario that names this target, got none"


def _order_problem(after: str, known: dict[str, Load]) -> str:
    if after not in known:
        others = f"one of {listed(list(known))}, which stand before it" if known else "none for the first scenario"
        return f"expected {others}, got {show(after)}"
    if timeline(known[after]).end_ns is None:
        end = "runs until it is stopped" if known[after].runs_until_stopped else "ends with its requests"
        return f"expected a scenario with a duration or stages, got {show(after)}, which {end}"
    return ""
