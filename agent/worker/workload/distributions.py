"""How key numbers are drawn from their range, thousands at a time.

Each distribution is a function of uniform draws of the thread's generator, and of nothing else but, for those that go
through the range in order, of how far the thread has come. So a stream of operations is the same for the same seed.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from agent.worker.division import divide
from common.metrics.histogram import Ints
from common.plan.schema import Distribution, Keys

Floats = npt.NDArray[np.float64]


class Numbers(Protocol):
    """Key numbers of one command and one thread."""

    def draw(self, generator: np.random.Generator, count: int, newest: Ints | None = None) -> Ints:
        """`count` numbers in the order in which they are used. newest: by number, the largest key number there is by
        then; only `latest` looks at it, and None means the end of the range."""


class Uniform:
    """Every number of minimum..maximum alike."""

    def __init__(self, minimum: int, maximum: int) -> None:
        self._minimum, self._end = minimum, maximum + 1

    def draw(self, generator: np.random.Generator, count: int, newest: Ints | None = None) -> Ints:  # noqa: ARG002
        """As `Numbers.draw`."""
        return generator.integers(self._minimum, self._end, count)


class Sequential:
    """minimum..maximum in order, from the beginning again after the end."""

    def __init__(self, minimum: int, maximum: int) -> None:
        self._minimum, self._size = minimum, maximum - minimum + 1
        self._next = 0

    def draw(self, generator: np.random.Generator, count: int, newest: Ints | None = None) -> Ints:  # noqa: ARG002
        """As `Numbers.draw`."""
        numbers = self._minimum + (np.arange(count, dtype=np.int64) + self._next) % self._size
        self._next = (self._next + count) % self._size
        return numbers


class Gaussian:
    """The normal distribution, rounded to whole numbers; what lies outside minimum..maximum is drawn anew."""

    def __init__(self, minimum: int, maximum: int, median: float, deviation: float) -> None:
        """The median is counted from the minimum, and lies within the range, so that drawing anew comes to an end."""
        # All the reckoning is counted so, because doubles do not tell large numbers apart.
        self._minimum, self._last = minimum, maximum - minimum
        self._low, self._high = -0.5, self._last + 0.5
        self._median, self._deviation = median, deviation

    def draw(self, generator: np.random.Generator, count: int, newest: Ints | None = None) -> Ints:  # noqa: ARG002
        """As `Numbers.draw`."""
        found = np.empty(count)
        done = 0
        while done < count:
            drawn = self._some(generator, count - done)
            found[done : done + drawn.size] = drawn
            done += drawn.size
        return self._minimum + np.clip(np.rint(found).astype(np.int64), 0, self._last)

    def _some(self, generator: np.random.Generator, count: int) -> Floats:
        """At most `count` numbers of the range, out of as many tries."""
        if self._deviation < self._high - self._low:
            tries = generator.normal(self._median, self._deviation, count)
            return tries[(self._low <= tries) & (tries < self._high)]
        # So wide that nearly all tries would miss: even ones, kept as often as the curve is high. Three of five are.
        tries = generator.uniform(self._low, self._high, count)
        return tries[generator.random(count) < np.exp(-0.5 * ((tries - self._median) / self._deviation) ** 2)]


class Ranks:
    """Ranks 1..n, rank k with a probability in proportion to 1 / k ** exponent, for an n as large as one likes.

    Rejection-inversion: W. Hörmann, G. Derflinger, "Rejection-inversion to generate variates from monotone discrete
    distributions", ACM Transactions on Modeling and Computer Simulation 6 (1996), 169-184. A point is drawn under the
    integral of x ** -exponent by inversion, rounded to the nearest rank, and rejected where the integral over that
    rank's unit is more than the rank's share; that is so for few. There is no table, and nothing depends on n but the
    ends of the integral, so n may differ from draw to draw.
    """

    def __init__(self, exponent: float) -> None:
        self._exponent = exponent
        # Points so little to the left of their rank are never rejected.
        self._sure = 2.0 - float(self._inverse(self._integral(np.array(2.5)) - self._height(np.array(2.0))))
        self._first = float(self._integral(np.array(1.5))) - 1.0

    def draw(self, generator: np.random.Generator, sizes: Ints) -> Ints:
        """One rank of 1..size for each size, shape (n,)."""
        ranks = np.empty(sizes.size, dtype=np.int64)
        lasts = self._integral(sizes.astype(np.float64) + 0.5)
        open_ = np.arange(sizes.size)
        while open_.size:
            last = lasts[open_]
            points = last + generator.random(open_.size) * (self._first - last)
            x = self._inverse(points)
            # Rounding errors may leave the range.
            nearest = np.minimum(np.maximum(np.floor(x + 0.5), 1.0), sizes[open_])
            taken = (nearest - x <= self._sure) | (points >= self._integral(nearest + 0.5) - self._height(nearest))
            ranks[open_[taken]] = nearest[taken].astype(np.int64)
            open_ = open_[~taken]
        return ranks

    def _height(self, x: Floats) -> Floats:
        return np.asarray(np.exp(-self._exponent * np.log(x)))

    def _integral(self, x: Floats) -> Floats:
        """The integral of x ** -exponent from 1, exact also near an exponent of 1, where it turns into a logarithm."""
        log = np.log(x)
        return np.asarray(_ratio(np.expm1, (1.0 - self._exponent) * log) * log)

    def _inverse(self, area: Floats) -> Floats:
        grown = np.maximum(area * (1.0 - self._exponent), -1.0)
        with np.errstate(divide="ignore"):
            return np.asarray(np.exp(_ratio(np.log1p, grown) * area))


def _ratio(function: np.ufunc, x: Floats) -> Floats:
    """function(x) / x for a function that is nearly x near 0, and 1 at 0."""
    tiny = np.abs(x) < 1e-300
    safe = np.where(tiny, 1.0, x)
    return np.where(tiny, 1.0, function(safe) / safe)


class Zipfian:
    """The n-th number of the range with a probability in proportion to 1 / n ** exponent."""

    def __init__(self, minimum: int, maximum: int, exponent: float) -> None:
        self._minimum, self._size = minimum, maximum - minimum + 1
        self._ranks = Ranks(exponent)

    def draw(self, generator: np.random.Generator, count: int, newest: Ints | None = None) -> Ints:  # noqa: ARG002
        """As `Numbers.draw`."""
        return self._minimum - 1 + self._ranks.draw(generator, np.full(count, self._size, dtype=np.int64))


class Latest:
    """Zipfian, counted back from the newest key, which is the most likely one."""

    def __init__(self, minimum: int, maximum: int, exponent: float) -> None:
        self._minimum, self._maximum = minimum, maximum
        self._ranks = Ranks(exponent)

    def draw(self, generator: np.random.Generator, count: int, newest: Ints | None = None) -> Ints:
        """As `Numbers.draw`."""
        ends = np.full(count, self._maximum, dtype=np.int64) if newest is None else newest
        return ends + 1 - self._ranks.draw(generator, ends - self._minimum + 1)


class Hotspot:
    """`hot_operations` of the draws among the first `hot_keys` of the range, at least one number; the rest among the
    others. Either alike."""

    def __init__(self, minimum: int, maximum: int, hot_keys: float, hot_operations: float) -> None:
        size = maximum - minimum + 1
        self._minimum, self._end = minimum, maximum + 1
        self._cold = minimum + min(size, max(1, round(size * hot_keys)))
        self._hot_operations = hot_operations

    def draw(self, generator: np.random.Generator, count: int, newest: Ints | None = None) -> Ints:  # noqa: ARG002
        """As `Numbers.draw`."""
        hot = generator.integers(self._minimum, self._cold, count)
        if self._cold == self._end:
            return hot
        cold = generator.integers(self._cold, self._end, count)
        return np.where(generator.random(count) < self._hot_operations, hot, cold)


def numbers_of(keys: Keys, thread: int, threads: int) -> Numbers:
    """The numbers that thread number `thread` of `threads` in the fleet draws."""
    low, high = int(keys.minimum), int(keys.maximum)
    match keys.distribution:
        case Distribution.SEQUENTIAL:
            return Sequential(low, high)
        case Distribution.PARALLEL:
            return Sequential(*part_of(low, high, thread, threads))
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


def part_of(minimum: int, maximum: int, thread: int, threads: int) -> tuple[int, int]:
    """The first and the last number of a thread's part of minimum..maximum. Parts are adjacent, and as long as the
    thread's share of `size` requests. With more threads than numbers, several threads have the same part."""
    size = maximum - minimum + 1
    if size < threads:
        number = minimum + thread % size
        return number, number
    before, count = divide(size, thread, threads)
    return minimum + before, minimum + before + count - 1
