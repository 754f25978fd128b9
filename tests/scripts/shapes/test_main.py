from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.shapes.__main__ import main
from scripts.shapes.combinations import Combination


def test_an_unknown_shape_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--shapes", "standalone,pyramid"])
    assert ended.value.code == 2
    assert "expected some of standalone,unix,tls" in capsys.readouterr().err


@pytest.mark.usefixtures("no_leaks")
def test_the_combinations_of_a_shape_run_one_after_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [Combination("unix", "client", "closed", 1), Combination("unix", "asyncio", "open", 10)]
    monkeypatch.setattr("scripts.shapes.__main__.combinations", lambda _: few)
    out = tmp_path / "matrix.json"
    assert main(["--shapes", "unix", "--seconds", "0.3", "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    assert [result["problem"] for result in results] == [""] * 2
    assert all(result["ledger"]["unaccounted"] == 0 and result["operations"] for result in results)
    assert capsys.readouterr().out.count("| ok |") == 2


def test_combinations_fail_if_their_servers_do_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert main(["--shapes", "tls", "--out", str(tmp_path / "matrix.json")]) == 1
    assert capsys.readouterr().out.count("expected redis-server for TLS, found none") == 12
