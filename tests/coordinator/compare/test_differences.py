from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import FleetError
from common.plan.schema import Driver
from coordinator.compare.comparison_types import Comparison, LatencyKind, Pair, SpreadKind
from coordinator.compare.differences import QUARTILES_FROM, EndedRun, build_comparison, spread
from coordinator.journal.records import Outcome
from tests.support.comparisons import conducted, head, latencies

CLIENT, WIRE = Driver.CLIENT, Driver.WIRE
FIGURES = st.floats(0, 1e9)


def build(*runs: EndedRun) -> Comparison:
    return build_comparison(head(), runs, Outcome.COMPLETED, "")


def medians(pair: Pair | None) -> tuple[float, float, float]:
    assert pair is not None
    return (pair.client.median, pair.wire.median, pair.difference.median)


def p99(comparison: Comparison) -> Pair:
    assert comparison.totals is not None
    assert comparison.totals.latency_us is not None
    return comparison.totals.latency_us.p99


@given(st.lists(FIGURES, min_size=1, max_size=12))
def test_a_spread_includes_its_median_and_lies_within_the_values(values: list[float]) -> None:
    of = spread(values)
    assert min(values) <= of.low <= of.median <= of.high <= max(values)
    if len(values) < QUARTILES_FROM:
        assert (of.low, of.high) == (min(values), max(values))
    assert spread([*reversed(values)]) == of


def test_the_spread_of_four_or_more_values_is_their_quartiles() -> None:
    of = spread([1.0, 2.0, 3.0, 100.0, 0.0])
    assert (of.low, of.median, of.high) == (1.0, 2.0, 3.0)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), min_size=1, max_size=6))
def test_the_difference_is_computed_within_each_round(rounds: list[tuple[int, int]]) -> None:
    runs = [
        conducted(number, driver, service=latencies(1, float(of[driver is WIRE]), 10**7))
        for number, of in enumerate(rounds, 1)
        for driver in (CLIENT, WIRE)
    ]
    pair = p99(build(*runs))
    assert pair.difference == spread([float(client - wire) for client, wire in rounds])
    assert pair.client == spread([float(client) for client, _ in rounds])
    assert pair.wire == spread([float(wire) for _, wire in rounds])


def test_the_order_of_the_runs_within_a_round_does_not_matter() -> None:
    slow, quick = latencies(5, 50, 500), latencies(1, 10, 100)
    runs = [conducted(1, CLIENT, service=slow), conducted(1, WIRE, service=quick)]
    assert build(*runs).totals == build(*reversed(runs)).totals
    assert medians(p99(build(*runs))) == (50, 10, 40)


def test_only_complete_rounds_are_compared_and_every_run_is_listed() -> None:
    comparison = build(
        conducted(1, CLIENT, service=latencies(1, 30, 99)),
        conducted(1, WIRE, service=latencies(1, 10, 99)),
        conducted(2, WIRE, service=latencies(1, 9000, 9999)),
        conducted(2, CLIENT, FleetError.exit_code, service=latencies(1, 9000, 9999)),
        conducted(3, CLIENT, service=latencies(1, 9000, 9999)),
    )
    assert (comparison.rounds, comparison.rounds_wanted) == (1, 3)
    assert [run.counts for run in comparison.runs] == [True, True, False, False, False]
    assert [run.exit_code for run in comparison.runs] == [0, 0, 0, 5, 0]
    assert medians(p99(comparison)) == (30, 10, 20)


def test_without_a_complete_round_there_is_no_comparison() -> None:
    comparison = build(conducted(1, CLIENT))
    assert (comparison.rounds, comparison.totals, comparison.commands) == (0, None, {})
    [run] = comparison.runs
    assert run.latency_us is not None
    assert run.latency_us.p99 == 100


def test_a_closed_loop_compares_service_time_and_notes_different_loads() -> None:
    comparison = build(conducted(1, CLIENT), conducted(1, WIRE))
    assert comparison.load.latency is LatencyKind.SERVICE
    assert medians(p99(comparison)) == (100, 100, 0)
    assert "--rate" in comparison.notes[0]


