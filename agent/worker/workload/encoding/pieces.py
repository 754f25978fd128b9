"""Pieces of many requests at once, and how they come into one buffer without a Python object for any of them.

A buffer is looked at as overlapping windows of as many bytes as a piece has, one at every place, so that numpy copies
each piece whole. A number is written right-aligned, with zeros before it: whoever writes a request begins at its end,
and so overwrites them with what goes before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.worker.workload.encoding.digits import FOUR, digits_of, fours_of, texts_of
from common.metrics.histogram import Ints

Buffer: TypeAlias = NDArray[np.uint8]

NARROW = 8
"""Bytes of decimals, unless one has more digits; then twice as many."""
SPOILED = 15
"""So many bytes before a piece may be spoiled at the most."""
_COPIED_BYTES = 128 * 1024
"""So many go through a copy of their own at a time, which thus stays in the processor's cache."""


class Piece(Protocol):
    """One piece of each of many requests. lengths: bytes of each, shape (count,), or one for all."""

    @property
    def lengths(self) -> Ints | int: ...

    def write(self, buffer: Buffer, ends: Ints) -> None:
        """Each so that it ends there. May spoil what lies before it, within its request."""


class Constant:
    """The same bytes in every request."""

    def __init__(self, text: bytes) -> None:
        self.lengths = len(text)
        self._text = np.frombuffer(text, dtype=window(len(text))) if text else None

    def write(self, buffer: Buffer, ends: Ints) -> None:
        """As `Piece.write`."""
        if self._text is not None:
            windows(buffer, self.lengths)[ends - self.lengths] = self._text


@dataclass(frozen=True, slots=True)
class Decimals:
    """Whole numbers. texts: each with zeros before it, in as many bytes as the second axis has."""

    texts: Buffer
    lengths: Ints

    def write(self, buffer: Buffer, ends: Ints) -> None:
        """As `Piece.write`."""
        width = self.texts.shape[1]
        windows(buffer, width)[ends - width] = self.texts.view(window(width))[:, 0]


@dataclass(frozen=True, slots=True)
class Cuts:
    """Parts of a source, which begin at `starts`."""

    source: Buffer
    starts: Ints
    lengths: Ints | int

    def write(self, buffer: Buffer, ends: Ints) -> None:
        """As `Piece.write`."""
        if isinstance(self.lengths, int):
            _copy(self.source, self.starts, buffer, ends - self.lengths, self.lengths)
            return
        # Sizes of a power of two up to the next: two copies of that power, which overlap, make each.
        powers = np.frexp(self.lengths)[1] - 1
        for power in range(max(0, int(powers.min(initial=0))), int(powers.max(initial=-1)) + 1):
            of_power = np.flatnonzero(powers == power)
            width = 1 << power
            starts, last, lengths = self.starts[of_power], ends[of_power] - width, self.lengths[of_power]
            _copy(self.source, starts, buffer, ends[of_power] - lengths, width)
            _copy(self.source, starts + lengths - width, buffer, last, width)


def texts(each: Iterable[bytes]) -> Cuts:
    """Any bytes."""
    made = list(each)
    lengths = np.fromiter(map(len, made), dtype=np.int64, count=len(made))
    return Cuts(np.frombuffer(b"".join(made), dtype=np.uint8), np.cumsum(lengths) - lengths, lengths)


def decimals(numbers: Ints, least_digits: int, room: int) -> Decimals | Cuts:
    """Numbers in decimal, with zeros before those of fewer than `least_digits` digits. room: how many bytes there are
    before each at the least, which may be spoiled."""
    # Those below 0 are the largest of all in this view.
    largest = int(numbers.view(np.uint64).max(initial=0))
    width = NARROW if largest < FOUR**2 and least_digits <= NARROW else 2 * NARROW
    if largest >= FOUR**4 or least_digits > width or width > room + 1:
        return texts(map(b"%%0%dd".__mod__(least_digits).__mod__, numbers.tolist()))
    fours = fours_of(numbers, width // 4)
    digits = digits_of(fours)
    return Decimals(texts_of(fours), np.maximum(digits, least_digits) if least_digits > 1 else digits)


def lengths_of(pieces: list[Piece], count: int) -> Ints:
    """How long what these pieces make of each of `count` requests is."""
    constant_bytes, lengths = 0, np.zeros(count, dtype=np.int64)
    for piece in pieces:
        each = piece.lengths
        if isinstance(each, int):
            constant_bytes += each
        else:
            lengths += each
    lengths += constant_bytes
    return lengths


def write_pieces(pieces: list[Piece], buffer: Buffer, ends: Ints) -> None:
    """Pieces of the same requests in order, the last so that it ends there."""
    if not ends.size:
        return
    for piece in reversed(pieces):
        piece.write(buffer, ends)
        ends = ends - piece.lengths


def windows(buffer: Buffer, width: int) -> NDArray[Any]:
    """What lies in a buffer from each place on, `width` bytes of it."""
    return np.ndarray((buffer.size - width + 1,), window(width), buffer, strides=(1,))


@cache
def window(width: int) -> np.dtype[np.void]:
    """The type of so many bytes."""
    return np.dtype((np.void, width))


def _copy(source: Buffer, starts: Ints, target: Buffer, places: Ints, width: int) -> None:
    if not width or not starts.size:
        return
    from_, to = windows(source, width), windows(target, width)
    count = max(1, _COPIED_BYTES // width)
    for first in range(0, starts.size, count):
        part = slice(first, first + count)
        to[places[part]] = from_[starts[part]]
