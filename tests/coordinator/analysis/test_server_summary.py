from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from common.plan.schema import Command, Workload
from common.units import NS_PER_S
from coordinator.analysis.server_figures import COLUMNS
from coordinator.analysis.totals.aggregate import fold
from coordinator.journal.records import (
    AnyRecord,
    CommandTime,
    NodeSample,
    NodeSampled,
    NodeSilent,
    Reading,
    Unread,
)
from coordinator.report.summary import build_summary
from tests.support.records import accepted, clean_run, command, histogram, interval, opened, plan
from tests.support.server_records import NODE, described, event, slow, with_servers

T0_NS = 123_456_789
OTHER = "127.0.0.1:6380"


def server_of(records: Iterable[AnyRecord]) -> Any:
    """`server` of the run's summary.json."""
    return json.loads(build_summary(fold(records)).to_json())["server"]


def unavailable(server: Any) -> list[tuple[str, str, str]]:
    return [(each["node"], each["what"], each["reason"]) for each in server["unavailable"]]


def test_a_run_whose_servers_were_not_watched_has_none() -> None:
    assert server_of(clean_run()) == {"nodes": {}, "times": {}, "unavailable": [], "columns": list(COLUMNS)}


def test_a_server_has_what_the_contract_promises() -> None:
    server = server_of(with_servers(clean_run(), NODE, after={"logged": (slow(45_000),), "last_logged": {"slow": 1}}))
    node = server["nodes"][NODE]
    assert (node["version"], node["role"], unavailable(server)) == ("valkey 9.1.2", "primary", [])
    assert node["before"] == {"keys": 5, "memory": 1 << 20, "clients": 3, "config": node["after"]["config"]}
    assert node["before"]["config"]["maxmemory-policy"] == "noeviction"
    assert node["commands"] == {"get": {"calls": 100, "usec_per_call": 12.0, "p50_us": 16, "p99_us": 16}}
    assert [(entry["command"], entry["value"]) for entry in node["slowlog"]] == [("LRANGE list:1 0 -1", 45_000)]
    assert [row[COLUMNS.index("at_s")] for row in node["series"]] == [-0.123, 0.0, 1.0, 2.0, 3.0, 4.0]
    figures = node["figures"]
    assert (figures["cpu_percent_mean"], figures["commands_per_s"], figures["hit_rate"]) == (45.0, 1000.0, 0.9)


def test_a_row_of_the_series_is_one_line_of_json() -> None:
    text = build_summary(fold(with_servers(clean_run(), NODE, OTHER))).to_json()
    assert len([line for line in text.splitlines() if '"primary",150,' in line]) == 8
    nodes = json.loads(text)["server"]["nodes"]
    assert [len(node["series"]) for node in nodes.values()] == [6, 6]


def test_a_name_that_looks_like_the_place_of_a_series_changes_nothing() -> None:
    hostile = '"series": "rows"'
    server = server_of(
        with_servers(clean_run(), NODE, after={"logged": (slow(1, hostile),), "last_logged": {"slow": 1}})
    )
    assert server["nodes"][NODE]["slowlog"][0]["command"] == hostile
    assert len(server["nodes"][NODE]["series"]) == 6


def test_the_time_in_the_server_stands_beside_the_time_at_the_client() -> None:
    times = server_of(with_servers(clean_run(), NODE, OTHER))["times"]
    assert set(times) == {"GET"}  # no server has counted the others
    assert (times["GET"]["calls"], times["GET"]["server_us"]) == (200, 12.0)
    assert 150 < times["GET"]["client_us"] < 250


def test_what_a_replica_repeats_is_no_time_of_a_clients_command() -> None:
    writes = {"commands": {"set": CommandTime(100, 500), "get": CommandTime(50, 100)}}
    replica = [
        described(Reading.BEFORE, 1, OTHER, commands={}, sample=None),
        described(Reading.AFTER, 10**10, OTHER, sample=NodeSample(reply_us=1, replica=True), **writes),
    ]
    records = list(with_servers(clean_run(), NODE, before={"commands": {}}, after=writes, extra=replica))
    server = server_of(records)
    assert server["nodes"][OTHER]["role"] == "replica"
    assert [server["times"][name]["calls"] for name in ("SET", "GET")] == [100, 100]


