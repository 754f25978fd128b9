from __future__ import annotations

import io

import msgspec
import pytest
from rich.console import Console

from common.plan.schema import Load, Ramp
from common.units import Count, Seconds
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.live.snapshot import SECONDS_SHOWN, LatencyTimes, LiveAgent, LiveSecond, LiveStage, build_snapshot
from coordinator.live.view import open_live
from tests.support.records import accepted, command, histogram, interval, opened, plan, staged_plan, watched
from tests.support.stages import stage

AGENTS = [LiveAgent("a1", "localhost", "running", 50.0, 0.5, 12.0)]


def test_only_complete_seconds_are_shown() -> None:
    get = {"GET": command(histogram(1000, 2000, 9000), errors={"ERR": 1})}
    aggregate = fold(
        [opened(), accepted("a1", 0, interval(0, get), interval(1, get)), accepted("a2", 0, interval(0, get))]
    )
    snapshot = build_snapshot(aggregate, AGENTS, 1.5)
    assert snapshot.rows == (LiveSecond(0, 6, 2, LatencyTimes(2.0, 9.0, 9.0)),)
    assert (snapshot.operations, snapshot.ok, snapshot.errors) == (12, 9, 3)
    assert snapshot.ops_per_s == 6.0
    assert (snapshot.connections_open, snapshot.connection_ceiling) == (4, 100)
    assert snapshot.agents == tuple(AGENTS)


def test_every_view_has_a_line_with_the_number_of_standbys() -> None:
    aggregate = fold([opened(agents=["a1"]), accepted("a1", 0, interval(0, {}))])
    snapshot = build_snapshot(aggregate, AGENTS, 1.5, standing_by=2)
    for is_terminal in (True, False):
        console = Console(file=io.StringIO(), width=100, force_terminal=is_terminal, force_interactive=is_terminal)
        with open_live(console, quiet=False) as view:
            view.update(snapshot)
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert any("2 standing by" in line for line in lines)


def test_a_second_without_replies_has_no_latencies() -> None:
    aggregate = fold([opened(agents=["a1"]), accepted("a1", 0, interval(0, {}))])
    assert build_snapshot(aggregate, AGENTS, 1.5).rows == (LiveSecond(0, 0, 0, None),)


def test_a_second_has_the_share_of_its_busiest_process() -> None:
    one = accepted("a1", 0, interval(0, {}), interval(1, {}), interval(2, {}))
    other = accepted("a2", 0, interval(0, {}), interval(1, {}), interval(2, {}))
    aggregate = fold([opened(), *watched([one, other], {"a1": 0.25, "a2": 0.75})])
    assert [row.core_share for row in build_snapshot(aggregate, AGENTS, 3.0).rows] == [0.75, 0.75, 0.75]
    # A second in several parts, as between two stages, counts as a whole.
    [part] = watched([accepted("a2", 1, interval(1, {}))], {"a2": 0.25})
    aggregate.apply(part)
    assert [row.core_share for row in build_snapshot(aggregate, AGENTS, 3.0).rows] == [0.75, 0.5, 0.75]


def test_only_the_last_seconds_are_shown() -> None:
    aggregate = fold([opened(agents=["a1"]), accepted("a1", 0, *(interval(second, {}) for second in range(30)))])
    assert [row.second for row in build_snapshot(aggregate, [], 30).rows] == list(range(30 - SECONDS_SHOWN, 30))


@pytest.mark.parametrize(
    ("load", "elapsed_s", "left_s", "left_requests", "fraction"),
    [
        (Load(duration_s=Seconds(10)), 2.5, 7.5, None, 0.25),
        (Load(duration_s=Seconds(10)), -0.5, 10.0, None, 0.0),
        (Load(duration_s=Seconds(10)), 10.7, 0.0, None, 1.0),
        (Load(requests=Count(8)), 2.5, None, 6, 0.25),
        (Load(requests=Count(8), duration_s=Seconds(10)), 6.0, 4.0, 6, 0.6),
    ],
)
def test_the_remaining_time_and_requests_follow_from_the_plan(
    load: Load, elapsed_s: float, left_s: float | None, left_requests: int | None, fraction: float
) -> None:
    done = accepted("a1", 0, interval(0, {"GET": command(histogram(1, 2))}))
    snapshot = build_snapshot(fold([opened(msgspec.structs.replace(plan(), load=load)), done]), [], elapsed_s)
    assert (snapshot.left_s, snapshot.left_requests) == (left_s, left_requests)
    assert snapshot.fraction == pytest.approx(fraction)


def test_an_endless_load_has_no_remaining_time() -> None:
    endless = msgspec.structs.replace(plan(), load=Load(duration_s=Seconds(0)))
    snapshot = build_snapshot(fold([opened(endless)]), [], 2.5)
    assert (snapshot.left_s, snapshot.left_requests, snapshot.fraction) == (None, None, None)
    assert snapshot.until_stopped


def test_a_snapshot_before_the_run_is_empty() -> None:
    snapshot = build_snapshot(Aggregate(), [], -1.0)
    assert (snapshot.rows, snapshot.operations, snapshot.connections_open, snapshot.left_s) == ((), 0, 0, None)


def test_the_snapshot_has_the_current_stage_and_its_current_rate() -> None:
    aggregate = fold([opened(staged_plan(stage(2, 100), stage(2, 300, Ramp.LINEAR), stage(1), warmup_s=1))])
    found = [build_snapshot(aggregate, [], elapsed_s).stage for elapsed_s in (-0.5, 0.5, 1.5, 4.0, 5.5)]
    assert found == [
        None,
        LiveStage("warmup", 1, 4, 100.0, False),
        LiveStage("stage 1", 2, 4, 100.0, True),
        LiveStage("stage 2", 3, 4, 200.0, True),
        LiveStage("stage 3", 4, 4, None, True),
    ]
    assert build_snapshot(aggregate, [], 1.5).left_s == 4.5


def test_the_seconds_include_the_warmup_and_the_totals_do_not() -> None:
    get = {"GET": command(histogram(1000, 2000))}
    load = Load(requests=Count(8), warmup_s=Seconds(1))
    parts = (interval(0, get, unsent=3), interval(1, get, stage=1), interval(2, {}, stage=1))
    records = [opened(msgspec.structs.replace(plan(), load=load), ["a1"]), accepted("a1", 0, *parts)]
    snapshot = build_snapshot(fold(records), [], 3.0)
    assert [(row.second, row.ok, row.stage) for row in snapshot.rows] == [
        (0, 2, "warmup"),
        (1, 2, "measure"),
        (2, 0, "measure"),
    ]
    assert (snapshot.operations, snapshot.ok, snapshot.unsent, snapshot.left_requests) == (2, 2, 0, 6)
    assert snapshot.ops_per_s == 1.0
