"""Makes the arguments of commands: one source for each argument, for many operations at once.

A source returns a lazy iterator of its arguments, and an array of their lengths. A *deferred* argument, such as the
cursor of a SCAN, is made just before its operation is issued, so its length is not known earlier.

Each kind of argument has its own class. `encoding.request_packer` packs arguments of the same sources as RESP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import ClassVar, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from agent.worker.metrics.wire_sizes import array_header_bytes, bulk_bytes, decimal_digits
from agent.worker.workload.keys import Keyspace
from agent.worker.workload.values import MessageBody, ValueGenerator, slices_of, with_checksum
from common.commands import Piece, Placeholder, RandomInteger, Repeated, ScriptDigest, Template
from common.metrics.histogram import Ints
from common.plan.value_sizes import CHECKSUM_BYTES, JSON_PREFIX, JSON_SUFFIX

T = TypeVar("T")
Arguments: TypeAlias = tuple[str | bytes, ...]
"""The arguments of one operation: the command's name as text, then bytes."""
DeferredArgument: TypeAlias = Callable[[], bytes]
"""Makes one argument when its operation is about to be issued."""


@dataclass(frozen=True, slots=True)
class ArgumentContext:
    """The inputs from which a worker makes the arguments of one command.

    ttl_s: the lowest and the highest time to live. thread: the worker's number among the `threads` of the fleet.
    scripts: digests by name. choose_key: maps the drawn first key of each operation to the key to use, because a scan
    keeps its key until its end.
    """

    keyspace: Keyspace
    values: ValueGenerator
    ttl_s: tuple[int, int]
    thread: int
    threads: int
    scripts: Mapping[str, bytes]
    deferred: Mapping[Placeholder, DeferredArgument] = field(default_factory=dict)
    choose_key: Callable[[bytes], bytes] | None = None

    def new_key_numbers(self, made: Ints) -> Ints:
        """Numbers of new keys, different from those of all other workers. made: how many keys this worker made before
        each one."""
        return self.keyspace.maximum + 1 + made * self.threads + self.thread


@dataclass(frozen=True, slots=True)
class CommandNumbers:
    """Drawn and counted numbers for `count` operations of one command.

    keys: shape (count, keys of the command). rand_ints: shape (count, `__rand_int__`s of the command). new_keys,
    sequence: how many new keys and `__seq__` numbers the worker used before each operation; shape (count,).
    """

    generator: np.random.Generator
    count: int
    keys: Ints
    rand_ints: Ints
    new_keys: Ints
    sequence: Ints


@dataclass(frozen=True, slots=True)
class PlaceholderCounts:
    """How often each placeholder that needs `CommandNumbers` occurs in a template."""

    keys: int
    rand_ints: int
    new_keys: int
    sequences: int

    @classmethod
    def from_template(cls, template: Template) -> PlaceholderCounts:
        """The counts of one template."""
        numbered = (Placeholder.KEY, Placeholder.RAND_INT, Placeholder.NEW_KEY, Placeholder.SEQ)
        return cls(*map(template.count, numbered))


Generated: TypeAlias = tuple[Iterator[bytes], Ints | int]
"""(one argument for each operation, their lengths in bytes). The lengths have shape (count,), or are one number if all
are equal; a deferred argument has length 0."""


class ArgumentSource(Protocol):
    """Makes one argument of a command, or a piece of one."""

    def generate(self, numbers: CommandNumbers) -> Generated:
        """The argument of each operation."""


@dataclass(frozen=True, slots=True)
class LiteralSource:
    """The same text for every operation."""

    text: bytes

    def generate(self, numbers: CommandNumbers) -> Generated:
        """As `ArgumentSource.generate`."""
        return repeat(self.text, numbers.count), len(self.text)


@dataclass(frozen=True, slots=True)
class KeySource:
    """`__key__`. index: its position among the command's keys."""

    context: ArgumentContext
    index: int

    def numbers(self, numbers: CommandNumbers) -> Ints:
        """The keys' numbers."""
        return numbers.keys[:, self.index]

    def generate(self, numbers: CommandNumbers) -> Generated:
        """As `ArgumentSource.generate`."""
        drawn = self.numbers(numbers)
        keyspace, choose = self.context.keyspace, self.context.choose_key
        texts = keyspace.texts(drawn)
        return map(choose, texts) if choose and self.index == 0 else texts, keyspace.lengths(drawn)