def test_rows_of_several_templates_have_the_time_of_their_command() -> None:
    mix = (Command(command="GET __key__", name="lookup"), Command(command="CLIENT INFO"), Command(command="GET k"))
    the_plan = msgspec.structs.replace(plan(), workload=Workload(commands=mix))
    rows = {"get": CommandTime(50, 100), "client|info": CommandTime(10, 70), "client|setinfo": CommandTime(5, 5)}
    service = {name: command(histogram(1000)) for name in ("lookup", "CLIENT", "GET")}
    records = [
        opened(the_plan, ["a1"]),
        described(Reading.BEFORE, 1, commands={}),
        accepted("a1", 0, interval(0, service)),
        described(Reading.AFTER, 10**10, commands=rows),
    ]
    times = server_of(records)["times"]
    assert {name: (time["calls"], time["server_us"]) for name, time in times.items()} == {
        "lookup": (50, 2.0),
        "CLIENT": (10, 7.0),
        "GET": (50, 2.0),
    }


def test_what_a_server_refused_is_unavailable_and_its_reason_is_named_once() -> None:
    refused = {"unread": (Unread(what="CONFIG GET", reason="NOPERM no"),), "config": {}}
    server = server_of(with_servers(clean_run(), NODE, before=refused, after=refused))
    assert unavailable(server) == [(NODE, "CONFIG GET", "NOPERM no")]
    assert server["nodes"][NODE]["before"]["config"] == {}


def test_a_server_that_refuses_info_has_no_samples() -> None:
    refusal = NodeSilent(node=NODE, at_ns=T0_NS, reason="answered INFO with NOPERM no", for_good=True)
    server = server_of(with_servers(clean_run(), extra=[refusal]))
    assert (NODE, "samples", "answered INFO with NOPERM no") in unavailable(server)
    assert server["nodes"][NODE]["series"] == []
    assert server["nodes"][NODE]["figures"]["cpu_percent_mean"] is None


def test_a_server_that_died_is_not_described_after_the_load() -> None:
    silent = NodeSilent(node=OTHER, at_ns=T0_NS + 2 * NS_PER_S, reason="refused the connection")
    sample = NodeSampled(node=OTHER, at_ns=T0_NS + NS_PER_S, sample=NodeSample(reply_us=1))
    server = server_of(with_servers(clean_run(), NODE, extra=[described(Reading.BEFORE, 1, OTHER), sample, silent]))
    node = server["nodes"][OTHER]
    assert node["after"] is None
    assert node["silences"] == [{"since_s": 2.0, "until_s": None, "reason": "refused the connection"}]
    assert unavailable(server) == [(OTHER, "what it was after the load", "refused the connection")]


def test_a_restarted_server_has_no_times_of_commands() -> None:
    server = server_of(with_servers(clean_run(), NODE, after={"run_id": "another"}))
    assert server["nodes"][NODE]["commands"] == {}
    assert unavailable(server) == [(NODE, "times of commands", "its counters began at 0 again during the run")]


def test_calls_of_the_coordinator_are_no_commands_of_the_server() -> None:
    rows = {"info": CommandTime(100, 10), "get": CommandTime(1, 1)}
    after = {"info": CommandTime(105, 510), "get": CommandTime(2, 2)}  # four samples, and the last query of `before`
    server = server_of(with_servers(clean_run(), NODE, before={"commands": rows}, after={"commands": after}))
    assert set(server["nodes"][NODE]["commands"]) == {"get"}


def test_latency_events_are_listed() -> None:
    server = server_of(with_servers(clean_run(), NODE, after={"events": (event(70),)}))
    assert [each["max_ms"] for each in server["nodes"][NODE]["latency_events"]] == [70]


def test_servers_of_two_targets_with_the_same_name_are_told_apart() -> None:
    records = [
        NodeSampled(target=target, node=NODE, at_ns=T0_NS + 1, sample=NodeSample(reply_us=1)) for target in ("eu", "us")
    ]
    nodes = server_of(with_servers(clean_run(), extra=records))["nodes"]
    assert {name: node["target"] for name, node in nodes.items()} == {f"eu {NODE}": "eu", f"us {NODE}": "us"}
