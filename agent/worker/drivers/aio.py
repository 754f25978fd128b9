"""The `asyncio` driver: a worker task checks out a client instance, operates through redis.asyncio, and returns it.

It measures what the `client` driver measures, on an event loop: service time runs from the call to the moment in which
its task goes on, so it holds what the loop did for other tasks in between, as an application would see it.

All workers of a pool are tasks of one loop. What ends them before their time is a cancellation, which only ever means
that the run is over: it ends a call, a connect and a backoff alike.
"""

from __future__ import annotations

from asyncio import CancelledError, sleep
from itertools import islice
from typing import TypeAlias

from agent.worker.drivers.accounting import FAILED_PACE_NS, Worker, count_timeout, leave, record_batch, undone
from agent.worker.metrics.recorder import pack_row
from agent.worker.pacing.pacer import Span
from agent.worker.pools.task_pools import AsyncClientInstancePool
from agent.worker.pools.thread_pools import CheckoutTimeout
from common.cancellation import CutShort
from common.clock import monotonic_ns
from common.units import NS_PER_S

TaskWorker: TypeAlias = Worker[AsyncClientInstancePool]


async def run_asyncio_worker(worker: TaskWorker) -> None:
    """Work from the start of the span until its end, until the quota is used up, or until the run is cut short."""
    try:
        await until(worker.span, worker.span.begin_ns)
    except CancelledError:
        worker.record.unsent += worker.pacer.unsent(())
        return
    if worker.batch == 1 and not worker.transaction:
        await _run_singles(worker)
    else:
        await _run_batches(worker)


async def until(span: Span, due_ns: int) -> None:
    """Let others work until then, or until the end if that comes first."""
    while (nap_ns := span.nap_ns(due_ns)) > 0:
        await sleep(nap_ns / NS_PER_S)


async def _yield_to_others(span: Span, due_ns: int, begin_ns: int) -> None:
    """Yield after an operation that ended without a reply. A call that fails at once never yields to the event loop, so
    its task would starve the others. In a closed loop, `FAILED_PACE_NS` applies too."""
    await sleep(0)
    if due_ns < 0:
        await until(span, begin_ns + FAILED_PACE_NS)


def _end_if_cut(worker: TaskWorker, now_ns: int) -> None:
    # Calls fail at once then, without a turn for anybody else: whoever went on would have the loop for himself.
    if worker.cancellation.is_cancelled:
        worker.span.end_at(now_ns)


async def _run_singles(worker: TaskWorker) -> None:
    # The hot path, hence the local names.
    span, record, measures = worker.span, worker.record, worker.measures
    take, checkout, give_back = worker.pool.take, worker.pool.checkout, worker.pool.give_back
    add, now = record.add, monotonic_ns
    begin_ns = end_ns = now()
    has_failed = False
    for turn, (row, arguments, bytes_out, follow) in zip(worker.pacer.turns(), worker.operations, strict=False):
        (due_ns,) = turn
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
            end_ns = count_timeout(worker, turn, (row,), timeout)
            if end_ns >= span.end_ns:
                record.unsent += worker.pacer.unsent(())
                return
            continue
        except (CutShort, CancelledError):
            record.unsent += worker.pacer.unsent(turn)
            return
        begin_ns = now()
        if begin_ns >= span.end_ns:
            give_back(instance)
            leave(worker, turn, wait_ns)
            return
        record.issued += 1
        try:
            reply = await instance.execute(*arguments)
        except (Exception, CancelledError) as error:  # noqa: BLE001 - whatever it is, it is how this operation ended
            end_ns = now()
            row, bytes_in = undone(worker, row, error)
            has_failed = not bytes_in
            _end_if_cut(worker, end_ns)
        else:
            end_ns = now()
            bytes_in = measures[row](reply)
            if follow is not None and (failure := follow(reply)) is not None:
                row += len(measures) * worker.outcomes.number(failure)
        give_back(instance)
        lag_ns = begin_ns - due_ns if due_ns >= 0 else due_ns
        add(pack_row(end_ns, row, end_ns - begin_ns, lag_ns, bytes_out, bytes_in, wait_ns))


async def _run_batches(worker: TaskWorker) -> None:
    span, record, now = worker.span, worker.record, monotonic_ns
    begin_ns = end_ns = now()
    has_failed = False
    for turn in worker.pacer.turns():
        operations = list(islice(worker.operations, len(turn)))
        try:
            if turn[-1] > end_ns:
                await until(span, turn[-1])
            elif has_failed:
                await _yield_to_others(span, turn[-1], begin_ns)
            has_failed = False
            instance, wait_ns = await worker.pool.checkout()
        except CheckoutTimeout as timeout:
            end_ns = count_timeout(worker, turn, [row for row, _, _, _ in operations], timeout)
            if end_ns >= span.end_ns:
                record.unsent += worker.pacer.unsent(())
                return
            continue
        except (CutShort, CancelledError):
            record.unsent += worker.pacer.unsent(turn)
            return
        pipeline = instance.client.pipeline(transaction=worker.transaction)
        for _, arguments, _, _ in operations:
            # It is put in line: nothing to await.
            pipeline.execute_command(*arguments)
        begin_ns = now()
        if begin_ns >= span.end_ns:
            worker.pool.give_back(instance)
            leave(worker, turn, wait_ns)
            return
        record.issued += len(turn)
        record.transactions += worker.transaction
        executed = worker.transaction
        try:
            replies = await pipeline.execute(raise_on_error=False)
        except (Exception, CancelledError) as error:  # noqa: BLE001 - whatever it is, it is how these operations ended
            replies = [error] * len(turn)
            executed = False
            has_failed = True
            _end_if_cut(worker, now())
        end_ns = now()
        worker.pool.give_back(instance)
        record_batch(worker, turn, operations, replies, executed, (begin_ns, end_ns, wait_ns))
