from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.metrics.intervals import CommandMetrics
from common.plan.schema import Arrivals, Driver, Load, Plan, Pools, Ramp, Workload
from common.units import NS_PER_S, Count, PerSecond, Seconds
from coordinator.analysis.backlog import Backlog
from coordinator.analysis.totals.aggregate import Aggregate, fold
from tests.support.records import accepted, interval, opened, plan, staged_plan
from tests.support.stages import stage


def run_of(the_plan: Plan, *counts: int, begun: tuple[int, ...] = (), stages: tuple[int, ...] = ()) -> Aggregate:
    """One agent with one thread; counts: its operations per second."""
    parts = [
        interval(
            second,
            {"GET": CommandMetrics(ok=count)},
            issued=begun[second] if begun else count,
            stage=stages[second] if stages else 0,
        )
        for second, count in enumerate(counts)
    ]
    return fold([opened(the_plan, ["a1"]), accepted("a1", 0, *parts)])


def backlogs(run: Aggregate) -> list[int]:
    return [Backlog(run).at(second, (second + 1) * NS_PER_S) for second in run.seconds]


def test_the_backlog_is_what_was_due_and_is_not_done() -> None:
    assert backlogs(run_of(plan(rate_per_s=100.0), 40, 100, 150)) == [60, 60, 10]


def test_a_load_that_keeps_up_has_no_backlog() -> None:
    assert backlogs(run_of(plan(rate_per_s=100.0), 100, 101, 100)) == [0, 0, 0]


def test_operations_under_way_are_no_backlog_up_to_the_batches_of_all_workers() -> None:
    # The count of begun operations is read some time after the second, so it includes later operations.
    assert backlogs(run_of(plan(rate_per_s=100.0), 90, 100, begun=(95, 95))) == [9, 10]
    assert backlogs(run_of(plan(rate_per_s=100.0, pipeline=4), 90, 100, begun=(95, 95))) == [6, 10]
    wire = msgspec.structs.replace(plan(rate_per_s=100.0), pools=(Pools(driver=Driver.WIRE),))
    assert backlogs(run_of(wire, 40, begun=(95,))) == [5]


def test_operations_that_were_never_sent_stay_in_the_backlog_after_the_load() -> None:
    run = run_of(plan(rate_per_s=100.0, duration_s=2.0), 40, 40, 5)
    assert backlogs(run) == [60, 120, 115]


def test_ramps_count_by_their_integral_and_closed_stages_do_not_count() -> None:
    the_plan = staged_plan(stage(2, 200, Ramp.LINEAR), stage(1), stage(1, 100))
    run = run_of(the_plan, 50, 130, 9999, 90, stages=(0, 0, 1, 2))
    assert backlogs(run) == [0, 20, 20, 30]


def test_operations_of_an_open_stage_may_be_done_in_a_later_stage() -> None:
    the_plan = staged_plan(stage(1, 100), stage(1))
    late = [
        interval(0, {"GET": CommandMetrics(ok=40)}),
        interval(1, {"GET": CommandMetrics(ok=50)}, stage=0),
        interval(1, {"GET": CommandMetrics(ok=500)}, stage=1),
    ]
    assert backlogs(fold([opened(the_plan, ["a1"]), accepted("a1", 0, *late)])) == [60, 10]


def test_only_the_requests_and_the_warmup_are_due() -> None:
    load = Load(rate_per_s=PerSecond(100), requests=Count(150), warmup_s=Seconds(1))
    the_plan = msgspec.structs.replace(plan(), load=load)
    assert backlogs(run_of(the_plan, 100, 90, 10, stages=(0, 1, 1))) == [0, 10, 50]


def test_the_chance_of_poisson_arrivals_is_no_backlog() -> None:
    load = Load(rate_per_s=PerSecond(10_000), duration_s=Seconds(3), arrivals=Arrivals.POISSON)
    the_plan = msgspec.structs.replace(plan(), load=load)
    assert backlogs(run_of(the_plan, 9_700, 10_000, 8_000)) == [0, 0, 2300]


def test_a_run_without_seconds_has_no_backlog() -> None:
    assert Backlog(fold([opened(plan(rate_per_s=1.0))])).at(0, NS_PER_S) == 0
    assert Backlog(Aggregate()).at(3, NS_PER_S) == 0


@given(
    rate=st.floats(0.1, 1e6),
    counts=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=5),
)
def test_the_backlog_is_never_negative_and_never_more_than_was_due(rate: float, counts: list[tuple[int, int]]) -> None:
    run = run_of(plan(rate_per_s=rate), *(done for done, _ in counts), begun=tuple(begun for _, begun in counts))
    for second, behind in enumerate(backlogs(run)):
        assert 0 <= behind <= rate * min(second + 1, 3) + 1


@pytest.mark.parametrize("span", [1, 3])
def test_an_interval_of_several_seconds_counts_in_each(span: int) -> None:
    part = interval(0, {"GET": CommandMetrics(ok=30 * span)}, last=span - 1)
    run = fold([opened(plan(rate_per_s=100.0), ["a1"]), accepted("a1", 0, part)])
    assert backlogs(run) == [70 * (second + 1) for second in range(span)]


def test_the_workers_of_all_pools_count_as_under_way() -> None:
    pools = (Pools(name="a"), Pools(name="b", driver=Driver.WIRE))
    the_plan = msgspec.structs.replace(plan(rate_per_s=1000.0), pools=pools, workload=Workload(pipeline=2))
    assert backlogs(run_of(the_plan, 0, begun=(900,))) == [1000 - 2 * 101]
