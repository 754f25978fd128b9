"""The `asyncio` driver: a worker task checks out a client instance, operates through redis.asyncio, and returns it.

It measures the same as the `client` driver, on an event loop: service time is from the call until the task continues.
So it includes the loop's work for other tasks in between, as in an application.

All workers of a pool are tasks of one event loop, which runs on its own thread from `open` to `close`. A task ends
early only by cancellation, which means that the run is over. Cancellation ends calls, connects and backoffs.

`_run_singles` and `_run_batches` are written a second time in `client`, for speed: a change here belongs there too.
"""

from __future__ import annotations

import asyncio
import select
import selectors
import threading
from asyncio import CancelledError, sleep
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor, Future
from itertools import islice
from typing import Any, TypeAlias

from agent.worker.drivers.base import FAILED_PACE_NS, InstancePoolRunner, Job, WorkerContext
from agent.worker.drivers.result_rows import (
    failed_kind,
    record_checkout_timeout,
    record_unsent,
    rejected_kind,
    result_rows,
)
from agent.worker.metrics.endpoints import Endpoints
from agent.worker.metrics.process_usage import LoopRecord, pack_turn
from agent.worker.metrics.rows import NONE, pack_row
from agent.worker.pacing.pacer import Span
from agent.worker.pools.instance_queue import CheckoutTimeout
from agent.worker.pools.prewarm import AsyncRelease, Prewarmable, Release, prewarm_semaphore
from agent.worker.pools.task_pools import AsyncClientInstance, AsyncClientInstancePool
from common.cancellation import Cancellation, CutShort
from common.clock import monotonic_ns
from common.plan.schema import Pools, Target
from common.redis_client.async_clients import count_async_nodes
from common.units import NS_PER_S

TaskContext: TypeAlias = WorkerContext[AsyncClientInstancePool]

_PRECISE_BELOW_S = 0.1
_CLOSE_GRACE_S = 2.0
_CANCEL_AGAIN_S = 0.05
_wait = selectors.DefaultSelector.select  # bound once: it is called for every turn of the loop
_SELECTABLE = 1024
"""select(2) takes file descriptors below this."""


class TaskPoolRunner(InstancePoolRunner[AsyncClientInstancePool]):
    """See `PoolRunner`. Workers are tasks of one event loop, their clients `redis.asyncio.Redis`.

    Only the loop's thread touches the loop; other threads send it calls (`_call`).
    """

    def __init__(
        self,
        target: Target,
        pools: Pools,
        name: str,
        cancellation: Cancellation,
        endpoints: Endpoints | None = None,
    ) -> None:
        """endpoints: numbers the servers. Raises PlanError."""
        count = pools.client_instances_per_pool
        instances = [AsyncClientInstance(target, pools, cancellation, endpoints) for _ in range(count)]
        super().__init__(AsyncClientInstancePool(instances, pools.checkout_timeout_s))
        self._turns = LoopRecord()
        self._close_within_s = float(target.connect_timeout_s) + _CLOSE_GRACE_S
        self._thread = threading.Thread(target=self._run_loop, name=name, daemon=True)
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._closing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._running = 0

    @property
    def loops(self) -> Sequence[LoopRecord]:
        return [self._turns]

    @property
    def nodes(self) -> int:
        return count_async_nodes(self.client)

    @property
    def is_alive(self) -> bool:
        return self._running > 0 and self._thread.is_alive()

    def open(self, between: Callable[[], object]) -> Sequence[Prewarmable]:
        self._thread.start()
        loop = self._started.result()
        for instance in self.pool.instances:
            asyncio.run_coroutine_threadsafe(instance.open(), loop).result()
            between()
        gate = prewarm_semaphore()
        return [_OpensOnLoop(loop, instance, gate) for instance in self.pool.instances]

    def start(self, jobs: Iterable[Job]) -> None:
        jobs = list(jobs)
        self._running = len(jobs)
        self._started.result().call_soon_threadsafe(self._start, jobs)

    def _start(self, jobs: list[Job]) -> None:
        self._tasks = [asyncio.create_task(self._work(job), name=job.name) for job in jobs]
        for task in self._tasks:
            # A callback, because a task that is cancelled at once never begins `_work`.
            task.add_done_callback(self._worker_ended)

    def _worker_ended(self, _: asyncio.Task[None]) -> None:
        self._running -= 1

    async def _work(self, job: Job) -> None:
        span = job.context.span
        with job.watched:
            await run_asyncio_worker(job.context)
            if job.stays:
                await until(span, span.end_ns)

    def cut(self) -> None:
        self._call(self._cut)

    def _cut(self) -> None:
        self.pool.abort()
        for task in (running := [task for task in self._tasks if not task.done()]):
            task.cancel()
        if running:
            # redis-py loses a cancellation that arrives just as the awaited step ends.
            asyncio.get_running_loop().call_later(_CANCEL_AGAIN_S, self._cut)

    def close(self) -> None:
        self._call(self._closing.set)
        if self._thread.ident is not None:
            self._thread.join(self._close_within_s)

    def _call(self, what: Callable[[], object]) -> None:
        if self._thread.is_alive():
            try:
                self._started.result().call_soon_threadsafe(what)
            except RuntimeError:  # the loop was closed at this moment
                return

    def _run_loop(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: precise_loop(self._turns)) as runner:
                self._started.set_result(runner.get_loop())
                runner.run(self._until_closed())
        except Exception as error:
            if not self._started.done():
                self._started.set_exception(error)
                return
            raise

    async def _until_closed(self) -> None:
        await self._closing.wait()
        # Cancel workers that missed their cancellation, and connections that are still being prewarmed.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=_CANCEL_AGAIN_S)
        await self.pool.close()


