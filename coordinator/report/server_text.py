"""The servers' side of a run as text: a table of servers, the server time of commands, and what could not be read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.text import Text

from common.units import counted, format_seconds, listed
from coordinator.analysis.server_summary import NodeSummary, ServerSummary
from coordinator.journal.records import LoggedCommand
from coordinator.report.printing import as_text, ms, short_number
from coordinator.report.tables import FittedTable, TableColumn

NODES_SHOWN = 12
_COMMANDS_SHOWN, _LOGGED_SHOWN, _LINES_SHOWN = 8, 3, 5
_MIB = 1 << 20
_SPIKE_US = 250_000
"""A reply to INFO that took longer than this is worth a line."""

_COLUMNS = (
    TableColumn("Server", fold=12),
    TableColumn("Role", 7),
    TableColumn("CPU"),
    TableColumn("max", 6, called="highest CPU"),
    TableColumn("main", 9, called="CPU of the main thread"),
    TableColumn("MiB", 1, called="memory"),
    TableColumn("Frag", 10, called="fragmentation"),
    TableColumn("Ops/s", 1),
    TableColumn("Hits", 3),
    TableColumn("Evicted", 4),
    TableColumn("Expired", 8),
    TableColumn("Clients", 5),
    TableColumn("Blocked", 8),
    TableColumn("KiB/s in", 11),
    TableColumn("out", 11, called="KiB/s out"),
    TableColumn("Lag s", 6),
    TableColumn("INFO ms", 2),
)


def servers_table(server: ServerSummary) -> FittedTable:
    """Return a table of the servers while the load ran; of many servers, those that used most CPU time."""
    title = "Servers, while the load ran (CPU: share of one core; INFO: slowest reply)"
    table = FittedTable(title, _COLUMNS, elsewhere="summary.json")
    shown = sorted(server.nodes.items(), key=lambda item: item[1].role != "primary")
    if len(shown) > NODES_SHOWN:
        shown = sorted(shown, key=lambda item: -(item[1].figures.cpu_percent_mean or 0.0))[:NODES_SHOWN]
        table.caption = f"and {len(server.nodes) - NODES_SHOWN} more that used less CPU time, see summary.json"
    for name, node in shown:
        table.add_row(name, *_cells(node))
    return table


def _cells(node: NodeSummary) -> Iterator[str | Text]:
    figures = node.figures
    yield node.role
    for percent in (figures.cpu_percent_mean, figures.cpu_percent_max, figures.cpu_main_percent_mean):
        yield _or_dash(percent, "{:.0f}%")
    yield _or_dash(figures.memory_max, "{:,.1f}", _MIB)
    yield _or_dash(figures.fragmentation, "{:.2f}")
    yield _short(figures.commands_per_s)
    yield _or_dash(figures.hit_rate, "{:.1%}")
    yield as_text(_short(figures.evicted), style="yellow" if figures.evicted else "")
    yield _short(figures.expired)
    yield _short(figures.clients_max)
    yield _short(figures.blocked_max)
    for per_s in (figures.bytes_in_per_s, figures.bytes_out_per_s):
        yield _short(None if per_s is None else per_s / 1024)
    yield _short(figures.lag_s_max)
    yield "-" if figures.reply_us_max is None else ms(figures.reply_us_max)


def server_rows(server: ServerSummary) -> Iterator[tuple[str, Text]]:
    """Yield (label, text) of each finding about the servers that is not in their table."""
    if lines := list(_times(server)):
        yield "Server time", as_text(*lines)
    if lines := list(_settings(server.nodes)):
        yield "Settings", as_text(*lines)
    for label, lines in (
        ("Slow commands", list(_logged(server.nodes))),
        ("Server spikes", list(_spikes(server.nodes))),
        ("Hot keys", list(_hot_keys(server.nodes))),
        ("Busy slots", list(_slots(server.nodes))),
    ):
        if lines:
            yield label, as_text(*_first(lines))
    if lines := [*_silences(server.nodes), *_unavailable(server)]:
        yield "Not known", as_text(*_first(lines), style="yellow")


def _times(server: ServerSummary) -> Iterator[str]:
    times = sorted(server.times.items(), key=lambda item: -item[1].calls)
    for name, time in times[:_COMMANDS_SHOWN]:
        each = f"{time.batch} x " if time.batch is not None and time.batch > 1 else ""
        of = time.batch * time.server_us / time.client_us if time.client_us and time.batch is not None else None
        share = "" if of is None or of > 1 else f" ({of:.0%})" if of >= 0.01 else " (below 1%)"
        tail = "" if time.server_p99_us is None else f", p99 {_us(time.server_p99_us)} of {_us(time.client_p99_us)}"
        yield f"{name} {each}{_us(time.server_us)} of {_us(time.client_us)}{share}{tail}"
    if len(times) > _COMMANDS_SHOWN:
        yield f"and {counted(len(times) - _COMMANDS_SHOWN, 'command')} more, see summary.json"


_NAMED = ("maxmemory", "maxmemory-policy", "maxclients", "io-threads", "save", "appendonly")


def _settings(nodes: dict[str, NodeSummary]) -> Iterator[str]:
    """Yield the settings that matter: of all servers once, or by server where they differ; and what changed."""
    first = next((node.before for node in nodes.values() if node.before and node.before.config), None)
    if first is None:
        return
    yield ", ".join(f"{name} {_value(first.config[name])}" for name in _NAMED if name in first.config)
    for name, node in nodes.items():
        config = node.before.config if node.before else {}
        differing = [key for key in _NAMED if key in config and config[key] != first.config.get(key)]
        if differing:
            yield f"{name}: " + ", ".join(f"{key} {_value(config[key])}" for key in differing)
        after = node.after.config if node.after else {}
        for key in config:
            if key in after and after[key] != config[key]:
                yield f"{name}: {key} changed during the run from {_value(config[key])} to {_value(after[key])}"


def _value(value: str) -> str:
    return value or '""'


_LOGS = {"slow": "slow", "large-request": "with large requests", "large-reply": "with large replies"}


def _logged(nodes: dict[str, NodeSummary]) -> Iterator[str]:
    """Yield how many commands the servers logged as slow or large, and those that took longest."""
    more = sum(node.slowlog_more for node in nodes.values())
    for log, what in (
        ("slow", "slow"),
        ("large-request", "with large requests"),
        ("large-reply", "with large replies"),
    ):
        found = [(entry, name) for name, node in nodes.items() for entry in node.slowlog if entry.log == log]
        found.sort(key=lambda item: -item[0].value)
        worst = "; ".join(f"{_entry(entry)} at {name}" for entry, name in found[:_LOGGED_SHOWN])
        if found:
            overwritten = f", {more:,} more overwritten" if more and log == "slow" else ""
            yield f"{counted(len(found), 'command')} {what}{overwritten}: {worst}"


def _entry(entry: LoggedCommand) -> str:
    size = f"{_us(entry.value)}" if entry.log == "slow" else f"{entry.value:,} bytes"
    return f"{entry.command} ({size})"


def _spikes(nodes: dict[str, NodeSummary]) -> Iterator[str]:
    """Yield the slowest reply to INFO of each server that took long, and the events of LATENCY LATEST."""
    for name, node in nodes.items():
        slowest, at_s = node.figures.reply_us_max, node.figures.reply_max_at_s
        if slowest is not None and at_s is not None and slowest >= _SPIKE_US:
            yield f"{name}: INFO took {ms(slowest)} ms, sent {format_seconds(round(at_s, 1))} after the start"
        if node.latency_events:
            yield f"{name}: " + ", ".join(f"{event.name} {event.max_ms:,} ms at most" for event in node.latency_events)


def _hot_keys(nodes: dict[str, NodeSummary]) -> Iterator[str]:
    for name, node in nodes.items():
        if keys := [f"{key.key} {key.value:,} us" for key in node.hot_keys if key.by == "cpu_us"]:
            yield f"{name}: {listed(keys, 5)}"


def _slots(nodes: dict[str, NodeSummary]) -> Iterator[str]:
    for name, node in nodes.items():
        if slots := [f"{slot.slot} {_us(slot.cpu_us)}" for slot in node.slots if slot.cpu_us]:
            yield f"{name}: {listed(slots, 5)}"


def _silences(nodes: dict[str, NodeSummary]) -> Iterator[str]:
    for name, node in nodes.items():
        for silence in node.silences:
            since = f"from {format_seconds(round(max(0.0, silence.since_s), 1))}"
            until = "on" if silence.until_s is None else f"to {format_seconds(round(silence.until_s, 1))}"
            yield f"{name} gave no sample {since} {until}: {silence.reason}"


def _unavailable(server: ServerSummary) -> Iterator[str]:
    """Yield what could not be read, with the servers that have the same reason together."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for each in server.unavailable:
        by_reason.setdefault((each.node, each.reason), []).append(each.what)
    nodes: dict[tuple[str, str], list[str]] = {}
    for (node, reason), whats in by_reason.items():
        nodes.setdefault((", ".join(whats), reason), []).append(node)
    for (what, reason), names in nodes.items():
        of = f" of {listed(names, 3)}" if any(names) else ""
        yield f"{what}{of}: {reason}"


def _first(lines: list[str]) -> Iterable[str]:
    yield from lines[:_LINES_SHOWN]
    if len(lines) > _LINES_SHOWN:
        yield f"and {len(lines) - _LINES_SHOWN} more, see summary.json"


def _us(us: float) -> str:
    return f"{us:,.1f} us" if us < 10 else f"{us:,.0f} us" if us < 10_000 else f"{ms(us)} ms"


def _or_dash(value: float | None, form: str, unit: float = 1.0) -> str:
    return "-" if value is None else form.format(value / unit)


def _short(value: float | None) -> str:
    return "-" if value is None else short_number(value)
