from __future__ import annotations

import msgspec
import pytest

from coordinator.analysis.ledger import audit
from coordinator.analysis.leg_results import StageResult, stage_results
from coordinator.analysis.totals.aggregate import fold
from tests.support.records import accepted, closed, command, histogram, interval, noted, opened, staged_plan
from tests.support.stages import stage

PLAN = staged_plan(stage(1, 2), stage(2), stage(1, 4), warmup_s=1)


def results(counts: list[int], *, issued: int, duration_s: float) -> tuple[StageResult, ...]:
    """A run of one agent; counts: its operations per leg."""
    parts = [
        interval(number, {"GET": command(histogram(*[1000] * count))}, stage=number)
        for number, count in enumerate(counts)
    ]
    note = noted("a1", sum(counts), issued=issued)
    run = fold([opened(PLAN, ["a1"]), accepted("a1", 0, *parts), note, closed(duration_s=duration_s)])
    return stage_results(run, audit(run))


def test_each_leg_has_its_duration_its_target_and_its_result() -> None:
    found = results([3, 2, 9, 4], issued=18, duration_s=5.0)
    assert [one.duration_s for one in found] == [1.0, 1.0, 2.0, 1.0]
    assert [one.wanted for one in found] == [2.0, 2.0, 0.0, 4.0]
    assert [one.issued for one in found] == [3, 2, 9, 4]
    assert [one.achieved_per_s for one in found] == [3.0, 2.0, 4.5, 4.0]


@pytest.mark.parametrize(("duration_s", "last_stage"), [(5.0, 3), (2.5, 2), (0.5, 0)])
def test_operations_that_never_ended_belong_to_the_last_stage(duration_s: float, last_stage: int) -> None:
    found = results([3, 2, 9, 4], issued=21, duration_s=duration_s)
    assert sum(one.issued for one in found) == 21
    assert found[last_stage].issued == found[last_stage].tally.operations + 3


def test_a_run_that_was_cut_short_wanted_only_what_was_due_until_then() -> None:
    found = results([3, 1, 0, 0], issued=4, duration_s=1.5)
    assert [one.wanted for one in found] == [2.0, 1.0, 0.0, 0.0]
    assert [one.achieved_per_s for one in found[2:]] == [0.0, 0.0]


def test_late_operations_are_not_in_the_rate_of_their_stage_except_one_batch_per_thread() -> None:
    get = command(histogram(*[1000] * 10))

    def in_time(late: int, pipeline: int) -> int:
        workload = msgspec.structs.replace(PLAN.workload, pipeline=pipeline)
        the_plan = msgspec.structs.replace(PLAN, workload=workload)
        parts = accepted("a1", 0, interval(2, {"GET": get}, stage=1, late=late))
        run = fold([opened(the_plan), parts, closed()])
        found = stage_results(run, audit(run))[1]
        assert found.achieved_per_s == found.in_time / 1.0
        return found.in_time

    # Two threads.
    assert (in_time(7, 1), in_time(2, 1), in_time(7, 3), in_time(6, 3)) == (5, 10, 9, 10)
