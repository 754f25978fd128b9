"""What the wire driver did: one raw row a batch on the hot path, rows of operations made of them off it.

A batch is consecutive requests of one block (`agent.worker.drivers.wire.request_source`). Which commands these are, and
how long, the block knows; so the loop notes only where in which block the batch lies, when it began and ended, and how
many bytes came back. The collector's thread makes of that one row for each command of each batch (see `recorder.Rows`),
which stands for all its operations: they were sent together, and read together.

What has more to tell than that (an error, a reply that leads to something, intended send times that differ) is written
as rows of its own, in the form in which other drivers write theirs; such a batch leaves a row here that says so.
"""

from __future__ import annotations

import struct
from array import array
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from agent.worker.metrics.recorder import NONE, Rows, joined, rows_of_packed, take_rows
from common.metrics.histogram import Ints

pack_batch: Callable[[int, int, int, int, int, int], bytes] = struct.Struct("=6q").pack
"""ended_ns, began_ns, place of its first operation, how many, bytes in, lag_ns: as of all of them.

bytes in of TOLD_APART: rows of their own tell of these operations, or nobody has issued them.
"""

_PACKED = 6

TOLD_APART = -1

_ONE_BIT = 40
_ONE = 1 << _ONE_BIT
"""One operation, where the bits below are of bytes: those of no batch come to a TiB."""

_BORDER: Ints = np.zeros(1, dtype=np.int64)


class WireRecord:
    """What one worker of the wire driver did. Only the loop writes; the collector takes. See `Record`."""

    __slots__ = ("_batches", "_blocks", "_fixed_bytes", "_next", "_rows", "_singles", "_variable",
                 "add", "add_batch", "issued", "missed", "transactions", "unsent")  # fmt: skip

    def __init__(self, fixed_bytes: Sequence[int | None]) -> None:
        """fixed_bytes: by row of the mix, the size of each of its replies, where all are of the same; None for others.
        One that has none of them may tell a batch of several operations apart only where it is the only one."""
        self._rows = len(fixed_bytes)
        self._fixed_bytes: Ints = np.array([[size or 0] for size in fixed_bytes], dtype=np.int64)
        others = [row for row, size in enumerate(fixed_bytes) if size is None]
        self._variable = others[0] if others else 0
        self._batches, self._singles = array("q"), array("q")
        self.add_batch = self._batches.frombytes
        self.add: Callable[[bytes], None] = self._singles.frombytes
        self._blocks: dict[int, _Block] = {}
        self._next = 0
        self.issued = 0
        self.transactions = 0
        self.unsent = 0
        self.missed: Counter[int] = Counter()

    def begin_block(self, rows: Ints, sizes: Ints) -> int:
        """Note a block of requests: the row of the mix and the size of each. Returns the place of its first one."""
        place = self._next
        self._blocks[place] = _Block(rows, sizes)
        self._next += len(rows)
        return place

    def take(self) -> Rows:
        """All rows since the last call."""
        singles = rows_of_packed(self._singles)
        batches = take_rows(self._batches, _PACKED)
        return joined([singles, self._of_batches(np.ascontiguousarray(batches.T))]) if len(batches) else singles

    def _of_batches(self, batches: Ints) -> Rows:
        """batches: shape (6, n), in the order of `pack_batch`."""
        at, blocks = self._found(batches[2], batches[3])
        is_told = batches[4] != TOLD_APART
        if not is_told.all():
            batches, at = batches.compress(is_told, axis=1), at[is_told]
        # One more at the end, because a batch may end with the last block, and its border has to lie somewhere.
        kinds = np.concatenate([*(block.rows for block in blocks), _BORDER])
        sizes = np.concatenate([*(block.sizes for block in blocks), _BORDER])
        if (batches[3] == 1).all():
            return _rows_of(batches, kinds[at], sizes[at], batches[4], batches[3])
        return self._by_command(batches, at, kinds, sizes)

    def _found(self, places: Ints, counts: Ints) -> tuple[Ints, list[_Block]]:
        """The blocks in which batches lie, and the place of each batch in these, one behind the other. A block of which
        all operations have been found is forgotten."""
        begins = np.array(list(self._blocks), dtype=np.int64)
        which = np.searchsorted(begins, places, side="right") - 1
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
            block.left -= int(found[number])
            if not block.left:
                del self._blocks[begin]
        return places + shifts[which], blocks

    def _by_command(self, batches: Ints, at: Ints, kinds: Ints, sizes: Ints) -> Rows:
        """A row for each command of each batch, in which several operations may be."""
        # In their order, so that between the end of one and the begin of the next lies little that is added up in vain.
        order = np.argsort(at)
        batches, at = batches.take(order, axis=1), at[order]
        borders = np.column_stack([at, at + batches[3]]).ravel()
        # Number and bytes in one, so that a single sum tells both.
        ones = sizes + _ONE
        both = np.stack([np.add.reduceat(ones * (kinds == row), borders)[::2] for row in range(self._rows)])
        counts, bytes_out = both >> _ONE_BIT, both & (_ONE - 1)
        bytes_in = counts * self._fixed_bytes
        # What is left is of the one command whose replies differ.
        bytes_in[self._variable] += batches[4] - bytes_in.sum(axis=0)
        rows = _rows_of(batches, np.arange(self._rows)[:, None], bytes_out, bytes_in, counts)
        has_any = rows[:, 7] > 0
        return rows if has_any.all() else rows.T.take(np.flatnonzero(has_any), axis=1).T


class _Block:
    """left: operations of which nothing has been noted."""

    __slots__ = ("left", "rows", "sizes")

    def __init__(self, rows: Ints, sizes: Ints) -> None:
        self.rows, self.sizes = rows, sizes
        self.left = len(rows)


def _rows_of(batches: Ints, kinds: Ints, bytes_out: Ints, bytes_in: Ints, counts: Ints) -> Rows:
    """counts: shape (..., n), and the others may be repeated to that."""
    ended_ns, began_ns, _, _, _, lag_ns = batches
    columns = np.empty((8, *counts.shape), dtype=np.int64)
    each = (ended_ns, kinds, ended_ns - began_ns, lag_ns, bytes_out, bytes_in, NONE, counts)
    for column, values in zip(columns, each, strict=True):
        column[...] = values
    return columns.reshape(8, -1).T
