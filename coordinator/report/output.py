"""A report put out: for people on stdout, or as JSON there and for people on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from common.errors import UsageError
from coordinator.report.look import console_for


def put_out(draw: Callable[[Console], None], json: str | None, people: Console | None, folder: Path) -> None:
    """Draw for people, and write `json`, if any, to stdout. people: on stderr, where they read beside JSON; None:
    nobody reads there. folder: where all of it is kept.

    Raises UsageError when stdout takes no more.
    """
    try:
        console = console_for() if json is None else people
        if console is not None:
            draw(console)
        if json is not None:
            sys.stdout.write(json)
        sys.stdout.flush()
    except OSError as error:
        # Or Python would try to write the rest when it ends, and complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        text = f"cannot write the summary: {error.strerror}; it is in {folder}"
        raise UsageError(text) from error


def say(people: Console, text: str) -> None:
    """A line for people, as it is, however narrow the terminal."""
    people.print(text, highlight=False, soft_wrap=True, markup=False)
