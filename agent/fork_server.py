"""The process that worker processes are forked from. The only place that imports multiprocess.

Imports take half a second of CPU time, so they happen once: `agent join` imports all that it and its worker processes
need, and then copies itself. The copy is the nursery. It forks a worker process, in milliseconds, whenever the agent
asks. The copy is made while the agent has no thread, no socket and no ZeroMQ context, so nothing is copied that a fork
would break. A nursery that replaces one that was killed is spawned instead, and imports again.

    agent -> nursery: a byte, and with it the worker's end of a new pipe
    nursery -> agent: (pid, BORN) for each, in their order, 0 for one that is not wanted any more; (pid, exit code)

No process outlives the agent: the nursery ends when this connection does, each worker process when its pipe does. A
nursery that is killed costs no worker process; the agent starts another.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import struct
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import multiprocess
from multiprocess import resource_tracker
from multiprocess.connection import Connection, wait

from common.clock import monotonic_ns
from common.program import directory_is_gone
from common.stderr_writer import write_stderr_by_thread
from common.units import NS_PER_S

if TYPE_CHECKING:
    from multiprocess.process import BaseProcess

_NEWS = struct.Struct("=qq")
_BORN = 1 << 40
_UNKNOWN_EXIT = 255
_JOIN_S = 5.0
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _in_existing_directory() -> Iterator[None]:
    """Change to / if the working directory was deleted, and back: a process cannot be spawned in a deleted one, and
    the agent's own errors name it as their cause."""
    if not directory_is_gone():
        yield
        return
    here = os.open(".", os.O_RDONLY)
    try:
        os.chdir("/")
        yield
    finally:
        os.fchdir(here)
        os.close(here)


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """Block them, also in the process that is started: a Ctrl-C reaches it before it can ignore the signal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Child:
    """A worker process. pipe: our end. pid: None until it is born. exit_code: as in subprocess, None while it runs."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.pid: int | None = None
        self.exit_code: int | None = None

    def kill(self) -> None:
        """End it at once. One that is not born is never forked, as its pipe is closed by then."""
        if self.pid is not None and self.exit_code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class Nursery:
    """The agent's end. Closed by `close`."""

    def __init__(self) -> None:
        self._process: BaseProcess | None = None
        self._control: socket.socket | None = None
        self._unborn: deque[Child] = deque()
        self._children: dict[int, Child] = {}

    def start(self, *, copied: bool = False) -> None:
        """Start it, unless it runs. copied: as a copy of this process, with all that it has imported; only for a
        process that never had a ZeroMQ context. If it has other threads, or without `copied`, the nursery is a new
        interpreter, which imports while we go on."""
        if self._control is not None:
            return
        is_copy = copied and threading.active_count() == 1
        context = multiprocess.get_context("fork" if is_copy else "spawn")
        ours, theirs = context.Pipe(duplex=True)
        with ours, theirs, _in_existing_directory():
            if not is_copy:
                resource_tracker.ensure_running()  # or it would be started below, and that ends with SIGINT unblocked
            with _signals_held_back():
                self._process = (
                    context.Process(target=_nurse_copy, args=(theirs, ours), name="nursery")
                    if is_copy
                    else context.Process(target=_nurse, args=(theirs,), name="nursery")
                )
                self._process.start()
                self._control = socket.socket(fileno=os.dup(ours.fileno()))
                self._control.setblocking(False)

    def fork(self) -> Child:
        """A new worker process, which is born as soon as the nursery is ready; what is sent to it until then waits."""
        ours, theirs = multiprocess.Pipe(duplex=True)
        child = Child(ours)
        with theirs:
            self.start()
            try:
                self._ask(theirs)
            except OSError:  # it was killed
                self._gone()
                self.start()
                self._ask(theirs)
        self._unborn.append(child)
        return child

    def _ask(self, theirs: Connection) -> None:
        assert self._control is not None
        socket.send_fds(self._control, [b"f"], [theirs.fileno()])

    def fileno(self) -> int | None:
        """Readable when there is news; None while it does not run."""
        return None if self._control is None else self._control.fileno()

    def listen(self, wait_s: float = 0.0) -> None:
        """Read which children were born or have ended; waits for news, but not longer than the given time."""
        if self._control is None or not select.select([self._control], [], [], wait_s)[0]:
            return
        try:
            news = self._control.recv(_NEWS.size * 64)
        except OSError:
            news = b""
        if not news:
            self._gone()
        for pid, what in _NEWS.iter_unpack(news):
            if what == _BORN:
                self._made_connections(self._unborn.popleft(), pid)
            elif (ended := self._children.pop(pid, None)) is not None:
                ended.exit_code = what

    def _made_connections(self, child: Child, pid: int) -> None:
        if pid:
            child.pid = pid
            self._children[pid] = child
        else:
            child.exit_code = _UNKNOWN_EXIT

    def end(self, child: Child) -> None:
        """Close the pipe of a child that has ended, was killed or was stopped, and wait for its end."""
        until_ns = monotonic_ns() + round(_JOIN_S * NS_PER_S)
        self.listen()
        while child.pid is not None and child.exit_code is None:
            left_ns = until_ns - monotonic_ns()
            if left_ns <= 0:
                child.kill()
            self.listen(max(left_ns, NS_PER_S // 10) / NS_PER_S)
        child.pipe.close()

    def _gone(self) -> None:
        """It was killed. Its children go on, and nobody will say how they end."""
        for child in (*self._unborn, *self._children.values()):
            child.exit_code = _UNKNOWN_EXIT
        self._unborn.clear()
        self._children.clear()
        self.close()

    def close(self) -> None:
        """End it at once; it has nothing to lose. Idempotent."""
        if self._control is None or self._process is None:
            return
        self._control.close()
        self._process.kill()
        self._process.join()
        self._control = self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _work(connection: Connection) -> None:
    """A worker process."""
    write_stderr_by_thread()  # a traceback or a warning must not block the load
    from agent.worker.process import run_worker

    run_worker(connection)


def _nurse_copy(connection: Connection, agents_end: Connection) -> None:
    """The process itself, as a copy of the agent."""
    agents_end.close()  # or its end would not be seen
    _nurse(connection)


def _nurse(connection: Connection) -> None:
    """The process itself."""
    # A Ctrl-C of the terminal, or a service manager, reaches the whole group: the agent drains first.
    for number in _ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING_SIGNALS)
    import agent.worker.process  # noqa: F401  # with all that it needs

    gc.collect()
    gc.freeze()  # the collector of a child would touch every page, and so make a copy of it
    context = multiprocess.get_context("fork")
    control = socket.socket(fileno=os.dup(connection.fileno()))
    connection.close()
    children: dict[Any, BaseProcess] = {}

    def work(fileno: int) -> None:
        control.close()
        _work(Connection(fileno))

    while True:
        for ready in wait([control, *children]):
            if ready is not control:
                child = children.pop(ready)
                child.join()
                _tell(control, child.pid or 0, _UNKNOWN_EXIT if child.exitcode is None else child.exitcode)
                continue
            try:
                asked, filenos, _, _ = socket.recv_fds(control, 1, 1)
            except ConnectionResetError:  # the agent was killed before it had read our news
                asked, filenos = b"", []
            if not asked:
                os._exit(0)  # at once: what multiprocess does at the end would wait for all children
            [fileno] = filenos
            child = context.Process(target=work, args=(fileno,), name="worker")
            if not _is_closed(fileno):
                with suppress(OSError):  # no memory, or no more processes: the agent sees that it has ended
                    child.start()
                    children[child.sentinel] = child
            _tell(control, child.pid or 0, _BORN)
            os.close(fileno)


def _tell(control: socket.socket, pid: int, what: int) -> None:
    try:
        control.sendall(_NEWS.pack(pid, what))
    except OSError:
        os._exit(0)


def _is_closed(fileno: int) -> bool:
    """Whether the agent has closed its end of a worker's pipe, and so wants none any more."""
    poller = select.poll()
    poller.register(fileno, select.POLLIN)
    return any(found & select.POLLHUP for _, found in poller.poll(0))
