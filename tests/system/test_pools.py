"""The pool architecture, as the server sees it."""

from __future__ import annotations

from tests.support.runs import Fleet, calls, connections
from tests.support.servers import Server

POOLS = (
    "--client-pools", "2", "--client-instances-per-pool", "3", "--threads-per-pool", "4", "--max-connections", "50",
    "--server-stats", "off",
)  # fmt: skip


def test_the_requested_example_has_300_connections_during_the_run_and_none_afterwards(
    fleet: Fleet, valkey: Server
) -> None:
    admin = valkey.client()
    before = admin.info("clients")["connected_clients"]
    agents = [fleet.agent(name) for name in ("a", "b")]
    coordinator = fleet.coordinator(
        "--expect-agents", "2", "--url", valkey.url, *POOLS, "--connections", "prewarm", "--duration", "3s"
    )
    fleet.until_loading()
    assert admin.info("clients")["connected_clients"] - before == 300
    assert connections(admin) == 300
    ended = fleet.end(coordinator)
    assert admin.info("clients")["connected_clients"] == before
    summary = ended.summary
    assert ended.code == 0
    assert "2 client pools x 3 client instances x 50 connections = 300" in ended.finished.stderr
    assert "300/300" in ended.finished.stderr  # the progress of opening them
    found = summary["connections"]
    assert (found["ceiling"], found["peak_open"], found["opened"]) == (300, 300, 300)
    assert (found["failed_attempts"], found["drops"], found["reconnects"]) == (0, {}, 0)
    # Four threads share three client instances, so some threads wait. Waits that the end cut off count too.
    assert 0 <= summary["checkout_wait_us"]["count"] - summary["totals"]["operations"] <= 8
    assert summary["checkout_wait_us"]["max"] > 0
    assert summary["ledger"]["issued"] == summary["ledger"]["counted"] == summary["ledger"]["server_calls"]
    counted = calls(admin)
    assert summary["ledger"]["issued"] == sum(counted[name] for name in ("set", "get", "del"))
    assert [agent["operations"] > 0 for agent in summary["agents"]] == [True, True]
    for agent in agents:
        assert agent.process.poll() is None
