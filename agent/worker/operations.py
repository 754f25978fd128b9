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

from agent.worker.columns import Arguments, Filler, Rows, Supplies
from agent.worker.counters import SEQUENCE, Counters
from agent.worker.distributions import numbers_of
from agent.worker.following import Cursor, FollowUp, is_miss, verifier_of, wanted
from agent.worker.following import Operation as Operation
from agent.worker.mix import CompiledCommand
from agent.worker.mix import Mix as Mix
from agent.worker.resp import request_bytes
from common.commands import Placeholder
from common.histogram import Ints
from common.target import Ending

_BLOCK = 512
"""Operations drawn at a time: enough that what numpy costs to begin, with cold caches, is little for each; not so many
that the blocks of a process' threads drive each other out of the processor's cache."""

_Filled: TypeAlias = tuple[Iterator[Arguments], Ints, Iterator[bytes]]
"""What was drawn for one command: arguments, sizes of requests, and the key that each operation's followers are on."""


def seed_sequence(seed: int, thread: int, purpose: int) -> np.random.SeedSequence:
    """The root of one thread's draws for one purpose (0: operations, 1: arrivals, 2: what follows replies, 3: what is
    done before the run), independent of all others."""
    return np.random.SeedSequence(seed, spawn_key=(thread, purpose))


def draw_operations(mix: Mix, seed: int, thread: int, threads: int = 1) -> Iterator[Operation]:
    """The endless stream of thread number `thread` of the `threads` of the fleet."""
    stream = _Stream(mix, seed, thread, threads)
    return stream.one_by_one() if mix.is_late else stream.ahead()


class _Source:
    """One entry of the mix in one thread."""

    def __init__(self, command: CompiledCommand, supplies: Supplies, cursor: Cursor | None) -> None:
        self.row, self.name, self.keyspace = command.row, command.template.name, command.keyspace
        self.is_late = command.is_late
        self.filler = Filler(command.template, supplies)
        self.numbers = numbers_of(command.keys, supplies.thread, supplies.threads)
        self.cursor = cursor
        self.verifier = verifier_of(command.template) if supplies.values.verify else None
        self.then: list[FollowUp] = []
        self._supplies = supplies

    @property
    def is_followed(self) -> bool:
        """Whether its replies lead to anything."""
        return bool(self.cursor or self.then or self.verifier)

    def draw_keys(self, generator: np.random.Generator, count: int, newest: Ints | None) -> Ints:
        """Key numbers of `count` operations: all of them, or with hash tags the first of each; shape (count, n)."""
        each = min(self.filler.keys, 1) if self.keyspace.per_hash_tag else self.filler.keys
        if newest is not None:
            newest = np.repeat(newest, each)
        return self.numbers.draw(generator, count * each, newest).reshape(count, each)

    def rows(self, generator: np.random.Generator, keys: Ints, made: Ints, sequence: Ints) -> Rows:
        """What `draw_keys` drew, completed."""
        count, filler = len(keys), self.filler
        if self.keyspace.per_hash_tag and filler.keys > 1:
            keys = self.keyspace.siblings(generator, keys[:, 0], filler.keys)
        rand_ints = self.numbers.draw(generator, count * filler.rand_ints).reshape(count, filler.rand_ints)
        return Rows(generator, count, keys, rand_ints, made, sequence)

    def first_keys(self, rows: Rows) -> Iterator[bytes]:
        """The key that the followers of each operation are on; empty where it has none."""
        if self.is_followed and self.filler.keys:
            return self.keyspace.texts(rows.keys[:, 0])
        if self.is_followed and self.filler.new_keys:
            return self.keyspace.texts(self._supplies.new_numbers(rows.made))
        return repeat(b"", rows.count)


