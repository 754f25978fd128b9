"""The stream of one worker's operations, in order, for redis-py.

A stream depends only on the plan's seed, the workload and the worker's number in the fleet, so the same plan on the
same fleet issues the same operations. Only commands that follow a reply depend on replies. They draw from their own
generator, so they do not change other operations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice, repeat, starmap
from typing import Any, TypeAlias

import numpy as np

from agent.worker.metrics.wire_sizes import request_bytes
from agent.worker.workload.arguments import ArgumentContext, Arguments, CommandBuilder, CommandNumbers
from agent.worker.workload.mix import CommandMix, MixCommand
from agent.worker.workload.reply_effects import (
    FollowUpCommand,
    Operation,
    ScanCursor,
    follows_reply,
    is_miss,
    verifier_of,
)
from agent.worker.workload.sampling import BLOCK_OPERATIONS, CommandSampler, OperationSampler
from common.commands import Placeholder
from common.metrics.histogram import Ints
from common.plan.seeds import SeedPurpose, seed_sequence
from common.redis_client import Failure

_Built: TypeAlias = tuple[Iterator[Arguments], Ints, Iterator[bytes]]
"""For the operations of one command: arguments, request sizes, and the key that follow-up commands use."""


def draw_operations(
    mix: CommandMix, seed: int, thread: int, threads: int = 1, *, block: int = BLOCK_OPERATIONS
) -> Iterator[Operation]:
    """The endless stream of one worker. thread: its number among the `threads` of the fleet. block: operations drawn at
    a time."""
    stream = _OperationStream(mix, seed, thread, threads, block)
    return stream.one_by_one() if mix.depends_on_replies else stream.ahead()


class _CommandStream:
    """The operations of one command of the mix in one worker."""

    def __init__(
        self, command: MixCommand, sampler: CommandSampler, context: ArgumentContext, cursor: ScanCursor | None
    ) -> None:
        self.row, self.name, self.keyspace = command.row, command.template.name, command.keyspace
        self.has_deferred = command.has_deferred
        self.builder = CommandBuilder(command.template, context)
        self.cursor = cursor
        self.verifier = verifier_of(command.template) if context.values.verify else None
        self.then: list[FollowUpCommand] = []
        self._counts, self._context = sampler.counts, context

    @property
    def reads_replies(self) -> bool:
        """Whether its replies are examined."""
        return bool(self.cursor or self.then or self.verifier)

    def first_keys(self, numbers: CommandNumbers) -> Iterator[bytes]:
        """The key that follow-up commands of each operation use; empty if it has none."""
        if self.reads_replies and self._counts.keys:
            return self.keyspace.texts(numbers.keys[:, 0])
        if self.reads_replies and self._counts.new_keys:
            return self.keyspace.texts(self._context.new_key_numbers(numbers.new_keys))
        return repeat(b"", numbers.count)


class _OperationStream:
    """All operations of one worker."""

    def __init__(self, mix: CommandMix, seed: int, thread: int, threads: int, block: int) -> None:
        self._mix = mix
        self._sampler = OperationSampler(mix, seed, thread, threads)
        self._pending: deque[tuple[Operation, bytes]] = deque()
        """Operations that follow a reply, each with its key."""
        follow_ups = np.random.default_rng(seed_sequence(seed, thread, SeedPurpose.FOLLOW_UPS))
        self._commands: list[_CommandStream] = []
        for command, sampler in zip(mix.commands, self._sampler.commands, strict=True):
            cursor = ScanCursor() if command.template.count(Placeholder.CURSOR) else None
            deferred = {Placeholder.CURSOR: cursor.position} if cursor else None
            context = mix.context(command, thread, threads, deferred, cursor.choose_key if cursor else None)
            stream = _CommandStream(command, sampler, context, cursor)
            stream.then = [
                FollowUpCommand(row, when, template, context, sampler.distribution, follow_ups, self._sampler.counters)
                for row, when, template in command.then
            ]
            self._commands.append(stream)
        self._rows = np.array([command.row for command in mix.commands])
        self._count = self._sampler.whole_batches(block)

    def ahead(self) -> Iterator[Operation]:
        """Operations made ahead, `mix.made_ahead` at a time, for mixes in which no operation depends on a reply. Draws
        the first block immediately."""
        blocks = chain.from_iterable(chain([self._whole_block()], starmap(self._whole_block, repeat(()))))
        return chain.from_iterable(iter(lambda: list(islice(blocks, self._mix.made_ahead)), []))

    def _whole_block(self) -> Iterator[Operation]:
        commands, built = self._block(self._count)
        sizes = np.empty(commands.size, dtype=np.int64)
        for number, (_, request_sizes, _) in enumerate(built):
            sizes[commands == number] = request_sizes
        each = [arguments for arguments, _, _ in built]
        chosen = commands.tolist()
        # Unless replies are verified, from here on only iterators written in C run: much faster than a Python loop.
        arguments = map(next, map(each.__getitem__, chosen))
        rows = self._rows[commands].tolist()
        verifiers = [command.verifier for command in self._commands]
        if not any(verifiers):
            return zip(rows, arguments, sizes.tolist(), repeat(None, len(rows)), strict=True)
        return (
            (row, made, size, verifier(made) if (verifier := verifiers[number]) else None)
            for row, made, size, number in zip(rows, arguments, sizes.tolist(), chosen, strict=True)
        )

    def one_by_one(self) -> Iterator[Operation]:
        """Operations made when they are taken, after all earlier replies. Commands that follow a reply come first.
        Draws the first block immediately, except for batches in one slot, which are drawn one by one."""
        if self._mix.batch_in_one_slot:
            return self._batch_by_batch()
        first = self._block(self._count)
        blocks = chain([first], (self._block(self._count) for _ in repeat(None)))
        return chain.from_iterable(self._operations(*block, with_follow_ups=True) for block in blocks)

    def _batch_by_batch(self) -> Iterator[Operation]:
        batch, pending = self._mix.batch_in_one_slot, self._pending
        while True:
            # Follow-ups have keys with one tag. A batch that begins with follow-ups continues with that tag.
            follow_ups = [pending.popleft() for _ in range(min(batch, len(pending)))]
            yield from (operation for operation, _ in follow_ups)
            key = next((key for _, key in follow_ups if key), None)
            tag = self._commands[0].keyspace.tag(key) if key else None
            if len(follow_ups) < batch:
                yield from self._operations(*self._block(batch - len(follow_ups), tag), with_follow_ups=False)

    def _operations(self, commands: Ints, built: list[_Built], with_follow_ups: bool) -> Iterator[Operation]:
        """The operations of a block. with_follow_ups: issue pending follow-up commands between them."""
        pending = self._pending
        each = [
            (command, made, keys, iter(sizes.tolist()))
            for command, (made, sizes, keys) in zip(self._commands, built, strict=True)
        ]
        for number in commands.tolist():
            while with_follow_ups and pending:
                yield pending.popleft()[0]
            command, made, keys, sizes = each[number]
            arguments, key, size = next(made), next(keys), next(sizes)
            if command.has_deferred:
                size = request_bytes(arguments)
            on_reply = partial(self._on_reply, command, key, arguments) if command.reads_replies else None
            yield command.row, arguments, size, on_reply

    def _on_reply(self, command: _CommandStream, key: bytes, arguments: Arguments, reply: Any) -> Failure | None:
        """Process the reply to one operation. Returns the same as `OnReply`."""
        if command.cursor is not None:
            key = command.cursor.key
            command.cursor.advance(reply)
        if command.then:
            miss = is_miss(reply)
            for then in command.then:
                if follows_reply(then.when, miss) and (operation := then.operation(key, command.name, reply)):
                    self._pending.append((operation, key))
        return command.verifier(arguments)(reply) if command.verifier else None

    def _block(self, count: int, tag: int | None = None) -> tuple[Ints, list[_Built]]:
        """`count` operations: (each operation's index of its command, shape (count,); each command's arguments, sizes
        and keys).

        tag: the hash tag of the batch, if one of its operations has already been issued.
        """
        block = self._sampler.block(count, tag)
        built = []
        for command, numbers in zip(self._commands, block.numbers, strict=True):
            built.append((*command.builder.build(numbers), command.first_keys(numbers)))
        return block.commands, built
