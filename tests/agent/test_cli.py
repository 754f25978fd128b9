from __future__ import annotations

import pytest

from agent.cli import _print_line


def test_text_from_a_coordinator_is_one_line_on_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    _print_line("refused: \x1b[2J\x9b31m\u202e\r\nagent: forged")
    assert capsys.readouterr().err == "agent: refused: \\x1b[2J\\x9b31m\\u202e\\r\\nagent: forged\n"
