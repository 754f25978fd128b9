"""Our commands as processes, on a file or on a terminal that can be paused."""

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
    """A command under way, in a session of its own. What it says goes to `log`, by a terminal if it is to have one:
    then `drain` must be called now and then."""

    def __init__(
        self, args: Sequence[str], log: Path, environment: Mapping[str, str], cwd: Path, *, terminal: bool = False
    ) -> None:
        self.log = log
        self._terminal: int | None = None
        self._file = log.open("wb")
        program = [str(Path(sys.executable).with_name(args[0])), *args[1:]]
        theirs: int | None = None
        if terminal:
            self._terminal, theirs = os.openpty()
            os.set_blocking(self._terminal, False)
        output = self._file if theirs is None else theirs
        self.process = subprocess.Popen(
            program,
            cwd=cwd,
            env=dict(environment) | ({"TERM": "xterm-256color"} if terminal else {}),
            stdin=subprocess.DEVNULL if theirs is None else theirs,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        if theirs is not None:
            os.close(theirs)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.poll()

    @property
    def said(self) -> str:
        """All of it so far."""
        return self.log.read_text(errors="replace")

    def drain(self) -> None:
        """Take what is on the terminal."""
        while self._terminal is not None:
            try:
                data = os.read(self._terminal, 65536)
            except BlockingIOError:
                return
            except OSError:  # nobody has the other side open any more
                return
            if not data:
                return
            self._file.write(data)
            self._file.flush()

    def pause_terminal(self, *, paused: bool) -> None:
        """Ctrl-S, and Ctrl-Q."""
        if self._terminal is not None:
            with contextlib.suppress(OSError):
                os.write(self._terminal, CTRL_S if paused else CTRL_Q)

    def signal(self, number: int) -> None:
        """Send the process itself a signal, if it still runs."""
        if self.code is None:
            self.process.send_signal(number)

    def close(self) -> None:
        """End it and all that it started. Idempotent."""
        family = family_of(self.pid) if self.code is None else []
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        if self.code is None:
            self.process.kill()
        self.process.wait()
        self.drain()
        if self._terminal is not None:
            os.close(self._terminal)
            self._terminal = None
        self._file.close()


def adopt_orphans() -> None:
    """Make this process the parent of children whose parent has ended, so that it finds them. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def family_of(pid: int) -> list[psutil.Process]:
    """Whom a process has started, and whom these have; none of one that has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def workers_of(pid: int) -> list[psutil.Process]:
    """Worker processes of an agent."""
    found = []
    for child in family_of(pid):
        with contextlib.suppress(psutil.Error):
            if child.ppid() != pid:  # its own child forks them
                found.append(child)
    return found


def send(pid: int, number: int) -> None:
    """A signal for a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def ports_to(pids: Sequence[int], port: int) -> set[int]:
    """Local ports of the connections that these processes have to a port."""
    found: set[int] = set()
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            for one in psutil.Process(pid).net_connections("tcp"):
                if one.raddr and one.raddr.port == port:
                    found.add(one.laddr.port)
    return found


def local_agents_of(pid: int) -> list[int]:
    """Agents that a coordinator has started, in order."""
    found: dict[str, int] = {}
    for child in family_of(pid):
        with contextlib.suppress(psutil.Error):
            words = child.cmdline()
            # An agent's own processes are copies of it, with its command line.
            if child.ppid() == pid and "agent.cli" in words and "--name" in words:
                found[words[words.index("--name") + 1]] = child.pid
    return [found[name] for name in sorted(found)]


def runs(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def memory_mib(pid: int) -> float:
    """Its resident memory; 0 of one that has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return float(psutil.Process(pid).memory_info().rss) / 2**20
    return 0.0


STOP, GO, KILL = signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL
