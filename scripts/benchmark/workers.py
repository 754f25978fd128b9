"""Our own drivers as contenders: worker processes as an agent runs them."""

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
from scripts.benchmark.contenders import BenchError, Contender, Lane, pinned

_PATIENCE_NS = 30 * NS_PER_S
_LEASE_NS = 24 * 3600 * NS_PER_S
_SLICE_NS = NS_PER_S // 50


class _Workers:
    """Worker processes as an agent runs them: the same entry, the same messages, every metric on, collected each
    second and reported to us, who are their agent."""

    slack = 0

    def __init__(self, processes: Processes, count: int) -> None:
        self._processes = processes
        self._count = count
        self._prepared = self._exited = 0
        self._counted = self._done = 0
        self.intervals: list[IntervalMetrics] | None = None

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
        self._processes.renew(boottime_ns() + _LEASE_NS)
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

    def attend_to_the_end(self, until_ns: int) -> None:
        """As `attend`, but the load's own end is no surprise."""
        self._listen(lambda: self._exited == self._count, until_ns)

    @property
    def has_ended(self) -> bool:
        """Whether all are over and have said all."""
        return self._exited == self._count

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
                        if self.intervals is not None:
                            self.intervals += intervals
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


@dataclass(frozen=True, slots=True)
class CompletedLoad:
    """A load that came to its own end. counted: its operations, all of them done."""

    intervals: list[IntervalMetrics]
    counted: int


def run_through(lane: Lane, each_second: Callable[[int], None] = lambda _: None) -> CompletedLoad:
    """The plan's load in one worker process, from its beginning to its own end. each_second: what to do meanwhile, with
    the id of the process. Raises BenchError."""
    seconds = lane.plan.load.duration_s or 0
    with Processes() as spawned:
        contender = _Workers(spawned, 1)
        contender.intervals = []
        with pinned(lane.core):
            contender.prepare(lane.plan)
        [pid] = contender.pids()
        contender.begin()
        give_up_ns = monotonic_ns() + int(seconds * NS_PER_S) + _PATIENCE_NS
        while not contender.has_ended and monotonic_ns() < give_up_ns:
            contender.attend_to_the_end(monotonic_ns() + NS_PER_S)
            if not contender.has_ended:
                each_second(pid)
        return CompletedLoad(contender.intervals, contender.end())


class _Together:
    """Several that are one."""

    slack = 0

    def __init__(self, contenders: Sequence[Contender]) -> None:
        self._contenders = contenders

    def pids(self) -> list[int]:
        return [pid for contender in self._contenders for pid in contender.pids()]

    def begin(self) -> None:
        for contender in self._contenders:
            contender.begin()

    def attend(self, until_ns: int) -> None:
        while (now_ns := monotonic_ns()) < until_ns:
            for number, contender in enumerate(self._contenders, start=1):
                contender.attend(min(until_ns, now_ns + number * _SLICE_NS))

    def end(self) -> int:
        return sum(contender.end() or 0 for contender in self._contenders)


@contextmanager
def together(lanes: Sequence[Lane]) -> Iterator[Contender]:
    """A worker process in each of these lanes."""
    with ExitStack() as stack:
        yield _Together([stack.enter_context(workers(lane)) for lane in lanes])
