"""One template of one thread as requests for the wire: constant bytes, and what is drawn for each operation.

A request is a RESP array of bulk strings. All of it that is known beforehand is put together once; what is left are
numbers, values, and the lengths of arguments whose length is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from agent.worker.columns import (
    Column,
    Data,
    Joined,
    Key,
    Literal,
    NewKey,
    RandInt,
    Rows,
    Sequence,
    Supplies,
    Whole,
    columns_of,
)
from agent.worker.pieces import SPOILED, Buffer, Constant, Cuts, Piece, decimals, texts, write_pieces
from common.commands import COMMANDS, Mixed, Part, Placeholder, Template
from common.histogram import Ints
from common.target import slot_of

_KEYS = (Placeholder.KEY, Placeholder.NEW_KEY)


class _Leaf(Protocol):
    """What is drawn for each operation. length: in bytes, where it is the same for all."""

    @property
    def length(self) -> int | None: ...

    def draw(self, rows: Rows, room: int) -> Piece:
        """The next of each operation. room: at least so many bytes go before it in its request."""


@dataclass(frozen=True, slots=True)
class _Number:
    """per: the number is divided by it."""

    column: Key | NewKey | Whole | RandInt | Sequence
    per: int = 1
    least_digits: int = 1
    length: None = None

    def draw(self, rows: Rows, room: int) -> Piece:
        numbers = self.column.numbers(rows)
        return decimals(numbers // self.per if self.per > 1 else numbers, self.least_digits, room)


class _Value:
    def __init__(self, column: Data) -> None:
        self._values = column.values
        self._source = np.frombuffer(column.values.source, dtype=np.uint8)
        self.length = column.values.fixed_bytes

    def draw(self, rows: Rows, room: int) -> Piece:  # noqa: ARG002
        starts, sizes = self._values.cuts(rows.generator, rows.count)
        return Cuts(self._source, starts, sizes if self.length is None else self.length)


@dataclass(frozen=True, slots=True)
class _Text:
    """Whatever else a column makes."""

    column: Column
    length: None = None

    def draw(self, rows: Rows, room: int) -> Piece:  # noqa: ARG002
        return texts(self.column.fill(rows)[0])


@dataclass(frozen=True, slots=True)
class _Length:
    """The length of an argument: so many constant bytes, and the leaves first..end - 1. room: as `_Leaf.draw` says."""

    constant_bytes: int
    first: int
    end: int
    room: int

    def piece(self, leaves: list[Piece], count: int) -> Piece:
        lengths = np.full(count, self.constant_bytes)
        for leaf in leaves[self.first : self.end]:
            lengths += leaf.lengths
        return decimals(lengths, 1, self.room)


_Part: TypeAlias = bytes | _Leaf
_Argument: TypeAlias = list[Constant | int]
"""The pieces of an argument: constant ones, and indices of leaves."""


def _parts_of(column: Column) -> Iterator[_Part]:
    match column:
        case Literal():
            yield column.text
        case Joined():
            for piece in column.pieces:
                yield from _parts_of(piece)
        case Key() | NewKey():
            prefix, per = column.supplies.keyspace.prefix, column.supplies.keyspace.per_hash_tag
            if per:
                yield from (prefix + b"{", _Number(column, per), b"}:", _Number(column))
            else:
                yield from (prefix, _Number(column))
        case RandInt():
            yield _Number(column, least_digits=column.least_digits)
        case Whole() | Sequence():
            yield _Number(column)
        case Data() if not column.values.verify:
            yield _Value(column)
        case _:
            yield _Text(column)


@dataclass(frozen=True, slots=True)
class Made:
    """Requests whose sizes are known, and which are yet to be written. sizes: bytes of each, shape (count,). leaves:
    those of their pieces that were drawn."""

    rows: Rows
    sizes: Ints
    pieces: list[Piece]
    leaves: list[Piece]

    def write(self, buffer: Buffer, ends: Ints) -> None:
        """Each so that it ends there."""
        write_pieces(self.pieces, buffer, ends)


class Requests:
    """One template of one thread: turns numbers into requests."""

    def __init__(self, template: Template, supplies: Supplies) -> None:
        self._leaves: list[tuple[_Leaf, int]] = []
        self._parts: list[bytes | int | _Length] = []
        self._room = 0
        name, columns = template.name.encode(), columns_of(template, supplies)
        self._add(b"*%d\r\n$%d\r\n%b\r\n" % (1 + len(columns), len(name), name))
        arguments = [self._argument(list(_parts_of(column))) for column in columns]
        self._pieces = [Constant(part) if isinstance(part, bytes) else part for part in self._parts]
        place = _first_key(template)
        self._key: tuple[Column, _Argument] | None = None if place is None else (columns[place], arguments[place])

    def _argument(self, parts: list[_Part]) -> _Argument:
        """Add one argument, and tell what it is of."""
        known = [len(part) if isinstance(part, bytes) else part.length for part in parts]
        total = sum(length for length in known if length is not None)
        if None not in known:
            self._add(b"$%d\r\n" % total)
        else:
            self._add(b"$")
            first = len(self._leaves)
            end = first + sum(not isinstance(part, bytes) for part in parts)
            constant_bytes = sum(len(part) for part in parts if isinstance(part, bytes))
            self._add(_Length(constant_bytes, first, end, self._room))
            self._add(b"\r\n")
        argument: _Argument = []
        for part in parts:
            if isinstance(part, bytes):
                if part:
                    argument.append(Constant(part))
                    self._add(part)
            else:
                argument.append(len(self._leaves))
                self._add(len(self._leaves))
                self._leaves.append((part, self._room))
        self._add(b"\r\n")
        return argument

    def _add(self, part: bytes | int | _Length) -> None:
        """One more part: constant bytes, which are joined to those before, a leaf's index or a length."""
        if isinstance(part, bytes):
            self._room += len(part)
            if self._parts and isinstance(before := self._parts[-1], bytes):
                self._parts[-1] = before + part
                return
        self._parts.append(part)

    def draw(self, rows: Rows) -> Made:
        """The next requests. What is left to be drawn comes from the generator of `rows`."""
        leaves = [leaf.draw(rows, room) for leaf, room in self._leaves]
        pieces: list[Piece] = []
        sizes = np.zeros(rows.count, dtype=np.int64)
        for part in self._pieces:
            if isinstance(part, int):
                piece = leaves[part]
            else:
                piece = part.piece(leaves, rows.count) if isinstance(part, _Length) else part
            sizes += piece.lengths
            pieces.append(piece)
        return Made(rows, sizes, pieces, leaves)

    def slots(self, made: Made) -> Ints | None:
        """The slot of each request's first key; None for requests without one."""
        if self._key is None:
            return None
        column, argument = self._key
        if isinstance(column, Key | NewKey):
            return column.supplies.keyspace.slots(column.numbers(made.rows))
        if isinstance(column, Literal):
            return np.full(made.rows.count, slot_of(column.text))
        pieces = [made.leaves[part] if isinstance(part, int) else part for part in argument]
        return np.fromiter(map(slot_of, _texts_of(pieces, made.rows.count)), dtype=np.int64, count=made.rows.count)


def _first_key(template: Template) -> int | None:
    """Which argument is the first key: one with a key in it, or else the one that is a key in the command table."""
    place = next((place for place, part in enumerate(template.parts[1:]) if _holds_key(part)), None)
    if place is None and (row := COMMANDS.get(template.name)):
        place = next((place for place, part in enumerate(row.template.parts[1:]) if _holds_key(part)), None)
    return None if place is None or place >= len(template.parts) - 1 else place


def _holds_key(part: Part) -> bool:
    return any(piece in _KEYS for piece in (part.pieces if isinstance(part, Mixed) else (part,)))


def _texts_of(pieces: list[Piece], count: int) -> Iterator[bytes]:
    """What these pieces make of each request."""
    lengths = np.zeros(count, dtype=np.int64)
    for piece in pieces:
        lengths += piece.lengths
    ends = np.cumsum(lengths + SPOILED)
    buffer = np.empty(int(ends[-1]) if count else 0, dtype=np.uint8)
    write_pieces(pieces, buffer, ends)
    whole = buffer.tobytes()
    return map(whole.__getitem__, map(slice, (ends - lengths).tolist(), ends.tolist()))
