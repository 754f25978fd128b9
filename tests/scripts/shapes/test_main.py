from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.shapes.__main__ import main
from scripts.shapes.cells import MatrixCell


def test_a_shape_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--shapes", "standalone,pyramid"])
    assert ended.value.code == 2
    assert "expected some of standalone,unix,tls" in capsys.readouterr().err


@pytest.mark.usefixtures("no_leaks")
def test_a_shape_is_run_cell_by_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [MatrixCell("unix", "client", "closed", 1), MatrixCell("unix", "asyncio", "open", 10)]
    monkeypatch.setattr("scripts.shapes.__main__.cells", lambda _: few)
    out = tmp_path / "matrix.json"
    assert main(["--shapes", "unix", "--seconds", "0.3", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    assert [result["problem"] for result in results] == [""] * 2
    assert all(result["ledger"]["unaccounted"] == 0 and result["operations"] for result in results)
    assert capsys.readouterr().out.count("| ok |") == 2


def test_cells_whose_servers_do_not_start_do_not_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["--shapes", "tls", "--out", str(tmp_path / "matrix.json")]) == 1
    assert capsys.readouterr().out.count("expected redis-server for TLS, found none") == 12
