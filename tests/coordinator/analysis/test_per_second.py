from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.metrics.intervals import IntervalMetrics
from common.plan.schema import Load, Ramp
from common.units import NS_PER_S, Count, PerSecond, Seconds
from coordinator.analysis.per_second import ShownSeconds
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.journal.records import AnyRecord, RunOpened
from tests.support.records import (
    accepted,
    closed,
    command,
    histogram,
    interval,
    noted,
    opened,
    plan,
    staged_plan,
    watched,
)
from tests.support.scenarios import two
from tests.support.stages import stage


def of_counts(*counts: int, duration_s: float, ended: bool = True) -> Aggregate:
    """A run of one agent, planned for three seconds; counts: its operations per second."""
    parts = [interval(second, {"GET": command(histogram(*[1000] * count))}) for second, count in enumerate(counts)]
    records: list[AnyRecord] = [opened(agents=["a1"]), accepted("a1", 0, *parts)]
    if ended:
        records += [noted("a1", sum(counts), ran_ns=round(duration_s * NS_PER_S)), closed(duration_s=duration_s)]
    return fold(records)


def rows(run: Aggregate) -> list[tuple[int, int, float]]:
    """Return (second, operations, rate) of each row."""
    return [(row.number, row.second.ok, round(row.ops_per_s, 3)) for row in ShownSeconds(run)]


@pytest.mark.parametrize(
    ("counts", "duration_s", "expected"),
    [
        ((8, 8, 7, 1), 3.0, [(0, 8, 8.0), (1, 8, 8.0), (2, 8, 8.0)]),
        ((8, 8, 2), 2.25, [(0, 8, 8.0), (1, 10, 8.0)]),
        ((8, 8, 6), 2.75, [(0, 8, 8.0), (1, 8, 8.0), (2, 6, 8.0)]),
        ((2,), 0.25, [(0, 2, 8.0)]),
    ],
    ids=("after the load", "ends early in a second", "ends late in a second", "less than half a second"),
)
def test_a_short_last_second_joins_the_second_before(
    counts: tuple[int, ...], duration_s: float, expected: list[tuple[int, int, float]]
) -> None:
    assert rows(of_counts(*counts, duration_s=duration_s)) == expected


def test_all_figures_of_a_short_last_second_join_the_second_before() -> None:
    def part(second: int) -> IntervalMetrics:
        one = command(histogram(1000), errors={"ERR": 2}, failures={"TimeoutError": 3})
        return interval(second, {"GET": one}, issued=7, open_peak=5 + second)

    records = [opened(plan(rate_per_s=2.0), ["a1"]), *watched([accepted("a1", 0, part(0), part(1))], {"a1": 0.5})]
    [row] = ShownSeconds(fold([*records, closed(duration_s=1.0)]))
    whole = row.second
    assert (whole.operations, whole.ok, whole.errors, whole.begun, whole.ended_open) == (12, 2, 10, 14, 12)
    assert (whole.failures, whole.refusals) == ({"TimeoutError": 6}, {"ERR": 4})
    assert (whole.open_peaks, whole.core_share) == ({"a1": 6}, 0.5)


def test_a_drain_of_several_seconds_has_rows_of_its_own() -> None:
    run = of_counts(8, 8, 8, 0, 0, 2, duration_s=3.0)
    assert rows(run) == [(0, 8, 8.0), (1, 8, 8.0), (2, 8, 8.0), (4, 0, 0.0), (5, 2, 2.0)]
    assert [row.drains for row in ShownSeconds(run)] == [False] * 3 + [True] * 2


def test_the_mean_rate_uses_the_duration_of_the_load() -> None:
    assert ShownSeconds(of_counts(8, 8, 2, duration_s=2.25)).mean_ops_per_s == 8.0
    assert ShownSeconds(of_counts(8, 8, 7, 1, duration_s=3.0)).mean_ops_per_s == 8.0
    assert ShownSeconds(fold([opened()])).mean_ops_per_s == 0.0


