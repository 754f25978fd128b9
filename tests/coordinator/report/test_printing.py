from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console
from rich.text import Text

from coordinator.report.printing import console_for, print_report, say


def test_the_table_is_printed_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(lambda console: console.print("table"), None, Console(stderr=True))
    assert capsys.readouterr() == ("table\n", "")


def test_with_json_the_table_is_printed_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(lambda console: console.print("table"), "{}\n", Console(stderr=True))
    assert capsys.readouterr() == ("{}\n", "table\n")


def test_json_alone_is_printed_without_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(lambda console: console.print("table"), "{}\n", None)
    assert capsys.readouterr() == ("{}\n", "")


def test_a_line_is_not_wrapped_in_a_narrow_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold] runs/20250102-030405-abcd/1-client 1,234 " * 5
    say(Console(stderr=True, width=20), text)
    assert capsys.readouterr().err == f"{text}\n"


class FakeTerminal(io.StringIO):
    """A stream that claims to be a terminal, or not."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize(
    ("terminal", "variables", "coloured", "live"),
    [
        (True, {}, True, True),
        (False, {}, False, False),
        (False, {"FORCE_COLOR": "1"}, True, False),
        (False, {"FORCE_COLOR": "1", "TERM": "dumb"}, True, False),
        (False, {"TTY_COMPATIBLE": "1"}, True, False),
        (True, {"NO_COLOR": "1"}, False, True),
        (True, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, True),
        (True, {"FORCE_COLOR": ""}, True, True),
        (False, {"FORCE_COLOR": ""}, False, False),
        (True, {"TERM": "dumb"}, False, False),
        (True, {"TTY_COMPATIBLE": "0"}, False, False),
    ],
)
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_colours_follow_the_terminal_and_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, terminal: bool, variables: dict[str, str], coloured: bool, live: bool
) -> None:
    for variable in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    stream = FakeTerminal(terminal)
    monkeypatch.setattr(sys, name, stream)
    console = console_for(stderr=name == "stderr")
    console.print(Text("x", style="red"), end="")
    assert ("\x1b[31m" in stream.getvalue()) is coloured
    assert console.is_interactive is live
