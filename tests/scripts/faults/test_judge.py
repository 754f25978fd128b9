from __future__ import annotations

from typing import Any

import pytest

from scripts.faults.draws import Kind
from scripts.faults.judge import Seen, problems


def summary(**ledger: Any) -> dict[str, Any]:
    """Of a run of 100 operations in which everything adds up; keywords change its ledger."""
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


def seen(the_summary: dict[str, Any] | None = None, **fields: Any) -> Seen:
    given = {"codes": [0], "later_calls": 120, "fenced_calls": 120, "incremented": 30, "keys_left": 0} | fields
    return Seen(summary=the_summary or summary(), **given)


def lost(**ledger: Any) -> dict[str, Any]:
    one = summary(server_calls=None, **ledger)
    return one | {"run": {"outcome": "degraded", "reason": ""}, "agents": [{"state": "finished"}, {"state": "lost"}]}


def test_a_round_in_which_everything_adds_up_keeps_the_promises() -> None:
    assert list(problems(seen())) == []


@pytest.mark.parametrize("off", [-1, 1])
def test_a_count_that_is_off_by_one_breaks_a_promise(off: int) -> None:
    found = list(problems(seen(later_calls=120 + off, fenced_calls=120 + off)))
    assert any("too many" in one or "unaccounted for" in one for one in found)


@pytest.mark.parametrize(
    ("fields", "broken"),
    [
        ({"later_calls": 121}, "unfenced: 1 operations reached the server"),
        ({"incremented": 29}, "INCR was executed 29 times"),
        ({"incremented": 31}, "INCR was executed 31 times"),
        ({"keys_left": 3}, "3 keys are left"),
        ({"memory_mib": 2000.0}, "took 2000 MiB"),
        ({"codes": [1]}, "exit code 1"),
        ({"codes": [None, 5]}, "exit code 5"),
        ({"codes": [130], "the_summary": summary() | {"run": {"outcome": "interrupted", "reason": ""}}}, "by nobody"),
        ({"codes": [4], "the_summary": summary() | {"run": {"outcome": "aborted", "reason": ""}}}, "blamed"),
        ({"the_summary": summary(issued=101)}, "issued 101"),
        ({"the_summary": summary(unaccounted=1)}, "the ledger itself"),
        ({"the_summary": summary(server_calls=99, definite=99, uncertain=1)}, "the report was made at 99"),
        ({"problems": ["left behind: process 7"]}, "left behind"),
    ],
)
def test_each_promise_can_be_broken(fields: dict[str, Any], broken: str) -> None:
    assert any(broken in one for one in problems(seen(**fields)))


def test_what_was_in_flight_when_an_agent_was_killed_may_be_missing_but_no_more() -> None:
    killed: dict[str, Any] = {"happened": [Kind.AGENT_KILLED], "codes": [5], "incremented": None}
    one = lost(definite=60, issued=60, counted=60)
    assert list(problems(seen(one, lost_room=40, **killed))) == []
    assert list(problems(seen(one, lost_room=39, **killed))) != []
    # What it reports must have been done all the same.
    assert list(problems(seen(lost(definite=101), lost_room=1000, **killed))) != []


def test_a_target_that_was_restarted_cannot_be_counted_but_the_report_must_add_up() -> None:
    fields: dict[str, Any] = {"happened": [Kind.TARGET_KILLED], "is_comparable": False, "later_calls": 3}
    assert list(problems(seen(summary(server_calls=None), **fields))) == []
    assert list(problems(seen(summary(server_calls=None, issued=101), **fields))) != []


def test_a_run_that_never_began_must_not_have_loaded_anything_later() -> None:
    never: dict[str, Any] = {"codes": [5], "happened": [Kind.AGENT_KILLED]}
    assert list(problems(Seen(later_calls=7, fenced_calls=7, **never))) == []
    assert list(problems(Seen(later_calls=8, fenced_calls=7, **never))) != []


def test_a_run_must_begin_where_nothing_hinders_it() -> None:
    assert any("did not begin" in one for one in problems(Seen(codes=[5], fenced_calls=0)))


def test_an_agent_that_was_cut_off_for_less_than_its_lease_must_have_lost_nothing() -> None:
    cut: dict[str, Any] = {"happened": [Kind.CUT], "codes": [5], "incremented": None, "lost_room": 40, "lease_s": 4.0}
    one = lost(definite=60, issued=60, counted=60)
    assert list(problems(seen(one, outage_s=9.0, **cut))) == []
    assert any("40 unaccounted for" in found for found in problems(seen(one, outage_s=3.5, **cut)))
