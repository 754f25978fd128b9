from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UsageError
from common.metrics.intervals import PoolMetrics
from common.plan.schema import Driver
from coordinator.compare.differences import build_comparison
from coordinator.journal.journal_file import Journal
from coordinator.journal.records import (
    AnyRecord,
    CleanedUp,
    CoordinatorFailed,
    Outcome,
    RunStarted,
    StopDecided,
    StopKind,
    WorkerDied,
)
from coordinator.report.run_files import COMPARISON_FILE, PLAN_FILE, SUMMARY_FILE, TIMESERIES_FILE
from coordinator.report_command import render
from tests.support.comparisons import conducted, head
from tests.support.examples import examples
from tests.support.records import accepted, clean_run, closed, command, histogram, interval, noted, opened

RUNS = ("20250101-090000-aa", "20250101-100000-bb", "20250102-090000-cc")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    for age, name in enumerate(RUNS):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        with Journal.create(folder / "journal") as journal:
            for record in clean_run(seconds=age + 1):
                journal.append(record)
        os.utime(folder / "journal", (1000 + age, 1000 + age))
    return tmp_path / "runs"


def seconds(run: str, out: Path) -> float:
    return float(json.loads(render(run, out, "json", False))["run"]["duration_s"])


def test_a_run_is_found_by_id_prefix_path_or_latest(out: Path) -> None:
    assert seconds(RUNS[1], out) == 2.0
    assert seconds("20250101-1", out) == 2.0
    assert seconds(str(out / RUNS[1]), out / "elsewhere") == 2.0
    assert seconds(str(out / RUNS[1] / "journal"), out / "elsewhere") == 2.0
    assert seconds("latest", out) == 3.0


def test_every_format_needs_only_the_journal(out: Path) -> None:
    text = render("latest", out, "text", False)
    assert "Totals" in text
    assert "Service times" in text
    assert "Service times" not in render("latest", out, "text", True)
    assert all(line == line.rstrip() for line in text.splitlines())
    assert len(render("latest", out, "csv", False).splitlines()) == 4