class _Stream:
    """All that one thread draws from. pending: operations that follow a reply, each with the key that it is on."""

    def __init__(self, mix: Mix, seed: int, thread: int, threads: int) -> None:
        self._mix, self._threads = mix, threads
        self._generator = np.random.default_rng(seed_sequence(seed, thread, 0))
        self._counters = Counters()
        self._pending: deque[tuple[Operation, bytes]] = deque()
        aside = np.random.default_rng(seed_sequence(seed, thread, 2))
        self._sources: list[_Source] = []
        for command in mix.commands:
            cursor = Cursor() if command.template.count(Placeholder.CURSOR) else None
            supplies = Supplies(
                keyspace=command.keyspace,
                values=mix.values,
                ttl_s=mix.ttl_s,
                thread=thread,
                threads=threads,
                scripts=mix.scripts,
                late={Placeholder.CURSOR: cursor.at} if cursor else {},
                hold=cursor.hold if cursor else None,
            )
            source = _Source(command, supplies, cursor)
            source.then = [
                FollowUp(row, when, template, supplies, source.numbers, aside, self._counters)
                for row, when, template in command.then
            ]
            self._sources.append(source)
        self._rows = np.array([command.row for command in mix.commands])
        self._edges = np.cumsum([command.weight for command in mix.commands])
        self._edges /= self._edges[-1]
        self._uses = self._counter_uses()
        batch = mix.batch_of_one_tag
        self._size = batch * -(-_BLOCK // batch) if batch else _BLOCK

    def _counter_uses(self) -> dict[object, Ints]:
        """By counter, how often an operation of each command takes its next number; shape (commands,)."""
        names = {source.keyspace.name for source in self._sources}
        uses: dict[object, Ints] = {
            name: np.array([source.filler.new_keys * (source.keyspace.name == name) for source in self._sources])
            for name in names
        }
        uses[SEQUENCE] = np.array([source.filler.sequences for source in self._sources])
        return {name: each for name, each in uses.items() if each.any()}

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

    def _follow(self, source: _Source, key: bytes, arguments: Arguments, reply: Any) -> Ending | None:
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
        generator, sources = self._generator, self._sources
        picks = np.searchsorted(self._edges, generator.random(count), side="right")
        places = [np.flatnonzero(picks == number) for number in range(len(sources))]
        taken = {name: self._counters.take(name, uses[picks]) for name, uses in self._uses.items()}
        none = np.zeros(count, dtype=np.int64)
        sequence = taken.get(SEQUENCE, none)
        keys = []
        for source, place in zip(sources, places, strict=True):
            made = taken.get(source.keyspace.name)
            newest = None if made is None else source.keyspace.maximum + made[place] * self._threads
            keys.append(source.draw_keys(generator, place.size, newest))
        if self._mix.batch_of_one_tag:
            self._share_tags(places, keys, count, tag)
        filled = []
        for source, place, drawn in zip(sources, places, keys, strict=True):
            made = taken.get(source.keyspace.name, none)
            rows = source.rows(generator, drawn, made[place], sequence[place])
            filled.append((*source.filler.fill(rows), source.first_keys(rows)))
        return picks, filled

    def _share_tags(self, places: list[Ints], keys: list[Ints], count: int, tag: int | None) -> None:
        """Draw anew, within the tag of the first key of its batch, each key that has another tag. Changes `keys`."""
        batch = self._mix.batch_of_one_tag
        tags = np.full(-(-count // batch) * batch, -1, dtype=np.int64)
        for source, place, drawn in zip(self._sources, places, keys, strict=True):
            if drawn.shape[1]:
                tags[place] = drawn[:, 0] // source.keyspace.per_hash_tag
        batches = tags.reshape(-1, batch)
        shared = batches[np.arange(len(batches)), np.argmax(batches >= 0, axis=1)]
        if tag is not None:
            shared = np.full(len(batches), tag, dtype=np.int64)
        for source, place, drawn in zip(self._sources, places, keys, strict=True):
            if drawn.shape[1]:
                wished = shared[place // batch]
                other = tags[place] != wished
                drawn[other, 0] = source.keyspace.within(self._generator, wished[other])
