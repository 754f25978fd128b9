"""From what a journal says to the summary of a run: `build_summary`, a pure function of the aggregate."""

from __future__ import annotations

import msgspec
import numpy as np

from common.commands import subscribes
from common.errors import UsageError
from common.histogram import Histogram, bucket_bounds
from common.metrics import CommandMetrics, IntervalMetrics, merge_commands, merge_counts, merge_deliveries
from common.plain import to_plain
from coordinator.aggregate import AgentTally, Aggregate
from coordinator.ledger import balance
from coordinator.records import AgentEnd, Outcome, RunOpened, When
from coordinator.report.shapes import (
    SUMMARY_FORMAT,
    Agent,
    Bin,
    Connections,
    Latency,
    Load,
    PubSub,
    Quantiles,
    Run,
    Stats,
    Summary,
    Target,
)
from coordinator.verdict import judge

_KILLED = "the coordinator was killed before the run ended"
_QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999, 0.9999)
_US = 1e3
_MS = 1e6
_BIN_EDGES_NS = tuple(factor * 10**power for power in range(2, 12) for factor in (10, 15, 20, 30, 50, 70))


def build_summary(aggregate: Aggregate) -> Summary:
    """The summary of all records folded so far. Raises UsageError when there is no run among them yet."""
    opened = aggregate.opened
    if opened is None:
        raise UsageError("the journal ends before the run began, so there is nothing to report")
    totals, duration_s = aggregate.totals, aggregate.duration_s
    open_loop = opened.plan.load.rate_per_s is not None
    pools = {name: merge_commands(pool.commands.values()) for name, pool in totals.pools.items()}
    commands = _by_command(totals)
    everything = merge_commands(pools.values())
    ledger = balance(aggregate)
    return Summary(
        format=SUMMARY_FORMAT,
        run=_run(aggregate, opened),
        target=msgspec.convert(opened.target, Target, from_attributes=True),
        plan=to_plain(opened.plan),
        load=_load(opened, totals, ledger.issued, duration_s),
        agents=tuple(_agent(agent) for agent in aggregate.agents.values()),
        totals=_stats(everything, duration_s, open_loop),
        commands={name: _stats(command, duration_s, open_loop) for name, command in commands.items()},
        pools={name: _stats(pool, duration_s, open_loop) for name, pool in pools.items()},
        checkout_wait_us=quantiles(Histogram.merge(pool.checkout_wait for pool in totals.pools.values()), _US),
        connections=_connections(aggregate, opened),
        pubsub=_pubsub(totals) if subscribes(opened.plan.workload) else None,
        errors=merge_counts((everything.errors, everything.failures)),
        ledger=ledger,
        verdict=judge(aggregate, ledger),
        latency_bins=_bins(everything.response if open_loop else everything.service),
    )


def quantiles(histogram: Histogram, unit: float) -> Quantiles:
    """A histogram of nanoseconds in a unit of so many."""
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
    )


def _by_command(totals: IntervalMetrics) -> dict[str, CommandMetrics]:
    names = dict.fromkeys(name for pool in totals.pools.values() for name in pool.commands)
    return {
        name: merge_commands(pool.commands[name] for pool in totals.pools.values() if name in pool.commands)
        for name in names
    }


def _stats(command: CommandMetrics, duration_s: float, open_loop: bool) -> Stats:
    return Stats(
        operations=command.operations,
        ok=command.ok,
        errors=command.error_count,
        ops_per_s=_per_second(command.ok, duration_s),
        bytes_out=command.bytes_out,
        bytes_in=command.bytes_in,
        latency_us=Latency(
            service=quantiles(command.service, _US),
            response=quantiles(command.response, _US) if open_loop else None,
            failed=quantiles(command.failed, _US),
        ),
    )


def _run(aggregate: Aggregate, opened: RunOpened) -> Run:
    closed = aggregate.closed
    return Run(
        id=opened.run_id,
        started_at=opened.started_at,
        duration_s=aggregate.duration_s,
        outcome=closed.outcome if closed else Outcome.ABORTED,
        reason=closed.reason if closed else _KILLED,
        plan_hash=opened.plan_hash,
    )


def _load(opened: RunOpened, totals: IntervalMetrics, issued: int, duration_s: float) -> Load:
    rate_per_s = opened.plan.load.rate_per_s
    open_loop = rate_per_s is not None
    return Load(
        model="open" if open_loop else "closed",
        arrivals=opened.plan.load.arrivals.value if open_loop else None,
        target_rate_per_s=None if rate_per_s is None else float(rate_per_s),
        achieved_rate_per_s=_per_second(issued, duration_s),
        unsent=totals.unsent,
        send_lag_us=quantiles(Histogram.merge(pool.send_lag for pool in totals.pools.values()), _US)
        if open_loop
        else None,
    )


def _agent(agent: AgentTally) -> Agent:
    end = agent.end
    final = end.final if end else None
    return Agent(
        id=agent.facts.agent_id,
        host=agent.facts.host,
        processes=agent.facts.processes,
        state=end.state if end else AgentEnd.LOST,
        reason=end.reason if end else _KILLED,
        operations=agent.counted,
        clock_offset_us=end.clock_offset_us if end else None,
        clock_rtt_us=end.clock_rtt_us if end else None,
        start_skew_us=final.start_skew_ns / _US if final else None,
        cpu_percent_max=end.cpu_percent_max if end else None,
        cpu_percent_busiest=end.cpu_percent_busiest if end else None,
        host_cpu_percent_mean=end.host_cpu_percent_mean if end else None,
    )


def _connections(aggregate: Aggregate, opened: RunOpened) -> Connections:
    pools = [pool.connections for pool in aggregate.totals.pools.values()]
    clients = {when: reading.connected_clients for when, reading in aggregate.readings.items() if not reading.error}
    return Connections(
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
        server_clients_before=clients.get(When.BEFORE),
        server_clients_after=clients.get(When.AFTER),
    )


def _pubsub(totals: IntervalMetrics) -> PubSub:
    deliveries = merge_deliveries(pool.deliveries for pool in totals.pools.values())
    return PubSub(
        expected=deliveries.expected,
        delivered=deliveries.delivered,
        lost=deliveries.lost,
        repeated=deliveries.repeated,
        foreign=deliveries.foreign,
        latency_us=quantiles(deliveries.latency, _US),
    )


def _bins(histogram: Histogram) -> tuple[Bin, ...]:
    """Six bins a decade, from the first to the last that holds anything.

    A bucket counts where its highest value lies; so a bin's edge is off by up to 0.1%, as every bucket is.
    """
    indices, counts = histogram.buckets()
    if not indices.size:
        return ()
    highest = bucket_bounds(indices)[1]
    positions = np.searchsorted(np.array(_BIN_EDGES_NS), highest, side="left")
    per_bin = np.bincount(positions, weights=counts, minlength=len(_BIN_EDGES_NS))
    filled = np.flatnonzero(per_bin)
    return tuple(
        Bin(up_to_us=_BIN_EDGES_NS[position] / _US, count=int(per_bin[position]))
        for position in range(int(filled[0]), int(filled[-1]) + 1)
    )


def _per_second(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0
