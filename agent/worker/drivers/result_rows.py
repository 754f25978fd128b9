"""Makes rows from the results of operations, for every driver.

Every operation counts exactly once: done, ended by an error reply, or ended without a reply. For speed, the loops for
single operations in `client` and `aio` write their rows themselves, and so does the fast path of the wire driver. All
other rows are made here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from agent.worker.drivers.base import WorkerContext
from agent.worker.metrics.outcomes import LazyArguments
from agent.worker.metrics.rows import NONE, WAIT_ONLY, pack_row
from agent.worker.metrics.wire_sizes import MULTI_EXEC_REQUEST_BYTES, QUEUED_BYTES, transaction_reply_bytes
from agent.worker.pacing.pacer import LEG_BY_TIME, Turn
from agent.worker.pools.instance_queue import CheckoutTimeout
from agent.worker.workload.arguments import Arguments
from agent.worker.workload.reply_effects import Operation
from common.cancellation import CutShort
from common.clock import monotonic_ns
from common.redis_client import NO_ENDPOINT, Failure, failure_of

Result: TypeAlias = tuple[int, Operation, Any, int]
"""(intended send time, operation, reply or error, when the reply or error came)."""


def result_rows(
    context: WorkerContext[Any],
    results: Iterable[Result],
    begun_ns: int,
    leg: int,
    endpoints: Iterable[int],
    *,
    executed: int = 0,
    wait_ns: int = NONE,
    bytes_in: int | None = None,
    parse: Callable[[int, Any], Any] | None = None,
    arguments_of: Callable[[Operation], LazyArguments] | None = None,
) -> bytes:
    """Packed rows of operations that were sent together and have ended.

    endpoints: the server of each operation, see `Endpoints`. executed: number of replies in EXEC's reply; 0 without a
    transaction, or if it was not executed. wait_ns: how long the batch waited for its client instance. bytes_in: size
    of each reply if it is known, otherwise replies are measured. parse: converts a raw reply to the command of a row
    into a reply or an error. arguments_of: for operations without arguments; used only for those that failed.
    """
    measures, counters = context.measures, context.counters
    # MULTI and EXEC belong to the whole batch; their bytes count for its first operation.
    extra_out = MULTI_EXEC_REQUEST_BYTES if context.transaction else 0
    extra_in = transaction_reply_bytes(executed) if executed else 0
    queued = QUEUED_BYTES if executed else 0
    rows = []
    for (due_ns, operation, reply, ended_ns), endpoint in zip(results, endpoints, strict=False):
        row, arguments, bytes_out, follow = operation
        if parse is not None:
            reply = parse(row, reply)
        kind, found = row, 0
        if isinstance(reply, BaseException):
            lazy = arguments if arguments_of is None else arguments_of(operation)
            kind, size = failed_kind(context, row, reply, lazy)
        else:
            size = measures[row](reply)
            if (count := counters[row]) is not None:
                found = count(reply)
            if follow is not None and (failure := follow(reply)) is not None:
                kind = rejected_kind(context, row, failure, arguments)
        size = size + queued + extra_in if bytes_in is None else bytes_in
        lag_ns = begun_ns - due_ns if due_ns >= 0 else NONE
        sent, took_ns = bytes_out + extra_out, ended_ns - begun_ns
        rows.append(pack_row(ended_ns, kind, took_ns, lag_ns, leg, sent, size, wait_ns, endpoint, found))
        wait_ns, extra_out, extra_in = NONE, 0, 0
    return b"".join(rows)


def failed_kind(
    context: WorkerContext[Any], row: int, error: BaseException, arguments: LazyArguments
) -> tuple[int, int]:
    """(kind, bytes in) of an operation of this row of the mix that ended with this error."""
    failure = failure_of(error)
    if not failure.replied and context.cancellation.is_cancelled:
        # redis-py cannot tell a socket that we shut down from one that the server closed.
        failure = _CUT_SHORT
    return row + len(context.measures) * context.outcomes.kind_number(failure, row, arguments), failure.bytes_in


def rejected_kind(context: WorkerContext[Any], row: int, failure: Failure, arguments: Arguments) -> int:
    """The kind of an operation of this row of the mix that failed without an error of the client."""
    return row + len(context.measures) * context.outcomes.kind_number(failure, row, arguments)


_CUT_SHORT = Failure(False, CutShort.__name__, 0, text="the run ended before the reply")


def record_checkout_timeout(
    context: WorkerContext[Any], turn: Turn, operations: Sequence[tuple[int, Arguments]], timeout: CheckoutTimeout
) -> int:
    """Count operations that got no client instance: begun and failed, but never sent. operations: (row, arguments) of
    each. Returns the present time in ns."""
    record = context.record
    record.issued += len(operations)
    end_ns = monotonic_ns()
    wait_ns = timeout.waited_ns
    leg = turn.leg
    for due_ns, (row, arguments) in zip(turn.times_ns, operations, strict=True):
        lag_ns = max(0, end_ns - timeout.waited_ns - due_ns) if due_ns >= 0 else NONE
        kind = rejected_kind(context, row, _CHECKOUT_TIMEOUT, arguments)
        record.add(pack_row(end_ns, kind, timeout.waited_ns, lag_ns, leg, 0, 0, wait_ns, NO_ENDPOINT, 0))
        wait_ns = NONE
    return end_ns


_CHECKOUT_TIMEOUT = Failure(
    False, CheckoutTimeout.__name__, 0, text="no client instance came free in time", was_sent=False
)


def record_unsent(context: WorkerContext[Any], turn: Turn, wait_ns: int) -> None:
    """Count a turn whose operations could not begin before the end. Record its wait for a client instance, because
    such waits are the longest."""
    context.record.unsent += context.pacer.unsent(turn.times_ns)
    if wait_ns:
        context.record.add(pack_row(monotonic_ns(), WAIT_ONLY, 0, NONE, LEG_BY_TIME, 0, 0, wait_ns, NO_ENDPOINT, 0))
