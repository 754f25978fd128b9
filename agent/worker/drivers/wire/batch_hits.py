"""Finds the hits and misses of a batch that one row describes, without examining each reply if that is possible.

Replies to most commands that look something up (`Lookup.NIL`) are hits unless they are nil. The collector assumes hits,
and the row of a batch has only the correction:

- A batch of one operation: nil is the only reply of its size, so the collector finds misses by size.
- A batch of several operations: its other commands are never answered with nil (see `WireWorker`), so nils are counted.

The replies to all other commands that look something up are counted one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import filterfalse
from typing import Any

from agent.worker.drivers.wire.requests import Batch
from agent.worker.metrics.hits import HIT, MISS, HitCounter, shown_by_nil
from common.commands import Template


def nils(replies: Sequence[Any]) -> int:
    """The correction for a batch: a miss in place of a hit for each nil."""
    return [*filterfalse(None, replies)].count(None) * (MISS - HIT)


class BatchHits:
    """The hits and misses of batches. counts_nils: any reply may be nil. examines: replies are counted one by one."""

    __slots__ = ("_counters", "counts_nils", "examines")

    def __init__(self, templates: Sequence[Template], counters: Sequence[HitCounter | None]) -> None:
        """templates, counters: by row of the mix."""
        by_nil = [shown_by_nil(template) for template in templates]
        self._counters = [None if nil else count for nil, count in zip(by_nil, counters, strict=True)]
        self.counts_nils = any(by_nil)
        self.examines = any(count is not None for count in self._counters)

    def of_batch(self, batch: Batch, replies: Any) -> int:
        """What the row of a batch has. replies: one for each operation; without a list if there is only one."""
        count = len(batch[3].times_ns)
        if self.examines:
            return self.examine(batch, replies if count > 1 else (replies,))
        return nils(replies) if self.counts_nils and count > 1 else 0

    def examine(self, batch: Batch, replies: Sequence[Any]) -> int:
        """The sum over the replies of all commands that are not `shown_by_nil`."""
        first, _, block, _ = batch
        begin, counters = first - block.first, self._counters
        rows = block.rows[begin : begin + len(replies)].tolist()
        return sum(
            count(reply) for row, reply in zip(rows, replies, strict=True) if (count := counters[row]) is not None
        )
