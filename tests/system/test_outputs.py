"""The outputs of a run: the same numbers in every file and format."""

from __future__ import annotations

import csv
import json
import re
from datetime import UTC, datetime, timedelta

from tests.support.runs import RUN_FILES, Fleet
from tests.support.servers import Server
from tests.support.terminals import Terminal


def test_json_prints_the_summary_on_stdout_and_everything_else_on_stderr(fleet: Fleet, valkey: Server) -> None:
    ended = fleet.run(
        "--local-agents", "2", "--processes", "2", "--url", valkey.url, "--rate", "600/s", "--duration", "2s", "--json"
    )
    assert ended.code == 0
    summary = json.loads(ended.finished.stdout)
    assert summary == ended.summary
    assert (summary["format"], summary["run"]["id"]) == (1, ended.folder.name)
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", summary["run"]["started_at"])
    began, started, end = (
        datetime.fromisoformat(summary["run"][key]) for key in ("started_at", "load_started_at", "load_ended_at")
    )
    assert began <= started < end <= datetime.now(UTC)
    assert end - started == timedelta(seconds=round(summary["run"]["duration_s"], 6))
    assert {agent["state"] for agent in summary["agents"]} == {"finished"}
    # stderr has a line per second, and the table.
    said = ended.finished.stderr
    assert [f"second {second}:" in said for second in (0, 1)] == [True, True]
    assert "\x1b" not in said
    assert "Totals" in said
    assert f"run folder: runs/{ended.folder.name}" in said

    assert {path.name for path in ended.folder.iterdir()} == RUN_FILES
    rows = list(csv.DictReader((ended.folder / "timeseries.csv").read_text().splitlines()))
    for column in ("operations", "ok", "errors"):
        assert sum(int(row[column]) for row in rows) == summary["totals"][column]
    assert [int(row["second"]) for row in rows] == list(range(len(rows)))
    assert rows[0]["time_utc"] == summary["run"]["load_started_at"]
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

    # The plan in the run folder can be run again.
    kept = ended.folder / "plan.yaml"
    again = fleet.commands.coordinator("plan", str(kept), "--json")
    assert json.loads(again.stdout)["plan"] == summary["plan"]


def test_a_terminal_shows_the_progress_of_prewarm_and_redraws_the_table_in_place(fleet: Fleet, valkey: Server) -> None:
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
