"""Whole runs against clusters and Sentinels."""

from __future__ import annotations

import pytest

from tests.support.groups import ClusterGroup, SentinelGroup
from tests.support.runs import Fleet, Outcome

LOAD = ("--local-agents", "1", "--processes", "1", "--key-maximum", "500")


def assert_accounted(ended: Outcome, operations: int) -> None:
    ledger = ended.summary["ledger"]
    assert ended.code == 0, ended.finished.stderr
    assert (ledger["note"], ledger["unaccounted"]) == (None, 0)
    assert ledger["issued"] == ledger["counted"] == ledger["server_calls"] == operations
    assert ended.summary["totals"]["errors"] == 0


@pytest.mark.parametrize("kind", ["cluster", "sentinel"])
def test_every_operation_on_an_embedded_cluster_or_sentinel_is_accounted_for(fleet: Fleet, kind: str) -> None:
    ended = fleet.run("--embedded-server", kind, "--profile", "basic_rw", "--requests", "2003", *LOAD)
    assert_accounted(ended, 2003)
    assert ended.summary["target"]["topology"] == kind
    assert ended.summary["connections"]["ceiling"] == (300 if kind == "cluster" else 50)
    assert ("= 300" in ended.finished.stderr) == (kind == "cluster")
    [scenario] = ended.summary["scenarios"]
    by_server = scenario["endpoints"]
    assert len(by_server) == (3 if kind == "cluster" else 1)
    assert {each["role"] for each in by_server.values()} == {"primary"}
    assert sum(each["operations"] for each in by_server.values()) == 2003
    assert ("Endpoints" in ended.finished.stdout) == (kind == "cluster")


@pytest.mark.parametrize(
    "flags", [("--pipeline", "10", "--read-from", "any"), ("--transaction", "5"), ("--read-from", "replicas")]
)
def test_every_way_of_sending_to_a_cluster_is_accounted_for(
    fleet: Fleet, shared_cluster: ClusterGroup, flags: tuple[str, ...]
) -> None:
    ended = fleet.run("--url", shared_cluster.url, "--profile", "basic_rw", "--requests", "2003", *flags, *LOAD)
    assert_accounted(ended, 2003)
    by_server = ended.summary["endpoints"]
    assert sum(each["operations"] for each in by_server.values()) == 2003
    assert ("replica" in {each["role"] for each in by_server.values()}) == ("--read-from" in flags)


def test_reads_from_replicas_behind_sentinels_are_accounted_for(fleet: Fleet, shared_sentinel: SentinelGroup) -> None:
    flags = ("--profile", "basic_rw", "--requests", "2003", "--read-from", "replicas")
    ended = fleet.run("--url", shared_sentinel.url, *flags, *LOAD)
    assert_accounted(ended, 2003)
    by_server = ended.summary["endpoints"]
    assert {each["role"] for each in by_server.values()} == {"primary", "replica"}
    assert sum(each["operations"] for each in by_server.values()) == 2003
    assert ended.summary["connections"]["ceiling"] == 100


def test_a_failover_during_the_run_is_named_in_the_ledger(fleet: Fleet, valkey_cluster: ClusterGroup) -> None:
    running = fleet.commands.start(
        "coordinator", "start", "--url", valkey_cluster.url, "--profile", "basic_rw", "--duration", "4s", *LOAD
    )
    fleet.until_loading()
    old, _ = valkey_cluster.failover()
    ended = fleet.end(running)
    ledger = ended.summary["ledger"]
    assert ledger["issued"] == ledger["counted"]
    assert ledger["server_calls"] is None
    assert f"the server 127.0.0.1:{old} was failed over during the run, from primary to replica" in ledger["note"]


def test_a_slot_that_moves_during_the_run_leaves_no_call_out(fleet: Fleet, valkey_cluster: ClusterGroup) -> None:
    load = (*LOAD[:4], "--key-prefix", "{a}", "--key-maximum", "100")
    running = fleet.commands.start(
        "coordinator", "start", "--url", valkey_cluster.url, "--profile", "basic_rw", "--duration", "4s", *load
    )
    fleet.until_loading()
    slot = 15495  # of the key "a"
    source = valkey_cluster.owner(slot)
    valkey_cluster.move_slot(slot, next(port for port in valkey_cluster.primaries if port != source))
    ended = fleet.end(running)
    assert ended.summary["connections"]["redirects"]
    assert (ended.summary["ledger"]["note"], ended.summary["ledger"]["unaccounted"]) == (None, 0)