def test_a_report_has_colours_if_the_environment_asks_for_them(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[32mtrusted" in render("latest", out, "text", False)
    assert "\x1b" not in render("latest", out, "csv", False)
    monkeypatch.delenv("FORCE_COLOR")
    assert "\x1b" not in render("latest", out, "text", False)


@pytest.mark.parametrize(
    ("run", "format", "message"),
    [
        ("20250101", "text", f'"20250101" matches {RUNS[0]}, {RUNS[1]}; give more'),
        ("nothing", "text", f'no run "nothing" in .*; there are: {", ".join(RUNS)}'),
        ("", "text", 'no run ""'),
        ("latest", "xml", '--format: expected one of text, json, csv, got "xml"'),
    ],
)
def test_an_unknown_run_or_format_is_one_line(out: Path, run: str, format: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        render(run, out, format, False)
    assert "\n" not in str(caught.value)


def test_a_folder_without_runs_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no runs; name their folder"):
        render("latest", tmp_path / "nowhere", "text", False)


def test_the_last_of_many_runs_are_named(tmp_path: Path) -> None:
    for number in range(15):
        (tmp_path / f"r{number:02}").mkdir()
        (tmp_path / f"r{number:02}" / "journal").touch()
    with pytest.raises(UsageError, match=r"r05, .*r14 and 5 earlier ones"):
        render("x", tmp_path, "text", False)


def test_an_empty_journal_is_refused_in_every_format(tmp_path: Path) -> None:
    Journal.create(tmp_path / "journal").close()
    for format in ("text", "json", "csv"):
        with pytest.raises(UsageError, match="nothing to report"):
            render(str(tmp_path), tmp_path, format, False)


def test_a_torn_journal_is_reported_up_to_the_tear(out: Path) -> None:
    path = out / RUNS[2] / "journal"
    path.write_bytes(path.read_bytes()[:-3])
    summary = json.loads(render("latest", out, "json", False))
    assert summary["run"]["outcome"] == "aborted"
    assert summary["totals"]["operations"] == 6000


@pytest.fixture
def comparison(out: Path) -> Path:
    """The folder of a comparison that is newer than all runs."""
    folder = out / "20250103-090000-dd"
    runs = [conducted(1, driver) for driver in (Driver.CLIENT, Driver.WIRE)]
    folder.mkdir()
    found = build_comparison(head(1), runs, Outcome.COMPLETED, "")
    (folder / COMPARISON_FILE).write_text(found.to_json())
    return folder


def test_a_comparison_is_shown_again(out: Path, comparison: Path) -> None:
    for name in ("latest", comparison.name, "20250103", str(comparison)):
        assert "What redis-py costs" in render(name, out, "text", False)
    assert render("latest", out, "json", False) == (comparison / COMPARISON_FILE).read_text()
    with pytest.raises(UsageError, match=r"c-1 is a comparison, .* `coordinator report c-1/1-client --format csv`"):
        render("latest", out, "csv", False)


def test_a_comparison_is_running_if_one_of_its_runs_is(out: Path, comparison: Path) -> None:
    (comparison / "3-wire").mkdir()
    with Journal.create(comparison / "3-wire" / "journal"):
        parsed = json.loads(render("latest", out, "json", False))
        assert (parsed["outcome"], "going on" in parsed["reason"]) == ("running", True)
    assert json.loads(render("latest", out, "json", False))["outcome"] == "completed"


def test_an_unreadable_comparison_is_one_line(out: Path, comparison: Path) -> None:
    (comparison / COMPARISON_FILE).write_text('{"started_at": "2025"}')
    with pytest.raises(UsageError, match="expected a comparison that this version can read"):
        render("latest", out, "text", False)


def test_a_running_run_is_not_reported_as_killed(out: Path) -> None:
    path = out / RUNS[2] / "journal"
    path.write_bytes(path.read_bytes()[:-3])
    with Journal.reopen(path):
        assert json.loads(render("latest", out, "json", False))["run"]["outcome"] == "running"
        assert "the run has not ended" in " ".join(render("latest", out, "text", False).split())
    (out / "20250104-090000-ee").mkdir()
    with (
        Journal.create(out / "20250104-090000-ee" / "journal"),
        pytest.raises(UsageError, match="its run is about to start"),
    ):
        render("latest", out, "text", False)


def test_a_report_writes_the_missing_files_of_an_ended_run(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = out / RUNS[2]
    (folder / PLAN_FILE).touch()
    said: list[str] = []
    with Journal.reopen(folder / "journal"):
        render("latest", out, "csv", False, said.append)
    assert (said, (folder / SUMMARY_FILE).exists()) == ([], False)
    with monkeypatch.context() as patched:
        patched.setattr("coordinator.report.run_files.write_whole", refused)
        assert "Totals" in render("latest", out, "text", False, said.append)
    assert [line.partition(": ")[0] for line in said] == [
        str(folder / name) for name in (PLAN_FILE, SUMMARY_FILE, TIMESERIES_FILE)
    ]
    said.clear()
    csv = render("latest", out, "csv", False, said.append)
    assert said == [f"wrote missing files in {folder}: {PLAN_FILE}, {SUMMARY_FILE}, {TIMESERIES_FILE}"]
    assert (folder / TIMESERIES_FILE).read_text() == csv
    assert (folder / SUMMARY_FILE).read_text() == render("latest", out, "json", False, said.append)
    assert len(said) == 1


def refused(path: Path, _: str) -> None:
    raise UsageError(f"{path}: cannot write this file: Read-only file system")


RECORDS = list(clean_run(seconds=1, per_second=10))
FOREIGN: list[AnyRecord] = [
    msgspec.structs.replace(opened(), run_id="another"),
    accepted("nobody", 0, interval(0, {})),
    accepted("a1", 0, interval(0, {}, stage=5)),
    accepted("a1", 7, interval(3, {"UNKNOWN": command(histogram(5))})),
    accepted("a1", 0, msgspec.structs.replace(interval(0, {}), pools={"unknown": PoolMetrics()})),
    noted("nobody", 3),
    noted("a2", 0, lost=True),
    WorkerDied(agent_id="nobody", process=-1, exit_code=None),
    RunStarted(t0_ns=-1),
    StopDecided(what=StopKind.CLEAN_UP, reason="", exit_code=0, at_ns=0),
    CleanedUp(deleted=0, left=None, took_ns=0),
    CoordinatorFailed(reason=""),
    closed(Outcome.RUNNING, -1.0),
]


def said_of(path: Path, format: str) -> str:
    """The error of a report; "" if there is none."""
    try:
        assert render(str(path), path.parent, format, False)
    except UsageError as error:
        return str(error)
    return ""


@settings(max_examples=examples(50))
@given(
    picked=st.lists(st.one_of(st.sampled_from(RECORDS), st.sampled_from(FOREIGN)), max_size=16), begins=st.booleans()
)
def test_records_in_any_order_are_reported_or_refused_in_one_line(
    scratch: Path, picked: list[AnyRecord], begins: bool
) -> None:
    path = scratch / "journal"
    path.unlink(missing_ok=True)
    with Journal.create(path) as journal:
        for record in (RECORDS[:1] if begins else []) + picked:
            journal.append(record)
    refused = [said for format in ("text", "json", "csv") if (said := said_of(path, format))]
    assert all(said.startswith(f"{path}: ") and "\n" not in said for said in refused)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")
