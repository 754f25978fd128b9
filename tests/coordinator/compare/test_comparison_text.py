from __future__ import annotations

import dataclasses
import io

import msgspec
from rich.console import Console

from common.errors import FleetError
from common.plan.schema import Driver
from coordinator.analysis.verdict import Level, Verdict
from coordinator.compare.comparison_text import print_comparison, run_line
from coordinator.compare.differences import EndedRun, build_comparison
from coordinator.journal.records import Outcome
from tests.support.comparisons import conducted, head, latencies

CLIENT, WIRE = Driver.CLIENT, Driver.WIRE


def text(*runs: EndedRun, width: int = 80, outcome: Outcome = Outcome.COMPLETED, reason: str = "") -> str:
    out = io.StringIO()
    print_comparison(Console(file=out, width=width), build_comparison(head(), runs, outcome, reason))
    return out.getvalue()


def row(report: str, name: str) -> list[str]:
    return next(line.split() for line in report.splitlines() if line.split()[:1] == [name])


def test_each_row_has_medians_and_spreads_of_both_drivers_and_their_difference() -> None:
    runs = [
        conducted(number, driver, service=latencies(p50, 1000, 2000))
        for number, pair in enumerate(((60, 20), (66, 21), (63, 25)), 1)
        for driver, p50 in zip((CLIENT, WIRE), pair, strict=True)
    ]
    report = text(*runs)
    totals = report[report.index("Totals") :]
    assert row(totals, "p50") == [
        "p50",
        "ms",
        "0.063",
        "(0.060..0.066)",
        "0.021",
        "(0.020..0.025)",
        "0.040",
        "(0.038..0.045)",
    ]
    assert row(totals, "p99")[2:4] == ["1.00", "(1.00..1.00)"]
    assert "median (min..max) of 3 rounds" in report


def test_the_cost_of_redis_py_is_a_sentence() -> None:
    report = " ".join(text(conducted(1, CLIENT, cpu_us=60.0), conducted(1, WIRE, cpu_us=8.0)).split())
    assert "an operation takes 60.0 us with client and 8.00 us with wire: redis-py adds 52.0 us" in report
    assert "Totals CPU us/op 60.0 (60.0..60.0) 8.00 (8.00..8.00) 52.0 (52.0..52.0)" in report
    unreported = text(conducted(1, CLIENT, cpu_us=None), conducted(1, WIRE))
    assert "an operation takes" not in unreported
    assert "CPU us/op " in unreported


def test_the_text_names_the_load_model_and_the_kind_of_latency() -> None:
    closed = " ".join(text(conducted(1, CLIENT), conducted(1, WIRE)).split())
    assert "closed loop; latencies are service time, from send to reply" in closed
    assert "these latencies belong to different loads. To compare them at the same load, set --rate." in closed
    at_a_rate = text(conducted(1, CLIENT, open_loop=True), conducted(1, WIRE, open_loop=True), width=200)
    assert "open loop (constant arrivals, 2k/s wanted); latencies are response time" in at_a_rate
    assert "different loads" not in at_a_rate


def test_each_reason_for_distrust_is_shown_once_with_its_runs() -> None:
    doubt = Verdict(level=Level.SUSPECT, reasons=("The generator was the limit.", "Clocks lay apart."))
    doubts = Verdict(level=Level.SUSPECT, reasons=("Clocks lay apart.",))
    report = text(
        conducted(1, CLIENT, verdict=doubt),
        conducted(1, WIRE, verdict=doubts),
        conducted(2, WIRE),
        conducted(2, CLIENT),
    )
    verdict_lines = [line.strip() for line in report[report.index("Verdicts") :].splitlines()]
    assert verdict_lines == [
        "Verdicts      suspect: 1-client, 1-wire",
        "trusted: 2-wire, 2-client",
        "- The generator was the limit. (1-client)",
        "- Clocks lay apart. (1-client, 1-wire)",
    ]
    assert row(text(conducted(1, CLIENT), conducted(1, WIRE)), "Verdicts") == ["Verdicts", "all", "trusted"]


def test_runs_of_an_incomplete_round_are_shown_and_not_compared() -> None:
    runs = [conducted(1, CLIENT), conducted(1, WIRE), conducted(2, WIRE, FleetError.exit_code)]
    report = text(*runs, outcome=Outcome.ABORTED, reason="2-wire failed: lost a1")
    assert "aborted: 1 of 3 rounds complete; 2-wire failed: lost a1" in report
    assert "not compared, because its round is not complete: 2-wire" in report
    alone = text(conducted(1, CLIENT), outcome=Outcome.INTERRUPTED)
    assert row(alone, "1-client")[:2] == ["1-client", "2k"]
    assert "What redis-py costs" not in alone


def test_the_line_of_a_run_has_its_rate_and_a_high_error_rate() -> None:
    run = conducted(1, CLIENT)
    totals = msgspec.structs.replace(run.summary.totals, errors=100, operations=1000)
    failed = dataclasses.replace(run, summary=msgspec.structs.replace(run.summary, totals=totals))
    lines = [run_line(build_comparison(head(), [one], Outcome.COMPLETED, "").runs[0]) for one in (run, failed)]
    assert lines[0] == "c-1/1-client: completed, 2k ops/s, 40.0 us of CPU per operation, trusted"
    assert lines[1].startswith("c-1/1-client: completed, 10.0% of operations failed, 2k ops/s, ")
