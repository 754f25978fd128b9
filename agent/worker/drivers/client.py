"""The `client` driver: a worker thread checks out a client instance, operates through redis-py, and returns it.

What is measured is what an application of redis-py would see: one call of its client, with all the retries and
reconnects inside. Service time runs from the call to its return; for a pipeline or a transaction it is the round trip
of the whole batch, which each of its operations took.
"""

from __future__ import annotations

from itertools import islice
from typing import TypeAlias

from agent.worker.drivers.accounting import FAILED_PACE_NS, Worker, count_timeout, leave, record_batch, undone
from agent.worker.metrics.recorder import pack_row
from agent.worker.pools.thread_pools import CheckoutTimeout, ClientInstancePool
from common.cancellation import CutShort
from common.clock import monotonic_ns

ThreadWorker: TypeAlias = Worker[ClientInstancePool]


def run_client_worker(worker: ThreadWorker) -> None:
    """Work from the start of the span until its end, or until the quota is used up."""
    worker.span.wait_until(worker.span.begin_ns)
    if worker.batch == 1 and not worker.transaction:
        _run_singles(worker)
    else:
        _run_batches(worker)


def _run_singles(worker: ThreadWorker) -> None:
    # The hot path: what it does beside the call must stay within a few microseconds, hence the local names.
    span, record, measures = worker.span, worker.record, worker.measures
    checkout, give_back = worker.pool.checkout, worker.pool.give_back
    add, now = record.add, monotonic_ns
    begin_ns = end_ns = now()
    has_failed = False
    for turn, (row, arguments, bytes_out, follow) in zip(worker.pacer.turns(), worker.operations, strict=False):
        (due_ns,) = turn
        if due_ns > end_ns:
            span.wait_until(due_ns)
        elif has_failed:
            has_failed = False
            span.wait_until(begin_ns + FAILED_PACE_NS)
        try:
            instance, wait_ns = checkout()
        except CheckoutTimeout as timeout:
            end_ns = count_timeout(worker, turn, (row,), timeout)
            if end_ns >= span.end_ns:
                record.unsent += worker.pacer.unsent(())
                return
            continue
        except CutShort:
            record.unsent += worker.pacer.unsent(turn)
            return
        begin_ns = now()
        if begin_ns >= span.end_ns:
            worker.pool.give_back(instance)
            leave(worker, turn, wait_ns)
            return
        record.issued += 1
        try:
            reply = instance.execute(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a client raises is how this operation ended
            end_ns = now()
            row, bytes_in = undone(worker, row, error)
            has_failed = due_ns < 0 and not bytes_in
        else:
            end_ns = now()
            bytes_in = measures[row](reply)
            if follow is not None and (failure := follow(reply)) is not None:
                row += len(measures) * worker.outcomes.number(failure)
        give_back(instance)
        lag_ns = begin_ns - due_ns if due_ns >= 0 else due_ns
        add(pack_row(end_ns, row, end_ns - begin_ns, lag_ns, bytes_out, bytes_in, wait_ns))


def _run_batches(worker: ThreadWorker) -> None:
    span, record, now = worker.span, worker.record, monotonic_ns
    begin_ns = end_ns = now()
    has_failed = False
    for turn in worker.pacer.turns():
        operations = list(islice(worker.operations, len(turn)))
        if turn[-1] > end_ns:
            span.wait_until(turn[-1])
        elif has_failed:
            has_failed = False
            span.wait_until(begin_ns + FAILED_PACE_NS)
        try:
            instance, wait_ns = worker.pool.checkout()
        except CheckoutTimeout as timeout:
            end_ns = count_timeout(worker, turn, [row for row, _, _, _ in operations], timeout)
            if end_ns >= span.end_ns:
                record.unsent += worker.pacer.unsent(())
                return
            continue
        except CutShort:
            record.unsent += worker.pacer.unsent(turn)
            return
        pipeline = instance.client.pipeline(transaction=worker.transaction)
        for _, arguments, _, _ in operations:
            pipeline.execute_command(*arguments)  # type: ignore[no-untyped-call]
        begin_ns = now()
        if begin_ns >= span.end_ns:
            worker.pool.give_back(instance)
            leave(worker, turn, wait_ns)
            return
        record.issued += len(turn)
        record.transactions += worker.transaction
        executed = worker.transaction
        try:
            replies = pipeline.execute(raise_on_error=False)
        except Exception as error:  # noqa: BLE001 - whatever a client raises is how these operations ended
            replies = [error] * len(turn)
            executed = False
            has_failed = turn[-1] < 0
        end_ns = now()
        worker.pool.give_back(instance)
        record_batch(worker, turn, operations, replies, executed, (begin_ns, end_ns, wait_ns))
