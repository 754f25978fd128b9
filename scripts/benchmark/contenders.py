"""Those who are measured: each has processes of its own, gets ready, begins, and runs until it is told to end.

That it can be stopped and continued at any time in between is `turns`' matter and none of its own.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Protocol

from agent.events import WorkerExited
from agent.processes import Processes
from common.clock import monotonic_ns
from common.errors import StampedeError
from common.messages import (
    Assignment,
    Failed,
    PoolShare,
    Prepared,
    WorkerFinal,
    WorkerMetrics,
    WorkerStart,
    WorkerStop,
)
from common.plan.schema import Plan
from common.units import NS_PER_S
from scripts.benchmark.bare import Job

_PATIENCE_NS = 30 * NS_PER_S


class BenchError(StampedeError):
    """A contender did not do what it was to do: its numbers mean nothing."""


class Contender(Protocol):
    """One that is ready."""

    def pids(self) -> list[int]:
        """Its processes."""

    def begin(self) -> None:
        """Load the server from now on."""

    def attend(self, until_ns: int) -> None:
        """Do what its parent has to do meanwhile, until then. Raises BenchError."""

    def end(self) -> int:
        """How many operations it did. Raises BenchError when one of them was not done."""


@dataclass(frozen=True, slots=True)
class Lane:
    """What to run against the server on `port`. core: that of the generator, None where it is not pinned."""

    plan: Plan
    port: int
    core: int | None


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Processes started within inherit this core."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _Workers:
    """Worker processes as an agent runs them: the same entry, the same messages, every metric on, collected each
    second and reported to us, who are their agent."""

    def __init__(self, processes: Processes, count: int) -> None:
        self._processes = processes
        self._count = count
        self._prepared = self._exited = 0
        self._counted = self._done = 0

    def prepare(self, plan: Plan) -> None:
        """One pool of the plan for each."""
        workers = plan.pools[0].workers_per_pool
        self._processes.spawn(
            "benchmark",
            [
                Assignment(
                    plan=plan, pools=(PoolShare(0, number, number * workers),), threads_total=self._count * workers
                )
                for number in range(self._count)
            ],
        )
        self._listen(lambda: self._prepared == self._count or self._exited > 0, monotonic_ns() + _PATIENCE_NS)
        if self._prepared < self._count:
            raise BenchError("bench: the worker processes did not get ready")

    def pids(self) -> list[int]:
        return self._processes.pids()

    def begin(self) -> None:
        self._processes.order(WorkerStart(t0_ns=monotonic_ns()))

    def attend(self, until_ns: int) -> None:
        self._listen(lambda: self._exited > 0, until_ns)
        if self._exited:
            raise BenchError("bench: a worker process ended before its time")

    def end(self) -> int:
        self._processes.order(WorkerStop(drain=True))
        self._listen(lambda: self._exited == self._count, monotonic_ns() + _PATIENCE_NS)
        if self._exited < self._count:
            raise BenchError("bench: a worker process did not end in time")
        if self._done != self._counted:
            raise BenchError(f"bench: of {self._counted} operations of the worker processes {self._done} were done")
        return self._counted

    def _listen(self, is_enough: Callable[[], bool], until_ns: int) -> None:
        while not is_enough() and (left_ns := until_ns - monotonic_ns()) > 0:
            select.select(self._processes.filenos(), [], [], left_ns / NS_PER_S)
            for event in self._processes.events():
                if isinstance(event, WorkerExited):
                    self._exited += 1
                    continue
                match event.message:
                    case Prepared():
                        self._prepared += 1
                    case WorkerMetrics(intervals=intervals):
                        pools = [pool for interval in intervals for pool in interval.pools.values()]
                        self._done += sum(command.ok for pool in pools for command in pool.commands.values())
                    case WorkerFinal(counted=counted):
                        self._counted += counted
                    case Failed(reason=reason):
                        raise BenchError(f"bench: a worker process failed: {reason}")


@contextmanager
def workers(lane: Lane, processes: int = 1) -> Iterator[Contender]:
    """Worker processes, each with one pool of the plan."""
    with Processes() as spawned:
        contender = _Workers(spawned, processes)
        with pinned(lane.core):
            contender.prepare(lane.plan)
        yield contender


class _Bare:
    """A bare loop of redis-py calls, in a process of its own."""

    def __init__(self, pid: int, orders: IO[str], answers: IO[str]) -> None:
        self._pid = pid
        self._orders = orders
        self._answers = answers

    def prepare(self, job: Job) -> None:
        """Wait until it is ready."""
        self._order(json.dumps(asdict(job)))
        self._answer()

    def pids(self) -> list[int]:
        return [self._pid]

    def begin(self) -> None:
        self._order("begin")

    def attend(self, until_ns: int) -> None:
        time.sleep(max(0, until_ns - monotonic_ns()) / NS_PER_S)

    def end(self) -> int:
        self._order("end")
        return int(self._answer())

    def _order(self, line: str) -> None:
        try:
            self._orders.write(f"{line}\n")
            self._orders.flush()
        except BrokenPipeError as error:
            raise BenchError("bench: the bare loop ended before its time") from error

    def _answer(self) -> str:
        line = self._answers.readline()
        if not line:
            raise BenchError("bench: the bare loop ended before its time")
        return line


@contextmanager
def bare(lane: Lane, style: str) -> Iterator[Contender]:
    """The bare loop in one of the styles of `bare.STYLES`."""
    target, workload, pools = lane.plan.target, lane.plan.workload, lane.plan.pools[0]
    job = Job(
        port=lane.port,
        style=style,
        workers=pools.workers_per_pool,
        key_prefix=workload.keys.prefix,
        keys=workload.keys.maximum,
        value_bytes=workload.values.maximum_bytes,
        protocol=target.protocol,
        timeout_s=target.socket_timeout_s,
        retries=target.retry.retries,
        retry_base_s=target.retry.base_s,
        retry_cap_s=target.retry.cap_s,
        max_connections=pools.max_connections,
    )
    command = [sys.executable, "-m", "scripts.benchmark.bare"]
    with pinned(lane.core):
        # A session of its own: it is ours to end, and a Ctrl-C would make it say so at length.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
    with process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            contender = _Bare(process.pid, process.stdin, process.stdout)
            contender.prepare(job)
            yield contender
        finally:
            process.kill()
