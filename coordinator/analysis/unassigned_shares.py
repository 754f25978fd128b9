"""Shares of the load while no agent had them: since when, until when, and how many operations were due. Pure.

An agent carries its share until it is lost or ends early; another one may take the share over some time later
(`ShareTakenOver`), or nobody does until the planned end, or until the coordinator decides to stop the load. What was
due in the share until then, less what the lost agent reported, was never sent, or was sent and never reported: nobody
can tell these two apart. With a number of requests nothing is due at a time, and what is left of the share goes to the
next agent: here counts only what is left in the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from common.plan.schema import Arrivals, Plan
from common.plan.timeline import Leg
from common.protocol.messages import PoolLeft, PoolShare
from common.units import NS_PER_S, counted
from coordinator.analysis.aggregate import Aggregate
from coordinator.analysis.tallies import AgentTally
from coordinator.core.records import AgentEnd

_NAMED = 3
"""How many shares a sentence names: a fleet may have hundreds."""


@dataclass(frozen=True, slots=True)
class Uncarried:
    """A share without an agent. agent_id: who had it last. from_s, until_s: since the agent's last report, until
    another one took the share over, or the load ended or was to end. successor: who took it over, "" for nobody.
    operations: those due and not reported, by leg. due: those that the schedule has in that time, by leg; with a number
    of requests they come late, but are not missing. outlasts: the load was to go on after the last agent had ended."""

    agent_id: str
    from_s: float
    until_s: float
    successor: str
    operations: Counter[int]
    due: Counter[int]
    outlasts: bool = False

    @property
    def sentence(self) -> str:
        """Whose share it was, and when, as a clause."""
        begin, end = f"{self.from_s:.1f} s", f"{self.until_s:.1f} s"
        if begin == end and not self.successor:
            return f"no agent carried the share of {self.agent_id} from {begin} on"
        end_of_load = "the planned end of the load" if self.outlasts else "the end of the load"
        why = f"when {self.successor} took it over" if self.successor else end_of_load
        return f"no agent carried the share of {self.agent_id} from {begin} to {end} ({why})"


def threads_of(plan: Plan, pools: Sequence[PoolShare]) -> list[int]:
    """Numbers of the worker threads of these pools, among those of the fleet."""
    return [
        thread
        for share in pools
        for thread in range(share.first_thread, share.first_thread + plan.pools[share.group].workers_per_pool)
    ]


def quota_of_thread(requests: int, thread: int, threads: int) -> int:
    """Requests that fall to a worker thread: all get the same number, and the first ones get one of the rest each."""
    return requests // threads + (thread < requests % threads)


def holders(run: Aggregate, agent_id: str) -> list[AgentTally]:
    """All agents that have had a share up to this one, which has or had it last; the first one first."""
    before = {record.agent.agent_id: record.replaces for record in run.takeovers}
    found = [run.agents[agent_id]]
    while (agent_id := before.get(agent_id, "")) in run.agents:
        found.insert(0, run.agents[agent_id])
    return found


def requests_left(run: Aggregate, agent_id: str) -> tuple[PoolLeft, ...] | None:
    """How many requests each pool of a share has left, less all that was reported of it; None where the plan sets no
    number. Reports are by pool group: what is left of a group falls to its pools evenly."""
    if run.opened is None or run.opened.plan.load.requests is None:
        return None
    plan, requests, total = run.opened.plan, run.opened.plan.load.requests, run.opened.threads_total
    had = holders(run, agent_id)
    left: list[PoolLeft] = []
    for number, group in enumerate(plan.pools):
        pools = [share for share in had[0].facts.pools if share.group == number]
        quota = sum(quota_of_thread(requests, thread, total) for thread in threads_of(plan, pools))
        rest = max(0, quota - sum(agent.measured[group.name] for agent in had))
        left += [PoolLeft(share.number, quota_of_thread(rest, at, len(pools))) for at, share in enumerate(pools)]
    return tuple(left)


def uncarried(run: Aggregate) -> tuple[Uncarried, ...]:
    """Every share that was without an agent for a while, in the order of the agents."""
    if run.opened is None or run.started is None:
        return ()
    taken = {record.replaces: record for record in run.takeovers}
    found = []
    for agent_id, agent in run.agents.items():
        successor = taken.get(agent_id)
        until_ns = _load_end_ns(run) if successor is None else successor.from_ns
        if successor is None and not _gave_up(run, agent, until_ns):
            continue
        operations = _missing(run, agent, until_ns, succeeded=successor is not None)
        final = agent.end.final if agent.end is not None else None
        from_s = float(agent.through + 1) if final is None else final.ran_ns / NS_PER_S
        from_ns = min(round(from_s * NS_PER_S), until_ns)
        name = "" if successor is None else successor.agent.agent_id
        due = _due_in_share(run, agent, (from_ns, until_ns))
        outlasts = until_ns > round(run.duration_s * NS_PER_S)
        found.append(Uncarried(agent_id, from_ns / NS_PER_S, until_ns / NS_PER_S, name, +operations, +due, outlasts))
    return tuple(each for each in found if each.operations or each.successor)


def uncarried_clause(shares: Sequence[Uncarried]) -> str:
    """Which shares no agent carried, as a clause; "" for none."""
    more = len(shares) - _NAMED
    clauses = [share.sentence for share in shares[:_NAMED]]
    return "; ".join(clauses) + (f"; nor {counted(more, 'other share')} for a while" if more > 0 else "")


def uncarried_sentence(run: Aggregate) -> str:
    """How many operations that concerns, and why; "" for none."""
    shares = [share for share in uncarried(run) if share.operations]
    if not shares:
        return ""
    count = sum(share.operations.total() for share in shares)
    were = "was due and was" if count == 1 else "were due and were"
    return f"{counted(count, 'operation')} {were} never sent, or never reported: {uncarried_clause(shares)}."


def _load_end_ns(run: Aggregate) -> int:
    """When the load ended or was to end, after the start. A run whose agents are all lost, or end by themselves, ends
    with the last one, but operations were due until the planned end. In a run without an end, only what is known so far
    counts."""
    assert run.started is not None
    ends_ns = []
    if run.line.end_ns is not None:
        ends_ns.append(run.line.end_ns)
    if run.line.end_ns is None or run.closed is None:
        ends_ns.append(round(run.duration_s * NS_PER_S))
    if (stop := run.load_stop) is not None:
        ends_ns.append(max(0, stop.at_ns - run.started.t0_ns))
    return min(ends_ns)


def _gave_up(run: Aggregate, agent: AgentTally, end_ns: int) -> bool:
    """Whether an agent that nobody followed ended before the load did."""
    if agent.end is None or run.opened is None:
        return False
    final = agent.end.final
    if final is None:
        return agent.end.state is AgentEnd.LOST
    if run.opened.plan.load.requests is not None:
        return bool(final.reason) and run.load_stop is None
    return final.ran_ns + NS_PER_S < end_ns


def _missing(run: Aggregate, agent: AgentTally, until_ns: int, *, succeeded: bool) -> Counter[int]:
    """What was due until then and was not reported, by leg."""
    assert run.opened is not None
    plan, total = run.opened.plan, run.opened.threads_total
    threads = threads_of(plan, agent.facts.pools)
    if plan.load.requests is not None:
        if succeeded:
            return Counter()
        quota = sum(quota_of_thread(plan.load.requests, thread, total) for thread in threads)
        known = sum(
            count
            for holder in holders(run, agent.facts.agent_id)
            for leg, count in holder.due_known.items()
            if run.line.legs[leg].measured
        )
        return Counter({run.line.at(max(until_ns - 1, 0)): max(0, quota - known)})
    from_ns = next((each.from_ns for each in run.takeovers if each.agent.agent_id == agent.facts.agent_id), 0)
    due = _due_in_share(run, agent, (from_ns, until_ns))
    return Counter({number: max(0, count - agent.due_known[number]) for number, count in due.items()})


def _due_in_share(run: Aggregate, agent: AgentTally, span_ns: tuple[int, int]) -> Counter[int]:
    """How many operations of each open leg fall to an agent's threads in this span after the start."""
    assert run.opened is not None
    plan, total = run.opened.plan, run.opened.threads_total
    threads, by_chance = threads_of(plan, agent.facts.pools), plan.load.arrivals is Arrivals.POISSON
    return Counter(
        {
            number: _due_in(leg, threads, total, span_ns, by_chance=by_chance)
            for number, leg in enumerate(run.line.legs)
            if leg.is_open and leg.begin_ns < span_ns[1]
        }
    )


def _due_in(leg: Leg, threads: Sequence[int], total: int, span_ns: tuple[int, int], *, by_chance: bool) -> int:
    """How many operations of a leg fall to these threads in this span after the start; with Poisson arrivals, in the
    mean."""
    begin, end = (leg.due_before + leg.due(max(at_ns, leg.begin_ns)) for at_ns in span_ns)
    if by_chance:
        return round((end - begin) * len(threads) / total)
    return sum(_numbered(ceil(end), thread, total) - _numbered(ceil(begin), thread, total) for thread in threads)


def _numbered(below: int, thread: int, total: int) -> int:
    """How many of the numbers thread, thread + total, thread + 2 * total... are below this one."""
    return max(0, -(-(below - thread) // total))
