"""The pool architecture, as the server sees it: so many connections as the arithmetic says, and none afterwards."""

from __future__ import annotations

import json
import re

import pytest

from tests.support.runs import Fleet, calls, connections, wait_until
from tests.support.servers import Server

POOLS = (
    "--client-pools", "2", "--client-instances-per-pool", "3", "--threads-per-pool", "4", "--max-connections", "50",
)  # fmt: skip
ALIASES = (
    "--client-instances", "2", "--connections-per-client", "3", "--threads-per-client", "4", "--max-connections", "50",
)  # fmt: skip


@pytest.mark.parametrize("flags", [POOLS, ALIASES], ids=["our names", "the requested document's names"])
def test_the_plan_of_the_requested_example_prints_300_connections(fleet: Fleet, flags: tuple[str, ...]) -> None:
    arguments = ("--url", "redis://127.0.0.1:6379", "--duration", "1s", *flags)
    said = fleet.commands.coordinator("plan", *arguments)
    assert said.returncode == 0
    assert re.search(r"2 client pools x 3 client instances x 50 connections = 300", said.stdout)
    assert not fleet.runs
    assert json.loads(fleet.commands.coordinator("plan", *arguments, "--json").stdout)["connections"] == {
        "ceiling": 300,
        "pools": {"main": 300},
        "per_node": False,
    }


def test_the_requested_example_holds_300_connections_while_it_runs_and_none_after_it(
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
    # Four threads share three client instances: some wait for one, and that is measured; also by those who waited for
    # one when the end came.
    assert 0 <= summary["checkout_wait_us"]["count"] - summary["totals"]["operations"] <= 8
    assert summary["checkout_wait_us"]["max"] > 0
    assert summary["ledger"]["issued"] == summary["ledger"]["counted"] == summary["ledger"]["server_calls"]
    counted = calls(admin)
    assert summary["ledger"]["issued"] == sum(counted[name] for name in ("set", "get", "del"))
    assert [agent["operations"] > 0 for agent in summary["agents"]] == [True, True]
    for agent in agents:
        assert agent.process.poll() is None


def test_a_thread_that_waits_too_long_for_a_client_is_counted_as_an_error(fleet: Fleet, valkey: Server) -> None:
    coordinator = fleet.coordinator(
        "--local-agents", "1", "--processes", "1", "--url", valkey.url, "--threads-per-pool", "2", "--duration", "3s",
        "--checkout-timeout", "200ms",
    )  # fmt: skip
    fleet.until_loading()
    valkey.pause()
    wait_until(lambda: "second 1:" in coordinator.stderr, "the stall has lasted")
    coordinator.wait_for_text("second 2:")
    valkey.resume()
    ended = fleet.end(coordinator)
    summary = ended.summary
    assert summary["errors"] == {"CheckoutTimeout": summary["totals"]["errors"]}
    assert summary["totals"]["errors"] >= 1
    assert summary["checkout_wait_us"]["max"] >= 200_000
    assert summary["ledger"]["issued"] == summary["ledger"]["counted"]
