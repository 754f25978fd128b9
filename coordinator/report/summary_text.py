"""The summary of a run as text: what ran, a row for each command as in memtier_benchmark, and the verdict. It fits the
terminal, and also works without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from common.units import counted, format_seconds
from coordinator.analysis.key_space import clean_up_text, preload_text
from coordinator.journal.records import AgentOutcome
from coordinator.report.endpoint_table import endpoint_table
from coordinator.report.error_samples import sample_lines
from coordinator.report.heading import heading
from coordinator.report.percentiles import percentile_of, shown_percentiles
from coordinator.report.printing import (
    LEVEL_STYLES,
    SafeText,
    as_text,
    counts_by_name,
    facts,
    hit_rate,
    ms,
    rounded,
    short_number,
)
from coordinator.report.server_text import server_rows, servers_table
from coordinator.report.summary_types import (
    AgentSummary,
    Bin,
    ConnectionsSummary,
    GeneratorSummary,
    PubSubSummary,
    Quantiles,
    ScenarioSummary,
    StageSummary,
    Stats,
    Summary,
    VisibilitySummary,
)
from coordinator.report.tables import Bar, FittedTable, TableColumn, print_parts

_AGENTS_SHOWN = 10
_ELSEWHERE = "summary.json"


def print_summary(console: Console, summary: Summary, *, hide_histogram: bool = False) -> None:
    """Print the whole summary."""
    print_parts(console, heading(summary), "")
    if len(summary.scenarios) > 1:
        print_parts(console, _scenarios(summary), "")
    if len(summary.stages) > len(summary.scenarios):
        print_parts(console, _stages(summary), "")
    if summary.load.model != "closed":
        of = "Response time" if summary.load.model == "open" else "Response time at a rate"
        title = f"{of}, from the intended send to the reply (ms)"
        at_a_rate = [scenario for scenario in summary.scenarios if scenario.load.model != "closed"]
        response = _latency_table(summary, title, lambda s: s.latency_us.response or s.latency_us.service, at_a_rate)
        response.caption = _missing(summary)
        print_parts(console, response, "")
    title = "Service time, from send to reply (ms)"
    service = _latency_table(summary, title, lambda s: s.latency_us.service, summary.scenarios)
    print_parts(console, service, "")
    several = len(summary.scenarios) > 1
    for scenario in summary.scenarios:
        if len(scenario.endpoints) > 1:
            print_parts(console, endpoint_table(scenario, f" of {scenario.name}" if several else ""), "")
    if not hide_histogram and summary.latency_bins:
        what = "Response" if summary.load.model == "open" else "Service"
        print_parts(console, _histogram(f"{what} times", summary.latency_bins), "")
    if not hide_histogram and summary.visibility and summary.visibility.lag_bins:
        print_parts(console, _histogram("Lag of visibility", summary.visibility.lag_bins), "")
    print_parts(console, _agents(summary), "")
    if summary.server.nodes:
        print_parts(console, servers_table(summary.server), "")
    print_parts(console, _tail(summary))


def _missing(summary: Summary) -> str:
    """Return a note on how many operations have no response time: they were never sent, or failed, and may be those
    that waited longest. "" if all have one."""
    at_a_rate = [stage for stage in summary.stages if stage.measured and stage.model == "open"]
    unsent = sum(stage.unsent for stage in at_a_rate)
    failed = sum(stage.stats.errors for stage in at_a_rate)
    intended = sum(stage.stats.operations for stage in at_a_rate) + unsent
    if not unsent + failed:
        return ""
    return (
        f"without {unsent + failed:,} of {counted(intended, 'intended operation')} "
        f"({(unsent + failed) / intended:.1%}): {unsent:,} never sent, {failed:,} failed"
    )


_TARGET = "Target"
_SCENARIO_COLUMNS = (
    TableColumn("Scenario", fold=10),
    TableColumn(_TARGET, 6, fold=8),
    TableColumn("From", 8),
    TableColumn("Ops/s", 1),
    TableColumn("Wanted/s", 3),
    TableColumn("Unsent", 5),
    TableColumn("p50", 4),
    TableColumn("p99", 2),
    TableColumn("p99.9", 7),
    TableColumn("max", 5),
    TableColumn("Errors"),
)


def _scenarios(summary: Summary) -> FittedTable:
    """Return a row for each scenario."""
    title = "Scenarios (ms: response time at a rate, service time in a closed loop)"
    several = len(summary.targets) > 1
    columns = [column for column in _SCENARIO_COLUMNS if several or column.heading != _TARGET]
    table = FittedTable(title, columns, elsewhere=_ELSEWHERE)
    for scenario in summary.scenarios:
        stats, load = scenario.totals, scenario.load
        latency = stats.latency_us.response or stats.latency_us.service
        times_us = (latency.p50, latency.p99, latency.p99_9, latency.max)
        table.add_row(
            scenario.name,
            *([scenario.target] if several else []),
            _duration(scenario.begin_s),
            short_number(stats.ops_per_s),
            "-" if load.wanted_rate_per_s is None else short_number(load.wanted_rate_per_s),
            short_number(load.unsent),
            *(ms(us) if latency.count else "-" for us in times_us),
            as_text(short_number(stats.errors), style="red" if stats.errors else ""),
        )
    return table


_STAGE_COLUMNS = (
    TableColumn("Stage", fold=7),
    TableColumn("From", 9),
    TableColumn("Length", 8),
    TableColumn("Wanted/s", 2),
    TableColumn("Actual/s", 1),
    TableColumn("p50", 5),
    TableColumn("p99", 3),
    TableColumn("p99.9", 6),
    TableColumn("max", 4),
    TableColumn("Errors"),
)


def _stages(summary: Summary) -> FittedTable:
    """Return a table of all stages, including the warmup, which no later table includes."""
    title = "Stages (ms: response time at a rate, service time in a closed loop)"
    table = FittedTable(title, _STAGE_COLUMNS, elsewhere=_ELSEWHERE)
    for stage in summary.stages:
        latency = stage.stats.latency_us.response or stage.stats.latency_us.service
        times_us = (latency.p50, latency.p99, latency.p99_9, latency.max)
        table.add_row(
            stage.name,
            _duration(stage.begin_s),
            _duration(stage.duration_s),
            _wanted(stage),
            short_number(stage.achieved_rate_per_s),
            *(ms(us) if latency.count else "-" for us in times_us),
            as_text(short_number(stage.stats.errors), style="red" if stage.stats.errors else ""),
            style="" if stage.measured else "dim",
        )
    if not all(stage.measured for stage in summary.stages):
        table.caption = "of the other numbers, only the ledger and the connections include the warmup"
    return table


def _wanted(stage: StageSummary) -> SafeText:
    """Return the mean rate, to compare with the actual rate; for a ramp also the rate at its end, on a second line."""
    wanted = as_text("-" if stage.wanted_rate_per_s is None else short_number(stage.wanted_rate_per_s))
    if stage.ramp == "linear":
        wanted.add_line(f"to {short_number(stage.target_rate_per_s or 0.0)}", style="dim")
    return wanted


_HITS = "Hits"
_PERCENTILE_RANKS = {"p50": 3, "p90": 9, "p99": 2, "p99.9": 5}
"""The percentiles in tables of latency, unless the plan asks for others, and the ranks of their columns."""


def _latency_columns(percentiles: Sequence[str], *, shows_hits: bool) -> list[TableColumn]:
    return [
        TableColumn("Type", fold=12),
        TableColumn("Ops/s", 1),
        TableColumn("Avg", 7),
        *(TableColumn(name, _PERCENTILE_RANKS.get(name, 4)) for name in percentiles),
        TableColumn("max", 4),
        TableColumn("KiB/s", 8),
        *([TableColumn(_HITS, 6, called="hit rate")] if shows_hits else []),
        TableColumn("Errors"),
    ]


def _latency_table(
    summary: Summary, title: str, of: Callable[[Stats], Quantiles], scenarios: Sequence[ScenarioSummary]
) -> FittedTable:
    """scenarios: those to show. The totals are of all scenarios, so they are left out if some are not shown."""
    shows_hits = summary.totals.hits is not None
    percentiles = shown_percentiles(summary.plan, list(_PERCENTILE_RANKS))
    table = FittedTable(title, _latency_columns(percentiles, shows_hits=shows_hits), elsewhere=_ELSEWHERE)
    if len(summary.scenarios) > 1:
        groups = [{f"{each.name} {name}": stats for name, stats in each.commands.items()} for each in scenarios]
    else:
        groups = [summary.commands]
    for each in scenarios:
        prefix = f"{each.name}/" if len(summary.scenarios) > 1 else ""
        if len(each.pools) > 1:
            groups.append({f"pool {prefix}{name}": stats for name, stats in each.pools.items()})
    for group in groups:
        for name, stats in group.items():
            table.add_row(*_latency_row(name, stats, of(stats), summary.load.measured_s, shows_hits, percentiles))
        table.end_section()
    if len(scenarios) == len(summary.scenarios):
        shown, duration_s = of(summary.totals), summary.load.measured_s
        totals = _latency_row("Totals", summary.totals, shown, duration_s, shows_hits, percentiles)
        table.add_row(*totals, style="bold")
    return table


def _latency_row(
    name: str, stats: Stats, latency: Quantiles, duration_s: float, shows_hits: bool, percentiles: Sequence[str]
) -> list[str | SafeText]:
    kib = (stats.bytes_out + stats.bytes_in) / 1024
    times_us = (latency.mean, *(percentile_of(latency, each) for each in percentiles), latency.max)
    return [
        name,
        rounded(stats.ops_per_s),
        *(ms(us) if latency.count else "-" for us in times_us),
        rounded(kib / duration_s if duration_s > 0 else 0.0),
        *([hit_rate(stats.hits, stats.misses)] if shows_hits else []),
        as_text(f"{stats.errors:,}", style="red" if stats.errors else ""),
    ]


_HISTOGRAM_COLUMNS = (
    TableColumn("up to ms"),
    TableColumn("operations"),
    TableColumn("share"),
    TableColumn("", 1, bars=True),
)


def _histogram(title: str, bins: tuple[Bin, ...]) -> FittedTable:
    table = FittedTable(title, _HISTOGRAM_COLUMNS, rule=False)
    most = max(bin_.count for bin_ in bins)
    everything = sum(bin_.count for bin_ in bins)
    for bin_ in bins:
        share = f"{bin_.count / everything:.2%}"
        table.add_row(f"{bin_.up_to_us / 1e3:,.10g}", f"{bin_.count:,}", share, Bar(bin_.count / most))
    return table


_AGENT_COLUMNS = (
    TableColumn("Agent", fold=12),
    TableColumn("Host", 5, fold=16),
    TableColumn("Procs", 7),
    TableColumn("State"),
    TableColumn("Operations", 1),
    TableColumn("CPU", 3),
    TableColumn("Busiest", 2),
    TableColumn("Machine", 4),
    TableColumn("Skew ms", 6),
)


_AGENT_STYLES = {AgentOutcome.FINISHED: "green", AgentOutcome.LOST: "red", AgentOutcome.OPEN: "yellow"}


def _agents(summary: Summary) -> FittedTable:
    table = FittedTable("Agents", _AGENT_COLUMNS, elsewhere=_ELSEWHERE)
    # Lost agents first, so that the limit does not hide them.
    for agent in sorted(summary.agents, key=lambda agent: agent.state is not AgentOutcome.LOST)[:_AGENTS_SHOWN]:
        table.add_row(
            agent.id,
            agent.host,
            str(agent.processes),
            as_text(agent.state.value, style=_AGENT_STYLES[agent.state]),
            f"{agent.operations:,}",
            _or_dash(agent.cpu_percent_max, "{:.0f}%"),
            _or_dash(agent.cpu_percent_busiest, "{:.0f}%"),
            _machine(agent),
            _or_dash(agent.start_skew_us, "{:,.3f}", 1e3),
        )
    notes = [
        f"{agent.id} replaced by {agent.replaced_by} at {agent.replaced_at_s:.1f} s"
        for agent in summary.agents
        if agent.replaced_at_s is not None
    ][:_AGENTS_SHOWN]
    if quotas := [round(agent.quota_cores, 2) for agent in summary.agents if agent.quota_cores is not None]:
        each = f"{min(quotas):g}" if min(quotas) == max(quotas) else f"{min(quotas):g} to {max(quotas):g}"
        notes.append(f"* of a CPU quota of {each} {'core' if each == '1' else 'cores'}")
    if len(summary.agents) > _AGENTS_SHOWN:
        notes.append(f"and {len(summary.agents) - _AGENTS_SHOWN} more, see {_ELSEWHERE}")
    table.caption = "\n".join(notes)
    return table


def _machine(agent: AgentSummary) -> str:
    """Return how busy the agent's cores were: all cores of its machine, or its CPU quota."""
    if agent.quota_percent_mean is not None:
        return f"{agent.quota_percent_mean:.0f}%*"
    return _or_dash(agent.host_cpu_percent_mean, "{:.0f}%")