class _OpensOnLoop:
    """Opens the connections of one client instance from outside its loop. See `Prewarmable`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, instance: AsyncClientInstance, gate: asyncio.Semaphore) -> None:
        self._loop = loop
        self._instance = instance
        self._gate = gate

    def open_all(self, _: Executor, /) -> list[Future[Release]]:
        return [
            asyncio.run_coroutine_threadsafe(self._opened(one), self._loop)
            for one in self._instance.open_all(self._gate)
        ]

    async def _opened(self, one: Coroutine[Any, Any, AsyncRelease]) -> Release:
        keep = await one
        return lambda: asyncio.run_coroutine_threadsafe(keep(), self._loop).result()


class _PreciseSelector(selectors.DefaultSelector):
    """Waits precisely, and records how long the loop is busy between two waits. epoll alone rounds up to whole
    milliseconds, so it would be 0.5 ms late on average."""

    def __init__(self, turns: LoopRecord) -> None:
        super().__init__()
        self._add_turn = turns.add
        self._woke_ns = monotonic_ns()
        self._is_selectable = self.fileno() < _SELECTABLE

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        called_ns = monotonic_ns()
        self._add_turn(pack_turn(called_ns, called_ns - self._woke_ns))
        if timeout and 0 < timeout < _PRECISE_BELOW_S and self._is_selectable:
            # select waits precisely, and can wait for an epoll as for any file. Long waits need no precision.
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        ready = _wait(self, timeout)
        self._woke_ns = monotonic_ns()
        return ready


def precise_loop(turns: LoopRecord) -> asyncio.AbstractEventLoop:
    """An event loop that wakes its tasks precisely. turns: records how long each turn of the loop takes."""
    return asyncio.SelectorEventLoop(_PreciseSelector(turns))


async def run_asyncio_worker(context: TaskContext) -> None:
    """Issue operations from the beginning of the span until its end, until the quota is used up, or until the run is
    cut."""
    try:
        await until(context.span, context.span.begin_ns)
    except CancelledError:
        context.record.unsent += context.pacer.unsent()
        return
    if context.batch == 1 and not context.transaction:
        await _run_singles(context)
    else:
        await _run_batches(context)


async def until(span: Span, due_ns: int) -> None:
    """Sleep until `due_ns`, or until the end of the span if that comes first."""
    while (nap_ns := span.nap_ns(due_ns)) > 0:
        await sleep(nap_ns / NS_PER_S)


async def _yield_to_others(span: Span, due_ns: int, begin_ns: int) -> None:
    """Yield after an operation that ended without a reply. A call that fails at once never yields to the event loop, so
    its task would starve the others. In a closed loop, `FAILED_PACE_NS` applies too."""
    await sleep(0)
    if due_ns < 0:
        await until(span, begin_ns + FAILED_PACE_NS)


def _end_if_cut(context: TaskContext, now_ns: int) -> None:
    # After cancellation, calls fail at once without yielding to the loop, so a worker that continued would block it.
    if context.cancellation.is_cancelled:
        context.span.end_at(now_ns)


async def _run_singles(context: TaskContext) -> None:
    # The hot path, hence the local names.
    span, record, measures, counters = context.span, context.record, context.measures, context.counters
    take, checkout, give_back = context.pool.take, context.pool.checkout, context.pool.give_back
    add, now = record.add, monotonic_ns
    begin_ns = end_ns = now()
    has_failed = False
    for turn, (row, arguments, bytes_out, follow) in zip(context.pacer.turns(), context.operations, strict=False):
        (due_ns,) = turn.times_ns
        try:
            if due_ns > end_ns:
                await until(span, due_ns)
            elif has_failed:
                await _yield_to_others(span, due_ns, begin_ns)
            has_failed = False
            if (instance := take()) is not None:
                wait_ns = 0
            else:
                instance, wait_ns = await checkout()
        except CheckoutTimeout as timeout:
            end_ns = record_checkout_timeout(context, turn, [(row, arguments)], timeout)
            if end_ns >= span.end_ns:
                record.unsent += context.pacer.unsent()
                return
            continue
        except (CutShort, CancelledError):
            record.unsent += context.pacer.unsent(turn.times_ns)
            return
        begin_ns = now()
        if begin_ns >= span.end_ns:
            give_back(instance)
            record_unsent(context, turn, wait_ns)
            return
        record.issued += 1
        try:
            reply = await instance.execute(*arguments)
        except (Exception, CancelledError) as error:  # noqa: BLE001 - any error of a client ends the operation
            end_ns = now()
            row, bytes_in = failed_kind(context, row, error, arguments)
            found = 0
            has_failed = not bytes_in
            _end_if_cut(context, end_ns)
        else:
            end_ns = now()
            bytes_in = measures[row](reply)
            found = 0 if (count := counters[row]) is None else count(reply)
            if follow is not None and (failure := follow(reply)) is not None:
                row = rejected_kind(context, row, failure, arguments)
        endpoint = instance.events.endpoint
        give_back(instance)
        lag_ns = begin_ns - due_ns if due_ns >= 0 else NONE
        add(pack_row(end_ns, row, end_ns - begin_ns, lag_ns, turn.leg, bytes_out, bytes_in, wait_ns, endpoint, found))


async def _run_batches(context: TaskContext) -> None:
    span, record, now = context.span, context.record, monotonic_ns
    begin_ns = end_ns = now()
    has_failed = False
    for turn in context.pacer.turns():
        times_ns = turn.times_ns
        count, due_ns = len(times_ns), times_ns[-1]
        operations = list(islice(context.operations, count))
        try:
            if due_ns > end_ns:
                await until(span, due_ns)
            elif has_failed:
                await _yield_to_others(span, due_ns, begin_ns)
            has_failed = False
            instance, wait_ns = await context.pool.checkout()
        except CheckoutTimeout as timeout:
            end_ns = record_checkout_timeout(context, turn, [each[:2] for each in operations], timeout)
            if end_ns >= span.end_ns:
                record.unsent += context.pacer.unsent()
                return
            continue
        except (CutShort, CancelledError):
            record.unsent += context.pacer.unsent(turn.times_ns)
            return
        pipeline = instance.client.pipeline(transaction=context.transaction)
        for _, arguments, _, _ in operations:
            # It only queues the command, so there is nothing to await.
            pipeline.execute_command(*arguments)
        begin_ns = now()
        if begin_ns >= span.end_ns:
            context.pool.give_back(instance)
            record_unsent(context, turn, wait_ns)
            return
        record.issued += count
        record.transactions += context.transaction
        executed = count if context.transaction else 0
        try:
            replies = await pipeline.execute(raise_on_error=False)
        except (Exception, CancelledError) as error:  # noqa: BLE001 - any error of a client ends the operations
            replies = [error] * count
            executed = 0
            has_failed = True
            _end_if_cut(context, now())
        end_ns = now()
        endpoints = instance.events.endpoints_of_batch(count)
        context.pool.give_back(instance)
        results = zip(times_ns, operations, replies, [end_ns] * count, strict=True)
        record.add(result_rows(context, results, begin_ns, turn.leg, endpoints, executed=executed, wait_ns=wait_ns))
