"""Requests of the wire driver: packed in blocks, queued for a node, and taken in batches.

A block has requests in the order of issue, packed one after the other, so any batch is one slice of the payload. A
node's next requests are in the current block of its queue, from `position` on. If fewer than a batch are left there,
they and the first requests of the next block become a new block.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Protocol, TypeAlias

import numpy as np

from agent.worker.drivers.wire.batch_rows import WireRecord
from agent.worker.pacing.pacer import Turn
from agent.worker.workload.encoding.stream import PackedBlock, PackedStream
from agent.worker.workload.reply_effects import Operation
from common.metrics.histogram import Ints
from common.redis_client.wire_connections import pack_command

UNNUMBERED = -1
"""`RequestBlock.first` of a block that is not in a record."""

NO_NODE = -1
"""The node number of slots that no node serves."""


class RequestBlock:
    """Packed requests.

    first: number of the first request in the worker's record. offsets: where each request begins in the payload, then
    the payload's end. rows, sizes: for each request, its row of the mix and its bytes. operations: the operations that
    were packed, if replies must be examined one by one; otherwise None.
    """

    __slots__ = ("count", "first", "offsets", "operations", "payload", "rows", "sizes")

    def __init__(
        self, payload: bytes, offsets: list[int], rows: Ints, sizes: Ints, operations: Sequence[Operation] | None = None
    ) -> None:
        self.payload = payload
        self.offsets = offsets
        self.rows, self.sizes = rows, sizes
        self.operations = operations
        self.count = len(offsets) - 1
        self.first = UNNUMBERED

    def batch(self, begin: int, turn: Turn) -> Batch:
        """The batch that begins at index `begin`, with a request for each operation of the turn."""
        payload = self.payload[self.offsets[begin] : self.offsets[begin + len(turn.times_ns)]]
        return self.first + begin, payload, self, turn

    def operations_of(self, batch: Batch) -> Sequence[Operation]:
        """The operations of a batch. They have no arguments if the block has no `operations`."""
        first, _, _, turn = batch
        begin = first - self.first
        end = begin + len(turn.times_ns)
        if self.operations is not None:
            return self.operations[begin:end]
        rows, sizes = self.rows[begin:end].tolist(), self.sizes[begin:end].tolist()
        return [(row, (), size, None) for row, size in zip(rows, sizes, strict=True)]

    def arguments_of(self, index: int) -> list[bytes]:
        """The arguments of the request at this index, unpacked."""
        return unpack_command(self.payload[self.offsets[index] : self.offsets[index + 1]])


Batch: TypeAlias = tuple[int, bytes, RequestBlock, Turn]
"""Requests that are sent together: (number of the first one in the record, payload, block, turn).

