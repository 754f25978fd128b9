"""A check for leaks: processes, threads, sockets and temporary files that a test leaves behind."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest

_GRACE_S = 5.0


@contextlib.contextmanager
def nothing_left_behind() -> Iterator[None]:
    """Fail if anything that started within the block still exists some seconds after its end.

    Within it, this process and its children use a temporary directory of their own.
    """
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="leaks-") as directory:
        patch.setattr(tempfile, "tempdir", directory)
        patch.setenv("TMPDIR", directory)
        processes, threads, sockets = _processes(), set(threading.enumerate()), _sockets()
        yield
        # Processes first: wait for their end before looking for the rest.
        left = _still_running(_processes() - processes)
        leaks = [
            *(f"process {_describe(process)}" for process in left),
            *(f"thread {thread.name}" for thread in _still_alive(set(threading.enumerate()) - threads)),
            *(f"socket {name}" for name in sorted(_sockets() - sockets)),
            *(f"temporary file {path.name}" for path in sorted(Path(directory).iterdir())),
        ]
        _end(left)  # a leak must not disturb other tests
    assert not leaks, f"left behind: {'; '.join(leaks)}"


def _processes() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _still_running(processes: set[psutil.Process]) -> list[psutil.Process]:
    _, alive = psutil.wait_procs(processes, timeout=_GRACE_S)
    return [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def _end(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _describe(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return f"{process.pid} ({' '.join(process.cmdline())[:200]})"
    return str(process.pid)


def _still_alive(threads: set[threading.Thread]) -> list[threading.Thread]:
    for thread in threads:
        thread.join(timeout=_GRACE_S)
    return [thread for thread in threads if thread.is_alive()]


def _sockets() -> set[str]:
    return {
        f"{connection.laddr} -> {connection.raddr or 'listening'}"
        for connection in psutil.Process().net_connections(kind="inet")
    }
