"""Which agents a run waits for at its end, for how long, and which agents may still write to the target. Pure.
`coordinator.core.transitions` has the rules and their reasons."""

from __future__ import annotations

from common.plan.scenarios import load_end_ns, preloads, scenario_plans
from common.protocol.messages import KEEP_LEASES, AgentState
from common.units import NS_PER_S
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.core.actions import Action, Note, Write
from coordinator.core.member import GONE, LOST_AFTER_NS, OVERTIME_NS, Fence, Member, MemberState
from coordinator.core.run_state import RunState
from coordinator.core.transitions import Phase
from coordinator.journal.records import AgentOutcome

AT_ONCE_NS = NS_PER_S
"""A run that is stopped at once waits this long for agents that are heard: they cancel operations and report."""
PRELOAD_SILENCE_NS = 10 * NS_PER_S
"""Silence after which a run gives up an agent that preloads."""
DEAD_TARGET_NS = 30 * NS_PER_S
"""A run by number of requests cannot end while no operation succeeds: it is given up after this time."""
DEAD_TARGET_INTERVALS = 10
"""At a low rate, a target is dead when this many operations in a row were due without a success."""
_WRITES = (AgentState.PREPARING, AgentState.RUNNING, AgentState.DRAINING)
_NO_FENCE = Fence(lease_ns=0, closing_ns=0, end_ns=None)


