"""How a run ended. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.errors import EXIT_INTERRUPTED, EXIT_OK, FleetError, TargetError
from common.protocol.messages import Final
from common.units import NS_PER_S, counted, listed
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.core.member import Member
from coordinator.journal.records import Outcome

MOST_PROBLEMS = 10
"""A report lists at most this many problems, and counts the rest."""


@dataclass(slots=True)
class OutcomeTracker:
    """What happened on the way that the outcome must tell. aborted: why the run was given up, with its exit code."""

    interrupted: bool = False
    aborted: str = ""
    exit_code: int = EXIT_OK
    _problems: list[str] = field(default_factory=list)
    _agents_with_problems: set[str] = field(default_factory=set)

    def interrupt(self) -> None:
        """The user stopped the load."""
        self.interrupted = True

    def abort(self, reason: str, exit_code: int) -> None:
        """The load was given up."""
        self.aborted, self.exit_code = reason, exit_code

    def add_problem(self, agent_id: str, text: str) -> None:
        """Add a problem that makes the run less than planned; the same text counts once."""
        self._agents_with_problems.add(agent_id)
        if text not in self._problems:
            self._problems.append(text)

    def add_final(self, agent_id: str, final: Final, *, lost_before: int = 0, stopped: bool = False) -> None:
        """Add the problems that an agent's `Final` reports. lost_before: lost worker processes that were added before.
        stopped: the run was stopped, so the agent had to end early."""
        if final.processes_lost > lost_before:
            self.add_problem(agent_id, f"agent {agent_id} lost {counted(final.processes_lost, 'worker process')}")
        if final.reason and not stopped:
            self.add_problem(agent_id, f"agent {agent_id} ended early: {final.reason}")

    def outcome(self, members: Sequence[Member], tolerate_lost: int, target_lost: str = "") -> tuple[Outcome, str, int]:
        """(outcome, reason, exit code); the reason is "" for a run that went as planned. target_lost: the sentences of
        `coordinator.analysis.target_loss`, or "".

        If there are several causes, the first decides the exit code: interrupted, target given up or lost, agents lost.
        """
        lost = [member.agent_id for member in members if member.final is None]
        by = {member.agent_id: member.replaced_by for member in members if member.replaced_by}
        named = [f"{agent_id} (replaced by {by[agent_id]})" if agent_id in by else agent_id for agent_id in lost]
        problems = [f"lost {listed(named)}"] if lost else []
        problems += self._problems[:MOST_PROBLEMS]
        if len(self._problems) > MOST_PROBLEMS:
            problems.append(f"and {counted(len(self._problems) - MOST_PROBLEMS, 'more problem')}")
        text = "; ".join([target_lost] * bool(target_lost) + problems)
        if self.interrupted:
            return Outcome.INTERRUPTED, text, EXIT_INTERRUPTED
        if self.aborted:
            return Outcome.ABORTED, "; ".join(filter(None, [self.aborted, target_lost])), self.exit_code
        if target_lost:
            return Outcome.DEGRADED, text, TargetError.exit_code
        if text:
            tolerated = len({*lost, *self._agents_with_problems}) <= tolerate_lost
            return Outcome.DEGRADED, text, EXIT_OK if tolerated else FleetError.exit_code
        return Outcome.COMPLETED, "", EXIT_OK


def is_planned_stop(run: Aggregate, ran_ns: int) -> bool:
    """Whether a stop by the user at this time after the start is the end that the plan wants: some scenario runs until
    it is stopped, and all others have ended."""
    return any(_runs_until_stopped(part) for part in run.scenarios) and all(
        _runs_until_stopped(part) or _has_ended(part, ran_ns) for part in run.scenarios
    )


def _runs_until_stopped(part: Aggregate) -> bool:
    return part.opened is not None and part.opened.plan.load.runs_until_stopped


def _has_ended(part: Aggregate, ran_ns: int) -> bool:
    if part.opened is None or part.opened.plan.load.requests is None:
        return part.timeline.end_ns is not None and ran_ns >= part.timeline.end_ns
    return sum(stage.operations for stage in part.measured_stages) >= part.opened.plan.load.requests


def duration_s(members: Sequence[Member], t0_ns: int | None) -> float:
    """From the start instant to the end of the load; without any `Final`, to the last message of an agent."""
    ran_ns = max((member.final.ran_ns for member in members if member.final is not None), default=0)
    if ran_ns > 0 or t0_ns is None:
        return ran_ns / NS_PER_S
    heard_ns = max((member.heard_ns for member in members), default=t0_ns)
    return max(0, heard_ns - t0_ns) / NS_PER_S
