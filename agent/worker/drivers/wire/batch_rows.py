"""The record of a wire worker: one packed row for each batch on the hot path, from which rows of operations are made
later.

A batch consists of consecutive requests of one block (`agent.worker.drivers.wire.requests`). The block knows the
command and the size of each request. So the loop only records where the batch begins, when it was sent and answered,
and how many bytes came back. The collector's thread converts this into one row for each command of each batch (see
`metrics.rows`), because the operations of a batch were sent together and read together.

If one row is not enough (after an error, or if replies must be examined, or if intended send times differ), the worker
writes a row for each operation, as other drivers do. The batch's row is then marked RECORDED_SEPARATELY.
"""

from __future__ import annotations

import struct
from array import array
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from agent.worker.metrics.hits import HIT, MISS
from agent.worker.metrics.rows import COUNT, NONE, Rows, join_rows, take_rows, unpack_rows
from agent.worker.metrics.wire_sizes import NIL_BYTES
from common.metrics.histogram import Ints
from common.redis_client import NO_ENDPOINT

pack_batch: Callable[[int, int, int, int, int, int, int, int, int], bytes] = struct.Struct("=9q").pack
"""Packs a batch: ended_ns, began_ns, number of its first request, number of requests, bytes_in, lag_ns, leg,
endpoint (see `metrics.endpoints`), found.

bytes_in is RECORDED_SEPARATELY for requests that have their own rows, or that are not issued from this block.
found: hits and misses in addition to those that `WireRecord` assumes, see `batch_hits`.
"""

_COLUMNS = 9

RECORDED_SEPARATELY = -1

_COUNT_SHIFT = 40
_ONE_OPERATION = 1 << _COUNT_SHIFT
"""One operation, in a sum that has bytes in its low bits. The bytes of a batch stay below 1 TiB."""

_PADDING: Ints = np.zeros(1, dtype=np.int64)


