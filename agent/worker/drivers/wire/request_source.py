"""Where requests come from: blocks that were drawn and packed ahead, or operations made one by one as replies allow.

A block is requests in their order, packed one behind the other, so that any batch of them is one slice. A node's next
requests lie in its current block, from `at` on; where that holds too few for a batch, what is left of it and the first
ones of the next become a block of their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Protocol, TypeAlias

import hiredis
import numpy as np

from agent.worker.drivers.wire.batch_rows import TOLD_APART, WireRecord, pack_batch
from agent.worker.workload.encoding.stream import Packed, PackedStream
from agent.worker.workload.operations import Operation
from common.metrics.histogram import Ints

_pack: Callable[[Sequence[str | bytes]], bytes] = hiredis.pack_command  # type: ignore[assignment]

NOWHERE = -1
"""The place of a block that no record knows."""

NOBODY = -1
"""The node number of slots that no node serves."""


class Block:
    """Requests, ready to be sent. place: of the first one in the record. operations: what they are, for those whose
    replies have to be looked at one by one; None where their bytes are enough."""

    __slots__ = ("count", "offsets", "operations", "payload", "place", "rows", "sizes")

    def __init__(
        self, payload: bytes, offsets: list[int], rows: Ints, sizes: Ints, operations: Sequence[Operation] | None = None
    ) -> None:
        self.payload = payload
        self.offsets = offsets
        self.rows, self.sizes = rows, sizes
        self.operations = operations
        self.count = len(offsets) - 1
        self.place = NOWHERE

    def operations_of(self, begin: int, end: int) -> Sequence[Operation]:
        """Those of begin..end, without arguments where nobody needs them."""
        if self.operations is not None:
            return self.operations[begin:end]
        rows, sizes = self.rows[begin:end].tolist(), self.sizes[begin:end].tolist()
        return [(row, (), size, None) for row, size in zip(rows, sizes, strict=True)]


Batch: TypeAlias = tuple[int, bytes, Block]
"""(place of its first request in the record, all of its requests, the block they are of)."""

NO_REQUESTS = Block(b"", [0], np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


class Feed:
    """The next requests of one node: those of `block` from `at` on, then those of the queue."""

    __slots__ = ("_places", "_skipped", "at", "block", "queue", "queued")

    def __init__(self) -> None:
        self.block, self.at = NO_REQUESTS, 0
        self.queue: deque[Block] = deque()
        self.queued = 0
        # How many of the first block in the queue are taken.
        self._skipped = 0
        # Positions of the batches that are being taken.
        self._places: Iterator[int] = iter(())

    @property
    def backlog(self) -> int:
        """How many requests it has."""
        return self.block.count - self.at + self.queued

    def append(self, block: Block) -> None:
        """More of them."""
        self.queue.append(block)
        self.queued += block.count

    def advance(self, count: int, record: WireRecord) -> bool:
        """Have so many lie in `block` from `at` on. Returns whether there are so many."""
        while self.block.count - self.at < count:
            if self.backlog < count:
                return False
            if self.at < self.block.count:
                self._begin(self._bridge(count), 0, record)
            else:
                following, skipped = self.queue.popleft(), self._skipped
                self._skipped = 0
                self._begin(following, skipped, record)
                self.queued -= following.count - skipped
        return True

    def _bridge(self, count: int) -> Block:
        """A block of what is left of this one, and of so many of those that follow that there are `count`."""
        parts = [(self.block, self.at, self.block.count)]
        wanted = count - (self.block.count - self.at)
        self.queued -= wanted
        while wanted:
            front, begin = self.queue[0], self._skipped
            end = min(front.count, begin + wanted)
            parts.append((front, begin, end))
            wanted -= end - begin
            self._skipped = end
            if end == front.count:
                self.queue.popleft()
                self._skipped = 0
        return _joined(parts)

    def _begin(self, block: Block, at: int, record: WireRecord) -> None:
        self._leave(record)
        if block.operations is None:
            block.place = record.begin_block(block.rows, block.sizes)
            if at:
                record.add_batch(pack_batch(0, 0, block.place, at, TOLD_APART, 0))
        self.block, self.at = block, at

    def take(self, count: int) -> tuple[Block, int, int]:
        """(block, begin, end) of the next `count`, which lie in `block`."""
        begin = self.at
        self.at = begin + count
        return self.block, begin, self.at

    def batches(self, count: int, most: int | None = None) -> Iterator[Batch]:
        """Take the rest of `block` from `at` on, in batches of `count`; what does not fill a batch stays. most: limits
        the number of batches."""
        block, begin = self.block, self.at
        whole = (block.count - begin) // count
        end = self.at = begin + (whole if most is None else min(whole, most)) * count
        cuts = block.offsets[begin : end + 1 : count]
        payloads = map(block.payload.__getitem__, map(slice, cuts, cuts[1:]))
        self._places = iter(range(block.place + begin, block.place + end, count))
        return zip(self._places, payloads, repeat(block))

    def recall(self, count: int, batches: int) -> None:
        """Put back the untaken rest of the last `batches()`, of `count` each, and the last `batches` that were
        taken."""
        self.at -= count * (len(list(self._places)) + batches)

    def hand_over(self, record: WireRecord) -> list[Block]:
        """Remove all requests from this feed, for the feed of another node."""
        parts = [(self.block, self.at)] if self.at < self.block.count else []
        parts += zip(self.queue, chain([self._skipped], repeat(0)), strict=False)
        self._leave(record)
        self.block, self.at = NO_REQUESTS, 0
        self.queue.clear()
        self.queued = self._skipped = 0
        return [_joined([(block, begin, block.count)]) if begin else block for block, begin in parts]

    def _leave(self, record: WireRecord) -> None:
        left = self.block.count - self.at
        if left and self.block.place != NOWHERE:
            record.add_batch(pack_batch(0, 0, self.block.place + self.at, left, TOLD_APART, 0))


def _joined(parts: Sequence[tuple[Block, int, int]]) -> Block:
    """One block of parts of others: (block, begin, end) of each."""
    payload = b"".join([block.payload[block.offsets[begin] : block.offsets[end]] for block, begin, end in parts])
    rows = np.concatenate([block.rows[begin:end] for block, begin, end in parts])
    sizes = np.concatenate([block.sizes[begin:end] for block, begin, end in parts])
    # Blocks of one source are alike: all have operations, or none has.
    operations = None
    if parts[0][0].operations is not None:
        operations = [each for block, begin, end in parts for each in block.operations_of(begin, end)]
    return Block(payload, [0, *np.cumsum(sizes).tolist()], rows, sizes, operations)


class Source(Protocol):
    """All requests of one worker."""

    def draw(self, count: int, nodes: Ints | None) -> Iterator[tuple[int, Block]]:
        """(number of the node, block): the next requests, at least `count` of them over all nodes. nodes: of each slot
        the number of the node that has it, NOBODY for none; None where there is one node, number 0."""


class BlockSource:
    """Requests that depend on no reply."""

    def __init__(self, stream: PackedStream) -> None:
        self._stream = stream

    def draw(self, count: int, nodes: Ints | None) -> Iterator[tuple[int, Block]]:
        """See `Source`."""
        drawn = 0
        while drawn < count:
            each: list[Packed] = [self._stream.block()] if nodes is None else self._stream.blocks(nodes)
            for packed in each:
                drawn += len(packed.rows)
                yield packed.node, Block(packed.payload, packed.offsets, packed.rows, packed.sizes)


class SlotOf(Protocol):
    """The slot that a command's keys lie in."""

    def __call__(self, arguments: Sequence[str | bytes], /) -> int: ...


class OperationSource:
    """Requests that follow from replies, or lead to something: made when they are about to be issued."""

    def __init__(self, operations: Iterator[Operation], slot_of: SlotOf, batch: int) -> None:
        """batch: operations that have to stay together; 1 where each goes by itself."""
        self._operations, self._slot_of, self._batch = operations, slot_of, batch

    def draw(self, count: int, nodes: Ints | None) -> Iterator[tuple[int, Block]]:
        """See `Source`."""
        if nodes is None:
            yield 0, packed_block(list(islice(self._operations, count)))
            return
        for _ in range(0, count, self._batch):
            operations = list(islice(self._operations, self._batch))
            yield int(nodes[self._slot_of(operations[0][1])]), packed_block(operations)


def packed_block(operations: Sequence[Operation]) -> Block:
    """These operations, packed."""
    requests = [_pack(arguments) for _, arguments, _, _ in operations]
    offsets = [0]
    for request in requests:
        offsets.append(offsets[-1] + len(request))
    rows = np.array([row for row, _, _, _ in operations], dtype=np.int64)
    return Block(b"".join(requests), offsets, rows, np.diff(np.array(offsets)), operations)
