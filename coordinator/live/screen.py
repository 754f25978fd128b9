"""The live screen of a snapshot: rate, latencies and errors by the second, totals, agents, remaining time.

It fits the terminal: the least important columns are left out, and as many seconds are shown as there is room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from common.units import counted, format_seconds, listed
from coordinator.analysis.generator import BUSY_SHARE
from coordinator.live.snapshot import (
    ENDED,
    RUNNING,
    WAITING,
    LatencyTimes,
    LiveAgent,
    LiveHits,
    LiveScenario,
    LiveSecond,
    LiveServers,
    LiveSnapshot,
    LiveStage,
)
from coordinator.report.printing import as_text, hit_rate, ms
from coordinator.report.tables import FittedTable, TableCell, TableColumn, WithoutTrailingBlanks

_AGENTS_SHOWN = _SCENARIOS_SHOWN = 8
_COMMANDS_SHOWN = 6
_FEWEST_SECONDS = 3
_STALE_S = 2.5
"""An agent sends a heartbeat every second; an age of more than two is coloured."""


def hit_rates(commands: Sequence[LiveHits]) -> str:
    """The hit rate of each command, or of the first ones."""
    return listed([f"{each.command} {hit_rate(each.hits, each.misses)}" for each in commands], most=_COMMANDS_SHOWN)


@dataclass(frozen=True, slots=True)
class Screen:
    """The whole screen, in the size of the terminal."""

    snapshot: LiveSnapshot

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw all seconds, or the newest ones if not all fit."""
        rows = self.snapshot.rows
        too_many = len(console.render_lines(self._drawn(rows), options, pad=False)) - console.size.height
        if too_many > 0:
            rows = rows[-max(_FEWEST_SECONDS, len(rows) - too_many) :]
        yield WithoutTrailingBlanks(self._drawn(rows))

    def _drawn(self, rows: tuple[LiveSecond, ...]) -> RenderableType:
        snapshot = self.snapshot
        parts = [_progress(snapshot), as_text(), _seconds(snapshot, rows), as_text(), _totals(snapshot), as_text()]
        if snapshot.scenarios:
            parts[2:2] = [_scenarios(snapshot.scenarios), as_text()]
        return Group(*parts, _agents(snapshot.agents, snapshot.standing_by))


def _progress(snapshot: LiveSnapshot) -> RenderableType:
    line = Table.grid(padding=(0, 1))
    cells: list[RenderableType] = [as_text(f"{_whole(max(snapshot.elapsed_s, 0.0))} elapsed")]
    if snapshot.fraction is not None:
        cells.append(ProgressBar(total=1.0, completed=min(snapshot.fraction, 1.0), width=30))
    line.add_row(*cells, as_text(_left(snapshot)))
    return Group(line, _stage(snapshot.stage)) if snapshot.stage else line


def _stage(stage: LiveStage) -> Text:
    rate = "closed loop" if stage.rate_per_s is None else f"{stage.rate_per_s:,.0f}/s wanted"
    if not stage.measured:
        return as_text(f"{stage.name}: {rate}; not in the report", style="yellow")
    return as_text(f"{stage.name} ({stage.number} of {stage.of}): {rate}")


def _left(snapshot: LiveSnapshot) -> str:
    if snapshot.elapsed_s < 0:
        return f"starts in {-snapshot.elapsed_s:.1f} s"
    if snapshot.until_stopped:
        return "until stopped (Ctrl-C)"
    left = []
    if snapshot.left_s is not None:
        left.append(_whole(snapshot.left_s))
    if snapshot.left_requests is not None:
        left.append(counted(snapshot.left_requests, "request"))
    return " or ".join(left) + " left" if left else ""


_HITS = "hits"
_PERCENTILES = "{} p"
"""The place of the columns of percentiles: `_with_percentiles` makes them."""
_CLOSED_COLUMNS = (
    TableColumn("sec"),
    TableColumn("ops/s", 1),
    TableColumn(_PERCENTILES.format("serv"), 3),
    TableColumn("serv max", 4),
    TableColumn(_HITS, 6),
    TableColumn("errors"),
    TableColumn("core", 5),
)
_OPEN_COLUMNS = (
    TableColumn("sec"),
    TableColumn("wanted/s", 3),
    TableColumn("ops/s", 1),
    TableColumn("backlog", 4),
    TableColumn(_PERCENTILES.format("resp"), 5),
    TableColumn("resp max", 6),
    TableColumn("serv p99", 7),
    TableColumn(_HITS, 9),
    TableColumn("errors"),
    TableColumn("core", 8),
)


