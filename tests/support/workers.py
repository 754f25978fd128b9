"""A worker that runs on a thread of the test instead of in a process, and its reports."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

from agent.worker.process import run_worker
from common.clock import boottime_ns, monotonic_ns
from common.metrics.intervals import (
    CommandMetrics,
    IntervalMetrics,
    Merge,
    PoolMetrics,
    merge_commands,
    merge_intervals,
)
from common.plan.schema import Plan
from common.protocol.codec import decode_from_worker, pack
from common.protocol.messages import (
    Assignment,
    PoolShare,
    Prepared,
    WorkerFinal,
    WorkerMessage,
    WorkerMetrics,
    WorkerPrepare,
    WorkerRenew,
    WorkerStart,
    WorkerStop,
)
from common.units import NS_PER_S

T = TypeVar("T")


def whole_of(plan: Plan) -> Assignment:
    """An assignment with all pools of the plan. A group without a number of pools has one."""
    shares: list[PoolShare] = []
    threads = 0
    for group, pools in enumerate(plan.pools):
        for _ in range(pools.client_pools or 1):
            shares.append(PoolShare(group=group, number=len(shares), first_thread=threads))
            threads += pools.workers_per_pool
    return Assignment(plan=plan, pools=tuple(shares), threads_total=threads)


class WorkerReport:
    """All metrics that a worker report, and its final report."""

    def __init__(self, messages: Iterable[WorkerMessage], final: WorkerFinal) -> None:
        self.metrics = [message for message in messages if isinstance(message, WorkerMetrics)]
        self.intervals = [interval for message in self.metrics for interval in message.intervals]
        self.total: IntervalMetrics = merge_intervals(self.intervals, Merge.CONSECUTIVE)
        self.final = final

    @property
    def pool(self) -> PoolMetrics:
        """The metrics of the only pool group."""
        [pool] = self.total.pools.values()
        return pool

    @property
    def all_commands(self) -> CommandMetrics:
        """The metrics of all commands together."""
        return merge_commands(self.pool.commands.values())

    def check_sums(self) -> None:
        """Raises AssertionError unless every issued operation was counted once."""
        assert self.final.issued == self.final.counted == self.total.issued == self.total.operations
        assert self.final.transactions == self.total.transactions


class WorkerThread:
    """A worker on a thread; the test is its agent. exit_code: that of its process, once it has ended."""

    def __init__(self) -> None:
        self._ours, theirs = multiprocessing.Pipe(duplex=True)
        self.exit_code: int | None = None
        self._thread = threading.Thread(target=self._run, args=(theirs,), name="worker")
        self._thread.start()

    def _run(self, theirs: Any) -> None:
        code: Any = 0
        try:
            run_worker(theirs)
        except SystemExit as left:
            code = left.code
        finally:
            theirs.close()
            self.exit_code = code

    def send(self, data: bytes) -> None:
        """Send raw bytes."""
        self._ours.send_bytes(data)

    def renew(self, for_s: float = 3600.0) -> None:
        """Renew its lease for this time."""
        self.send(pack(WorkerRenew(until_ns=boottime_ns() + round(for_s * NS_PER_S))))

    def prepare(self, plan: Plan, lease_s: float = 3600.0) -> None:
        """Send it a lease and an assignment with all pools of the plan."""
        self.renew(lease_s)
        self.send(pack(WorkerPrepare(run_id="run", assignment=whole_of(plan), process=0)))

    def start(self, in_s: float = 0.0) -> int:
        """Order it to start. Returns the start instant."""
        t0_ns = monotonic_ns() + round(in_s * NS_PER_S)
        self.send(pack(WorkerStart(t0_ns=t0_ns)))
        return t0_ns

    def stop(self, *, drain: bool = True) -> None:
        """Order it to stop."""
        self.send(pack(WorkerStop(drain=drain)))

    def receive(self, timeout_s: float = 15.0) -> WorkerMessage:
        """Its next message. Raises AssertionError after the timeout, EOFError when it has closed the pipe."""
        assert self._ours.poll(timeout_s), f"the worker said nothing for {timeout_s:g}s"
        return decode_from_worker(self._ours.recv_bytes())

    def receive_next(self, kind: type[T]) -> T:
        """The next message of this kind, skipping others."""
        messages = self.receive_until(kind)
        assert isinstance(messages[-1], kind)
        return messages[-1]

    def receive_until(self, kind: type[Any]) -> list[WorkerMessage]:
        """All messages up to the first of this kind."""
        messages = [self.receive()]
        while not isinstance(messages[-1], kind):
            messages.append(self.receive())
        return messages

    def start_load(self, plan: Plan, in_s: float = 0.0) -> int:
        """Prepare and start. Returns the start instant."""
        self.prepare(plan)
        self.receive_next(Prepared)
        return self.start(in_s)

    def finish(self) -> WorkerReport:
        """Its report from now on to its end."""
        messages = self.receive_until(WorkerFinal)
        final = messages[-1]
        assert isinstance(final, WorkerFinal)
        return WorkerReport(messages, final)

    def run(self, plan: Plan, in_s: float = 0.0) -> WorkerReport:
        """Run the plan to its end and check that every operation was counted once."""
        self.start_load(plan, in_s)
        report = self.finish()
        assert self.end() == 0
        report.check_sums()
        return report

    def close_pipe(self) -> None:
        """Close the pipe, as a dying agent does. May be called twice."""
        self._ours.close()

    def end(self, timeout_s: float = 15.0) -> int | None:
        """Wait for its end. Returns its exit code. Raises AssertionError after the timeout."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"the worker runs on after {timeout_s:g}s"
        return self.exit_code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_pipe()
        self.end()
