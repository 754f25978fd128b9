"""The state of a run. Pure.

`coordinator.core.run` shares it with the parts that answer agents, wait for them and move their shares. They read it;
every change is a method here, or of the registry.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

from common.lifecycle import Lifecycle
from coordinator.core.dealt_plan import DealtPlan
from coordinator.core.member import Member
from coordinator.core.outcome import OutcomeTracker
from coordinator.core.registry import Registry
from coordinator.core.setup import Setup
from coordinator.core.transitions import REPEATS, TRANSITIONS, Phase, Trigger


class RunState:
    """The state of one run.

    success_ns: when an operation last succeeded, as far as we know. t0_ns: the start instant once it is set.
    stopped_ns: when the load was stopped early. lost: agents that were lost at some time or ended early; a short list,
    where the registry may be a long one. failure: why an agent cannot prepare, and the exit code. set_aside: messages
    that do not count, by reason: "stale" (from another run), "unproven" (in the name of an agent, from a connection on
    which it did not prove itself, or an old one), "duplicates", "gaps" and "nonsense". deletes_again: the run has
    ended before, and left keys that are still to be deleted.
    """

    def __init__(self, setup: Setup, now_ns: int, phase: Phase = Phase.GATHERING, t0_ns: int | None = None) -> None:
        self.setup = setup
        self.registry = Registry()
        self.set_aside: Counter[str] = Counter()
        self.outcome_tracker = OutcomeTracker()
        self.dealt_plan: DealtPlan | None = None
        self.success_ns = self.phase_since_ns = now_ns
        self.t0_ns = t0_ns
        self.stopped_ns: int | None = None
        self.lost: list[Member] = []
        self.deletes_again = False
        self.failure: tuple[str, int] | None = None
        self._lifecycle: Lifecycle[Phase, Trigger] = Lifecycle(f"run {setup.run_id}", phase, TRANSITIONS, REPEATS)

    @property
    def phase(self) -> Phase:
        """The phase of the run."""
        return self._lifecycle.state

    def move(self, trigger: Trigger, now_ns: int) -> bool:
        """Move to the next phase of the table; returns False for a repeat. Only this method changes the phase."""
        moved = self._lifecycle.move(trigger)
        if moved:
            self.phase_since_ns = now_ns
        return moved

    def deal(self, dealt: DealtPlan) -> None:
        """The plan was dealt to agents."""
        self.dealt_plan = dealt

    def move_share(self, lost: Member, successor: Member, now_ns: int) -> None:
        """Before the start, the share of a lost agent goes to one that stands by."""
        assert self.dealt_plan is not None
        names = {lost.agent_id: successor.agent_id}
        assignments = {names.get(name, name): share for name, share in self.dealt_plan.assignments.items()}
        self.dealt_plan = dataclasses.replace(self.dealt_plan, assignments=assignments)
        self.registry.move_share(lost, successor, now_ns)

    def start(self, t0_ns: int) -> None:
        """The start instant is set."""
        self.t0_ns = self.success_ns = t0_ns

    def succeeded(self, now_ns: int) -> None:
        """An operation succeeded."""
        self.success_ns = now_ns

    def extend_deadlines(self, stalled_ns: int, now_ns: int) -> None:
        """Extend all deadlines by our own stall: the messages of agents are still queued."""
        self.registry.extend_deadlines(stalled_ns, now_ns)
        self.phase_since_ns += stalled_ns
        self.success_ns += stalled_ns

    def stop(self, at_ns: int) -> None:
        """The load was stopped early; the first time counts."""
        self.stopped_ns = self.stopped_ns or at_ns

    def delete_again(self) -> None:
        """Keys that the run left when it ended are still to be deleted."""
        self.deletes_again = True

    def fail(self, text: str, exit_code: int) -> None:
        """An agent cannot prepare."""
        self.failure = (text, exit_code)

    def note_lost(self, member: Member) -> None:
        """The member's share may be without an agent."""
        if all(other is not member for other in self.lost):
            self.lost.append(member)