@dataclass(frozen=True, slots=True)
class NewKeySource:
    """`__new_key__`. index: its position among the command's new keys."""

    context: ArgumentContext
    index: int

    def numbers(self, numbers: CommandNumbers) -> Ints:
        """The keys' numbers."""
        return self.context.new_key_numbers(numbers.new_keys + self.index)

    def generate(self, numbers: CommandNumbers) -> Generated:
        """As `ArgumentSource.generate`."""
        drawn = self.numbers(numbers)
        return self.context.keyspace.texts(drawn), self.context.keyspace.lengths(drawn)


class _SharedDraw(Generic[T]):
    """The values of a named placeholder: the first occurrence draws them, and the others reuse them."""

    __slots__ = ("_drawn", "_numbers")

    def __init__(self) -> None:
        self._numbers: CommandNumbers | None = None
        self._drawn: T | None = None

    def values(self, numbers: CommandNumbers, draw: Callable[[], T]) -> T:
        if self._drawn is None or numbers is not self._numbers:
            self._numbers, self._drawn = numbers, draw()
        return self._drawn


@dataclass(frozen=True, slots=True)
class ValueSource:
    """`__data__` and `__text__`. key: the source of the value's key, for verified values. is_text: True for `__text__`,
    which is text even if the plan's values are of another kind."""

    values: ValueGenerator
    key: ArgumentSource | None
    is_text: bool
    shared: _SharedDraw[tuple[Ints, Ints]] = field(default_factory=_SharedDraw)

    @property
    def bytes_to_slice(self) -> bytes:
        """The buffer that the values are slices of."""
        return self.values.text if self.is_text else self.values.source

    @property
    def around(self) -> tuple[bytes, bytes]:
        """The constant bytes before and after each slice."""
        return (JSON_PREFIX, JSON_SUFFIX) if self.values.is_json and not self.is_text else (b"", b"")

    @property
    def around_bytes(self) -> int:
        """The total size of `around` in bytes."""
        return sum(map(len, self.around))

    def slices(self, numbers: CommandNumbers) -> tuple[Ints, Ints]:
        """(where each value's slice begins in `bytes_to_slice`, the slice's size)."""
        starts, sizes = self.shared.values(numbers, lambda: self.values.draw_slices(numbers.generator, numbers.count))
        return starts, sizes - self.around_bytes if self.around_bytes else sizes

    def generate(self, numbers: CommandNumbers) -> Generated:
        """As `ArgumentSource.generate`."""
        starts, sizes = self.slices(numbers)
        values = slices_of(self.bytes_to_slice, starts, sizes)
        if self.values.verify:
            keys: Iterator[bytes] = repeat(b"", numbers.count)
            key_bytes: Ints | int = 0
            if self.key is not None:
                keys, key_bytes = self.key.generate(numbers)
            values, sizes = map(with_checksum, values, keys), np.maximum(sizes, key_bytes + CHECKSUM_BYTES)
        if not self.around_bytes:
            return values, sizes
        before, after = self.around
        return (before + value + after for value in values), sizes + self.around_bytes


@dataclass(frozen=True, slots=True)
class _MessageSource:
    """`__message__`. Not deferred, because its length is known: publishing replaces its first bytes by a header."""

    values: ValueGenerator

    def generate(self, numbers: CommandNumbers) -> Generated:
        values, sizes = self.values.draw(numbers.generator, numbers.count)
        return map(MessageBody, values), sizes


@dataclass(frozen=True, slots=True)
class IntegerSource:
    """`__rand(low,high)__` and `__ttl__`: a whole number, uniform over low..high, both included."""

    low: int
    high: int
    shared: _SharedDraw[Ints] = field(default_factory=_SharedDraw)

    def numbers(self, numbers: CommandNumbers) -> Ints:
        """The numbers drawn."""
        return self.shared.values(numbers, lambda: numbers.generator.integers(self.low, self.high + 1, numbers.count))

    def generate(self, numbers: CommandNumbers) -> Generated:
        """As `ArgumentSource.generate`."""
        return _decimals(self.numbers(numbers))


@dataclass(frozen=True, slots=True)
class RandIntSource:
    """`__rand_int__`. index: its position among the command's `__rand_int__`s."""

    index: int
    least_digits: ClassVar[int] = 12

    def numbers(self, numbers: CommandNumbers) -> Ints:
        """The numbers drawn."""
        return numbers.rand_ints[:, self.index]

    def generate(self, numbers: CommandNumbers) -> Generated:
        """As `ArgumentSource.generate`."""
        drawn = self.numbers(numbers)
        return map(b"%012d".__mod__, drawn.tolist()), np.maximum(decimal_digits(drawn), self.least_digits)


