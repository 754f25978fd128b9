from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coordinator.cli import cli
from scripts.shapes.combinations import Combination, combinations, result_of, run

COMBINATION = Combination("standalone", "asyncio", "open", 10)


def summary(**changes: Any) -> dict[str, Any]:
    """The checked parts of a correct summary; `ledger__unaccounted=1` changes one."""
    parts: dict[str, Any] = {
        "totals": {"operations": 10, "ops_per_s": 5.0, "errors": 0, "latency_us": {"service": {"p99": 1500.0}}},
        "errors": {},
        "ledger": {"server_calls": 10, "unaccounted": 0, "note": None},
    }
    for place, value in changes.items():
        part, key = place.split("__")
        parts[part][key] = value
    return parts


def test_each_shape_has_a_combination_for_each_driver_load_and_pipeline() -> None:
    found = list(combinations(["a", "b"]))
    assert len(found) == len(set(found)) == 2 * 3 * 2 * 2


@pytest.mark.parametrize("combination", list(combinations(["standalone"])), ids=str)
def test_the_coordinator_accepts_the_command_line_of_each_combination(combination: Combination) -> None:
    program, command, *arguments = combination.command("redis://h", ("--tls-ca-file", "ca.pem"), 2.0, Path("out"))
    assert Path(program).name == "coordinator"
    context = cli.commands[command].make_context(command, arguments)
    assert context.params["stampede_driver"] == combination.driver
    assert context.params["stampede_pipeline"] == combination.pipeline
    assert (context.params["stampede_rate"] is not None) == (combination.load == "open")


def test_a_correct_run_passes_with_its_numbers() -> None:
    result = result_of(COMBINATION, summary())
    assert (result.problem, result.operations, result.ops_per_s, result.p99_ms, result.errors) == ("", 10, 5.0, 1.5, 0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"totals__operations": 0}, "no operations"),
        ({"totals__errors": 2}, "2 errors: {}"),
        ({"ledger__server_calls": None, "ledger__note": "why"}, "the server's count could not be compared: why"),
        ({"ledger__unaccounted": 3}, "3 operations are unaccounted for"),
    ],
)
def test_a_run_with_a_problem_fails(changes: dict[str, Any], problem: str) -> None:
    assert result_of(COMBINATION, summary(**changes)).problem == problem


def test_a_run_with_an_exit_code_or_without_an_end_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(COMBINATION, ["sh", "-c", "echo first >&2; echo last >&2; exit 4"], 1.0).problem == "exit code 4: last"
    monkeypatch.setattr("scripts.shapes.combinations._EXTRA_TIME_S", -0.99)
    assert run(COMBINATION, ["sleep", "5"], 1.0).problem.startswith("did not end within 0.01 s")
