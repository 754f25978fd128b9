"""What a run shows and leaves: every key that other programs read, and the same numbers wherever they stand."""

from __future__ import annotations

import csv
import json
import re
from typing import Any

from tests.support.runs import Fleet
from tests.support.servers import Server
from tests.support.terminals import Terminal

QUANTILES = {
    "count": int, "min": float, "mean": float, "p50": float, "p90": float, "p95": float, "p99": float,
    "p99.9": float, "p99.99": float, "max": float,
}  # fmt: skip
STATS = {
    "operations": int, "ok": int, "errors": int, "ops_per_s": float, "bytes_out": int, "bytes_in": int,
    "latency_us": {"service": QUANTILES, "response": QUANTILES},
}  # fmt: skip
SUMMARY = {
    "format": int,
    "run": {"id": str, "started_at": str, "duration_s": float, "outcome": str, "plan_hash": str},
    "target": {"url": str, "topology": str, "server": str},
    "plan": {"target": dict, "pools": list, "workload": dict, "load": dict, "fleet": dict},
    "agents": [
        {
            "id": str, "host": str, "processes": int, "state": str, "clock_offset_us": float, "start_skew_us": float,
            "cpu_percent_max": float,
        }
    ],
    "totals": STATS,
    "commands": {"SET": STATS, "GET": STATS, "DEL": STATS},
    "pools": {"main": STATS},
    "checkout_wait_us": QUANTILES,
    "connections": {
        "ceiling": int, "peak_open": int, "opened": int, "failed_attempts": int, "drops": dict, "reconnects": int,
        "reconnect_ms": QUANTILES,
    },
    "errors": dict,
    "ledger": {"issued": int, "counted": int, "server_calls": int, "unaccounted": int},
    "verdict": {"level": str, "reasons": list},
}  # fmt: skip


def misshapen(found: Any, wanted: Any, path: str = "$") -> list[str]:
    """Where `found` lacks a key, or has another type, than `wanted` says."""
    match wanted:
        case dict():
            return [
                line
                for key, inner in wanted.items()
                for line in (misshapen(found[key], inner, f"{path}.{key}") if key in found else [f"{path}.{key}"])
            ]
        case [inner]:
            return [line for item in found for line in misshapen(item, inner, f"{path}[]")]
    if wanted is float and type(found) is int:
        return []
    return [] if type(found) is wanted else [f"{path}: {found!r}"]


def test_json_on_stdout_is_the_summary_and_everything_else_goes_to_stderr(fleet: Fleet, valkey: Server) -> None:
    ended = fleet.run(
        "--local-agents", "2", "--processes", "2", "--url", valkey.url, "--rate", "600/s", "--duration", "2s", "--json"
    )
    assert ended.code == 0
    summary = json.loads(ended.finished.stdout)
    assert summary == ended.summary
    assert misshapen(summary, SUMMARY) == []
    assert misshapen({**summary, "format": "1"}, SUMMARY) == ["$.format: '1'"]
    assert (summary["format"], summary["run"]["id"]) == (1, ended.folder.name)
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", summary["run"]["started_at"])
    assert {agent["state"] for agent in summary["agents"]} == {"finished"}
    # People get theirs beside it: a line for each second, and the table.
    said = ended.finished.stderr
    assert [f"second {second}:" in said for second in (0, 1)] == [True, True]
    assert "\x1b" not in said
    assert "Totals" in said
    assert f"run folder: runs/{ended.folder.name}" in said

    assert {path.name for path in ended.folder.iterdir()} == {"journal", "plan.yaml", "summary.json", "timeseries.csv"}
    rows = list(csv.DictReader((ended.folder / "timeseries.csv").read_text().splitlines()))
    for column in ("operations", "ok", "errors"):
        assert sum(int(row[column]) for row in rows) == summary["totals"][column]
    assert [int(row["second"]) for row in rows] == list(range(len(rows)))
    by_command, by_pool = summary["commands"].values(), summary["pools"].values()
    for stats in (by_command, by_pool):
        for key in ("operations", "ok", "errors", "bytes_out", "bytes_in"):
            assert sum(one[key] for one in stats) == summary["totals"][key]

    reports = {form: fleet.commands.start("coordinator", "report", "latest", "--format", form)
               for form in ("json", "csv", "text")}  # fmt: skip
    said_of = {form: running.wait().stdout for form, running in reports.items()}
    assert json.loads(said_of["json"]) == summary
    assert said_of["csv"].rstrip("\n") == (ended.folder / "timeseries.csv").read_text().rstrip("\n")
    assert "Totals" in said_of["text"]

    # The plan that was kept is a plan: it can be run again.
    kept = ended.folder / "plan.yaml"
    again = fleet.commands.coordinator("plan", str(kept), "--json")
    assert json.loads(again.stdout)["plan"] == summary["plan"]


def test_without_a_terminal_the_summary_is_on_stdout_and_progress_on_stderr(fleet: Fleet, valkey: Server) -> None:
    ended = fleet.run(
        "--local-agents", "1", "--processes", "1", "--url", valkey.url, "--requests", "200", "--hide-histogram",
        "--quiet",
    )  # fmt: skip
    assert "Totals" in ended.finished.stdout
    assert "\x1b" not in ended.finished.stdout + ended.finished.stderr
    assert "second 0:" not in ended.finished.stderr


def test_json_in_quiet_has_nothing_on_stderr(fleet: Fleet, valkey: Server) -> None:
    args = (
        "start",
        "--local-agents",
        "1",
        "--processes",
        "1",
        "--url",
        valkey.url,
        "--requests",
        "200",
        "--json",
        "-q",
    )
    finished = fleet.commands.start("coordinator", *args).wait(60)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert json.loads(finished.stdout)["totals"]["operations"] == 200


def test_on_a_terminal_prewarming_shows_its_progress_and_the_table_is_drawn_over_itself(
    fleet: Fleet, valkey: Server
) -> None:
    start = ("start", "--url", valkey.url, "--local-agents", "1", "--processes", "1", "--duration", "2s",
             "--connections", "prewarm", "--max-connections", "200")  # fmt: skip
    with Terminal(fleet.commands, "coordinator", *start) as terminal:
        assert terminal.wait(30) == 0
        shown = terminal.screen
        assert terminal.settings == terminal.settings_before
    assert "opening connections" in shown
    assert "200/200" in shown
    assert "200 of 200 connections open" in shown
    assert re.search(r"\x1b\[\d*A", shown), "the cursor goes up to draw over the last table"
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "Totals" in shown
