"""A run whose output is closed, full or read only in part."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests.support.commands import Running
from tests.support.runs import RUN_FILES, Fleet
from tests.support.servers import Server

PROGRAMS = Path(sys.executable).parent


def shell(fleet: Fleet, command: str, redirection: str) -> Running:
    """Run `coordinator ...` or `agent ...` in a shell, which exits with the program's code."""
    return fleet.commands.start_shell(f"{PROGRAMS}/{command} {redirection}; exit ${{PIPESTATUS[0]}}")


def a_run(valkey: Server, folder: str, *more: str) -> str:
    words = ("start", "--url", valkey.url, "--local-agents", "1", "--processes", "1", "--out", folder, *more)
    return shlex.join(("coordinator", *words))


def test_a_run_keeps_its_exit_code_and_writes_its_files_although_its_output_is_broken(
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
        assert {path.name for path in folder.iterdir()} == RUN_FILES
    lost = "coordinator: cannot write the summary to stdout: "
    assert f"{lost}it is closed; it is in the run's folder" in finished["closed"].stderr
    assert f"{lost}No space left on device; it is in the run's folder" in finished["full"].stderr
    assert len(finished["head"].stdout.splitlines()) == 1
    assert lost not in finished["head"].stderr
    assert finished["all-closed"].stderr == ""
