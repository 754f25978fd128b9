"""Live views: a table on a terminal, plain lines everywhere else, or problems only.

A view draws when the coordinator's loop calls it, a few times a second. It starts no thread, so that nothing else
writes to the screen. It writes only to its console.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from common.clock import MonotonicNs, monotonic_ns
from common.closing import Closing
from common.program.stderr_writer import is_behind
from common.units import NS_PER_S, counted
from coordinator.live.screen import Screen, hit_rates
from coordinator.live.snapshot import LatencyTimes, LiveScenario, LiveSecond, LiveSnapshot
from coordinator.report.printing import as_text, ms

_NUMBERS = re.compile(r"\d+")


class LiveView(Closing, ABC):
    """A live view. `with` closes it, which restores the terminal."""

    @abstractmethod
    def phase(self, text: str, done: int = 0, total: int = 0) -> None:
        """Show the current phase before the load; with a total, also how much is done."""

    @abstractmethod
    def update(self, snapshot: LiveSnapshot) -> None:
        """Show the run at this moment."""

    @abstractmethod
    def note(self, text: str, trouble: bool = False) -> None:
        """Show an event, which stays on the screen. trouble: a quiet view shows it too."""

    def close(self) -> None:  # most views have nothing to close
        """Restore the terminal. Idempotent."""


def open_live(console: Console, quiet: bool) -> LiveView:
    """Return the view for a console: problems only if quiet, a live table on a terminal, else a line each second."""
    if quiet:
        return QuietView(console)
    return TerminalView(console) if console.is_interactive else PlainView(console)


class QuietView(LiveView):
    """Shows only problems."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def phase(self, text: str, done: int = 0, total: int = 0) -> None:
        """Not shown."""

    def update(self, snapshot: LiveSnapshot) -> None:
        """Not shown."""

    def note(self, text: str, trouble: bool = False) -> None:
        """Print a line for a problem only."""
        if trouble:
            _line(self._console, text)


class PlainView(LiveView):
    """Prints a line for each phase, second and note: for logs and pipes."""

    def __init__(self, console: Console, clock: MonotonicNs = monotonic_ns) -> None:
        self._console = console
        self._clock = clock
        self._phase = ""
        self._phase_ns = 0
        self._printed: dict[int, tuple[int, int]] = {}

    def phase(self, text: str, done: int = 0, total: int = 0) -> None:
        """Print a line if the words change, and at most one line a second if only numbers change."""
        if total:
            text = f"{text} {done:,}/{total:,}"
        now_ns = self._clock()
        recent = now_ns - self._phase_ns < NS_PER_S and not (total and done >= total)
        if text == self._phase or (recent and _words(text) == _words(self._phase)):
            return
        self._phase, self._phase_ns = text, now_ns
        _line(self._console, text)

    def update(self, snapshot: LiveSnapshot) -> None:
        """Print a line for each final second, and a corrected line if an agent reports its share later."""
        fresh = [row for row in snapshot.rows if row.is_final and row.second not in self._printed]
        changed = [row for row in snapshot.corrected if self._printed.get(row.second, row.counts) != row.counts]
        for row in (*changed, *fresh):
            corrected = " corrected" if row.second in self._printed else ""
            self._printed[row.second] = row.counts
            _line(self._console, _plain_second(row, snapshot, corrected))

    def note(self, text: str, trouble: bool = False) -> None:  # noqa: ARG002  # a log shows both in the same way
        """Print a line."""
        _line(self._console, text)


class TerminalView(LiveView):
    """Redraws a table in place; notes scroll away above it. The table is not drawn while the terminal does not accept
    output (Ctrl-S, a hung ssh session), because it would be out of date when it appears."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._live.start()

    def phase(self, text: str, done: int = 0, total: int = 0) -> None:
        """Draw a line, with a bar if there is a total."""
        self._show(_phase_line(text, done, total))

    def update(self, snapshot: LiveSnapshot) -> None:
        """Redraw the table."""
        self._show(Screen(snapshot))

    def note(self, text: str, trouble: bool = False) -> None:
        """Print a line above the table."""
        self._console.print(as_text(text, style="yellow" if trouble else ""))

    def close(self) -> None:
        """Restore the cursor; the last table stays on the screen."""
        self._live.stop()

    def _show(self, renderable: RenderableType) -> None:
        self._live.update(renderable, refresh=not is_behind(self._console.file))


def _phase_line(text: str, done: int, total: int) -> RenderableType:
    if not total:
        return as_text(text)
    row = Table.grid(padding=(0, 1))
    row.add_row(as_text(text), ProgressBar(total=total, completed=done, width=30), as_text(f"{done:,}/{total:,}"))
    return Group(row)


def _plain_second(row: LiveSecond, snapshot: LiveSnapshot, corrected: str = "") -> str:
    stage = f" ({row.stage})" if row.stage else ""
    rate = f"{row.ops_per_s:,} ops/s"
    if row.wanted_per_s is not None:
        rate = f"{row.ops_per_s:,} of {row.wanted_per_s:,.0f} ops/s wanted"
    parts = [rate]
    if row.backlog is not None:
        parts.append(f"backlog {row.backlog:,}")
    if row.response is not None:
        parts.append(_latencies("response", row.response))
    if row.service is None:
        parts.append("no replies")
    elif row.response is None:
        parts.append(_latencies("service", row.service))
    else:
        parts.append(f"service p99 {ms(row.service.p99_us)} ms")
    if row.hits:
        parts.append(f"hits {hit_rates(row.hits)}")
    parts.append(counted(row.errors, "error"))
    if row.core_share is not None:
        parts.append(f"{row.core_share:.0%} of a core")
    alive = sum(agent.alive for agent in snapshot.agents)
    parts += [counted(snapshot.connections_open, "connection"), f"{alive}/{counted(len(snapshot.agents), 'agent')}"]
    parts += [f"{snapshot.standing_by} standing by"] if snapshot.standing_by else []
    parts += [f"{each.name} {_scenario_part(each, row.second)}" for each in snapshot.scenarios]
    return f"second {row.second}{stage}{corrected}: {', '.join(parts)}"


def _scenario_part(scenario: LiveScenario, second: int) -> str:
    """A scenario in the log line of a second: the rate and the p99, or its state."""
    row = scenario.rows.get(second)
    if row is None:
        return scenario.state_in(second)
    latency = row.response or row.service
    return f"{row.ops_per_s:,}/s" + ("" if latency is None else f" p99 {ms(latency.p99_us)} ms")


def _latencies(kind: str, times: LatencyTimes) -> str:
    percentiles = " ".join(f"{name} {ms(us)}" for name, us in times.percentiles_us)
    return f"{kind} {percentiles} max {ms(times.max_us)} ms"


def _words(text: str) -> str:
    return _NUMBERS.sub("", text)


def _line(console: Console, text: str) -> None:
    # Not wrapped: a log line is one line.
    console.print(as_text(text), soft_wrap=True)
