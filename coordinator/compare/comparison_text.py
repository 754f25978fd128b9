"""The report of a comparison as text. It fits the terminal, and also works without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.units import counted
from coordinator.analysis.verdict import Level
from coordinator.compare.comparison_types import (
    ComparedRun,
    Comparison,
    Cost,
    FigureSpread,
    LatencyKind,
    Pair,
    SpreadKind,
)
from coordinator.report.printing import LEVEL_STYLES, OUTCOME_STYLES, as_text, facts, failed_share, short_number
from coordinator.report.run_files import COMPARISON_FILE
from coordinator.report.tables import FittedTable, TableColumn, print_parts

_TIMES = {
    LatencyKind.RESPONSE: "response time, from the intended send to the reply",
    LatencyKind.SERVICE: "service time, from send to reply",
}


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the whole comparison."""
    print_parts(console, _head(comparison), "", _runs(comparison), "")
    if comparison.totals is not None:
        print_parts(console, _costs(comparison, comparison.totals), "")
    print_parts(console, _tail(comparison))


def run_line(run: ComparedRun) -> str:
    """Return one line about a run, to show while later runs are still to come."""
    cpu = "" if run.cpu_us_per_operation is None else f"{_us(run.cpu_us_per_operation)} us of CPU per operation, "
    failed = f"{share}, " if (share := failed_share(run.errors, run.operations)) else ""
    return f"{run.id}: {run.outcome.value}, {failed}{short_number(run.ops_per_s)} ops/s, {cpu}{run.verdict.level.value}"


def _head(comparison: Comparison) -> Table:
    outcome = as_text(comparison.outcome.value, style=OUTCOME_STYLES[comparison.outcome])
    outcome.append(f": {comparison.rounds} of {counted(comparison.rounds_wanted, 'round')} complete", style="default")
    if comparison.reason:
        outcome.append(f"; {comparison.reason}", style="default")
    target, load = comparison.target, comparison.load
    how = "closed loop" if load.model == "closed" else "stages of closed and open loop"
    if load.model == "open":
        rate = "" if load.wanted_rate_per_s is None else f", {short_number(load.wanted_rate_per_s)}/s wanted"
        how = f"open loop ({load.arrivals} arrivals{rate})"
    return facts(
        ("Comparison", as_text(comparison.id)),
        ("", outcome),
        ("Target", as_text(f"{target.url} ({target.topology}, {target.server})")),
        ("Load", as_text(f"{how}; latencies are {_TIMES[load.latency]}")),
        ("At once", as_text(*_at_once(comparison))),
    )


def _at_once(comparison: Comparison) -> Iterator[str]:
    where = " to each primary" if comparison.target.topology == "cluster" else ""
    for name, pools in comparison.pools.items():
        yield (
            f"{name}: {pools.at_once_per_pool} in each pool; with client because of "
            f"{counted(pools.threads_per_pool, 'thread')} on "
            f"{counted(pools.client_instances_per_pool, 'client instance')}, with wire on as many connections{where}"
        )


_RUN_COLUMNS = (
    TableColumn("Run", fold=12),
    TableColumn("Ops/s", 1),
    TableColumn("CPU us/op", 3),
    TableColumn("p50", 5),
    TableColumn("p99", 4),
    TableColumn("p99.9", 6),
    TableColumn("Errors"),
    TableColumn("Outcome", 2, fold=9),
    TableColumn("Verdict", fold=7),
)


def _runs(comparison: Comparison) -> FittedTable:
    table = FittedTable("Runs (latencies in ms)", _RUN_COLUMNS, elsewhere=COMPARISON_FILE)
    for run in comparison.runs:
        latency = run.latency_us
        table.add_row(
            _name(run),
            short_number(run.ops_per_s),
            "-" if run.cpu_us_per_operation is None else _us(run.cpu_us_per_operation),
            *(["-"] * 3 if latency is None else map(_ms, (latency.p50, latency.p99, latency.p99_9))),
            as_text(short_number(run.errors), style="red" if run.errors else ""),
            as_text(run.outcome.value, style=OUTCOME_STYLES[run.outcome]),
            as_text(run.verdict.level.value, style=LEVEL_STYLES[run.verdict.level]),
            style="" if run.counts else "dim",
        )
    if not all(run.counts for run in comparison.runs):
        left_out = ", ".join(_name(run) for run in comparison.runs if not run.counts)
        table.caption = f"not compared, because its round is not complete: {left_out}"
    return table


