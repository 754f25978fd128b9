"""What of a command's arguments is constant, and what is drawn for each operation: by column, for the wire."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np

from agent.worker.workload.arguments import Column, Data, Joined, Key, Literal, NewKey, RandInt, Rows, Sequence, Whole
from agent.worker.workload.encoding.pieces import Cuts, Piece, decimals, texts


class Leaf(Protocol):
    """What is drawn for each operation. length: in bytes, where it is the same for all."""

    @property
    def length(self) -> int | None: ...

    def draw(self, rows: Rows, room: int) -> Piece:
        """The next of each operation. room: at least so many bytes go before it in its request."""


@dataclass(frozen=True, slots=True)
class Number:
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
        self._column = column
        self._source = np.frombuffer(column.source, dtype=np.uint8)
        fixed_bytes = column.values.fixed_bytes
        self.length = None if fixed_bytes is None else fixed_bytes - column.around_bytes

    def draw(self, rows: Rows, room: int) -> Piece:  # noqa: ARG002
        starts, sizes = self._column.cuts(rows)
        return Cuts(self._source, starts, sizes if self.length is None else self.length)


@dataclass(frozen=True, slots=True)
class _Text:
    """Whatever else a column makes."""

    column: Column
    length: None = None

    def draw(self, rows: Rows, room: int) -> Piece:  # noqa: ARG002
        return texts(self.column.fill(rows)[0])


Part: TypeAlias = bytes | Leaf


def parts_of(column: Column) -> Iterator[Part]:
    """One argument, or a piece of one, in order."""
    match column:
        case Literal():
            yield column.text
        case Joined():
            for piece in column.pieces:
                yield from parts_of(piece)
        case Key() | NewKey():
            prefix, per = column.supplies.keyspace.prefix, column.supplies.keyspace.per_hash_tag
            if per:
                yield from (prefix + b"{", Number(column, per), b"}:", Number(column))
            else:
                yield from (prefix, Number(column))
        case RandInt():
            yield Number(column, least_digits=column.least_digits)
        case Whole() | Sequence():
            yield Number(column)
        case Data() if not column.values.verify:
            before, behind = column.around
            yield from (before, _Value(column), behind) if before else (_Value(column),)
        case _:
            yield _Text(column)
