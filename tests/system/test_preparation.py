"""Flush, setup, preload and clean-up around the load."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from common.clock import monotonic_ns
from common.units import NS_PER_S
from tests.support.runs import PATIENCE_S, Fleet, calls, connections, wait_until, worker_processes
from tests.support.servers import Server

MANY = ("--preload", "--key-maximum", "50000000", "--data-size", "10")
ONE_LOCAL = ("--local-agents", "1", "--processes", "1")


def preloading(client: redis.Redis) -> bool:
    return int(client.dbsize()) > 1_000  # type: ignore[arg-type]


def test_two_agents_preload_the_key_space_and_every_get_finds_its_key(fleet: Fleet, valkey: Server) -> None:
    agents = [fleet.agent(name, processes=2) for name in ("a", "b")]
    client = valkey.client()
    client.set("somebody:else", "x")
    coordinator = fleet.coordinator(
        "--expect-agents", "2", "--url", valkey.url, "--preload", "--key-maximum", "30001", "--threads-per-pool", "3",
        "--command", "GET", "--requests", "20000",
    )  # fmt: skip
    ended = fleet.end(coordinator)
    assert ended.code == 0, ended.finished.stderr
    assert client.dbsize() == 30_002
    stats: Any = client.info("stats")
    assert stats["keyspace_misses"] == 0
    assert calls(client)["set"] == 30_002
    summary = ended.summary
    preload = summary["preload"]
    assert (preload["keys"], preload["commands"], preload["expected_keys"]) == (30_001, 30_001, 30_001)
    assert (preload["dbsize_before"], preload["dbsize_after"], preload["ok"]) == (1, 30_002, True)
    assert preload["per_s"] == pytest.approx(30_001 / preload["seconds"])
    # Preload is not part of the load.
    ledger = summary["ledger"]
    assert (ledger["issued"], ledger["server_calls"], ledger["unaccounted"]) == (20_000, 20_000, 0)
    assert summary["connections"]["server_clients_before"] == summary["connections"]["server_clients_after"]
    assert "preloading 30,001/30,001" in ended.finished.stderr
    assert "Preload       30,001 keys by 30,001 commands in " in ended.finished.stdout
    for agent in agents:
        agent.wait_for_text("preloading ")
    assert summary["clean_up"] is None


def test_ctrl_c_ends_a_preload_at_once_and_the_agents_serve_the_next_run(fleet: Fleet, valkey: Server) -> None:
    agents = [fleet.agent(name, processes=1) for name in ("a", "b")]
    client = valkey.client()
    coordinator = fleet.coordinator("--expect-agents", "2", "--url", valkey.url, "--duration", "1s", *MANY)
    wait_until(lambda: preloading(client), "keys", PATIENCE_S, *fleet.commands.started)
    began_ns = monotonic_ns()
    coordinator.signal(signal.SIGINT)
    finished = coordinator.wait()
    assert (monotonic_ns() - began_ns) / NS_PER_S < 5
    assert finished.returncode == 130
    assert finished.stderr.splitlines()[-1] == "coordinator: interrupted before the start"
    assert not fleet.runs
    wait_until(lambda: not connections(client), "no connections")
    for agent in agents:
        assert not worker_processes(psutil.Process(agent.process.pid))
    client.flushdb()
    ended = fleet.end(fleet.coordinator("--expect-agents", "2", "--url", valkey.url, "--requests", "100"))
    assert (ended.code, ended.summary["preload"]) == (0, None)


def test_an_error_reply_to_the_preload_is_one_line_and_no_run_starts(fleet: Fleet, valkey: Server) -> None:
    valkey.client().lpush("stampede:77", "x")
    (fleet.commands.directory / "plan.yaml").write_text(
        "workload: {keys: {maximum: 100}, commands: [{command: INCR}], preload: [{command: INCR __key__}]}\n"
        "load: {duration: 1s}\n"
    )
    finished = fleet.commands.coordinator("start", "plan.yaml", "--url", valkey.url, *ONE_LOCAL)
    assert finished.returncode == 4
    assert finished.stderr.splitlines()[-1].endswith(
        "refused the preload: INCR stampede:77 was answered with WRONGTYPE Operation against a key holding the wrong "
        "kind of value"
    )
    assert not fleet.runs


def test_a_flush_needs_two_flags(fleet: Fleet, valkey: Server) -> None:
    client = valkey.client()
    client.set("precious", "x")
    plan = fleet.commands.directory / "plan.yaml"
    plan.write_text("workload: {flush_before: true}\nload: {requests: 10}\n")
    start = ("start", str(plan), "--url", valkey.url, *ONE_LOCAL)
    finished = fleet.commands.coordinator(*start, STAMPEDE_YES_FLUSH="1")
    assert (finished.returncode, client.exists("precious")) == (2, 1)
    [line] = finished.stderr.splitlines()
    assert "add --yes-flush to confirm" in line
    assert not fleet.runs
    finished = fleet.commands.coordinator(*start, "--yes-flush")
    assert (finished.returncode, client.exists("precious")) == (0, 0)
    assert f"flushed 1 key of {valkey.url}" in finished.stderr


def test_clean_up_deletes_the_keys_of_the_plan_and_no_others(fleet: Fleet, valkey: Server) -> None:
    client = valkey.client()
    others = ("load:abc", "load:1001", "loader:5", "xload:5", "load:{5}", "mine")
    client.mset(dict.fromkeys(others, "x"))
    ended = fleet.run(
        "--url", valkey.url, *ONE_LOCAL, "--preload", "--key-prefix", "load:", "--key-maximum", "1000",
        "--setup", "XGROUP CREATE stream:__key__ workers 0 MKSTREAM", "--setup", "SET literal x",
        "--requests", "2000", "--ratio", "1:1", "--clean-up", "keys",
    )  # fmt: skip
    assert ended.code == 0, ended.finished.stderr
    found: Any = client.keys("*")
    assert set(found) == {key.encode() for key in others}
    cleaned = ended.summary["clean_up"]
    assert (cleaned["deleted"], cleaned["left"], cleaned["error"]) == (2_001, 0, "")
    assert ended.summary["preload"]["dbsize_before"] == 1_001 + len(others)
    assert ended.summary["ledger"]["unaccounted"] == 0
    assert "setup: 1,001 calls" in ended.finished.stderr
    assert "Clean-up      2,001 keys deleted in " in ended.finished.stdout
    again = fleet.commands.coordinator("report", "latest", "--format", "json").stdout
    assert json.loads(again) == ended.summary


def test_a_resumed_run_does_not_flush_set_up_or_preload_again(fleet: Fleet, valkey: Server) -> None:
    client = valkey.client()
    fleet.agent("a")
    killed = fleet.coordinator(
        "--expect-agents", "1", "--url", valkey.url, "--preload", "--key-maximum", "1000", "--flush-before",
        "--yes-flush", "--setup", "INCR setups", "--duration", "6s", "--command", "GET", "--lease", "20s",
    )  # fmt: skip
    fleet.until_loading()
    killed.process.kill()
    killed.wait()
    client.set("since", "x")
    ended = fleet.end(fleet.commands.start("coordinator", "start", "--resume", fleet.runs[-1].name))
    assert ended.code == 0, ended.finished.stderr
    assert (client.get("setups"), client.get("since")) == (b"1", b"x")
    assert calls(client)["flushdb"] == 1
    assert ended.summary["preload"]["ok"] is True
    assert Path(ended.folder).is_dir()


def test_a_cluster_is_flushed_preloaded_and_cleaned_up(fleet: Fleet) -> None:
    ended = fleet.run(
        "--embedded-server", "cluster", "--local-agents", "2", "--processes", "1", "--preload", "--key-maximum", "3000",
        "--keys-per-hash-tag", "10", "--setup", "XGROUP CREATE stream:__key__ workers 0 MKSTREAM", "--flush-before",
        "--yes-flush", "--command", "MGET __keys(3)__", "--requests", "2000", "--clean-up", "keys",
    )  # fmt: skip
    assert ended.code == 0, ended.finished.stderr
    summary = ended.summary
    preload, ledger, cleaned = summary["preload"], summary["ledger"], summary["clean_up"]
    assert (preload["expected_keys"], preload["dbsize_before"], preload["dbsize_after"]) == (3_000, 3_000, 6_000)
    assert preload["ok"] is True
    assert (ledger["issued"], ledger["server_calls"], ledger["unaccounted"]) == (2_000, 2_000, 0)
    assert (cleaned["deleted"], cleaned["left"], cleaned["error"]) == (6_000, 0, "")
