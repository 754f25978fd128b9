from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from common.plan.schema import CleanUp
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.analysis.unfinished_run import unfinished_reason
from coordinator.journal.records import (
    AgentEnded,
    AnyRecord,
    CleanedUp,
    CoordinatorFailed,
    CountersRead,
    FrameAccepted,
    Outcome,
    RunClosed,
    RunOpened,
    RunStarted,
    StopDecided,
    StopKind,
)
from coordinator.report.summary import build_summary
from tests.support.records import clean_run, closed, plan

WITH_CLEAN_UP = msgspec.structs.replace(
    plan(), workload=msgspec.structs.replace(plan().workload, clean_up=CleanUp.KEYS)
)
WHOLE = list(clean_run(WITH_CLEAN_UP))
CLEANED = [*WHOLE[:-1], CleanedUp(deleted=5, left=0, took_ns=1)]


def until(kind: type, number: int = 0, records: Sequence[AnyRecord] = WHOLE) -> list[AnyRecord]:
    """The records up to and including this one of a kind; -1: the last of its kind."""
    places = [place for place, record in enumerate(records) if isinstance(record, kind)]
    return list(records[: places[number] + 1])


ENDS = {
    "opened": (until(RunOpened), "before the start, without any load so far"),
    "counted": (until(CountersRead), "before the start, without any load so far"),
    "started": (until(RunStarted), "during the load (before its agents had reported any results)"),
    "second 1": (until(FrameAccepted, 3), "during the load (reported up to second 1)"),
    "one agent": (until(AgentEnded), "during the load (reported up to second 2)"),
    "all agents": (until(AgentEnded, -1), "after the load, before the server's counters were read again"),
    "read again": (until(CountersRead, -1), "after the load, while the plan's keys were deleted: some may be left"),
    "deleted": (CLEANED, "after the load, before its end was recorded"),
    "none deleted": (list(clean_run())[:-1], "after the load, before its end was recorded"),
}


@pytest.mark.parametrize("name", list(ENDS))
def test_a_journal_without_an_end_says_how_far_the_run_came(name: str) -> None:
    records, where = ENDS[name]
    run = fold(records)
    said = unfinished_reason(run)
    assert said.startswith(f"the coordinator ended {where}; its journal gives no reason: it was killed, its machine")
    begun = any(isinstance(record, RunStarted) for record in records)
    assert ("--resume run-1" in said, "start the run again" in said) == (begun, not begun)

    failed = fold([*records, CoordinatorFailed(reason="the disk is full")])
    assert unfinished_reason(failed).startswith(f"the coordinator failed {where}: the disk is full; ")

    run.is_running = True
    assert unfinished_reason(run) == f"the run has not ended: it is {where}"
    summary = build_summary(run)
    assert (summary.run.outcome, summary.run.reason) == (Outcome.RUNNING, unfinished_reason(run))
    ended = {record.agent_id for record in records if isinstance(record, AgentEnded)}
    assert {agent.id for agent in summary.agents if agent.state.value == "open"} == {"a1", "a2"} - ended
    assert any(reason.startswith("The run has not ended") for reason in summary.verdict.reasons)
    assert not any("lost" in reason for reason in summary.verdict.reasons)


def test_a_failure_before_a_resume_is_not_reported() -> None:
    failed = [*until(FrameAccepted, 1), CoordinatorFailed(reason="the disk is full")]
    resumed = fold([*failed, *WHOLE[len(failed) - 1 : -1]])
    assert "gives no reason" in unfinished_reason(resumed)
    assert unfinished_reason(fold([*failed, *WHOLE[len(failed) - 1 :]])) == ""


def test_a_run_that_was_aborted_before_the_start_blames_no_agent() -> None:
    given_up = RunClosed(outcome=Outcome.ABORTED, reason="agent a1 was lost before the start", duration_s=0.0)
    summary = build_summary(fold([*until(RunOpened), given_up]))
    assert (summary.run.outcome, summary.run.reason) == (Outcome.ABORTED, "agent a1 was lost before the start")
    assert {agent.state.value for agent in summary.agents} == {"open"}
    assert not any("killed" in agent.reason for agent in summary.agents)


def test_an_ended_run_is_not_unfinished() -> None:
    assert unfinished_reason(fold([*CLEANED, closed()])) == ""
    assert unfinished_reason(Aggregate()) == ""


def test_a_load_that_was_being_stopped_is_reported_as_such() -> None:
    stop = StopDecided(what=StopKind.LOAD, reason="interrupted", exit_code=130, at_ns=123_456_789 + 1_500_000_000)
    run = fold([*until(FrameAccepted, 1), stop])
    assert "during the load (reported up to second 0), which was being stopped (interrupted);" in unfinished_reason(run)
    summary = build_summary(run)
    assert (summary.run.stop_reason, summary.run.stopped_at_s) == ("interrupted", 1.5)


def test_an_interrupted_clean_up_did_not_stop_the_load() -> None:
    stop = StopDecided(what=StopKind.CLEAN_UP, reason="interrupted", exit_code=0, at_ns=9)
    run = fold([*WHOLE[:-1], stop])
    assert "stopped" not in unfinished_reason(run)
    assert (build_summary(run).run.stop_reason, build_summary(run).run.stopped_at_s) == ("", None)
