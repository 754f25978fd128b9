"""How a run ended, once its agents' parts are over. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from common.errors import EXIT_INTERRUPTED, EXIT_OK, FleetError, TargetError
from common.protocol.messages import Final
from common.units import NS_PER_S, counted, listed
from coordinator.core.member import Member
from coordinator.journal.records import Outcome

MOST_TROUBLES = 10
"""A report names so many; of more it says how many there were."""


@dataclass(slots=True)
class OutcomeTracker:
    """What happened on the way that the outcome must tell. aborted: why the run was given up, with its exit code."""

    interrupted: bool = False
    aborted: str = ""
    exit_code: int = EXIT_OK
    _troubles: list[str] = field(default_factory=list)
    _troubled: set[str] = field(default_factory=set)

    def interrupt(self) -> None:
        """The user stopped the load."""
        self.interrupted = True

    def abort(self, reason: str, exit_code: int) -> None:
        """The load was given up."""
        self.aborted, self.exit_code = reason, exit_code

    def trouble(self, agent_id: str, text: str) -> None:
        """Something that makes the run less than what was planned; the same text counts once."""
        self._troubled.add(agent_id)
        if text not in self._troubles:
            self._troubles.append(text)

    def noted(self, agent_id: str, final: Final, *, lost_before: int = 0, stopped: bool = False) -> None:
        """What an agent's last word says of troubles. lost_before: worker processes whose loss was told already.
        stopped: it was meant to end early."""
        if final.processes_lost > lost_before:
            self.trouble(agent_id, f"agent {agent_id} lost {counted(final.processes_lost, 'worker process')}")
        if final.reason and not stopped:
            self.trouble(agent_id, f"agent {agent_id} ended early: {final.reason}")

    def outcome(self, members: Sequence[Member], tolerate_lost: int, target_lost: str = "") -> tuple[Outcome, str, int]:
        """(outcome, reason, exit code); the reason is "" for a run that went as planned. target_lost: the sentence of
        `coordinator.analysis.target_loss`, or "".

        If there are several causes, the first decides the exit code: interrupted, target given up or lost, agents lost.
        """
        lost = [member.agent_id for member in members if member.final is None]
        by = {member.agent_id: member.replaced_by for member in members if member.replaced_by}
        named = [f"{agent_id} (replaced by {by[agent_id]})" if agent_id in by else agent_id for agent_id in lost]
        troubles = [f"lost {listed(named)}"] if lost else []
        troubles += self._troubles[:MOST_TROUBLES]
        if len(self._troubles) > MOST_TROUBLES:
            troubles.append(f"and {counted(len(self._troubles) - MOST_TROUBLES, 'more trouble')}")
        text = "; ".join([target_lost] * bool(target_lost) + troubles)
        if self.interrupted:
            return Outcome.INTERRUPTED, text, EXIT_INTERRUPTED
        if self.aborted:
            return Outcome.ABORTED, "; ".join(filter(None, [self.aborted, target_lost])), self.exit_code
        if target_lost:
            return Outcome.DEGRADED, text, TargetError.exit_code
        if text:
            tolerated = len({*lost, *self._troubled}) <= tolerate_lost
            return Outcome.DEGRADED, text, EXIT_OK if tolerated else FleetError.exit_code
        return Outcome.COMPLETED, "", EXIT_OK


def duration_s(members: Sequence[Member], t0_ns: int | None) -> float:
    """From the start instant to the end of the load; where no agent could say, to when one was last heard."""
    ran_ns = max((member.final.ran_ns for member in members if member.final is not None), default=0)
    if ran_ns > 0 or t0_ns is None:
        return ran_ns / NS_PER_S
    heard_ns = max((member.heard_ns for member in members), default=t0_ns)
    return max(0, heard_ns - t0_ns) / NS_PER_S
