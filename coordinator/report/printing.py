"""Text for the terminal: consoles, colours, escaped text, and the format of figures."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from common.program.standard_streams import stdout_lost
from common.units import printable
from coordinator.analysis.verdict import Level
from coordinator.journal.records import Outcome

LEVEL_STYLES = {Level.TRUSTED: "green", Level.SUSPECT: "yellow", Level.INVALID: "bold red"}
OUTCOME_STYLES = {
    Outcome.COMPLETED: "green",
    Outcome.INTERRUPTED: "yellow",
    Outcome.DEGRADED: "yellow",
    Outcome.ABORTED: "red",
    Outcome.RUNNING: "yellow",
}


def console_for(*, stderr: bool = False) -> Console:
    """Return the console on stdout or stderr. It has colours on a terminal, or if FORCE_COLOR (or TTY_COMPATIBLE=1) is
    set, but never if NO_COLOR is set. Only on a terminal it is interactive, so that a live view is redrawn."""
    forced = os.environ.get("FORCE_COLOR")
    dumb = os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    # rich takes an empty FORCE_COLOR as "never"; by its standard an empty value means that it is not set.
    force_terminal = is_terminal if forced == "" else None
    console = Console(
        stderr=stderr, force_terminal=force_terminal, color_system="standard" if forced and dumb else "auto"
    )
    console.is_interactive = console.is_interactive and is_terminal
    return console


def print_report(draw: Callable[[Console], None], json: str | None, stderr: Console | None) -> str | None:
    """Write a report to stdout: as JSON if `json` is given, else as text with `draw`. With JSON, the text goes to the
    console `stderr`; None for no text.

    Returns why stdout could not be written; None on success, or if its reader stopped early.
    """
    console = console_for() if json is None else stderr
    if console is not None:
        draw(console)
    if json is not None:
        sys.stdout.write(json)
    return stdout_lost()


def say(console: Console, text: str) -> None:
    """Print a line without wrapping it."""
    console.print(as_text(text), soft_wrap=True)


class SafeText(Text):
    """Text with escaped control characters: text from peers and servers must not move the cursor, change
    colours or begin a new line."""

    def __init__(self, text: str = "", style: str = "") -> None:
        super().__init__(printable(text), style)

    def append(self, text: Text | str, style: str | Style | None = None) -> Text:
        """Append to the same line."""
        return super().append(printable(text) if isinstance(text, str) else text, style)

    def add_line(self, text: str, style: str | Style | None = None) -> Text:
        """Append a new line."""
        return super().append("\n" + printable(text), style)


def as_text(*lines: str, style: str = "") -> SafeText:
    """Return lines as safe text."""
    text = SafeText(lines[0] if lines else "", style)
    for line in lines[1:]:
        text.add_line(line)
    return text


def facts(*rows: tuple[str, Text]) -> Table:
    """Return a table of labels and values. A row without a label belongs to the row above."""
    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", no_wrap=True, min_width=13)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(label, value)
    return table


ERRORS_SHOWN_FROM = 0.01
"""Above this share, the first line of a report mentions failed operations."""


def counts_by_name(counts: Mapping[str, int], most: int | None = None) -> str:
    """Return counts by name, largest first: "ConnectionError 6,120, TimeoutError 3". most: how many names to list."""
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    more = "" if most is None or len(ordered) <= most else f" and {len(ordered) - most} more kinds"
    return ", ".join(f"{name} {count:,}" for name, count in ordered[:most]) + more


def failed_share(errors: int, operations: int) -> str:
    """Return "68.3% of operations failed" for the first line of a report; "" if few failed."""
    share = errors / operations if operations else 0.0
    return f"{share:.1%} of operations failed" if share > ERRORS_SHOWN_FROM else ""


def short_number(value: float) -> str:
    """Return a number in at most five characters (below 10^12): "7.5", "500", "1.5k", "12.3k", "1.25M"."""
    for suffix, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.3g}{suffix}" if value < 999.5 * factor else f"{value / factor:.0f}{suffix}"
    return f"{value:.3g}" if value < 999.5 else "1k"


def ms(us: float) -> str:
    """Return microseconds as text in milliseconds, the unit of all latencies in reports: four significant digits, at
    most three decimals."""
    value = us / 1e3
    decimals = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return f"{value:,.{decimals}f}"


def rounded(value: float) -> str:
    """Return a number with one decimal below 1,000, and without decimals from there on."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def hit_rate(hits: int | None, misses: int | None) -> str:
    """Return the share of lookups that were hits; "-" without any. 100% and 0% are exact."""
    if hits is None or misses is None or not hits + misses:
        return "-"
    share = hits / (hits + misses)
    return f"{share:.1%}" if not (hits and misses) else f"{min(max(share, 0.001), 0.999):.1%}"
