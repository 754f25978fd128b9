from __future__ import annotations

from typing import Any

import pytest

from scripts.faults.round_checks import Observations, problems
from scripts.faults.round_specs import FaultKind


def summary(**ledger: Any) -> dict[str, Any]:
    """The summary of a correct run of 100 operations; keywords change its ledger."""
    exact = {"issued": 100, "counted": 100, "server_calls": 100, "unaccounted": 0, "definite": 100, "uncertain": 0}
    return {
        "run": {"outcome": "completed", "reason": ""},
        "agents": [{"state": "finished"}, {"state": "finished"}],
        "ledger": exact | ledger,
        "totals": {"operations": 100},
        "commands": {"INCR": {"ok": 30}},
        "preload": {"commands": 20},
        "clean_up": {"deleted": 9, "left": 0, "error": None},
    }


def observed(the_summary: dict[str, Any] | None = None, **fields: Any) -> Observations:
    given = {"codes": [0], "calls_at_end": 120, "calls_at_fence": 120, "incr_executed": 30, "keys_left": 0} | fields
    return Observations(summary=the_summary or summary(), **given)


def summary_with_a_lost_agent(**ledger: Any) -> dict[str, Any]:
    whole = summary(server_calls=None, **ledger)
    return whole | {"run": {"outcome": "degraded", "reason": ""}, "agents": [{"state": "finished"}, {"state": "lost"}]}


def test_a_correct_round_has_no_problem() -> None:
    assert list(problems(observed())) == []


@pytest.mark.parametrize("off", [-1, 1])
def test_a_count_that_is_off_by_one_is_a_problem(off: int) -> None:
    found = list(problems(observed(calls_at_end=120 + off, calls_at_fence=120 + off)))
    assert any("too many" in problem or "unaccounted for" in problem for problem in found)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"calls_at_end": 121}, "late load: 1 operations reached the server"),
        ({"incr_executed": 29}, "INCR was executed 29 times"),
        ({"incr_executed": 31}, "INCR was executed 31 times"),
        ({"keys_left": 3}, "3 keys are left"),
        ({"memory_mib": 2000.0}, "used 2000 MiB"),
        ({"codes": [1]}, "exit code 1"),
        ({"codes": [None, 5]}, "exit code 5"),
        (
            {"codes": [130], "the_summary": summary() | {"run": {"outcome": "interrupted", "reason": ""}}},
            "without a",
        ),
        ({"codes": [4], "the_summary": summary() | {"run": {"outcome": "aborted", "reason": ""}}}, "blames the target"),
        ({"the_summary": summary(issued=101)}, "issued 101"),
        ({"the_summary": summary(unaccounted=1)}, "the report's ledger has 1"),
        ({"the_summary": summary(server_calls=99, definite=99, uncertain=1)}, "made, at 99 operations"),
        ({"problems": ["left behind: process 7"]}, "left behind"),
    ],
)
def test_each_check_can_fail(fields: dict[str, Any], expected: str) -> None:
    assert any(expected in problem for problem in problems(observed(**fields)))


def test_operations_in_flight_may_be_missing_after_a_kill_but_no_more() -> None:
    killed: dict[str, Any] = {"faults": [FaultKind.AGENT_KILLED], "codes": [5], "incr_executed": None}
    killed_summary = summary_with_a_lost_agent(definite=60, issued=60, counted=60)
    assert list(problems(observed(killed_summary, max_lost=40, **killed))) == []
    assert list(problems(observed(killed_summary, max_lost=39, **killed))) != []
    # All reported operations must have been executed nevertheless.
    too_many = summary_with_a_lost_agent(definite=101)
    assert list(problems(observed(too_many, max_lost=1000, **killed))) != []


def test_after_a_restart_of_the_target_only_the_report_itself_is_checked() -> None:
    fields: dict[str, Any] = {"faults": [FaultKind.TARGET_KILLED], "is_comparable": False, "calls_at_end": 3}
    assert list(problems(observed(summary(server_calls=None), **fields))) == []
    assert list(problems(observed(summary(server_calls=None, issued=101), **fields))) != []


def test_a_run_that_never_began_must_not_send_operations_later() -> None:
    never: dict[str, Any] = {"codes": [5], "faults": [FaultKind.AGENT_KILLED]}
    assert list(problems(Observations(calls_at_end=7, calls_at_fence=7, **never))) == []
    assert list(problems(Observations(calls_at_end=8, calls_at_fence=7, **never))) != []


def test_a_run_without_faults_must_begin() -> None:
    assert any("did not begin" in problem for problem in problems(Observations(codes=[5], calls_at_fence=0)))


def test_an_outage_that_is_shorter_than_the_lease_must_lose_nothing() -> None:
    cut: dict[str, Any] = {
        "faults": [FaultKind.CUT],
        "codes": [5],
        "incr_executed": None,
        "max_lost": 40,
        "lease_s": 4.0,
    }
    cut_summary = summary_with_a_lost_agent(definite=60, issued=60, counted=60)
    assert list(problems(observed(cut_summary, outage_s=9.0, **cut))) == []
    assert any("40 unaccounted for" in found for found in problems(observed(cut_summary, outage_s=3.5, **cut)))
