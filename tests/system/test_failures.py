"""Agents, worker processes and servers die during a run. The run reports the loss, and goes on."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable

import psutil
import pytest

from common.clock import monotonic_ns
from common.units import NS_PER_S
from tests.support.runs import PATIENCE_S, Fleet, calls, connections, wait_until, worker_processes
from tests.support.servers import Server, start_server

NOTICED_WITHIN_S = 5.0
SHORT_WAITS = ("--connect-timeout", "1s", "--socket-timeout", "1s", "--drain", "2s")


def seconds_until(condition: Callable[[], object], what: str) -> float:
    began_ns = monotonic_ns()
    wait_until(condition, what)
    return (monotonic_ns() - began_ns) / NS_PER_S


def test_killed_agents_and_workers_are_named_and_their_reported_operations_count(fleet: Fleet, valkey: Server) -> None:
    survivor, victim = (fleet.agent(name, processes=2) for name in ("survivor", "victim"))
    coordinator = fleet.coordinator(
        "--expect-agents", "2", "--url", valkey.url, "--duration", "6s", "--lease", "3s", "--rate", "500"
    )
    fleet.until_loading()
    workers = worker_processes(psutil.Process(victim.process.pid))
    assert len(workers) == 2
    victim.signal(signal.SIGKILL)
    killed_worker, other_worker = worker_processes(psutil.Process(survivor.process.pid))
    killed_worker.kill()
    assert seconds_until(lambda: "exit code -9" in coordinator.stderr, "the note of its end") < NOTICED_WITHIN_S
    noticed_s = seconds_until(lambda: "agent victim on" in coordinator.stderr, "the note of the loss")
    assert noticed_s < NOTICED_WITHIN_S
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
    assert not alive, "worker processes outlive their agent"
    assert other_worker.is_running()
    ended = fleet.end(coordinator)
    summary = ended.summary
    assert (ended.code, summary["run"]["outcome"]) == (5, "degraded")
    states = {agent["id"]: agent for agent in summary["agents"]}
    assert (states["survivor"]["state"], states["victim"]["state"]) == ("finished", "lost")
    assert states["victim"]["operations"] >= 100
    assert "victim" in summary["run"]["reason"]
    assert "worker process" in summary["run"]["reason"]
    assert summary["totals"]["operations"] == sum(agent["operations"] for agent in summary["agents"])
    assert summary["verdict"]["level"] == "suspect"
    # The other processes continued to the end.
    assert max(second for second, found in ended.journal.seconds.items() if found.ok) >= 5
    assert not connections(valkey.client())
    survivor.wait_for_text("waiting for the next")
    assert "exit code -9" in survivor.stderr


@pytest.mark.parametrize("driver", ["client", "asyncio", "wire"])
def test_every_driver_reports_a_server_that_is_killed_and_stays_down(fleet: Fleet, valkey: Server, driver: str) -> None:
    coordinator = fleet.coordinator(
        "--url", valkey.url, "--local-agents", "1", "--processes", "1", "--driver", driver, "--rate", "200/s",
        "--duration", "3s", "--json", *SHORT_WAITS,
    )  # fmt: skip
    fleet.until_loading()
    valkey.kill()
    ended = fleet.end(coordinator, timeout=30)
    reason = ended.summary["run"]["reason"]
    assert (ended.code, ended.summary["run"]["outcome"]) == (4, "degraded")
    assert reason.startswith("the target was lost in second ")
    assert " of 3 and did not come back: ConnectionError " in reason
    assert ended.finished.stderr.splitlines()[-1] == f"coordinator: {reason}"
    ledger = ended.summary["ledger"]
    assert (ledger["server_calls"], ledger["issued"]) == (None, ledger["counted"])
    assert ended.summary["totals"]["errors"] == sum(ended.summary["errors"].values()) > 0
    assert ended.summary["connections"]["failed_attempts"] > 0
    assert ended.summary["connections"]["drops"]
    assert not any("not enough" in why for why in ended.summary["verdict"]["reasons"])
    reported = fleet.commands.coordinator("report", ended.folder.name, "--format", "json")
    assert json.loads(reported.stdout) == ended.summary


def test_drivers_reconnect_to_a_restarted_server_and_the_report_has_the_length_of_the_outage(fleet: Fleet) -> None:
    with start_server() as first:
        coordinator = fleet.coordinator(
            "--local-agents", "1", "--processes", "1", "--url", first.url, "--duration", "5s", "--json", *SHORT_WAITS
        )
        fleet.until_loading()
        first.kill()
        coordinator.wait_for_text(" 0 ops/s")
        with start_server(port=first.port) as second:
            ended = fleet.end(coordinator)
            assert calls(second.client())
    summary = ended.summary
    assert (ended.code, summary["run"]["outcome"]) == (0, "completed")
    found = summary["connections"]
    assert found["reconnects"] == found["reconnect_ms"]["count"] >= 1
    assert sum(found["drops"].values()) >= 1
    # An orderly end or a reset, depending on the bytes under way.
    assert found["drops"].keys() <= {"closed by server", "ConnectionResetError"}
    assert found["reconnect_ms"]["max"] > 500
    assert found["failed_attempts"] >= 1
    assert "restarted" in summary["ledger"]["note"]
    assert summary["verdict"]["level"] == "suspect"


def test_a_server_that_stalls_shows_in_the_response_time_of_delayed_operations(fleet: Fleet, valkey: Server) -> None:
    coordinator = fleet.coordinator(
        "--local-agents", "1", "--processes", "1", "--url", valkey.url, "--duration", "4s", "--rate", "200/s",
        "--command", "GET",
    )  # fmt: skip
    fleet.until_loading()
    valkey.pause()
    coordinator.wait_for_text("second 2:")
    valkey.resume()
    ended = fleet.end(coordinator)
    latency = ended.summary["totals"]["latency_us"]
    assert ended.summary["ledger"]["unaccounted"] == 0
    assert ended.summary["totals"]["errors"] == 0
    # Only one operation waited for its reply. All others were sent late, which is not in service time.
    assert latency["service"]["p99"] < 500_000
    assert latency["response"]["p90"] > 500_000
    assert latency["response"]["max"] > 1_200_000


def test_a_run_ends_although_its_server_hangs(fleet: Fleet, valkey: Server) -> None:
    coordinator = fleet.coordinator(
        "--local-agents", "1", "--processes", "2", "--url", valkey.url, "--duration", "3s", "--retries", "0",
        *SHORT_WAITS,
    )  # fmt: skip
    fleet.until_loading()
    valkey.pause()
    ended = fleet.end(coordinator, timeout=40)
    summary = ended.summary
    assert (ended.code, summary["run"]["outcome"]) == (4, "degraded")
    assert "the target was lost in second" in summary["run"]["reason"]
    assert summary["errors"]["TimeoutError"] > 0
    assert summary["connections"]["drops"]["timeout"] > 0
    assert summary["ledger"]["issued"] == summary["ledger"]["counted"]
    valkey.resume()
