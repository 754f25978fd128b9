"""Text for people: consoles, colours, escaped text, and how figures are written."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from common.program import stdout_lost
from common.units import printable
from coordinator.analysis.verdict import Level
from coordinator.core.records import Outcome

LEVEL_STYLES = {Level.TRUSTED: "green", Level.SUSPECT: "yellow", Level.INVALID: "bold red"}
OUTCOME_STYLES = {
    Outcome.COMPLETED: "green",
    Outcome.INTERRUPTED: "yellow",
    Outcome.DEGRADED: "yellow",
    Outcome.ABORTED: "red",
    Outcome.RUNNING: "yellow",
}


def console_for(*, stderr: bool = False) -> Console:
    """The console on stdout, or on stderr. It has colours on a terminal, or if FORCE_COLOR (or TTY_COMPATIBLE=1) is
    set, but never if NO_COLOR is set. It is interactive, and so redraws a live view, on a terminal only."""
    forced = os.environ.get("FORCE_COLOR")
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    # rich takes an empty FORCE_COLOR for "never"; by its standard it is as good as none.
    force_terminal = is_terminal if forced == "" else None
    console = Console(
        stderr=stderr, force_terminal=force_terminal, color_system="standard" if forced and dumb else "auto"
    )
    console.is_interactive = console.is_interactive and is_terminal
    return console


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


class SafeText(Text):
    """Text for people, whose control characters are shown escaped: what a peer or a server has said may be part of it,
    and must not move the cursor, change colours or begin a line of its own. More lines by `add_line`."""

    def __init__(self, text: str = "", style: str = "") -> None:
        super().__init__(printable(text), style)

    def append(self, text: Text | str, style: str | Style | None = None) -> Text:
        """Go on in the same line."""
        return super().append(printable(text) if isinstance(text, str) else text, style)

    def add_line(self, text: str, style: str | Style | None = None) -> Text:
        """Go on in a line below."""
        return super().append("\n" + printable(text), style)


def as_text(*lines: str, style: str = "") -> SafeText:
    """Lines below each other."""
    text = SafeText(lines[0] if lines else "", style)
    for line in lines[1:]:
        text.add_line(line)
    return text


def facts(*rows: tuple[str, Text]) -> Table:
    """A label and what it says, line by line; without a label it belongs to the one before."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", no_wrap=True, min_width=13)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(label, value)
    return table


ERRORS_SHOWN_FROM = 0.01
"""Above this share, the first line of a report mentions failed operations."""


def classes(counts: Mapping[str, int], most: int | None = None) -> str:
    """Counts by name, the largest first: "ConnectionError 6,120, TimeoutError 3". most: names that are listed."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    more = "" if most is None or len(ordered) <= most else f" and {len(ordered) - most} more kinds"
    return ", ".join(f"{name} {count:,}" for name, count in ordered[:most]) + more


def failed_share(errors: int, operations: int) -> str:
    """For the first line of a report: "68.3% of operations failed"; "" if they are few."""
    share = errors / operations if operations else 0.0
    return f"{share:.1%} of operations failed" if share > ERRORS_SHOWN_FROM else ""


def short(value: float) -> str:
    """At most five characters below a thousand billions: "7.5", "500", "1.5k", "12.3k", "1.25M"."""
    for suffix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g}{suffix}" if value < 999.5 * factor else f"{value / factor:.0f}{suffix}"
    return f"{value:.3g}" if value < 999.5 else "1k"


def ms(us: float) -> str:
    """Microseconds as text in milliseconds, the unit of all latencies in reports: four significant digits, at most
    three decimals."""
    value = us / 1e3
    decimals = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return f"{value:,.{decimals}f}"
