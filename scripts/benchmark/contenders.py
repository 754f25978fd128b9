"""Contenders: what a benchmark compares. Each has its own processes, and is prepared, started and ended by the
benchmark. `turns` pauses and resumes the processes in between; contenders need not know that.
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
from scripts.benchmark.baseline_program import BaselineJob


class BenchError(StampedeError):
    """A contender failed, so its numbers mean nothing."""


class Contender(Protocol):
    """A prepared contender. max_uncounted: most operations that the server may have counted and the contender not."""

    max_uncounted: int

    def pids(self) -> list[int]:
        """The processes of the contender."""

    def start_load(self) -> None:
        """Start to load the server."""

    def wait_until(self, until_ns: int) -> None:
        """Wait until this monotonic time, and receive reports meanwhile. Raises BenchError if the contender failed."""

    def stop_load(self) -> int | None:
        """End the contender and return its count of operations; None if it reports none. Raises BenchError if an
        operation failed."""


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """The load for one generator. port: the server's port on loopback, for baselines; our drivers use the plan's URL.
    core: the generator's core; None if it is not pinned."""

    plan: Plan
    port: int
    core: int | None


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """Pin all processes that start within the block to this core; None pins nothing."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _Baseline:
    """A loop of redis-py calls, in a process of its own."""

    max_uncounted = 0

    def __init__(self, pid: int, stdin: IO[str], stdout: IO[str]) -> None:
        self._pid = pid
        self._stdin = stdin
        self._stdout = stdout

    def prepare(self, job: BaselineJob) -> None:
        """Send the job, and wait until the process is ready."""
        self._write(json.dumps(asdict(job)))
        self._read()

    def pids(self) -> list[int]:
        return [self._pid]

    def start_load(self) -> None:
        self._write("start")

    def wait_until(self, until_ns: int) -> None:
        time.sleep(max(0, until_ns - monotonic_ns()) / NS_PER_S)

    def stop_load(self) -> int:
        self._write("stop")
        return int(self._read())

    def _write(self, line: str) -> None:
        try:
            self._stdin.write(f"{line}\n")
            self._stdin.flush()
        except BrokenPipeError as error:
            raise BenchError("bench: the baseline ended early") from error

    def _read(self) -> str:
        line = self._stdout.readline()
        if not line:
            raise BenchError("bench: the baseline ended early")
        return line


@contextmanager
def baseline(spec: LoadSpec, style: str) -> Iterator[Contender]:
    """A baseline that is ready. style: a key of `STYLES` or `TASK_STYLES` in `baseline_program`."""
    target, workload, pools = spec.plan.target, spec.plan.workload, spec.plan.pools[0]
    job = BaselineJob(
        port=spec.port,
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
    command = [sys.executable, "-m", "scripts.benchmark.baseline_program"]
    with pinned(spec.core):
        # Own session: Ctrl-C must not reach the process, which would print a traceback.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
    with process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            contender = _Baseline(process.pid, process.stdin, process.stdout)
            contender.prepare(job)
            yield contender
        finally:
            process.kill()
