"""What the wire driver did: one raw row a batch on the hot path, rows of operations made of them off it.

A batch is consecutive requests of one block (`agent.worker.wire.source`). Which commands these are, and how long, the
block knows; so the loop notes only where in which block the batch lies, when it began and ended, and how many bytes
came back. The collector's thread makes of that one row for each command of each batch (see `recorder.Rows`), which
stands for all its operations: they were sent together, and read together.

What has more to tell than that (an error, a reply that leads to something, intended send times that differ) is written
as rows of its own, in the form in which other drivers write theirs; such a batch leaves a row here that says so.
"""

from __future__ import annotations

import struct
from array import array
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from agent.worker.recorder import NO_ROWS, NONE, Rows, take_rows
from common.histogram import Ints

pack_batch: Callable[[int, int, int, int, int, int], bytes] = struct.Struct("=6q").pack
"""ended_ns, began_ns, place of its first operation, how many, bytes in, lag_ns: as of all of them.

bytes in of TOLD_APART: rows of their own tell of these operations, or nobody has issued them.
"""

TOLD_APART = -1


class WireRecord:
    """What one worker of the wire driver did. Only the loop writes; the collector takes. See `Record`."""

    __slots__ = ("_batches", "_blocks", "_fixed_bytes", "_next", "_rows", "_singles", "_variable",
                 "add", "add_batch", "issued", "missed", "transactions", "unsent")  # fmt: skip

    def __init__(self, fixed_bytes: Sequence[int | None]) -> None:
        """fixed_bytes: by row of the mix, the size of each of its replies, where all are of the same; None for others.
        One that has none of them may tell a batch of several operations apart only where it is the only one."""
        self._rows = len(fixed_bytes)
        self._fixed_bytes = [size or 0 for size in fixed_bytes]
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
        singles = take_rows(self._singles, 7)
        batches = take_rows(self._batches, 6)
        parts = []
        if len(singles):
            rows = np.ones((len(singles), 8), dtype=np.int64)
            rows[:, :7] = singles
            parts.append(rows)
        if len(batches):
            parts.append(self._of_batches(np.ascontiguousarray(batches.T)))
        return np.concatenate(parts) if parts else NO_ROWS

    def _of_batches(self, batches: Ints) -> Rows:
        """batches: shape (6, n), in the order of `pack_batch`."""
        places, counts = batches[2], batches[3]
        begins = np.array(list(self._blocks), dtype=np.int64)
        which = np.searchsorted(begins, places, side="right") - 1
        used, numbers = np.unique(which, return_inverse=True)
        blocks = [self._blocks[begin] for begin in begins[used].tolist()]
        lengths = np.array([len(block.rows) for block in blocks])
        # Where each block begins in what all of them, one behind the other, are.
        at = places - begins[which] + (np.cumsum(lengths) - lengths)[numbers]
        rows = np.concatenate([block.rows for block in blocks])
        sizes = np.concatenate([block.sizes for block in blocks])
        done = np.bincount(numbers, weights=counts, minlength=len(blocks)).astype(np.int64)
        for begin, block, count in zip(begins[used].tolist(), blocks, done.tolist(), strict=True):
            block.left -= count
            if not block.left:
                del self._blocks[begin]
        told = batches[4] != TOLD_APART
        batches, at, counts = batches[:, told], at[told], counts[told]
        if (counts == 1).all():
            return _rows_of(batches, rows[at], counts, sizes[at], batches[4])
        return self._by_command(batches, at, rows, sizes)

    def _by_command(self, batches: Ints, at: Ints, rows: Ints, sizes: Ints) -> Rows:
        """A row for each command of each batch, in which several operations may be."""
        ends = at + batches[3]
        of_command = [(_between(rows == row, at, ends), _between(np.where(rows == row, sizes, 0), at, ends))
                      for row in range(self._rows)]  # fmt: skip
        bytes_in = [count * size for (count, _), size in zip(of_command, self._fixed_bytes, strict=True)]
        # What is left is of the one command whose replies differ.
        bytes_in[self._variable] = bytes_in[self._variable] + batches[4] - np.sum(bytes_in, axis=0)
        parts = []
        for row, (counts, bytes_out) in enumerate(of_command):
            some = counts > 0
            kinds = np.full(int(some.sum()), row)
            parts.append(_rows_of(batches[:, some], kinds, counts[some], bytes_out[some], bytes_in[row][some]))
        return np.concatenate(parts)


class _Block:
    """left: operations of which nothing has been noted."""

    __slots__ = ("left", "rows", "sizes")

    def __init__(self, rows: Ints, sizes: Ints) -> None:
        self.rows, self.sizes = rows, sizes
        self.left = len(rows)


def _between(values: Ints, begins: Ints, ends: Ints) -> Ints:
    """Sums of values[begin:end]."""
    sums = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(values)])
    found: Ints = sums[ends] - sums[begins]
    return found


def _rows_of(batches: Ints, kinds: Ints, counts: Ints, bytes_out: Ints, bytes_in: Ints) -> Rows:
    ended_ns, began_ns, lag_ns = batches[0], batches[1], batches[5]
    waits = np.full(len(kinds), NONE)
    return np.stack([ended_ns, kinds, ended_ns - began_ns, lag_ns, bytes_out, bytes_in, waits, counts], axis=1)
