"""The live table, drawn from a snapshot: rate, latencies, errors by the second, totals, agents, what is left."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from common.units import counted, format_seconds
from coordinator.generator import BUSY_SHARE
from coordinator.live.snapshot import AgentRow, LiveSnapshot, SecondRow, StageNow

_AGENTS_SHOWN = 8
_STALE_S = 2.5
"""An agent says something every second; two missed heartbeats are worth a colour."""


def draw(snapshot: LiveSnapshot) -> RenderableType:
    """Everything, within 80 columns and some 25 lines."""
    return Group(_progress(snapshot), Text(), _seconds(snapshot), Text(), _agents(snapshot.agents))


def _progress(snapshot: LiveSnapshot) -> RenderableType:
    line = Table.grid(padding=(0, 1))
    line.add_row(
        Text(f"{_whole(max(snapshot.elapsed_s, 0.0))} elapsed"),
        ProgressBar(total=1.0, completed=min(snapshot.fraction, 1.0), width=30),
        Text(_left(snapshot)),
    )
    return Group(line, _stage(snapshot.stage)) if snapshot.stage else line


def _stage(stage: StageNow) -> Text:
    rate = "closed loop" if stage.rate_per_s is None else f"{stage.rate_per_s:,.0f}/s wanted"
    if not stage.measured:
        return Text(f"{stage.name}: {rate}; not in the report", style="yellow")
    return Text(f"{stage.name} ({stage.number} of {stage.of}): {rate}")


def _left(snapshot: LiveSnapshot) -> str:
    if snapshot.elapsed_s < 0:
        return f"starts in {-snapshot.elapsed_s:.1f} s"
    left = []
    if snapshot.left_s is not None:
        left.append(_whole(snapshot.left_s))
    if snapshot.left_requests is not None:
        left.append(f"{counted(snapshot.left_requests, 'request')}")
    return " or ".join(left) + " left" if left else ""


def _seconds(snapshot: LiveSnapshot) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("second", "ops/s", "p50 ms", "p99 ms", "max ms", "errors"):
        table.add_column(name, justify="right", no_wrap=True, min_width=9)
    table.add_column("core", justify="right", no_wrap=True)
    for row in snapshot.rows:
        table.add_row(*_second(row))
    if not snapshot.rows:
        table.add_row(*"-------")
    unsent = f", {snapshot.unsent:,} never sent" if snapshot.unsent else ""
    totals = Text(
        f"{counted(snapshot.operations, 'operation')}, {counted(snapshot.errors, 'error')}{unsent}; "
        f"{snapshot.ops_per_s:,.0f} ops/s on average; {snapshot.connections_open:,} of "
        f"{snapshot.connection_ceiling:,} connections open"
    )
    return Group(table, Text(), totals)


def _second(row: SecondRow) -> list[str | Text]:
    latencies_us = (row.p50_us, row.p99_us, row.max_us)
    return [
        str(row.second),
        f"{row.ops_per_s:,}",
        *("-" if us is None else f"{us / 1e3:,.3f}" for us in latencies_us),
        Text(f"{row.errors:,}", style="red" if row.errors else ""),
        _core(row.core_share),
    ]


def _core(share: float | None) -> Text:
    if share is None:
        return Text("-")
    return Text(f"{share:.0%}", style="yellow" if share >= BUSY_SHARE else "")


def _agents(agents: tuple[AgentRow, ...]) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("agent", no_wrap=True, max_width=16)
    table.add_column("host", no_wrap=True, max_width=20)
    table.add_column("state", no_wrap=True)
    for name in ("cpu", "heard", "offset ms"):
        table.add_column(name, justify="right", no_wrap=True)
    # Whoever is in trouble must not fall to the limit.
    for agent in sorted(agents, key=lambda agent: agent.alive)[:_AGENTS_SHOWN]:
        table.add_row(*_agent(agent))
    if len(agents) > _AGENTS_SHOWN:
        table.add_row(f"and {len(agents) - _AGENTS_SHOWN} more")
    return table


def _agent(agent: AgentRow) -> list[str | Text]:
    age_s = agent.heartbeat_age_s
    return [
        Text(agent.agent_id),
        Text(agent.host),
        Text(agent.state, style="" if agent.alive else "bold red"),
        f"{agent.cpu_percent:.0f}%",
        Text("-" if age_s is None else f"{age_s:.1f} s ago", style="yellow" if age_s and age_s > _STALE_S else ""),
        "-" if agent.offset_us is None else f"{agent.offset_us / 1e3:,.3f}",
    ]


def _whole(seconds: float) -> str:
    return format_seconds(float(int(seconds)))
