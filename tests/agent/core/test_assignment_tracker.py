from __future__ import annotations

import random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from agent.core.assignment_tracker import AssignmentTracker
from common.plan.schema import Load
from common.protocol.messages import WorkerFinal, WorkerMetrics
from common.units import NS_PER_S, Seconds
from tests.support.protocol import assignment, fleet_plan, interval, ready, worker_final, worker_metrics
from tests.support.stages import stage


def share(processes: int = 2) -> AssignmentTracker:
    return AssignmentTracker.of((assignment(pools=processes),), processes)


def test_there_are_no_more_processes_than_pools() -> None:
    assert len(AssignmentTracker.of((assignment(pools=2),), 8).assignments) == 2


def test_an_assignment_without_pools_needs_no_process() -> None:
    empty = AssignmentTracker.of((assignment(pools=0),), 8)
    assert empty.assignments == ()
    assert empty.all_prepared
    assert empty.all_over
    assert empty.final(0, "").drained


@given(st.integers(0, 40), st.integers(1, 12))
def test_every_pool_is_dealt_to_exactly_one_process(pools: int, processes: int) -> None:
    hands = [part.pools for part in AssignmentTracker.of((assignment(pools=pools),), processes).assignments]
    assert sorted(pool.number for hand in hands for pool in hand) == list(range(pools))
    assert all(hands)
    assert not hands or max(map(len, hands)) - min(map(len, hands)) <= 1


def test_all_are_prepared_when_the_last_process_is() -> None:
    two = share()
    two.prepared(0, ready(3))
    assert not two.all_prepared
    two.prepared(1, ready(4))
    assert two.all_prepared
    assert (two.alive, two.connections_open) == (2, 7)


def test_a_second_is_reported_when_every_running_process_has_completed_it() -> None:
    two = share()
    two.reported(0, worker_metrics(1, 5, 6))
    assert two.take_report() is None
    two.reported(1, worker_metrics(0, 7))
    report = two.take_report()
    assert report is not None
    assert (report.through, [part.operations for part in report.intervals]) == (0, [12])
    assert two.take_report() is None


def test_late_operations_of_a_reported_second_are_reported_too() -> None:
    two = share()
    for number in range(2):
        two.reported(number, worker_metrics(1, 1, 1))
    two.take_report()
    two.reported(0, WorkerMetrics(through=1, intervals=(interval(0, 3),)))
    report = two.take_report()
    assert report is not None
    assert (report.through, [part.operations for part in report.intervals]) == (1, [3])


def test_a_process_that_ended_early_does_not_delay_the_others() -> None:
    two = share()
    two.reported(0, worker_metrics(0, 1))
    two.finished(0, worker_final(1))
    two.reported(1, worker_metrics(3, 1, 1, 1, 1))
    report = two.take_report()
    assert report is not None
    assert report.through == 3


def test_a_dead_process_does_not_delay_the_others_and_its_reports_count() -> None:
    two = share()
    two.reported(0, worker_metrics(5, 1, 1, 1, 1, 1, 1))
    assert two.exited(0, -9) is not None
    two.reported(1, worker_metrics(0, 1))
    two.take_report()
    assert two.exited(1, -9) is not None
    report = two.take_report()
    assert report is not None
    assert (report.through, sum(part.operations for part in report.intervals)) == (5, 5)
    final = two.final(2, "")
    assert (final.counted, final.issued, final.processes_lost, final.drained) == (7, 7, 2, True)


def test_the_reason_of_a_lost_process_names_its_scenario_if_there_are_several() -> None:
    probe = msgspec.structs.replace(assignment(), scenario="probe", scenarios=2)
    lost = AssignmentTracker.of((probe,), 1).exited(0, -9)
    assert lost is not None
    assert lost.reason == "worker process 0 of scenario probe ended with exit code -9"


def test_a_process_is_lost_once() -> None:
    two = share()
    lost = two.exited(0, 3)
    assert lost is not None
    assert lost.reason == "worker process 0 ended with exit code 3"
    assert two.exited(0, 3) is None
    assert [one.process for one in two.give_up()] == [1]
    assert two.give_up() == []
    assert two.all_over


def test_an_unknown_process_cannot_be_lost() -> None:
    assert share().exited(7, 1) is None


def test_final_has_the_totals_and_the_worst_figures_of_all_processes() -> None:
    two = share()
    for number, skew_ns in enumerate((500, -900)):
        two.finished(
            number,
            WorkerFinal(issued=5, counted=5, transactions=2, start_skew_ns=skew_ns, ran_ns=number, drained=not number),
        )
    final = two.final(9, "why")
    assert (final.next_seq, final.issued, final.transactions, final.start_skew_ns) == (9, 10, 4, -900)
    assert (final.ran_ns, final.drained, final.reason) == (1, False, "why")


