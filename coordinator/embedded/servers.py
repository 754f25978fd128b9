"""The processes of embedded servers: started together, ended together, and never outliving their parent.

Their directory is removed as soon as they run, so that even a killed coordinator leaves nothing behind. Later writes of
the servers (nodes.conf, a Sentinel's configuration) fail; the layouts choose options that tolerate this. Replicas load
data directly from the socket.
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
CONNECTED_WITHIN_S = 30.0
PORT_ATTEMPTS = 5

_POLL_S = 0.005
_REMOVALS = 100
_REPLY_BYTES = 1 << 16
_PROBE_TIMEOUT_S = 1.0

# On Linux, the kernel kills the server when its parent dies. A small interpreter sets this and becomes the server by
# exec. The alternative, `preexec_fn`, runs Python between fork and exec, where a lock of another thread may never be
# released. The parent may die before prctl: hence the comparison after prctl. 1 is PR_SET_PDEATHSIG of linux/prctl.h,
# 9 is SIGKILL. The signal is sent when the starting *thread* ends.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])\n"
)


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """One process of a layout. options: added to the options of all servers. config: text of the configuration file;
    None for no file."""

    port: int
    options: tuple[str, ...] = ()
    config: str | None = None


class Layout(Protocol):
    """The servers of a target, and how to connect them to each other."""

    ports: int
    """Number of ports that the layout needs."""

    def processes(self, ports: Sequence[int]) -> list[ServerProcess]:
        """The processes on these ports."""

    def connect(self, ports: Sequence[int], /) -> None:
        """Introduce the servers to each other, once all of them answer."""

    def missing(self, ports: Sequence[int], /) -> str:
        """Why the target is not ready for clients yet; "" if it is ready."""

    def url(self, ports: Sequence[int]) -> str:
        """The URL for clients."""


class EmbeddedServer:
    """Running servers; `stop` or the end of the `with` block ends them. Made by `open_embedded`. On Linux they
    also end with the thread that started them."""

    def __init__(self, binary: Path, layout: Layout) -> None:
        """Start the servers and wait until they are ready. Raises TargetError if they are not ready in time."""
        self._layout = layout
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ports: list[int] = []
        directory = Path(tempfile.mkdtemp(prefix="stampede-valkey-"))
        try:
            self._start(binary, directory)
        except BaseException:  # even a Ctrl-C during the wait must leave no server behind
            self.stop()
            raise
        finally:
            _remove(directory)

    @property
    def url(self) -> str:
        """The URL for clients."""
        return self._layout.url(self._ports)

    @property
    def ports(self) -> tuple[int, ...]:
        """The port of each process, in the order of `pids`."""
        return tuple(process.port for process in self._layout.processes(self._ports))

    @property
    def port(self) -> int:
        """The port of the first process."""
        return self.ports[0]

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids; empty after `stop`."""
        return tuple(process.pid for process in self._processes)

    @property
    def pid(self) -> int | None:
        """The id of the first process; None after `stop`."""
        return self._processes[0].pid if self._processes else None

    def stop(self) -> None:
        """Kill the servers. Idempotent."""
        processes, self._processes = self._processes, []
        for process in processes:  # kill all before waiting, so that no failover starts
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
            # Another process may take a free port before the server does. Then try other ports.
            self._ports = _free_ports(self._layout.ports)
            planned = self._layout.processes(self._ports)
            for process in planned:
                self._processes.append(_spawn(binary, directory, process))
            if all(_wait_until_up(*pair) for pair in zip(planned, self._processes, strict=True)):
                # Remove the directory now: a SIGKILL while the servers connect must not leave it behind.
                _remove(directory)
                self._connect()
                return
            self.stop()
        raise TargetError(
            f"embedded server: did not start in {PORT_ATTEMPTS} attempts of {READY_WITHIN_S:g}s on {HOST}; "
            f"last line of its log: {_last_log_line(directory)}"
        )

    def _connect(self) -> None:
        try:
            self._layout.connect(self._ports)
        except TARGET_ERRORS as error:
            raise TargetError(f"embedded server: runs, but its setup failed: {_one_line(error)}") from error
        if not _until(lambda: not self._missing(), CONNECTED_WITHIN_S):
            raise TargetError(f"embedded server: not ready after {CONNECTED_WITHIN_S:g}s: {self._missing()}; try again")

    def _missing(self) -> str:
        try:
            return self._layout.missing(self._ports)
        except TARGET_ERRORS as error:  # usual while servers do not know each other yet
            return f"a server answers: {_one_line(error)}"


def _spawn(binary: Path, directory: Path, process: ServerProcess) -> subprocess.Popen[bytes]:
    home = directory / str(process.port)
    home.mkdir(exist_ok=True)
    command = [str(binary)]
    if process.config is not None:
        (home / "server.conf").write_text(process.config)
        command.append(str(home / "server.conf"))
    command += ["--bind", HOST, "--port", str(process.port), "--dir", str(home), *process.options]
    if sys.platform == "linux":
        command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
    with (home / "log").open("ab") as log:
        # Own session: Ctrl-C must reach the coordinator only, which needs the server while it drains.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=home, start_new_session=True
        )


def _wait_until_up(planned: ServerProcess, process: subprocess.Popen[bytes]) -> bool:
    return _until(
        lambda: _is_our_server(planned.port, process.pid), READY_WITHIN_S, unless=lambda: process.poll() is not None
    )


def _until(what: Callable[[], bool], within_s: float, unless: Callable[[], bool] = lambda: False) -> bool:
    """Wait until `what` is true. Returns false after `within_s`, or as soon as `unless` is true."""
    give_up_ns = monotonic_ns() + int(within_s * NS_PER_S)
    while monotonic_ns() < give_up_ns:
        if what():
            return True
        if unless():
            return False
        time.sleep(_POLL_S)
    return False


def _free_ports(count: int) -> list[int]:
    """Different ports on which no process listens. All are kept open until the last is found."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]


def _is_our_server(port: int, pid: int) -> bool:
    """Whether the server on `port` answers, and is the process `pid` and not another one that took the port first."""
    reply, ours = b"", f"\r\nprocess_id:{pid}\r\n".encode()
    try:
        with socket.create_connection((HOST, port), timeout=_PROBE_TIMEOUT_S) as connection:
            connection.sendall(b"PING\r\nINFO server\r\n")
            # Do not wait for the end of the connection: a Sentinel has no QUIT.
            while ours not in reply and len(reply) < _REPLY_BYTES and (part := connection.recv(4096)):
                reply += part
    except OSError:
        return False
    return reply.startswith(b"+PONG\r\n") and ours in reply


def _remove(directory: Path) -> None:
    """Remove the directory. Repeat, because a running server may write a file during the removal."""
    for _ in range(_REMOVALS):
        with contextlib.suppress(OSError):
            shutil.rmtree(directory)
        if not directory.exists():
            return
    shutil.rmtree(directory)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _last_log_line(directory: Path) -> str:
    logs = sorted(directory.glob("*/log"), key=lambda log: log.stat().st_mtime_ns)
    lines = [line.strip() for log in logs for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "none")
