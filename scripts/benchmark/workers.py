"""Our drivers as contenders: worker processes as an agent runs them."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from agent.core.actions import WorkerExited
from agent.processes import Processes
from common.clock import boottime_ns, monotonic_ns
from common.metrics.intervals import IntervalMetrics
from common.plan.schema import Plan
from common.protocol.messages import (
    Assignment,
    Failed,
    PoolShare,
    Prepared,
    WorkerFinal,
    WorkerMetrics,
    WorkerStart,
    WorkerStop,
)
from common.units import NS_PER_S
from scripts.benchmark.contenders import BenchError, Contender, LoadSpec, pinned

_TIMEOUT_NS = 30 * NS_PER_S
_LEASE_NS = 24 * 3600 * NS_PER_S
_POLL_NS = NS_PER_S // 50


class _Workers:
    """Worker processes that run exactly as under an agent: same entry point, same messages, all metrics. The benchmark
    receives their metrics once per second, as their agent would.

    intervals: the received metrics; None if they need not be kept."""

    max_uncounted = 0

    def __init__(self, processes: Processes, count: int) -> None:
        self._processes = processes
        self._count = count
        self._prepared = self._exited = 0
        self._counted = self._ok = 0
        self.intervals: list[IntervalMetrics] | None = None

    def prepare(self, plan: Plan) -> None:
        """Start the processes, each with one pool of the plan, and wait until they are prepared."""
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
        self._processes.renew(boottime_ns() + _LEASE_NS)
        self._receive(lambda: self._prepared == self._count or self._exited > 0, monotonic_ns() + _TIMEOUT_NS)
        if self._prepared < self._count:
            raise BenchError("bench: a worker process was not prepared in time")

    def pids(self) -> list[int]:
        return self._processes.pids()

    def start_load(self) -> None:
        self._processes.order(WorkerStart(t0_ns=monotonic_ns()))

    def wait_until(self, until_ns: int) -> None:
        self._receive(lambda: self._exited > 0, until_ns)
        if self._exited:
            raise BenchError("bench: a worker process ended early")

    def wait_until_ended(self, until_ns: int) -> None:
        """As `wait_until`, for a load that ends by itself: returns early when all processes have ended."""
        self._receive(lambda: self.has_ended, until_ns)

    @property
    def has_ended(self) -> bool:
        """Whether all processes have ended. All their messages have been received by then."""
        return self._exited == self._count

    def stop_load(self) -> int:
        self._processes.order(WorkerStop(drain=True))
        self._receive(lambda: self.has_ended, monotonic_ns() + _TIMEOUT_NS)
        if not self.has_ended:
            raise BenchError("bench: a worker process did not end in time")
        if self._ok != self._counted:
            raise BenchError(f"bench: worker processes counted {self._counted} operations, but {self._ok} succeeded")
        return self._counted

    def _receive(self, is_done: Callable[[], bool], until_ns: int) -> None:
        while not is_done() and (left_ns := until_ns - monotonic_ns()) > 0:
            select.select(self._processes.filenos(), [], [], left_ns / NS_PER_S)
            for event in self._processes.events():
                if isinstance(event, WorkerExited):
                    self._exited += 1
                    continue
                match event.message:
                    case Prepared():
                        self._prepared += 1
                    case WorkerMetrics(intervals=intervals):
                        if self.intervals is not None:
                            self.intervals += intervals
                        pools = [pool for interval in intervals for pool in interval.pools.values()]
                        self._ok += sum(command.ok for pool in pools for command in pool.commands.values())
                    case WorkerFinal(counted=counted):
                        self._counted += counted
                    case Failed(reason=reason):
                        raise BenchError(f"bench: a worker process failed: {reason}")


@contextmanager
def workers(spec: LoadSpec, processes: int = 1) -> Iterator[Contender]:
    """Prepared worker processes, each with one pool of the plan."""
    with Processes() as spawned:
        contender = _Workers(spawned, processes)
        with pinned(spec.core):
            contender.prepare(spec.plan)
        yield contender


@dataclass(frozen=True, slots=True)
class CompletedLoad:
    """A load that ended by itself. counted: number of operations; none failed."""

    intervals: list[IntervalMetrics]
    counted: int


def run_to_end(spec: LoadSpec, each_second: Callable[[int], None] = lambda _: None) -> CompletedLoad:
    """Run the plan in one worker process until its load ends by itself. each_second: called every second with the id of
    the process. Raises BenchError."""
    seconds = spec.plan.load.duration_s or 0
    with Processes() as spawned:
        contender = _Workers(spawned, 1)
        contender.intervals = []
        with pinned(spec.core):
            contender.prepare(spec.plan)
        [pid] = contender.pids()
        contender.start_load()
        give_up_ns = monotonic_ns() + int(seconds * NS_PER_S) + _TIMEOUT_NS
        while not contender.has_ended and monotonic_ns() < give_up_ns:
            contender.wait_until_ended(monotonic_ns() + NS_PER_S)
            if not contender.has_ended:
                each_second(pid)
        return CompletedLoad(contender.intervals, contender.stop_load())


class _Combined:
    """Several contenders that run as one."""

    max_uncounted = 0

    def __init__(self, contenders: Sequence[Contender]) -> None:
        self._contenders = contenders

    def pids(self) -> list[int]:
        return [pid for contender in self._contenders for pid in contender.pids()]

    def start_load(self) -> None:
        for contender in self._contenders:
            contender.start_load()

    def wait_until(self, until_ns: int) -> None:
        while (now_ns := monotonic_ns()) < until_ns:
            for number, contender in enumerate(self._contenders, start=1):
                contender.wait_until(min(until_ns, now_ns + number * _POLL_NS))

    def stop_load(self) -> int:
        return sum(contender.stop_load() or 0 for contender in self._contenders)


@contextmanager
def several_workers(specs: Sequence[LoadSpec]) -> Iterator[Contender]:
    """One contender with a worker process for each of these loads."""
    with ExitStack() as stack:
        yield _Combined([stack.enter_context(workers(spec)) for spec in specs])
