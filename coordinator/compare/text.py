"""The report of a comparison for people. Fits 80 columns, and needs no terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.units import counted
from coordinator.compare.shapes import ComparedRun, Comparison, Cost, LatencyKind, Pair, Spread, SpreadKind
from coordinator.report.look import LEVEL_STYLES, OUTCOME_STYLES, facts, failed_share, short, titled
from coordinator.verdict import Level

_TIMES = {
    LatencyKind.RESPONSE: "response time, from the intended send to the reply",
    LatencyKind.SERVICE: "service time, from send to reply",
}


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Everything, from what ran to whether it can be trusted."""
    console.print(_head(comparison))
    console.print()
    console.print(_runs(comparison))
    if comparison.totals is not None:
        console.print(_costs(comparison, comparison.totals))
    console.print(_tail(comparison))


def run_line(run: ComparedRun) -> str:
    """One line, for while the others are still to come."""
    cpu = "" if run.cpu_us_per_operation is None else f"{_us(run.cpu_us_per_operation)} us of CPU per operation, "
    failed = f"{share}, " if (share := failed_share(run.errors, run.operations)) else ""
    return f"{run.id}: {run.outcome.value}, {failed}{short(run.ops_per_s)} ops/s, {cpu}{run.verdict.level.value}"


def _head(comparison: Comparison) -> Table:
    outcome = Text(comparison.outcome.value, style=OUTCOME_STYLES[comparison.outcome])
    outcome.append(f": {comparison.rounds} of {counted(comparison.rounds_wanted, 'round')} whole", style="default")
    if comparison.reason:
        outcome.append(f"; {comparison.reason}", style="default")
    target, load = comparison.target, comparison.load
    how = "closed loop" if load.model == "closed" else "stages of closed and open loop"
    if load.model == "open":
        rate = "" if load.wanted_rate_per_s is None else f", {short(load.wanted_rate_per_s)}/s wanted"
        how = f"open loop ({load.arrivals} arrivals{rate})"
    return facts(
        ("Comparison", Text(comparison.id)),
        ("", outcome),
        ("Target", Text(f"{target.url} ({target.topology}, {target.server})")),
        ("Load", Text(f"{how}; latencies are {_TIMES[load.latency]}")),
        ("At once", Text("\n".join(_at_once(comparison)))),
    )


def _at_once(comparison: Comparison) -> Iterator[str]:
    where = " to each primary" if comparison.target.topology == "cluster" else ""
    for name, pools in comparison.pools.items():
        yield (
            f"{name}: {pools.at_once_per_pool} in each pool; with client because of "
            f"{counted(pools.threads_per_pool, 'thread')} on "
            f"{counted(pools.client_instances_per_pool, 'client instance')}, with wire on as many connections{where}"
        )


def _runs(comparison: Comparison) -> Table:
    table = titled("Runs, latencies and CPU in us")
    table.add_column("Run", no_wrap=True)
    for name in ("Ops/sec", "CPU/op", "p50", "p99", "p99.9", "Errors"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Outcome", no_wrap=True)
    table.add_column("Verdict", no_wrap=True)
    for run in comparison.runs:
        latency = run.latency_us
        table.add_row(
            Text(_name(run)),
            short(run.ops_per_s),
            "-" if run.cpu_us_per_operation is None else _us(run.cpu_us_per_operation),
            *(["-"] * 3 if latency is None else map(_us, (latency.p50, latency.p99, latency.p99_9))),
            Text(short(run.errors), style="red" if run.errors else ""),
            Text(run.outcome.value, style=OUTCOME_STYLES[run.outcome]),
            Text(run.verdict.level.value, style=LEVEL_STYLES[run.verdict.level]),
            style="" if run.counts else "dim",
        )
    if not all(run.counts for run in comparison.runs):
        left_out = ", ".join(_name(run) for run in comparison.runs if not run.counts)
        table.caption, table.caption_justify = f"not compared, because its round is not whole: {left_out}", "left"
    return table


def _costs(comparison: Comparison, totals: Cost) -> Table:
    kind = "least..greatest" if comparison.spread is SpreadKind.RANGE else "quartiles"
    table = titled(f"What redis-py costs: median ({kind}) of {counted(comparison.rounds, 'round')}, us")
    # Three columns of twenty characters, and no room to spare.
    table.padding = 0
    table.add_column("Type", overflow="fold", min_width=6)
    table.add_column("", no_wrap=True)
    for name in ("client", "wire", "redis-py adds"):
        table.add_column(name, justify="right")
    for name, cost in comparison.commands.items():
        _add_rows(table, name, cost)
    _add_rows(table, "Totals", totals)
    table.caption, table.caption_justify = "what redis-py adds is the difference of the two runs of a round", "left"
    return table


def _add_rows(table: Table, name: str, cost: Cost) -> None:
    latency = cost.latency_us
    rows: list[tuple[str, Pair | None]] = [("CPU/op", cost.cpu_us_per_operation)]
    if latency is not None:
        rows += [("p50", latency.p50), ("p99", latency.p99), ("p99.9", latency.p99_9)]
    for figure, pair in rows:
        if pair is not None:
            table.add_row(Text(name), figure, *(_spread(of) for of in (pair.client, pair.wire, pair.difference)))
            name = ""
    rates = (cost.ops_per_s.client, cost.ops_per_s.wire)
    table.add_row(Text(name), "ops/s", *(_spread(of, rate=True) for of in rates), "")
    table.add_section()


def _tail(comparison: Comparison) -> Table:
    rows: list[tuple[str, Text]] = []
    if comparison.totals is not None and (cpu := comparison.totals.cpu_us_per_operation) is not None:
        rows.append(("CPU", Text(_in_words(cpu))))
    if comparison.notes:
        rows.append(("Notes", Text("\n".join(comparison.notes))))
    return facts(*rows, ("Verdicts", _verdicts(comparison)))


def _verdicts(comparison: Comparison) -> Text:
    """The runs of each level, and each reason once, with the runs that it holds for."""
    levels: dict[Level, list[str]] = {}
    reasons: dict[str, list[str]] = {}
    for run in comparison.runs:
        levels.setdefault(run.verdict.level, []).append(_name(run))
        for reason in run.verdict.reasons:
            reasons.setdefault(reason, []).append(_name(run))
    if set(levels) == {Level.TRUSTED}:
        return Text("all trusted", style="green")
    text = Text("\n").join(
        Text(f"{level.value}: {', '.join(names)}", LEVEL_STYLES[level]) for level, names in levels.items()
    )
    for reason, names in reasons.items():
        text.append(f"\n- {reason} ({', '.join(names)})", style="default")
    return text


def _in_words(cpu: Pair) -> str:
    return (
        f"an operation takes {_us(cpu.client.median)} us with client and {_us(cpu.wire.median)} us with wire: redis-py "
        f"adds {_us(cpu.difference.median)} us (of all that worker processes do for the load)"
    )


def _name(run: ComparedRun) -> str:
    return run.id.rpartition("/")[2]


def _spread(of: Spread, *, rate: bool = False) -> str:
    show = short if rate else _us
    return f"{show(of.median)} ({show(of.low)}..{show(of.high)})"


def _us(value: float) -> str:
    """Microseconds in at most six characters below a thousand seconds: three digits tell enough beside a spread."""
    if abs(value) >= 9999.5:
        return f"{'-' if value < 0 else ''}{short(abs(value))}"
    decimals = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{decimals}f}"
