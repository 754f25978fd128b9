"""Publishers and subscribers as a workload: what is delivered, what is lost, and what the server says to it."""

from __future__ import annotations

import pytest

from tests.support.runs import PATIENCE_S, Fleet, calls, connections, wait_until
from tests.support.servers import Server

DRIVERS = {"client": ("--threads-per-pool", "2"), "asyncio": ("--driver", "asyncio", "--tasks-per-pool", "2")}


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_message_of_a_run_is_delivered_and_every_operation_accounted_for(
    fleet: Fleet, valkey: Server, driver: str
) -> None:
    ended = fleet.run(
        "--local-agents", "2", "--processes", "1", "--url", valkey.url, "--profile", "pubsub_heavy", "--duration", "2s",
        "--data-size", "64", *DRIVERS[driver],
    )  # fmt: skip
    summary, counted = ended.summary, calls(valkey.client())
    assert ended.code == 0, ended.finished.stderr
    ledger = summary["ledger"]
    assert ledger["unaccounted"] == ledger["uncertain"] == summary["totals"]["errors"] == 0
    assert {name: summary["commands"][name]["ok"] for name in ("PUBLISH", "SUBSCRIBE")} == {
        "PUBLISH": counted["publish"],
        "SUBSCRIBE": counted["subscribe"],
    }
    told = summary["pubsub"]
    assert told["lost"] == told["foreign"] == told["repeated"] == 0
    assert told["delivered"] == told["expected"] == told["latency_us"]["count"] > 0
    assert 0 < told["latency_us"]["p50"] < 1e6
    # Two agents with one client instance each: two connections to listen, and one to publish for two threads.
    assert summary["connections"]["peak_open"] == 6
    assert summary["connections"]["drops"] == {}
    assert summary["run"]["duration_s"] == pytest.approx(2.0, abs=0.2)
    assert "Deliveries" in ended.finished.stdout
    assert connections(valkey.client()) == 0


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_subscriber_that_is_cut_off_comes_back_and_what_it_missed_is_lost(
    fleet: Fleet, valkey: Server, driver: str
) -> None:
    client = valkey.client()
    running = fleet.coordinator(
        "--local-agents", "1", "--processes", "1", "--url", valkey.url, "--profile", "pubsub_heavy", "--duration", "3s",
        *DRIVERS[driver],
    )  # fmt: skip
    wait_until(lambda: client.pubsub_channels(), "a subscriber", PATIENCE_S, running)
    fleet.until_loading()
    assert client.client_kill_filter(_type="pubsub") == 2
    ended = fleet.end(running)
    summary = ended.summary
    assert ended.code == 0, ended.finished.stderr
    assert summary["connections"]["drops"].keys() == {"closed by server"}
    assert summary["connections"]["drops"]["closed by server"] == summary["connections"]["reconnects"] == 2
    told = summary["pubsub"]
    assert told["delivered"] + told["lost"] >= told["expected"] > 0
    assert summary["ledger"]["unaccounted"] == 0
    assert summary["run"]["duration_s"] == pytest.approx(3.0, abs=0.3)
    assert connections(client) == 0
