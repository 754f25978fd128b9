from __future__ import annotations

import json

from scripts.benchmark.figures import Reading
from scripts.benchmark.report import (
    DRIVER,
    LEAST,
    TASK_DRIVER,
    DriverComparison,
    Scaling,
    comparison_lines,
    scaling_lines,
)


def readings(operations: int, generator_cpu_s: float = 0.4, server_cpu_s: float = 0.1) -> list[Reading]:
    return [Reading(operations, 0.5, generator_cpu_s, server_cpu_s, 0.9)] * 3


def test_a_driver_at_95_percent_of_a_bare_loop_is_enough_and_below_it_is_not() -> None:
    comparison = DriverComparison(4, {DRIVER: readings(950), "quick": readings(1001), "slow": readings(1000)})
    assert comparison.document()["met"] == {"quick": False, "slow": True}
    assert [judged.verdict for judged in comparison.verdicts()] == ["BELOW", "ok"]
    driver, quick, slow = comparison.lines()
    assert "BELOW" not in driver
    assert quick.endswith("BELOW")
    assert slow.endswith("ok")


def test_the_driver_of_tasks_is_judged_by_its_own_bare_loop_and_counts_tasks() -> None:
    comparison = DriverComparison(8, {TASK_DRIVER: readings(949), "bare": readings(1000)}, TASK_DRIVER)
    assert comparison.document()["met"] == {"bare": False}
    assert comparison.document()["tasks"] == 8
    head, _, bare = comparison_lines([comparison], cores=16)
    assert head.split()[0] == "tasks"
    assert bare.endswith("BELOW")


def test_the_least_that_there_is_is_shown_but_not_judged() -> None:
    comparison = DriverComparison(4, {DRIVER: readings(100), LEAST: readings(1000)})
    assert comparison.document()["met"] == {}
    assert comparison.document()["ratios"][LEAST]["median"] == 0.1
    assert "BELOW" not in "".join(comparison.lines())


def test_cpu_is_compared_per_operation() -> None:
    comparison = DriverComparison(1, {DRIVER: readings(1000, 0.4), "bare": readings(2000, 0.4)})
    assert comparison.cpu_ratio("bare") == 2.0


def test_two_processes_are_enough_at_1_6_times_one() -> None:
    assert Scaling(1, 8, readings(1000), readings(1600)).verdict == "ok"
    assert Scaling(1, 8, readings(1000), readings(1599)).verdict == "BELOW"


def test_two_processes_that_filled_the_cores_with_the_server_could_do_no_more() -> None:
    full = readings(1200, generator_cpu_s=0.65, server_cpu_s=0.3)
    assert Scaling(4, 2, readings(1000), full).verdict == "all cores full"
    assert Scaling(4, 4, readings(1000), full).verdict == "BELOW"


def test_cores_that_other_work_filled_decide_nothing() -> None:
    one, two = readings(1000), [Reading(1200, 0.5, 0.3, 0.2, 0.95)] * 3
    assert Scaling(1, 2, one, two).verdict.startswith("undecided")


def test_figures_from_a_busy_machine_are_called_rough() -> None:
    comparison = DriverComparison(
        4, {DRIVER: readings(950), "bare": readings(1000)}
    )  # other work: 0.4 s of 0.5 s x cores
    assert [*comparison_lines([comparison], cores=2)][-1].startswith("rough: other work on this machine took 40%")
    assert not [*comparison_lines([comparison], cores=16)][-1].startswith("rough")


def test_the_report_says_what_else_kept_the_cores_busy() -> None:
    lines = [*scaling_lines([Scaling(1, 2, readings(1000), readings(1200, 0.3, 0.2))])]
    assert "server and generator used 50% of 2 cores, everything else 40%" in lines[-1]


def test_the_document_is_json_and_holds_every_reading() -> None:
    comparison = DriverComparison(4, {DRIVER: readings(950), "bare": readings(1000)})
    scaling = Scaling(1, 2, readings(1000), readings(1200))
    document = json.loads(json.dumps([comparison.document(), scaling.document()]))
    assert document[0]["contenders"]["bare"]["rounds"][2]["operations"] == 1000
    assert document[1]["two"]["rounds"][0]["generator_cpu_s"] == 0.4


def test_every_number_of_threads_has_its_lines() -> None:
    comparisons = [DriverComparison(n, {DRIVER: readings(950), "bare": readings(1000)}) for n in (1, 4)]
    assert [line.split()[0] for line in comparison_lines(comparisons, cores=8)] == ["threads", "1", "1", "4", "4"]
