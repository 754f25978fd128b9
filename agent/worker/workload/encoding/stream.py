"""The stream of operations of one thread as requests ready for the wire, block by block.

They are the operations that `draw_operations` draws with the same seed, thread and block, for mixes in which none
depends on a reply. In a cluster each block is split by the nodes that the slots of its requests belong to, after it was
drawn: so the plan's distribution holds over the whole key space, whoever owns it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.worker.division import seed_sequence
from agent.worker.workload.encoding.key_slots import SLOTS
from agent.worker.workload.encoding.pieces import Buffer
from agent.worker.workload.encoding.request_template import Made, Requests
from agent.worker.workload.mix import Mix, supplies_of
from agent.worker.workload.sampling import Block, Drawing
from common.commands import Placeholder, Template, original
from common.metrics.histogram import Ints

_BLOCK = 4096
_BLOCK_BYTES = 512 * 1024
"""As many operations as are about so many bytes, so that a block stays in the processor's cache."""
_MOST_BYTES = 8 << 20
_PARTS = 100
"""One request more in a block for so many arguments of one."""
_VALUES = (Placeholder.DATA, Placeholder.TEXT, Placeholder.MESSAGE)
_TEXT_BYTES = 16
"""About what a key or a number takes."""
_ARGUMENT_BYTES = 6
"""About what an argument takes beside itself."""


@dataclass(slots=True)
class Packed:
    """A block of requests. payload: all of them, one behind the other, as RESP arrays of bulk strings. offsets: where
    each begins in it, and at last its length; count + 1 of them. rows: index into `Mix.names`, shape (count,). sizes:
    bytes of each request, shape (count,). node: which node of the cluster they belong to; 0 where nothing was split."""

    payload: bytes
    offsets: list[int]
    rows: Ints
    sizes: Ints
    node: int


def draw_packed(mix: Mix, seed: int, thread: int, threads: int = 1, *, block: int | None = None) -> PackedStream:
    """The requests of thread number `thread` of the `threads` of the fleet, drawn `block` at a time; without it as many
    as are quick. The mix holds nothing that depends on replies: nothing late, nothing to be verified."""
    assert not mix.is_late, "expected a mix in which no operation depends on a reply"
    assert not mix.values.verify, "expected values that are not verified"
    return PackedStream(mix, seed, thread, threads, block or _block_of(mix))


class PackedStream:
    """The endless stream of one thread's requests."""

    def __init__(self, mix: Mix, seed: int, thread: int, threads: int, block: int) -> None:
        self._drawing = Drawing(mix, seed, thread, threads)
        self._count = self._drawing.whole(block)
        self._batch = mix.batch_of_one_tag or 1
        self._aside = np.random.default_rng(seed_sequence(seed, thread, 4))
        self._rows = np.array([command.row for command in mix.commands])
        self._requests = [
            Requests(command.template, supplies_of(mix, command, thread, threads)) for command in mix.commands
        ]
        self._buffer: Buffer = np.empty(0, dtype=np.uint8)

    def block(self) -> Packed:
        """The next block."""
        block, made = self._draw()
        sizes = _in_order(block, [each.sizes for each in made])
        ends = np.cumsum(sizes)
        payload = self._write(block, made, ends, int(ends[-1])).tobytes()
        return Packed(payload, [0, *ends.tolist()], self._rows[block.picks], sizes, 0)

    def blocks(self, node_of_slot: Ints) -> list[Packed]:
        """The next block, split by the node that each request belongs to: that of the slot of its first key, or of any
        slot if it has none. Batches that keep to one slot stay whole. node_of_slot: shape (16384,), -1 where no node is
        known. Nodes without a request are left out."""
        block, made = self._draw()
        sizes = _in_order(block, [each.sizes for each in made])
        # Numbers of 16 bits are sorted without comparing them, in their order of drawing.
        nodes = node_of_slot.astype(np.int16).take(self._slots(block, made))
        order = np.argsort(nodes, kind="stable")
        nodes, sizes, rows = nodes.take(order), sizes.take(order), self._rows.take(block.picks.take(order))
        ends = np.cumsum(sizes)
        places = np.empty_like(ends)
        places[order] = ends
        buffer = self._write(block, made, places, int(ends[-1]))
        firsts = np.flatnonzero(np.diff(nodes, prepend=-2)).tolist()
        found = []
        for first, end in zip(firsts, [*firsts[1:], nodes.size], strict=True):
            begin, part = int(ends[first - 1]) if first else 0, slice(first, end)
            offsets = [0, *(ends[part] - begin).tolist()]
            payload = buffer[begin : begin + offsets[-1]].tobytes()
            found.append(Packed(payload, offsets, rows[part], sizes[part], int(nodes[first])))
        return found

    def _draw(self) -> tuple[Block, list[Made]]:
        block = self._drawing.block(self._count)
        return block, [requests.draw(rows) for requests, rows in zip(self._requests, block.rows, strict=True)]

    def _write(self, block: Block, made: list[Made], ends: Ints, size: int) -> Buffer:
        """All requests where they belong; valid until the next block."""
        if self._buffer.size < size:
            self._buffer = np.empty(size + size // 8, dtype=np.uint8)
        for place, each in zip(block.places, made, strict=True):
            each.write(self._buffer, ends[place])
        return self._buffer[:size]

    def _slots(self, block: Block, made: list[Made]) -> Ints:
        """The slot of each request's node; in a batch all have that of the first that has a key."""
        slots = _in_order(block, [each.slots() for each in made])
        if self._batch > 1:
            batches = slots.reshape(-1, self._batch)
            firsts = np.argmax(batches >= 0, axis=1)
            slots = batches[np.arange(len(batches)), firsts]
        (anywhere,) = np.nonzero(slots < 0)
        if anywhere.size:
            slots[anywhere] = self._aside.integers(0, SLOTS, anywhere.size)
        return np.repeat(slots, self._batch) if self._batch > 1 else slots


def _in_order(block: Block, each: list[Ints | None]) -> Ints:
    """What each command has of its operations, in the order of all; -1 for None."""
    found = np.full(block.picks.size, -1, dtype=np.int64)
    for place, numbers in zip(block.places, each, strict=True):
        if numbers is not None:
            found[place] = numbers
    return found


def _block_of(mix: Mix) -> int:
    """Operations of a block."""
    each_bytes = [_bytes_of(command.template, mix.values.mean_bytes) for command in mix.commands]
    mean_bytes = np.average(each_bytes, weights=[command.weight for command in mix.commands])
    # Each argument costs so much a block that there should be some requests for it, unless they take too much memory.
    least = min(
        max(len(command.template.arguments) for command in mix.commands) // _PARTS, int(_MOST_BYTES / mean_bytes)
    )
    return max(1, least, min(_BLOCK, int(_BLOCK_BYTES / mean_bytes)))


def _bytes_of(template: Template, value_bytes: float) -> float:
    """About how many bytes a request takes."""
    return sum(
        len(piece) if isinstance(piece, bytes) else value_bytes if original(piece) in _VALUES else _TEXT_BYTES
        for piece in template.pieces()
    ) + _ARGUMENT_BYTES * len(template.arguments)
