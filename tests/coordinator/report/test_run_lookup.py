from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from common.errors import UsageError
from coordinator.journal.journal_file import Journal
from coordinator.report.run_files import COMPARISON_FILE, JOURNAL_FILE, PLAN_FILE
from coordinator.report.run_lookup import find_journal, find_report
from tests.support.records import opened


def a_run(out: Path, name: str, started_at: str = "2025-01-02T03:04:05+00:00") -> Path:
    (out / name).mkdir(parents=True)
    with Journal.create(out / name / JOURNAL_FILE) as journal:
        journal.append(msgspec.structs.replace(opened(), started_at=started_at))
    return out / name / JOURNAL_FILE


def a_comparison(out: Path, name: str, started_at: str = "2025-01-02T03:04:05+00:00") -> Path:
    for run in ("1-client", "2-wire", "10-wire"):
        a_run(out, f"{name}/{run}")
    path = out / name / COMPARISON_FILE
    path.write_bytes(msgspec.json.encode({"started_at": started_at}))
    return path


def test_a_comparison_and_each_of_its_runs_are_found(tmp_path: Path) -> None:
    comparison = a_comparison(tmp_path, "20250102-030405-aa")
    for name in ("20250102-030405-aa", "20250102", "latest", str(comparison), str(comparison.parent)):
        assert find_report(name, tmp_path) == comparison
    run = tmp_path / "20250102-030405-aa" / "2-wire" / JOURNAL_FILE
    assert find_report("20250102-030405-aa/2-wire", tmp_path) == find_journal(str(run), tmp_path) == run
    with pytest.raises(UsageError, match=r"is a comparison, expected one of its runs: .*/1-client, .*/2-wire, .*/10"):
        find_journal("20250102", tmp_path)


def test_latest_is_the_run_that_began_last_even_if_files_were_touched_or_renamed(tmp_path: Path) -> None:
    a_comparison(tmp_path, "20250102-030405-aa")
    newest = a_run(tmp_path, "20250103-030405-bb")
    renamed = a_run(tmp_path, "before-the-upgrade", "2025-01-01T00:00:00+00:00")
    for age, path in enumerate((newest, tmp_path / "20250102-030405-aa" / COMPARISON_FILE, renamed)):
        os.utime(path, (2_000_000_000 + age, 2_000_000_000 + age))
    assert find_report("latest", tmp_path) == newest
    renamed_last = a_run(tmp_path, "after-the-upgrade", "2025-02-01T00:00:00+00:00")
    assert find_report("latest", tmp_path) == renamed_last
    renamed_comparison = a_comparison(tmp_path, "compared", "2025-03-01T00:00:00+00:00")
    assert find_report("latest", tmp_path) == renamed_comparison


def test_a_journal_without_a_record_is_ordered_by_its_id_or_its_time_of_change(tmp_path: Path) -> None:
    a_run(tmp_path, "20250102-030405-aa")
    (tmp_path / "20250103-030405-bb").mkdir()
    (tmp_path / "20250103-030405-bb" / JOURNAL_FILE).touch()
    assert find_report("latest", tmp_path).parent.name == "20250103-030405-bb"
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / JOURNAL_FILE).write_text("no journal")
    assert find_report("latest", tmp_path).parent.name == "odd"


def test_the_remains_of_a_killed_coordinator_are_named(tmp_path: Path) -> None:
    a_run(tmp_path, "20250102-030405-aa/1-client")
    with pytest.raises(UsageError, match=r"is a comparison that ended before its first run did; there are: .*/1-c"):
        find_report("20250102-030405-aa", tmp_path)
    assert find_report("latest", tmp_path).parent.name == "1-client"
    (tmp_path / "20250103-030405-bb").mkdir()
    (tmp_path / "20250103-030405-bb" / PLAN_FILE).touch()
    with pytest.raises(UsageError, match="has no journal: its coordinator ended before it wrote one"):
        find_report("20250103-030405-bb", tmp_path)


def test_the_folder_of_all_runs_is_no_comparison(tmp_path: Path) -> None:
    a_run(tmp_path / "runs", "20250102-030405-aa")
    with pytest.raises(UsageError, match=r"no run .* there are: 20250102-030405-aa"):
        find_report(str(tmp_path / "runs"), tmp_path / "runs")
