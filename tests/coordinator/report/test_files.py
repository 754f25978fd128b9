from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.errors import UsageError
from coordinator.aggregate import fold
from coordinator.report.files import write_run_files, write_whole
from coordinator.report.summary import build_summary
from tests.support.records import clean_run


def test_a_run_leaves_its_plan_its_summary_and_its_seconds(tmp_path: Path) -> None:
    aggregate = fold(clean_run())
    for _ in range(2):  # the second time over the first
        write_run_files(tmp_path, "seed: 1\n", build_summary(aggregate), aggregate)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.yaml", "summary.json", "timeseries.csv"]
    assert (tmp_path / "plan.yaml").read_text() == "seed: 1\n"
    assert json.loads((tmp_path / "summary.json").read_text())["ledger"]["unaccounted"] == 0
    assert len((tmp_path / "timeseries.csv").read_text().splitlines()) == 4


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(UsageError, match="taken: cannot write this file: Is a directory"):
        write_whole(tmp_path / "taken", "text")
    with pytest.raises(UsageError, match="No such file or directory"):
        write_whole(tmp_path / "nowhere" / "file", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
