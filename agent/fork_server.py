"""The fork server: the process that forks worker processes. The only module that imports multiprocess.

Imports take half a second of CPU time, so they happen once: `agent join` imports what it and its worker processes need,
and then forks. The copy is the fork server. It forks a worker process, in milliseconds, whenever the agent asks. The
agent forks while it has no thread, no socket and no ZeroMQ context, because a fork would break these. If the fork
server is killed, the agent spawns a new one, which imports again.

    agent -> fork server: one byte, with the file descriptor of the worker's end of a new pipe
    fork server -> agent: (pid, FORKED) for each request, in order; pid 0 if no process was forked
                          (pid, exit code) when a worker process ends

No process outlives the agent: the fork server ends when this connection closes, and each worker process when its pipe
closes. If the fork server is killed, its worker processes continue.
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
from typing import TYPE_CHECKING, Any

import multiprocess
from multiprocess import resource_tracker
from multiprocess.connection import Connection, wait

from common.clock import monotonic_ns
from common.closing import Closing
from common.program.standard_streams import directory_is_gone
from common.program.stderr_writer import write_stderr_by_thread
from common.units import NS_PER_S

if TYPE_CHECKING:
    from multiprocess.process import BaseProcess

_EVENT = struct.Struct("=qq")
_FORKED = 1 << 40
_UNKNOWN_EXIT = 255
_JOIN_S = 5.0
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def _in_existing_directory() -> Iterator[None]:
    """Change to / if the working directory was deleted, because no process can be spawned there. Change back
    afterwards: the agent's errors mention a deleted working directory."""
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
def _signals_blocked() -> Iterator[None]:
    """Block SIGINT and SIGTERM, also in the process that is started: a Ctrl-C may arrive before it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Child:
    """A worker process. pipe: the agent's end. pid: None until it is forked. exit_code: as in subprocess, None while it
    runs."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.pid: int | None = None
        self.exit_code: int | None = None

    def kill(self) -> None:
        """End it at once. If it is not forked yet, close its pipe too (`end`): then it is never forked."""
        if self.pid is not None and self.exit_code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


