from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from common.errors import UsageError
from common.plan.plan_text import plan_yaml
from coordinator.analysis.totals.aggregate import fold
from coordinator.journal.journal_file import Journal
from coordinator.report.run_files import complete_run_files, write_run_files, write_whole
from coordinator.report.summary import build_summary
from tests.support.records import clean_run, plan
from tests.support.server_records import with_servers


def test_a_run_writes_its_summary_and_its_time_series(tmp_path: Path) -> None:
    aggregate = fold(clean_run())
    for _ in range(2):  # the second time over the first
        write_run_files(tmp_path, build_summary(aggregate), aggregate)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["summary.json", "timeseries.csv"]
    assert json.loads((tmp_path / "summary.json").read_text())["ledger"]["unaccounted"] == 0
    assert len((tmp_path / "timeseries.csv").read_text().splitlines()) == 4


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="taken: cannot write this file: Is a directory"):
        write_whole(tmp_path / "taken", "text")
    with pytest.raises(UsageError, match="No such file or directory"):
        write_whole(tmp_path / "nowhere" / "file", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_only_the_owner_may_read_the_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o666)
    before = os.umask(0)
    try:
        write_whole(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


RUN = list(clean_run())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with all its files."""
    folder = tmp_path_factory.mktemp("whole")
    with Journal.create(folder / "journal") as journal:
        for record in RUN:
            journal.append(record)
    write_whole(folder / "plan.yaml", plan_yaml(plan()))
    aggregate = fold(RUN)
    write_run_files(folder, build_summary(aggregate), aggregate)
    return folder


def copied(whole: Path, folder: Path) -> dict[str, str]:
    """Copy the files of a run folder except the journal. Returns their texts by name."""
    texts = {path.name: path.read_text() for path in whole.iterdir() if path.name != "journal"}
    for name, text in texts.items():
        (folder / name).write_text(text)
    return texts


FILES = ("plan.yaml", "summary.json", "timeseries.csv")


def written(path: Path) -> tuple[int, int]:
    """Return (inode, time of the last change in ns), which differ after each write."""
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("torn", ["", "half", "zeros", "tail of zeros", "bytes"])
def test_a_half_written_file_is_written_again_and_others_are_not(
    whole: Path, tmp_path: Path, name: str, torn: str
) -> None:
    texts = copied(whole, tmp_path)
    half = texts[name][: len(texts[name]) // 2].rstrip("\n")
    contents = {
        "": b"",
        "half": half.encode(),
        "zeros": b"\0" * 50,
        "tail of zeros": half.encode() + b"\0\n",
        "bytes": b"\xff\n",
    }
    (tmp_path / name).write_bytes(contents[torn])
    stays = {other: written(tmp_path / other) for other in FILES if other != name}
    made, troubles = complete_run_files(tmp_path / "journal", fold(RUN))
    # A series beside a summary that was torn may be of an earlier end, too.
    assert made == (["summary.json", "timeseries.csv"] if name == "summary.json" else [name])
    assert troubles == []
    assert {name: (tmp_path / name).read_text() for name in FILES} == texts
    assert all(written(tmp_path / other) == before for other, before in stays.items() if other not in made)


def test_missing_files_are_written(whole: Path, tmp_path: Path) -> None:
    texts = copied(whole, tmp_path)
    (tmp_path / "summary.json").unlink()
    (tmp_path / "timeseries.csv").unlink()
    assert complete_run_files(tmp_path / "journal", fold(RUN)) == (["summary.json", "timeseries.csv"], [])
    assert {name: (tmp_path / name).read_text() for name in FILES} == texts
    (tmp_path / "timeseries.csv").write_text("".join(texts["timeseries.csv"].splitlines(keepends=True)[:-1]))
    assert complete_run_files(tmp_path / "journal", fold(RUN)) == (["timeseries.csv"], [])


def test_files_of_an_earlier_end_are_written_again(whole: Path, tmp_path: Path) -> None:
    texts = copied(whole, tmp_path)
    earlier = fold(RUN[:-1])
    write_run_files(tmp_path, build_summary(earlier), earlier)
    assert complete_run_files(tmp_path / "journal", fold(RUN))[0] == ["summary.json", "timeseries.csv"]
    assert (tmp_path / "summary.json").read_text() == texts["summary.json"]


def test_files_of_another_release_are_kept(whole: Path, tmp_path: Path) -> None:
    texts = copied(whole, tmp_path)
    summary = json.loads(texts["summary.json"])
    del summary["verdict"]
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"more": 1}) + "\n")
    (tmp_path / "plan.yaml").write_text("seed: 1\n")
    assert complete_run_files(tmp_path / "journal", fold(RUN)) == ([], [])


def test_nothing_is_written_beside_an_unfinished_run_or_a_lone_journal(tmp_path: Path) -> None:
    assert complete_run_files(tmp_path / "journal", fold(RUN)) == ([], [])
    (tmp_path / "plan.yaml").touch()
    assert complete_run_files(tmp_path / "journal", fold(RUN[:-1])) == ([], [])
    assert complete_run_files(tmp_path / "copy", fold(RUN)) == ([], [])


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    aggregate = fold(RUN)
    for folder in (tmp_path / "nowhere", tmp_path / "file"):
        [line] = write_run_files(folder, build_summary(aggregate), aggregate)
        assert "was deleted or moved during the run: summary.json, timeseries.csv are not written" in line


def test_a_run_whose_servers_were_watched_has_their_samples_in_a_file_too(whole: Path, tmp_path: Path) -> None:
    copied(whole, tmp_path)
    watched = fold(with_servers(RUN, "a:1"))
    assert complete_run_files(tmp_path / "journal", watched) == (["servers.csv"], [])
    text = (tmp_path / "servers.csv").read_text()
    assert len(text.splitlines()) == 7
    assert complete_run_files(tmp_path / "journal", watched) == ([], [])
    (tmp_path / "servers.csv").write_text("".join(text.splitlines(keepends=True)[:-1]))
    assert complete_run_files(tmp_path / "journal", watched) == (["servers.csv"], [])
    assert (tmp_path / "servers.csv").read_text() == text
