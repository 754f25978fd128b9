"""One worker's stream of operations as RESP requests, block by block, for the wire driver.

With the same seed, thread and block size, `draw_operations` draws the same operations, if none depends on a reply. In a
cluster, each block is drawn first and then split by node, according to the slots of its requests. So keys follow the
plan's distribution over the whole key space.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.worker.workload.encoding.request_packer import PreparedRequests, RequestPacker
from agent.worker.workload.mix import CommandMix
from agent.worker.workload.sampling import OperationSampler, SampledBlock
from agent.worker.workload.segments import Buffer
from common.commands import Placeholder, Template, original
from common.metrics.histogram import Ints
from common.plan.seeds import SeedPurpose, seed_sequence
from common.redis_client import SLOTS

_BLOCK_OPERATIONS = 4096
_BLOCK_BYTES = 512 * 1024
"""The approximate maximum size of a block, so that it stays in the CPU cache."""
_LARGEST_BLOCK_BYTES = 8 << 20
_ARGUMENTS_PER_OPERATION = 100
"""For commands with many arguments, a block has at least one operation per this many arguments."""
_VALUES = (Placeholder.DATA, Placeholder.TEXT, Placeholder.MESSAGE)
_VARIABLE_BYTES = 16
"""Estimated size of a key or a number."""
_ARGUMENT_BYTES = 6
"""Estimated size of an argument's RESP header."""


@dataclass(slots=True)
class PackedBlock:
    """Consecutive requests for one node.

    payload: all requests, as RESP arrays of bulk strings. offsets: where each request begins in the payload, then the
    payload's length; shape (count + 1,). rows: index into `CommandMix.names`, shape (count,). sizes: bytes of each
    request, shape (count,). node: number of the node in the cluster; 0 if the block was not split.
    """

    payload: bytes
    offsets: list[int]
    rows: Ints
    sizes: Ints
    node: int


def draw_packed(mix: CommandMix, seed: int, thread: int, threads: int = 1, *, block: int | None = None) -> PackedStream:
    """The requests of one worker. thread: its number among the `threads` of the fleet. block: operations drawn at a
    time; None: the fastest number. The mix must not depend on replies or verify values."""
    assert not mix.depends_on_replies, "expected a mix in which no operation depends on a reply"
    assert not mix.values.verify, "expected values that are not verified"
    return PackedStream(mix, seed, thread, threads, block or _block_operations(mix))