class ForkServer(Closing):
    """The agent's connection to its fork server. Close it."""

    def __init__(self) -> None:
        self._process: BaseProcess | None = None
        self._control: socket.socket | None = None
        self._unforked: deque[Child] = deque()
        self._children: dict[int, Child] = {}

    def start(self, *, copied: bool = False) -> None:
        """Start the fork server, unless it runs. copied: fork this process, with all its imports; allowed only before
        its first ZeroMQ context. Without `copied`, or if this process has other threads, start a new interpreter, which
        imports while this process continues."""
        if self._control is not None:
            return
        is_copy = copied and threading.active_count() == 1
        context = multiprocess.get_context("fork" if is_copy else "spawn")
        ours, theirs = context.Pipe(duplex=True)
        with ours, theirs, _in_existing_directory():
            if not is_copy:
                # Otherwise it is started below, which would unblock SIGINT.
                resource_tracker.ensure_running()
            with _signals_blocked():
                self._process = (
                    context.Process(target=_serve_copy, args=(theirs, ours), name="fork server")
                    if is_copy
                    else context.Process(target=_serve, args=(theirs,), name="fork server")
                )
                self._process.start()
                self._control = socket.socket(fileno=os.dup(ours.fileno()))
                self._control.setblocking(False)

    def fork(self) -> Child:
        """A new worker process, forked as soon as the fork server is ready. Messages sent before wait in its pipe."""
        ours, theirs = multiprocess.Pipe(duplex=True)
        child = Child(ours)
        with theirs:
            self.start()
            try:
                self._request(theirs)
            except OSError:  # the fork server was killed
                self._killed()
                self.start()
                self._request(theirs)
        self._unforked.append(child)
        return child

    def _request(self, theirs: Connection) -> None:
        assert self._control is not None
        socket.send_fds(self._control, [b"f"], [theirs.fileno()])

    def fileno(self) -> int | None:
        """The file descriptor to poll: readable when children were forked or have ended. None while the fork server
        does not run."""
        return None if self._control is None else self._control.fileno()

    def read_events(self, wait_s: float = 0.0) -> None:
        """Read which children were forked or have ended. Waits up to `wait_s` if nothing has arrived."""
        if self._control is None or not select.select([self._control], [], [], wait_s)[0]:
            return
        try:
            data = self._control.recv(_EVENT.size * 64)
        except OSError:
            data = b""
        if not data:
            self._killed()
        for pid, what in _EVENT.iter_unpack(data):
            if what == _FORKED:
                self._forked(self._unforked.popleft(), pid)
            elif (ended := self._children.pop(pid, None)) is not None:
                ended.exit_code = what

    def _forked(self, child: Child, pid: int) -> None:
        if pid:
            child.pid = pid
            self._children[pid] = child
        else:
            child.exit_code = _UNKNOWN_EXIT

    def end(self, child: Child) -> None:
        """Wait for the end of a child that ends by itself or was killed, and close its pipe. Kills it after 5 s."""
        until_ns = monotonic_ns() + round(_JOIN_S * NS_PER_S)
        self.read_events()
        while child.pid is not None and child.exit_code is None:
            left_ns = until_ns - monotonic_ns()
            if left_ns <= 0:
                child.kill()
            self.read_events(max(left_ns, NS_PER_S // 10) / NS_PER_S)
        child.pipe.close()

    def _killed(self) -> None:
        """The fork server was killed. Its children continue, but their exit codes will never be known."""
        for child in (*self._unforked, *self._children.values()):
            child.exit_code = _UNKNOWN_EXIT
        self._unforked.clear()
        self._children.clear()
        self.close()

    def close(self) -> None:
        """Kill the fork server. Idempotent."""
        if self._control is None or self._process is None:
            return
        self._control.close()
        self._process.kill()
        self._process.join()
        self._control = self._process = None


def _work(connection: Connection) -> None:
    """The main function of a forked worker process."""
    write_stderr_by_thread()  # a traceback or a warning must not block the load
    from agent.worker.process import run_worker

    run_worker(connection)


def _serve_copy(connection: Connection, agents_end: Connection) -> None:
    """The main function of a fork server that is a copy of the agent."""
    agents_end.close()  # otherwise the copy keeps it open, and never notices that the agent has ended
    _serve(connection)


def _serve(connection: Connection) -> None:
    """The main function of the fork server."""
    # A Ctrl-C in the terminal or a service manager signals the whole group, but the agent must drain first.
    for number in _ENDING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING_SIGNALS)
    import agent.worker.process  # noqa: F401  # for the worker processes

    gc.collect()
    gc.freeze()  # otherwise a child's collector writes to every page, and so copies it
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
                _report(control, child.pid or 0, _UNKNOWN_EXIT if child.exitcode is None else child.exitcode)
                continue
            try:
                asked, filenos, _, _ = socket.recv_fds(control, 1, 1)
            except ConnectionResetError:  # the agent was killed before it read our reports
                asked, filenos = b"", []
            if not asked:
                os._exit(0)  # at once: multiprocess would wait for all children at exit
            [fileno] = filenos
            child = context.Process(target=work, args=(fileno,), name="worker")
            if not _is_closed(fileno):
                with suppress(OSError):  # no memory or processes left: the agent finds the pipe closed
                    child.start()
                    children[child.sentinel] = child
            _report(control, child.pid or 0, _FORKED)
            os.close(fileno)


def _report(control: socket.socket, pid: int, what: int) -> None:
    try:
        control.sendall(_EVENT.pack(pid, what))
    except OSError:
        os._exit(0)


def _is_closed(fileno: int) -> bool:
    """Whether the agent has closed its end of a worker's pipe: it no longer wants this worker process."""
    poller = select.poll()
    poller.register(fileno, select.POLLIN)
    return any(found & select.POLLHUP for _, found in poller.poll(0))
