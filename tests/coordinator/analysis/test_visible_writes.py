"""Visibility in the summary of a run and in its report."""

from __future__ import annotations

import io

import msgspec
from rich.console import Console

from common.metrics.intervals import DeliveryMetrics, IntervalMetrics, PoolMetrics
from common.plan.schema import Load, Target, Visibility
from common.plan.visibility import visibility_scenarios
from common.protocol.messages import PoolShare
from common.units import Seconds
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.analysis.visible_writes import visible_writes
from coordinator.report.summary import build_summary
from coordinator.report.summary_text import print_summary
from tests.support import records
from tests.support.records import accepted, histogram


def run() -> Aggregate:
    """Ten writes, of which the warmup has two; nine are seen."""
    load = Load(duration_s=Seconds(2), warmup_s=Seconds(1))
    scenarios = visibility_scenarios(Visibility(read="us"), load)
    plan = msgspec.structs.replace(records.plan(), scenarios=scenarios, targets={"us": Target(url="redis://h:2")})
    opened = records.opened(plan, ["a1"])
    pools = tuple(PoolShare(group=0, number=at, first_thread=0, scenario=at) for at in range(2))
    opened = msgspec.structs.replace(
        opened,
        agents=(msgspec.structs.replace(opened.agents[0], pools=pools),),
        threads=(1, 1),
        connection_ceilings=(1, 1),
    )
    written = [(0, 0, DeliveryMetrics(expected=2)), (1, 1, DeliveryMetrics(expected=8))]
    seen = [
        (0, 2, DeliveryMetrics(delivered=2, latency=histogram(9_000_000, 9_000_000))),
        (1, 3, DeliveryMetrics(delivered=7, latency=histogram(*[1_000_000] * 6, 3_000_000))),
    ]
    intervals = [
        IntervalMetrics(first=second, last=second, stage=leg, pools={name: PoolMetrics(deliveries=deliveries)})
        for name, rows in (("write", written), ("read", seen))
        for second, leg, deliveries in rows
    ]
    return fold([opened, accepted("a1", 0, *intervals)])


def test_counts_cover_the_whole_run_and_lags_what_is_measured() -> None:
    found = visible_writes(run())
    assert found is not None
    assert (found.write, found.read) == ("", "us")
    assert (found.written, found.seen) == (10, 9)
    assert (found.lag.count, found.lag.maximum) == (7, 3_000_000)


def test_the_summary_and_the_report_have_the_lag_and_its_histogram() -> None:
    summary = build_summary(run())
    assert summary.visibility is not None
    assert summary.visibility.unseen == 1
    assert summary.visibility.lag_us.max == 3000
    assert [(bin_.up_to_us, bin_.count) for bin_ in summary.visibility.lag_bins if bin_.count] == [(1500, 6), (5000, 1)]
    assert summary.pubsub is None
    console = Console(file=io.StringIO(), width=120)
    print_summary(console, summary)
    assert isinstance(console.file, io.StringIO)
    text = " ".join(console.file.getvalue().split())
    assert "9 of 10 writes on the plan's target seen on us, 1 unseen" in text
    assert "lag p50 1.000, p90 3.000, p99 3.000, max 3.000 ms" in text
    assert "Lag of visibility" in text


def test_a_run_without_visibility_has_no_figures() -> None:
    assert visible_writes(fold([records.opened()])) is None
    assert build_summary(fold([records.opened()])).visibility is None
