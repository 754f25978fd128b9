from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
from rich.console import Console

from common.units import NS_PER_S
from coordinator.analysis.totals.aggregate import fold
from coordinator.journal.records import AnyRecord, HotKey, NodeSample, NodeSampled, NodeSilent, Unread
from coordinator.report.server_text import NODES_SHOWN
from coordinator.report.summary import build_summary
from coordinator.report.summary_text import print_summary
from tests.support.records import clean_run, plan
from tests.support.server_records import CONFIG, NODE, event, slow, with_servers

T0_NS = 123_456_789


def text(records: Iterable[AnyRecord], width: int = 240) -> str:
    out = io.StringIO()
    print_summary(Console(file=out, width=width), build_summary(fold(records)), hide_histogram=True)
    return out.getvalue()


def line(report: str, begin: str) -> str:
    return next(line for line in report.splitlines() if line.startswith(begin))


def test_a_run_without_watched_servers_says_nothing_of_them() -> None:
    report = text(clean_run())
    assert not any(word in report for word in ("Servers", "Server time", "Not known"))


def test_each_server_has_a_row() -> None:
    report = text(with_servers(clean_run(), NODE))
    headings = line(report, "Server  ").split()
    row = dict(zip(headings, line(report, NODE).split(), strict=False))
    assert (row["Role"], row["CPU"], row["max"], row["Frag"]) == ("primary", "45%", "45%", "2.00")
    assert (row["Ops/s"], row["Hits"], row["Evicted"], row["Clients"]) == ("1k", "90.0%", "0", "7")


def test_of_many_servers_the_busiest_are_shown() -> None:
    nodes = [f"10.0.0.{number}:6379" for number in range(NODES_SHOWN + 5)]
    report = text(with_servers(clean_run(), *nodes))
    assert sum(row.startswith("10.0.0.") for row in report.splitlines()) == NODES_SHOWN
    assert "and 5 more that used less CPU time, see summary.json" in report


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_the_terminal(width: int) -> None:
    report = text(with_servers(clean_run(), NODE), width)
    assert max(map(len, report.splitlines())) <= width
    assert line(report, NODE).split()[2:4] == ["45%", "45%"]


def test_the_time_in_the_server_is_shown_beside_the_clients() -> None:
    assert line(text(with_servers(clean_run(), NODE)), "Server time").startswith(
        "Server time   GET 12 us of 184 us (7%), p99 16 us of "
    )


def test_the_clients_time_is_that_of_a_whole_batch() -> None:
    report = text(with_servers(clean_run(plan(pipeline=10)), NODE))
    assert "GET 10 x 12 us of 184 us (65%)" in report


def test_settings_are_named_once_and_where_they_differ_or_changed() -> None:
    report = text(with_servers(clean_run(), NODE, "127.0.0.1:6380", after={"config": CONFIG | {"maxmemory": "9"}}))
    assert line(report, "Settings") == 'Settings      maxmemory 0, maxmemory-policy noeviction, save ""'
    assert f"{NODE}: maxmemory changed during the run from 0 to 9" in report


def test_slow_commands_are_counted_and_the_slowest_are_named() -> None:
    logged = tuple(slow(value, f"LRANGE list:{value}", value) for value in range(20_000, 20_007))
    report = text(with_servers(clean_run(), NODE, after={"logged": logged, "last_logged": {"slow": 20_006}}))
    assert "7 commands slow" in report
    assert f"LRANGE list:20006 (20.01 ms) at {NODE}; LRANGE list:20005" in report


def test_latency_spikes_and_hot_keys_are_shown() -> None:
    hot = tuple(HotKey(key=f"k{number}", by="cpu_us", value=100 - number) for number in range(3))
    report = text(with_servers(clean_run(), NODE, after={"events": (event(70),), "hot_keys": hot}))
    assert f"Server spikes {NODE}: command 70 ms at most" in report
    assert f"Hot keys      {NODE}: k0 100 us, k1 99 us, k2 98 us" in report


def test_a_stalled_server_is_seen_by_its_slowest_reply() -> None:
    stalled = NodeSampled(node=NODE, at_ns=T0_NS + int(2.5 * NS_PER_S), sample=NodeSample(reply_us=1_786_000))
    report = text(with_servers(clean_run(), NODE, seconds=2, extra=[stalled]))
    assert f"Server spikes {NODE}: INFO took 1,786 ms, sent 2.5s after the start" in report


def test_what_could_not_be_read_is_named_with_all_its_servers() -> None:
    refused = {"unread": tuple(Unread(what=what, reason="NOPERM no") for what in ("CONFIG GET", "LATENCY LATEST"))}
    report = text(with_servers(clean_run(), "a:1", "b:2", before=refused))
    assert line(report, "Not known") == "Not known     CONFIG GET, LATENCY LATEST of a:1, b:2: NOPERM no"


def test_a_time_without_samples_is_named() -> None:
    extra = [NodeSilent(node=NODE, at_ns=T0_NS + NS_PER_S // 2, reason="did not answer")]
    records = list(with_servers(clean_run(), extra=extra))
    assert f"{NODE} gave no sample from 500ms on: did not answer" in text(records)


def test_text_of_a_server_cannot_write_to_the_terminal() -> None:
    hostile = {
        "logged": (slow(1, "GET \x1b[2Jx\n"),),
        "last_logged": {"slow": 1},
        "config": {"maxmemory": "\x1b[31m"},
        "unread": (Unread(what="x\x07", reason="\x1b]0;t\x07"),),
    }
    report = text(with_servers(clean_run(), "host\x1b[1m:1", after=hostile))
    assert all(character.isprintable() or character == "\n" for character in report)
