"""Which values are drawn: slices of one buffer of random bytes, which every thread of the process shares."""

from __future__ import annotations

import numpy as np

_ROOM_BYTES = 1 << 20


def random_bytes(seed: int, longest: int) -> bytes:
    """A buffer from which values up to `longest` bytes can be cut at about a million places; the same for a seed."""
    return np.random.default_rng(np.random.SeedSequence(seed)).bytes(longest + _ROOM_BYTES)


class Values:
    """Values whose size in bytes is uniform over minimum..maximum, both included."""

    def __init__(self, source: bytes, minimum: int, maximum: int) -> None:
        self._source = source
        self._minimum = minimum
        self._maximum = maximum

    def draw(self, generator: np.random.Generator, count: int) -> list[bytes]:
        """`count` values."""
        source = self._source
        starts: list[int] = generator.integers(0, len(source) - self._maximum + 1, count).tolist()
        if self._minimum == self._maximum:
            size = self._maximum
            return [source[start : start + size] for start in starts]
        sizes: list[int] = generator.integers(self._minimum, self._maximum + 1, count).tolist()
        return [source[start : start + size] for start, size in zip(starts, sizes, strict=True)]