_COST_COLUMNS = (
    TableColumn("Type", fold=6),
    TableColumn("", fold=9),
    TableColumn("client", 1),
    TableColumn("wire", 2),
    TableColumn("redis-py adds"),
)


def _costs(comparison: Comparison, totals: Cost) -> FittedTable:
    kind = "min..max" if comparison.spread is SpreadKind.RANGE else "quartiles"
    title = f"What redis-py costs: median ({kind}) of {counted(comparison.rounds, 'round')}"
    table = FittedTable(title, _COST_COLUMNS, elsewhere=COMPARISON_FILE)
    table.caption = "redis-py adds: the difference between the two runs of a round"
    for name, cost in comparison.commands.items():
        _add_rows(table, name, cost)
    _add_rows(table, "Totals", totals)
    return table


def _add_rows(table: FittedTable, name: str, cost: Cost) -> None:
    latency = cost.latency_us
    rows: list[tuple[str, Pair | None, Callable[[float], str]]] = [("CPU us/op", cost.cpu_us_per_operation, _us)]
    if latency is not None:
        rows += [("p50 ms", latency.p50, _ms), ("p99 ms", latency.p99, _ms), ("p99.9 ms", latency.p99_9, _ms)]
    for figure, pair, form in rows:
        if pair is not None:
            table.add_row(name, figure, *(_spread(of, form) for of in (pair.client, pair.wire, pair.difference)))
            name = ""
    table.add_row(
        name, "ops/s", _spread(cost.ops_per_s.client, short_number), _spread(cost.ops_per_s.wire, short_number), ""
    )
    table.end_section()


def _tail(comparison: Comparison) -> Table:
    rows: list[tuple[str, Text]] = []
    if comparison.totals is not None and (cpu := comparison.totals.cpu_us_per_operation) is not None:
        rows.append(("CPU", as_text(_in_words(cpu))))
    if comparison.notes:
        rows.append(("Notes", as_text(*comparison.notes)))
    return facts(*rows, ("Verdicts", _verdicts(comparison)))


def _verdicts(comparison: Comparison) -> Text:
    """Return the runs of each level, and each reason once, with its runs."""
    levels: dict[Level, list[str]] = {}
    reasons: dict[str, list[str]] = {}
    for run in comparison.runs:
        levels.setdefault(run.verdict.level, []).append(_name(run))
        for reason in run.verdict.reasons:
            reasons.setdefault(reason, []).append(_name(run))
    if set(levels) == {Level.TRUSTED}:
        return as_text("all trusted", style="green")
    parts = [
        as_text(f"{level.value}: {', '.join(names)}", style=LEVEL_STYLES[level]) for level, names in levels.items()
    ]
    parts += [as_text(f"- {reason} ({', '.join(names)})") for reason, names in reasons.items()]
    return as_text("", "").join(parts)


def _in_words(cpu: Pair) -> str:
    return (
        f"an operation takes {_us(cpu.client.median)} us with client and {_us(cpu.wire.median)} us with wire: redis-py "
        f"adds {_us(cpu.difference.median)} us (CPU time of worker processes)"
    )


def _name(run: ComparedRun) -> str:
    return run.id.rpartition("/")[2]


def _spread(of: FigureSpread, form: Callable[[float], str]) -> str:
    return f"{form(of.median)} ({form(of.low)}..{form(of.high)})"


def _us(value: float) -> str:
    """Return microseconds in three digits: more are noise next to a spread."""
    return _three_digits(value, 2)


def _ms(us: float) -> str:
    """Return microseconds as milliseconds in three digits, with at most three decimals."""
    return _three_digits(us / 1e3, 3)


def _three_digits(value: float, most_decimals: int) -> str:
    if abs(value) >= 9999.5:
        return f"{'-' if value < 0 else ''}{short_number(abs(value))}"
    decimals = 3 if abs(value) < 0.9995 else 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{min(decimals, most_decimals)}f}"
