"""What became of each operation of a batch, where that takes a look at its replies: an error among them, replies that
lead to something, intended send times that differ, replies that came in several reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from agent.worker.drivers.accounting import Worker, undone
from agent.worker.drivers.wire.request_source import Block
from agent.worker.metrics.recorder import NONE, PACKED, pack_row
from agent.worker.metrics.wire_sizes import MULTI_EXEC_REQUEST_BYTES, QUEUED_BYTES, Measure, transaction_reply_bytes
from agent.worker.workload.operations import Operation
from common.redis_client import failure_of


class Replies:
    """Turns raw replies into what redis-py makes of them, by row of the mix; and tells their sizes as they came."""

    def __init__(self, names: Sequence[str], callbacks: Mapping[str, Any], raw: Sequence[Measure]) -> None:
        """raw: by row, what a reply takes on the wire, as the parser returns it."""
        self._callbacks = [callbacks.get(name) for name in names]
        self._raw = raw

    def made(self, row: int, reply: Any) -> Any:
        """What redis-py returns. Raises whatever it raises over a reply that it cannot read."""
        callback = self._callbacks[row]
        return reply if callback is None else callback(reply)

    def size(self, row: int, reply: Any) -> int:
        """Bytes of a raw reply."""
        return failure_of(reply).bytes_in if isinstance(reply, Exception) else self._raw[row](reply)


def unwrapped(replies: Sequence[Any]) -> tuple[list[Any], bool]:
    """(a reply for each command of a transaction, whether it was carried out), of all the replies to MULTI, commands
    and EXEC. As redis-py does, all of them failed by the first error if it was not."""
    _, *queued, done = replies
    if isinstance(done, list):
        return done, True
    error = next((reply for reply in (replies[0], *queued) if isinstance(reply, Exception)), done)
    if not isinstance(error, Exception):
        error = ConnectionError(f"EXEC was answered with {error!r:.40}")
    return [error] * len(queued), False


def ends_of(sizes: Sequence[int], marks: Sequence[tuple[int, int]], ended_ns: int) -> list[int]:
    """When each reply had come in full. sizes: theirs, in order. marks: (when, bytes that had come by then) of each
    read but the last, which was at `ended_ns`."""
    ends, reached, left = [], 0, list(reversed(marks))
    for size in sizes:
        reached += size
        while left and left[-1][1] < reached:
            left.pop()
        ends.append(left[-1][0] if left else ended_ns)
    return ends


def settled(
    worker: Worker[Any],
    replies: Replies,
    operations: Sequence[tuple[int, Operation, Any, int]],
    begun_ns: int,
    alone_bytes: int | None,
    executed: bool,
) -> bytes:
    """Rows of operations that came to their end. operations: (intended time, operation, raw reply or error, when it
    came) of each. alone_bytes: how many came in, where there is but one. executed: in a transaction."""
    extra_out = MULTI_EXEC_REQUEST_BYTES if worker.transaction else 0
    extra_in = transaction_reply_bytes(len(operations)) if executed else 0
    queued = QUEUED_BYTES if executed else 0
    rows = []
    for due_ns, (row, _, bytes_out, follow), raw, ended_ns in operations:
        kind = row
        if isinstance(raw, BaseException):
            kind, bytes_in = undone(worker, row, raw)
        else:
            try:
                reply = replies.made(row, raw)
                bytes_in = worker.measures[row](reply)
                if follow is not None and (failure := follow(reply)) is not None:
                    kind += len(worker.measures) * worker.outcomes.number(failure)
            except Exception as error:  # noqa: BLE001 - redis-py's caller would have had it instead of a reply
                kind, bytes_in = undone(worker, row, error)
        if alone_bytes is not None:
            bytes_in = alone_bytes
        else:
            bytes_in += queued + extra_in
        lag_ns = begun_ns - due_ns if due_ns >= 0 else due_ns
        rows.append(pack_row(ended_ns, kind, ended_ns - begun_ns, lag_ns, bytes_out + extra_out, bytes_in, NONE))
        extra_out, extra_in = 0, 0
    return b"".join(rows)


def failed_alike(
    worker: Worker[Any], block: Block, begin: int, end: int, error: Exception, at_ns: int, lag_ns: int
) -> bytes:
    """Rows of these operations of a block, which all failed at the same time with one error, before they were sent."""
    outcome, bytes_in = undone(worker, 0, error)
    rows = np.empty((end - begin, PACKED), dtype=np.int64)
    rows[:] = (at_ns, outcome, 0, lag_ns, 0, bytes_in, NONE)
    rows[:, 1] += block.rows[begin:end]
    rows[:, 4] = block.sizes[begin:end]
    return rows.tobytes()