class Waiting:
    """Reads the state of the run; its own state is only the last line that it showed."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._end_ns = load_end_ns(state.setup.plan)
        self._last_rates_per_s = [each.timeline.legs[-1].to_per_s for each in scenario_plans(state.setup.plan)]
        self._said: tuple[str, ...] = ()
        self._ours_over_ns: int | None = None

    @property
    def planned_end_ns(self) -> int | None:
        """When the load ends as planned, on our clock; None for a load without an end, and before the start."""
        t0_ns = self._state.t0_ns
        return None if self._end_ns is None or t0_ns is None else t0_ns + self._end_ns

    @property
    def preparing_patience_ns(self) -> int:
        """How long an agent may be silent while it prepares. A short network failure must not end a long preload."""
        plan = self._state.setup.plan
        preload_ns = max(LOST_AFTER_NS, min(PRELOAD_SILENCE_NS, plan.fleet.lease_s.ns))
        return preload_ns if preloads(plan) else LOST_AFTER_NS

    @property
    def dead_target_ns(self) -> int:
        """How long a load without an end may go on without a success."""
        gaps_ns = [round(DEAD_TARGET_INTERVALS * NS_PER_S / rate) for rate in self._last_rates_per_s if rate]
        return max([DEAD_TARGET_NS, *gaps_ns])

    @property
    def fence(self) -> Fence:
        """When agents of this run stop by themselves."""
        if self._state.phase is Phase.COLLECTING and not self._state.deletes_again:
            return _NO_FENCE  # nothing is read or deleted that a load could still change
        fleet = self._state.setup.plan.fleet
        return Fence(lease_ns=fleet.lease_s.ns, closing_ns=fleet.drain_s.ns + OVERTIME_NS, end_ns=self.planned_end_ns)

    def is_over(self, now_ns: int) -> bool:
        """Whether the run waits for no agent any more."""
        fence = self.fence
        if not all(member.is_over(now_ns, fence) for member in self._state.registry.taking_part()):
            self._ours_over_ns = None
            return False
        if self._ours_over_ns is None:
            self._ours_over_ns = now_ns
        return not self._others_at_work() or now_ns >= fence.passed_ns(self._ours_over_ns)

    def writers(self, now_ns: int, since_ns: int | None = None) -> tuple[str, ...]:
        """Names of agents that may write to the target now. since_ns: also those heard at work after this instant."""
        fence = self.fence
        ours = [
            member.agent_id
            for member in self._state.registry.taking_part()
            if not member.is_fenced(now_ns, fence)
            or (since_ns is not None and member.at_rest_ns is None and member.renewed_ns > since_ns)
        ]
        return (*ours, *self._others_at_work())

    def overdue(self, due_ns: int, now_ns: int) -> list[Member]:
        """Agents that are heard although their load should have ended. due_ns: when they had to begin to end it; an
        agent that was cut off begins when it is back, once."""
        closing_ns = self._state.setup.plan.fleet.drain_s.ns + OVERTIME_NS
        if now_ns <= due_ns + closing_ns:
            return []
        fence = self.fence
        latest_ns = due_ns + fence.lease_ns + fence.closing_ns
        return [
            member
            for member in self._state.registry.taking_part()
            if member.is_at_work and now_ns > max(due_ns, min(member.returned_ns, latest_ns)) + closing_ns
        ]

    def said(self, now_ns: int, *, interrupts: int) -> list[Action]:
        """A line for the user when the run waits only for silent agents. interrupts: how many so far."""
        members = self._state.registry.taking_part()
        end_ns, fence = self.planned_end_ns, self.fence
        is_due = self._state.phase is not Phase.RUNNING or end_ns is None or now_ns >= end_ns
        if not is_due and any(not member.is_over(now_ns, fence) for member in members):
            return []
        awaited = [member for member in members if not member.is_over(now_ns, fence)]
        if any(member.is_at_work for member in awaited):
            return []
        names = tuple(member.agent_id for member in awaited) or self._others_at_work()
        if not names or names == self._said:
            return []
        self._said = names
        if self._state.phase is Phase.COLLECTING:
            how = "interrupt"
        else:
            how = "interrupt again" if interrupts else "interrupt twice"
        if not awaited:
            at_most_s = (fence.passed_ns(now_ns) - now_ns) / NS_PER_S
            why = "at work for another run, which the target's counters would include"
            text = f"waiting for {', '.join(names)} ({why}): {at_most_s:.0f} s at most; {how} to end at once"
            return [Note(text, trouble=True)]
        at_most_s = max(member.awaited_until_ns(fence) - now_ns for member in awaited) / NS_PER_S
        may_write = any(not member.is_fenced(now_ns, fence) for member in awaited)
        why = "silent, may still load the target, and has results to report" if may_write else "silent, with results"
        if all(member.state in GONE for member in awaited):
            why = "may still load the target"
        if all(member.final is not None for member in awaited):
            why = "has reported, but does not know yet that its results are safe"
        text = f"waiting for {', '.join(names)} ({why}): {at_most_s:.0f} s at most; {how} to end at once"
        return [Note(text, trouble=True)]

    def ended_with_us(self, written: Aggregate) -> list[Action]:
        """Local agents end with this coordinator, so results that one has not reported by now are lost."""
        setup, registry = self._state.setup, self._state.registry
        actions: list[Action] = []
        for member in registry.taking_part():
            is_local = member.host == setup.host and member.pid in setup.local_pids
            if member.final is not None or member.state is MemberState.LEFT or not is_local:
                continue
            registry.leave(member, "it ended with its coordinator", member.heard_ns)
            through = written.agents[member.agent_id].through
            after = f" after second {through}" if through >= 0 else ""
            text = f"the results of {member.agent_id}{after} are lost: a local agent ends with its coordinator"
            actions += [Write(member.noted(AgentOutcome.LOST, member.gone)), Note(text, trouble=True, of_agent=True)]
        return actions

    def kept_elsewhere(self) -> list[Action]:
        """A line about agents that may keep results which this run does not have."""
        members = [member for member in self._state.registry.taking_part() if member.final is None]
        kept = ", ".join(member.agent_id for member in members if member.state is not MemberState.LEFT)
        if not kept:
            return []
        keep_s = KEEP_LEASES * self._state.setup.plan.fleet.lease_s.ns / NS_PER_S
        collects = f"`coordinator start --resume {self._state.setup.run_id}` collects them"
        return [Note(f"no results of {kept}: while it runs, {collects} (for {keep_s:g} s)", trouble=True)]

    def _others_at_work(self) -> tuple[str, ...]:
        """Agents that take no part, but still work for another run."""
        return tuple(
            member.agent_id for member in self._state.registry if not member.takes_part and member.reported in _WRITES
        )
