from __future__ import annotations

import json

import pytest

from scripts.benchmark.case_report import GOALS, CaseResult, Goal, case_lines
from scripts.benchmark.cases import Case
from scripts.benchmark.turn_stats import TurnResult


def turns(operations: int, generator_cpu_s: float = 0.5) -> list[TurnResult]:
    return [TurnResult(operations, 0.5, generator_cpu_s, 0.2, 0.9)] * 3


def result_of(rival: str, wire: list[TurnResult], other: list[TurnResult], case: Case) -> CaseResult:
    return CaseResult(case, {"wire": wire, rival: other}, {})


def verdicts(result: CaseResult) -> list[str]:
    return [goal.verdict for goal in result.goal_results()]


@pytest.mark.parametrize(("operations", "verdict"), [(1150, "ok"), (1149, "MISSED")])
def test_the_goal_against_memtier_is_15_percent_at_50_connections_without_pipelines(
    operations: int, verdict: str
) -> None:
    result = result_of("memtier_benchmark", turns(operations), turns(1000), Case(50, 1, 1024, 10))
    assert verdicts(result) == [verdict]


def test_less_cpu_does_not_make_up_for_fewer_operations() -> None:
    slow = result_of("memtier_benchmark", turns(900, generator_cpu_s=0.1), turns(1000), Case(50, 10, 100, 10))
    assert verdicts(slow) == ["MISSED"]


def test_a_rival_without_a_goal_for_the_case_is_shown_but_not_judged() -> None:
    cases = [Case(1, 1, 100, 10), Case(200, 1, 100, 10)]
    few = [result_of("memtier_benchmark", turns(1), turns(1000), case) for case in cases]
    large = result_of("redis-benchmark", turns(1), turns(1000), Case(50, 1, 1024, 10))
    assert [verdicts(result) for result in (*few, large)] == [[], [], []]
    assert [line.split()[0] for line in case_lines([large], cores=16) if line.startswith("  redis")] == [
        "redis-benchmark"
    ]


def test_without_the_wire_driver_there_are_no_ratios() -> None:
    result = CaseResult(Case(50, 1, 100, 10), {"memtier_benchmark": turns(1000)}, {})
    assert verdicts(result) == []
    assert "wire" not in "\n".join(case_lines([result], cores=16))


def test_a_contender_that_cannot_run_the_case_is_named_with_the_reason() -> None:
    result = CaseResult(Case(1, 10, 100, 10), {"wire": turns(1)}, {"Locust": "Locust has no pipelines"})
    last = [*case_lines([result], cores=16)][-1]
    assert last.split(maxsplit=1) == ["Locust", "not in this case: Locust has no pipelines"]


def test_a_goal_without_conditions_applies_to_all_cases() -> None:
    assert Goal("any", 1.0).applies(Case(3, 4, 5, 6))
    assert not Goal("any", 1.0, pipeline=3).applies(Case(3, 4, 5, 6))
    nine = [Case(count, depth, 100, 10) for count in (1, 50, 200) for depth in (1, 10, 50)]
    assert [sum(goal.applies(case) for case in nine) for goal in GOALS] == [1, 1, 1, 9, 9]


def test_the_document_is_json_with_every_turn() -> None:
    result = result_of("memtier_benchmark", turns(10), turns(20), Case(50, 1, 100, 10))
    document = json.loads(json.dumps(result.document()))
    assert (document["connections"], document["pipeline"], document["value_bytes"]) == (50, 1, 100)
    assert [turn["operations"] for turn in document["contenders"]["memtier_benchmark"]["rounds"]] == [20] * 3


def test_numbers_from_a_busy_machine_are_called_rough() -> None:
    result = result_of("resp-benchmark", turns(10), turns(20), Case(50, 1, 100, 10))  # other work: 0.2 s of 0.5 s
    assert [*case_lines([result], cores=1)][-1].startswith("rough: other work on this machine used 40%")
    assert not [*case_lines([result], cores=16)][-1].startswith("rough")
