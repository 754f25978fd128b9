"""What one worker works with, and how what it did is put on record: the same for every driver.

Every operation is counted exactly once: done, ended by an error reply, or ended without a reply.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from agent.worker.metrics.recorder import NONE, WAIT_ONLY, Outcomes, Record, pack_row
from agent.worker.metrics.wire_sizes import MULTI_EXEC_REQUEST_BYTES, QUEUED_BYTES, Measure, transaction_reply_bytes
from agent.worker.pacing.pacer import Pacer, Span, Turn, lag_of_unsent
from agent.worker.pools.thread_pools import CheckoutTimeout
from agent.worker.workload.operations import Operation
from common.cancellation import Cancellation, CutShort
from common.clock import monotonic_ns
from common.redis_client import Failure, failure_of

P = TypeVar("P")

FAILED_PACE_NS = 1_000_000
"""Least time between the begins of a worker's operations while they fail without a reply, in a closed loop. Calls that
fail at once never wait for the network: without this pause, a few failing workers would take the whole interpreter,
and the other workers would starve."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker(Generic[P]):
    """All that one worker works with, a thread or a task.

    pool: where its driver finds client instances. rows: how many rows the mix has. measures: by row, what a reply takes
    on the wire. batch: operations a round trip. transaction: each batch is a MULTI/EXEC. Span, pool, outcomes and
    cancellation are shared with other workers.
    """

    span: Span
    pacer: Pacer
    pool: P
    operations: Iterator[Operation]
    record: Record
    outcomes: Outcomes
    cancellation: Cancellation
    measures: Sequence[Measure]
    batch: int
    transaction: bool


def record_batch(
    worker: Worker[Any],
    turn: Turn,
    operations: list[Operation],
    replies: list[Any],
    executed: bool,
    times_ns: tuple[int, int, int],
) -> None:
    """replies: one an operation; an error where there is none. executed: they are those of a transaction that was
    carried out. times_ns: begin and end of the round trip, and how long its client instance was waited for."""
    begin_ns, end_ns, wait_ns = times_ns
    # MULTI and EXEC are of the whole batch; its first operation bears what they add.
    extra_out = MULTI_EXEC_REQUEST_BYTES if worker.transaction else 0
    extra_in = transaction_reply_bytes(len(turn)) if executed else 0
    queued = QUEUED_BYTES if executed else 0
    rows = []
    for due_ns, (row, _, bytes_out, follow), reply in zip(turn, operations, replies, strict=True):
        if isinstance(reply, BaseException):
            row, bytes_in = undone(worker, row, reply)
        else:
            bytes_in = worker.measures[row](reply)
            if follow is not None and (failure := follow(reply)) is not None:
                row += len(worker.measures) * worker.outcomes.number(failure)
        lag_ns = begin_ns - due_ns if due_ns >= 0 else due_ns
        bytes_in += queued + extra_in
        rows.append(pack_row(end_ns, row, end_ns - begin_ns, lag_ns, bytes_out + extra_out, bytes_in, wait_ns))
        wait_ns, extra_out, extra_in = NONE, 0, 0
    worker.record.add(b"".join(rows))


def undone(worker: Worker[Any], row: int, error: BaseException) -> tuple[int, int]:
    """(kind, bytes in) of an operation of this row that this error ended."""
    failure = failure_of(error)
    if not failure.replied and worker.cancellation.is_cancelled:
        # A socket that we shut down looks to redis-py like one that the server closed.
        failure = Failure(False, CutShort.__name__, 0)
    return row + len(worker.measures) * worker.outcomes.number(failure), failure.bytes_in


def count_timeout(worker: Worker[Any], turn: Turn, rows: Sequence[int], timeout: CheckoutTimeout) -> int:
    """Operations that got no client instance were begun, and failed, but nothing was sent. Returns when, in ns."""
    record = worker.record
    record.issued += len(rows)
    end_ns = monotonic_ns()
    outcome = len(worker.measures) * worker.outcomes.number(Failure(False, CheckoutTimeout.__name__, 0))
    wait_ns = timeout.waited_ns
    for due_ns, row in zip(turn, rows, strict=True):
        lag_ns = lag_of_unsent(due_ns, end_ns - timeout.waited_ns)
        record.add(pack_row(end_ns, row + outcome, timeout.waited_ns, lag_ns, 0, 0, wait_ns))
        wait_ns = NONE
    return end_ns


def leave(worker: Worker[Any], turn: Turn, wait_ns: int) -> None:
    """The end came before the operation could begin. The wait is kept: the longest ones would be missing else."""
    worker.record.unsent += worker.pacer.unsent(turn)
    if wait_ns:
        worker.record.add(pack_row(monotonic_ns(), WAIT_ONLY, 0, NONE, 0, 0, wait_ns))
