from __future__ import annotations

import json

from scripts.benchmark.driver_report import (
    DRIVER,
    PREGENERATED,
    TASK_DRIVER,
    DriverComparison,
    Scaling,
    comparison_lines,
    scaling_lines,
)
from scripts.benchmark.turn_stats import TurnResult


def turns(operations: int, generator_cpu_s: float = 0.4, server_cpu_s: float = 0.1) -> list[TurnResult]:
    return [TurnResult(operations, 0.5, generator_cpu_s, server_cpu_s, 0.9)] * 3


def test_a_driver_meets_its_goal_at_95_percent_of_a_baseline() -> None:
    comparison = DriverComparison(4, {DRIVER: turns(950), "fast": turns(1001), "slow": turns(1000)})
    assert comparison.document()["met"] == {"fast": False, "slow": True}
    assert [result.verdict for result in comparison.goal_results()] == ["MISSED", "ok"]
    driver, fast, slow = comparison.lines()
    assert "MISSED" not in driver
    assert fast.endswith("MISSED")
    assert slow.endswith("ok")


def test_the_asyncio_driver_is_judged_by_its_own_baseline_and_counts_tasks() -> None:
    comparison = DriverComparison(8, {TASK_DRIVER: turns(949), "bare": turns(1000)}, TASK_DRIVER)
    assert comparison.document()["met"] == {"bare": False}
    assert comparison.document()["tasks"] == 8
    head, _, baseline = comparison_lines([comparison], cores=16)
    assert head.split()[0] == "tasks"
    assert baseline.endswith("MISSED")


def test_the_lower_bound_is_shown_but_not_judged() -> None:
    comparison = DriverComparison(4, {DRIVER: turns(100), PREGENERATED: turns(1000)})
    assert comparison.document()["met"] == {}
    assert comparison.document()["ratios"][PREGENERATED]["median"] == 0.1
    assert "MISSED" not in "".join(comparison.lines())


def test_cpu_is_compared_per_operation() -> None:
    comparison = DriverComparison(1, {DRIVER: turns(1000, 0.4), "bare": turns(2000, 0.4)})
    assert comparison.cpu_ratio("bare") == 2.0


def test_two_processes_meet_their_goal_at_1_6_times_one() -> None:
    assert Scaling(1, 8, turns(1000), turns(1600)).verdict == "ok"
    assert Scaling(1, 8, turns(1000), turns(1599)).verdict == "MISSED"


def test_a_missed_goal_is_explained_by_full_cores() -> None:
    full = turns(1200, generator_cpu_s=0.65, server_cpu_s=0.3)
    assert Scaling(4, 2, turns(1000), full).verdict == "all cores full"
    assert Scaling(4, 4, turns(1000), full).verdict == "MISSED"


def test_the_verdict_is_undecided_if_other_work_filled_the_cores() -> None:
    one, two = turns(1000), [TurnResult(1200, 0.5, 0.3, 0.2, 0.95)] * 3
    assert Scaling(1, 2, one, two).verdict.startswith("undecided")


def test_numbers_from_a_busy_machine_are_called_rough() -> None:
    comparison = DriverComparison(4, {DRIVER: turns(950), "bare": turns(1000)})  # other work: 0.4 s of 0.5 s x cores
    assert [*comparison_lines([comparison], cores=2)][-1].startswith("rough: other work on this machine used 40%")
    assert not [*comparison_lines([comparison], cores=16)][-1].startswith("rough")


def test_the_report_shows_how_much_other_work_used_the_cores() -> None:
    lines = [*scaling_lines([Scaling(1, 2, turns(1000), turns(1200, 0.3, 0.2))])]
    assert "server and generator used 50% of 2 cores, everything else 40%" in lines[-1]


def test_the_document_is_json_with_every_turn() -> None:
    comparison = DriverComparison(4, {DRIVER: turns(950), "bare": turns(1000)})
    scaling = Scaling(1, 2, turns(1000), turns(1200))
    document = json.loads(json.dumps([comparison.document(), scaling.document()]))
    assert document[0]["contenders"]["bare"]["rounds"][2]["operations"] == 1000
    assert document[1]["two"]["rounds"][0]["generator_cpu_s"] == 0.4


def test_the_table_has_rows_for_every_number_of_threads() -> None:
    comparisons = [DriverComparison(n, {DRIVER: turns(950), "bare": turns(1000)}) for n in (1, 4)]
    assert [line.split()[0] for line in comparison_lines(comparisons, cores=8)] == ["threads", "1", "1", "4", "4"]
