"""Build a comparison from the summaries of its runs: what the client library costs. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from common.errors import EXIT_OK
from common.plan.schema import Driver, Plan
from coordinator.compare.comparison_types import (
    COMPARISON_FORMAT,
    ComparedLoad,
    ComparedPools,
    ComparedRun,
    Comparison,
    Cost,
    FigureSpread,
    LatencyKind,
    LatencyPairs,
    Pair,
    RunLatency,
    SpreadKind,
)
from coordinator.compare.wire_plan import at_once
from coordinator.journal.records import Outcome
from coordinator.report.summary_types import Quantiles, Stats, Summary

QUARTILES_FROM = 4
"""From this number of rounds on, a spread has quartiles; with fewer rounds, the full range."""

Figure = Callable[[Summary], float | None]


@dataclass(frozen=True, slots=True)
class EndedRun:
    """A run that has ended. round: counted from 1."""

    round: int
    driver: Driver
    exit_code: int
    summary: Summary


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """What is known before the first run. plan: as the client driver runs it."""

    id: str
    started_at: str
    plan: Plan
    rounds_wanted: int


def build_comparison(head: ComparisonPlan, runs: Sequence[EndedRun], outcome: Outcome, reason: str) -> Comparison:
    """Build the comparison of the runs so far, at least one. Only rounds in which both runs succeeded count."""
    first = runs[0].summary
    kind = LatencyKind.RESPONSE if first.load.model == "open" else LatencyKind.SERVICE
    rounds = _complete_rounds(runs)
    return Comparison(
        format=COMPARISON_FORMAT,
        id=head.id,
        started_at=head.started_at,
        outcome=outcome,
        reason=reason,
        rounds_wanted=head.rounds_wanted,
        rounds=len(rounds),
        spread=SpreadKind.RANGE if len(rounds) < QUARTILES_FROM else SpreadKind.QUARTILES,
        target=first.target,
        load=ComparedLoad(
            model=first.load.model,
            arrivals=first.load.arrivals,
            target_rate_per_s=first.load.target_rate_per_s,
            wanted_rate_per_s=first.load.wanted_rate_per_s,
            latency=kind,
        ),
        pools={
            group.name: ComparedPools(
                threads_per_pool=group.threads_per_pool,
                client_instances_per_pool=group.client_instances_per_pool,
                at_once_per_pool=at_once(group),
            )
            for group in head.plan.pools
        },
        totals=_cost(rounds, lambda summary: summary.totals, kind, _cpu),
        commands=_commands(rounds, kind),
        runs=tuple(_run(run, kind, rounds) for run in runs),
        notes=tuple(_notes(first, rounds)),
    )


def _complete_rounds(runs: Sequence[EndedRun]) -> list[tuple[Summary, Summary]]:
    """Return the summaries (client, wire) of each round in which both runs succeeded."""
    ended = {(run.round, run.driver): run.summary for run in runs if run.exit_code == EXIT_OK}
    return [
        (ended[number, Driver.CLIENT], ended[number, Driver.WIRE])
        for number in sorted({number for number, _ in ended})
        if (number, Driver.CLIENT) in ended and (number, Driver.WIRE) in ended
    ]


def _commands(rounds: Sequence[tuple[Summary, Summary]], kind: LatencyKind) -> dict[str, Cost]:
    names = dict.fromkeys(name for pair in rounds for summary in pair for name in summary.commands)
    costs = {name: _cost(rounds, partial(_command, name), kind) for name in names}
    return {name: cost for name, cost in costs.items() if cost is not None}


def _command(name: str, summary: Summary) -> Stats | None:
    return summary.commands.get(name)


def _cpu(summary: Summary) -> float | None:
    return summary.generator.cpu_us_per_operation


def _cost(
    rounds: Sequence[tuple[Summary, Summary]],
    of: Callable[[Summary], Stats | None],
    kind: LatencyKind,
    cpu: Figure = lambda _: None,
) -> Cost | None:
    """Return None if no round has figures for both drivers."""

    def latency(at: Callable[[Quantiles], float]) -> Pair | None:
        return _pair(rounds, lambda summary: _of_latency(of(summary), kind, at))

    ops_per_s = _pair(rounds, lambda summary: stats.ops_per_s if (stats := of(summary)) else None)
    if ops_per_s is None:
        return None
    p50, p99, p99_9 = latency(lambda q: q.p50), latency(lambda q: q.p99), latency(lambda q: q.p99_9)
    return Cost(
        ops_per_s=ops_per_s,
        cpu_us_per_operation=_pair(rounds, cpu),
        latency_us=LatencyPairs(p50=p50, p99=p99, p99_9=p99_9) if p50 and p99 and p99_9 else None,
    )


def _of_latency(stats: Stats | None, kind: LatencyKind, at: Callable[[Quantiles], float]) -> float | None:
    quantiles = None if stats is None else _latency(stats, kind)
    return None if quantiles is None else at(quantiles)


def _latency(stats: Stats, kind: LatencyKind) -> Quantiles | None:
    """Return the latencies of this kind; None if no operation succeeded."""
    found = stats.latency_us.response if kind is LatencyKind.RESPONSE else stats.latency_us.service
    return found if found is not None and found.count else None


def _pair(rounds: Sequence[tuple[Summary, Summary]], figure: Figure) -> Pair | None:
    """Return a figure over the rounds that have it for both drivers; None without such a round."""
    both = [(a, b) for client, wire in rounds if (a := figure(client)) is not None and (b := figure(wire)) is not None]
    if not both:
        return None
    return Pair(
        client=spread([client for client, _ in both]),
        wire=spread([wire for _, wire in both]),
        difference=spread([client - wire for client, wire in both]),
    )


def spread(values: Sequence[float]) -> FigureSpread:
    """Return the median of the values, and their range or, if there are enough values, their quartiles."""
    low, high = min(values), max(values)
    if len(values) >= QUARTILES_FROM:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return FigureSpread(median=statistics.median(values), low=low, high=high)


def _run(run: EndedRun, kind: LatencyKind, rounds: Sequence[tuple[Summary, Summary]]) -> ComparedRun:
    summary = run.summary
    quantiles = _latency(summary.totals, kind)
    return ComparedRun(
        id=summary.run.id,
        round=run.round,
        driver=run.driver.value,
        counts=any(summary is other for pair in rounds for other in pair),
        outcome=summary.run.outcome,
        exit_code=run.exit_code,
        ops_per_s=summary.totals.ops_per_s,
        operations=summary.totals.operations,
        errors=summary.totals.errors,
        cpu_us_per_operation=summary.generator.cpu_us_per_operation,
        latency_us=RunLatency(p50=quantiles.p50, p99=quantiles.p99, p99_9=quantiles.p99_9) if quantiles else None,
        verdict=summary.verdict,
    )


def _notes(first: Summary, rounds: Sequence[tuple[Summary, Summary]]) -> list[str]:
    notes, model = [], first.load.model
    if model != "open":
        notes.append(
            f"{'In a closed loop' if model == 'closed' else 'In stages that are a closed loop'} each driver loads the "
            "server as hard as it can, so these latencies belong to different loads. To compare them at the same load, "
            "set --rate."
        )
    if first.target.topology == "cluster":
        notes.append(
            "In a cluster, wire has this many operations in flight at each primary, client at all primaries together: "
            "a connection belongs to one node."
        )
    if any(_cpu(summary) is None for pair in rounds for summary in pair):
        notes.append("Not all runs have CPU figures: the release of an agent does not measure CPU.")
    return notes
