"""Build the summary of a run from its aggregate. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from common.errors import UsageError
from common.metrics.histogram import Histogram
from common.metrics.intervals import (
    CommandMetrics,
    IntervalMetrics,
    merge_commands,
    merge_counts,
    merge_deliveries,
)
from common.plan.planned_commands import subscribes
from common.plan.schema import Arrivals, Ramp
from common.plan.timeline import Leg
from common.serde import to_builtins
from common.units import NS_PER_S
from coordinator.analysis.by_endpoint import endpoints_of
from coordinator.analysis.generator import (
    all_report_cpu,
    busiest_agent,
    delays_by_agent,
    generator_limits,
    throttled_share,
)
from coordinator.analysis.key_space import clean_up_of, preload_of
from coordinator.analysis.ledger import audit, scenario_ledger
from coordinator.analysis.leg_results import StageResult, stage_results
from coordinator.analysis.server_summary import server_summary
from coordinator.analysis.totals.aggregate import Aggregate, scenarios_by_target
from coordinator.analysis.unassigned_shares import unassigned_shares
from coordinator.analysis.unfinished_run import unfinished_reason
from coordinator.analysis.verdict import judge
from coordinator.analysis.visible_writes import visible_writes
from coordinator.journal.records import Outcome, Reading, RunOpened, TargetFacts
from coordinator.report.agent_summaries import agent_summaries
from coordinator.report.error_samples import error_samples_of
from coordinator.report.latency_bins import bins
from coordinator.report.percentiles import FIXED, percentile_names
from coordinator.report.summary_types import (
    SUMMARY_FORMAT,
    ConnectionsSummary,
    ConnectTimesSummary,
    EndpointStats,
    GeneratorSummary,
    Latency,
    LoadSummary,
    PubSubSummary,
    Quantiles,
    RunSummary,
    ScenarioSummary,
    StageSummary,
    Stats,
    Summary,
    TargetSummary,
    VisibilitySummary,
)
from coordinator.report.utc import utc_text

_QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999, 0.9999)
_OPEN = "open"
_US = 1e3
_MS = 1e6


def build_summary(aggregate: Aggregate) -> Summary:
    """Return the summary of everything known so far. Raises UsageError if the journal has no run yet."""
    opened = aggregate.opened
    if opened is None:
        raise UsageError("the journal ends before the run began, so there is nothing to report")
    ledger = audit(aggregate)
    results = {part.name: stage_results(part, scenario_ledger(aggregate, part)) for part in aggregate.scenarios}
    scenarios = tuple(_scenario(aggregate, part, results[part.name]) for part in aggregate.scenarios)
    targets = {"": opened.target, **opened.targets} if not aggregate.parts else _targets(aggregate, opened)
    common = {
        "format": SUMMARY_FORMAT,
        "run": _run(aggregate, opened),
        "target": _target(next(iter(targets.values()))),
        "plan": to_builtins(opened.plan),
        "agents": agent_summaries(aggregate),
        "ledger": ledger,
        "clean_up": clean_up_of(aggregate),
        "preload": preload_of(aggregate),
        "verdict": judge(aggregate, ledger),
        "scenarios": scenarios,
        "targets": {name: _target(facts) for name, facts in targets.items()},
        "server": server_summary(aggregate, _by_command(aggregate.measured)),
        "visibility": _visibility(aggregate),
    }
    if not aggregate.parts:
        [alone] = scenarios
        shared = {name: getattr(alone, name) for name in _SUMMED}
        return Summary(**common, **shared, generator=_generator(aggregate, results[alone.name]))
    return Summary(**common, **_sums(aggregate, opened, results, scenarios))


_SUMMED = (
    "load",
    "totals",
    "commands",
    "stages",
    "pools",
    "checkout_wait_us",
    "connections",
    "pubsub",
    "errors",
    "error_samples",
    "latency_bins",
    "endpoints",
)
"""What a summary has of each scenario, and as the sum over all of them."""


def _scenario(run: Aggregate, part: Aggregate, stages: tuple[StageResult, ...]) -> ScenarioSummary:
    opened = part.opened
    assert opened is not None
    measured = [stage for stage in stages if stage.leg.measured]
    totals, duration_s = part.measured, sum(stage.duration_s for stage in measured)
    any_open = any(stage.leg.is_open for stage in measured)
    all_open = all(stage.leg.is_open for stage in measured)
    pools = {name: merge_commands(pool.commands.values()) for name, pool in totals.pools.items()}
    everything = merge_commands(pools.values())
    arrivals, asked = opened.plan.load.arrivals, opened.plan.percentiles
    return ScenarioSummary(
        name=part.name,
        target=(part.scenario.target if part.scenario else "") or opened.target.url,
        begin_s=part.timeline.legs[0].begin_ns / NS_PER_S,
        load=_load(measured, totals, arrivals, duration_s, _unassigned_operations(part)),
        totals=_stats(everything, duration_s, any_open, asked),
        commands={name: _stats(command, duration_s, any_open, asked) for name, command in _by_command(totals).items()},
        stages=tuple(_stage(stage, arrivals, asked) for stage in stages),
        pools={name: _stats(pool, duration_s, any_open, asked) for name, pool in pools.items()},
        checkout_wait_us=_checkout_wait(totals),
        connections=_connections(part, opened),
        pubsub=_pubsub(part) if subscribes(opened.plan.workload) else None,
        errors=merge_counts((everything.errors, everything.failures)),
        error_samples=error_samples_of(totals, _t0_utc_ns(part)),
        ledger=scenario_ledger(run, part),
        latency_bins=bins(everything.response if all_open else everything.service),
        endpoints=_endpoints(part, duration_s, any_open, asked),
    )


def _sums(
    run: Aggregate,
    opened: RunOpened,
    results: Mapping[str, tuple[StageResult, ...]],
    scenarios: Sequence[ScenarioSummary],
) -> dict[str, Any]:
    """The parts of a summary that are sums over several scenarios, and the cost of generating them."""
    measured = [stage for stages in results.values() for stage in stages if stage.leg.measured]
    totals, duration_s = run.measured, _covered_s(measured)
    any_open, all_open = any(stage.leg.is_open for stage in measured), all(stage.leg.is_open for stage in measured)
    commands, asked = _by_command(totals), opened.plan.percentiles
    everything = merge_commands(commands.values())
    arrivals = {part.opened.plan.load.arrivals for part in run.parts if part.opened is not None}
    generators = [_generator(part, results[part.name]) for part in run.parts]
    subscribed = [part for part, each in zip(run.parts, scenarios, strict=True) if each.pubsub is not None]
    return {
        "load": _load(
            measured,
            totals,
            Arrivals.POISSON if Arrivals.POISSON in arrivals else Arrivals.CONSTANT,
            duration_s,
            sum(map(_unassigned_operations, run.parts)),
        ),
        "totals": _stats(everything, duration_s, any_open, asked),
        "commands": {name: _stats(command, duration_s, any_open, asked) for name, command in commands.items()},
        "stages": tuple(
            msgspec.structs.replace(stage, name=f"{scenario.name}/{stage.name}")
            for scenario in scenarios
            for stage in scenario.stages
        ),
        "pools": {f"{each.name}/{name}": stats for each in scenarios for name, stats in each.pools.items()},
        "checkout_wait_us": _checkout_wait(totals),
        "connections": _connections(run, opened),
        "pubsub": _pubsub(*subscribed) if subscribed else None,
        "errors": merge_counts((everything.errors, everything.failures)),
        "error_samples": error_samples_of(totals, _t0_utc_ns(run)),
        "latency_bins": bins(everything.response if all_open else everything.service),
        "generator": _busiest(run, generators),
        "endpoints": _endpoints(run, duration_s, any_open, asked),
    }


def _endpoints(run: Aggregate, duration_s: float, any_open: bool, asked: Sequence[float]) -> dict[str, EndpointStats]:
    return {
        each.name: EndpointStats(
            role=each.role, **msgspec.structs.asdict(_stats(each.commands, duration_s, any_open, asked))
        )
        for each in endpoints_of(run)
    }


def _covered_s(stages: Sequence[StageResult]) -> float:
    """How long at least one of these stages lasted."""
    spans = sorted(
        (stage.leg.begin_ns / NS_PER_S, stage.leg.begin_ns / NS_PER_S + stage.duration_s) for stage in stages
    )
    covered_s = until_s = 0.0
    for begin_s, end_s in spans:
        covered_s += max(0.0, end_s - max(begin_s, until_s))
        until_s = max(until_s, end_s)
    return covered_s


def _busiest(run: Aggregate, generators: Sequence[GeneratorSummary]) -> GeneratorSummary:
    """The cost of all scenarios together: sums, and the process figures of the scenario with the busiest process."""
    busiest = max(generators, key=lambda each: max(each.core_share_mean or 0.0, each.loop_share_mean or 0.0))
    cpu_s = [each.cpu_s for each in generators if each.cpu_s is not None]
    operations = run.measured.operations
    is_whole = len(cpu_s) == len(generators)
    return msgspec.structs.replace(
        busiest,
        cpu_s=sum(cpu_s) if is_whole else None,
        cpu_us_per_operation=sum(cpu_s) * NS_PER_S / _US / operations if is_whole and operations else None,
        late_sends=sum(each.late_sends for each in generators),
        limit=any(each.limit for each in generators),
    )


def _targets(run: Aggregate, opened: RunOpened) -> dict[str, TargetFacts]:
    """The facts of every target that a scenario uses, by name."""
    return {name: opened.targets.get(name, opened.target) for name in scenarios_by_target(run)}


def _target(facts: TargetFacts) -> TargetSummary:
    return msgspec.convert(facts, TargetSummary, from_attributes=True)


def _checkout_wait(totals: IntervalMetrics) -> Quantiles:
    return quantiles(Histogram.merge(pool.checkout_wait for pool in totals.pools.values()), _US)


def quantiles(histogram: Histogram, unit: float, percentiles: Sequence[float] = ()) -> Quantiles:
    """Return the quantiles of a histogram of nanoseconds. unit: nanoseconds in the unit of the result. percentiles:
    further ones that are asked for."""
    asked = [each for each in dict.fromkeys(percentiles) if percentile_names([each])[0] not in FIXED]
    values = histogram.quantiles([each / 100 for each in asked]) if asked else []
    p50, p90, p95, p99, p99_9, p99_99 = (value / unit for value in histogram.quantiles(_QUANTILES))
    return Quantiles(
        count=histogram.count,
        min=histogram.minimum / unit,
        mean=histogram.mean / unit,
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        p99_9=p99_9,
        p99_99=p99_99,
        max=histogram.maximum / unit,
        asked={percentile_names([each])[0]: value / unit for each, value in zip(asked, values, strict=True)},
    )


def _by_command(totals: IntervalMetrics) -> dict[str, CommandMetrics]:
    names = dict.fromkeys(name for pool in totals.pools.values() for name in pool.commands)
    return {
        name: merge_commands(pool.commands[name] for pool in totals.pools.values() if name in pool.commands)
        for name in names
    }


def _stats(command: CommandMetrics, duration_s: float, open_loop: bool, asked: Sequence[float]) -> Stats:
    looks_up = command.hits + command.misses > 0
    return Stats(
        operations=command.operations,
        ok=command.ok,
        errors=command.error_count,
        ops_per_s=_per_second(command.ok, duration_s),
        bytes_out=command.bytes_out,
        bytes_in=command.bytes_in,
        latency_us=Latency(
            service=quantiles(command.service, _US, asked),
            response=quantiles(command.response, _US, asked) if open_loop else None,
            failed=quantiles(command.failed, _US, asked),
        ),
        hits=command.hits if looks_up else None,
        misses=command.misses if looks_up else None,
    )


def _run(aggregate: Aggregate, opened: RunOpened) -> RunSummary:
    closed = aggregate.closed
    stop, started = aggregate.load_stop, aggregate.started
    t0_utc_ns = _t0_utc_ns(aggregate)
    ended_utc_ns = t0_utc_ns + round(aggregate.duration_s * NS_PER_S) if t0_utc_ns is not None and closed else None
    outcome_without_end = Outcome.RUNNING if aggregate.is_running else Outcome.ABORTED
    return RunSummary(
        id=opened.run_id,
        started_at=opened.started_at,
        duration_s=aggregate.duration_s,
        outcome=closed.outcome if closed else outcome_without_end,
        reason=closed.reason if closed else unfinished_reason(aggregate),
        plan_hash=opened.plan_hash,
        stop_reason=stop.reason if stop else "",
        stopped_at_s=(stop.at_ns - started.t0_ns) / NS_PER_S if stop and started else None,
        load_started_at=None if t0_utc_ns is None else utc_text(t0_utc_ns),
        load_ended_at=None if ended_utc_ns is None else utc_text(ended_utc_ns),
    )


def _t0_utc_ns(aggregate: Aggregate) -> int | None:
    return aggregate.started.t0_utc_ns if aggregate.started else None


def _unassigned_operations(aggregate: Aggregate) -> int:
    """Return how many operations were due in shares without an agent, in the measured stages."""
    legs = aggregate.timeline.legs
    return sum(
        count for share in unassigned_shares(aggregate) for leg, count in share.operations.items() if legs[leg].measured
    )


def _load(
    measured: list[StageResult], totals: IntervalMetrics, arrivals: Arrivals, duration_s: float, missing: int
) -> LoadSummary:
    models = {_model(stage.leg) for stage in measured}
    any_open, all_open = _OPEN in models, models == {_OPEN}
    alone = measured[0].leg.to_per_s if len(measured) == 1 else None
    return LoadSummary(
        model="mixed" if len(models) > 1 else _OPEN if any_open else "closed",
        arrivals=arrivals.value if any_open else None,
        target_rate_per_s=None if alone is None else float(alone),
        wanted_rate_per_s=_wanted_per_s(measured, duration_s) if all_open else None,
        achieved_rate_per_s=_per_second(sum(stage.issued for stage in measured), duration_s),
        unsent=sum(stage.tally.unsent for stage in measured),
        send_lag_us=quantiles(Histogram.merge(pool.send_lag for pool in totals.pools.values()), _US)
        if any_open
        else None,
        measured_s=duration_s,
        uncarried=missing,
    )


def _wanted_per_s(measured: list[StageResult], duration_s: float) -> float | None:
    alone = measured[0].wanted_per_s if len(measured) == 1 else None
    return _per_second(sum(stage.wanted for stage in measured), duration_s) if alone is None else alone


def _generator(aggregate: Aggregate, stages: tuple[StageResult, ...]) -> GeneratorSummary:
    measured = aggregate.measured
    whole, lag = measured.generator, measured.generator.loop_lag
    pools = measured.pools.values()
    reported = all_report_cpu(aggregate)
    cpu_us = whole.cpu_ns / _US
    busiest = busiest_agent(aggregate.measured_stages)
    delays = delays_by_agent(aggregate.measured_stages).values()
    throttled = max(delays, key=lambda one: (throttled_share(one), one.quota_periods), default=None)
    stalled = max(delays, key=lambda one: one.stall_max_ns, default=None)
    return GeneratorSummary(
        cpu_s=whole.cpu_ns / NS_PER_S if reported else None,
        cpu_us_per_operation=cpu_us / measured.operations if reported and measured.operations else None,
        core_share_max=max(whole.core_share_max, busiest.core_share) if reported else None,
        core_share_mean=busiest.core_share if reported else None,
        loop_share_mean=busiest.loop_share if lag.count else None,
        loop_lag_us=quantiles(lag, _US) if lag.count else None,
        late_sends=sum(pool.late_sends for pool in pools),
        quota_periods=throttled.quota_periods if throttled else None,
        throttled_periods=throttled.throttled_periods if throttled else None,
        throttled_s=throttled.throttled_ns / NS_PER_S if throttled else None,
        stall_max_s=stalled.stall_max_ns / NS_PER_S if stalled else None,
        stall_at_s=stalled.stall_at_ns / NS_PER_S if stalled and stalled.stall_max_ns else None,
        limit=any(generator_limits(aggregate, stages)),
    )


def _stage(stage: StageResult, arrivals: Arrivals, asked: Sequence[float]) -> StageSummary:
    leg = stage.leg
    pools = stage.tally.totals.pools.values()
    everything = merge_commands(command for pool in pools for command in pool.commands.values())
    return StageSummary(
        name=leg.name,
        begin_s=leg.begin_ns / NS_PER_S,
        duration_s=stage.duration_s,
        model=_model(leg),
        arrivals=arrivals.value if leg.is_open else None,
        ramp=(Ramp.LINEAR if leg.is_ramp else Ramp.STEP).value if leg.is_open else None,
        target_rate_per_s=leg.to_per_s,
        from_rate_per_s=leg.from_per_s,
        wanted_rate_per_s=stage.wanted_per_s,
        achieved_rate_per_s=stage.achieved_per_s,
        unsent=stage.tally.unsent,
        late=stage.tally.late,
        measured=leg.measured,
        stats=_stats(everything, stage.duration_s, leg.is_open, asked),
        errors=merge_counts((everything.errors, everything.failures)),
    )


def _model(leg: Leg) -> str:
    return _OPEN if leg.is_open else "closed"


def _connections(aggregate: Aggregate, opened: RunOpened) -> ConnectionsSummary:
    pools = [pool.connections for pool in aggregate.totals.pools.values()]
    clients = {when: reading.connected_clients for when, reading in aggregate.readings.items() if not reading.error}
    return ConnectionsSummary(
        ceiling=opened.connection_ceiling,
        peak_open=aggregate.peak_open,
        opened=sum(pool.opened for pool in pools),
        failed_attempts=sum(pool.failed_attempts for pool in pools),
        drops=merge_counts(pool.drops for pool in pools),
        reconnects=sum(pool.reconnects for pool in pools),
        reconnect_ms=quantiles(Histogram.merge(pool.reconnect for pool in pools), _MS),
        retries=sum(pool.retries for pool in pools),
        redirects=merge_counts(pool.redirects for pool in pools),
        topology_refreshes=sum(pool.topology_refreshes for pool in pools),
        server_clients_before=clients.get(Reading.BEFORE),
        server_clients_after=clients.get(Reading.AFTER),
        wanted=aggregate.peak_wanted,
        failed_by_cause=merge_counts(pool.failed_by_cause for pool in pools),
        never_opened=merge_counts(pool.never_opened for pool in pools),
        connect_ms=ConnectTimesSummary(
            total=quantiles(Histogram.merge(pool.connect for pool in pools), _MS),
            tcp=quantiles(Histogram.merge(pool.connect_tcp for pool in pools), _MS),
            tls=quantiles(Histogram.merge(pool.connect_tls for pool in pools), _MS),
            handshake=quantiles(Histogram.merge(pool.connect_handshake for pool in pools), _MS),
        ),
        tls_handshakes=sum(pool.tls_handshakes for pool in pools),
        maintenance=merge_counts(pool.maintenance for pool in pools),
    )


def _visibility(aggregate: Aggregate) -> VisibilitySummary | None:
    found = visible_writes(aggregate)
    if found is None:
        return None
    return VisibilitySummary(
        write=found.write,
        read=found.read,
        written=found.written,
        seen=found.seen,
        unseen=max(0, found.written - found.seen),
        lag_us=quantiles(found.lag, _US),
        lag_bins=bins(found.lag),
    )


def _pubsub(*parts: Aggregate) -> PubSubSummary:
    # Counts cover all stages: a message sent in one stage may be reported by another host in the next one.
    deliveries = merge_deliveries(pool.deliveries for part in parts for pool in part.totals.pools.values())
    measured = merge_deliveries(pool.deliveries for part in parts for pool in part.measured.pools.values())
    return PubSubSummary(
        expected=deliveries.expected,
        delivered=deliveries.delivered,
        lost=deliveries.lost,
        repeated=deliveries.repeated,
        foreign=deliveries.foreign,
        latency_us=quantiles(measured.latency, _US),
    )


def _per_second(count: float, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0