@dataclass(frozen=True, slots=True)
class SequenceSource:
    """`__seq__`. index: its position among the command's `__seq__`s."""

    index: int

    def numbers(self, numbers: CommandNumbers) -> Ints:
        """The sequence numbers, from 1."""
        return numbers.sequence + self.index + 1

    def generate(self, numbers: CommandNumbers) -> Generated:
        """As `ArgumentSource.generate`."""
        return _decimals(self.numbers(numbers))


@dataclass(frozen=True, slots=True)
class _DeferredSource:
    make: DeferredArgument

    def generate(self, numbers: CommandNumbers) -> Generated:
        return (self.make() for _ in range(numbers.count)), 0


@dataclass(frozen=True, slots=True)
class JoinedSource:
    """An argument of several pieces."""

    pieces: tuple[ArgumentSource, ...]

    def generate(self, numbers: CommandNumbers) -> Generated:
        """As `ArgumentSource.generate`."""
        generated = [piece.generate(numbers) for piece in self.pieces]
        lengths: Ints | int = sum((length for _, length in generated), 0)
        return map(b"".join, zip(*(texts for texts, _ in generated), strict=True)), lengths


def _decimals(numbers: Ints) -> Generated:
    return map(b"%d".__mod__, numbers.tolist()), decimal_digits(np.abs(numbers)) + (numbers < 0)


def argument_sources(template: Template, context: ArgumentContext) -> list[ArgumentSource]:
    """The sources of a template's arguments, except the command's name. A value belongs to the last key before it."""
    return list(template.convert(_SourceFactory(context).source, JoinedSource)[1:])


class _SourceFactory:
    """Makes the sources of one template. Call `source` for its pieces in order, because it counts the placeholders."""

    def __init__(self, context: ArgumentContext) -> None:
        self._context = context
        self._seen = dict.fromkeys(Placeholder, 0)
        self._key: ArgumentSource | None = None
        self._made: list[ArgumentSource] = []

    def source(self, piece: Piece) -> ArgumentSource:
        source = self._made[piece.first] if isinstance(piece, Repeated) else self._new(piece)
        self._made.append(source)
        if isinstance(source, KeySource | NewKeySource):
            self._key = source
        return source

    def _new(self, piece: bytes | Placeholder | RandomInteger | ScriptDigest) -> ArgumentSource:
        context = self._context
        if isinstance(piece, bytes):
            return LiteralSource(piece)
        if isinstance(piece, RandomInteger):
            return IntegerSource(piece.low, piece.high)
        if isinstance(piece, ScriptDigest):
            return LiteralSource(context.scripts[piece.script])
        index = self._seen[piece]
        self._seen[piece] += 1
        match piece:
            case Placeholder.KEY:
                return KeySource(context, index)
            case Placeholder.NEW_KEY:
                return NewKeySource(context, index)
            case Placeholder.DATA | Placeholder.TEXT:
                return ValueSource(context.values, self._key, is_text=piece is Placeholder.TEXT)
            case Placeholder.MESSAGE:
                return _MessageSource(context.values)
            case Placeholder.RAND_INT:
                return RandIntSource(index)
            case Placeholder.TTL:
                return IntegerSource(*context.ttl_s)
            case Placeholder.THREAD:
                return LiteralSource(b"%d" % context.thread)
            case Placeholder.SEQ:
                return SequenceSource(index)
            case _:
                return _DeferredSource(context.deferred[piece])


class CommandBuilder:
    """Makes the arguments of one template in one worker, for redis-py."""

    def __init__(self, template: Template, context: ArgumentContext) -> None:
        self.counts = PlaceholderCounts.from_template(template)
        # The name is text, because redis-py finds the command's response callback by text.
        self._sources: list[str | bytes | ArgumentSource] = [template.name]
        for source in argument_sources(template, context):
            self._sources.append(source.text if isinstance(source, LiteralSource) else source)
        literals = [len(source) for source in self._sources if isinstance(source, str | bytes)]
        self._fixed_bytes = array_header_bytes(len(self._sources)) + int(bulk_bytes(np.array(literals)).sum())

    def build(self, numbers: CommandNumbers) -> tuple[Iterator[Arguments], Ints]:
        """(arguments, sizes) of `numbers.count` operations. arguments: made lazily. sizes: bytes of each request
        without its deferred arguments; shape (count,)."""
        columns: list[Iterator[str | bytes]] = []
        sizes = np.full(numbers.count, self._fixed_bytes)
        for source in self._sources:
            if isinstance(source, str | bytes):
                columns.append(repeat(source, numbers.count))
                continue
            arguments, lengths = source.generate(numbers)
            sizes += bulk_bytes(np.asarray(lengths))
            columns.append(arguments)
        return zip(*columns, strict=True), sizes
