from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.units import NS_PER_S
from coordinator.analysis.server_figures import (
    COLUMNS,
    CommandGain,
    NodeFigures,
    NodeSamples,
    added,
    commands_gained,
    events_in_run,
    logged_in_run,
    was_restarted,
)
from coordinator.analysis.totals.server_side import NodeSide
from coordinator.journal.records import (
    CommandTime,
    LatencyEvent,
    LoggedCommand,
    NodeDescribed,
    NodeSample,
    NodeSampled,
    Reading,
)

T0_NS = 5 * NS_PER_S


def samples(*rows: tuple[float, dict[str, int]]) -> NodeSamples:
    """Samples at these seconds from the start."""
    side = NodeSide("", "a:1")
    for at_s, values in rows:
        sample = NodeSample(**{"reply_us": 100, **values})  # type: ignore[arg-type]
        side.sampled_at(NodeSampled(node="a:1", at_ns=T0_NS + round(at_s * NS_PER_S), sample=sample))
    return NodeSamples(side, T0_NS)


def columns(found: NodeSamples, name: str) -> list[object]:
    return [row[COLUMNS.index(name)] for row in found.rows()]


def described(when: Reading = Reading.BEFORE, **fields: object) -> NodeDescribed:
    return NodeDescribed(when=when, node="a:1", role="primary", at_ns=1, **fields)  # type: ignore[arg-type]


def test_a_row_has_rates_and_gains_since_the_row_before_it() -> None:
    found = samples(
        (0, {"cpu_us": 10**6, "commands": 100, "hits": 5, "memory": 100, "rss": 150}),
        (2, {"cpu_us": 2 * 10**6, "commands": 2100, "hits": 25, "memory": 200, "rss": 250}),
    )
    assert columns(found, "at_s") == [0.0, 2.0]
    assert columns(found, "cpu_percent") == [None, 50.0]
    assert columns(found, "commands_per_s") == [None, 1000]
    assert columns(found, "hits") == [None, 20]
    assert columns(found, "fragmentation") == [1.5, 1.25]
    assert columns(found, "lag_s") == [None, None]


def test_a_row_has_the_role_of_its_time() -> None:
    found = samples((0, {"replica": True}), (1, {"replica": False}), (2, {}))
    assert columns(found, "role") == ["replica", "primary", None]


def test_a_counter_that_began_again_has_no_rate_there() -> None:
    found = samples((0, {"commands": 900}), (1, {"commands": 1000}), (2, {"commands": 7}), (3, {"commands": 57}))
    assert columns(found, "commands_per_s") == [None, 100, None, 50]


def test_figures_are_of_the_time_of_the_load() -> None:
    found = samples(
        (-5, {"cpu_us": 0, "evicted": 0, "clients": 99, "hits": 0, "misses": 0}),
        (0, {"cpu_us": 9 * 10**6, "evicted": 5, "clients": 3, "hits": 10, "misses": 0}),
        (1, {"cpu_us": 9_500_000, "evicted": 6, "clients": 7, "hits": 20, "misses": 10}),
        (2, {"cpu_us": 10_500_000, "evicted": 8, "clients": 5, "hits": 40, "misses": 10}),
        (9, {"cpu_us": 90 * 10**6, "evicted": 80, "clients": 1, "hits": 900, "misses": 10}),
    )
    figures = found.figures(2.0)
    assert (figures.cpu_percent_mean, figures.cpu_percent_max) == (75.0, 100.0)
    assert (figures.evicted, figures.hits, figures.misses, figures.hit_rate) == (3, 30, 10, 0.75)
    assert (figures.clients_max, figures.samples, figures.expired) == (7, 5, None)


def test_a_load_shorter_than_the_time_between_samples_has_the_figures_of_all() -> None:
    found = samples((-1, {"commands": 0}), (5, {"commands": 600}))
    assert found.figures(0.1).commands_per_s == 100.0


def test_the_description_right_after_a_sample_is_no_peak() -> None:
    found = samples((0, {"cpu_us": 0}), (1, {"cpu_us": 10**5}), (1.001, {"cpu_us": 10**5 + 900}))
    assert found.figures(2.0).cpu_percent_max == 10.0


def test_a_server_without_samples_has_no_figures() -> None:
    assert samples().figures(1.0) == NodeFigures()
    assert samples().rows() == []


