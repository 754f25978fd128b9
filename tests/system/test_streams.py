"""Streams that are closed, full or read in part, and folders that vanish: the report reaches what can be reached."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from tests.support.commands import Running
from tests.support.runs import RUN_FOLDER, Fleet
from tests.support.servers import Server

PROGRAMS = Path(sys.executable).parent


def shell(fleet: Fleet, command: str, redirection: str) -> Running:
    """`coordinator ...` or `agent ...` as a shell runs it; exits with the program's code, whatever reads its output."""
    return fleet.commands.start_shell(f"{PROGRAMS}/{command} {redirection}; exit ${{PIPESTATUS[0]}}")


def a_run(valkey: Server, folder: str, *more: str) -> str:
    words = ("start", "--url", valkey.url, "--local-agents", "1", "--processes", "1", "--out", folder, *more)
    return shlex.join(("coordinator", *words))


def test_a_run_keeps_its_exit_code_whatever_happens_to_its_streams_and_leaves_its_files(
    fleet: Fleet, valkey: Server
) -> None:
    few = ("--requests", "50")
    runs = {
        "closed": shell(fleet, a_run(valkey, "closed", "-q", *few), ">&-"),
        "all-closed": shell(fleet, a_run(valkey, "all-closed", *few), "<&- >&- 2>&-"),
        "head": shell(fleet, a_run(valkey, "head", "-q", *few), "| head -1"),
        "full": shell(fleet, a_run(valkey, "full", "-q", "--json", *few), ">/dev/full"),
    }
    finished = {name: running.wait(60) for name, running in runs.items()}
    assert {name: one.returncode for name, one in finished.items()} == dict.fromkeys(runs, 0), finished
    for name in runs:
        [folder] = (fleet.commands.directory / name).iterdir()
        assert {path.name for path in folder.iterdir()} == {"journal", "plan.yaml", "summary.json", "timeseries.csv"}
    lost = "coordinator: cannot write the summary to stdout: "
    assert f"{lost}it is closed; it is in the run's folder" in finished["closed"].stderr
    assert f"{lost}No space left on device; it is in the run's folder" in finished["full"].stderr
    assert len(finished["head"].stdout.splitlines()) == 1
    assert lost not in finished["head"].stderr
    assert finished["all-closed"].stderr == ""


def test_a_folder_that_is_deleted_during_a_run_costs_the_files_and_not_the_report(fleet: Fleet, valkey: Server) -> None:
    running = fleet.commands.start("coordinator", *shlex.split(a_run(valkey, "runs", "--duration", "3s"))[1:])
    fleet.until_loading()
    shutil.rmtree(fleet.commands.directory / "runs")
    finished = running.wait(60)
    assert finished.returncode == 2
    assert "Totals" in finished.stdout
    assert ": the run's folder was deleted or moved during the run: summary.json, " in finished.stderr.splitlines()[-1]
    assert RUN_FOLDER not in finished.stderr
    assert not (fleet.commands.directory / "runs").exists()


COMMANDS = ("coordinator profiles", "agent join --help")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_commands_that_only_print_say_when_nobody_can_read_it(fleet: Fleet) -> None:
    closed = [shell(fleet, command, ">&-") for command in COMMANDS]
    full = [shell(fleet, command, ">/dev/full") for command in COMMANDS]
    read = [shell(fleet, command, "| head -1") for command in COMMANDS]
    for one, what in [*((one, "it is closed") for one in closed), *((one, "No space left on device") for one in full)]:
        finished = one.wait(30)
        assert finished.returncode == 2
        [line] = finished.stderr.splitlines()
        assert line.endswith(f": cannot write to stdout: {what}")
    assert [(one.wait(30).returncode, one.stderr) for one in read] == [(0, "")] * len(COMMANDS)


GONE = "the working directory was deleted: change to one that exists (cd)"


def test_a_working_directory_that_was_deleted_is_one_line_or_none_where_nothing_in_it_is_needed(
    fleet: Fleet, valkey: Server
) -> None:
    def in_deleted(command: str) -> Running:
        return fleet.commands.start_shell(f"cd $(mktemp -dp .) && rmdir $PWD && {PROGRAMS}/{command}")

    lines = {
        "coordinator start --url redis://h --requests 5": 2,
        "coordinator plan plan.yaml": 3,
        "coordinator report latest": 2,
        "agent join tcp://127.0.0.1:1 --token-file token": 2,
    }
    started = [in_deleted(command) for command in lines]
    for running, code in zip(started, lines.values(), strict=True):
        finished = running.wait(30)
        assert finished.returncode == code, finished
        [line] = finished.stderr.splitlines()
        assert line.endswith(GONE)
    absolute = fleet.commands.directory / "elsewhere"
    ended = in_deleted(a_run(valkey, str(absolute), "--requests", "20")).wait(60)
    assert ended.returncode == 0, ended
    assert "Totals" in ended.stdout
