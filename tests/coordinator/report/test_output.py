from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from coordinator.report.output import put_out, say

FOLDER = Path("runs")


def test_people_read_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    put_out(lambda console: console.print("table"), None, Console(stderr=True), FOLDER)
    assert capsys.readouterr() == ("table\n", "")


def test_json_has_stdout_for_itself(capsys: pytest.CaptureFixture[str]) -> None:
    put_out(lambda console: console.print("table"), "{}\n", Console(stderr=True), FOLDER)
    assert capsys.readouterr() == ("{}\n", "table\n")


def test_json_that_nobody_watches_is_all_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    put_out(lambda console: console.print("table"), "{}\n", None, FOLDER)
    assert capsys.readouterr() == ("{}\n", "")


def test_a_line_is_said_as_it_is_however_narrow_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold] runs/20250102-030405-abcd/1-client 1,234 " * 5
    say(Console(stderr=True, width=20), text)
    assert capsys.readouterr().err == f"{text}\n"
