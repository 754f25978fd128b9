"""Shares of the load that had no agent for a while: when, and how many operations were due meanwhile. Pure.

An agent has its share until it is lost or ends early. Later another agent may take the share over (`ShareTakenOver`).
If none does, the share has no agent until the planned end, or until the coordinator decides to stop the load.

The operations that were due in this time, minus those that the lost agent reported, were never sent, or were sent and
never reported: these two cases cannot be distinguished. With a number of requests, operations have no due time, and the
replacement gets the rest of the share. So only operations that are left at the end count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from common.plan.schema import Arrivals, Plan
from common.plan.timeline import Leg
from common.protocol.messages import PoolRemainder, PoolShare
from common.units import NS_PER_S, counted
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.analysis.totals.tallies import AgentTally
from coordinator.journal.records import AgentOutcome

_NAMED = 3
"""Shares to name in a sentence, because a fleet may have hundreds."""


@dataclass(frozen=True, slots=True)
class UnassignedShare:
    """A share without an agent.

    agent_id: the last agent that had the share. from_s, until_s: from this agent's last report until another agent took
    the share over, or until the (planned) end of the load. successor: the agent that took it over; "" for none.
    operations: operations due and not reported, by leg. due: operations that the schedule has in this time, by leg;
    with a number of requests they are late, not missing. outlasts: until_s is after the end of the last agent.
    """

    agent_id: str
    from_s: float
    until_s: float
    successor: str
    operations: Counter[int]
    due: Counter[int]
    outlasts: bool = False

    @property
    def sentence(self) -> str:
        """A clause on the agent and the time."""
        begin, end = f"{self.from_s:.1f} s", f"{self.until_s:.1f} s"
        if begin == end and not self.successor:
            return f"no agent had the share of {self.agent_id} from {begin} on"
        end_of_load = "the planned end of the load" if self.outlasts else "the end of the load"
        why = f"when {self.successor} took it over" if self.successor else end_of_load
        return f"no agent had the share of {self.agent_id} from {begin} to {end} ({why})"


def threads_of(plan: Plan, pools: Sequence[PoolShare]) -> list[int]:
    """Return the fleet-wide numbers of these pools' worker threads."""
    return [
        thread
        for share in pools
        for thread in range(share.first_thread, share.first_thread + plan.pools[share.group].workers_per_pool)
    ]


def quota_of_thread(requests: int, thread: int, threads: int) -> int:
    """Return the requests of one worker thread: an equal part, and one more for the first threads."""
    return requests // threads + (thread < requests % threads)


def share_owners(run: Aggregate, agent_id: str) -> list[AgentTally]:
    """Return all agents that had the share of this agent, the first one first and this agent last."""
    before = {record.agent.agent_id: record.replaces for record in run.takeovers}
    found = [run.agents[agent_id]]
    while (agent_id := before.get(agent_id, "")) in run.agents:
        found.insert(0, run.agents[agent_id])
    return found


def remaining_requests(run: Aggregate, agent_id: str) -> tuple[PoolRemainder, ...] | None:
    """Return how many requests each pool of a share still has to send; None for a plan without a number of requests.
    Reports are by pool group, so the rest of a group is divided evenly among its pools."""
    if run.parts:
        each = [remaining_requests(part, agent_id) for part in run.parts]
        known = [pools for pools in each if pools is not None]
        return tuple(pool for pools in known for pool in pools) if known else None
    if run.opened is None or run.opened.plan.load.requests is None:
        return None
    plan, requests, total = run.opened.plan, run.opened.plan.load.requests, run.opened.threads_total
    had = share_owners(run, agent_id)
    left: list[PoolRemainder] = []
    for number, group in enumerate(plan.pools):
        pools = [share for share in had[0].facts.pools if share.group == number]
        quota = sum(quota_of_thread(requests, thread, total) for thread in threads_of(plan, pools))
        rest = max(0, quota - sum(agent.measured[group.name] for agent in had))
        left += [PoolRemainder(share.number, quota_of_thread(rest, at, len(pools))) for at, share in enumerate(pools)]
    return tuple(left)


def unassigned_shares(run: Aggregate) -> tuple[UnassignedShare, ...]:
    """Return every share that had no agent for a while, in the order of the agents."""
    if run.opened is None or run.started is None:
        return ()
    taken = {record.replaces: record for record in run.takeovers}
    found = []
    for agent_id, agent in run.agents.items():
        successor = taken.get(agent_id)
        until_ns = _load_end_ns(run) if successor is None else successor.from_ns
        if successor is None and not _ended_early(run, agent, until_ns):
            continue
        operations = _missing(run, agent, until_ns, succeeded=successor is not None)
        final = agent.end.final if agent.end is not None else None
        from_s = float(agent.through + 1) if final is None else final.ran_ns / NS_PER_S
        from_ns = min(round(from_s * NS_PER_S), until_ns)
        name = "" if successor is None else successor.agent.agent_id
        due = _due_in_share(run, agent, (from_ns, until_ns))
        outlasts = until_ns > round(run.duration_s * NS_PER_S)
        found.append(
            UnassignedShare(agent_id, from_ns / NS_PER_S, until_ns / NS_PER_S, name, +operations, +due, outlasts)
        )
    return tuple(each for each in found if each.operations or each.successor)


