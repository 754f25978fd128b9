"""Starts an agent's worker processes, reads their messages, and ends them.

Each worker process has one pipe to its agent. Both sides detect the other's death by the end of the pipe: the worker
process exits, and the agent counts the worker process as dead.
"""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence
from contextlib import suppress

from agent.core.actions import FromWorker, WorkerExited
from agent.fork_server import Child, ForkServer
from common.closing import Closing
from common.errors import ProtocolError
from common.protocol import codec
from common.protocol.messages import (
    Assignment,
    Failed,
    FailureKind,
    WorkerMessage,
    WorkerOrder,
    WorkerPrepare,
    WorkerRenew,
)

_READ_AT_MOST = 64  # messages read from one process in a row


class Processes(Closing):
    """The worker processes of one run. A process's number is the index of its assignment in `spawn`."""

    def __init__(self, fork_server: ForkServer | None = None) -> None:
        """fork_server: a started one, which `close` closes; None: makes its own."""
        self._fork_server = fork_server or ForkServer()
        self._children: dict[int, Child] = {}

    def spawn(self, run_id: str, assignments: Sequence[Assignment]) -> None:
        """Start a process for each assignment, and make it prepare."""
        for number, assignment in enumerate(assignments):
            child = self._children[number] = self._fork_server.fork()
            # If the process has died, `events` reports it.
            with suppress(OSError):
                child.pipe.send_bytes(codec.pack(WorkerPrepare(run_id=run_id, assignment=assignment, process=number)))

    def filenos(self) -> list[int]:
        """File descriptors to poll: one pipe for each living process, and the fork server's."""
        pipes = [child.pipe.fileno() for child in self._children.values()]
        fork_server = self._fork_server.fileno()
        return pipes if fork_server is None else [*pipes, fork_server]

    def pids(self) -> list[int]:
        """The pids of all living processes that are forked already."""
        self._fork_server.read_events()
        return [child.pid for child in self._children.values() if child.pid]

    def order(self, order: WorkerOrder) -> None:
        """Send an order to every living process. If one is just dying, `events` reports it."""
        data = codec.pack(order)
        for pipe in [child.pipe for child in self._children.values()]:
            try:
                pipe.send_bytes(data)
            except OSError:
                continue

    def renew(self, until_ns: int) -> None:
        """Renew the lease of every living process until this instant of `boottime_ns`. Skips a process whose pipe is
        full because it is stopped: waiting for it would cost the others their lease."""
        data = codec.pack(WorkerRenew(until_ns=until_ns))
        for pipe in [child.pipe for child in self._children.values()]:
            with suppress(OSError):
                if _has_room(pipe.fileno()):
                    pipe.send_bytes(data)

    def events(self) -> Iterator[FromWorker | WorkerExited]:
        """Messages of the processes, and which processes have ended. Does not wait."""
        self._fork_server.read_events()
        for number in list(self._children):
            yield from self._read(number)

    def _read(self, number: int) -> Iterator[FromWorker | WorkerExited]:
        ours = self._children.get(number)
        for _ in range(_READ_AT_MOST):
            # The caller may have killed all processes since it got the last event.
            if ours is None or self._children.get(number) is not ours:
                return
            child = ours
            try:
                if not child.pipe.poll(0):
                    return
                data = child.pipe.recv_bytes()
            except (EOFError, OSError):
                # The end of the pipe comes after all messages of the process, so none is lost.
                self._end(number)
                yield WorkerExited(number, child.exit_code)
                return
            try:
                message: WorkerMessage = codec.decode_from_worker(data)
            except ProtocolError as error:  # a bug of ours: end this worker process, not the agent
                message = Failed(kind=FailureKind.AGENT, reason=f"it sent invalid data: {error}")
                child.kill()
            yield FromWorker(number, message)

    def _end(self, number: int) -> None:
        self._fork_server.end(self._children.pop(number))

    def kill(self) -> None:
        """End all processes at once and forget them. Idempotent."""
        self._fork_server.read_events()
        for child in self._children.values():
            child.kill()
        for number in list(self._children):
            self._end(number)

    def close(self) -> None:
        """Kill all worker processes and the fork server. Idempotent."""
        self.kill()
        self._fork_server.close()


def _has_room(fileno: int) -> bool:
    """Whether a short message can be sent without waiting: a writable socket has room for some kilobytes."""
    poller = select.poll()
    poller.register(fileno, select.POLLOUT)
    return bool(poller.poll(0))
