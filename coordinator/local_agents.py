"""Agents that the coordinator starts on its own machine. They are ordinary `agent join` processes: they connect over
loopback, and get the token through their stdin."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from types import TracebackType
from typing import IO, Self

from common.clock import monotonic_ns
from common.machine import this_host
from common.units import NS_PER_S
from coordinator.core.actions import LocalAgentExited

_EXIT_WAIT_S = 15.0
_detached: list[subprocess.Popen[bytes]] = []
"""Agents that outlive the coordinator on purpose. Referenced here, because Python warns when it deletes the `Popen` of
a running process."""


class LocalAgents:
    """The local agents, from `start` to `close`. Each exits by itself after one run."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: dict[int, IO[bytes]] = {}

    def start(
        self,
        count: int,
        endpoint: str,
        *,
        processes: int | None,
        token: str | None,
        wait_s: float,
        secret_variables: Collection[str] = (),
    ) -> None:
        """Start `count` agents that join `endpoint`. processes: worker processes of each; None for one per usable core.
        token: the text of the token; None with --insecure. secret_variables: environment variables that agents do not
        inherit: they receive secrets only from the coordinator."""
        environment = {name: value for name, value in os.environ.items() if name not in secret_variables}
        command = [sys.executable, "-m", "agent.cli", "join", endpoint, "--once", "--wait", f"{wait_s:g}s"]
        command += ["--insecure"] if token is None else ["--token-file", "-"]
        command += [] if processes is None else ["--processes", str(processes)]
        for number in range(1, count + 1):
            log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed when the agent has ended
            # In a new session, so that Ctrl-C in the terminal reaches only the coordinator, which drains its agents.
            process = subprocess.Popen(
                [*command, "--name", f"local-{number}"],
                stdin=subprocess.DEVNULL if token is None else subprocess.PIPE,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._processes.append(process)
            self._logs[process.pid] = log
            if process.stdin is not None and token is not None:
                with suppress(OSError), process.stdin as stdin:  # `exited` reports an agent that has already ended
                    stdin.write(token.encode())

    @property
    def pids(self) -> frozenset[int]:
        """Process ids of the agents that run."""
        return frozenset(process.pid for process in self._processes)

    def exited(self) -> Iterator[LocalAgentExited]:
        """Yield the agents that have ended since the last call, and kill their remaining worker processes: a stopped
        worker process (SIGSTOP) does not notice the end of its agent, and could continue its load later."""
        for process in list(self._processes):
            code = process.poll()
            if code is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                self._processes.remove(process)
                yield LocalAgentExited(process.pid, this_host(), code, self._last_line(process.pid))

    def _last_line(self, pid: int) -> str:
        log = self._logs.pop(pid)
        with log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("agent: ") if lines else ""

    def close(self) -> None:
        """Wait until the agents exit, as they do after a run; kill the others. Idempotent."""
        kill_at_ns = monotonic_ns() + int(_EXIT_WAIT_S * NS_PER_S)
        try:
            for process in self._processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0, kill_at_ns - monotonic_ns()) / NS_PER_S)
        finally:  # also if the user interrupts the wait
            for process in self._processes:
                if process.poll() is None:
                    _kill_session(process)
            self._processes.clear()
            for log in self._logs.values():
                log.close()
            self._logs.clear()

    def detach(self) -> None:
        """Leave all agents running: they keep their results for a coordinator that resumes the run, and exit by
        themselves if none comes."""
        _detached.extend(self._processes)
        self._processes.clear()

    def terminate(self) -> None:
        """Ask all agents to exit now, because no run needs them any more."""
        for process in self._processes:
            process.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.terminate()
        self.close()


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill an agent and its worker processes, which are in the same session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