def _tail(summary: Summary) -> Table:
    verdict = as_text(summary.verdict.level.value, style=LEVEL_STYLES[summary.verdict.level])
    for reason in (*summary.verdict.reasons, *summary.verdict.notes):
        verdict.add_line(f"- {reason}", style="default")
    before = [("Preload", as_text(preload_text(summary.preload)))] if summary.preload else []
    after = [("Clean-up", as_text(clean_up_text(summary.clean_up, summary.run.id)))] if summary.clean_up else []
    return facts(
        *before,
        ("Generator", _generator(summary.generator)),
        ("Connections", as_text(*_connections(summary))),
        ("Checkout wait", as_text(_wait(summary.checkout_wait_us))),
        *([("Deliveries", _deliveries(summary.pubsub))] if summary.pubsub else []),
        *([("Visibility", _visibility(summary.visibility))] if summary.visibility else []),
        *server_rows(summary.server),
        ("Errors", as_text(_errors(summary), *sample_lines(summary.error_samples, _ELSEWHERE))),
        ("Ledger", as_text(_ledger(summary))),
        *after,
        ("Verdict", verdict),
    )


def _generator(generator: GeneratorSummary) -> SafeText:
    lines = []
    if generator.cpu_s is not None:
        each = generator.cpu_us_per_operation
        by_each = "" if each is None else f", {each:,.1f} us per operation"
        lines.append(
            f"{generator.cpu_s:,.2f} s of CPU{by_each}; the busiest process used {generator.core_share_mean:.0%} of a "
            f"core, {generator.core_share_max:.0%} at most"
        )
    if (lag := generator.loop_lag_us) is not None:
        lines.append(
            f"event loops busy {generator.loop_share_mean:.0%} of the time, without a pause for {ms(lag.p99)} ms "
            f"(p99), {ms(lag.max)} ms (max)"
        )
    if generator.late_sends:
        lines.append(f"{counted(generator.late_sends, 'operation')} sent more than 1 ms late")
    if generator.throttled_periods:
        lines.append(
            f"throttled by a CPU quota in {generator.throttled_periods:,} of {generator.quota_periods:,} periods, "
            f"{generator.throttled_s:,.2f} s in total"
        )
    if generator.stall_max_s:
        lines.append(
            f"a worker process did not run for {generator.stall_max_s:.1f} s, from {generator.stall_at_s:.1f} s on"
        )
    return as_text(*lines or ["not known"], style="yellow" if generator.limit else "")


