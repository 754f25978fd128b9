"""Which values are drawn: slices of one buffer of random bytes, which every thread of the process shares."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from common.histogram import Ints

_PLACES = 1 << 16


def random_bytes(seed: int, longest: int) -> bytes:
    """A buffer from which values of `longest` bytes can be cut at 65,536 places; the same for a seed. No larger than
    that, so that it stays in the processor's cache."""
    return np.random.default_rng(np.random.SeedSequence(seed)).bytes(longest + _PLACES - 1)


class Values:
    """Values whose size in bytes is uniform over minimum..maximum, both included."""

    def __init__(self, source: bytes, minimum: int, maximum: int) -> None:
        self._source = source
        self._minimum = minimum
        self._maximum = maximum

    def draw(self, generator: np.random.Generator, count: int) -> tuple[Iterator[bytes], Ints]:
        """`count` values and their lengths, as `agent.worker.operations.Drawn`."""
        sizes = (
            np.full(count, self._maximum)
            if self._minimum == self._maximum
            else generator.integers(self._minimum, self._maximum + 1, count)
        )
        starts = generator.integers(0, len(self._source) - self._maximum + 1, count)
        cuts = map(slice, starts.tolist(), (starts + sizes).tolist())
        return map(self._source.__getitem__, cuts), sizes


class Blank(bytes):
    """A pub/sub message before it is stamped: of its size, and random."""


class Blanks:
    """Blanks of the sizes of some values."""

    def __init__(self, values: Values) -> None:
        self._values = values

    def draw(self, generator: np.random.Generator, count: int) -> tuple[Iterator[bytes], Ints]:
        """`count` blanks and their lengths, as `agent.worker.operations.Drawn`."""
        values, sizes = self._values.draw(generator, count)
        return map(Blank, values), sizes