@pytest.mark.parametrize(("seconds", "final"), [(2, 1), (3, 1), (4, 3), (5, 4)])
def test_the_last_second_is_final_when_no_short_second_can_join_it(seconds: int, final: int) -> None:
    run = of_counts(*[8] * seconds, duration_s=3.0, ended=False)
    assert ShownSeconds(run).final_through == final
    assert ShownSeconds(of_counts(*[8] * seconds, duration_s=3.0)).final_through == seconds - 1


def test_without_a_planned_end_the_newest_second_is_not_final() -> None:
    by_requests = msgspec.structs.replace(plan(), load=Load(requests=Count(100)))
    run = fold([opened(by_requests, ["a1"]), accepted("a1", 0, interval(0, {}), interval(1, {}))])
    assert (ShownSeconds(run).complete, ShownSeconds(run).final_through) == ((0, 1), 0)


def test_a_row_of_a_ramp_has_the_mean_target_rate_of_its_second() -> None:
    ramp = staged_plan(stage(3, 300, Ramp.LINEAR), stage(1, 300), stage(1))
    parts = [interval(second, {}, stage=0) for second in range(5)]
    run = fold([opened(ramp, ["a1"]), accepted("a1", 0, *parts)])
    assert [row.wanted_per_s for row in ShownSeconds(run)] == [50.0, 150.0, 250.0, 300.0, None]


def test_late_reports_of_a_lost_agent_correct_its_seconds() -> None:
    get = {"GET": command(histogram(1000))}
    run = fold([opened(), accepted("a1", 0, interval(0, get)), accepted("a2", 0, interval(0, get))])
    run.apply(noted("a2", 0, lost=True))
    run.apply(accepted("a1", 1, interval(1, get)))
    assert ShownSeconds(run).corrected == ()
    run.apply(accepted("a2", 1, interval(1, get)))
    assert ShownSeconds(run).corrected == (1,)
    # A single late operation is no correction.
    run.apply(accepted("a2", 2, interval(0, get), through=1))
    assert ShownSeconds(run).corrected == (1,)


@given(
    st.lists(st.integers(0, 20), max_size=9),
    st.floats(0, 12, allow_nan=False),
    st.booleans(),
)
def test_every_operation_is_in_exactly_one_row(counts: list[int], duration_s: float, ended: bool) -> None:
    run = of_counts(*counts, duration_s=duration_s, ended=ended)
    found = list(ShownSeconds(run))
    assert sum(row.second.ok for row in found) == sum(row.second.service.merged.count for row in found) == sum(counts)
    assert all(row.length_s > 0 for row in found)
    assert [row.number for row in found] == sorted({row.number for row in found})


def test_a_scenario_whose_requests_are_done_wants_no_more() -> None:
    run = two()
    first = run[0]
    assert isinstance(first, RunOpened)
    reads, writes = first.plan.scenarios
    counted = msgspec.structs.replace(reads, load=Load(requests=Count(5), rate_per_s=PerSecond(5)))
    at_a_rate = msgspec.structs.replace(writes, load=Load(duration_s=Seconds(1), rate_per_s=PerSecond(7)))
    run[0] = msgspec.structs.replace(first, plan=msgspec.structs.replace(first.plan, scenarios=(counted, at_a_rate)))
    assert [row.wanted_per_s for row in ShownSeconds(fold(run))] == [5.0, 7.0]


def test_the_last_row_has_the_hits_and_misses_of_replies_after_the_load() -> None:
    found = {"GET": command(histogram(1000, 1000), hits=1, misses=1)}
    parts = [interval(second, found) for second in range(3)]
    records = [opened(agents=["a1"]), accepted("a1", 0, *parts), noted("a1", 6, ran_ns=2 * NS_PER_S)]
    *_, last = ShownSeconds(fold([*records, closed(duration_s=2.0)]))
    assert (last.number, last.second.hits, last.second.misses) == (1, {"GET": 2}, {"GET": 2})
