"""The stream of operations of one worker thread: what it issues, in order, drawn in blocks so that each one is cheap.

A stream depends on the plan's seed, on the workload and on the thread's number in the fleet, and on nothing else: the
same plan on the same fleet draws the same operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, islice, repeat, starmap
from typing import Any, Protocol, TypeAlias

import numpy as np

from agent.worker.keyspace import Keyspace
from agent.worker.resp import array_header_bytes, bulk_bytes
from agent.worker.values import Blanks, Values, random_bytes
from common.commands import Part, Placeholder, Template, find_command
from common.errors import PlanError
from common.histogram import Ints
from common.plan.schema import Keys, Workload
from common.target import Ending

Arguments: TypeAlias = tuple[str | bytes, ...]
Follow: TypeAlias = Callable[[Any], Ending | None]
"""What a reply leads to: told each reply that is no error, before the next operation of its thread is drawn. Returns
how the operation ended after all when the reply is not what it should be."""
Operation: TypeAlias = tuple[int, Arguments, int, Follow | None]
"""(row, arguments, request bytes, follow). row: index into `Mix.names`. arguments: the command's name first, as
text."""

_BLOCK = 512
"""Operations drawn at a time: enough that what numpy costs to begin, with cold caches, is little for each; not so many
that the blocks of a process' threads drive each other out of the processor's cache."""

_HANDFUL = 64
"""Operations made in one go. One by one, each would find the caches cold that redis-py has filled in between; many
more, and other threads would notice the pause."""
_HANDFUL_BYTES = 1 << 20


class Drawn(Protocol):
    """Where an argument comes from that is drawn anew for every operation."""

    def draw(self, generator: np.random.Generator, count: int) -> tuple[Iterator[bytes], Ints]:
        """`count` arguments, made as they are asked for, and their lengths in bytes, shape (count,)."""


class CompiledCommand:
    """One entry of the mix: its row, its weight, and where each of its arguments comes from."""

    def __init__(self, row: int, weight: float, template: Template, drawn: dict[Placeholder, Drawn]) -> None:
        self.row = row
        self.weight = weight
        # redis-py finds its response callbacks by the name as text.
        self._parts: list[str | bytes | Drawn] = [template.name, *(_source(part, drawn) for part in template.parts[1:])]
        literals = [len(part) for part in template.parts if isinstance(part, bytes)]
        self._fixed_bytes = array_header_bytes(len(template.parts)) + int(bulk_bytes(np.array(literals)).sum())

    def draw(self, generator: np.random.Generator, count: int) -> tuple[Iterator[Arguments], Ints]:
        """`count` operations: their arguments, made as they are asked for, and sizes of their requests, shape (n,)."""
        columns: list[Iterator[str | bytes]] = []
        sizes = np.full(count, self._fixed_bytes)
        for part in self._parts:
            if isinstance(part, str | bytes):
                columns.append(repeat(part, count))
                continue
            arguments, lengths = part.draw(generator, count)
            sizes += bulk_bytes(lengths)
            columns.append(arguments)
        return zip(*columns, strict=True), sizes


def _source(part: Part, drawn: dict[Placeholder, Drawn]) -> bytes | Drawn:
    return drawn[part] if isinstance(part, Placeholder) else part


class Mix:
    """The workload of a plan, compiled once for a process: commands with their weights, and `names`, one a row.

    Commands of the same name share a row. Those of weight 0 are never drawn and have none.
    """

    def __init__(self, workload: Workload, seed: int) -> None:
        values = workload.values
        data = Values(random_bytes(seed, values.maximum_bytes), values.minimum_bytes, values.maximum_bytes)
        rows: dict[str, int] = {}
        self.commands: list[CompiledCommand] = []
        for command in workload.commands:
            if command.weight > 0:
                template = find_command(command.command)
                row = rows.setdefault(template.name, len(rows))
                drawn: dict[Placeholder, Drawn] = {
                    Placeholder.KEY: _keyspace(workload.keys, command.key_prefix),
                    Placeholder.DATA: data,
                    Placeholder.MESSAGE: Blanks(data),
                }
                self.commands.append(CompiledCommand(row, command.weight, template, drawn))
        if not self.commands:
            raise PlanError("$.workload.commands: expected at least one command of a weight above 0, got none")
        self.names = tuple(rows)
        # Each thread holds so many values: few of them where they are large.
        self.handful = max(1, min(_HANDFUL, _HANDFUL_BYTES // max(1, values.maximum_bytes)))


def _keyspace(keys: Keys, prefix: str | None) -> Keyspace:
    return Keyspace(keys.prefix if prefix is None else prefix, keys.minimum, keys.maximum)


def seed_sequence(seed: int, thread: int, purpose: int) -> np.random.SeedSequence:
    """The root of one thread's draws for one purpose (0: operations, 1: arrivals), independent of all others."""
    return np.random.SeedSequence(seed, spawn_key=(thread, purpose))


def draw_operations(mix: Mix, seed: int, thread: int) -> Iterator[Operation]:
    """The endless stream of thread number `thread` of the fleet. The first block is drawn at once."""
    generator = np.random.default_rng(seed_sequence(seed, thread, 0))
    commands = mix.commands
    rows = np.array([command.row for command in commands])
    edges = np.cumsum([float(command.weight) for command in commands])
    edges /= edges[-1]

    def block() -> Iterator[Operation]:
        picks = np.searchsorted(edges, generator.random(_BLOCK), side="right")
        counts = np.bincount(picks, minlength=len(commands)).tolist()
        drawn = [command.draw(generator, count) for command, count in zip(commands, counts, strict=True)]
        sizes = np.empty(_BLOCK, dtype=np.int64)
        for number, (_, request_bytes) in enumerate(drawn):
            sizes[picks == number] = request_bytes
        each = [arguments for arguments, _ in drawn]
        # Only iterators of C from here on, at a fraction of a loop's cost.
        arguments = map(next, map(each.__getitem__, picks.tolist()))
        return zip(rows[picks].tolist(), arguments, sizes.tolist(), repeat(None, _BLOCK), strict=True)

    stream = chain.from_iterable(chain([block()], starmap(block, repeat(()))))
    return chain.from_iterable(iter(lambda: list(islice(stream, mix.handful)), []))