_CLOSED_TITLE = "Service time (ms), from send to reply"
_OPEN_TITLE = "Response time (ms), from the intended send, and service time"


_SCENARIO_COLUMNS = (
    TableColumn("scenario", fold=10),
    TableColumn("state", 5),
    TableColumn("wanted/s", 3),
    TableColumn("ops/s", 1),
    TableColumn("backlog", 4),
    TableColumn("p50", 6),
    TableColumn("p99", 2),
    TableColumn("max", 7),
    TableColumn("errors"),
)


def _scenarios(scenarios: tuple[LiveScenario, ...]) -> FittedTable:
    """The last complete second of each scenario; of many, those that run come first."""
    title = "Scenarios, last second (ms: response time at a rate, service time in a closed loop)"
    table = FittedTable(title, _SCENARIO_COLUMNS, rule=False)
    drawn = scenarios
    if len(scenarios) > _SCENARIOS_SHOWN:
        drawn = tuple(sorted(scenarios, key=lambda each: (RUNNING, WAITING, ENDED).index(each.state)))[
            :_SCENARIOS_SHOWN
        ]
        table.caption = f"and {len(scenarios) - _SCENARIOS_SHOWN} more"
    for scenario in drawn:
        row = scenario.last
        state = f"from {_whole(scenario.begin_s)}" if scenario.state == WAITING else scenario.stage or scenario.state
        backlog = None if row is None else row.backlog
        table.add_row(
            scenario.name,
            state,
            "-" if scenario.wanted_per_s is None else f"{scenario.wanted_per_s:,.0f}",
            "-" if row is None else f"{row.ops_per_s:,}",
            "-" if backlog is None else as_text(f"{backlog:,}", style="yellow" if backlog else ""),
            *_fixed(None if row is None else row.response or row.service),
            as_text(f"{scenario.errors:,}", style="red" if scenario.errors else ""),
        )
    return table


def _seconds(snapshot: LiveSnapshot, rows: tuple[LiveSecond, ...]) -> FittedTable:
    """The last seconds, with their hit rates if any replies show them."""
    title, cells = (_OPEN_TITLE, _open) if snapshot.open_loop else (_CLOSED_TITLE, _closed)
    columns = _with_percentiles(_OPEN_COLUMNS if snapshot.open_loop else _CLOSED_COLUMNS, snapshot.percentiles)
    shown = [at for at, column in enumerate(columns) if snapshot.hits or column.heading != _HITS]
    table = FittedTable(title, [columns[at] for at in shown], rule=False)
    for row in rows:
        found = cells(row, len(snapshot.percentiles))
        table.add_row(*[found[at] for at in shown])
    if not rows:
        table.add_row(*["-"] * len(table.columns))
    return table


def _closed(row: LiveSecond, percentiles: int) -> list[TableCell]:
    return [
        str(row.second),
        f"{row.ops_per_s:,}",
        *_quantiles(row.service, percentiles),
        _hits(row),
        _errors(row),
        _core(row.core_share),
    ]


def _open(row: LiveSecond, percentiles: int) -> list[TableCell]:
    return [
        str(row.second),
        "-" if row.wanted_per_s is None else f"{row.wanted_per_s:,.0f}",
        f"{row.ops_per_s:,}",
        as_text("-") if row.backlog is None else as_text(f"{row.backlog:,}", style="yellow" if row.backlog else ""),
        *_quantiles(row.response, percentiles),
        "-" if row.service is None else ms(row.service.p99_us),
        _hits(row),
        _errors(row),
        _core(row.core_share),
    ]


def _hits(row: LiveSecond) -> str:
    return hit_rate(sum(each.hits for each in row.hits), sum(each.misses for each in row.hits))


