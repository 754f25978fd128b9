"""The view of a plan that `coordinator plan` prints: the whole plan, the arithmetic of its connections, each agent's
share, and the settings of its clients.

The view assumes the agents that the plan expects, with one worker process for each agent of another machine: an
agent reports its number of processes only when it joins.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from common.plan.plan_text import plan_hash, plan_yaml, redacted
from common.plan.planned_commands import is_cluster, planned_commands
from common.plan.scenarios import ScenarioPlan, scenario_plans, targets_of
from common.plan.schema import Driver, Load, OnAgentLoss, Plan, Pools
from common.plan.timeline import Leg, operations_due
from common.protocol.messages import PoolShare
from common.serde import to_builtins
from common.units import NS_PER_S, counted, format_count, format_seconds, listed
from coordinator.analysis.key_space import key_space_facts, key_space_lines
from coordinator.core.dealt_plan import AgentCapacity, DealtPlan, assign, connections_line, group_ceiling

_REMOTE_PROCESSES = 1

ClientSettings: TypeAlias = Mapping[str, Mapping[str, str]]
"""The settings of redis-py's clients: name to value, by pool group."""


def expected_agents(plan: Plan, cores: int) -> list[AgentCapacity]:
    """Return the agents that a plan expects, local agents first; one local agent if the plan names none."""
    fleet = plan.fleet
    alone = fleet.local_agents == 0 and fleet.expect_agents == 0
    processes = fleet.processes_per_local_agent or cores
    local = [AgentCapacity(f"local-{number + 1}", processes) for number in range(1 if alone else fleet.local_agents)]
    others = [AgentCapacity(f"agent-{number + 1}", _REMOTE_PROCESSES) for number in range(fleet.expect_agents)]
    return local + others


def plan_as_text(plan: Plan, cores: int, client_settings: ClientSettings) -> str:
    """Return the view as text: a plan file, with everything else in comments."""
    agents = expected_agents(plan, cores)
    dealt = assign(plan, agents)
    scenarios = scenario_plans(dealt.plan)
    lines = ["", f"plan hash: {plan_hash(plan)}", *missing_lines(plan)]
    for scenario in scenarios:
        lines += _scenario_lines(scenario, dealt)
    if sum(len(scenario.plan.pools) for scenario in scenarios) > 1:
        lines.append(f"connections in total: at most {dealt.connection_ceiling}")
    if any(map(is_cluster, targets_of(plan).values())):
        lines.append("Connections are per node of the cluster; only a run knows the number of nodes.")
    lines += [_agent_line(agent, dealt) for agent in agents]
    lines += fleet_lines(plan, len(agents))
    if plan.fleet.expect_agents:
        lines.append(
            f"Remote agents are assumed to have {_REMOTE_PROCESSES} worker process each; "
            "the real shares depend on their real number of worker processes."
        )
    if any(not dealt.pools_of(agent.agent_id) for agent in agents):
        lines.append("There are fewer pools than agents: agents without a pool join, but issue nothing.")
    lines += _settings_lines(client_settings)
    return plan_yaml(plan) + "\n".join(f"# {line}".rstrip() for line in lines)


def _scenario_lines(scenario: ScenarioPlan, dealt: DealtPlan) -> list[str]:
    """When and where a scenario runs, and what with."""
    several = bool(dealt.plan.scenarios)
    prefix = f"{scenario.name}/" if several else ""
    everywhere = [
        share
        for agent_id in dealt.assignments
        for share in dealt.pools_of(agent_id)
        if share.scenario == scenario.number
    ]
    lines = []
    if several:
        where = f"target {scenario.target}" if scenario.target else "the plan's target"
        lines.append(f"scenario {scenario.name}: {where}, {_commands(scenario.plan)}")
    lines += [connections_line(group, prefix) for group in scenario.plan.pools]
    lines += [f"worker {noun}s: {count}" for noun, count in _workers(dealt, tuple(everywhere)).items() if count]
    lines += [_leg_line(leg, scenario.plan.load, prefix) for leg in scenario.timeline.legs]
    return lines + key_space_lines(scenario.plan)


def missing_lines(plan: Plan) -> list[str]:
    """Return a line for each target that a run still needs."""
    names = [name for name, target in targets_of(plan).items() if not target.is_given]
    return [
        f"missing: the url of the target {name}, which a run needs"
        if name
        else "missing: a target; a run needs --url redis://HOST:PORT or --embedded-server"
        for name in names
    ]


def _commands(plan: Plan) -> str:
    """The mix of a plan in a few words."""
    names = list(dict.fromkeys(planned.label for planned in planned_commands(plan.workload)))
    return listed(names, most=6)


def fleet_lines(plan: Plan, agents: int) -> list[str]:
    """Return lines on missing agents: whether the run starts without them, and what it does if agents are lost. agents:
    how many it expects."""
    fleet, lines = plan.fleet, []
    if fleet.at_least is not None and fleet.at_least < agents:
        lines.append(
            f"start: with {counted(agents, 'agent')}, or with at least {fleet.at_least} of them after {fleet.wait_s}"
        )
    tolerated = f"more than {counted(fleet.tolerate_lost, 'agent')}" if fleet.tolerate_lost else "an agent"
    failing = f", and fails if it loses {tolerated}" if fleet.tolerate_lost else ""
    match fleet.on_agent_loss:
        case OnAgentLoss.CONTINUE if fleet.tolerate_lost:
            lines.append(f"lost agents: the run goes on without them{failing}")
        case OnAgentLoss.ABORT:
            lines.append(f"lost agents: the run stops as soon as it loses {tolerated}")
        case OnAgentLoss.REPLACE:
            lines.append(f"lost agents: standby agents take over their shares{failing}")
    return lines


