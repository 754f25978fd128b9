"""Starts an agent's worker processes, reads their messages, and ends them.

Each worker process has one pipe to its agent. The end of the pipe is also the sign of life for both: a worker process
that reads it exits, and an agent that reads it counts the worker process as dead.
"""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from agent.core.actions import FromWorker, WorkerExited
from agent.fork_server import Child, Nursery
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

_READ_AT_MOST = 64  # reports taken from one process in one go


class Processes:
    """The worker processes of one run; process numbers are positions of the assignments given to `spawn`."""

    def __init__(self, nursery: Nursery | None = None) -> None:
        """nursery: one that was started already, which is ours from now on."""
        self._nursery = nursery or Nursery()
        self._children: dict[int, Child] = {}

    def spawn(self, run_id: str, assignments: Sequence[Assignment]) -> None:
        """Have a process prepare for each assignment."""
        for number, assignment in enumerate(assignments):
            child = self._children[number] = self._nursery.fork()
            # If it dies meanwhile, `events` reports it.
            with suppress(OSError):
                child.pipe.send_bytes(codec.pack(WorkerPrepare(run_id=run_id, assignment=assignment, process=number)))

    def filenos(self) -> list[int]:
        """What to poll: one pipe for each living process, and the nursery."""
        pipes = [child.pipe.fileno() for child in self._children.values()]
        nursery = self._nursery.fileno()
        return pipes if nursery is None else [*pipes, nursery]

    def pids(self) -> list[int]:
        """Living processes, for measuring what they use; without those that are not born yet."""
        self._nursery.listen()
        return [child.pid for child in self._children.values() if child.pid]

    def order(self, order: WorkerOrder) -> None:
        """Tell every living process; one that is just dying is found out by `events`."""
        data = codec.pack(order)
        for pipe in [child.pipe for child in self._children.values()]:
            try:
                pipe.send_bytes(data)
            except OSError:
                continue

    def renew(self, until_ns: int) -> None:
        """Let the load of every living process go on until this instant of `boottime_ns`. One that does not read its
        pipe (it is stopped) is passed over rather than waited for: others would lose their lease meanwhile."""
        data = codec.pack(WorkerRenew(until_ns=until_ns))
        for pipe in [child.pipe for child in self._children.values()]:
            with suppress(OSError):
                if _has_room(pipe.fileno()):
                    pipe.send_bytes(data)

    def events(self) -> Iterator[FromWorker | WorkerExited]:
        """What the processes have reported, and which have ended, without waiting."""
        self._nursery.listen()
        for number in list(self._children):
            yield from self._read(number)

    def _read(self, number: int) -> Iterator[FromWorker | WorkerExited]:
        ours = self._children.get(number)
        for _ in range(_READ_AT_MOST):
            # Whoever is told of an event may have had all processes killed before asking for the next.
            if ours is None or self._children.get(number) is not ours:
                return
            child = ours
            try:
                if not child.pipe.poll(0):
                    return
                data = child.pipe.recv_bytes()
            except (EOFError, OSError):
                # What it had written has been read by now, so nothing of it is lost. It cannot do anything more.
                self._end(number)
                yield WorkerExited(number, child.exit_code)
                return
            try:
                message: WorkerMessage = codec.decode_from_worker(data)
            except ProtocolError as error:  # a bug of ours: it costs one worker process, and not the agent
                message = Failed(kind=FailureKind.AGENT, reason=f"it sent invalid data: {error}")
                child.kill()
            yield FromWorker(number, message)

    def _end(self, number: int) -> None:
        self._nursery.end(self._children.pop(number))

    def kill(self) -> None:
        """End all of them at once and forget them. Idempotent."""
        self._nursery.listen()
        for child in self._children.values():
            child.kill()
        for number in list(self._children):
            self._end(number)

    def close(self) -> None:
        """Kill all worker processes, and end the nursery."""
        self.kill()
        self._nursery.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _has_room(fileno: int) -> bool:
    """Whether a short message can be sent without waiting: a socket with any room has some kilobytes."""
    poller = select.poll()
    poller.register(fileno, select.POLLOUT)
    return bool(poller.poll(0))
