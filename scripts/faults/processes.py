"""Processes of a soak fleet: our commands with their output in a file or terminal; helpers to find processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

CTRL_S, CTRL_Q = b"\x13", b"\x11"
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class FleetProcess:
    """A running command, in a session of its own. Its output goes to the file `log`. With a terminal, call `drain`
    regularly, or the terminal's buffer fills up."""

    def __init__(
        self, args: Sequence[str], log: Path, environment: Mapping[str, str], cwd: Path, *, terminal: bool = False
    ) -> None:
        self.log = log
        self._terminal: int | None = None
        self._file = log.open("wb")
        program = [str(Path(sys.executable).with_name(args[0])), *args[1:]]
        terminal_end: int | None = None
        if terminal:
            self._terminal, terminal_end = os.openpty()
            os.set_blocking(self._terminal, False)
        output = self._file if terminal_end is None else terminal_end
        self.process = subprocess.Popen(
            program,
            cwd=cwd,
            env=dict(environment) | ({"TERM": "xterm-256color"} if terminal else {}),
            stdin=subprocess.DEVNULL if terminal_end is None else terminal_end,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        if terminal_end is not None:
            os.close(terminal_end)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def code(self) -> int | None:
        """The exit code; None while the command runs."""
        return self.process.poll()

    @property
    def output(self) -> str:
        """All output so far."""
        return self.log.read_text(errors="replace")

    def drain(self) -> None:
        """Copy output from the terminal to the log."""
        while self._terminal is not None:
            try:
                data = os.read(self._terminal, 65536)
            except BlockingIOError:
                return
            except OSError:  # no process has the other end open any more
                return
            if not data:
                return
            self._file.write(data)
            self._file.flush()

    def pause_terminal(self, *, paused: bool) -> None:
        """Press Ctrl-S or Ctrl-Q; without a terminal, do nothing."""
        if self._terminal is not None:
            with contextlib.suppress(OSError):
                os.write(self._terminal, CTRL_S if paused else CTRL_Q)

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it still runs."""
        if self.code is None:
            self.process.send_signal(number)

    def close(self) -> None:
        """Kill the process and all its descendants. Idempotent."""
        descendants = descendants_of(self.pid) if self.code is None else []
        for descendant in descendants:
            with contextlib.suppress(psutil.NoSuchProcess):
                descendant.kill()
        if self.code is None:
            self.process.kill()
        self.process.wait()
        self.drain()
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None
        self._file.close()


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose parent has ended, so that it finds them. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants_of(pid: int) -> list[psutil.Process]:
    """Children of a process, their children, and so on; empty if the process has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def workers_of(pid: int) -> list[psutil.Process]:
    """Worker processes of an agent."""
    found = []
    for child in descendants_of(pid):
        with contextlib.suppress(psutil.Error):
            if child.ppid() != pid:  # the agent's child is the fork server, which forks the workers
                found.append(child)
    return found


def send_signal(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def ports_to(pids: Sequence[int], port: int) -> set[int]:
    """Local ports of all connections from these processes to `port`."""
    found: set[int] = set()
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            for connection in psutil.Process(pid).net_connections("tcp"):
                if connection.raddr and connection.raddr.port == port:
                    found.add(connection.laddr.port)
    return found


def local_agents_of(pid: int) -> list[int]:
    """Process ids of the local agents that a coordinator has started, ordered by their names."""
    found: dict[str, int] = {}
    for child in descendants_of(pid):
        with contextlib.suppress(psutil.Error):
            arguments = child.cmdline()
            # An agent's own child processes have the same command line, but another parent.
            if child.ppid() == pid and "agent.cli" in arguments and "--name" in arguments:
                found[arguments[arguments.index("--name") + 1]] = child.pid
    return [found[name] for name in sorted(found)]


def is_running(pid: int) -> bool:
    """Whether a process exists and is not a zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def memory_mib(pid: int) -> float:
    """Resident memory of a process; 0 if the process has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return float(psutil.Process(pid).memory_info().rss) / 2**20
    return 0.0


STOP, CONT, KILL = signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL
