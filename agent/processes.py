"""Worker processes of an agent: spawned, listened to, ended. The only place that imports multiprocess.

The children are spawned, never forked: an agent has threads of ZeroMQ by then. Each has one pipe to its agent, whose
end is also the sign of life for both: a child that reads the end of it leaves, and a parent that does takes the child
for dead.

A child imports numpy and redis-py, which takes most of a second of CPU time. To join sooner, the agent itself does not
import redis-py, and an agent for a single run starts its children while it joins.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

import multiprocess

from agent.events import FromWorker, WorkerExited
from common import codec
from common.errors import ProtocolError
from common.messages import Assignment, Failed, FailureKind, WorkerMessage, WorkerOrder, WorkerPrepare, WorkerRenew
from common.program import directory_is_gone
from common.voice import speak_freely

if TYPE_CHECKING:
    from multiprocess.connection import Connection
    from multiprocess.process import BaseProcess


def _work(connection: Connection) -> None:
    """The entry point of a child. Imports here what only the child needs, so that the agent starts faster."""
    speak_freely()  # a traceback or a warning must not hold up the load either
    from agent.worker.main import run_worker

    run_worker(connection)


_JOIN_S = 5.0
_READ_AT_MOST = 64  # reports taken from one process in one go


class Processes:
    """The worker processes of one run; process numbers are positions of the assignments given to `spawn`."""

    def __init__(self) -> None:
        self._context = multiprocess.get_context("spawn")
        self._children: dict[int, tuple[BaseProcess, Connection]] = {}
        self._ahead: list[tuple[BaseProcess, Connection]] = []

    def start_ahead(self, count: int) -> None:
        """Start processes for the next `spawn`, which wait for an assignment."""
        self._ahead += [self._started() for _ in range(count)]

    def spawn(self, run_id: str, assignments: Sequence[Assignment]) -> None:
        """Have a process prepare for each assignment: first those that `start_ahead` started. Spare ones are ended."""
        for number, assignment in enumerate(assignments):
            child, pipe = self._ahead.pop(0) if self._ahead else self._started()
            self._children[number] = (child, pipe)
            # If the child has died in the meantime, `events` reports it.
            with suppress(OSError):
                pipe.send_bytes(codec.pack(WorkerPrepare(run_id=run_id, assignment=assignment, process=number)))
        self._end_ahead()

    def _started(self) -> tuple[BaseProcess, Connection]:
        if directory_is_gone():
            os.chdir("/")  # a child starts in the parent's working directory, and fails if that was deleted
        ours, theirs = self._context.Pipe(duplex=True)
        child = self._context.Process(target=_work, args=(theirs,), name="worker")
        child.start()
        # Close our copy: otherwise we never read the end of the pipe when the child dies.
        theirs.close()
        return child, ours

    def _end_ahead(self) -> None:
        for child, _ in self._ahead:
            child.kill()
        for child, pipe in self._ahead:
            _reap(child, pipe)
        self._ahead.clear()

    def filenos(self) -> list[int]:
        """What to poll: one pipe for each living process."""
        return [pipe.fileno() for _, pipe in self._children.values()]

    def pids(self) -> list[int]:
        """Living processes, for measuring what they use."""
        return [child.pid for child, _ in self._children.values() if child.pid is not None]

    def order(self, order: WorkerOrder) -> None:
        """Tell every living process; one that is just dying is found out by `events`."""
        data = codec.pack(order)
        for _, pipe in self._children.values():
            try:
                pipe.send_bytes(data)
            except OSError:
                continue

    def renew(self, until_ns: int) -> None:
        """Let the load of every living process go on until this instant of `boottime_ns`. One that does not read its
        pipe (it is stopped) is passed over rather than waited for: others would lose their lease meanwhile."""
        data = codec.pack(WorkerRenew(until_ns=until_ns))
        for _, pipe in self._children.values():
            with suppress(OSError):
                if _has_room(pipe):
                    pipe.send_bytes(data)

    def events(self) -> Iterator[FromWorker | WorkerExited]:
        """What the processes have reported, and which have ended, without waiting."""
        for number in list(self._children):
            yield from self._read(number)

    def _read(self, number: int) -> Iterator[FromWorker | WorkerExited]:
        ours = self._children.get(number)
        for _ in range(_READ_AT_MOST):
            # Whoever is told of an event may have had all processes killed before asking for the next.
            if ours is None or self._children.get(number) is not ours:
                return
            child, pipe = ours
            try:
                if not pipe.poll(0):
                    return
                data = pipe.recv_bytes()
            except (EOFError, OSError):
                # What it had written has been read by now, so nothing of it is lost. It cannot do anything more.
                self._end(number)
                yield WorkerExited(number, child.exitcode)
                return
            try:
                message: WorkerMessage = codec.decode_from_worker(data)
            except ProtocolError as error:  # a bug of ours: it costs one worker process, and not the agent
                message = Failed(kind=FailureKind.AGENT, reason=f"it reported nonsense: {error}")
                child.kill()
            yield FromWorker(number, message)

    def _end(self, number: int) -> None:
        _reap(*self._children.pop(number))

    def kill(self) -> None:
        """End all of them at once and forget them, those started ahead too. Idempotent."""
        self._end_ahead()
        for child, _ in self._children.values():
            child.kill()
        for number in list(self._children):
            self._end(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


def _has_room(pipe: Connection) -> bool:
    """Whether a short message can be sent without waiting: a socket with any room has some kilobytes."""
    poller = select.poll()
    poller.register(pipe.fileno(), select.POLLOUT)
    return bool(poller.poll(0))


def _reap(child: BaseProcess, pipe: Connection) -> None:
    child.join(_JOIN_S)
    if child.is_alive():
        child.kill()
        child.join()
    pipe.close()
