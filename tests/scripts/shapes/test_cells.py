from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coordinator.cli import cli
from scripts.shapes.cells import MatrixCell, cells, judged, run

CELL = MatrixCell("standalone", "asyncio", "open", 10)


def summary(**changes: Any) -> dict[str, Any]:
    """The parts of a clean run's summary that are looked at; `ledger__unaccounted=1` changes one."""
    parts: dict[str, Any] = {
        "totals": {"operations": 10, "ops_per_s": 5.0, "errors": 0, "latency_us": {"service": {"p99": 1500.0}}},
        "errors": {},
        "ledger": {"server_calls": 10, "unaccounted": 0, "note": None},
    }
    for place, value in changes.items():
        part, key = place.split("__")
        parts[part][key] = value
    return parts


def test_every_shape_has_a_cell_for_each_driver_load_and_pipeline() -> None:
    found = list(cells(["a", "b"]))
    assert len(found) == len(set(found)) == 2 * 3 * 2 * 2


@pytest.mark.parametrize("cell", list(cells(["standalone"])), ids=str)
def test_a_cell_is_a_command_line_that_the_coordinator_takes(cell: MatrixCell) -> None:
    program, command, *arguments = cell.command("redis://h", ("--tls-ca-file", "ca.pem"), 2.0, Path("out"))
    assert Path(program).name == "coordinator"
    context = cli.commands[command].make_context(command, arguments)
    assert context.params["stampede_driver"] == cell.driver
    assert context.params["stampede_pipeline"] == cell.pipeline
    assert (context.params["stampede_rate"] is not None) == (cell.load == "open")


def test_a_clean_run_passes_with_its_figures() -> None:
    result = judged(CELL, summary())
    assert (result.problem, result.operations, result.ops_per_s, result.p99_ms, result.errors) == ("", 10, 5.0, 1.5, 0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"totals__operations": 0}, "no operation was done"),
        ({"totals__errors": 2}, "2 errors: {}"),
        ({"ledger__server_calls": None, "ledger__note": "why"}, "the server's count could not be compared: why"),
        ({"ledger__unaccounted": 3}, "3 operations are unaccounted for"),
    ],
)
def test_a_run_that_is_not_clean_does_not_pass(changes: dict[str, Any], problem: str) -> None:
    assert judged(CELL, summary(**changes)).problem == problem


def test_a_run_that_fails_or_does_not_end_does_not_pass_either(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(CELL, ["sh", "-c", "echo first >&2; echo last >&2; exit 4"], 1.0).problem == "exit code 4: last"
    monkeypatch.setattr("scripts.shapes.cells._GRACE_S", -0.99)
    assert run(CELL, ["sleep", "5"], 1.0).problem.startswith("did not end within 0.01 s")
