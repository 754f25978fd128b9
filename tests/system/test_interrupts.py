"""Ctrl-C and SIGTERM: the run drains, reports, and leaves nothing behind."""

from __future__ import annotations

import json
import signal

import pytest

from coordinator.report.run_files import SUMMARY_FILE
from tests.support.runs import Fleet, calls, connections, wait_until
from tests.support.servers import Server
from tests.support.terminals import CTRL_C, Terminal

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
LONG = ("--duration", "60s")


def test_ctrl_c_in_a_terminal_drains_reports_and_restores_the_terminal(fleet: Fleet) -> None:
    start = ("start", "--embedded-server", "--local-agents", "2", "--processes", "1", *LONG)
    with Terminal(fleet.commands, "coordinator", *start) as terminal:
        terminal.wait_for_text("2s elapsed")
        terminal.wait_for_text("local-2")
        assert "ops/s" in terminal.screen  # the live table
        terminal.type(CTRL_C)
        assert terminal.wait() == 130
        assert terminal.settings == terminal.settings_before
        shown = terminal.screen
    assert shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)
    assert "draining" in shown
    assert "Totals" in shown
    assert "Traceback" not in shown
    [folder] = fleet.runs
    summary = json.loads((folder / SUMMARY_FILE).read_text())
    assert summary["run"]["outcome"] == "interrupted"
    assert summary["ledger"]["issued"] == summary["ledger"]["counted"] == summary["ledger"]["server_calls"] > 0
    assert summary["run"]["duration_s"] < 30


def test_a_terminated_run_is_exact_and_its_agents_wait_for_the_next_run(fleet: Fleet, valkey: Server) -> None:
    agent = fleet.agent("a")
    coordinator = fleet.coordinator("--expect-agents", "1", "--url", valkey.url, *LONG)
    fleet.until_loading()
    coordinator.signal(signal.SIGTERM)
    ended = fleet.end(coordinator, timeout=40)
    counted = calls(valkey.client())
    ledger = ended.summary["ledger"]
    assert (ended.code, ended.summary["run"]["outcome"]) == (130, "interrupted")
    assert ledger["issued"] == ledger["counted"] == sum(counted.get(name, 0) for name in ("set", "get", "del"))
    assert ended.summary["agents"][0]["state"] == "finished"
    assert not connections(valkey.client())
    agent.wait_for_text("waiting for the next")
    agent.signal(signal.SIGTERM)
    assert agent.wait().returncode == 0


@pytest.mark.parametrize(
    "load", [["--driver", "wire"], ["--driver", "asyncio", "--rate", "300/s"], ["--rate", "300/s"]]
)
def test_an_endless_run_is_completed_by_ctrl_c(fleet: Fleet, valkey: Server, load: list[str]) -> None:
    agent = fleet.agent("a", "--once")
    coordinator = fleet.coordinator("--expect-agents", "1", "--url", valkey.url, "--duration", "0", *load)
    coordinator.wait_for_text("the load runs until it is stopped")
    fleet.until_loading()
    coordinator.signal(signal.SIGINT)
    ended = fleet.end(coordinator, timeout=40)
    assert (ended.code, ended.summary["run"]["outcome"], ended.summary["run"]["reason"]) == (0, "completed", "")
    counted = calls(valkey.client())
    assert ended.summary["ledger"]["unaccounted"] == 0
    assert ended.summary["ledger"]["counted"] == sum(counted.get(name, 0) for name in ("set", "get", "del")) > 0
    assert agent.wait().returncode == 0


def test_a_second_ctrl_c_stops_the_load_at_once_and_agents_serve_the_next_run(fleet: Fleet, valkey: Server) -> None:
    agent = fleet.agent("a", processes=2)
    coordinator = fleet.coordinator(
        "--expect-agents", "1", "--local-agents", "1", "--processes", "1", "--url", valkey.url,
        "--socket-timeout", "30s", "--drain", "30s", *LONG,
    )  # fmt: skip
    fleet.until_loading()
    valkey.pause()
    coordinator.signal(signal.SIGINT)
    coordinator.wait_for_text("draining")
    coordinator.signal(signal.SIGINT)
    ended = fleet.end(coordinator, timeout=20)
    assert (ended.code, ended.summary["run"]["outcome"]) == (130, "interrupted")
    assert "stopped before the server replied" in ended.summary["ledger"]["note"]
    valkey.resume()
    wait_until(lambda: not connections(valkey.client()), "no connection at the server")

    follower = fleet.coordinator("--expect-agents", "1", "--url", valkey.url, "--requests", "100", "--wait", "8s")
    after = fleet.end(follower)
    assert (after.code, after.summary["totals"]["operations"]) == (0, 100), after.finished.stderr
    assert agent.process.poll() is None


def test_ctrl_c_during_prewarm_leaves_no_connection(fleet: Fleet, valkey: Server) -> None:
    agent = fleet.agent("a")
    coordinator = fleet.coordinator(
        "--expect-agents", "1", "--url", valkey.url, "--connections", "prewarm", "--max-connections", "3000", *LONG
    )
    wait_until(lambda: connections(valkey.client()) > 10, "open connections")
    coordinator.signal(signal.SIGINT)
    assert coordinator.wait().returncode == 130
    wait_until(lambda: not connections(valkey.client()), "no connection at the server")
    assert not fleet.runs
    agent.wait_for_text("waiting for the next")


def test_a_terminated_agent_drains_its_share_and_says_goodbye(fleet: Fleet, valkey: Server) -> None:
    stays, leaves = fleet.agent("stays", "--once"), fleet.agent("leaves")
    coordinator = fleet.coordinator("--expect-agents", "2", "--url", valkey.url, "--duration", "2s")
    fleet.until_loading()
    leaves.signal(signal.SIGTERM)
    assert leaves.wait().returncode == 0
    ended = fleet.end(coordinator)
    summary = ended.summary
    assert (ended.code, summary["run"]["outcome"]) == (5, "degraded")
    assert "agent leaves ended early: this agent was terminated" in summary["run"]["reason"]
    assert [agent["state"] for agent in summary["agents"]] == ["finished", "finished"]
    counted = calls(valkey.client())
    assert summary["ledger"]["counted"] == sum(counted.get(name, 0) for name in ("set", "get", "del"))
    assert summary["ledger"]["unaccounted"] == 0
    assert stays.wait().returncode == 0


def test_an_agent_that_is_terminated_twice_exits_at_once(fleet: Fleet, valkey: Server) -> None:
    agent = fleet.agent("a", processes=2)
    coordinator = fleet.coordinator(
        "--expect-agents", "1", "--url", valkey.url, "--socket-timeout", "30s", "--drain", "30s", *LONG
    )
    fleet.until_loading()
    valkey.pause()
    agent.signal(signal.SIGTERM)
    agent.wait_for_text("draining")
    agent.signal(signal.SIGTERM)
    assert agent.wait().returncode == 143
    valkey.resume()
    ended = fleet.end(coordinator, timeout=40)
    assert (ended.code, ended.summary["run"]["outcome"]) == (5, "degraded")


def test_ctrl_c_ends_an_agent_that_waits_for_a_coordinator(fleet: Fleet) -> None:
    agent = fleet.agent("a")
    agent.wait_for_text("joining")
    agent.signal(signal.SIGINT)
    assert agent.wait().returncode in (0, 130)
