"""The `client` driver: a worker thread checks out a client instance, operates through redis-py, and returns it.

Every operation is counted exactly once: done, ended by an error reply, or ended without a reply. What is measured is
what an application of redis-py would see: one call of its client, with all the retries and reconnects inside. Service
time runs from the call to its return; for a pipeline or a transaction it is the round trip of the whole batch, which
each of its operations took.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from agent.worker.operations import Operation
from agent.worker.pacer import Pacer, Span, Turn, lag_of_unsent
from agent.worker.pools import CheckoutTimeout, ClientInstance, ClientInstancePool
from agent.worker.recorder import NONE, WAIT_ONLY, Outcomes, ThreadRecord, pack_row
from agent.worker.resp import MULTI_EXEC_REQUEST_BYTES, QUEUED_BYTES, Measure, transaction_reply_bytes
from common.clock import monotonic_ns
from common.lifeline import CutShort, Lifeline
from common.target import Ending, ending_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """All that one worker thread works with.

    rows: how many rows the mix has. measures: by row, what a reply takes on the wire. batch: operations a round trip.
    transaction: each batch is a MULTI/EXEC. Span, pool, outcomes and lifeline are shared with other threads.
    """

    span: Span
    pacer: Pacer
    pool: ClientInstancePool
    operations: Iterator[Operation]
    record: ThreadRecord
    outcomes: Outcomes
    lifeline: Lifeline
    measures: Sequence[Measure]
    batch: int
    transaction: bool


def run_client_worker(worker: Worker) -> None:
    """Work from the start of the span until its end, or until the quota is used up."""
    worker.span.wait_until(worker.span.t0_ns)
    if worker.batch == 1 and not worker.transaction:
        _run_singles(worker)
    else:
        _run_batches(worker)


def _run_singles(worker: Worker) -> None:
    # The hot path: what it does beside the call must stay within a few microseconds, hence the local names.
    span, record, measures = worker.span, worker.record, worker.measures
    checkout, give_back = worker.pool.checkout, worker.pool.give_back
    add, now = record.add, monotonic_ns
    end_ns = now()
    for turn, (row, arguments, bytes_out, follow) in zip(worker.pacer.turns(), worker.operations, strict=False):
        (due_ns,) = turn
        if due_ns > end_ns:
            span.wait_until(due_ns)
        try:
            instance, wait_ns = checkout()
        except CheckoutTimeout as timeout:
            end_ns = _count_timeout(worker, turn, (row,), timeout)
            if end_ns >= span.end_ns:
                record.unsent += worker.pacer.unsent(())
                return
            continue
        except CutShort:
            record.unsent += worker.pacer.unsent(turn)
            return
        begin_ns = now()
        if begin_ns >= span.end_ns:
            _leave(worker, turn, instance, wait_ns)
            return
        record.issued += 1
        try:
            reply = instance.execute(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a client raises is how this operation ended
            end_ns = now()
            row, bytes_in = _undone(worker, row, error)
        else:
            end_ns = now()
            bytes_in = measures[row](reply)
            if follow is not None and (ending := follow(reply)) is not None:
                row += len(measures) * worker.outcomes.number(ending)
        give_back(instance)
        lag_ns = begin_ns - due_ns if due_ns >= 0 else due_ns
        add(pack_row(end_ns, row, end_ns - begin_ns, lag_ns, bytes_out, bytes_in, wait_ns))


def _run_batches(worker: Worker) -> None:
    span, record, now = worker.span, worker.record, monotonic_ns
    end_ns = now()
    for turn in worker.pacer.turns():
        operations = list(islice(worker.operations, len(turn)))
        if turn[-1] > end_ns:
            span.wait_until(turn[-1])
        try:
            instance, wait_ns = worker.pool.checkout()
        except CheckoutTimeout as timeout:
            end_ns = _count_timeout(worker, turn, [row for row, _, _, _ in operations], timeout)
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
            _leave(worker, turn, instance, wait_ns)
            return
        record.issued += len(turn)
        record.transactions += worker.transaction
        executed = worker.transaction
        try:
            replies = pipeline.execute(raise_on_error=False)
        except Exception as error:  # noqa: BLE001 - whatever a client raises is how these operations ended
            replies = [error] * len(turn)
            executed = False
        end_ns = now()
        worker.pool.give_back(instance)
        _record_batch(worker, turn, operations, replies, executed, (begin_ns, end_ns, wait_ns))


def _record_batch(
    worker: Worker,
    turn: Turn,
    operations: list[Operation],
    replies: list[Any],
    executed: bool,
    times_ns: tuple[int, int, int],
) -> None:
    """executed: the replies are those of a transaction that was carried out."""
    begin_ns, end_ns, wait_ns = times_ns
    # MULTI and EXEC are of the whole batch; its first operation bears what they add.
    extra_out = MULTI_EXEC_REQUEST_BYTES if worker.transaction else 0
    extra_in = transaction_reply_bytes(len(turn)) if executed else 0
    queued = QUEUED_BYTES if executed else 0
    rows = []
    for due_ns, (row, _, bytes_out, follow), reply in zip(turn, operations, replies, strict=True):
        if isinstance(reply, Exception):
            row, bytes_in = _undone(worker, row, reply)
        else:
            bytes_in = worker.measures[row](reply)
            if follow is not None and (ending := follow(reply)) is not None:
                row += len(worker.measures) * worker.outcomes.number(ending)
        lag_ns = begin_ns - due_ns if due_ns >= 0 else due_ns
        bytes_in += queued + extra_in
        rows.append(pack_row(end_ns, row, end_ns - begin_ns, lag_ns, bytes_out + extra_out, bytes_in, wait_ns))
        wait_ns, extra_out, extra_in = NONE, 0, 0
    worker.record.add(b"".join(rows))


def _undone(worker: Worker, row: int, error: Exception) -> tuple[int, int]:
    ending = ending_of(error)
    if not ending.replied and worker.lifeline.is_cut:
        # A socket that we shut down looks to redis-py like one that the server closed.
        ending = Ending(False, CutShort.__name__, 0)
    return row + len(worker.measures) * worker.outcomes.number(ending), ending.bytes_in


def _count_timeout(worker: Worker, turn: Turn, rows: Sequence[int], timeout: CheckoutTimeout) -> int:
    """Operations that got no client instance were begun, and failed, but nothing was sent. Returns when, in ns."""
    record = worker.record
    record.issued += len(rows)
    end_ns = monotonic_ns()
    outcome = len(worker.measures) * worker.outcomes.number(Ending(False, CheckoutTimeout.__name__, 0))
    wait_ns = timeout.waited_ns
    for due_ns, row in zip(turn, rows, strict=True):
        lag_ns = lag_of_unsent(due_ns, end_ns - timeout.waited_ns)
        record.add(pack_row(end_ns, row + outcome, timeout.waited_ns, lag_ns, 0, 0, wait_ns))
        wait_ns = NONE
    return end_ns


def _leave(worker: Worker, turn: Turn, instance: ClientInstance, wait_ns: int) -> None:
    """The end came before the operation could begin. The wait is kept: the longest ones would be missing else."""
    worker.pool.give_back(instance)
    worker.record.unsent += worker.pacer.unsent(turn)
    if wait_ns:
        worker.record.add(pack_row(monotonic_ns(), WAIT_ONLY, 0, NONE, 0, 0, wait_ns))
