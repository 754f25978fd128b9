"""`coordinator start --compare-drivers`: one plan with both drivers in turn."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from coordinator.report.run_files import COMPARISON_FILE, SUMMARY_FILE
from tests.support.runs import Fleet, calls, connections, wait_until
from tests.support.servers import Server

COMPARE = ("--compare-drivers", "--rounds", "2", "--processes", "1")
NAMES = ["1-client", "2-wire", "3-wire", "4-client"]


def read_comparison(fleet: Fleet) -> tuple[Path, Any]:
    [folder] = fleet.runs
    return folder, json.loads((folder / COMPARISON_FILE).read_text())


def summaries(folder: Path) -> list[Any]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"*/{SUMMARY_FILE}"))]


def test_a_plan_runs_with_both_drivers_in_turn_and_the_differences_are_reported(fleet: Fleet, valkey: Server) -> None:
    agent = fleet.agent("stays")
    finished = fleet.coordinator(
        *COMPARE, "--expect-agents", "1", "--url", valkey.url, "--rate", "400/s", "--requests", "200",
        "--threads-per-pool", "4", "--client-instances-per-pool", "2", "--json",
    ).wait(60)  # fmt: skip
    assert finished.returncode == 0, finished
    folder, comparison = read_comparison(fleet)
    assert json.loads(finished.stdout) == comparison
    assert (comparison["outcome"], comparison["rounds"], comparison["load"]["latency"]) == ("completed", 2, "response")
    assert [run["id"] for run in comparison["runs"]] == [f"{folder.name}/{name}" for name in NAMES]
    assert sorted(path.name for path in folder.iterdir()) == [*NAMES, COMPARISON_FILE]

    ran = summaries(folder)
    assert [one["plan"]["pools"][0]["driver"] for one in ran] == ["client", "wire", "wire", "client"]
    assert [{agent["id"] for agent in one["agents"]} for one in ran] == [{"stays"}] * 4
    # The pool has at most two operations under way. Each run has a ledger of its own.
    assert [one["connections"]["ceiling"] for one in ran] == [100, 2, 2, 100]
    assert all(one["ledger"]["unaccounted"] == 0 for one in ran)
    issued = sum(one["ledger"]["issued"] for one in ran)
    counted = calls(valkey.client())
    assert issued == sum(counted.get(name, 0) for name in ("set", "get", "del")) == 4 * 200

    cpu_us = [one["generator"]["cpu_us_per_operation"] for one in ran]
    assert [run["cpu_us_per_operation"] for run in comparison["runs"]] == cpu_us
    assert comparison["totals"]["cpu_us_per_operation"]["client"]["high"] == max(cpu_us[0], cpu_us[3]) > 0
    for side in (comparison["totals"], *comparison["commands"].values()):
        for pair in side["latency_us"].values():
            for of in ("client", "wire", "difference"):
                assert pair[of]["low"] <= pair[of]["median"] <= pair[of]["high"]
    p99 = [one["totals"]["latency_us"]["response"]["p99"] for one in ran]
    p99_of_drivers = comparison["totals"]["latency_us"]["p99"]
    assert p99_of_drivers["client"]["low"] == min(p99[0], p99[3])
    assert p99_of_drivers["wire"]["high"] == max(p99[1:3])
    assert p99_of_drivers["difference"]["low"] == min(p99[0] - p99[1], p99[3] - p99[2])

    again = fleet.commands.coordinator("report", f"{folder.name}/2-wire", "--format", "json")
    assert json.loads(again.stdout) == ran[1]
    assert agent.process.poll() is None


def test_ctrl_c_drains_the_current_run_writes_its_report_and_starts_no_other(fleet: Fleet, valkey: Server) -> None:
    coordinator = fleet.commands.start("coordinator", "start", *COMPARE, "--url", valkey.url, "--duration", "60s")
    coordinator.wait_for_text("second 0:")
    coordinator.signal(signal.SIGINT)
    finished = coordinator.wait()
    assert finished.returncode == 130, finished
    folder, comparison = read_comparison(fleet)
    assert (comparison["outcome"], comparison["reason"]) == ("interrupted", "1-client was interrupted")
    assert [path.name for path in sorted(folder.iterdir())] == ["1-client", COMPARISON_FILE]
    [one] = summaries(folder)
    assert (one["run"]["outcome"], one["ledger"]["unaccounted"]) == ("interrupted", 0)
    assert "interrupted: 0 of 2 rounds complete" in finished.stdout
    wait_until(lambda: not connections(valkey.client()), "no connection is left at the server")