def unassigned_clause(shares: Sequence[UnassignedShare]) -> str:
    """Return a clause that names the shares; "" for none."""
    more = len(shares) - _NAMED
    clauses = [share.sentence for share in shares[:_NAMED]]
    return "; ".join(clauses) + (f"; and {counted(more, 'other share')} had none for a while" if more > 0 else "")


def unassigned_sentence(run: Aggregate) -> str:
    """Return a sentence on how many operations were not sent or not reported, and why; "" for none."""
    shares = [share for share in unassigned_shares(run) if share.operations]
    if not shares:
        return ""
    count = sum(share.operations.total() for share in shares)
    were = "was" if count == 1 else "were"
    return f"{counted(count, 'operation')} {were} never sent, or never reported: {unassigned_clause(shares)}."


def _load_end_ns(run: Aggregate) -> int:
    """Return the (planned) end of the load in ns after the start. A run whose agents are all lost, or end early, ends
    with the last one, but operations were due until the planned end. While a run goes on, its end so far counts."""
    assert run.started is not None
    ends_ns = []
    if run.end_ns is not None:
        ends_ns.append(run.end_ns)
    if run.end_ns is None or run.closed is None:
        ends_ns.append(round(run.duration_s * NS_PER_S))
    if (stop := run.load_stop) is not None:
        ends_ns.append(max(0, stop.at_ns - run.started.t0_ns))
    return min(ends_ns)


def _ended_early(run: Aggregate, agent: AgentTally, end_ns: int) -> bool:
    """Return whether an agent without a successor ended before the load."""
    if agent.end is None or run.opened is None:
        return False
    final = agent.end.final
    if final is None:
        return agent.end.state is AgentOutcome.LOST
    if run.opened.plan.load.requests is not None:
        return bool(final.reason) and run.load_stop is None
    return final.ran_ns + NS_PER_S < end_ns


def _missing(run: Aggregate, agent: AgentTally, until_ns: int, *, succeeded: bool) -> Counter[int]:
    """Return how many operations were due until then and were not reported, by leg."""
    assert run.opened is not None
    plan, total = run.opened.plan, run.opened.threads_total
    threads = threads_of(plan, agent.facts.pools)
    if plan.load.requests is not None:
        if succeeded:
            return Counter()
        quota = sum(quota_of_thread(plan.load.requests, thread, total) for thread in threads)
        known = sum(
            count
            for owner in share_owners(run, agent.facts.agent_id)
            for leg, count in owner.due_known.items()
            if run.timeline.legs[leg].measured
        )
        return Counter({run.timeline.at(max(until_ns - 1, 0)): max(0, quota - known)})
    from_ns = next((each.from_ns for each in run.takeovers if each.agent.agent_id == agent.facts.agent_id), 0)
    due = _due_in_share(run, agent, (from_ns, until_ns))
    return Counter({number: max(0, count - agent.due_known[number]) for number, count in due.items()})


def _due_in_share(run: Aggregate, agent: AgentTally, span_ns: tuple[int, int]) -> Counter[int]:
    """Return how many operations of each open leg are due for an agent's threads in this span after the start."""
    assert run.opened is not None
    plan, total = run.opened.plan, run.opened.threads_total
    threads, is_poisson = threads_of(plan, agent.facts.pools), plan.load.arrivals is Arrivals.POISSON
    return Counter(
        {
            number: _due_in(leg, threads, total, span_ns, is_poisson=is_poisson)
            for number, leg in enumerate(run.timeline.legs)
            if leg.is_open and leg.begin_ns < span_ns[1]
        }
    )


def _due_in(leg: Leg, threads: Sequence[int], total: int, span_ns: tuple[int, int], *, is_poisson: bool) -> int:
    """Return how many operations of a leg are due for these threads in this span after the start; a mean with Poisson
    arrivals."""
    begin, end = (leg.due_before + leg.due(max(at_ns, leg.begin_ns)) for at_ns in span_ns)
    if is_poisson:
        return round((end - begin) * len(threads) / total)
    return sum(_count_below(ceil(end), thread, total) - _count_below(ceil(begin), thread, total) for thread in threads)


def _count_below(below: int, thread: int, total: int) -> int:
    """Return how many of the numbers thread, thread + total, thread + 2 * total... are below a number."""
    return max(0, -(-(below - thread) // total))
