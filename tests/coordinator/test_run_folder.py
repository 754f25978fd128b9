from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from common.errors import UsageError
from coordinator.journal.journal_file import read_journal
from coordinator.journal.journal_lock import is_locked
from coordinator.journal.records import AnyRecord, RunStarted
from coordinator.report.run_files import JOURNAL_FILE, PLAN_FILE, SUMMARY_FILE, TIMESERIES_FILE
from coordinator.run_folder import new_run_folder, reopen_run_folder
from tests.support.records import accepted, clean_run, closed, noted, opened, plan


def left_behind(out: Path, *records: AnyRecord) -> None:
    with new_run_folder(out, "r-1").open_journal(plan()) as journal:
        for record in records:
            journal.append(record)


def test_a_new_folder_is_created_with_the_journal(tmp_path: Path) -> None:
    folder = new_run_folder(tmp_path / "runs", "c-1/1-client")
    assert (folder.run_id, folder.is_resumed, folder.aggregate.opened) == ("c-1/1-client", False, None)
    assert list(tmp_path.iterdir()) == []
    folder.open_journal(plan()).close()
    folder = tmp_path / "runs" / "c-1" / "1-client"
    assert {path.name for path in folder.iterdir()} == {JOURNAL_FILE, PLAN_FILE}


def test_a_folder_that_cannot_be_created_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--out .*: expected a writable folder"):
        new_run_folder(tmp_path / "file" / "runs", "r-1")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match=f"but {tmp_path} is not writable"):
        new_run_folder(tmp_path / "runs", "r-1")
    monkeypatch.undo()
    folder = new_run_folder(tmp_path, "r-1")
    (tmp_path / "r-1").touch()
    with pytest.raises(UsageError, match="cannot create the run's folder: File exists; see --out"):
        folder.open_journal(plan())


def test_an_unreadable_folder_is_refused_before_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(UsageError, match=r"--out .*: expected a writable folder, but .*: Permission denied"):
        new_run_folder(tmp_path / "runs", "r-1")


def test_a_killed_run_is_resumed_in_its_folder(tmp_path: Path) -> None:
    left_behind(tmp_path, opened(), RunStarted(t0_ns=5))
    folder = reopen_run_folder("r-1", tmp_path)
    assert (folder.path, folder.is_resumed) == (tmp_path / "r-1", True)
    assert folder.aggregate.opened is not None
    assert folder.run_id == folder.aggregate.opened.run_id
    with folder:
        folder.open_journal(plan()).append(closed())
    assert list(read_journal(tmp_path / "r-1" / JOURNAL_FILE))[-1] == closed()


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ((opened(),), "that run never began; start the run again"),
        (
            (opened(agents=["a1"]), RunStarted(t0_ns=5), noted("a1", 0), closed()),
            "that run has ended; see `coordinator",
        ),
        (
            (
                opened(agents=["a1"]),
                RunStarted(t0_ns=5),
                msgspec.structs.replace(noted("a1", 0, lost=True), has_left=True),
                closed(),
            ),
            "that run has ended; see `coordinator",
        ),
    ],
)
def test_a_run_that_never_started_or_has_ended_cannot_be_resumed(
    tmp_path: Path, records: tuple[AnyRecord, ...], said: str
) -> None:
    left_behind(tmp_path, *records)
    with pytest.raises(UsageError, match=f"--resume r-1: {said}"):
        reopen_run_folder("r-1", tmp_path)


@pytest.mark.parametrize("late", [False, True])
def test_a_run_that_ended_without_the_results_of_an_agent_can_be_collected(tmp_path: Path, late: bool) -> None:
    """late: late results arrived, and the coordinator was killed before it recorded the end again."""
    ended = (opened(agents=["a1", "a2"]), RunStarted(t0_ns=5), noted("a1", 0), noted("a2", 0, lost=True), closed())
    left_behind(tmp_path, *ended, *([noted("a2", 0)] if late else []))
    with reopen_run_folder("r-1", tmp_path) as folder:
        assert (folder.is_resumed, folder.has_ended) == (True, not late)


def test_only_one_coordinator_can_resume_a_run_and_only_until_its_end(tmp_path: Path) -> None:
    left_behind(tmp_path, opened(agents=["a1"]), RunStarted(t0_ns=5))
    with reopen_run_folder("r-1", tmp_path) as folder:
        with pytest.raises(
            UsageError, match=rf"another coordinator \(process {os.getpid()} on .*\) is running this run"
        ):
            reopen_run_folder("r-1", tmp_path)
        for record in (noted("a1", 0), closed()):
            folder.open_journal(plan()).append(record)
        with pytest.raises(UsageError, match="another coordinator"):
            reopen_run_folder("r-1", tmp_path)
    with pytest.raises(UsageError, match="that run has ended"):
        reopen_run_folder("r-1", tmp_path)


def test_a_journal_is_locked_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind(tmp_path, opened(), RunStarted(t0_ns=5))
    locked = []

    def read(path: Path) -> Iterator[AnyRecord]:
        locked.append(is_locked(path))
        return read_journal(path)

    monkeypatch.setattr("coordinator.run_folder.read_journal", read)
    reopen_run_folder("r-1", tmp_path).close()
    assert locked == [True]


def test_a_journal_with_contradictory_records_is_refused_with_its_path(tmp_path: Path) -> None:
    left_behind(tmp_path, opened(), RunStarted(t0_ns=5), accepted("nobody", 0))
    path = tmp_path / "r-1" / JOURNAL_FILE
    for _ in range(2):  # the journal is not left locked
        with pytest.raises(UsageError, match=f"{path}: a record of agent 'nobody'"):
            reopen_run_folder("r-1", tmp_path)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_only_the_owner_reads_a_run_and_the_umask_applies_to_the_folders_above(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with new_run_folder(tmp_path / "runs", "c-1/1-client") as folder:
            folder.open_journal(plan()).append(opened())
            modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    finally:
        os.umask(before)
    run = "runs/c-1/1-client"
    files = dict.fromkeys([f"{run}/journal", f"{run}/journal.lock", f"{run}/plan.yaml"], 0o600)
    assert modes == {"runs": 0o777 & ~umask, "runs/c-1": 0o700, run: 0o700, **files}


def full_disk(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("fails", ["mkdir", "pwrite", "fsync"])
def test_a_full_disk_before_the_start_leaves_no_file(
    tmp_path: Path, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_run_folder(tmp_path / "runs", "r-1")
    made = os.mkdir
    if fails == "mkdir":
        monkeypatch.setattr(os, "mkdir", lambda path, mode: full_disk() if path.name == "r-1" else made(path, mode))
    else:
        monkeypatch.setattr(os, fails, full_disk)
    with pytest.raises(UsageError, match="No space left on device"):
        folder.open_journal(plan())
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_kept(tmp_path: Path) -> None:
    folder = new_run_folder(tmp_path / "runs", "r-1")
    folder.open_journal(plan())
    (tmp_path / "runs" / "notes").touch()
    folder.discard()
    assert [path.name for path in tmp_path.rglob("*")] == ["runs", "notes"]


def test_a_resume_of_an_ended_run_writes_its_missing_files(tmp_path: Path) -> None:
    left_behind(tmp_path, *clean_run())
    with pytest.raises(UsageError, match="that run has ended"):
        reopen_run_folder("r-1", tmp_path)
    assert {SUMMARY_FILE, TIMESERIES_FILE} <= {path.name for path in (tmp_path / "r-1").iterdir()}