class PackedStream:
    """The endless stream of one worker's requests."""

    def __init__(self, mix: CommandMix, seed: int, thread: int, threads: int, block: int) -> None:
        self._sampler = OperationSampler(mix, seed, thread, threads)
        self._count = self._sampler.whole_batches(block)
        self._batch = mix.batch_in_one_slot or 1
        self._keyless = np.random.default_rng(seed_sequence(seed, thread, SeedPurpose.KEYLESS_NODES))
        self._rows = np.array([command.row for command in mix.commands])
        self._packers = [
            RequestPacker(command.template, mix.context(command, thread, threads)) for command in mix.commands
        ]
        self._buffer: Buffer = np.empty(0, dtype=np.uint8)

    def block(self) -> PackedBlock:
        """The next block."""
        block, prepared = self._prepare()
        sizes = _in_order(block, [each.sizes for each in prepared])
        ends = np.cumsum(sizes)
        payload = self._write(block, prepared, ends, int(ends[-1])).tobytes()
        return PackedBlock(payload, [0, *ends.tolist()], self._rows[block.commands], sizes, 0)

    def blocks(self, node_of_slot: Ints) -> list[PackedBlock]:
        """The next block, split by node. A request goes to the node of its first key's slot, or of a random slot if it
        has no key. Batches in one slot are not split.

        node_of_slot: the node of each slot, -1 if unknown; shape (SLOTS,). Returns no block for a node without
        requests.
        """
        block, prepared = self._prepare()
        sizes = _in_order(block, [each.sizes for each in prepared])
        # numpy sorts 16-bit numbers by radix sort, without comparisons, and keeps the order of equal ones.
        nodes = node_of_slot.astype(np.int16).take(self._slots(block, prepared))
        order = np.argsort(nodes, kind="stable")
        nodes, sizes, rows = nodes.take(order), sizes.take(order), self._rows.take(block.commands.take(order))
        sorted_ends = np.cumsum(sizes)
        ends = np.empty_like(sorted_ends)
        ends[order] = sorted_ends
        buffer = self._write(block, prepared, ends, int(sorted_ends[-1]))
        firsts = np.flatnonzero(np.diff(nodes, prepend=-2)).tolist()
        packed = []
        for first, end in zip(firsts, [*firsts[1:], nodes.size], strict=True):
            begin, part = int(sorted_ends[first - 1]) if first else 0, slice(first, end)
            offsets = [0, *(sorted_ends[part] - begin).tolist()]
            payload = buffer[begin : begin + offsets[-1]].tobytes()
            packed.append(PackedBlock(payload, offsets, rows[part], sizes[part], int(nodes[first])))
        return packed

    def _prepare(self) -> tuple[SampledBlock, list[PreparedRequests]]:
        block = self._sampler.block(self._count)
        return block, [packer.prepare(numbers) for packer, numbers in zip(self._packers, block.numbers, strict=True)]

    def _write(self, block: SampledBlock, prepared: list[PreparedRequests], ends: Ints, size: int) -> Buffer:
        """Write each request so that it ends at `ends`. The result is valid until the next block."""
        if self._buffer.size < size:
            self._buffer = np.empty(size + size // 8, dtype=np.uint8)
        for positions, requests in zip(block.positions, prepared, strict=True):
            requests.write(self._buffer, ends[positions])
        return self._buffer[:size]

    def _slots(self, block: SampledBlock, prepared: list[PreparedRequests]) -> Ints:
        """The slot that each request goes to. All requests of a batch go to the slot of the first one with a key."""
        slots = _in_order(block, [each.slots() for each in prepared])
        if self._batch > 1:
            batches = slots.reshape(-1, self._batch)
            firsts = np.argmax(batches >= 0, axis=1)
            slots = batches[np.arange(len(batches)), firsts]
        (keyless,) = np.nonzero(slots < 0)
        if keyless.size:
            slots[keyless] = self._keyless.integers(0, SLOTS, keyless.size)
        return np.repeat(slots, self._batch) if self._batch > 1 else slots


def _in_order(block: SampledBlock, by_command: list[Ints | None]) -> Ints:
    """One number for each operation of the block, from the numbers of each command's operations; -1 for None."""
    ordered = np.full(block.commands.size, -1, dtype=np.int64)
    for positions, numbers in zip(block.positions, by_command, strict=True):
        if numbers is not None:
            ordered[positions] = numbers
    return ordered


def _block_operations(mix: CommandMix) -> int:
    """How many operations a block should have."""
    sizes = [_estimated_bytes(command.template, mix.mean_value_bytes) for command in mix.commands]
    mean_bytes = np.average(sizes, weights=[command.weight for command in mix.commands])
    # Each argument has a fixed cost per block, so a block should have several operations, if memory permits.
    most_arguments = max(len(command.template.arguments) for command in mix.commands)
    least = min(most_arguments // _ARGUMENTS_PER_OPERATION, int(_LARGEST_BLOCK_BYTES / mean_bytes))
    return max(1, least, min(_BLOCK_OPERATIONS, int(_BLOCK_BYTES / mean_bytes)))


def _estimated_bytes(template: Template, value_bytes: float) -> float:
    """The estimated size of a request in bytes."""
    return sum(
        len(piece) if isinstance(piece, bytes) else value_bytes if original(piece) in _VALUES else _VARIABLE_BYTES
        for piece in template.pieces()
    ) + _ARGUMENT_BYTES * len(template.arguments)