@given(
    st.lists(st.dictionaries(st.sampled_from(["cpu_us", "hits", "memory", "rss"]), st.integers(0, 2**60)), max_size=9)
)
def test_figures_of_any_samples_can_be_written_as_json(rows: list[dict[str, int]]) -> None:
    found = samples(*enumerate(rows))
    found.figures(3.0)
    assert len(json.loads(msgspec.json.encode(found.rows()))) == len(rows)


def test_commands_gain_what_others_called() -> None:
    before = described(commands={"get": CommandTime(10, 50), "info": CommandTime(4, 400)})
    after = described(
        Reading.AFTER,
        commands={"get": CommandTime(110, 1050), "info": CommandTime(9, 900), "del": CommandTime(2, 8)},
    )
    gained = commands_gained(before, after, {"info": 5})
    assert {name: (gain.calls, gain.usec) for name, gain in gained.items()} == {"get": (100, 1000), "del": (2, 8)}
    assert commands_gained(before, after, {"info": 4})["info"].calls == 1


def test_before_redis_7_calls_of_subcommands_count_for_their_command() -> None:
    after = described(Reading.AFTER, commands={"config": CommandTime(3, 30)})
    assert commands_gained(described(), after, {"config|get": 3}) == {}


def test_quantiles_of_the_server_are_those_of_the_run() -> None:
    before = described(commands={"get": CommandTime(100, 1, ((1, 90), (64, 100)))})
    after = described(Reading.AFTER, commands={"get": CommandTime(200, 1, ((1, 90), (2, 140), (64, 199), (128, 200)))})
    gain = commands_gained(before, after, {})["get"]
    assert (gain.quantile_us(0.5), gain.quantile_us(0.99), gain.quantile_us(1.0)) == (2, 64, 128)


def test_gains_of_several_servers_add_up() -> None:
    one, other = CommandGain(10, 100, ((1, 5), (8, 10))), CommandGain(10, 300, ((2, 1), (64, 10)))
    both = added([one, other])
    assert (both.calls, both.usec, both.within) == (20, 400, ((1, 5), (2, 6), (8, 11), (64, 20)))
    assert (both.quantile_us(0.5), both.quantile_us(0.99)) == (8, 64)
    assert added([one, CommandGain(5, 5, ())]).within == ()
    assert added([]) == CommandGain(0, 0, ())


def test_a_server_without_histograms_has_no_quantiles() -> None:
    gain = commands_gained(described(), described(Reading.AFTER, commands={"get": CommandTime(2, 1)}), {})["get"]
    assert gain.quantile_us(0.5) is None


@pytest.mark.parametrize(
    ("run_id", "calls", "restarted"), [("a", 20, False), ("b", 20, True), ("a", 5, True), ("", 20, False)]
)
def test_a_restart_and_a_reset_of_the_counters_are_noticed(run_id: str, calls: int, restarted: bool) -> None:
    before = described(run_id="a", commands={"get": CommandTime(10, 1)})
    after = described(Reading.AFTER, run_id=run_id, commands={"get": CommandTime(calls, 1)})
    assert was_restarted(before, after) is restarted


def entry(number: int, log: str = "slow") -> LoggedCommand:
    return LoggedCommand(log=log, id=number, at_s=1, value=10, command="GET")


def test_entries_of_the_log_are_those_that_the_run_added() -> None:
    before = described(run_id="a", last_logged={"slow": 7})
    logged = (entry(9), entry(8), entry(7), entry(0, "large-reply"))
    after = described(Reading.AFTER, run_id="a", logged=logged, last_logged={"slow": 9, "large-reply": 0})
    assert logged_in_run(before, after) == ((entry(9), entry(8), entry(0, "large-reply")), 0)


def test_entries_that_were_overwritten_are_counted() -> None:
    before = described(run_id="a", last_logged={"slow": 7})
    after = described(Reading.AFTER, run_id="a", logged=(entry(99), entry(98)), last_logged={"slow": 99})
    assert logged_in_run(before, after) == ((entry(99), entry(98)), 90)


def test_after_a_restart_all_entries_are_of_the_run() -> None:
    before = described(run_id="a", last_logged={"slow": 7})
    after = described(Reading.AFTER, run_id="b", logged=(entry(0),), last_logged={"slow": 0})
    assert logged_in_run(before, after) == ((entry(0),), 0)


def test_latency_events_before_the_run_are_left_out() -> None:
    old, new = (LatencyEvent(name=name, at_s=at_s, latest_ms=1, max_ms=2) for name, at_s in (("a", 99), ("b", 100)))
    after = described(Reading.AFTER, events=(old, new))
    assert events_in_run(described(server_time_s=100), after) == (new,)
    assert events_in_run(None, after) == (old, new)
