"""Null servers as child processes, with their counters."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from common.plan.schema import Target
from scripts.benchmark.contenders import BenchError, pinned


@dataclass(frozen=True, slots=True)
class NullServer:
    """A running null server and its counters (a `ServerCounters`)."""

    port: int
    pid: int
    stdin: IO[str]
    stdout: IO[str]

    @property
    def target(self) -> Target:
        """The null server, as the target of a plan."""
        return Target(url=f"redis://127.0.0.1:{self.port}")

    def served(self) -> int:
        return self._ask()[0]

    def connections(self) -> int:
        return self._ask()[1]

    def pids(self) -> Sequence[int]:
        return (self.pid,)

    def _ask(self) -> tuple[int, int]:
        self.stdin.write("\n")
        self.stdin.flush()
        served, _, connections = self.stdout.readline().partition(" ")
        if not connections:
            raise BenchError("bench: the null server ended early")
        return int(served), int(connections)


@dataclass(frozen=True, slots=True)
class SummedCounters:
    """The counters of several null servers, added up."""

    null_servers: Sequence[NullServer]

    def served(self) -> int:
        return sum(null_server.served() for null_server in self.null_servers)

    def connections(self) -> int:
        return sum(null_server.connections() for null_server in self.null_servers)

    def pids(self) -> Sequence[int]:
        return [pid for null_server in self.null_servers for pid in null_server.pids()]


@contextmanager
def open_null_server(core: int | None) -> Iterator[NullServer]:
    """Start a null server on this core; None does not pin the server. Raises BenchError."""
    command = [sys.executable, "-m", "scripts.benchmark.null_server_program"]
    with pinned(core):
        # Own session: Ctrl-C must not reach the process, which ends with its stdin.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = process.stdout.readline()
            if not port:
                raise BenchError("bench: the null server did not start")
            yield NullServer(int(port), process.pid, process.stdin, process.stdout)
        finally:
            process.kill()
