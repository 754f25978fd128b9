"""Those who are measured: each has processes of its own, gets ready, begins, and runs until it is told to end.

That it can be stopped and continued at any time in between is `turns`' matter and none of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import IO, Protocol

from common.clock import monotonic_ns
from common.errors import StampedeError
from common.plan.schema import Plan
from common.units import NS_PER_S
from scripts.benchmark.bare import BareJob


class BenchError(StampedeError):
    """A contender did not do what it was to do: its numbers mean nothing."""


class Contender(Protocol):
    """One that is ready. slack: operations that it may not have counted when it ended, but the server did."""

    slack: int

    def pids(self) -> list[int]:
        """Its processes."""

    def begin(self) -> None:
        """Load the server from now on."""

    def attend(self, until_ns: int) -> None:
        """Do what its parent has to do meanwhile, until then. Raises BenchError."""

    def end(self) -> int | None:
        """How many operations it did, None where it does not say. Raises BenchError when one of them was not done."""


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


class _Bare:
    """A bare loop of redis-py calls, in a process of its own."""

    slack = 0

    def __init__(self, pid: int, orders: IO[str], answers: IO[str]) -> None:
        self._pid = pid
        self._orders = orders
        self._answers = answers

    def prepare(self, job: BareJob) -> None:
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
    job = BareJob(
        port=lane.port,
        style=style,
        workers=pools.workers_per_pool,
        key_prefix=workload.keys.prefix,
        first_key=workload.keys.minimum,
        keys=workload.keys.maximum - workload.keys.minimum + 1,
        pipeline=workload.pipeline,
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
