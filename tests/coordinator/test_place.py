from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import UsageError
from coordinator.journal import read_journal
from coordinator.place import new_place, place_to_resume
from coordinator.records import AnyRecord, RunStarted
from coordinator.report.files import JOURNAL_FILE, PLAN_FILE
from tests.support.records import clean_run, closed, opened, plan


def left_behind(out: Path, *records: AnyRecord) -> None:
    with new_place(out, "r-1").open_journal(plan()) as journal:
        for record in records:
            journal.append(record)


def test_a_new_place_is_made_when_there_is_something_to_write(tmp_path: Path) -> None:
    place = new_place(tmp_path / "runs", "c-1/1-client")
    assert (place.run_id, place.resumed, place.aggregate.opened) == ("c-1/1-client", False, None)
    assert list(tmp_path.iterdir()) == []
    place.open_journal(plan()).close()
    folder = tmp_path / "runs" / "c-1" / "1-client"
    assert {path.name for path in folder.iterdir()} == {JOURNAL_FILE, PLAN_FILE}


def test_a_folder_that_cannot_be_made_is_told_before_the_start_or_when_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"--out .*: expected a folder that can be written"):
        new_place(tmp_path / "file" / "runs", "r-1")
    place = new_place(tmp_path, "r-1")
    (tmp_path / "r-1").touch()
    with pytest.raises(UsageError, match="cannot make the run's folder: File exists; see --out"):
        place.open_journal(plan())


def test_a_folder_that_may_not_be_looked_into_is_told_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(UsageError, match=r"--out .*: expected a folder that can be written, but .*: Permission denied"):
        new_place(tmp_path / "runs", "r-1")


def test_a_run_that_was_left_is_gone_on_with_where_it_is(tmp_path: Path) -> None:
    left_behind(tmp_path, opened(), RunStarted(t0_ns=5))
    place = place_to_resume("r-1", tmp_path)
    assert (place.folder, place.resumed) == (tmp_path / "r-1", True)
    assert place.aggregate.opened is not None
    assert place.run_id == place.aggregate.opened.run_id
    with place.open_journal(plan()) as journal:
        journal.append(closed())
    assert list(read_journal(tmp_path / "r-1" / JOURNAL_FILE))[-1] == closed()


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ((opened(),), "that run never began; start the run again"),
        (tuple(clean_run()), "that run has ended; see `coordinator"),
    ],
)
def test_a_run_that_never_began_or_has_ended_is_not_gone_on_with(
    tmp_path: Path, records: tuple[AnyRecord, ...], said: str
) -> None:
    left_behind(tmp_path, *records)
    with pytest.raises(UsageError, match=f"--resume r-1: {said}"):
        place_to_resume("r-1", tmp_path)