A plain tuple, so that in a steady load `zip` makes each batch without running Python code.
"""

NO_REQUESTS = RequestBlock(b"", [0], np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))


class RequestQueue:
    """The next requests of one node: in `block` from `position` on, then in the queued blocks."""

    __slots__ = ("_blocks", "_numbers", "_queued", "_skipped", "block", "position")

    def __init__(self) -> None:
        self.block, self.position = NO_REQUESTS, 0
        self._blocks: deque[RequestBlock] = deque()
        self._queued = 0
        # How many requests of the first queued block were taken.
        self._skipped = 0
        # Numbers of the batches that `batches` has not yielded yet.
        self._numbers: Iterator[int] = iter(())

    @property
    def backlog(self) -> int:
        """How many requests are left."""
        return self.block.count - self.position + self._queued

    def append(self, block: RequestBlock) -> None:
        """Add a block at the end."""
        self._blocks.append(block)
        self._queued += block.count

    def advance(self, count: int, record: WireRecord) -> bool:
        """Change `block` so that it contains the next `count` requests. Returns False if fewer are left."""
        while self.block.count - self.position < count:
            if self.backlog < count:
                return False
            if self.position < self.block.count:
                self._begin(self._bridge(count), 0, record)
            else:
                following, skipped = self._blocks.popleft(), self._skipped
                self._skipped = 0
                self._begin(following, skipped, record)
                self._queued -= following.count - skipped
        return True

    def _bridge(self, count: int) -> RequestBlock:
        """A block of `count` requests: the rest of the current block and the first requests of the next ones."""
        parts = [(self.block, self.position, self.block.count)]
        wanted = count - (self.block.count - self.position)
        self._queued -= wanted
        while wanted:
            front, begin = self._blocks[0], self._skipped
            end = min(front.count, begin + wanted)
            parts.append((front, begin, end))
            wanted -= end - begin
            self._skipped = end
            if end == front.count:
                self._blocks.popleft()
                self._skipped = 0
        return _joined(parts)

    def _begin(self, block: RequestBlock, position: int, record: WireRecord) -> None:
        self._give_up_rest(record)
        if block.operations is None:
            block.first = record.add_block(block.rows, block.sizes)
            if position:
                record.skip(block.first, position)
        self.block, self.position = block, position

    def take(self, turn: Turn) -> Batch:
        """The next batch. Its requests must be in `block`: see `advance`."""
        # Repeats `RequestBlock.batch`, to save a call for each batch of an open loop.
        block, begin = self.block, self.position
        offsets = block.offsets
        self.position = end = begin + len(turn.times_ns)
        return block.first + begin, block.payload[offsets[begin] : offsets[end]], block, turn

    def batches(self, turn: Turn, most: int | None = None) -> Iterator[Batch]:
        """Take the rest of `block` as batches of this turn. Requests that do not fill a batch stay. most: limits the
        number of batches."""
        block, begin, count = self.block, self.position, len(turn.times_ns)
        whole = (block.count - begin) // count
        end = self.position = begin + (whole if most is None else min(whole, most)) * count
        cuts = block.offsets[begin : end + 1 : count]
        payloads = map(block.payload.__getitem__, map(slice, cuts, cuts[1:]))
        self._numbers = iter(range(block.first + begin, block.first + end, count))
        return zip(self._numbers, payloads, repeat(block), repeat(turn))

    def take_back(self, count: int, taken: int) -> None:
        """Put back the batches that `batches` has not yielded yet, and the last `taken` batches that it yielded. Each
        has `count` requests."""
        self.position -= count * (len(list(self._numbers)) + taken)

    def remove_all(self, record: WireRecord) -> list[RequestBlock]:
        """Remove all requests, for the queue of another node."""
        parts = [(self.block, self.position)] if self.position < self.block.count else []
        parts += zip(self._blocks, chain([self._skipped], repeat(0)), strict=False)
        self._give_up_rest(record)
        self.block, self.position = NO_REQUESTS, 0
        self._blocks.clear()
        self._queued = self._skipped = 0
        return [_joined([(block, begin, block.count)]) if begin else block for block, begin in parts]

    def _give_up_rest(self, record: WireRecord) -> None:
        """Mark the numbers of the rest of `block` as unused: its requests are issued from another block."""
        rest = self.block.count - self.position
        if rest and self.block.first != UNNUMBERED:
            record.skip(self.block.first + self.position, rest)


def _joined(parts: Sequence[tuple[RequestBlock, int, int]]) -> RequestBlock:
    """One block from parts of several. parts: (block, begin, end)."""
    payload = b"".join([block.payload[block.offsets[begin] : block.offsets[end]] for block, begin, end in parts])
    rows = np.concatenate([block.rows[begin:end] for block, begin, end in parts])
    sizes = np.concatenate([block.sizes[begin:end] for block, begin, end in parts])
    # All blocks come from one source, so either all have operations or none has.
    operations = [each for block, begin, end in parts for each in (block.operations or ())[begin:end]]
    return RequestBlock(payload, [0, *np.cumsum(sizes).tolist()], rows, sizes, operations or None)


class RequestSource(Protocol):
    """Draws the requests of one worker."""

    def draw(self, count: int, nodes: Ints | None) -> Iterator[tuple[int, RequestBlock]]:
        """The next requests, at least `count` in total, as (node number, block).

        nodes: the node number of each slot, or NO_NODE. None: there is only node 0.
        """


class PackedRequestSource:
    """For requests that depend on no reply: draws and packs them ahead."""

    def __init__(self, stream: PackedStream) -> None:
        self._stream = stream

    def draw(self, count: int, nodes: Ints | None) -> Iterator[tuple[int, RequestBlock]]:
        """See `RequestSource`."""
        drawn = 0
        while drawn < count:
            each: list[PackedBlock] = [self._stream.block()] if nodes is None else self._stream.blocks(nodes)
            for packed in each:
                drawn += len(packed.rows)
                yield packed.node, RequestBlock(packed.payload, packed.offsets, packed.rows, packed.sizes)


class SlotOf(Protocol):
    """Returns the slot of a command's keys."""

    def __call__(self, arguments: Sequence[str | bytes], /) -> int: ...


class OperationRequestSource:
    """For requests whose arguments depend on replies, or whose replies matter: makes them just before they are
    issued."""

    def __init__(self, operations: Iterator[Operation], slot_of: SlotOf, batch: int) -> None:
        """batch: how many consecutive operations must go to the same node; 1 if each may go to any node."""
        self._operations, self._slot_of, self._batch = operations, slot_of, batch

    def draw(self, count: int, nodes: Ints | None) -> Iterator[tuple[int, RequestBlock]]:
        """See `RequestSource`."""
        if nodes is None:
            yield 0, packed_block(list(islice(self._operations, count)))
            return
        for _ in range(0, count, self._batch):
            operations = list(islice(self._operations, self._batch))
            yield int(nodes[self._slot_of(operations[0][1])]), packed_block(operations)


def unpack_command(request: bytes) -> list[bytes]:
    """The arguments of a packed command."""
    arguments, position = [], request.index(b"\r\n") + 2
    while position < len(request):
        begin = request.index(b"\r\n", position) + 2
        end = begin + int(request[position + 1 : begin])
        arguments.append(request[begin:end])
        position = end + 2
    return arguments


def packed_block(operations: Sequence[Operation]) -> RequestBlock:
    """A block of these operations."""
    requests = [pack_command(arguments) for _, arguments, _, _ in operations]
    offsets = [0]
    for request in requests:
        offsets.append(offsets[-1] + len(request))
    rows = np.array([row for row, _, _, _ in operations], dtype=np.int64)
    return RequestBlock(b"".join(requests), offsets, rows, np.diff(np.array(offsets)), operations)
