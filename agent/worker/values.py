"""Which values are drawn: slices of one buffer of bytes, which every thread of the process shares.

A value that is to be verified on read has this form, all of it within the size that was drawn:

    <crc32 of all that follows the blank, 8 hexadecimal digits> <key> <body>

so 10 bytes beside the key are the least it takes. It is right if the checksum is, and the key is that which was read.
"""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

import numpy as np

from common.histogram import Ints
from common.plan import schema

_PLACES = 1 << 16
_PERIOD = 256
"""Compressible bytes stand in runs, one in so many bytes."""


def random_bytes(seed: int, longest: int, compressible: float = 0.0) -> bytes:
    """A buffer from which values of `longest` bytes can be cut at 65,536 places; the same for a seed. No larger than
    that, so that it stays in the processor's cache. compressible: the share of it that a compressor takes away."""
    source = np.random.default_rng(np.random.SeedSequence(seed)).bytes(longest + _PLACES - 1)
    if not compressible:
        return source
    pattern = np.arange(len(source)) % _PERIOD >= round(_PERIOD * (1 - compressible))
    return np.where(pattern, np.uint8(0), np.frombuffer(source, dtype=np.uint8)).tobytes()


def longest_value(values: schema.Values) -> int:
    """The size in bytes of the largest value that can be drawn."""
    return max((int(entry.size) for entry in values.sizes if entry.weight > 0), default=int(values.maximum_bytes))


class Values:
    """Values whose sizes are drawn as the plan says: from a range, or from a list by weight."""

    def __init__(self, values: schema.Values, seed: int) -> None:
        self.verify = values.verify
        self._longest = longest_value(values)
        self.source = random_bytes(seed, self._longest, values.compressible)
        self._minimum, self._maximum = int(values.minimum_bytes), int(values.maximum_bytes)
        listed = [(int(entry.size), float(entry.weight)) for entry in values.sizes if entry.weight > 0]
        self._sizes = np.array([size for size, _ in listed], dtype=np.int64)
        self._edges = np.cumsum([weight for _, weight in listed])
        if listed:
            self._edges /= self._edges[-1]

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
        """Where `count` values begin in `source`, and their sizes."""
        sizes = self.sizes(generator, count)
        return generator.integers(0, len(self.source) - self._longest + 1, count), sizes

    def draw(self, generator: np.random.Generator, count: int) -> tuple[Iterator[bytes], Ints]:
        """`count` values, made as they are asked for, and their sizes."""
        starts, sizes = self.cuts(generator, count)
        return self.cut(starts, sizes), sizes

    def cut(self, starts: Ints, sizes: Ints) -> Iterator[bytes]:
        """The values of these sizes that begin there in `source`."""
        return map(self.source.__getitem__, map(slice, starts.tolist(), (starts + sizes).tolist()))


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
    content = value[9:]
    return content.startswith(b"%s " % (key if isinstance(key, bytes) else key.encode())) and value[
        :9
    ] == b"%08x " % crc32(content)
