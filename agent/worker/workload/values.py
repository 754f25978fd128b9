"""Values are drawn as slices of a buffer of bytes, or of one of text, which all threads of the process share.

A JSON value is a document with such a slice as its field, `{"v":"..."}`, which adds 8 bytes. A value that is verified
on read has this form, within the size that was drawn, and with JSON within the field:

    <crc32 of all that follows the blank, 8 hexadecimal digits> <key> <body>

so 10 bytes beside the key are the least it takes. It is right if the checksum is, and the key is that which was read.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from common.metrics.histogram import Ints
from common.plan import schema

_PLACES = 1 << 16
_PERIOD = 256
"""Compressible bytes stand in runs, one in so many bytes."""
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
JSON_BEGIN, JSON_END = b'{"v":"', b'"}'
TEXT_BITS = 6
"""Random bits in each byte of text."""
JSON_BYTES = len(JSON_BEGIN) + len(JSON_END)


def random_bytes(seed: int, longest: int, compressible: float = 0.0) -> bytes:
    """A buffer from which values of `longest` bytes can be cut at 65,536 places; the same for a seed. No larger than
    that, so that it stays in the processor's cache. compressible: the share of it that a compressor takes away."""
    source = np.random.default_rng(np.random.SeedSequence(seed)).bytes(longest + _PLACES - 1)
    if not compressible:
        return source
    return np.where(_runs(len(source), compressible), np.uint8(0), np.frombuffer(source, dtype=np.uint8)).tobytes()


def random_text(seed: int, longest: int, compressible: float = 0.0) -> bytes:
    """Like `random_bytes`, but letters, digits, "-" and "_": with six bits a byte, a compressor removes at least a
    quarter."""
    text = random_bytes(seed, longest).translate(_LETTERS * (256 // len(_LETTERS)))
    share = max(0.0, 1 - (1 - compressible) / TEXT_BITS * 8)
    if not share:
        return text
    return np.where(_runs(len(text), share), np.uint8(_LETTERS[0]), np.frombuffer(text, dtype=np.uint8)).tobytes()


def _runs(size: int, share: float) -> NDArray[np.bool_]:
    """A mask of bytes: True in runs that make up this share of all bytes."""
    runs: NDArray[np.bool_] = np.arange(size) % _PERIOD >= round(_PERIOD * (1 - share))
    return runs


def longest_value(values: schema.Values) -> int:
    """The size in bytes of the largest value that can be drawn."""
    return max((int(entry.size) for entry in values.sizes if entry.weight > 0), default=int(values.maximum_bytes))


class Values:
    """Values whose sizes are drawn as the plan says: from a range, or from a list by weight."""

    def __init__(self, values: schema.Values, seed: int) -> None:
        self.verify = values.verify
        self.is_json, self._is_text = values.kind is schema.ValueKind.JSON, values.kind is not schema.ValueKind.BINARY
        self._longest = longest_value(values)
        self._seed, self._compressible = seed, values.compressible
        self._minimum, self._maximum = int(values.minimum_bytes), int(values.maximum_bytes)
        listed = [(int(entry.size), float(entry.weight)) for entry in values.sizes if entry.weight > 0]
        self._sizes = np.array([size for size, _ in listed], dtype=np.int64)
        self._edges = np.cumsum([weight for _, weight in listed])
        if listed:
            self._edges /= self._edges[-1]

    @cached_property
    def source(self) -> bytes:
        """What values are cut from."""
        return self.text if self._is_text else random_bytes(self._seed, self._longest, self._compressible)

    @cached_property
    def text(self) -> bytes:
        """What values of text are cut from."""
        return random_text(self._seed, self._longest, self._compressible)

    @property
    def mean_bytes(self) -> float:
        """The mean of all sizes."""
        if self._sizes.size:
            return float(self._sizes @ np.diff(self._edges, prepend=0.0))
        return (self._minimum + self._maximum) / 2

    @property
    def fixed_bytes(self) -> int | None:
        """The size of every value, where there is but one."""
        smallest = int(self._sizes.min()) if self._sizes.size else self._minimum
        return smallest if smallest == self._longest else None

    def sizes(self, generator: np.random.Generator, count: int) -> Ints:
        """`count` sizes in bytes."""
        if self._sizes.size:
            return self._sizes[np.searchsorted(self._edges, generator.random(count), side="right")]
        if self._minimum == self._maximum:
            return np.full(count, self._maximum)
        return generator.integers(self._minimum, self._maximum + 1, count)

    def cuts(self, generator: np.random.Generator, count: int) -> tuple[Ints, Ints]:
        """Where `count` values begin in `source` or `text`, and their sizes."""
        sizes = self.sizes(generator, count)
        return generator.integers(0, _PLACES, count), sizes

    def draw(self, generator: np.random.Generator, count: int) -> tuple[Iterator[bytes], Ints]:
        """`count` slices of `source`, made as they are asked for, and their sizes."""
        starts, sizes = self.cuts(generator, count)
        return slices(self.source, starts, sizes), sizes


def slices(source: bytes, starts: Ints, sizes: Ints) -> Iterator[bytes]:
    """Slices of `source` at these starts, of these sizes, made lazily."""
    return map(source.__getitem__, map(slice, starts.tolist(), (starts + sizes).tolist()))


class Blank(bytes):
    """A pub/sub message before it is stamped: of its size, and of the bytes of a value."""


def sealed(value: bytes, key: bytes) -> bytes:
    """A value of the same size that can be verified: its end is the body."""
    content = b"%s %s" % (key, value[len(key) + 10 :])
    return b"%08x %s" % (crc32(content), content)


def smallest_sealed(key_bytes: int) -> int:
    """The least size of a value that can be verified, for a key of this length."""
    return key_bytes + 10


def is_sealed(value: bytes, key: str | bytes) -> bool:
    """Whether a value is one that was written to this key, whole."""
    if value.startswith(JSON_BEGIN) and value.endswith(JSON_END):
        value = value[len(JSON_BEGIN) : -len(JSON_END)]
    content = value[9:]
    return content.startswith(b"%s " % (key if isinstance(key, bytes) else key.encode())) and value[
        :9
    ] == b"%08x " % crc32(content)
