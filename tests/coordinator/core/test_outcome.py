from __future__ import annotations

import msgspec
import pytest

from common.plan.schema import Load, Scenario
from common.units import NS_PER_S, Count, Seconds
from coordinator.analysis.totals.aggregate import fold
from coordinator.core.member import Member
from coordinator.core.outcome import OutcomeTracker, duration_s, is_planned_stop
from coordinator.core.registry import JournaledAgent, Registry
from coordinator.journal.records import AgentFacts, Outcome
from tests.support.protocol import final
from tests.support.records import opened, plan

T0_NS = 100 * NS_PER_S


def member(name: str, *, ran_s: float | None = 3.0) -> Member:
    """An agent that has reported, or (ran_s None) one that has not."""
    facts = AgentFacts(agent_id=name, incarnation=name, host="host", processes=1, pools=())
    reported = None if ran_s is None else final(ran_ns=round(ran_s * NS_PER_S))
    return Registry().readmit(JournaledAgent(facts, next_seq=0, final=reported), T0_NS + 7 * NS_PER_S)


ALL = [member("a"), member("b")]
ONE_LOST = [member("a"), member("b", ran_s=None)]


def test_a_run_that_went_as_planned_is_completed() -> None:
    assert OutcomeTracker().outcome(ALL, 0) == (Outcome.COMPLETED, "", 0)


@pytest.mark.parametrize(("tolerate_lost", "exit_code"), [(0, 5), (1, 0), (2, 0)])
def test_a_lost_agent_degrades_a_run_and_fails_it_beyond_tolerance(tolerate_lost: int, exit_code: int) -> None:
    assert OutcomeTracker().outcome(ONE_LOST, tolerate_lost) == (Outcome.DEGRADED, "lost b", exit_code)


def test_an_agent_with_a_problem_is_tolerated_like_a_lost_one_and_its_problem_is_reported_once() -> None:
    tracker = OutcomeTracker()
    tracker.add_problem("a", "a worker died")
    tracker.add_problem("a", "a worker died")
    assert tracker.outcome(ONE_LOST, 1) == (Outcome.DEGRADED, "lost b; a worker died", 5)
    assert tracker.outcome(ONE_LOST, 2) == (Outcome.DEGRADED, "lost b; a worker died", 0)
    tracker.add_problem("b", "b ended early before it was lost")
    assert tracker.outcome(ONE_LOST, 2)[2] == 0


def test_an_interrupt_decides_the_outcome_before_other_causes() -> None:
    tracker = OutcomeTracker(interrupted=True, aborted="the target is dead", exit_code=4)
    assert tracker.outcome(ONE_LOST, 0) == (Outcome.INTERRUPTED, "lost b", 130)


def test_the_reason_of_a_run_that_was_given_up_is_reported() -> None:
    tracker = OutcomeTracker(aborted="the target is dead", exit_code=4)
    assert tracker.outcome(ALL, 0) == (Outcome.ABORTED, "the target is dead", 4)


@pytest.mark.parametrize(
    ("loads", "ran_s", "is_planned"),
    [
        ([Load(duration_s=Seconds(0))], 1, True),
        ([Load(duration_s=Seconds(0), warmup_s=Seconds(5))], 1, True),
        ([Load(duration_s=Seconds(5))], 1, False),
        ([Load(duration_s=Seconds(5))], 6, False),
        ([Load(requests=Count(5))], 6, False),
        ([Load(duration_s=Seconds(0)), Load(duration_s=Seconds(5))], 4, False),
        ([Load(duration_s=Seconds(0)), Load(duration_s=Seconds(5))], 5, True),
        ([Load(duration_s=Seconds(0)), Load(requests=Count(5))], 60, False),
    ],
)
def test_a_stop_is_planned_if_a_load_runs_until_stopped_and_all_others_have_ended(
    loads: list[Load], ran_s: float, is_planned: bool
) -> None:
    whole = msgspec.structs.replace(plan(), load=loads[0])
    if len(loads) > 1:
        scenarios = tuple(
            Scenario(name=f"s{number}", pools=whole.pools, workload=whole.workload, load=load)
            for number, load in enumerate(loads)
        )
        whole = msgspec.structs.replace(whole, load=Load(), scenarios=scenarios)
    record = opened(whole)
    if whole.scenarios:
        record = msgspec.structs.replace(record, threads=(1, 1), connection_ceilings=(1, 1))
    assert is_planned_stop(fold([record]), round(ran_s * NS_PER_S)) is is_planned


LOSS = "the target was lost in second 3 of 10 and did not come back: ConnectionError 7"


def test_a_lost_target_decides_the_exit_code_before_lost_agents() -> None:
    assert OutcomeTracker().outcome(ALL, 0, LOSS) == (Outcome.DEGRADED, LOSS, 4)
    assert OutcomeTracker().outcome(ONE_LOST, 0, LOSS) == (Outcome.DEGRADED, f"{LOSS}; lost b", 4)
    assert OutcomeTracker().outcome(ONE_LOST, 1, LOSS)[2] == 4


def test_an_interrupted_run_with_a_lost_target_reports_both() -> None:
    assert OutcomeTracker(interrupted=True).outcome(ALL, 0, LOSS) == (Outcome.INTERRUPTED, LOSS, 130)


def test_a_run_that_was_given_up_for_its_target_reports_how_the_target_was_lost() -> None:
    tracker = OutcomeTracker(aborted="no operation succeeded for 30 s", exit_code=4)
    assert tracker.outcome(ALL, 0, LOSS) == (Outcome.ABORTED, f"no operation succeeded for 30 s; {LOSS}", 4)


def test_problems_of_one_agent_cannot_fill_the_report() -> None:
    tracker = OutcomeTracker()
    for number in range(10_000):
        tracker.add_problem("a", f"agent a: worker process {number} died")
    text = tracker.outcome(ALL, 0)[1]
    assert len(text) < 2000
    assert "more" in text


def test_a_run_lasts_until_its_last_agent_ended() -> None:
    assert duration_s([member("a", ran_s=2.0), member("b", ran_s=3.5)], T0_NS) == 3.5


def test_a_run_without_any_final_lasts_until_the_last_message() -> None:
    assert duration_s([member("a", ran_s=None)], T0_NS) == 7.0


def test_a_run_that_never_began_lasted_no_time() -> None:
    assert duration_s([], None) == 0.0
    assert duration_s([member("a", ran_s=None)], T0_NS + 60 * NS_PER_S) == 0.0
