from __future__ import annotations

import io
import json
from dataclasses import replace

import msgspec
from rich.console import Console

from common.metrics.histogram import EMPTY
from common.units import Percentile
from coordinator.analysis.totals.aggregate import fold
from coordinator.live.screen import Screen
from coordinator.live.snapshot import build_snapshot
from coordinator.live.view import PlainView
from coordinator.report.percentiles import percentile_names
from coordinator.report.summary import build_summary
from coordinator.report.summary_text import print_summary
from tests.support.records import accepted, clean_run, command, histogram, interval, opened, plan

ASKED = msgspec.structs.replace(plan(), percentiles=tuple(map(Percentile, (99.999, 50, 97.5))))
FIXED = ["count", "min", "mean", "p50", "p90", "p95", "p99", "p99.9", "p99.99", "max"]


def test_percentiles_have_short_names_in_ascending_order() -> None:
    assert percentile_names((99.9, 50.0, 97.5, 50.0)) == ["p50", "p97.5", "p99.9"]


def test_latencies_gain_the_percentiles_that_are_asked_for() -> None:
    found = json.loads(build_summary(fold(clean_run(ASKED))).to_json())
    assert found["plan"]["percentiles"] == [99.999, 50.0, 97.5]
    scenario, stage = found["scenarios"][0], found["stages"][0]
    for stats in (found["totals"], found["commands"]["GET"], scenario["totals"], stage["stats"]):
        service = stats["latency_us"]["service"]
        assert list(service) == [*FIXED, "p99.999", "p97.5"]
        assert service["p95"] <= service["p97.5"] <= service["p99"] <= service["p99.999"] <= service["max"]
    assert list(found["checkout_wait_us"]) == FIXED


def test_latencies_keep_their_keys_if_none_is_asked_for() -> None:
    found = json.loads(build_summary(fold(clean_run())).to_json())
    assert list(found["totals"]["latency_us"]["service"]) == FIXED


def test_tables_of_latency_have_the_percentiles_that_are_asked_for() -> None:
    out = io.StringIO()
    print_summary(Console(file=out, width=120), build_summary(fold(clean_run(ASKED))), hide_histogram=True)
    [heading] = [line for line in out.getvalue().splitlines() if line.startswith("Type")]
    assert heading.split() == ["Type", "Ops/s", "Avg", "p50", "p97.5", "p99.999", "max", "KiB/s", "Errors"]


def test_the_live_view_has_the_percentiles_that_are_asked_for() -> None:
    get = {"GET": command(histogram(*(1000 * number for number in range(1, 101))), response=EMPTY)}
    records = [opened(ASKED), *(accepted(name, 0, interval(0, get)) for name in ("a1", "a2"))]
    snapshot = build_snapshot(fold(records), [], 2.0)
    out = io.StringIO()
    console = Console(file=out, width=120, height=40)
    console.print(Screen(snapshot))
    shown = out.getvalue()
    assert "serv p50  serv p97.5  serv p99.999  serv max" in shown
    assert "0.050       0.098         0.100     0.100" in shown
    PlainView(console).update(replace(snapshot, rows=tuple(replace(row, is_final=True) for row in snapshot.rows)))
    assert "service p50 0.050 p97.5 0.098 p99.999 0.100 max 0.100 ms" in out.getvalue()
