"""A report put out: for people on stdout, or as JSON there and for people on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rich.console import Console

from common.program import stdout_lost
from coordinator.report.styles import as_text, console_for


def put_out(draw: Callable[[Console], None], json: str | None, people: Console | None) -> str | None:
    """Write the report to stdout: `json`, or drawn by `draw` if that is None. people: with JSON, the console on stderr
    that shows the drawn report too; None for none.

    Returns why stdout could not be written; None if it could, or if its reader stopped early.
    """
    console = console_for() if json is None else people
    if console is not None:
        draw(console)
    if json is not None:
        sys.stdout.write(json)
    return stdout_lost()


def say(people: Console, text: str) -> None:
    """A line for people, as it is, however narrow the terminal."""
    people.print(as_text(text), soft_wrap=True)
