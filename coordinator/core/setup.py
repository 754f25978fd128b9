"""How a run begins: its settings, which agents may take part, and the first record of its journal. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from common.plan.open_files import needed, pools_by_process, shortage_note
from common.plan.plan_text import plan_hash, redacted
from common.plan.schema import Fleet, Plan
from common.protocol.messages import PROTOCOL_MAX, PROTOCOL_MIN, Hello, Pace, PreparationStep
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
        *ceiling_lines(dealt, setup.target),
        *files_lines(setup, dealt, members),
    ]


def fewer_lines(setup: Setup, members: Sequence[Member]) -> list[str]:
    """A line if the run starts with fewer agents than expected."""
    if len(members) >= setup.expected:
        return []
    fleet = setup.plan.fleet
    return [
        f"starting with {len(members)} of {counted(setup.expected, 'agent')} after {fleet.wait_s}, "
        f"as --at-least {fleet.at_least} allows"
    ]


def ceiling_lines(dealt: DealtPlan, target: TargetFacts) -> list[str]:
    """The most connections that the run can open, and a warning if the server allows fewer."""
    lines = [connections_line(group) for group in dealt.plan.pools]
    if target.topology == "cluster":
        lines.append(
            f"that is for each node of the cluster: {dealt.connection_ceiling} x {counted(target.nodes, 'node')} "
            f"({counted(target.primaries, 'primary')}, {counted(target.replicas, 'replica')}) = "
            f"{ceiling_of(dealt, target)}"
        )
    limit = target.max_clients
    if limit is not None and dealt.connection_ceiling > limit:
        pools = [share for assignment in dealt.assignments.values() for share in assignment.pools]
        some = "it may refuse some"
        if needed(dealt.plan, pools).all_at_once > limit:
            some = "some cannot open; raise maxclients on the server, or use fewer connections"
        lines.append(
            f"warning: {dealt.connection_ceiling} is more than the {counted(limit, 'client')} that "
            f"{'a node' if target.topology == 'cluster' else 'the server'} allows (maxclients): {some}"
        )
    return lines


def files_lines(setup: Setup, dealt: DealtPlan, members: Sequence[Member]) -> list[str]:
    """A note for each local agent whose calls may need more connections than its worker processes may open files."""
    lines = []
    for member in (member for member in members if member.host == setup.host):
        pools = dealt.assignments[member.agent_id].pools
        for hand in pools_by_process(pools, member.processes)[:1]:
            if found := shortage_note(dealt.plan, hand, setup.open_files_limit, setup.target.nodes):
                lines.append(f"note: {found}")
    return list(dict.fromkeys(lines))


def ceiling_of(dealt: DealtPlan, target: TargetFacts) -> int:
    """The most TCP connections that the run can open. A cluster's client has a TCP pool for each node."""
    return dealt.connection_ceiling * target.nodes


def opened(setup: Setup, dealt: DealtPlan, members: Sequence[Member]) -> RunOpened:
    """The first record of the run's journal."""
    return RunOpened(
        run_id=setup.run_id,
        started_at=setup.started_at,
        plan=redacted(dealt.plan),
        plan_hash=setup.plan_hash,
        target=setup.target,
        connection_ceiling=ceiling_of(dealt, setup.target),
        agents=tuple(member.facts(dealt.assignments[member.agent_id].pools) for member in members),
        threads_total=dealt.threads_total,
        endpoint=setup.endpoint,
        key_fingerprint=setup.key_fingerprint,
    )