def plan_as_data(plan: Plan, cores: int, client_settings: ClientSettings) -> dict[str, Any]:
    """Return the view as JSON types."""
    agents = expected_agents(plan, cores)
    dealt = assign(plan, agents)
    scenarios = [_scenario_facts(scenario, dealt) for scenario in scenario_plans(dealt.plan)]
    first = {key: value for key, value in scenarios[0].items() if key in ("preparation", "timeline")}
    return {
        "plan": to_builtins(redacted(plan)),
        "plan_hash": plan_hash(plan),
        "missing": missing_lines(plan),
        "connections": {
            "ceiling": dealt.connection_ceiling,
            "per_node": any(map(is_cluster, targets_of(plan).values())),
            "pools": {name: count for each in scenarios for name, count in each["connections"]["pools"].items()},
        },
        "client_settings": client_settings,
        "pools_total": dealt.pools_total,
        "threads_total": dealt.threads_total,
        **(first if not plan.scenarios else {}),
        "scenarios": scenarios,
        "agents": [
            {
                "id": agent.agent_id,
                "processes": agent.processes,
                "pools": [share.number for share in dealt.pools_of(agent.agent_id)],
                "threads": _threads(dealt, dealt.pools_of(agent.agent_id)),
                "connections": _connections(dealt, dealt.pools_of(agent.agent_id)),
            }
            for agent in agents
        ],
    }


def _scenario_facts(scenario: ScenarioPlan, dealt: DealtPlan) -> dict[str, Any]:
    prefix = f"{scenario.name}/" if dealt.plan.scenarios else ""
    return {
        "name": scenario.name,
        "target": scenario.target,
        "start_s": scenario.start_ns / NS_PER_S,
        "connections": {
            "ceiling": dealt.connection_ceilings[scenario.number],
            "pools": {prefix + group.name: group_ceiling(group) for group in scenario.plan.pools},
        },
        "preparation": key_space_facts(scenario.plan),
        "threads_total": dealt.threads[scenario.number],
        "timeline": [_leg_facts(leg) for leg in scenario.timeline.legs],
    }


def _leg_facts(leg: Leg) -> dict[str, Any]:
    return {
        "name": leg.name,
        "begin_s": leg.begin_ns / NS_PER_S,
        "duration_s": None if leg.end_ns is None else (leg.end_ns - leg.begin_ns) / NS_PER_S,
        "from_rate_per_s": leg.from_per_s,
        "target_rate_per_s": leg.to_per_s,
        "operations": operations_due(leg, leg.end_ns) if leg.is_open and leg.end_ns is not None else None,
        "measured": leg.measured,
    }


def _leg_line(leg: Leg, load: Load, scenario: str = "") -> str:
    """A leg's begin, length, rate and number of operations. scenario: "name/" of several."""
    length = " until stopped" if load.runs_until_stopped else f" for {counted(load.requests or 0, 'request')}"
    if leg.end_ns is not None:
        length = f" for {format_seconds((leg.end_ns - leg.begin_ns) / NS_PER_S)}"
    rate = "closed loop"
    if leg.from_per_s is not None and leg.to_per_s is not None:
        rate = f"from {format_count(leg.from_per_s)}/s to " if leg.is_ramp else "at "
        rate += f"{format_count(leg.to_per_s)}/s"
        if leg.end_ns is not None:
            rate += f", {counted(operations_due(leg, leg.end_ns), 'operation')}"
    reported = "" if leg.measured else ", not reported"
    return f"{scenario}{leg.name}: at {format_seconds(leg.begin_ns / NS_PER_S)}{length}, {rate}{reported}"


def _settings_lines(groups: ClientSettings) -> list[str]:
    # Most groups have equal settings, which are printed once.
    alike: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for name, group in groups.items():
        alike.setdefault(tuple(group.items()), []).append(name)
    lines = []
    for settings, names in alike.items():
        lines += ["", f"client settings in force ({', '.join(names)}):"]
        lines += [f"  {name}: {value}" for name, value in settings]
    return lines


def _agent_line(agent: AgentCapacity, dealt: DealtPlan) -> str:
    pools = dealt.pools_of(agent.agent_id)
    workers = " and ".join(counted(count, noun) for noun, count in _workers(dealt, pools).items())
    return (
        f"share of {agent.agent_id} ({counted(agent.processes, 'process')}): {counted(len(pools), 'pool')}, "
        f"{workers}, at most {counted(_connections(dealt, pools), 'connection')}"
    )


_NOUNS = {Driver.CLIENT: "thread", Driver.ASYNCIO: "task", Driver.WIRE: "loop"}


def _workers(dealt: DealtPlan, pools: tuple[PoolShare, ...]) -> dict[str, int]:
    """How many workers of these pools are threads, tasks and loops; only kinds that the plan has."""
    groups = _groups(dealt)
    counts = {_NOUNS[group.driver]: 0 for group in groups.values()}
    for share in pools:
        group = groups[share.scenario, share.group]
        counts[_NOUNS[group.driver]] += group.workers_per_pool
    return counts


def _threads(dealt: DealtPlan, pools: tuple[PoolShare, ...]) -> int:
    return sum(_workers(dealt, pools).values())


def _connections(dealt: DealtPlan, pools: tuple[PoolShare, ...]) -> int:
    groups = _groups(dealt)
    each = (groups[share.scenario, share.group] for share in pools)
    return sum(group.client_instances_per_pool * group.max_connections for group in each)


def _groups(dealt: DealtPlan) -> dict[tuple[int, int], Pools]:
    """All pool groups, by scenario and position."""
    return {
        (scenario.number, at): group
        for scenario in scenario_plans(dealt.plan)
        for at, group in enumerate(scenario.plan.pools)
    }
