"""Publishers and subscribers as a workload."""

from __future__ import annotations

import pytest

from tests.support.runs import Fleet, calls, connections
from tests.support.servers import Server

DRIVERS = {"client": ("--threads-per-pool", "2"), "asyncio": ("--driver", "asyncio", "--tasks-per-pool", "2")}


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_message_is_delivered_and_every_operation_is_accounted_for(
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
    deliveries = summary["pubsub"]
    assert deliveries["lost"] == deliveries["foreign"] == deliveries["repeated"] == 0
    assert deliveries["delivered"] == deliveries["expected"] == deliveries["latency_us"]["count"] > 0
    assert 0 < deliveries["latency_us"]["p50"] < 1e6
    # Two agents with one client instance each: two connections subscribe, and one publishes for two threads.
    assert summary["connections"]["peak_open"] == 6
    assert summary["connections"]["drops"] == {}
    assert summary["run"]["duration_s"] == pytest.approx(2.0, abs=0.2)
    assert "Deliveries" in ended.finished.stdout
    assert connections(valkey.client()) == 0
