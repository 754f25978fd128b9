"""The stream of operations of one worker thread: what it issues, in order, drawn in blocks so that each one is cheap.

A stream depends on the plan's seed, on the workload and on the thread's number in the fleet, and on nothing else: the
same plan on the same fleet draws the same operations. Only commands that follow a reply are as the replies are; they
are drawn apart, so that the others do not change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice, repeat, starmap
from typing import Any, TypeAlias

import numpy as np

from agent.worker.division import seed_sequence
from agent.worker.metrics.wire_sizes import request_bytes
from agent.worker.workload.arguments import Arguments, Filler, Rows, Supplies
from agent.worker.workload.mix import CompiledCommand, supplies_of
from agent.worker.workload.mix import Mix as Mix
from agent.worker.workload.reply_effects import Cursor, FollowUp, is_miss, verifier_of, wanted
from agent.worker.workload.reply_effects import Operation as Operation
from agent.worker.workload.sampling import BLOCK, Drawing, Draws
from common.commands import Placeholder
from common.metrics.histogram import Ints
from common.redis_client import Failure

_Filled: TypeAlias = tuple[Iterator[Arguments], Ints, Iterator[bytes]]
"""What was drawn for one command: arguments, sizes of requests, and the key that each operation's followers are on."""


def draw_operations(mix: Mix, seed: int, thread: int, threads: int = 1, *, block: int = BLOCK) -> Iterator[Operation]:
    """The endless stream of thread number `thread` of the `threads` of the fleet, drawn `block` at a time."""
    stream = _Stream(mix, seed, thread, threads, block)
    return stream.one_by_one() if mix.is_late else stream.ahead()


class _Source:
    """One entry of the mix in one thread."""

    def __init__(self, command: CompiledCommand, draws: Draws, supplies: Supplies, cursor: Cursor | None) -> None:
        self.row, self.name, self.keyspace = command.row, command.template.name, command.keyspace
        self.is_late = command.is_late
        self.filler = Filler(command.template, supplies)
        self.cursor = cursor
        self.verifier = verifier_of(command.template) if supplies.values.verify else None
        self.then: list[FollowUp] = []
        self._draws, self._supplies = draws, supplies

    @property
    def is_followed(self) -> bool:
        """Whether its replies lead to anything."""
        return bool(self.cursor or self.then or self.verifier)

    def first_keys(self, rows: Rows) -> Iterator[bytes]:
        """The key that the followers of each operation are on; empty where it has none."""
        if self.is_followed and self._draws.keys:
            return self.keyspace.texts(rows.keys[:, 0])
        if self.is_followed and self._draws.new_keys:
            return self.keyspace.texts(self._supplies.new_numbers(rows.made))
        return repeat(b"", rows.count)


