"""The state of a run whose journal has no end: what happened to its coordinator, how far the run got, and how to
continue it. Pure.

    the journal ends with          the run had reached
    RunOpened                      the first reading of the counters: no load yet, the run can only be started again
    RunStarted, frames             the load
    the last agent's AgentEnded    the second reading of the counters
    CountersRead(after)            the clean-up; without a clean-up, the end
    CleanedUp                      the end

A running coordinator has a lock on the journal, and a coordinator that failed has written the reason. Otherwise the
coordinator was killed, its machine went down, or its disk was full: the journal looks the same in these cases.
"""

from __future__ import annotations

from common.plan.scenarios import cleans_up
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.journal.records import Reading


def unfinished_reason(run: Aggregate) -> str:
    """Return a sentence without a full stop; "" for a run that has ended, and for a journal without records."""
    if run.closed is not None or run.opened is None:
        return ""
    where, advice = _where(run), _advice(run)
    if run.is_running:
        return f"the run has not ended: it is {where}"
    if run.failed is not None:
        return f"the coordinator failed {where}: {run.failed.reason}{advice}"
    return (
        f"the coordinator ended {where}; its journal gives no reason: it was killed, its machine went down, or its "
        f"disk was full{advice}"
    )


def _where(run: Aggregate) -> str:
    if run.started is None:
        return "before the start, without any load so far"
    pending = [agent.facts.agent_id for agent in run.agents.values() if agent.end is None]
    if pending:
        reached = max(run.seconds, default=None)
        so_far = "before its agents had reported any results" if reached is None else f"reported up to second {reached}"
        stop = f", which was being stopped ({run.load_stop.reason})" if run.load_stop else ""
        return f"during the load ({so_far}){stop}"
    if Reading.AFTER not in run.readings:
        return "after the load, before the server's counters were read again"
    wants_clean_up = run.opened is not None and cleans_up(run.opened.plan)
    if wants_clean_up and run.cleaned is None:
        return "after the load, while the plan's keys were deleted: some may be left"
    return "after the load, before its end was recorded"


def _advice(run: Aggregate) -> str:
    assert run.opened is not None
    if run.started is None:
        return "; start the run again"
    resume = f"coordinator start --resume {run.opened.run_id}"
    return f"; `{resume}` collects the results that its agents kept, and ends the run"
