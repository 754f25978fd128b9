"""The numbers of one thread's operations, drawn in blocks: which command each is, and all that its arguments need.

What is made of them (arguments for a client library, or requests for the wire) is another module's business, so that
both issue the same operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from agent.worker.division import seed_sequence
from agent.worker.workload.arguments import Rows
from agent.worker.workload.distributions import numbers_of
from agent.worker.workload.mix import CompiledCommand, Mix
from agent.worker.workload.sequences import SEQUENCE, Counters
from common.commands import Placeholder
from common.metrics.histogram import Ints

BLOCK = 512
"""Operations drawn at a time: enough that what numpy costs to begin, with cold caches, is little for each; not so many
that the blocks of a process' threads drive each other out of the processor's cache."""


_NONE = np.empty((1, 0), dtype=np.int64)


class Draws:
    """The numbers of one entry of the mix in one thread."""

    def __init__(self, command: CompiledCommand, thread: int, threads: int) -> None:
        self.keyspace = command.keyspace
        self.numbers = numbers_of(command.keys, thread, threads)
        self.keys, self.rand_ints, self.new_keys, self.sequences = (
            command.template.count(placeholder)
            for placeholder in (Placeholder.KEY, Placeholder.RAND_INT, Placeholder.NEW_KEY, Placeholder.SEQ)
        )

    def draw_keys(self, generator: np.random.Generator, count: int, newest: Ints | None) -> Ints:
        """Key numbers of `count` operations: all of them, or with hash tags the first of each; shape (count, n)."""
        each = min(self.keys, 1) if self.keyspace.per_hash_tag else self.keys
        if newest is not None:
            newest = np.repeat(newest, each)
        return self.numbers.draw(generator, count * each, newest).reshape(count, each)

    def rows(self, generator: np.random.Generator, keys: Ints, made: Ints, sequence: Ints) -> Rows:
        """What `draw_keys` drew, completed."""
        count = len(keys)
        if self.keyspace.per_hash_tag and self.keys > 1:
            keys = self.keyspace.siblings(generator, keys[:, 0], self.keys)
        rand_ints = _NONE.repeat(count, axis=0)
        if self.rand_ints:
            rand_ints = self.numbers.draw(generator, count * self.rand_ints).reshape(count, self.rand_ints)
        return Rows(generator, count, keys, rand_ints, made, sequence)


@dataclass(frozen=True, slots=True)
class Block:
    """Some operations in order. picks: which command of the mix each is, shape (count,). places: of each command, where
    its operations are. rows: of each command, what they are made of; the arguments of one draw from the generator too,
    so they have to be filled before the next is asked for."""

    picks: Ints
    places: list[Ints]
    rows: Iterator[Rows]


class Drawing:
    """All that one thread draws its operations' numbers from."""

    def __init__(self, mix: Mix, seed: int, thread: int, threads: int) -> None:
        self.counters = Counters()
        self.draws = [Draws(command, thread, threads) for command in mix.commands]
        self._batch, self._threads = mix.batch_of_one_tag, threads
        self._generator = np.random.default_rng(seed_sequence(seed, thread, 0))
        edges = np.cumsum([command.weight for command in mix.commands])
        self._edges = edges / edges[-1]
        self._uses = self._counter_uses()

    def whole(self, count: int) -> int:
        """At least `count` operations, and no part of a batch that keeps to one slot."""
        return self._batch * -(-count // self._batch) if self._batch else count

    def _counter_uses(self) -> dict[object, Ints]:
        """By counter, how often an operation of each command takes its next number; shape (commands,)."""
        names = {draws.keyspace.name for draws in self.draws}
        uses: dict[object, Ints] = {
            name: np.array([draws.new_keys * (draws.keyspace.name == name) for draws in self.draws]) for name in names
        }
        uses[SEQUENCE] = np.array([draws.sequences for draws in self.draws])
        return {name: each for name, each in uses.items() if each.any()}

    def block(self, count: int, tag: int | None = None) -> Block:
        """The next `count` operations.

        tag: the hash tag of the batch, where one of its operations has already been issued.
        """
        generator = self._generator
        picks = np.searchsorted(self._edges, generator.random(count), side="right")
        places = [np.flatnonzero(picks == number) for number in range(len(self.draws))]
        taken = {name: self.counters.take(name, uses[picks]) for name, uses in self._uses.items()}
        keys = []
        for draws, place in zip(self.draws, places, strict=True):
            made = taken.get(draws.keyspace.name)
            newest = None if made is None else draws.keyspace.maximum + made[place] * self._threads
            keys.append(draws.draw_keys(generator, place.size, newest))
        if self._batch:
            self._share_tags(places, keys, count, tag)
        return Block(picks, places, self._rows(places, keys, taken))

    def _rows(self, places: list[Ints], keys: list[Ints], taken: dict[object, Ints]) -> Iterator[Rows]:
        for draws, place, drawn in zip(self.draws, places, keys, strict=True):
            none = np.zeros(place.size, dtype=np.int64)
            made, sequence = (taken[name][place] if name in taken else none for name in (draws.keyspace.name, SEQUENCE))
            yield draws.rows(self._generator, drawn, made, sequence)

    def _share_tags(self, places: list[Ints], keys: list[Ints], count: int, tag: int | None) -> None:
        """Draw anew, within the tag of the first key of its batch, each key that has another tag. Changes `keys`."""
        batch = self._batch
        tags = np.full(-(-count // batch) * batch, -1, dtype=np.int64)
        for draws, place, drawn in zip(self.draws, places, keys, strict=True):
            if drawn.shape[1]:
                tags[place] = drawn[:, 0] // draws.keyspace.per_hash_tag
        batches = tags.reshape(-1, batch)
        shared = batches[np.arange(len(batches)), np.argmax(batches >= 0, axis=1)]
        if tag is not None:
            shared = np.full(len(batches), tag, dtype=np.int64)
        for draws, place, drawn in zip(self.draws, places, keys, strict=True):
            if drawn.shape[1]:
                wished = shared[place // batch]
                other = tags[place] != wished
                drawn[other, 0] = draws.keyspace.within(self._generator, wished[other])