def test_an_open_loop_compares_response_time() -> None:
    comparison = build(conducted(1, CLIENT, open_loop=True), conducted(1, WIRE, open_loop=True))
    assert comparison.load.latency is LatencyKind.RESPONSE
    assert medians(p99(comparison)) == (120, 120, 0)
    assert not any("--rate" in note for note in comparison.notes)


def test_a_note_says_that_wire_has_connections_to_each_primary_of_a_cluster() -> None:
    cluster = msgspec.structs.replace(conducted(1, CLIENT).summary.target, topology="cluster")
    comparison = build(conducted(1, CLIENT, target=cluster), conducted(1, WIRE, target=cluster))
    assert any("at each primary" in note for note in comparison.notes)
    assert not any("primary" in note for note in build(conducted(1, CLIENT)).notes)


def test_commands_that_both_drivers_issued_are_compared() -> None:
    comparison = build(
        conducted(1, CLIENT, commands=("SET", "GET", "DEL"), ops_per_s=10.0),
        conducted(1, WIRE, commands=("SET", "GET"), ops_per_s=70.0),
    )
    assert list(comparison.commands) == ["SET", "GET"]
    for cost in comparison.commands.values():
        assert medians(cost.ops_per_s) == (10, 70, -60)
        assert cost.cpu_us_per_operation is None


def test_cpu_is_compared_in_the_totals_only() -> None:
    runs = [
        conducted(number, driver, cpu_us=cpu_us)
        for number, pair in enumerate(((60.0, 8.0), (66.0, 9.0), (50.0, 7.0)), 1)
        for driver, cpu_us in zip((CLIENT, WIRE), pair, strict=True)
    ]
    comparison = build(*runs)
    assert comparison.totals is not None
    assert medians(comparison.totals.cpu_us_per_operation) == (60, 8, 52)
    assert [cost.cpu_us_per_operation for cost in comparison.commands.values()] == [None, None]
    assert [run.cpu_us_per_operation for run in comparison.runs] == [60, 8, 66, 9, 50, 7]
    assert not any("CPU" in note for note in comparison.notes)


def test_rounds_without_cpu_figures_are_left_out_with_a_note() -> None:
    unreported = [conducted(1, CLIENT, cpu_us=None), conducted(1, WIRE, cpu_us=8.0)]
    comparison = build(*unreported, conducted(2, CLIENT, cpu_us=66.0), conducted(2, WIRE, cpu_us=9.0))
    assert comparison.totals is not None
    assert medians(comparison.totals.cpu_us_per_operation) == (66, 9, 57)
    assert any(note.startswith("Not all runs have CPU figures") for note in comparison.notes)
    alone = build(*unreported).totals
    assert alone is not None
    assert alone.cpu_us_per_operation is None


def test_a_run_without_operations_has_no_latencies() -> None:
    nothing = latencies(0, 0, 0, count=0)
    comparison = build(conducted(1, CLIENT, service=nothing), conducted(1, WIRE))
    assert comparison.totals is not None
    assert comparison.totals.latency_us is None
    assert [run.latency_us is None for run in comparison.runs] == [True, False]


@pytest.mark.parametrize(("rounds", "kind"), [(3, SpreadKind.RANGE), (4, SpreadKind.QUARTILES)])
def test_the_comparison_names_the_kind_of_its_spreads(rounds: int, kind: SpreadKind) -> None:
    runs = [conducted(number, driver) for number in range(1, rounds + 1) for driver in (CLIENT, WIRE)]
    assert build(*runs).spread is kind


def test_the_json_has_its_promised_keys() -> None:
    text = build(conducted(1, CLIENT), conducted(1, WIRE)).to_json()
    parsed = json.loads(text)
    assert text.endswith("}\n")
    assert (parsed["format"], parsed["outcome"], parsed["rounds"], parsed["spread"]) == (1, "completed", 1, "range")
    assert parsed["totals"]["latency_us"]["p99.9"]["client"] == {"median": 200, "low": 200, "high": 200}
    assert parsed["pools"]["main"] == {"threads_per_pool": 1, "client_instances_per_pool": 1, "at_once_per_pool": 1}
    assert parsed["runs"][1]["driver"] == "wire"
    assert parsed["runs"][1]["verdict"] == {"level": "trusted", "reasons": [], "notes": []}
