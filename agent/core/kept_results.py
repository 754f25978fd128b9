"""Results of earlier runs that no coordinator has taken. Pure: the time is an argument.

An agent has the address of one coordinator. If another run's coordinator answers there, the one of the agent's own run
is gone, at least for now. So the agent sets its results aside and is free for the new run. If a coordinator resumes the
earlier run while the agent is idle, the agent takes the results up again and delivers them. They are kept until a fixed
instant, whichever runs the agent serves in the meantime.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from agent.core.assignment_tracker import AssignmentTracker
from agent.core.outbox import Outbox
from common.units import NS_PER_S

MOST_RUNS = 8
"""Limits memory if many coordinators fail one after the other."""


@dataclass(frozen=True, slots=True)
class KeptRun:
    """A run whose load has ended, with its results. reason: why the load ended early, "" if it did not.
    until_ns: when the results are given up."""

    run_id: str
    outbox: Outbox
    assignment: AssignmentTracker
    reason: str
    until_ns: int

    def described(self, now_ns: int) -> str:
        """How long the results are kept, and what collects them."""
        keeps = f"keeping the results of run {self.run_id} for {max(0, self.until_ns - now_ns) / NS_PER_S:.0f} s"
        return f"{keeps}: `coordinator start --resume {self.run_id}` collects them"


class KeptResults:
    """Kept runs by id, the oldest first."""

    def __init__(self) -> None:
        self._runs: dict[str, KeptRun] = {}

    def __len__(self) -> int:
        return len(self._runs)

    def __str__(self) -> str:
        return ", ".join(self._runs)

    @property
    def newest(self) -> KeptRun | None:
        """The run that was set aside last."""
        return next(reversed(self._runs.values()), None)

    def set_aside(self, run: KeptRun) -> None:
        """Keep this run's results."""
        self._runs[run.run_id] = run

    def take_up(self, run_id: str) -> KeptRun | None:
        """The results of this run, which are not kept here any more; None for a run without any."""
        return self._runs.pop(run_id, None)

    def given_up(self, now_ns: int) -> Iterator[str]:
        """A line for each run whose results are dropped, because their time or the room is over."""
        for run_id, run in list(self._runs.items()):
            if now_ns > run.until_ns or len(self._runs) > MOST_RUNS:
                del self._runs[run_id]
                yield f"no coordinator collected the results of run {run_id}: they are lost"
