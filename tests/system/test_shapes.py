"""Whole runs against targets of more than one server, and what is refused of them before anything starts."""

from __future__ import annotations

import pytest

from tests.support.groups import ClusterGroup, SentinelGroup
from tests.support.runs import Fleet, Outcome
from tests.system.test_bad_input import assert_refused

LOAD = ("--local-agents", "1", "--processes", "1", "--key-maximum", "500")


def assert_accounted(ended: Outcome, operations: int) -> None:
    ledger = ended.summary["ledger"]
    assert ended.code == 0, ended.finished.stderr
    assert (ledger["note"], ledger["unaccounted"]) == (None, 0)
    assert ledger["issued"] == ledger["counted"] == ledger["server_calls"] == operations
    assert ended.summary["totals"]["errors"] == 0


@pytest.mark.parametrize("kind", ["cluster", "sentinel"])
def test_a_profile_runs_against_embedded_servers_and_is_accounted_for(fleet: Fleet, kind: str) -> None:
    ended = fleet.run("--embedded-server", kind, "--profile", "basic_rw", "--requests", "2003", *LOAD)
    assert_accounted(ended, 2003)
    assert ended.summary["target"]["topology"] == kind
    assert ended.summary["connections"]["ceiling"] == (300 if kind == "cluster" else 50)
    assert ("= 300" in ended.finished.stderr) == (kind == "cluster")


@pytest.mark.parametrize(
    "flags", [("--pipeline", "10"), ("--transaction", "5"), ("--read-from", "any"), ("--read-from", "replicas")]
)
def test_a_cluster_accounts_for_every_way_of_sending(
    fleet: Fleet, shared_cluster: ClusterGroup, flags: tuple[str, ...]
) -> None:
    ended = fleet.run("--url", shared_cluster.url, "--profile", "basic_rw", "--requests", "2003", *flags, *LOAD)
    assert_accounted(ended, 2003)


def test_a_failover_in_between_is_named_in_the_ledger(fleet: Fleet, valkey_cluster: ClusterGroup) -> None:
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


def test_a_slot_that_moves_in_between_leaves_no_call_unaccounted(fleet: Fleet, valkey_cluster: ClusterGroup) -> None:
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


def test_what_a_target_cannot_do_is_refused_before_anything_starts(
    fleet: Fleet, shared_cluster: ClusterGroup, shared_sentinel: SentinelGroup
) -> None:
    node, sentinel = (f"redis://127.0.0.1:{port}" for port in (shared_cluster.ports[0], shared_sentinel.sentinels[0]))
    several = ("--url", shared_cluster.url, "--command", "MGET {a}x {b}y")
    refused = {
        ("--url", node): (4, rf"is a node of a cluster, .*: use redis\+cluster://{node.removeprefix('redis://')}"),
        ("--url", sentinel): (4, r"is a Sentinel, .*: use redis\+sentinel://.*/SERVICE"),
        several: (3, r"MGET with the keys \{a\}x, \{b\}y uses 2 slots of the cluster.*--keys-per-hash-tag"),
    }
    started = [fleet.commands.start("coordinator", "start", *flags, "--duration", "1s") for flags in refused]
    for running, (code, said) in zip(started, refused.values(), strict=True):
        assert_refused(running.wait(30), code, said)
    assert not (fleet.commands.directory / "runs").exists()
