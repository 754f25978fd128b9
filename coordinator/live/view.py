"""What people watch while a run goes on: a live table on a terminal, plain lines everywhere else.

A view draws when it is told to (the caller's loop does so a few times a second) and starts no thread, so that nothing
writes to the screen behind the loop's back. Everything goes to the console that the caller gives, and to nothing else.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from common.clock import MonotonicNs, monotonic_ns
from common.stderr_writer import is_behind
from common.units import NS_PER_S, counted
from coordinator.live.screen import Screen
from coordinator.live.snapshot import LiveSnapshot, SecondRow, Times
from coordinator.report.printing import as_text, ms

_NUMBERS = re.compile(r"\d+")


class LiveView(ABC):
    """A view from its opening to `close`; `with` closes it and gives the terminal back, whatever happens inside."""

    @abstractmethod
    def phase(self, text: str, done: int = 0, total: int = 0) -> None:
        """What is going on before the load; with a total, how much of it is done."""

    @abstractmethod
    def update(self, snapshot: LiveSnapshot) -> None:
        """The run at this moment."""

    @abstractmethod
    def note(self, text: str, trouble: bool = False) -> None:
        """Show an event, which stays on the screen. trouble: a quiet view shows it too."""

    def close(self) -> None:  # noqa: B027  # most views hold nothing
        """Give the terminal back; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_live(console: Console, quiet: bool) -> LiveView:
    """The view that fits: trouble only if quiet, a live table on a terminal, a line a second otherwise."""
    if quiet:
        return QuietView(console)
    return TerminalView(console) if console.is_interactive else PlainView(console)


class QuietView(LiveView):
    """Trouble and nothing else."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def phase(self, text: str, done: int = 0, total: int = 0) -> None:
        """Not shown."""

    def update(self, snapshot: LiveSnapshot) -> None:
        """Not shown."""

    def note(self, text: str, trouble: bool = False) -> None:
        """A line if it is trouble, else nothing."""
        if trouble:
            _line(self._console, text)


class PlainView(LiveView):
    """A line for each phase, second and note: for logs and pipes."""

    def __init__(self, console: Console, clock: MonotonicNs = monotonic_ns) -> None:
        self._console = console
        self._clock = clock
        self._phase = ""
        self._phase_ns = 0
        self._printed: dict[int, tuple[int, int]] = {}

    def phase(self, text: str, done: int = 0, total: int = 0) -> None:
        """A line where the words change, and at most one a second where only its numbers do."""
        if total:
            text = f"{text} {done:,}/{total:,}"
        now_ns = self._clock()
        recent = now_ns - self._phase_ns < NS_PER_S and not (total and done >= total)
        if text == self._phase or (recent and _words(text) == _words(self._phase)):
            return
        self._phase, self._phase_ns = text, now_ns
        _line(self._console, text)

    def update(self, snapshot: LiveSnapshot) -> None:
        """A line for each settled second, and a corrected one if an agent reports its share later."""
        fresh = [row for row in snapshot.rows if row.settled and row.second not in self._printed]
        changed = [row for row in snapshot.corrected if self._printed.get(row.second, row.counts) != row.counts]
        for row in (*changed, *fresh):
            corrected = " corrected" if row.second in self._printed else ""
            self._printed[row.second] = row.counts
            _line(self._console, _plain_second(row, snapshot, corrected))

    def note(self, text: str, trouble: bool = False) -> None:  # noqa: ARG002  # a log shows both alike
        """A line."""
        _line(self._console, text)


class TerminalView(LiveView):
    """A table that is drawn over itself; notes scroll away above it. The table is not drawn while the terminal still
    has output to take (Ctrl-S, a hung ssh session): it would only wait there, and be out of date."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._live.start()

    def phase(self, text: str, done: int = 0, total: int = 0) -> None:
        """A line, with a bar where there is a total."""
        self._show(_phase_line(text, done, total))

    def update(self, snapshot: LiveSnapshot) -> None:
        """The whole table anew."""
        self._show(Screen(snapshot))

    def note(self, text: str, trouble: bool = False) -> None:
        """A line above the table."""
        self._console.print(as_text(text, style="yellow" if trouble else ""))

    def close(self) -> None:
        """The last table stays on the screen, the cursor comes back."""
        self._live.stop()

    def _show(self, renderable: RenderableType) -> None:
        self._live.update(renderable, refresh=not is_behind(self._console.file))


def _phase_line(text: str, done: int, total: int) -> RenderableType:
    if not total:
        return as_text(text)
    row = Table.grid(padding=(0, 1))
    row.add_row(as_text(text), ProgressBar(total=total, completed=done, width=30), as_text(f"{done:,}/{total:,}"))
    return Group(row)


def _plain_second(row: SecondRow, snapshot: LiveSnapshot, corrected: str = "") -> str:
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
    parts.append(counted(row.errors, "error"))
    if row.core_share is not None:
        parts.append(f"{row.core_share:.0%} of a core")
    alive = sum(agent.alive for agent in snapshot.agents)
    parts += [counted(snapshot.connections_open, "connection"), f"{alive}/{counted(len(snapshot.agents), 'agent')}"]
    parts += [f"{snapshot.standing_by} standing by"] if snapshot.standing_by else []
    return f"second {row.second}{stage}{corrected}: {', '.join(parts)}"


def _latencies(kind: str, times: Times) -> str:
    return f"{kind} p50 {ms(times.p50_us)} p99 {ms(times.p99_us)} max {ms(times.max_us)} ms"


def _words(text: str) -> str:
    return _NUMBERS.sub("", text)


def _line(console: Console, text: str) -> None:
    # A log line is one line, however narrow the terminal that was not there.
    console.print(as_text(text), soft_wrap=True)
