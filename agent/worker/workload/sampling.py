"""The numbers of one worker's operations, drawn in blocks: each operation's command, and the numbers for its arguments.

Arguments for redis-py (`operations`) and requests for the wire driver (`encoding`) are both made from these numbers, so
all drivers issue the same operations.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

import numpy as np

from agent.worker.workload.arguments import CommandNumbers, PlaceholderCounts
from agent.worker.workload.distributions import key_distribution
from agent.worker.workload.mix import CommandMix, MixCommand
from common.metrics.histogram import Ints
from common.plan.seeds import SeedPurpose, seed_sequence

BLOCK_OPERATIONS = 512
"""Operations drawn at a time. More would save calls of numpy, but the blocks of all threads would no longer fit the CPU
cache."""

SEQUENCE = "__seq__"

_NONE = np.empty((1, 0), dtype=np.int64)


class WorkerCounters:
    """One worker's counters: one for `__seq__`, and one for the new keys of each keyspace."""

    def __init__(self) -> None:
        self._next: dict[Hashable, int] = {}

    def take(self, counter: Hashable, uses: Ints) -> Ints:
        """The counter's value before each operation. uses: how many numbers each operation takes; shape (n,)."""
        begin = self._next.get(counter, 0)
        ends = begin + np.cumsum(uses)
        self._next[counter] = int(ends[-1]) if ends.size else begin
        return ends - uses


class CommandSampler:
    """Draws the numbers of one command of the mix in one worker."""

    def __init__(self, command: MixCommand, thread: int, threads: int) -> None:
        self.keyspace = command.keyspace
        self.distribution = key_distribution(command.keys, thread, threads)
        self.counts = PlaceholderCounts.from_template(command.template)

    def draw_keys(self, generator: np.random.Generator, count: int, newest: Ints | None) -> Ints:
        """Key numbers of `count` operations: all keys, or with hash tags the first key of each; shape (count, n)."""
        each = min(self.counts.keys, 1) if self.keyspace.per_hash_tag else self.counts.keys
        if newest is not None:
            newest = np.repeat(newest, each)
        return self.distribution.draw(generator, count * each, newest).reshape(count, each)

    def complete(self, generator: np.random.Generator, keys: Ints, new_keys: Ints, sequence: Ints) -> CommandNumbers:
        """All numbers of the operations whose keys `draw_keys` has drawn."""
        count = len(keys)
        if self.keyspace.per_hash_tag and self.counts.keys > 1:
            keys = self.keyspace.siblings(generator, keys[:, 0], self.counts.keys)
        rand_ints, each = _NONE.repeat(count, axis=0), self.counts.rand_ints
        if each:
            rand_ints = self.distribution.draw(generator, count * each).reshape(count, each)
        return CommandNumbers(generator, count, keys, rand_ints, new_keys, sequence)


@dataclass(frozen=True, slots=True)
class SampledBlock:
    """Operations in order.

    commands: for each operation, the index of its command in the mix; shape (count,). positions: for each command, the
    indices of its operations. numbers: for each command, the numbers of its operations. Making arguments draws from the
    same generator, so make the arguments of one command before you take the next from the iterator.
    """

    commands: Ints
    positions: list[Ints]
    numbers: Iterator[CommandNumbers]


class OperationSampler:
    """Draws the numbers of all operations of one worker."""

    def __init__(self, mix: CommandMix, seed: int, thread: int, threads: int) -> None:
        self.counters = WorkerCounters()
        self.commands = [CommandSampler(command, thread, threads) for command in mix.commands]
        self._batch, self._threads = mix.batch_in_one_slot, threads
        self._generator = np.random.default_rng(seed_sequence(seed, thread, SeedPurpose.OPERATIONS))
        edges = np.cumsum([command.weight for command in mix.commands])
        self._edges = edges / edges[-1]
        self._uses = self._counter_uses()

    def whole_batches(self, count: int) -> int:
        """The smallest number >= `count` that is a multiple of the batch size, if batches must share a hash tag."""
        return self._batch * -(-count // self._batch) if self._batch else count

    def _counter_uses(self) -> dict[object, Ints]:
        """For each counter, how many numbers an operation of each command takes; shape (commands,)."""
        names = {command.keyspace.name for command in self.commands}
        uses: dict[object, Ints] = {
            name: np.array([each.counts.new_keys * (each.keyspace.name == name) for each in self.commands])
            for name in names
        }
        uses[SEQUENCE] = np.array([command.counts.sequences for command in self.commands])
        return {name: each for name, each in uses.items() if each.any()}

    def block(self, count: int, tag: int | None = None) -> SampledBlock:
        """The next `count` operations.

        tag: the hash tag of the batch, if one of its operations has already been issued.
        """
        generator = self._generator
        commands = np.searchsorted(self._edges, generator.random(count), side="right")
        positions = [np.flatnonzero(commands == number) for number in range(len(self.commands))]
        taken = {name: self.counters.take(name, uses[commands]) for name, uses in self._uses.items()}
        keys = []
        for command, own in zip(self.commands, positions, strict=True):
            made = taken.get(command.keyspace.name)
            newest = None if made is None else command.keyspace.maximum + made[own] * self._threads
            keys.append(command.draw_keys(generator, own.size, newest))
        if self._batch:
            self._share_tags(positions, keys, count, tag)
        return SampledBlock(commands, positions, self._complete(positions, keys, taken))

    def _complete(self, positions: list[Ints], keys: list[Ints], taken: dict[object, Ints]) -> Iterator[CommandNumbers]:
        for command, own, drawn in zip(self.commands, positions, keys, strict=True):
            none = np.zeros(own.size, dtype=np.int64)
            new_keys, sequence = (
                taken[name][own] if name in taken else none for name in (command.keyspace.name, SEQUENCE)
            )
            yield command.complete(self._generator, drawn, new_keys, sequence)

    def _share_tags(self, positions: list[Ints], keys: list[Ints], count: int, tag: int | None) -> None:
        """Give all operations of a batch the tag of its first key: draw keys with another tag again, within that tag.
        Changes `keys`."""
        batch = self._batch
        tags = np.full(-(-count // batch) * batch, -1, dtype=np.int64)
        for command, own, drawn in zip(self.commands, positions, keys, strict=True):
            if drawn.shape[1]:
                tags[own] = drawn[:, 0] // command.keyspace.per_hash_tag
        batches = tags.reshape(-1, batch)
        shared = batches[np.arange(len(batches)), np.argmax(batches >= 0, axis=1)]
        if tag is not None:
            shared = np.full(len(batches), tag, dtype=np.int64)
        for command, own, drawn in zip(self.commands, positions, keys, strict=True):
            if drawn.shape[1]:
                wanted = shared[own // batch]
                other = tags[own] != wanted
                drawn[other, 0] = command.keyspace.within(self._generator, wanted[other])
