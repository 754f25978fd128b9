"""One template of one thread as requests for the wire: constant bytes, and what is drawn for each operation.

A request is a RESP array of bulk strings. All of it that is known beforehand is put together once; what is left are
numbers, values, and the lengths of arguments whose length is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np

from agent.worker.workload.arguments import Key, Literal, NewKey, Rows, Supplies, columns_of
from agent.worker.workload.encoding.argument_parts import Leaf, Number, Part, parts_of
from agent.worker.workload.encoding.numbers import Frame, Framed
from agent.worker.workload.encoding.pieces import (
    NARROW,
    SPOILED,
    Buffer,
    Constant,
    Decimals,
    Piece,
    decimals,
    lengths_of,
    write_pieces,
)
from common.commands import COMMANDS, Argument, Compound, Placeholder, Template
from common.metrics.histogram import Ints
from common.redis_client import slot_of

_KEYS = (Placeholder.KEY, Placeholder.NEW_KEY)
_LONGEST_AFTER = 64
"""Constant bytes behind a number that are written with it; more would be copied for nothing."""


@dataclass(frozen=True, slots=True)
class _Same:
    piece: Constant

    def pieces(self, leaves: list[Piece], count: int) -> list[Piece]:  # noqa: ARG002
        return [self.piece]


@dataclass(frozen=True, slots=True)
class _Drawn:
    leaf: int

    def pieces(self, leaves: list[Piece], count: int) -> list[Piece]:  # noqa: ARG002
        return [leaves[self.leaf]]


@dataclass(frozen=True, slots=True)
class _Length:
    """The length of an argument: so many constant bytes, and the leaves first..end - 1. room: as `Leaf.draw` says."""

    constant_bytes: int
    first: int
    end: int
    room: int

    def pieces(self, leaves: list[Piece], count: int) -> list[Piece]:
        lengths = lengths_of(leaves[self.first : self.end], count) + self.constant_bytes
        return [decimals(lengths, 1, self.room)]


class _Numbered:
    """From the length of an argument that has but one number to the next that is drawn."""

    def __init__(self, length: _Length, before: bytes, after: bytes) -> None:
        self._length, self._before, self._after = length, Constant(before), Constant(after)
        self._frame = Frame(length.constant_bytes, before, after)

    def pieces(self, leaves: list[Piece], count: int) -> list[Piece]:
        number = leaves[self._length.first]
        if isinstance(number, Decimals) and number.texts.shape[1] == NARROW:
            return [Framed(self._frame, number)]
        return [*self._length.pieces(leaves, count), self._before, number, self._after]


_Compiled: TypeAlias = _Same | _Drawn | _Length | _Numbered
_Raw: TypeAlias = bytes | int | _Length
"""Constant bytes, the index of a leaf, or a length."""


@dataclass(frozen=True, slots=True)
class Made:
    """Requests whose sizes are known, and which are yet to be written. sizes: bytes of each, shape (count,). slots: of
    the first key of each; None for requests without one."""

    sizes: Ints
    pieces: list[Piece]
    slots: Callable[[], Ints | None]

    def write(self, buffer: Buffer, ends: Ints) -> None:
        """Each so that it ends there."""
        write_pieces(self.pieces, buffer, ends)


class Requests:
    """One template of one thread: turns numbers into requests."""

    def __init__(self, template: Template, supplies: Supplies) -> None:
        self._leaves: list[tuple[Leaf, int]] = []
        self._raw: list[_Raw] = []
        self._room = 0
        name, columns = template.name.encode(), columns_of(template, supplies)
        self._add(b"*%d\r\n$%d\r\n%b\r\n" % (1 + len(columns), len(name), name))
        arguments = [self._argument(list(parts_of(column))) for column in columns]
        self._parts = list(self._compiled())
        place = _first_key(template)
        self._key = None if place is None else (columns[place], arguments[place])

    def _argument(self, parts: list[Part]) -> list[bytes | int]:
        """Add an argument; returns what it is made of."""
        raw: list[bytes | int] = []
        leaves: list[Leaf] = []
        for part in parts:
            if isinstance(part, bytes):
                raw.append(part)
            else:
                raw.append(len(self._leaves) + len(leaves))
                leaves.append(part)
        constant_bytes = sum(len(part) for part in parts if isinstance(part, bytes))
        known = [leaf.length for leaf in leaves]
        if None in known:
            self._add(b"$")
            first = len(self._leaves)
            self._add(_Length(constant_bytes, first, first + len(leaves), self._room))
            self._add(b"\r\n")
        else:
            self._add(b"$%d\r\n" % (constant_bytes + sum(length or 0 for length in known)))
        self._leaves += [(leaf, self._room) for leaf in leaves]
        for each in raw:
            self._add(each)
        self._add(b"\r\n")
        return raw

    def _add(self, part: _Raw) -> None:
        """One more part; constant ones are joined."""
        if isinstance(part, bytes):
            self._room += len(part)
            if self._raw and isinstance(before := self._raw[-1], bytes):
                self._raw[-1] = before + part
                return
        self._raw.append(part)

    def _compiled(self) -> Iterator[_Compiled]:
        raw, at = self._raw, 0
        while at < len(raw):
            match raw[at : at + 4]:
                case [_Length() as length, bytes() as before, int(), bytes() as after] if self._is_number(length):
                    yield _Numbered(length, before, after[:_LONGEST_AFTER])
                    if rest := after[_LONGEST_AFTER:]:
                        yield _Same(Constant(rest))
                    at += 3
                case [bytes() as text, *_]:
                    yield _Same(Constant(text))
                case [int() as leaf, *_]:
                    yield _Drawn(leaf)
                case [_Length() as length, *_]:
                    yield length
            at += 1

    def _is_number(self, length: _Length) -> bool:
        """Whether it is that of an argument in which nothing but one number is drawn."""
        return length.end - length.first == 1 and isinstance(self._leaves[length.first][0], Number)

    def draw(self, rows: Rows) -> Made:
        """The next requests. What is left to be drawn comes from the generator of `rows`."""
        leaves = [leaf.draw(rows, room) for leaf, room in self._leaves]
        pieces = [piece for part in self._parts for piece in part.pieces(leaves, rows.count)]
        return Made(lengths_of(pieces, rows.count), pieces, partial(self._slots, rows, leaves))

    def _slots(self, rows: Rows, leaves: list[Piece]) -> Ints | None:
        if self._key is None:
            return None
        column, argument = self._key
        if isinstance(column, Key | NewKey):
            return column.supplies.keyspace.slots(column.numbers(rows))
        if isinstance(column, Literal):
            return np.full(rows.count, slot_of(column.text))
        pieces = [leaves[part] if isinstance(part, int) else Constant(part) for part in argument]
        return np.fromiter(map(slot_of, _texts_of(pieces, rows.count)), dtype=np.int64, count=rows.count)


def _first_key(template: Template) -> int | None:
    """Which argument is the first key: one with a key in it, or else the one that is a key in the command table."""
    place = next((place for place, part in enumerate(template.arguments[1:]) if _holds_key(part)), None)
    if place is None and (row := COMMANDS.get(template.name)):
        place = next((place for place, part in enumerate(row.template.arguments[1:]) if _holds_key(part)), None)
    return None if place is None or place >= len(template.arguments) - 1 else place


def _holds_key(part: Argument) -> bool:
    return any(piece in _KEYS for piece in (part.pieces if isinstance(part, Compound) else (part,)))


def _texts_of(pieces: list[Piece], count: int) -> Iterator[bytes]:
    """What these pieces make of each request."""
    lengths = lengths_of(pieces, count)
    ends = np.cumsum(lengths + SPOILED)
    buffer = np.empty(int(ends.max(initial=0)), dtype=np.uint8)
    write_pieces(pieces, buffer, ends)
    whole = buffer.tobytes()
    return map(whole.__getitem__, map(slice, (ends - lengths).tolist(), ends.tolist()))
