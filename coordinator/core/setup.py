"""How a run begins: its settings, which agents may take part, and the first record of its journal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from common.plan.open_files import needed, shortage_note
from common.plan.plan_text import plan_hash, redacted
from common.plan.scenarios import ScenarioPlan, scenario_plans
from common.plan.schema import Fleet, Plan
from common.protocol.assignments import processes_of
from common.protocol.messages import PROTOCOL_MAX, PROTOCOL_MIN, Hello, Pace, PoolShare, PreparationStep
from common.units import NS_PER_S, counted, listed
from coordinator.core.actions import Progress
from coordinator.core.dealt_plan import DealtPlan, connections_line
from coordinator.core.member import Member
from coordinator.journal.records import RunOpened, TargetFacts

SLOWEST_FRAME_S = 4
"""Most seconds in a frame: a killed agent loses them, and the live view is late by the same time."""
SLOW_HEARTBEAT_LEASE_NS = 10 * NS_PER_S
"""With a shorter lease, heartbeats come each second even in a large fleet."""


@dataclass(frozen=True)
class Setup:
    """What a run starts with. plan: with secrets, which never reach a record. expected: agents to wait for.
    join: what to run on load machines. host: this machine. open_files_limit: of a worker process on it, None for no
    limit. key_fingerprint: of the CURVE keys; "" with --insecure.
    target: of a plan with one target; targets: the named targets of scenarios.
    agents_each_second: how many agents may report each second; in a larger fleet, frames have more seconds. local_pids:
    of agents that end with this coordinator."""

    plan: Plan
    run_id: str
    started_at: str
    target: TargetFacts
    expected: int
    endpoint: str
    join: str
    host: str = ""
    open_files_limit: int | None = None
    key_fingerprint: str = ""
    targets: dict[str, TargetFacts] = field(default_factory=dict)
    agents_each_second: int = 250
    local_pids: frozenset[int] = frozenset()

    @cached_property
    def plan_hash(self) -> str:
        """Of the plan as given."""
        return plan_hash(self.plan)

    @cached_property
    def pace(self) -> Pace:
        """How often agents report: less often in a large fleet, because each message takes CPU time."""
        frame_s = min(SLOWEST_FRAME_S, -(-self.expected // self.agents_each_second))
        slow = frame_s > 1 and self.plan.fleet.lease_s.ns >= SLOW_HEARTBEAT_LEASE_NS
        return Pace(frame_s=max(1, frame_s), heartbeat_s=2 if slow else 1)


MOST_PROCESSES = 4096
"""More worker processes than any machine can use. Pools are dealt by processes, so an agent must not claim more."""


def negotiated(hello: Hello) -> int | None:
    """The highest protocol version that both sides speak, or None."""
    protocol = min(hello.protocol_max, PROTOCOL_MAX)
    return protocol if protocol >= max(hello.protocol_min, PROTOCOL_MIN) else None


def refusal(hello: Hello) -> str | None:
    """Why an agent is refused, with a remedy; None for one that is welcome."""
    if negotiated(hello) is None:
        return (
            f"it speaks protocol {hello.protocol_min} to {hello.protocol_max} (version {hello.version[:64]}), "
            f"this coordinator {PROTOCOL_MIN} to {PROTOCOL_MAX}; install the same release on both"
        )
    if hello.processes > MOST_PROCESSES:
        found = counted(hello.processes, "worker process")
        return f"it has {found}; expected at most {MOST_PROCESSES:,}, see agent join --processes"
    return None


def is_quorum(fleet: Fleet, expected: int, ready: int, waited_ns: int) -> bool:
    """Whether a run starts with this many agents: all that it expects, or `--at-least` of them after `--wait`."""
    return ready >= expected or (waited_ns > fleet.wait_s.ns and ready >= (fleet.at_least or expected))


def agents_missing(setup: Setup, ready: Sequence[Member], joined: Sequence[Member]) -> str:
    """Why a run that has waited long enough does not begin, with a remedy."""
    names = listed([member.agent_id for member in ready]) or "none"
    fit = {member.agent_id for member in ready}
    others = listed([member.agent_id for member in joined if member.agent_id not in fit])
    unfit = f"{others} cannot take part: silent, or at work for another run; " if others else ""
    at_least = f", or at least {setup.plan.fleet.at_least}," if setup.plan.fleet.at_least else ""
    return (
        f"expected {counted(setup.expected, 'agent')}{at_least} within {setup.plan.fleet.wait_s}, "
        f"got {len(ready)} ({names}); "
        f"{unfit}start them with `{setup.join}`, or wait longer with --wait"
    )


def preparing(members: Sequence[Member]) -> Progress:
    """Progress of the first step that some agent has not completed; without steps, the number of prepared agents."""
    prepared = sum(member.is_ready for member in members)
    shown = Progress("preparing agents (their worker processes start)", prepared, len(members))
    for step in PreparationStep:
        reports = [member.steps[step] for member in members if step in member.steps]
        if total := sum(report.total for report in reports):
            shown = Progress(step.value, sum(report.done for report in reports), total)
            if shown.done < total:
                break
    return shown


def dealt_lines(setup: Setup, dealt: DealtPlan, members: Sequence[Member]) -> list[str]:
    """Lines for the user when the plan is dealt to these agents."""
    return [
        *fewer_lines(setup, members),
        *endless_lines(setup.plan),
        *ceiling_lines(setup, dealt),
        *files_lines(setup, dealt, members),
    ]


def endless_lines(plan: Plan) -> list[str]:
    """A line if only the user ends the load."""
    endless = [each.name for each in scenario_plans(plan) if each.plan.load.runs_until_stopped]
    if not endless:
        return []
    subject, until = "the load runs", "it is stopped: Ctrl-C drains it"
    if len(endless) > 1:
        subject, until = f"the scenarios {listed(endless)} run", "they are stopped: Ctrl-C drains them"
    elif plan.scenarios:
        subject = f"the scenario {endless[0]} runs"
    return [f"{subject} until {until} and prints the report"]


def fewer_lines(setup: Setup, members: Sequence[Member]) -> list[str]:
    """A line if the run starts with fewer agents than expected."""
    if len(members) >= setup.expected:
        return []
    fleet = setup.plan.fleet
    return [
        f"starting with {len(members)} of {counted(setup.expected, 'agent')} after {fleet.wait_s}, "
        f"as --at-least {fleet.at_least} allows"
    ]


def ceiling_lines(setup: Setup, dealt: DealtPlan) -> list[str]:
    """The arithmetic of connections, shown before every run, and a warning where a server allows fewer."""
    lines = []
    by_target: dict[str, list[ScenarioPlan]] = {}
    for scenario in scenario_plans(dealt.plan):
        of = f"{scenario.name}/" if dealt.plan.scenarios else ""
        lines += [connections_line(group, of) for group in scenario.plan.pools]
        by_target.setdefault(scenario.target, []).append(scenario)
    for name, scenarios in by_target.items():
        lines += _target_lines(dealt, scenarios, setup.targets.get(name, setup.target), name)
    return lines


def _target_lines(dealt: DealtPlan, scenarios: Sequence[ScenarioPlan], target: TargetFacts, name: str) -> list[str]:
    """The connections of all scenarios with this target together."""
    lines = []
    ceiling = sum(dealt.connection_ceilings[scenario.number] for scenario in scenarios)
    where = f"target {name}: " if name else ""
    if target.topology == "cluster":
        lines.append(
            f"{where}that is for each node of the cluster: {ceiling} x {counted(target.nodes, 'node')} "
            f"({counted(target.primaries, 'primary')}, {counted(target.replicas, 'replica')}) = "
            f"{ceiling * target.nodes}"
        )
    elif target.replica_pools:
        lines.append(
            f"{where}that is for the primary and for each TCP pool of replicas: {ceiling} x {target.nodes} = "
            f"{ceiling * target.nodes}"
        )
    limit = target.max_clients
    if limit is not None and ceiling > limit:
        some = "it may refuse some"
        if sum(needed(each.plan, _all_pools(dealt, each)).all_at_once for each in scenarios) > limit:
            some = "some cannot open; raise maxclients on the server, or use fewer connections"
        lines.append(
            f"warning: {where}{ceiling} is more than the {counted(limit, 'client')} that "
            f"{'a node' if target.topology == 'cluster' else 'the server'} allows (maxclients): {some}"
        )
    return lines


def files_lines(setup: Setup, dealt: DealtPlan, members: Sequence[Member]) -> list[str]:
    """A note for each local agent whose calls may need more connections than its worker processes may open files."""
    lines = []
    for member in (member for member in members if member.host == setup.host):
        assignments = dealt.assignments[member.agent_id]
        targets = {scenario.name: scenario.target for scenario in scenario_plans(dealt.plan)}
        for hand in processes_of(assignments, member.processes):
            nodes = setup.targets.get(targets[hand.scenario], setup.target).nodes
            if found := shortage_note(hand.plan, hand.pools, setup.open_files_limit, nodes):
                lines.append(f"note: {found}")
    return list(dict.fromkeys(lines))


def _all_pools(dealt: DealtPlan, scenario: ScenarioPlan) -> list[PoolShare]:
    """The pools of a scenario on all agents."""
    return [
        share
        for agent_id in dealt.assignments
        for share in dealt.pools_of(agent_id)
        if share.scenario == scenario.number
    ]


def ceilings_of(setup: Setup, dealt: DealtPlan) -> tuple[int, ...]:
    """The most TCP connections that each scenario can open. A cluster's client has a TCP pool for each node."""
    scenarios = scenario_plans(dealt.plan)
    facts = (setup.targets.get(scenario.target, setup.target) for scenario in scenarios)
    return tuple(ceiling * each.nodes for ceiling, each in zip(dealt.connection_ceilings, facts, strict=True))


def opened(setup: Setup, dealt: DealtPlan, members: Sequence[Member]) -> RunOpened:
    """The first record of the run's journal."""
    ceilings, several = ceilings_of(setup, dealt), bool(dealt.plan.scenarios)
    return RunOpened(
        run_id=setup.run_id,
        started_at=setup.started_at,
        plan=redacted(dealt.plan),
        plan_hash=setup.plan_hash,
        target=setup.target,
        connection_ceiling=sum(ceilings),
        agents=tuple(member.facts(dealt.pools_of(member.agent_id)) for member in members),
        threads_total=dealt.threads_total,
        targets=setup.targets,
        threads=dealt.threads if several else (),
        connection_ceilings=ceilings if several else (),
        endpoint=setup.endpoint,
        key_fingerprint=setup.key_fingerprint,
    )