def test_processes_are_overdue_after_the_drain_that_follows_the_planned_end() -> None:
    plan = fleet_plan(duration_s=3.0, drain_s=4.0)
    one = AssignmentTracker.of((assignment(plan),), 1)
    assert one.overdue_ns(100, 50, 7) == 100 + 7 * NS_PER_S + 7


def test_processes_that_start_after_the_planned_end_still_have_the_drain() -> None:
    plan = fleet_plan(duration_s=3.0, drain_s=4.0)
    one = AssignmentTracker.of((assignment(plan),), 1)
    assert one.overdue_ns(100, 9 * NS_PER_S, 7) == 13 * NS_PER_S + 7


def test_processes_of_a_load_without_an_end_are_never_overdue() -> None:
    one = AssignmentTracker.of((assignment(fleet_plan(duration_s=None, requests=5)),), 1)
    assert one.overdue_ns(100, 50, 7) is None


@given(st.integers(1, 4), st.integers(0, 2**32))
def test_each_report_of_a_process_is_passed_on_exactly_once(processes: int, seed: int) -> None:
    draw = random.Random(seed)
    all_of_them = share(processes)
    at, living = [-1] * processes, set(range(processes))
    reported = passed_on = 0
    throughs = [-1]
    while living:
        number = draw.choice(sorted(living))
        match draw.choice(("report", "report", "report", "finish", "die")):
            case "report":
                at[number] += draw.randint(0, 2)
                count = draw.randint(0, 5)
                seconds = [draw.randint(0, max(at[number], 0)) for _ in range(draw.randint(0, 2))]
                parts = tuple(interval(second, count) for second in seconds if second <= at[number])
                all_of_them.reported(number, WorkerMetrics(through=at[number], intervals=parts))
                reported += count * len(parts)
            case "finish":
                all_of_them.finished(number, worker_final())
                living.discard(number)
            case "die":
                all_of_them.exited(number, -9)
                living.discard(number)
        report = all_of_them.take_report()
        if report is not None:
            passed_on += sum(part.operations for part in report.intervals)
            throughs.append(report.through)
    assert passed_on == reported == all_of_them.final(0, "").counted
    assert throughs == sorted(throughs)


def test_metrics_of_processes_are_merged_by_stage() -> None:
    two = share()
    for number in range(2):
        two.reported(number, WorkerMetrics(through=0, intervals=(interval(0, 1), interval(0, 2, stage=1))))
    report = two.take_report()
    assert report is not None
    assert [(part.stage, part.operations) for part in report.intervals] == [(0, 2), (1, 4)]


def test_processes_are_overdue_after_the_warmup_and_all_stages() -> None:
    plan = fleet_plan(duration_s=None, drain_s=4.0)
    load = Load(stages=(stage(1), stage(2, 5)), warmup_s=Seconds(3))
    one = AssignmentTracker.of((assignment(msgspec.structs.replace(plan, load=load)),), 1)
    assert one.overdue_ns(NS_PER_S, 0, 2 * NS_PER_S) == (1 + 6 + 4 + 2) * NS_PER_S


def test_the_seconds_of_a_period_are_reported_together_with_separate_figures() -> None:
    two = share()
    assert two.take_report(7) is None
    for number in range(2):
        two.reported(number, worker_metrics(3, 1, 2, 3, 4))
    assert two.take_report(7) is None
    report = two.take_report(8)
    assert report is not None
    [whole] = report.intervals
    assert (report.through, whole.first, whole.last, whole.operations) == (3, 0, 3, 20)
    assert [(second.number, second.ok, second.issued) for second in whole.seconds] == [
        (0, 2, 2),
        (1, 4, 4),
        (2, 6, 6),
        (3, 8, 8),
    ]
    assert two.take_report(9) is None


def test_a_period_without_a_complete_second_ends_with_the_first_complete_one() -> None:
    two = share()
    assert two.take_report(7) is None
    assert two.take_report(8) is None
    two.reported(0, worker_metrics(0, 5))
    two.reported(1, worker_metrics(0, 5))
    assert two.take_report(8) is not None


def test_when_all_processes_are_over_the_rest_is_reported_at_once() -> None:
    two = share()
    assert two.take_report(7) is None
    for number in range(2):
        two.reported(number, worker_metrics(0, 5))
        two.finished(number, worker_final(5))
    report = two.take_report(7)
    assert report is not None
    assert sum(part.operations for part in report.intervals) == 10


def test_seconds_of_a_period_are_kept_apart_by_stage() -> None:
    one = share(1)
    one.take_report(7)
    parts = (interval(0, 1), interval(1, 2), interval(1, 3, stage=1), interval(2, 4, stage=1), interval(3, 5, stage=2))
    one.reported(0, WorkerMetrics(through=3, intervals=parts))
    report = one.take_report(8)
    assert report is not None
    reported = [
        (part.stage, part.first, part.last, [second.ok for second in part.seconds]) for part in report.intervals
    ]
    assert reported == [(0, 0, 1, [1, 2]), (1, 1, 2, [3, 4]), (2, 3, 3, [])]
