"""Coordinators and agents as processes, and the files of their runs."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import redis

from common.clock import monotonic_ns
from common.protocol.token import coordinator_curve, default_token_path
from common.units import NS_PER_S
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.journal.journal_file import read_journal
from coordinator.report.run_files import JOURNAL_FILE, SUMMARY_FILE
from tests.support.commands import PATIENCE_S, CommandLine, Finished, Running

HOST = "127.0.0.1"
_POLL_S = 0.02
T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, timeout_s: float = PATIENCE_S, *said: Running) -> T:
    """Wait for a true value and return it. Raises AssertionError with the output of `said` after the timeout."""
    give_up_ns = monotonic_ns() + int(timeout_s * NS_PER_S)
    never = threading.Event()
    while not (value := condition()):
        if monotonic_ns() > give_up_ns:
            story = [f"\n--- {one.args}\n{one.stdout}{one.stderr}" for one in said]
            raise AssertionError(f"not within {timeout_s:g}s: {what}{''.join(story)}")
        never.wait(_POLL_S)
    return value


@dataclass(frozen=True, slots=True)
class Outcome:
    """A coordinator that has ended, and its run folder."""

    finished: Finished
    folder: Path

    @property
    def code(self) -> int:
        """The exit code."""
        return self.finished.returncode

    @property
    def summary(self) -> Any:
        """summary.json."""
        return json.loads((self.folder / SUMMARY_FILE).read_text())

    @property
    def journal(self) -> Aggregate:
        """The folded journal."""
        return fold(read_journal(self.folder / JOURNAL_FILE))


RUN_FILES = {"journal", "plan.yaml", "summary.json", "timeseries.csv", "servers.csv"}
"""What a run leaves in its folder."""
RUN_FOLDER = "run folder: "
"""The beginning of the second last line of a coordinator."""


class Fleet:
    """Starts coordinators at one address, and agents that join there. `commands` ends them."""

    def __init__(self, commands: CommandLine) -> None:
        self.commands = commands
        self.port = free_port()
        # The token exists, as on a machine where a coordinator ran before, so an agent may start first.
        coordinator_curve(self.token)

    @property
    def token(self) -> Path:
        """The default token file."""
        return default_token_path(self.commands.environment)

    @property
    def endpoint(self) -> str:
        """Where agents join."""
        return f"tcp://{HOST}:{self.port}"

    @property
    def runs(self) -> list[Path]:
        """Folders of all runs so far, the oldest first."""
        folders = (self.commands.directory / "runs").glob("*")
        return sorted(folders, key=lambda folder: folder.stat().st_ctime_ns)

    def coordinator(self, *args: str, **environment: str) -> Running:
        """`coordinator start` at this fleet's address."""
        return self.commands.start("coordinator", "start", "--bind", self.endpoint, *args, **environment)

    def agent(self, name: str, *args: str, processes: int = 1) -> Running:
        """`agent join` at this fleet's address."""
        return self.commands.start("agent", "join", self.endpoint, "--name", name, "--processes", str(processes), *args)

    def end(self, coordinator: Running, timeout: float = PATIENCE_S) -> Outcome:
        """Wait for the end of a coordinator."""
        finished = coordinator.wait(timeout)
        # From its own output: the run of another coordinator may have ended since.
        said = [line for line in finished.stderr.splitlines() if line.startswith(RUN_FOLDER)]
        assert len(said) == 1, f"no run folder: {finished}"
        return Outcome(finished, self.commands.directory / said[0].removeprefix(RUN_FOLDER))

    def run(self, *args: str, timeout: float = PATIENCE_S) -> Outcome:
        """Make a whole run with local agents at any free port."""
        return self.end(self.commands.start("coordinator", "start", *args), timeout)

    def journal(self) -> Aggregate:
        """The journal of the last run so far; empty if there is none."""
        for folder in self.runs[-1:]:
            if (folder / JOURNAL_FILE).exists():
                return fold(read_journal(folder / JOURNAL_FILE))
        return Aggregate()

    def until_loading(self, seconds: int = 1) -> None:
        """Wait until the coordinator has accepted this many seconds of the run from every agent."""
        wait_until(
            lambda: self.journal().complete_through >= seconds - 1 and self.journal().seconds,
            "load",
            PATIENCE_S,
            *self.commands.started,
        )


def free_port() -> int:
    """A free port below the range for outgoing connections, which could take the port before the coordinator does."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind((HOST, port))
            return port


def local_agent(coordinator: Running, name: str) -> psutil.Process:
    """A local agent of the coordinator."""
    children = psutil.Process(coordinator.process.pid).children()
    return next(child for child in children if child.cmdline()[-2:] == ["--name", name])


def worker_processes(agent: psutil.Process) -> list[psutil.Process]:
    """The processes of an agent that carry load: those that its fork server has forked."""
    found = []
    for child in agent.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it may just be ending
            if child.ppid() != agent.pid:
                found.append(child)
    return found


def calls(client: redis.Redis) -> dict[str, int]:
    """Calls that the server counted, by command."""
    stats: Any = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()}


def connections(client: redis.Redis, name: str = "stampede") -> int:
    """The number of open connections with this client name."""
    listed: Any = client.client_list()
    return sum(row["name"] == name for row in listed)


def tracebacks(directory: Path) -> Iterator[Path]:
    """Output files of our commands that contain a traceback."""
    for path in sorted((directory / ".said").iterdir()):
        if "Traceback" in path.read_text(errors="replace"):
            yield path
