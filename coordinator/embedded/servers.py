"""Embedded servers as processes: started together, ended together, and never outliving whoever started them.

Their directory is removed as soon as they are up, so that nothing is left even by a coordinator that is killed. What
they would like to write meanwhile (a node's view of its cluster, a Sentinel's of its primaries) goes nowhere, and the
layouts choose options under which they take that well; replicas load what they copy straight from the socket.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from common.clock import monotonic_ns
from common.errors import TargetError
from common.redis_client import TARGET_ERRORS
from common.units import NS_PER_S

HOST = "127.0.0.1"
READY_WITHIN_S = 10.0
AGREED_WITHIN_S = 30.0
PORT_ATTEMPTS = 5

_POLL_S = 0.005
_REMOVALS = 100
_REPLY_BYTES = 1 << 16
_ASK_TIMEOUT_S = 1.0

# Linux ends the server with whoever started it, even one that was killed. This goes through a tiny interpreter that
# becomes the server by exec, because the alternative, `preexec_fn`, runs Python between fork and exec, where another
# thread's lock can be held for ever. The parent may die before prctl is reached: hence the comparison after it.
# 1 is PR_SET_PDEATHSIG of linux/prctl.h, 9 is SIGKILL; the signal comes when the starting *thread* ends.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])\n"
)


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """One process of a layout. options: the server's command line without what every server gets. config: the text of
    its configuration file, or None when it needs none."""

    port: int
    options: tuple[str, ...] = ()
    config: str | None = None


class Layout(Protocol):
    """Which servers there are to be, and what makes one target of them."""

    ports: int
    """How many free ports it needs."""

    def parts(self, ports: Sequence[int]) -> list[ServerProcess]:
        """The processes on these ports."""

    def arrange(self, ports: Sequence[int], /) -> None:
        """All answer: introduce them to each other."""

    def missing(self, ports: Sequence[int], /) -> str:
        """What is still missing before clients may come, or "" when nothing is."""

    def url(self, ports: Sequence[int]) -> str:
        """Where clients find them."""


class EmbeddedServer:
    """Running servers; `stop` or the end of the `with` block ends them. Made by `open_embedded`, from a thread that
    lives as long as they are wanted."""

    def __init__(self, binary: Path, layout: Layout) -> None:
        """Start the servers and wait until clients may come. Raises TargetError when they do not come up in time."""
        self._layout = layout
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ports: list[int] = []
        directory = Path(tempfile.mkdtemp(prefix="stampede-valkey-"))
        try:
            self._start(binary, directory)
        except BaseException:  # an interrupt while waiting must not leave a server behind either
            self.stop()
            raise
        finally:
            _remove(directory)

    @property
    def url(self) -> str:
        """Where clients find it."""
        return self._layout.url(self._ports)

    @property
    def ports(self) -> tuple[int, ...]:
        """The port of each process, in the order of `pids` while they run."""
        return tuple(part.port for part in self._layout.parts(self._ports))

    @property
    def port(self) -> int:
        """The port of the first process."""
        return self.ports[0]

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes; none once they are stopped."""
        return tuple(process.pid for process in self._processes)

    @property
    def pid(self) -> int | None:
        """The first process, or None once it is stopped."""
        return self._processes[0].pid if self._processes else None

    def stop(self) -> None:
        """End the servers. Calling it again does nothing."""
        processes, self._processes = self._processes, []
        for process in processes:  # all of them first: none has time to miss another
            process.kill()
        for process in processes:
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, binary: Path, directory: Path) -> None:
        for _ in range(PORT_ATTEMPTS):
            # Between our letting go of a port and the server's taking it somebody else may: then try others.
            self._ports = _free_ports(self._layout.ports)
            parts = self._layout.parts(self._ports)
            for part in parts:
                self._processes.append(_spawn(binary, directory, part))
            up = (_wait_until_up(part, process) for part, process in zip(parts, self._processes, strict=True))
            if all(up):
                # Not later: whoever kills us while they find each other would leave it behind.
                _remove(directory)
                self._agree()
                return
            self.stop()
        raise TargetError(
            f"embedded server: not up after {PORT_ATTEMPTS} attempts of {READY_WITHIN_S:g}s on {HOST}; "
            f"its last words: {_last_words(directory)}"
        )

    def _agree(self) -> None:
        try:
            self._layout.arrange(self._ports)
        except TARGET_ERRORS as error:
            raise TargetError(f"embedded server: up, but it refuses to be set up: {_one_line(error)}") from error
        if not _until(lambda: not self._missing(), AGREED_WITHIN_S):
            raise TargetError(f"embedded server: up, but after {AGREED_WITHIN_S:g}s still {self._missing()}: try again")

    def _missing(self) -> str:
        try:
            return self._layout.missing(self._ports)
        except TARGET_ERRORS as error:  # as servers do that are about to hear of each other
            return f"a server answers: {_one_line(error)}"


def _spawn(binary: Path, directory: Path, part: ServerProcess) -> subprocess.Popen[bytes]:
    home = directory / str(part.port)
    home.mkdir(exist_ok=True)
    command = [str(binary)]
    if part.config is not None:
        (home / "server.conf").write_text(part.config)
        command.append(str(home / "server.conf"))
    command += ["--bind", HOST, "--port", str(part.port), "--dir", str(home), *part.options]
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
    with (home / "log").open("ab") as log:
        # A session of its own: a Ctrl-C in the terminal reaches the coordinator, which still needs the server while it
        # drains.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=home, start_new_session=True
        )


def _wait_until_up(part: ServerProcess, process: subprocess.Popen[bytes]) -> bool:
    return _until(
        lambda: _is_our_server(part.port, process.pid), READY_WITHIN_S, unless=lambda: process.poll() is not None
    )


def _until(what: Callable[[], bool], within_s: float, unless: Callable[[], bool] = lambda: False) -> bool:
    """Whether it came true in time, and before what makes waiting useless."""
    give_up_ns = monotonic_ns() + int(within_s * NS_PER_S)
    while monotonic_ns() < give_up_ns:
        if what():
            return True
        if unless():
            return False
        time.sleep(_POLL_S)
    return False


def _free_ports(count: int) -> list[int]:
    """So many different ports on which nobody listens; all are held until the last is found."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]


def _is_our_server(port: int, pid: int) -> bool:
    """Whether the server on `port` answers and is the process `pid`, not somebody who was quicker with the port."""
    reply, ours = b"", f"\r\nprocess_id:{pid}\r\n".encode()
    try:
        with socket.create_connection((HOST, port), timeout=_ASK_TIMEOUT_S) as asked:
            asked.sendall(b"PING\r\nINFO server\r\n")
            # Not until it closes: a Sentinel knows no QUIT.
            while ours not in reply and len(reply) < _REPLY_BYTES and (part := asked.recv(4096)):
                reply += part
    except OSError:
        return False
    return reply.startswith(b"+PONG\r\n") and ours in reply


def _remove(directory: Path) -> None:
    """A server that runs may write a file between our look and our leave: then once more."""
    for _ in range(_REMOVALS):
        with contextlib.suppress(OSError):
            shutil.rmtree(directory)
        if not directory.exists():
            return
    shutil.rmtree(directory)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _last_words(directory: Path) -> str:
    logs = sorted(directory.glob("*/log"), key=lambda log: log.stat().st_mtime_ns)
    lines = [line.strip() for log in logs for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "none")