def _connections(summary: Summary) -> list[str]:
    connections = summary.connections
    lines = [
        f"{connections.peak_open:,} open at most, of {connections.ceiling:,} allowed; {connections.opened:,} opened, "
        f"{counted(connections.failed_attempts, 'failed attempt')}{_by_cause(connections.failed_by_cause)}, "
        f"{counted(connections.retries, 'retry')}",
    ]
    if connections.connect_ms.total.count:
        lines.append(f"connects took {_connect_times(connections)}")
    if never := sum(connections.never_opened.values()):
        wanted = "" if connections.wanted is None else f" of {connections.wanted:,} wanted"
        lines.append(f"{never:,}{wanted} never opened: {counts_by_name(connections.never_opened)}")
    if connections.server_clients_before is not None and connections.server_clients_after is not None:
        lines.append(
            f"the server counted {counted(connections.server_clients_before, 'client')} just before the start, "
            f"{connections.server_clients_after:,} after it"
        )
    if connections.drops:
        lines.append(f"dropped: {counts_by_name(connections.drops)}")
    if connections.reconnects:
        took = connections.reconnect_ms
        lines.append(
            f"{counted(connections.reconnects, 'reconnect')} took {took.p50:.1f} ms (p50), {took.max:.1f} ms (max)"
        )
    if connections.redirects:
        lines.append(f"redirected by the cluster: {counts_by_name(connections.redirects)}")
    if connections.topology_refreshes:
        lines.append(f"{counted(connections.topology_refreshes, 'topology refresh')}")
    if connections.maintenance:
        lines.append(f"maintenance notifications: {counts_by_name(connections.maintenance)}")
    return lines


def _connect_times(connections: ConnectionsSummary) -> str:
    """Such as "1.2 ms (p50), 8.3 ms (p99); p50 of TCP 0.1 ms, TLS 0.9 ms, handshake 0.2 ms; 8 TLS handshakes"."""
    times = connections.connect_ms
    text = f"{times.total.p50:.1f} ms (p50), {times.total.p99:.1f} ms (p99), {times.total.max:.1f} ms (max)"
    parts = [("TCP", times.tcp), ("TLS", times.tls), ("handshake", times.handshake)]
    if shown := ", ".join(f"{name} {part.p50:.1f} ms" for name, part in parts if part.count):
        text += f"; p50 of {shown}"
    handshakes = connections.tls_handshakes
    return text + (f"; {counted(handshakes, 'TLS handshake')}" if handshakes else "")


def _by_cause(counts: dict[str, int]) -> str:
    return f" ({counts_by_name(counts)})" if counts else ""


def _wait(wait_us: Quantiles) -> str:
    if not wait_us.count:
        return "no checkouts"
    return (
        f"avg {ms(wait_us.mean)}, p50 {ms(wait_us.p50)}, p99 {ms(wait_us.p99)}, max {ms(wait_us.max)} ms "
        f"over {counted(wait_us.count, 'checkout')}"
    )


def _deliveries(pubsub: PubSubSummary) -> SafeText:
    text = as_text(f"{pubsub.delivered:,} of {pubsub.expected:,} expected, ")
    text.append(f"{pubsub.lost:,} lost", style="red" if pubsub.lost else "")
    text.append(f", {pubsub.repeated:,} sent twice" if pubsub.repeated else "")
    text.append(f", {pubsub.foreign:,} from other publishers" if pubsub.foreign else "")
    took = pubsub.latency_us
    if took.count:
        text.add_line(f"latency avg {ms(took.mean)}, p50 {ms(took.p50)}, p99 {ms(took.p99)}, max {ms(took.max)} ms")
    if took.count < pubsub.delivered:
        text.add_line(f"{took.count:,} of them timed, without those between hosts and those of the warmup")
    return text


def _visibility(visibility: VisibilitySummary) -> SafeText:
    names = [name or "the plan's target" for name in (visibility.write, visibility.read)]
    text = as_text(f"{visibility.seen:,} of {counted(visibility.written, 'write')} on {names[0]} seen on {names[1]}, ")
    text.append(f"{visibility.unseen:,} unseen", style="red" if visibility.unseen else "")
    lag = visibility.lag_us
    if lag.count:
        text.add_line(
            f"lag p50 {ms(lag.p50)}, p90 {ms(lag.p90)}, p99 {ms(lag.p99)}, max {ms(lag.max)} ms, "
            "from before the SET to the reply that shows it"
        )
    return text


def _errors(summary: Summary) -> str:
    if not summary.errors:
        return "none"
    share = summary.totals.errors / summary.totals.operations
    failed = summary.totals.latency_us.failed
    return f"{counts_by_name(summary.errors)} ({share:.2%} of all operations, took {ms(failed.max)} ms at most)"


def _ledger(summary: Summary) -> str:
    ledger = summary.ledger
    server = "not compared" if ledger.server_calls is None else f"{ledger.server_calls:,}"
    room = f", {ledger.uncertain:,} uncertain" if ledger.uncertain else ""
    uncarried = f"; {ledger.uncarried:,} due in a share without an agent" if ledger.uncarried else ""
    return (
        f"issued {ledger.issued:,}, counted {ledger.counted:,}, server calls {server}{room}: "
        f"{ledger.unaccounted:,} unaccounted{uncarried}"
    )


def _duration(seconds: float) -> str:
    """Return a time in at most six characters (below 100 hours): "2.5s", "12m34s", "27h46m"."""
    if seconds < 59.95:
        return format_seconds(round(seconds, 1))
    return format_seconds(float(round(seconds) if seconds < 3599.5 else round(seconds / 60) * 60))


def _or_dash(value: float | None, form: str, unit: float = 1.0) -> str:
    return "-" if value is None else form.format(value / unit)