class WireRecord:
    """The record of one worker of the wire driver, see `WorkerRecord`. Only the loop writes; the collector reads."""

    __slots__ = ("_assumed", "_batches", "_blocks", "_fixed_bytes", "_next", "_nil_bytes", "_operations", "_rows",
                 "_variable", "add", "add_batch", "issued", "missed", "transactions", "unsent")  # fmt: skip

    def __init__(self, fixed_bytes: Sequence[int | None], by_nil: Sequence[bool] = (), protocol: int = 3) -> None:
        """fixed_bytes: by row of the mix, the size of every reply; None if sizes differ. With more than one None, a
        batch of several operations must be RECORDED_SEPARATELY. by_nil: by row, see `shown_by_nil`. protocol: the
        version of RESP."""
        self._rows = len(fixed_bytes)
        # What the collector assumes of each reply: a hit, unless it has the size of nil.
        self._assumed: Ints = np.array([HIT if nil else 0 for nil in by_nil or [False] * self._rows], dtype=np.int64)
        self._nil_bytes = NIL_BYTES[protocol]
        self._fixed_bytes: Ints = np.array([[size or 0] for size in fixed_bytes], dtype=np.int64)
        others = [row for row, size in enumerate(fixed_bytes) if size is None]
        self._variable = others[0] if others else 0
        self._batches, self._operations = array("q"), array("q")
        self.add_batch = self._batches.frombytes
        self.add: Callable[[bytes], None] = self._operations.frombytes
        self._blocks: dict[int, _RecordedBlock] = {}
        self._next = 0
        self.issued = 0
        self.transactions = 0
        self.unsent = 0
        self.missed: Counter[int] = Counter()

    def add_block(self, rows: Ints, sizes: Ints) -> int:
        """Add a block of requests: for each, its row of the mix and its bytes. Returns the number of the first one."""
        first = self._next
        self._blocks[first] = _RecordedBlock(rows, sizes)
        self._next += len(rows)
        return first

    def skip(self, first: int, count: int) -> None:
        """Cover `count` requests of the block with number `first` that no batch row describes."""
        self.add_batch(pack_batch(0, 0, first, count, RECORDED_SEPARATELY, 0, 0, NO_ENDPOINT, 0))

    def take(self) -> Rows:
        """All rows since the last call."""
        operations = unpack_rows(self._operations)
        batches = take_rows(self._batches, _COLUMNS)
        if not len(batches):
            return operations
        return join_rows([operations, self._rows_of_batches(np.ascontiguousarray(batches.T))])

    def _rows_of_batches(self, batches: Ints) -> Rows:
        """batches: shape (9, n), in the order of `pack_batch`."""
        positions, blocks = self._find(batches[2], batches[3])
        is_here = batches[4] != RECORDED_SEPARATELY
        if not is_here.all():
            batches, positions = batches.compress(is_here, axis=1), positions[is_here]
        # The padding is for `reduceat`: a batch may end where the last block ends, and `reduceat` accesses that index.
        kinds = np.concatenate([*(block.rows for block in blocks), _PADDING])
        sizes = np.concatenate([*(block.sizes for block in blocks), _PADDING])
        if (batches[3] == 1).all():
            rows = kinds[positions]
            found = batches[8] + self._assumed_of(self._assumed[rows], batches)
            return _rows_of(batches, rows, sizes[positions], batches[4], found, batches[3])
        return self._by_command(batches, positions, kinds, sizes)

    def _assumed_of(self, assumed: Ints, batches: Ints) -> Ints:
        """assumed: for each batch of one operation, what is assumed of its command. Returns it with a miss in place of
        a hit for replies of the size of nil."""
        return np.where((assumed > 0) & (batches[4] == self._nil_bytes), MISS, assumed)

    def _find(self, firsts: Ints, counts: Ints) -> tuple[Ints, list[_RecordedBlock]]:
        """(the position of each batch in the joined blocks, the blocks to join). Forgets a block once all its requests
        have been covered."""
        begins = np.array(list(self._blocks), dtype=np.int64)
        which = np.searchsorted(begins, firsts, side="right") - 1
        found = np.bincount(which, counts).astype(np.int64)
        used = np.flatnonzero(found)
        blocks = []
        shifts = np.zeros(len(found), dtype=np.int64)
        length = 0
        for number, begin in zip(used.tolist(), begins[used].tolist(), strict=True):
            block = self._blocks[begin]
            blocks.append(block)
            shifts[number] = length - begin
            length += len(block.rows)
            block.unrecorded -= int(found[number])
            if not block.unrecorded:
                del self._blocks[begin]
        return firsts + shifts[which], blocks

    def _by_command(self, batches: Ints, positions: Ints, kinds: Ints, sizes: Ints) -> Rows:
        """One row for each command of each batch."""
        # Sorted, because `reduceat` also sums the requests between the end of a batch and the beginning of the next.
        order = np.argsort(positions)
        batches, positions = batches.take(order, axis=1), positions[order]
        borders = np.column_stack([positions, positions + batches[3]]).ravel()
        # One sum has both the number of operations and their bytes.
        ones = sizes + _ONE_OPERATION
        both = np.stack([np.add.reduceat(ones * (kinds == row), borders)[::2] for row in range(self._rows)])
        counts, bytes_out = both >> _COUNT_SHIFT, both & (_ONE_OPERATION - 1)
        bytes_in = counts * self._fixed_bytes
        # The other bytes are replies to the one command whose replies differ in size.
        bytes_in[self._variable] += batches[4] - bytes_in.sum(axis=0)
        # The same command is the only one whose replies may tell; all others are answered with a status.
        found, assumed = np.zeros_like(counts), self._assumed[self._variable] * counts[self._variable]
        found[self._variable] = batches[8] + np.where(batches[3] == 1, self._assumed_of(assumed, batches), assumed)
        rows = _rows_of(batches, np.arange(self._rows)[:, None], bytes_out, bytes_in, found, counts)
        has_any = rows[:, COUNT] > 0
        return rows if has_any.all() else rows.T.take(np.flatnonzero(has_any), axis=1).T


class _RecordedBlock:
    """A block of requests. unrecorded: how many requests no row has covered so far."""

    __slots__ = ("rows", "sizes", "unrecorded")

    def __init__(self, rows: Ints, sizes: Ints) -> None:
        self.rows, self.sizes = rows, sizes
        self.unrecorded = len(rows)


def _rows_of(batches: Ints, kinds: Ints, bytes_out: Ints, bytes_in: Ints, found: Ints, counts: Ints) -> Rows:
    """counts: shape (..., n); the other arrays broadcast to it."""
    ended_ns, began_ns, _, _, _, lag_ns, leg, endpoint, _ = batches
    each = (ended_ns, kinds, ended_ns - began_ns, lag_ns, leg, bytes_out, bytes_in, NONE, endpoint, found, counts)
    columns = np.empty((len(each), *counts.shape), dtype=np.int64)
    for column, values in zip(columns, each, strict=True):
        column[...] = values
    return columns.reshape(len(each), -1).T
