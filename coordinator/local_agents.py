"""Agents that the coordinator starts on its own host. They are `agent join` processes like any other: they get the
token through their stdin, and share nothing else with the coordinator but the loopback interface."""

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

_LEAVE_S = 15.0
_let_go: list[subprocess.Popen[bytes]] = []
"""Agents that outlive us on purpose: Python warns of a running process that nobody refers to."""


class LocalAgents:
    """Our agent processes, from `start` to `close`. Each exits by itself after one run."""

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
        withheld: Collection[str] = (),
    ) -> None:
        """Start `count` agents that join `endpoint`. token: its text, None with --insecure. withheld: environment
        variables with secrets, which agents do not inherit: they receive secrets over their link only."""
        environment = {name: value for name, value in os.environ.items() if name not in withheld}
        command = [sys.executable, "-m", "agent.cli", "join", endpoint, "--once", "--wait", f"{wait_s:g}s"]
        command += ["--insecure"] if token is None else ["--token-file", "-"]
        command += [] if processes is None else ["--processes", str(processes)]
        for number in range(1, count + 1):
            log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # closed when its agent has ended
            # A session of its own: a Ctrl-C in the terminal is for the coordinator, which then drains its agents.
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
                with suppress(OSError), process.stdin as stdin:  # if it has died, `exited` reports it
                    stdin.write(token.encode())

    @property
    def pids(self) -> frozenset[int]:
        """Of all that run."""
        return frozenset(process.pid for process in self._processes)

    def exited(self) -> Iterator[LocalAgentExited]:
        """Those that have ended since the last call. Worker processes that are left are killed: one that is stopped
        does not notice that its agent is gone, and might go on with its load at any time."""
        for process in list(self._processes):
            code = process.poll()
            if code is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                self._processes.remove(process)
                yield LocalAgentExited(process.pid, this_host(), code, self._last_words(process.pid))

    def _last_words(self, pid: int) -> str:
        log = self._logs.pop(pid)
        with log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
            lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("agent: ") if lines else ""

    def close(self) -> None:
        """Wait for them to leave, as they do after a run; end those that do not. Idempotent."""
        give_up_ns = monotonic_ns() + int(_LEAVE_S * NS_PER_S)
        try:
            for process in self._processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0, give_up_ns - monotonic_ns()) / NS_PER_S)
        finally:  # also when somebody has lost patience and interrupts the wait
            for process in self._processes:
                if process.poll() is None:
                    _kill_session(process)
            self._processes.clear()
            for log in self._logs.values():
                log.close()
            self._logs.clear()

    def let_go(self) -> None:
        """End none of them: they keep their results for the coordinator that resumes the run, or leave by themselves
        when none comes."""
        _let_go.extend(self._processes)
        self._processes.clear()

    def hurry(self) -> None:
        """Ask them to leave now: no run needs them any more."""
        for process in self._processes:
            process.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hurry()
        self.close()


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """The agent and its worker processes, which share its session."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
