"""Values: slices of a buffer of random bytes or text, which all threads of the process share.

A JSON value is an object with such a slice as its only field: `{"v":"..."}`.

A verified value has this form, within the drawn size; in a JSON value, the field has it:

    <CRC-32 of everything after the first blank, as 8 hexadecimal digits> <key> <random bytes>

It is intact if the checksum is right and the key is the key that was read.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from common.metrics.histogram import Ints
from common.plan.schema import ValueKind, Values
from common.plan.value_sizes import CHECKSUM_BYTES, JSON_PREFIX, JSON_SUFFIX, TEXT_BITS, largest_value

_PLACES = 1 << 16
"""Number of positions at which a slice may begin."""
_PERIOD = 256
"""Compressible bytes are in runs, one run in each period of this many bytes."""
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


class ValueGenerator:
    """Draws values whose sizes follow the plan: uniform over a range, or from a list by weight."""

    def __init__(self, values: Values, seed: int) -> None:
        self.verify = values.verify
        self.is_json, self._is_text = values.kind is ValueKind.JSON, values.kind is not ValueKind.BINARY
        self._largest = largest_value(values)
        self._seed, self._compressible = seed, values.compressible
        self._minimum, self._maximum = int(values.minimum_bytes), int(values.maximum_bytes)
        listed = [(int(entry.size), float(entry.weight)) for entry in values.sizes if entry.weight > 0]
        self._sizes = np.array([size for size, _ in listed], dtype=np.int64)
        self._edges = np.cumsum([weight for _, weight in listed])
        if listed:
            self._edges /= self._edges[-1]

    @cached_property
    def source(self) -> bytes:
        """The buffer that values are slices of."""
        return self.text if self._is_text else random_bytes(self._seed, self._largest, self._compressible)

    @cached_property
    def text(self) -> bytes:
        """The buffer that values of text are slices of."""
        return random_text(self._seed, self._largest, self._compressible)

    @property
    def fixed_bytes(self) -> int | None:
        """The size of every value, if there is only one size."""
        smallest = int(self._sizes.min()) if self._sizes.size else self._minimum
        return smallest if smallest == self._largest else None

    def draw_slices(self, generator: np.random.Generator, count: int) -> tuple[Ints, Ints]:
        """(where each of `count` values begins in `source` or `text`, its size in bytes)."""
        sizes = self._draw_sizes(generator, count)
        return generator.integers(0, _PLACES, count), sizes

    def _draw_sizes(self, generator: np.random.Generator, count: int) -> Ints:
        if self._sizes.size:
            return self._sizes[np.searchsorted(self._edges, generator.random(count), side="right")]
        if self._minimum == self._maximum:
            return np.full(count, self._maximum)
        return generator.integers(self._minimum, self._maximum + 1, count)

    def draw(self, generator: np.random.Generator, count: int) -> tuple[Iterator[bytes], Ints]:
        """`count` slices of `source`, made lazily, and their sizes."""
        starts, sizes = self.draw_slices(generator, count)
        return slices_of(self.source, starts, sizes), sizes


def random_bytes(seed: int, longest: int, compressible: float = 0.0) -> bytes:
    """A buffer with 65,536 positions for slices of up to `longest` bytes, the same for the same seed. It is small, to
    stay in the CPU cache. compressible: the share that a compressor removes."""
    source = np.random.default_rng(np.random.SeedSequence(seed)).bytes(longest + _PLACES - 1)
    if not compressible:
        return source
    return np.where(_runs(len(source), compressible), np.uint8(0), np.frombuffer(source, dtype=np.uint8)).tobytes()


def random_text(seed: int, longest: int, compressible: float = 0.0) -> bytes:
    """Like `random_bytes`, but of letters, digits, "-" and "_". Each byte has six random bits, so a compressor removes
    at least a quarter."""
    text = random_bytes(seed, longest).translate(_LETTERS * (256 // len(_LETTERS)))
    share = max(0.0, 1 - (1 - compressible) / TEXT_BITS * 8)
    if not share:
        return text
    return np.where(_runs(len(text), share), np.uint8(_LETTERS[0]), np.frombuffer(text, dtype=np.uint8)).tobytes()


def _runs(size: int, share: float) -> NDArray[np.bool_]:
    """A mask of bytes: True in runs that make up this share of all bytes."""
    runs: NDArray[np.bool_] = np.arange(size) % _PERIOD >= round(_PERIOD * (1 - share))
    return runs


def slices_of(source: bytes, starts: Ints, sizes: Ints) -> Iterator[bytes]:
    """Slices of `source`, made lazily."""
    return map(source.__getitem__, map(slice, starts.tolist(), (starts + sizes).tolist()))


class MessageBody(bytes):
    """The bytes of a pub/sub message. The header replaces the first bytes when the message is published."""


def with_checksum(value: bytes, key: bytes) -> bytes:
    """The value in the form that `is_intact` verifies. The size stays, but a value that is too short grows."""
    content = b"%s %s" % (key, value[len(key) + CHECKSUM_BYTES :])
    return b"%08x %s" % (crc32(content), content)


def is_intact(value: bytes, key: str | bytes) -> bool:
    """Whether a value was written to this key, and is whole and unchanged."""
    if value.startswith(JSON_PREFIX) and value.endswith(JSON_SUFFIX):
        value = value[len(JSON_PREFIX) : -len(JSON_SUFFIX)]
    checksum, content = value[:9], value[9:]
    starts_with_key = content.startswith(b"%s " % (key if isinstance(key, bytes) else key.encode()))
    return starts_with_key and checksum == b"%08x " % crc32(content)
