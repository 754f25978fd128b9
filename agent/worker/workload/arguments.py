"""Where the arguments of a command come from: one column for each, filled for many operations at once.

A column gives its arguments as an iterator, which makes each when it is asked for it, and their lengths at once. What
can be known only when an operation is about to be issued (how far a SCAN has come) is *late*: it has no lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import ClassVar, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from agent.worker.metrics.wire_sizes import array_header_bytes, bulk_bytes, decimal_digits
from agent.worker.workload.keys import Keyspace
from agent.worker.workload.values import JSON_BEGIN, JSON_END, Blank, Values, sealed, slices
from common.commands import Argument, Compound, Piece, Placeholder, RandomInteger, Repeated, ScriptDigest, Template
from common.metrics.histogram import Ints

T = TypeVar("T")
Arguments: TypeAlias = tuple[str | bytes, ...]
Late: TypeAlias = Callable[[], bytes]
"""Makes one argument at the moment at which its operation is about to be issued."""


@dataclass(frozen=True, slots=True)
class Supplies:
    """What the arguments of one command are made from. thread, threads: among all of the fleet. ttl_s: the lowest and
    the highest time to live. scripts: digests by name. late: what is made at the last moment. hold: told each first
    key that is drawn, and says which one it is to be."""

    keyspace: Keyspace
    values: Values
    ttl_s: tuple[int, int]
    thread: int
    threads: int
    scripts: Mapping[str, bytes]
    late: Mapping[Placeholder, Late] = field(default_factory=dict)
    hold: Callable[[bytes], bytes] | None = None

    def new_numbers(self, made: Ints) -> Ints:
        """The numbers of new keys of this thread, for how many it had made before each; nobody else makes them."""
        return self.keyspace.maximum + 1 + made * self.threads + self.thread


@dataclass(frozen=True, slots=True)
class Rows:
    """The numbers that `count` operations of one command are made from.

    keys: shape (count, keys of the command). rand_ints: shape (count, `__rand_int__`s). made: how many new keys the
    thread had made before each operation, and sequence: how many numbers it had taken; shape (count,).
    """

    generator: np.random.Generator
    count: int
    keys: Ints
    rand_ints: Ints
    made: Ints
    sequence: Ints


Filled: TypeAlias = tuple[Iterator[bytes], Ints | int]


class Column(Protocol):
    """One argument of a command, or a piece of one."""

    def fill(self, rows: Rows) -> Filled:
        """An argument for each operation, and their lengths: shape (count,), or one for all; 0 for what is late."""


@dataclass(frozen=True, slots=True)
class Literal:
    text: bytes

    def fill(self, rows: Rows) -> Filled:
        return repeat(self.text, rows.count), len(self.text)


@dataclass(frozen=True, slots=True)
class Key:
    supplies: Supplies
    index: int

    def numbers(self, rows: Rows) -> Ints:
        return rows.keys[:, self.index]

    def fill(self, rows: Rows) -> Filled:
        numbers = self.numbers(rows)
        keyspace, hold = self.supplies.keyspace, self.supplies.hold
        texts = keyspace.texts(numbers)
        return map(hold, texts) if hold and self.index == 0 else texts, keyspace.lengths(numbers)


@dataclass(frozen=True, slots=True)
class NewKey:
    supplies: Supplies
    index: int

    def numbers(self, rows: Rows) -> Ints:
        return self.supplies.new_numbers(rows.made + self.index)

    def fill(self, rows: Rows) -> Filled:
        numbers = self.numbers(rows)
        return self.supplies.keyspace.texts(numbers), self.supplies.keyspace.lengths(numbers)


class _Once(Generic[T]):
    """The last draw of a placeholder that a command has at several places: the first place draws, the others get the
    same values for the same rows."""

    __slots__ = ("_drawn", "_rows")

    def __init__(self) -> None:
        self._rows: Rows | None = None
        self._drawn: T | None = None

    def of(self, rows: Rows, draw: Callable[[], T]) -> T:
        if self._drawn is None or rows is not self._rows:
            self._rows, self._drawn = rows, draw()
        return self._drawn


@dataclass(frozen=True, slots=True)
class Data:
    """A value. owner: the column of its key, for values that are verified. is_text: `__text__`, which is text even if
    the plan's values are of another kind."""

    values: Values
    owner: Column | None
    is_text: bool
    once: _Once[tuple[Ints, Ints]] = field(default_factory=_Once)

    @property
    def source(self) -> bytes:
        """What values are cut from."""
        return self.values.text if self.is_text else self.values.source

    @property
    def around(self) -> tuple[bytes, bytes]:
        """The bytes before and after the slice that is cut."""
        return (JSON_BEGIN, JSON_END) if self.values.is_json and not self.is_text else (b"", b"")

    @property
    def around_bytes(self) -> int:
        """The size of both together."""
        return sum(map(len, self.around))

    def cuts(self, rows: Rows) -> tuple[Ints, Ints]:
        """For each value, where its slice begins in the source, and the size of the slice."""
        starts, sizes = self.once.of(rows, lambda: self.values.cuts(rows.generator, rows.count))
        return starts, sizes - self.around_bytes if self.around_bytes else sizes

    def fill(self, rows: Rows) -> Filled:
        starts, sizes = self.cuts(rows)
        values = slices(self.source, starts, sizes)
        if self.values.verify:
            keys: Iterator[bytes] = repeat(b"", rows.count)
            lengths: Ints | int = 0
            if self.owner is not None:
                keys, lengths = self.owner.fill(rows)
            values, sizes = map(sealed, values, keys), np.maximum(sizes, lengths + 10)
        if not self.around_bytes:
            return values, sizes
        before, behind = self.around
        return (before + value + behind for value in values), sizes + self.around_bytes


