"""Made-up runs of a comparison."""

from __future__ import annotations

from typing import Any

import msgspec

from common.errors import EXIT_OK
from common.plan.schema import Driver
from coordinator.analysis.totals.aggregate import fold
from coordinator.analysis.verdict import Level, Verdict
from coordinator.compare.differences import ComparisonPlan, EndedRun
from coordinator.report.summary import build_summary
from coordinator.report.summary_types import Quantiles, Stats, Summary
from tests.support.records import clean_run, plan

_CLOSED, _OPEN = (build_summary(fold(clean_run(plan(rate_per_s=rate)))) for rate in (None, 2000.0))


def head(rounds_wanted: int = 3) -> ComparisonPlan:
    return ComparisonPlan(id="c-1", started_at="2025-01-02T03:04:05+00:00", plan=plan(), rounds_wanted=rounds_wanted)


def latencies(p50: float, p99: float, p99_9: float, count: int = 1000) -> Quantiles:
    return Quantiles(
        count=count, min=p50, mean=p50, p50=p50, p90=p50, p95=p50, p99=p99, p99_9=p99_9, p99_99=p99_9, max=p99_9
    )


def summary(
    *,
    open_loop: bool = False,
    ops_per_s: float = 2000.0,
    cpu_us: float | None = 40.0,
    service: Quantiles | None = None,
    response: Quantiles | None = None,
    commands: tuple[str, ...] = ("SET", "GET"),
    verdict: Verdict | None = None,
    **more: Any,
) -> Summary:
    """A summary whose commands and totals all have these figures."""
    base = _OPEN if open_loop else _CLOSED
    latency_us = msgspec.structs.replace(
        base.totals.latency_us,
        service=service or latencies(50, 100, 200),
        response=response or (latencies(60, 120, 240) if open_loop else None),
    )
    stats: Stats = msgspec.structs.replace(base.totals, ops_per_s=ops_per_s, latency_us=latency_us)
    return msgspec.structs.replace(
        base,
        totals=stats,
        generator=msgspec.structs.replace(base.generator, cpu_us_per_operation=cpu_us),
        commands=dict.fromkeys(commands, stats),
        verdict=verdict or Verdict(level=Level.TRUSTED, reasons=()),
        **more,
    )


def conducted(round_: int, driver: Driver, exit_code: int = EXIT_OK, **more: Any) -> EndedRun:
    """A run of a round; keywords are those of `summary`."""
    of = summary(**more)
    run = msgspec.structs.replace(of.run, id=f"c-1/{round_}-{driver.value}")
    return EndedRun(round_, driver, exit_code, msgspec.structs.replace(of, run=run))
