"""Fixtures of tests that run the whole program: real processes, a real server, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.commands import CommandLine
from tests.support.runs import Fleet, tracebacks


@pytest.fixture
def fleet(commands: CommandLine, no_leaks: None) -> Iterator[Fleet]:  # noqa: ARG001  # asked for, so that it looks when all else is closed
    """A fleet of one's own. At the end nobody may have shown a traceback, and everything must be gone."""
    yield Fleet(commands)
    shown = [f"{path.name}: {path.read_text()}" for path in tracebacks(commands.directory)]
    assert not shown, f"a traceback on somebody's screen: {shown}"
