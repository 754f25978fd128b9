"""A worker's end of the pipe on a thread of the test, and what it reports: everything of a worker but the process."""

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
    """All pools of the plan as one share; one pool for a group that does not say how many."""
    shares: list[PoolShare] = []
    threads = 0
    for group, pools in enumerate(plan.pools):
        for _ in range(pools.client_pools or 1):
            shares.append(PoolShare(group=group, number=len(shares), first_thread=threads))
            threads += pools.workers_per_pool
    return Assignment(plan=plan, pools=tuple(shares), threads_total=threads)


class Reported:
    """What a worker said from its start to its last word."""

    def __init__(self, messages: Iterable[WorkerMessage], final: WorkerFinal) -> None:
        self.metrics = [message for message in messages if isinstance(message, WorkerMetrics)]
        self.intervals = [interval for message in self.metrics for interval in message.intervals]
        self.total: IntervalMetrics = merge_intervals(self.intervals, Merge.CONSECUTIVE)
        self.final = final

    @property
    def pool(self) -> PoolMetrics:
        """The only group of pools."""
        [pool] = self.total.pools.values()
        return pool

    @property
    def all_commands(self) -> CommandMetrics:
        """All commands together."""
        return merge_commands(self.pool.commands.values())

    def adds_up(self) -> None:
        """Raises AssertionError unless each operation begun was counted once."""
        assert self.final.issued == self.final.counted == self.total.issued == self.total.operations
        assert self.final.transactions == self.total.transactions


class WorkerThread:
    """A worker that runs on a thread; the caller is its agent. exit_code: as the process', once it has ended."""

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

    def say(self, data: bytes) -> None:
        """Send raw bytes."""
        self._ours.send_bytes(data)

    def renew(self, for_s: float = 3600.0) -> None:
        """Let its load go on for so long."""
        self.say(pack(WorkerRenew(until_ns=boottime_ns() + round(for_s * NS_PER_S))))

    def prepare(self, plan: Plan, lease_s: float = 3600.0) -> None:
        """Give it all pools of the plan, and a lease."""
        self.renew(lease_s)
        self.say(pack(WorkerPrepare(run_id="run", assignment=whole_of(plan), process=0)))

    def start(self, in_s: float = 0.0) -> int:
        """Let it begin; returns its start instant."""
        t0_ns = monotonic_ns() + round(in_s * NS_PER_S)
        self.say(pack(WorkerStart(t0_ns=t0_ns)))
        return t0_ns

    def stop(self, *, drain: bool = True) -> None:
        """Order it to stop."""
        self.say(pack(WorkerStop(drain=drain)))

    def receive(self, timeout_s: float = 15.0) -> WorkerMessage:
        """Its next report. Raises AssertionError when none comes in time, EOFError when it has gone."""
        assert self._ours.poll(timeout_s), f"the worker said nothing for {timeout_s:g}s"
        return decode_from_worker(self._ours.recv_bytes())

    def hear(self, kind: type[T]) -> T:
        """The next report of this kind. Raises AssertionError when it is not the next but for progress."""
        messages = self.all_until(kind)
        assert isinstance(messages[-1], kind)
        return messages[-1]

    def all_until(self, kind: type[Any]) -> list[WorkerMessage]:
        """All reports up to the first of this kind."""
        messages = [self.receive()]
        while not isinstance(messages[-1], kind):
            messages.append(self.receive())
        return messages

    def began(self, plan: Plan, in_s: float = 0.0) -> int:
        """Prepare and start; returns the start instant."""
        self.prepare(plan)
        self.hear(Prepared)
        return self.start(in_s)

    def reported(self) -> Reported:
        """All that it reports from now on, to its last word."""
        messages = self.all_until(WorkerFinal)
        final = messages[-1]
        assert isinstance(final, WorkerFinal)
        return Reported(messages, final)

    def ran(self, plan: Plan, in_s: float = 0.0) -> Reported:
        """A whole run, to its end, in which everything must add up."""
        self.began(plan, in_s)
        reported = self.reported()
        assert self.end() == 0
        reported.adds_up()
        return reported

    def leave(self) -> None:
        """Close the pipe as a dying agent does. Idempotent."""
        self._ours.close()

    def end(self, timeout_s: float = 15.0) -> int | None:
        """Its exit code. Raises AssertionError when it does not end in time."""
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), f"the worker runs on after {timeout_s:g}s"
        return self.exit_code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
        self.end()