@dataclass(frozen=True, slots=True)
class _Message:
    """Not late: it is stamped by whoever issues it, in its place."""

    values: Values

    def fill(self, rows: Rows) -> Filled:
        values, sizes = self.values.draw(rows.generator, rows.count)
        return map(Blank, values), sizes


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole number, uniform over low..high."""

    low: int
    high: int
    once: _Once[Ints] = field(default_factory=_Once)

    def numbers(self, rows: Rows) -> Ints:
        return self.once.of(rows, lambda: rows.generator.integers(self.low, self.high + 1, rows.count))

    def fill(self, rows: Rows) -> Filled:
        return _decimals(self.numbers(rows))


@dataclass(frozen=True, slots=True)
class RandInt:
    index: int
    least_digits: ClassVar[int] = 12

    def numbers(self, rows: Rows) -> Ints:
        return rows.rand_ints[:, self.index]

    def fill(self, rows: Rows) -> Filled:
        numbers = self.numbers(rows)
        return map(b"%012d".__mod__, numbers.tolist()), np.maximum(decimal_digits(numbers), self.least_digits)


@dataclass(frozen=True, slots=True)
class Sequence:
    index: int

    def numbers(self, rows: Rows) -> Ints:
        return rows.sequence + self.index + 1

    def fill(self, rows: Rows) -> Filled:
        return _decimals(self.numbers(rows))


@dataclass(frozen=True, slots=True)
class _Late:
    make: Late

    def fill(self, rows: Rows) -> Filled:
        return (self.make() for _ in range(rows.count)), 0


@dataclass(frozen=True, slots=True)
class Joined:
    pieces: tuple[Column, ...]

    def fill(self, rows: Rows) -> Filled:
        filled = [piece.fill(rows) for piece in self.pieces]
        lengths: Ints | int = sum((length for _, length in filled), 0)
        return map(b"".join, zip(*(texts for texts, _ in filled), strict=True)), lengths


def _decimals(numbers: Ints) -> Filled:
    return map(b"%d".__mod__, numbers.tolist()), decimal_digits(np.abs(numbers)) + (numbers < 0)


class _Maker:
    """Makes the columns of one template, in order: the n-th key is the n-th placeholder of its kind."""

    def __init__(self, supplies: Supplies) -> None:
        self._supplies = supplies
        self._seen = dict.fromkeys(Placeholder, 0)
        self._owner: Column | None = None
        self._made: list[Column] = []

    def column(self, part: Argument) -> Column:
        if isinstance(part, Compound):
            return Joined(tuple(self._piece(piece) for piece in part.pieces))
        return self._piece(part)

    def _piece(self, piece: Piece) -> Column:
        # Minus 1: a template's first piece is the name of the command, which has no column.
        made = self._made[piece.first - 1] if isinstance(piece, Repeated) else self._new(piece)
        self._made.append(made)
        if isinstance(made, Key | NewKey):
            self._owner = made
        return made

    def _new(self, piece: bytes | Placeholder | RandomInteger | ScriptDigest) -> Column:
        supplies = self._supplies
        if isinstance(piece, bytes):
            return Literal(piece)
        if isinstance(piece, RandomInteger):
            return Whole(piece.low, piece.high)
        if isinstance(piece, ScriptDigest):
            return Literal(supplies.scripts[piece.script])
        index = self._seen[piece]
        self._seen[piece] += 1
        match piece:
            case Placeholder.KEY:
                return Key(supplies, index)
            case Placeholder.NEW_KEY:
                return NewKey(supplies, index)
            case Placeholder.DATA | Placeholder.TEXT:
                return Data(supplies.values, self._owner, is_text=piece is Placeholder.TEXT)
            case Placeholder.MESSAGE:
                return _Message(supplies.values)
            case Placeholder.RAND_INT:
                return RandInt(index)
            case Placeholder.TTL:
                return Whole(*supplies.ttl_s)
            case Placeholder.THREAD:
                return Literal(b"%d" % supplies.thread)
            case Placeholder.SEQ:
                return Sequence(index)
            case _:
                return _Late(supplies.late[piece])


def columns_of(template: Template, supplies: Supplies) -> list[Column]:
    """The columns of a template's arguments after its name. A value belongs to the last key before it."""
    maker = _Maker(supplies)
    return [maker.column(part) for part in template.arguments[1:]]


class Filler:
    """One template of one thread: turns numbers into arguments."""

    def __init__(self, template: Template, supplies: Supplies) -> None:
        self.keys, self.rand_ints, self.new_keys, self.sequences = (
            template.count(placeholder)
            for placeholder in (Placeholder.KEY, Placeholder.RAND_INT, Placeholder.NEW_KEY, Placeholder.SEQ)
        )
        # redis-py finds its response callbacks by the name as text.
        self._sources: list[str | bytes | Column] = [template.name]
        for column in columns_of(template, supplies):
            self._sources.append(column.text if isinstance(column, Literal) else column)
        literals = [len(source) for source in self._sources if isinstance(source, str | bytes)]
        self._fixed_bytes = array_header_bytes(len(self._sources)) + int(bulk_bytes(np.array(literals)).sum())

    def fill(self, rows: Rows) -> tuple[Iterator[Arguments], Ints]:
        """`rows.count` operations: their arguments, made as they are asked for, and sizes of their requests, shape
        (count,); these leave out what is late."""
        columns: list[Iterator[str | bytes]] = []
        sizes = np.full(rows.count, self._fixed_bytes)
        for source in self._sources:
            if isinstance(source, str | bytes):
                columns.append(repeat(source, rows.count))
                continue
            arguments, lengths = source.fill(rows)
            sizes += bulk_bytes(np.asarray(lengths))
            columns.append(arguments)
        return zip(*columns, strict=True), sizes