def _quantiles(times: LatencyTimes | None, percentiles: int) -> list[str]:
    if times is None:
        return ["-"] * (percentiles + 1)
    return [*(ms(us) for _, us in times.percentiles_us), ms(times.max_us)]


def _fixed(times: LatencyTimes | None) -> list[str]:
    return ["-"] * 3 if times is None else [ms(us) for us in (times.p50_us, times.p99_us, times.max_us)]


def _with_percentiles(columns: tuple[TableColumn, ...], percentiles: tuple[str, ...]) -> list[TableColumn]:
    """The columns, with one for each percentile."""
    found: list[TableColumn] = []
    for column in columns:
        kind, mark, _ = column.heading.partition(_PERCENTILES.format(""))
        if mark and column.heading == _PERCENTILES.format(kind):
            # p99 is left out last.
            ranks = [2 if name == "p99" else column.drop_rank for name in percentiles]
            found += [TableColumn(f"{kind} {name}", rank) for name, rank in zip(percentiles, ranks, strict=True)]
        else:
            found.append(column)
    return found


def _errors(row: LiveSecond) -> Text:
    return as_text(f"{row.errors:,}", style="red" if row.errors else "")


def _core(share: float | None) -> Text:
    if share is None:
        return as_text("-")
    return as_text(f"{share:.0%}", style="yellow" if share >= BUSY_SHARE else "")


def _totals(snapshot: LiveSnapshot) -> Text:
    unsent = f", {snapshot.unsent:,} never sent" if snapshot.unsent else ""
    totals = as_text(
        f"{counted(snapshot.operations, 'operation')}, {counted(snapshot.errors, 'error')}{unsent}; "
        f"{snapshot.ops_per_s:,.0f} ops/s on average; {snapshot.connections_open:,} of "
        f"{counted(snapshot.connection_ceiling, 'connection')} open"
    )
    if snapshot.hits:
        totals.add_line(f"hits: {hit_rates(snapshot.hits)}")
    if snapshot.servers is not None:
        totals.add_line(_servers(snapshot.servers), style="yellow" if snapshot.servers.silent else "")
    return totals


def _servers(servers: LiveServers) -> str:
    parts = [counted(servers.count, "server")]
    if servers.silent:
        parts.append(f"{servers.silent:,} of them silent")
    if servers.cpu_percent is not None:
        name = f" at {servers.busiest}" if servers.count > 1 else ""
        parts.append(f"{servers.cpu_percent:.0f}% of a core{name}")
    if servers.memory is not None:
        parts.append(f"{servers.memory / (1 << 20):,.1f} MiB")
    if servers.commands_per_s is not None:
        parts.append(f"{servers.commands_per_s:,.0f} commands/s")
    return ", ".join(parts)


_AGENT_COLUMNS = (
    TableColumn("agent", fold=12),
    TableColumn("host", 3, fold=12),
    TableColumn("state", fold=9),
    TableColumn("cpu", 1),
    TableColumn("heard", 2),
    TableColumn("offset ms", 4),
)


def _agents(agents: tuple[LiveAgent, ...], standing_by: int) -> FittedTable:
    table = FittedTable("", _AGENT_COLUMNS, rule=False)
    # Agents that are not alive first, so that the limit does not hide them.
    for agent in sorted(agents, key=lambda agent: agent.alive)[:_AGENTS_SHOWN]:
        table.add_row(*_agent(agent))
    more = [f"and {len(agents) - _AGENTS_SHOWN} more"] if len(agents) > _AGENTS_SHOWN else []
    more += [f"{standing_by} standing by"] if standing_by else []
    table.caption = "; ".join(more)
    return table


def _agent(agent: LiveAgent) -> list[TableCell]:
    age_s = agent.heartbeat_age_s
    return [
        agent.agent_id,
        agent.host,
        as_text(agent.state, style="" if agent.alive else "bold red"),
        f"{agent.cpu_percent:.0f}%",
        as_text("-" if age_s is None else f"{age_s:.1f} s ago", style="yellow" if age_s and age_s > _STALE_S else ""),
        "-" if agent.offset_us is None else ms(agent.offset_us),
    ]


def _whole(seconds: float) -> str:
    return format_seconds(float(int(seconds)))
