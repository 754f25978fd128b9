"""Worker processes of an agent: spawned, listened to, ended. The only place that imports multiprocess.

The children are spawned, never forked: an agent has threads of ZeroMQ by then. Each has one pipe to its agent, whose
end is also the sign of life for both: a child that reads the end of it leaves, and a parent that does takes the child
for dead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import multiprocess

from agent.events import FromWorker, WorkerExited
from agent.worker.main import run_worker
from common import codec
from common.messages import Assignment, WorkerOrder, WorkerPrepare
from common.program import directory_is_gone

if TYPE_CHECKING:
    from multiprocess.connection import Connection
    from multiprocess.process import BaseProcess

_JOIN_S = 5.0
_READ_AT_MOST = 64  # reports taken from one process in one go


class Processes:
    """The worker processes of one run; process numbers are positions of the assignments given to `spawn`."""

    def __init__(self) -> None:
        self._context = multiprocess.get_context("spawn")
        self._children: dict[int, tuple[BaseProcess, Connection]] = {}

    def spawn(self, run_id: str, assignments: Sequence[Assignment]) -> None:
        """Start a process for each assignment and have it prepare."""
        if directory_is_gone():
            os.chdir("/")  # children start in their parent's working directory, and so would not
        for number, assignment in enumerate(assignments):
            ours, theirs = self._context.Pipe(duplex=True)
            child = self._context.Process(target=run_worker, args=(theirs,), name=f"worker-{number}")
            child.start()
            # Only the child may hold its end, or we would never read the end of the pipe when it dies.
            theirs.close()
            self._children[number] = (child, ours)
            ours.send_bytes(codec.pack(WorkerPrepare(run_id=run_id, assignment=assignment, process=number)))

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
            yield FromWorker(number, codec.decode_from_worker(data))

    def _end(self, number: int) -> None:
        child, pipe = self._children.pop(number)
        child.join(_JOIN_S)
        if child.is_alive():
            child.kill()
            child.join()
        pipe.close()

    def kill(self) -> None:
        """End all of them at once and forget them. Idempotent."""
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