class _Stream:
    """All that one thread draws from. pending: operations that follow a reply, each with the key that it is on."""

    def __init__(self, mix: Mix, seed: int, thread: int, threads: int, block: int) -> None:
        self._mix = mix
        self._drawing = Drawing(mix, seed, thread, threads)
        self._pending: deque[tuple[Operation, bytes]] = deque()
        aside = np.random.default_rng(seed_sequence(seed, thread, 2))
        self._sources: list[_Source] = []
        for command, draws in zip(mix.commands, self._drawing.draws, strict=True):
            cursor = Cursor() if command.template.count(Placeholder.CURSOR) else None
            late = {Placeholder.CURSOR: cursor.at} if cursor else None
            supplies = supplies_of(mix, command, thread, threads, late, cursor.hold if cursor else None)
            source = _Source(command, draws, supplies, cursor)
            source.then = [
                FollowUp(row, when, template, supplies, draws.numbers, aside, self._drawing.counters)
                for row, when, template in command.then
            ]
            self._sources.append(source)
        self._rows = np.array([command.row for command in mix.commands])
        self._size = self._drawing.whole(block)

    def ahead(self) -> Iterator[Operation]:
        """Operations made by the handful, for mixes in which none depends on a reply. The first block is drawn at
        once."""
        blocks = chain.from_iterable(chain([self._whole_block()], starmap(self._whole_block, repeat(()))))
        return chain.from_iterable(iter(lambda: list(islice(blocks, self._mix.handful)), []))

    def _whole_block(self) -> Iterator[Operation]:
        picks, filled = self._block(self._size)
        sizes = np.empty(picks.size, dtype=np.int64)
        for number, (_, request_sizes, _) in enumerate(filled):
            sizes[picks == number] = request_sizes
        each = [arguments for arguments, _, _ in filled]
        chosen = picks.tolist()
        # Only iterators of C from here on, at a fraction of a loop's cost, unless something is to be verified.
        arguments = map(next, map(each.__getitem__, chosen))
        rows = self._rows[picks].tolist()
        verifiers = [source.verifier for source in self._sources]
        if not any(verifiers):
            return zip(rows, arguments, sizes.tolist(), repeat(None, len(rows)), strict=True)
        return (
            (row, made, size, verifier(made) if (verifier := verifiers[number]) else None)
            for row, made, size, number in zip(rows, arguments, sizes.tolist(), chosen, strict=True)
        )

    def one_by_one(self) -> Iterator[Operation]:
        """Operations made when they are asked for, after all replies before them; what follows a reply comes first. A
        first block is drawn at once, but for batches that keep to one slot: these are drawn one by one."""
        if self._mix.batch_of_one_tag:
            return self._batch_by_batch()
        first = self._block(self._size)
        blocks = chain([first], (self._block(self._size) for _ in repeat(None)))
        return chain.from_iterable(self._each(*block, following=True) for block in blocks)

    def _batch_by_batch(self) -> Iterator[Operation]:
        batch, pending = self._mix.batch_of_one_tag, self._pending
        while True:
            # What follows a batch is on keys of the batch's tag; a batch that begins with it goes on in that tag.
            held = [pending.popleft() for _ in range(min(batch, len(pending)))]
            yield from (operation for operation, _ in held)
            key = next((key for _, key in held if key), None)
            tag = self._sources[0].keyspace.tag(key) if key else None
            if len(held) < batch:
                yield from self._each(*self._block(batch - len(held), tag), following=False)

    def _each(self, picks: Ints, filled: list[_Filled], following: bool) -> Iterator[Operation]:
        """The operations of a block, one by one. following: what follows replies comes between them."""
        pending = self._pending
        each = [
            (source, made, keys, iter(sizes.tolist()))
            for source, (made, sizes, keys) in zip(self._sources, filled, strict=True)
        ]
        for number in picks.tolist():
            while following and pending:
                yield pending.popleft()[0]
            source, made, keys, sizes = each[number]
            arguments, key, size = next(made), next(keys), next(sizes)
            if source.is_late:
                size = request_bytes(arguments)
            follow = partial(self._follow, source, key, arguments) if source.is_followed else None
            yield source.row, arguments, size, follow

    def _follow(self, source: _Source, key: bytes, arguments: Arguments, reply: Any) -> Failure | None:
        """What this reply to this call leads to."""
        if source.cursor is not None:
            key = source.cursor.key
            source.cursor.advance(reply)
        if source.then:
            miss = is_miss(reply)
            for then in source.then:
                if wanted(then.when, miss) and (operation := then.make(key, source.name, reply)):
                    self._pending.append((operation, key))
        return source.verifier(arguments)(reply) if source.verifier else None

    def _block(self, count: int, tag: int | None = None) -> tuple[Ints, list[_Filled]]:
        """`count` operations: which command each is, shape (count,), and what was drawn for each command.

        tag: the hash tag of the batch, where one of its operations has already been issued.
        """
        block = self._drawing.block(count, tag)
        filled = []
        for source, rows in zip(self._sources, block.rows, strict=True):
            filled.append((*source.filler.fill(rows), source.first_keys(rows)))
        return block.picks, filled
