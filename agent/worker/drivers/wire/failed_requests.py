"""Requests of the wire driver that failed: their rows, and their arguments, which samples of errors need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from agent.worker.drivers.base import WorkerContext
from agent.worker.drivers.result_rows import failed_kind
from agent.worker.drivers.wire.requests import Batch, RequestBlock
from agent.worker.metrics.outcomes import LazyArguments
from agent.worker.metrics.rows import BYTES_OUT, NONE, PACKED, distinct
from agent.worker.workload.reply_effects import Operation


def failed_rows(
    context: WorkerContext[Any],
    block: RequestBlock,
    requests: range,
    error: Exception,
    now_ns: int,
    place: tuple[int, int],
) -> bytes:
    """Packed rows of requests of a steady load that failed with one error before they were sent. requests: their
    indices in the block. place: (leg, number of the server)."""
    leg, endpoint = place
    commands = block.rows[requests.start : requests.stop]
    rows = np.empty((len(requests), PACKED), dtype=np.int64)
    for command in distinct(commands):
        chosen = np.flatnonzero(commands == command)
        arguments = partial(block.arguments_of, requests[int(chosen[0])])
        kind, bytes_in = failed_kind(context, command, error, arguments)
        rows[chosen] = (now_ns, kind, 0, NONE, leg, 0, bytes_in, NONE, endpoint, 0)
    rows[:, BYTES_OUT] = block.sizes[requests.start : requests.stop]
    return rows.tobytes()


def lazy_arguments(batch: Batch, operations: Sequence[Operation]) -> Callable[[Operation], LazyArguments]:
    """The arguments of each operation of a batch, unpacked only when they are needed. operations: of this batch."""
    first, _, block, _ = batch
    begin = first - block.first

    def arguments(operation: Operation) -> Sequence[bytes]:
        return block.arguments_of(begin + next(at for at, each in enumerate(operations) if each is operation))

    return lambda operation: partial(arguments, operation)
