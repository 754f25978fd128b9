"""Packs the operations of one command in one thread as RESP requests: constant bytes, and parts that are drawn for each
operation.

A request is a RESP array of bulk strings. `RequestPacker` computes the layout of a template once: it joins neighbouring
constants, and puts a length before each argument of variable length. `RequestPacker.prepare` then draws the numbers and
values of many requests as segments (see `segments`). All sizes are known before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeAlias

import numpy as np

from agent.worker.workload.arguments import (
    ArgumentContext,
    ArgumentSource,
    CommandNumbers,
    IntegerSource,
    JoinedSource,
    KeySource,
    LiteralSource,
    NewKeySource,
    RandIntSource,
    SequenceSource,
    ValueSource,
    argument_sources,
)
from agent.worker.workload.segments import (
    OVERWRITTEN,
    WORD,
    Buffer,
    ConstantSegment,
    DecimalSegment,
    FramedSegment,
    NumberFrame,
    Segment,
    SliceSegment,
    bytes_segment,
    decimal_segment,
    total_lengths,
    write_segments,
)
from common.commands import COMMANDS, KEY_PLACEHOLDERS, Template
from common.metrics.histogram import Ints
from common.redis_client import slot_of

_LONGEST_AFTER = 64
"""A number's frame includes at most this many constant bytes after the number; copying more would save no time."""


class DrawnPart(Protocol):
    """A part of an argument that is drawn for each operation. length: in bytes; None if it varies."""

    @property
    def length(self) -> int | None: ...

    def draw(self, numbers: CommandNumbers, room: int) -> Segment:
        """The part for each operation. room: at least this many bytes precede the part in its request."""


ArgumentPart: TypeAlias = bytes | DrawnPart


