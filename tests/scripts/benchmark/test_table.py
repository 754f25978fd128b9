from __future__ import annotations

import json

import pytest

from scripts.benchmark.cells import Cell
from scripts.benchmark.figures import Reading
from scripts.benchmark.table import GOALS, Goal, Measured, matrix_judged, matrix_lines


def readings(operations: int, generator_cpu_s: float = 0.5) -> list[Reading]:
    return [Reading(operations, 0.5, generator_cpu_s, 0.2, 0.9)] * 3


def measured(rival: str, wire: list[Reading], other: list[Reading], cell: Cell) -> Measured:
    return Measured(cell, {"wire": wire, rival: other}, {})


@pytest.mark.parametrize(("operations", "verdict"), [(1150, "ok"), (1149, "BELOW")])
def test_memtier_is_to_be_beaten_by_15_percent_at_50_connections_without_pipelines(
    operations: int, verdict: str
) -> None:
    one = measured("memtier_benchmark", readings(operations), readings(1000), Cell(50, 1, 1024, 10))
    assert [judged.verdict for judged in matrix_judged([one])] == [verdict]


def test_less_cpu_is_not_enough_where_less_is_done() -> None:
    slow = measured("memtier_benchmark", readings(900, generator_cpu_s=0.1), readings(1000), Cell(50, 10, 100, 10))
    assert [judged.verdict for judged in matrix_judged([slow])] == ["BELOW"]


def test_what_was_not_asked_for_is_shown_and_not_judged() -> None:
    cells = [Cell(1, 1, 100, 10), Cell(200, 1, 100, 10)]
    few = [measured("memtier_benchmark", readings(1), readings(1000), cell) for cell in cells]
    large = measured("redis-benchmark", readings(1), readings(1000), Cell(50, 1, 1024, 10))
    assert matrix_judged([*few, large]) == []
    assert [line.split()[0] for line in matrix_lines([large], cores=16) if line.startswith("  redis")] == [
        "redis-benchmark"
    ]


def test_without_the_wire_driver_nothing_is_compared_with_it() -> None:
    one = Measured(Cell(50, 1, 100, 10), {"memtier_benchmark": readings(1000)}, {})
    assert matrix_judged([one]) == []
    assert "wire" not in "\n".join(matrix_lines([one], cores=16))


def test_who_cannot_do_a_cell_is_named_with_the_reason() -> None:
    one = Measured(Cell(1, 10, 100, 10), {"wire": readings(1)}, {"Locust": "it has no pipelines"})
    assert [*matrix_lines([one], cores=16)][-1].split(maxsplit=1) == ["Locust", "not here: it has no pipelines"]


def test_a_goal_that_names_no_cell_is_for_all_of_them() -> None:
    assert Goal("any", 1.0).applies(Cell(3, 4, 5, 6))
    assert not Goal("any", 1.0, pipeline=3).applies(Cell(3, 4, 5, 6))
    nine = [Cell(count, depth, 100, 10) for count in (1, 50, 200) for depth in (1, 10, 50)]
    assert [sum(goal.applies(cell) for cell in nine) for goal in GOALS] == [1, 1, 1, 9, 9]


def test_the_document_is_json_and_holds_every_reading() -> None:
    one = measured("memtier_benchmark", readings(10), readings(20), Cell(50, 1, 100, 10))
    document = json.loads(json.dumps(one.document()))
    assert (document["connections"], document["pipeline"], document["value_bytes"]) == (50, 1, 100)
    assert [turn["operations"] for turn in document["contenders"]["memtier_benchmark"]["rounds"]] == [20] * 3


def test_figures_from_a_busy_machine_are_called_rough() -> None:
    one = measured("resp-benchmark", readings(10), readings(20), Cell(50, 1, 100, 10))  # other work: 0.2 s of 0.5 s
    assert [*matrix_lines([one], cores=1)][-1].startswith("rough: other work on this machine took 40%")
    assert not [*matrix_lines([one], cores=16)][-1].startswith("rough")
