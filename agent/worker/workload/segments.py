"""Writes one piece of many requests at once into a shared buffer, by numpy, without a Python object for each request.

A *segment* is the same piece of every request of a block: constant bytes, decimal numbers, or slices of values. numpy
views the buffer as overlapping windows, one at every byte, so one assignment copies a segment of all requests.

A number is written right-aligned with zeros before it. A request is therefore written from its end to its beginning:
each segment overwrites the zeros of the segment after it.

Numbers are split into groups of four decimal digits; tables have the text and the length of each group. A group's index
in the tables is its value if the number begins with it, its value + 10,000 if other digits precede it, and 0 if the
number has no digits there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.metrics.histogram import Ints

Buffer: TypeAlias = NDArray[np.uint8]

OVERWRITTEN = 15
"""A segment may overwrite up to this many bytes before it."""
WORD = 8
"""A decimal segment has this many bytes for each number, or twice as many if a number has more digits."""
_COPY_BYTES = 128 * 1024
"""Bytes copied in one step, so that the intermediate copy stays in the CPU cache."""

GROUP = 10_000
_DIGITS = np.array([len(str(number)) for number in range(GROUP)])
_TEXTS = np.tile(np.frombuffer(b"".join(b"%04d" % number for number in range(GROUP)), dtype=np.uint32), 2)
LAST_GROUP_DIGITS = np.concatenate([_DIGITS, np.full(GROUP, 4)])
"""How many digits the last group of a number has, by index; at least 1."""
_OTHER_GROUP_DIGITS = np.concatenate([[0], _DIGITS[1:], np.full(GROUP, 4)])


def digit_groups(numbers: Ints, count: int) -> list[Ints]:
    """Table indices of the last `count` groups of each number >= 0, the last group first."""
    groups = []
    rest = numbers
    for _ in range(count - 1):
        higher = rest // GROUP
        groups.append(rest - np.maximum(higher - 1, 0) * GROUP)
        rest = higher
    return [*groups, rest]


def _digit_counts(groups: list[Ints]) -> Ints:
    """How many digits each number has."""
    counts: Ints = LAST_GROUP_DIGITS.take(groups[0])
    for group in groups[1:]:
        counts += _OTHER_GROUP_DIGITS.take(group)
    return counts


def _digit_texts(groups: list[Ints]) -> Buffer:
    """The digits of each number with zeros before them; shape (count, 4 * groups)."""
    texts = np.empty((groups[0].size, len(groups)), dtype=np.uint32)
    for column, group in enumerate(reversed(groups)):
        _TEXTS.take(group, out=texts[:, column], mode="clip")
    return texts.view(np.uint8)


class Segment(Protocol):
    """The same piece of many requests. lengths: bytes of each, shape (count,), or one number for all."""

    @property
    def lengths(self) -> Ints | int: ...

    def write(self, buffer: Buffer, ends: Ints) -> None:
        """Write each piece so that it ends at its position in `ends`. May overwrite up to `OVERWRITTEN` bytes before
        it."""


class ConstantSegment:
    """The same bytes in every request."""

    def __init__(self, text: bytes) -> None:
        self.lengths = len(text)
        self._text = np.frombuffer(text, dtype=_window(len(text))) if text else None

    def write(self, buffer: Buffer, ends: Ints) -> None:
        """As `Segment.write`."""
        if self._text is not None:
            _windows(buffer, self.lengths)[ends - self.lengths] = self._text


@dataclass(frozen=True, slots=True)
class DecimalSegment:
    """Whole numbers. texts: the digits of each with zeros before them; shape (count, `WORD` or twice as many)."""

    texts: Buffer
    lengths: Ints

    def write(self, buffer: Buffer, ends: Ints) -> None:
        """As `Segment.write`."""
        width = self.texts.shape[1]
        _windows(buffer, width)[ends - width] = self.texts.view(_window(width))[:, 0]


@dataclass(frozen=True, slots=True)
class SliceSegment:
    """Slices of a source. starts: where each begins in the source."""

    source: Buffer
    starts: Ints
    lengths: Ints | int

    def write(self, buffer: Buffer, ends: Ints) -> None:
        """As `Segment.write`; overwrites nothing before it."""
        if isinstance(self.lengths, int):
            _copy(self.source, self.starts, buffer, ends - self.lengths, self.lengths)
            return
        # For lengths between two powers of two, two overlapping copies of the lower power make each slice.
        powers = np.frexp(self.lengths)[1] - 1
        for power in range(max(0, int(powers.min(initial=0))), int(powers.max(initial=-1)) + 1):
            of_power = np.flatnonzero(powers == power)
            width = 1 << power
            starts, last, lengths = self.starts[of_power], ends[of_power] - width, self.lengths[of_power]
            _copy(self.source, starts, buffer, ends[of_power] - lengths, width)
            _copy(self.source, starts + lengths - width, buffer, last, width)


class NumberFrame:
    """Constant bytes around a number in its request: `<length><before><number><after>`.

    length: the number's length plus `constant_bytes`, in decimal. `rows` has a row for each possible number of digits,
    with zero bytes in place of the number. In all rows this place is the same aligned word, so a single `or` fills the
    number in.
    """

    def __init__(self, constant_bytes: int, before: bytes, after: bytes) -> None:
        begins = [b"%d%b" % (constant_bytes + digits, before) for digits in _FRAME_DIGITS]
        longest = max(map(len, begins))
        self.word = -(-longest // WORD)
        place = self.word * WORD
        self.rows: Buffer = np.zeros((WORD + 1, -(-(place + WORD + len(after)) // WORD) * WORD), dtype=np.uint8)
        for digits, begin in zip(_FRAME_DIGITS, begins, strict=True):
            end = place + WORD - digits
            self.rows[digits, end - len(begin) : end] = np.frombuffer(begin, dtype=np.uint8)
            self.rows[digits, place + WORD :][: len(after)] = np.frombuffer(after, dtype=np.uint8)
        self.lengths = np.array(
            [0, *(len(begin) + digits + len(after) for begin, digits in zip(begins, _FRAME_DIGITS, strict=True))]
        )
        self.begin, self.width = place - longest, longest + WORD + len(after)


_FRAME_DIGITS = range(1, WORD + 1)
_DIGIT_MASKS = np.array([[0] * (WORD - digits) + [255] * digits for digits in range(WORD + 1)], dtype=np.uint8).view(
    np.uint64
)[:, 0]
"""For each number of digits, a mask that keeps only the digits: the last bytes of the word."""


@dataclass(frozen=True, slots=True)
class FramedSegment:
    """Numbers of at most eight digits, with their frames. Requests with small values are mostly such numbers."""

    frame: NumberFrame
    numbers: DecimalSegment

    @property
    def lengths(self) -> Ints:
        """As `Segment.lengths`."""
        lengths: Ints = self.frame.lengths.take(self.numbers.lengths)
        return lengths

    def write(self, buffer: Buffer, ends: Ints) -> None:
        """As `Segment.write`."""
        frame, digits = self.frame, self.numbers.lengths
        rows = frame.rows.take(digits, axis=0)
        rows.view(np.uint64)[:, frame.word] |= self.numbers.texts.view(np.uint64)[:, 0] & _DIGIT_MASKS.take(digits)
        whole = np.ndarray((digits.size,), _window(frame.width), rows, offset=frame.begin, strides=(rows.shape[1],))
        _windows(buffer, frame.width)[ends - frame.width] = whole


def bytes_segment(texts: Iterable[bytes]) -> SliceSegment:
    """Any bytes: one item for each request."""
    made = list(texts)
    lengths = np.fromiter(map(len, made), dtype=np.int64, count=len(made))
    return SliceSegment(np.frombuffer(b"".join(made), dtype=np.uint8), np.cumsum(lengths) - lengths, lengths)


def decimal_segment(numbers: Ints, least_digits: int, room: int) -> DecimalSegment | SliceSegment:
    """Decimal numbers, padded with zeros to `least_digits` digits. room: how many bytes of its request precede each
    number, at least; they may be overwritten."""
    # As unsigned integers, negative numbers are larger than all others.
    largest = int(numbers.view(np.uint64).max(initial=0))
    width = WORD if largest < GROUP**2 and least_digits <= WORD else 2 * WORD
    if largest >= GROUP**4 or least_digits > width or width > room + 1:
        return bytes_segment(map(b"%%0%dd".__mod__(least_digits).__mod__, numbers.tolist()))
    groups = digit_groups(numbers, width // 4)
    digits = _digit_counts(groups)
    return DecimalSegment(_digit_texts(groups), np.maximum(digits, least_digits) if least_digits > 1 else digits)


def total_lengths(segments: list[Segment], count: int) -> Ints:
    """The length of all segments together in each of `count` requests."""
    constant_bytes, lengths = 0, np.zeros(count, dtype=np.int64)
    for segment in segments:
        each = segment.lengths
        if isinstance(each, int):
            constant_bytes += each
        else:
            lengths += each
    lengths += constant_bytes
    return lengths


def write_segments(segments: list[Segment], buffer: Buffer, ends: Ints) -> None:
    """Write consecutive segments of the same requests, the last one so that it ends at `ends`."""
    if not ends.size:
        return
    for segment in reversed(segments):
        segment.write(buffer, ends)
        ends = ends - segment.lengths


def _windows(buffer: Buffer, width: int) -> NDArray[Any]:
    """The `width` bytes at every position of a buffer."""
    return np.ndarray((buffer.size - width + 1,), _window(width), buffer, strides=(1,))


@cache
def _window(width: int) -> np.dtype[np.void]:
    """The type of an array item of `width` bytes."""
    return np.dtype((np.void, width))


def _copy(source: Buffer, starts: Ints, target: Buffer, places: Ints, width: int) -> None:
    if not width or not starts.size:
        return
    from_, to = _windows(source, width), _windows(target, width)
    count = max(1, _COPY_BYTES // width)
    for first in range(0, starts.size, count):
        part = slice(first, first + count)
        to[places[part]] = from_[starts[part]]