@dataclass(frozen=True, slots=True)
class _NumberPart:
    """A number. divisor: converts a key's number into its hash tag; 1 for other numbers."""

    source: KeySource | NewKeySource | IntegerSource | RandIntSource | SequenceSource
    divisor: int = 1
    least_digits: int = 1
    length: None = None

    def draw(self, numbers: CommandNumbers, room: int) -> Segment:
        drawn = self.source.numbers(numbers)
        return decimal_segment(drawn // self.divisor if self.divisor > 1 else drawn, self.least_digits, room)


class _ValuePart:
    """A value that needs no checksum."""

    def __init__(self, source: ValueSource) -> None:
        self._source = source
        self._bytes = np.frombuffer(source.bytes_to_slice, dtype=np.uint8)
        fixed_bytes = source.values.fixed_bytes
        self.length = None if fixed_bytes is None else fixed_bytes - source.around_bytes

    def draw(self, numbers: CommandNumbers, room: int) -> Segment:  # noqa: ARG002
        starts, sizes = self._source.slices(numbers)
        return SliceSegment(self._bytes, starts, sizes if self.length is None else self.length)


@dataclass(frozen=True, slots=True)
class _BytesPart:
    """Any other argument: Python makes the bytes of each operation one by one."""

    source: ArgumentSource
    length: None = None

    def draw(self, numbers: CommandNumbers, room: int) -> Segment:  # noqa: ARG002
        return bytes_segment(self.source.generate(numbers)[0])


def _parts_of(source: ArgumentSource) -> Iterator[ArgumentPart]:
    """The parts of one argument, in order."""
    match source:
        case LiteralSource():
            yield source.text
        case JoinedSource():
            for piece in source.pieces:
                yield from _parts_of(piece)
        case KeySource() | NewKeySource():
            keyspace = source.context.keyspace
            if keyspace.per_hash_tag:
                tag = _NumberPart(source, keyspace.per_hash_tag)
                yield from (keyspace.prefix + b"{", tag, b"}:", _NumberPart(source))
            else:
                yield from (keyspace.prefix, _NumberPart(source))
        case RandIntSource():
            yield _NumberPart(source, least_digits=source.least_digits)
        case IntegerSource() | SequenceSource():
            yield _NumberPart(source)
        case ValueSource() if not source.values.verify:
            before, after = source.around
            yield from (before, _ValuePart(source), after) if before else (_ValuePart(source),)
        case _:
            yield _BytesPart(source)


@dataclass(frozen=True, slots=True)
class _ConstantStep:
    segment: ConstantSegment

    def segments(self, drawn: list[Segment], count: int) -> list[Segment]:  # noqa: ARG002
        return [self.segment]


@dataclass(frozen=True, slots=True)
class _DrawnStep:
    part: int

    def segments(self, drawn: list[Segment], count: int) -> list[Segment]:  # noqa: ARG002
        return [drawn[self.part]]


@dataclass(frozen=True, slots=True)
class _LengthStep:
    """The length of an argument: `constant_bytes` and the drawn parts first..end - 1. room: see `DrawnPart.draw`."""

    constant_bytes: int
    first: int
    end: int
    room: int

    def segments(self, drawn: list[Segment], count: int) -> list[Segment]:
        lengths = total_lengths(drawn[self.first : self.end], count) + self.constant_bytes
        return [decimal_segment(lengths, 1, self.room)]


class _NumberStep:
    """An argument in which only one number is drawn: its length, the number, and the constants around the number."""

    def __init__(self, length: _LengthStep, before: bytes, after: bytes) -> None:
        self._length, self._before, self._after = length, ConstantSegment(before), ConstantSegment(after)
        self._frame = NumberFrame(length.constant_bytes, before, after)

    def segments(self, drawn: list[Segment], count: int) -> list[Segment]:
        number = drawn[self._length.first]
        if isinstance(number, DecimalSegment) and number.texts.shape[1] == WORD:
            return [FramedSegment(self._frame, number)]
        return [*self._length.segments(drawn, count), self._before, number, self._after]


_Step: TypeAlias = _ConstantStep | _DrawnStep | _LengthStep | _NumberStep
_LayoutItem: TypeAlias = bytes | int | _LengthStep
"""Constant bytes, the index of a drawn part, or a length."""


@dataclass(frozen=True, slots=True)
class PreparedRequests:
    """Requests with known sizes that are not written yet.

    sizes: bytes of each request, shape (count,). slots: returns the slot of each request's first key; None without
    keys.
    """

    sizes: Ints
    segments: list[Segment]
    slots: Callable[[], Ints | None]

    def write(self, buffer: Buffer, ends: Ints) -> None:
        """Write each request so that it ends at its position in `ends`."""
        write_segments(self.segments, buffer, ends)


class RequestPacker:
    """Packs the requests of one template in one thread."""

    def __init__(self, template: Template, context: ArgumentContext) -> None:
        self._parts: list[tuple[DrawnPart, int]] = []
        """(drawn part, the least number of bytes that precede the part in its request)."""
        self._layout: list[_LayoutItem] = []
        self._room = 0
        name, sources = template.name.encode(), argument_sources(template, context)
        self._append(b"*%d\r\n$%d\r\n%b\r\n" % (1 + len(sources), len(name), name))
        arguments = [self._append_argument(list(_parts_of(source))) for source in sources]
        self._steps = list(self._compile())
        index = _key_index(template)
        self._key = None if index is None else (sources[index - 1], arguments[index - 1])

    def _append_argument(self, parts: list[ArgumentPart]) -> list[bytes | int]:
        """Add an argument to the layout; returns its constants and the indices of its drawn parts."""
        items: list[bytes | int] = []
        drawn: list[DrawnPart] = []
        for part in parts:
            if isinstance(part, bytes):
                items.append(part)
            else:
                items.append(len(self._parts) + len(drawn))
                drawn.append(part)
        constant_bytes = sum(len(part) for part in parts if isinstance(part, bytes))
        lengths = [part.length for part in drawn]
        if None in lengths:
            self._append(b"$")
            first = len(self._parts)
            self._append(_LengthStep(constant_bytes, first, first + len(drawn), self._room))
            self._append(b"\r\n")
        else:
            self._append(b"$%d\r\n" % (constant_bytes + sum(length or 0 for length in lengths)))
        self._parts += [(part, self._room) for part in drawn]
        for item in items:
            self._append(item)
        self._append(b"\r\n")
        return items

    def _append(self, item: _LayoutItem) -> None:
        """Add one item; neighbouring constants become one."""
        if isinstance(item, bytes):
            self._room += len(item)
            if self._layout and isinstance(before := self._layout[-1], bytes):
                self._layout[-1] = before + item
                return
        self._layout.append(item)

    def _compile(self) -> Iterator[_Step]:
        layout, at = self._layout, 0
        while at < len(layout):
            match layout[at : at + 4]:
                case [_LengthStep() as length, bytes() as before, int(), bytes() as after] if self._is_number(length):
                    yield _NumberStep(length, before, after[:_LONGEST_AFTER])
                    if rest := after[_LONGEST_AFTER:]:
                        yield _ConstantStep(ConstantSegment(rest))
                    at += 3
                case [bytes() as text, *_]:
                    yield _ConstantStep(ConstantSegment(text))
                case [int() as part, *_]:
                    yield _DrawnStep(part)
                case [_LengthStep() as length, *_]:
                    yield length
            at += 1

    def _is_number(self, length: _LengthStep) -> bool:
        """Whether a number is the only drawn part of the argument with this length."""
        return length.end - length.first == 1 and isinstance(self._parts[length.first][0], _NumberPart)

    def prepare(self, numbers: CommandNumbers) -> PreparedRequests:
        """The next requests. Draws values from the generator of `numbers`."""
        drawn = [part.draw(numbers, room) for part, room in self._parts]
        segments = [segment for step in self._steps for segment in step.segments(drawn, numbers.count)]
        return PreparedRequests(total_lengths(segments, numbers.count), segments, partial(self._slots, numbers, drawn))

    def _slots(self, numbers: CommandNumbers, drawn: list[Segment]) -> Ints | None:
        if self._key is None:
            return None
        source, items = self._key
        if isinstance(source, KeySource | NewKeySource):
            return source.context.keyspace.slots(source.numbers(numbers))
        if isinstance(source, LiteralSource):
            return np.full(numbers.count, slot_of(source.text))
        segments = [drawn[item] if isinstance(item, int) else ConstantSegment(item) for item in items]
        return np.fromiter(map(slot_of, _texts_of(segments, numbers.count)), dtype=np.int64, count=numbers.count)


def _key_index(template: Template) -> int | None:
    """Index of the first key: the first argument with a key placeholder, else the first key in the command table."""
    index = template.first_with(*KEY_PLACEHOLDERS)
    if index is None and (row := COMMANDS.get(template.name)):
        index = row.template.first_with(*KEY_PLACEHOLDERS)
    return None if index is None or index >= len(template.arguments) else index


def _texts_of(segments: list[Segment], count: int) -> Iterator[bytes]:
    """The bytes that these segments give each of `count` requests."""
    lengths = total_lengths(segments, count)
    ends = np.cumsum(lengths + OVERWRITTEN)
    buffer = np.empty(int(ends.max(initial=0)), dtype=np.uint8)
    write_segments(segments, buffer, ends)
    whole = buffer.tobytes()
    return map(whole.__getitem__, map(slice, (ends - lengths).tolist(), ends.tolist()))
