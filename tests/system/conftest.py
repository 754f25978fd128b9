"""Fixtures of tests that run the whole program: real processes and a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.commands import CommandLine
from tests.support.runs import Fleet, tracebacks


@pytest.fixture
def fleet(commands: CommandLine, no_leaks: None) -> Iterator[Fleet]:  # noqa: ARG001  # requested first, so that it checks last
    """A fleet for one test. Fails if a process showed a traceback, or if anything is left behind."""
    yield Fleet(commands)
    shown = [f"{path.name}: {path.read_text()}" for path in tracebacks(commands.directory)]
    assert not shown, f"a traceback in the output: {shown}"
