"""Distributions of key numbers over their range. Numbers are drawn in thousands.

A distribution depends only on the random numbers of the worker's generator, and if it goes through the range in order,
on its position. So the same seed draws the same operations.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from common.metrics.histogram import Ints
from common.plan.schema import Distribution, Keys

Floats = npt.NDArray[np.float64]


class KeyDistribution(Protocol):
    """Draws key numbers of one command in one worker."""

    def draw(self, generator: np.random.Generator, count: int, newest: Ints | None = None) -> Ints:
        """`count` numbers in the order of their operations. newest: for each operation, the largest key number that
        exists at that point; None: the end of the range. Only `Latest` uses it."""


class Uniform:
    """Every number of minimum..maximum with the same probability."""

    def __init__(self, minimum: int, maximum: int) -> None:
        self._minimum, self._end = minimum, maximum + 1

    def draw(self, generator: np.random.Generator, count: int, newest: Ints | None = None) -> Ints:  # noqa: ARG002
        """As `KeyDistribution.draw`."""
        return generator.integers(self._minimum, self._end, count)


class Sequential:
    """minimum..maximum in order, again and again."""

    def __init__(self, minimum: int, maximum: int) -> None:
        self._minimum, self._size = minimum, maximum - minimum + 1
        self._next = 0

    def draw(self, generator: np.random.Generator, count: int, newest: Ints | None = None) -> Ints:  # noqa: ARG002
        """As `KeyDistribution.draw`."""
        numbers = self._minimum + (np.arange(count, dtype=np.int64) + self._next) % self._size
        self._next = (self._next + count) % self._size
        return numbers


class Gaussian:
    """The normal distribution, rounded to whole numbers; numbers outside minimum..maximum are drawn again."""

    def __init__(self, minimum: int, maximum: int, median: float, deviation: float) -> None:
        """median: counted from the minimum. It must lie within the range, else `draw` would never end."""
        # Everything is counted from the minimum, because doubles do not distinguish neighbouring large numbers.
        self._minimum, self._last = minimum, maximum - minimum
        self._low, self._high = -0.5, self._last + 0.5
        self._median, self._deviation = median, deviation

    def draw(self, generator: np.random.Generator, count: int, newest: Ints | None = None) -> Ints:  # noqa: ARG002
        """As `KeyDistribution.draw`."""
        found = np.empty(count)
        done = 0
        while done < count:
            drawn = self._some(generator, count - done)
            found[done : done + drawn.size] = drawn
            done += drawn.size
        return self._minimum + np.clip(np.rint(found).astype(np.int64), 0, self._last)

    def _some(self, generator: np.random.Generator, count: int) -> Floats:
        """Up to `count` numbers: draws `count` numbers, and keeps those within the range."""
        if self._deviation < self._high - self._low:
            tries = generator.normal(self._median, self._deviation, count)
            return tries[(self._low <= tries) & (tries < self._high)]
        # The curve is so wide that nearly all tries would miss the range. Draw uniformly instead, and keep each number
        # with the probability given by the curve's height there. At least three of five numbers are kept.
        tries = generator.uniform(self._low, self._high, count)
        return tries[generator.random(count) < np.exp(-0.5 * ((tries - self._median) / self._deviation) ** 2)]


class ZipfRanks:
    """Ranks 1..n; the probability of rank k is proportional to 1 / k ** exponent. n may be of any size.

    Rejection-inversion: W. Hörmann, G. Derflinger, "Rejection-inversion to generate variates from monotone discrete
    distributions", ACM Transactions on Modeling and Computer Simulation 6 (1996), 169-184. A point under the curve
    x ** -exponent is drawn by inversion of its integral, rounded to the nearest rank, and rejected where the integral
    over the rank's unit exceeds the rank's weight, which is rare. It needs no table, and only the end of the integral
    depends on n, so n may be different for each draw.
    """

    def __init__(self, exponent: float) -> None:
        self._exponent = exponent
        # Points at most this far to the left of their rank are never rejected.
        self._sure = 2.0 - float(self._inverse(self._integral(np.array(2.5)) - self._height(np.array(2.0))))
        self._first = float(self._integral(np.array(1.5))) - 1.0

    def draw(self, generator: np.random.Generator, sizes: Ints) -> Ints:
        """One rank of 1..size for each size, shape (n,)."""
        ranks = np.empty(sizes.size, dtype=np.int64)
        lasts = self._integral(sizes.astype(np.float64) + 0.5)
        undecided = np.arange(sizes.size)
        while undecided.size:
            last = lasts[undecided]
            points = last + generator.random(undecided.size) * (self._first - last)
            x = self._inverse(points)
            # A rounding error may lead out of the range.
            nearest = np.minimum(np.maximum(np.floor(x + 0.5), 1.0), sizes[undecided])
            taken = (nearest - x <= self._sure) | (points >= self._integral(nearest + 0.5) - self._height(nearest))
            ranks[undecided[taken]] = nearest[taken].astype(np.int64)
            undecided = undecided[~taken]
        return ranks

    def _height(self, x: Floats) -> Floats:
        return np.asarray(np.exp(-self._exponent * np.log(x)))

    def _integral(self, x: Floats) -> Floats:
        """The integral of x ** -exponent from 1. Exact near an exponent of 1 too, where it becomes a logarithm."""
        log = np.log(x)
        return np.asarray(_ratio(np.expm1, (1.0 - self._exponent) * log) * log)

    def _inverse(self, area: Floats) -> Floats:
        grown = np.maximum(area * (1.0 - self._exponent), -1.0)
        with np.errstate(divide="ignore"):
            return np.asarray(np.exp(_ratio(np.log1p, grown) * area))


def _ratio(function: np.ufunc, x: Floats) -> Floats:
    """function(x) / x, and 1 at 0, for a function that approaches x near 0."""
    tiny = np.abs(x) < 1e-300
    safe = np.where(tiny, 1.0, x)
    return np.where(tiny, 1.0, function(safe) / safe)


class Zipfian:
    """The probability of the n-th number of the range is proportional to 1 / n ** exponent."""

    def __init__(self, minimum: int, maximum: int, exponent: float) -> None:
        self._minimum, self._size = minimum, maximum - minimum + 1
        self._ranks = ZipfRanks(exponent)

    def draw(self, generator: np.random.Generator, count: int, newest: Ints | None = None) -> Ints:  # noqa: ARG002
        """As `KeyDistribution.draw`."""
        return self._minimum - 1 + self._ranks.draw(generator, np.full(count, self._size, dtype=np.int64))


class Latest:
    """Zipfian, counted back from the newest key, which is the most likely."""

    def __init__(self, minimum: int, maximum: int, exponent: float) -> None:
        self._minimum, self._maximum = minimum, maximum
        self._ranks = ZipfRanks(exponent)

    def draw(self, generator: np.random.Generator, count: int, newest: Ints | None = None) -> Ints:
        """As `KeyDistribution.draw`."""
        ends = np.full(count, self._maximum, dtype=np.int64) if newest is None else newest
        return ends + 1 - self._ranks.draw(generator, ends - self._minimum + 1)


class Hotspot:
    """The first numbers of the range are hot: a share `hot_keys` of all numbers, at least one. A share `hot_operations`
    of the draws is uniform over the hot numbers, the other draws are uniform over the rest. Shares are from 0 to 1."""

    def __init__(self, minimum: int, maximum: int, hot_keys: float, hot_operations: float) -> None:
        size = maximum - minimum + 1
        self._minimum, self._end = minimum, maximum + 1
        self._cold = minimum + min(size, max(1, round(size * hot_keys)))
        self._hot_operations = hot_operations

    def draw(self, generator: np.random.Generator, count: int, newest: Ints | None = None) -> Ints:  # noqa: ARG002
        """As `KeyDistribution.draw`."""
        hot = generator.integers(self._minimum, self._cold, count)
        if self._cold == self._end:
            return hot
        cold = generator.integers(self._cold, self._end, count)
        return np.where(generator.random(count) < self._hot_operations, hot, cold)


def key_distribution(keys: Keys, thread: int, threads: int) -> KeyDistribution:
    """The distribution of one worker's keys. thread: the worker's number among the `threads` of the fleet."""
    low, high = int(keys.minimum), int(keys.maximum)
    match keys.distribution:
        case Distribution.SEQUENTIAL:
            return Sequential(low, high)
        case Distribution.PARALLEL:
            # With more workers than keys, several workers use the same key.
            part = keys.part(thread, threads) if len(keys.numbers) >= threads else (low + thread % len(keys.numbers),)
            return Sequential(part[0], part[-1])
        case Distribution.GAUSSIAN:
            median = (high - low) / 2 if keys.median is None else float(int(keys.median) - low)
            return Gaussian(low, high, median, (high - low) / 6 if keys.deviation is None else keys.deviation)
        case Distribution.ZIPFIAN:
            return Zipfian(low, high, keys.exponent)
        case Distribution.LATEST:
            return Latest(low, high, keys.exponent)
        case Distribution.HOTSPOT:
            return Hotspot(low, high, keys.hot_keys, keys.hot_operations)
        case _:
            return Uniform(low, high)
