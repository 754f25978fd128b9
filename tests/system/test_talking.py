"""Paused terminals, closed terminals and full pipes do not block a run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from coordinator.report.run_files import SUMMARY_FILE
from tests.support.commands import CommandLine
from tests.support.runs import PATIENCE_S, RUN_FOLDER, Fleet, wait_until
from tests.support.servers import Server
from tests.support.terminals import CTRL_Q, CTRL_S, Terminal

PROGRAMS = Path(sys.executable).parent


def exact_summary(fleet: Fleet) -> Any:
    [folder] = fleet.runs
    summary = json.loads((folder / SUMMARY_FILE).read_text())
    ledger = summary["ledger"]
    assert ledger["issued"] == ledger["counted"] == ledger["server_calls"] > 0
    return summary


@pytest.fixture
def unread(commands: CommandLine) -> Iterator[Path]:
    """The path of a named pipe that is full and has no reader."""
    path = commands.directory / "unread"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    with suppress(BlockingIOError):
        while True:
            os.write(fd, b"." * 4096)
    yield path
    os.close(fd)


def test_terminals_that_are_paused_for_longer_than_the_lease_do_not_delay_the_run(fleet: Fleet, valkey: Server) -> None:
    start = ("start", "--bind", fleet.endpoint, "--expect-agents", "1", "--url", valkey.url, "--lease", "2s")
    join = ("join", fleet.endpoint, "--processes", "1", "--once")
    with (
        Terminal(fleet.commands, "coordinator", *start, "--duration", "3s") as coordinator,
        Terminal(fleet.commands, "agent", *join) as agent,
    ):
        agent.wait_for_text("running")
        for terminal in (coordinator, agent):
            terminal.type(CTRL_S)
        wait_until(lambda: fleet.journal().closed, "the run ends")
        assert agent.process.wait(PATIENCE_S) == 0
        # The agent drops its lines. The coordinator waits to print the report.
        assert coordinator.process.poll() is None
        assert "Totals" not in coordinator.screen
        coordinator.type(CTRL_Q)
        assert coordinator.wait() == 0
        assert coordinator.screen.index("Totals") < coordinator.screen.index(RUN_FOLDER)
    assert exact_summary(fleet)["run"]["outcome"] == "completed"


def test_a_closed_terminal_drains_an_agent_and_ends_a_run_with_its_report(fleet: Fleet, valkey: Server) -> None:
    start = ("start", "--bind", fleet.endpoint, "--expect-agents", "1", "--url", valkey.url, "--duration", "60s")
    join = ("join", fleet.endpoint, "--processes", "1")
    with (
        Terminal(fleet.commands, "coordinator", *start) as coordinator,
        Terminal(fleet.commands, "agent", *join) as agent,
    ):
        fleet.until_loading()
        coordinator.hang_up()
        assert coordinator.process.wait(PATIENCE_S) == 130
        agent.wait_for_text("waiting for the next")
        agent.hang_up()
        assert agent.process.wait(PATIENCE_S) == 0
    assert exact_summary(fleet)["run"]["outcome"] == "interrupted"


def test_agents_serve_a_run_although_their_stderr_is_blocked(fleet: Fleet, valkey: Server, unread: Path) -> None:
    streams = ("2>&1 | head -1", f"2>{unread}")
    join = f"{PROGRAMS}/agent join {fleet.endpoint} --processes 1 --once"
    agents = [fleet.commands.start_shell(f"{join} {stream}; exit ${{PIPESTATUS[0]}}") for stream in streams]
    start = f"{PROGRAMS}/coordinator start --bind {fleet.endpoint} --url {valkey.url} --expect-agents {len(agents)}"
    coordinator = fleet.commands.start_shell(f"{start} --requests 400 2>{unread}")
    finished = coordinator.wait(60)
    assert finished.returncode == 0
    assert "Totals" in finished.stdout
    assert [agent.wait().returncode for agent in agents] == [0] * len(agents)
    assert exact_summary(fleet)["totals"]["operations"] == 400
