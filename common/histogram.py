"""A fixed log-linear histogram: record in bulk, merge exactly, read quantiles.

Layout: equal to HdrHistogram with 3 significant digits and unit 1 ns. For grouping power g = 10 and a value v,
`s = max(v.bit_length() - (g + 1), 0)` and `index = (s << g) + (v >> s)`. So values below 2048 are exact and every
other bucket is at most 1/1024 of its value wide. The layout never changes with the data: counts of two histograms
add bucket by bucket, and a merged quantile is the quantile that one histogram of all values would have given.

A `Histogram` is immutable and sparse (only filled buckets are kept), in the very form in which it crosses the wire.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import msgspec
import numpy as np
from numpy.typing import NDArray

GROUPING_POWER = 10
MAX_VALUE = (1 << 42) - 1
"""Highest value kept apart, in ns: about 73 minutes. Values above it are clamped to it and counted in `clamped`."""

_EXACT_BELOW = 1 << (GROUPING_POWER + 1)
BUCKETS = ((42 - GROUPING_POWER - 1) << GROUPING_POWER) + _EXACT_BELOW
"""How many buckets the layout has: index of `MAX_VALUE` plus one."""

_FRACTION_BITS = 52
_EXPONENT_OF_1 = 1023
_BITS_OF_BUCKET_0 = (_EXPONENT_OF_1 + GROUPING_POWER - 1) << GROUPING_POWER

Ints = NDArray[np.int64]


def bucket_indices(values: Ints) -> Ints:
    """Bucket index of each value; values are whole and lie in 0..MAX_VALUE."""
    # The layout is that of a float's bits, which hold a whole number below 2**53 exactly: the exponent, and below it as
    # many bits of the fraction as the grouping power says.
    bits = values.astype(np.float64).view(np.int64) >> (_FRACTION_BITS - GROUPING_POWER)
    return np.where(values < _EXACT_BELOW, values, bits - _BITS_OF_BUCKET_0)


def _bucket_index(value: int) -> int:
    shift = max(value.bit_length() - (GROUPING_POWER + 1), 0)
    return (shift << GROUPING_POWER) + (value >> shift)


def bucket_bounds(indices: Ints) -> tuple[Ints, Ints]:
    """Lowest and highest value that fall into each bucket."""
    shifts = np.maximum((indices >> GROUPING_POWER) - 1, 0)
    lowest = (indices - (shifts << GROUPING_POWER)) << shifts
    return lowest, lowest + (np.int64(1) << shifts) - 1


class Histogram(msgspec.Struct, frozen=True):
    """Counts of values by bucket, with exact count, minimum, maximum and sum (of the values after clamping).

    indices: filled buckets, ascending, little-endian uint16. counts: one for each, little-endian uint32, or uint64
    where a count needs it. minimum and maximum are 0 when empty.
    """

    indices: bytes = b""
    counts: bytes = b""
    count: int = 0
    minimum: int = 0
    maximum: int = 0
    total: int = 0
    clamped: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for what `of` and `merge` cannot have made: a peer's bytes may be anything."""
        if len(self.counts) not in (2 * len(self.indices), 4 * len(self.indices)) or len(self.indices) % 2:
            raise ValueError(
                f"histogram: {len(self.indices)} bytes of indices do not fit {len(self.counts)} bytes of counts"
            )
        if not self.indices:
            if any((self.count, self.minimum, self.maximum, self.total, self.clamped)):
                raise ValueError("histogram: expected nothing but zeros where no bucket is filled")
            return
        indices, counts = self.buckets()
        # A count of 2**63 and more would turn negative, and could make any sum come out right.
        if int(counts.min()) < 1 or (indices[1:] <= indices[:-1]).any() or sum(counts.tolist()) != self.count:
            raise ValueError("histogram: expected ascending buckets whose counts add up to its count")
        ends = indices[[0, -1]]
        ordered = 0 <= self.minimum <= self.maximum <= MAX_VALUE
        if not ordered or (bucket_indices(np.array([self.minimum, self.maximum])) != ends).any():
            raise ValueError("histogram: expected its minimum and maximum in its first and last bucket")
        possible = self.minimum * self.count <= self.total <= self.maximum * self.count
        if not possible or not 0 <= self.clamped <= self.count:
            raise ValueError("histogram: expected a sum and a clamped count that its values can have")

    @classmethod
    def of(cls, values: Ints) -> Histogram:
        """The histogram of whole values >= 0; shape (n,). Raises ValueError for a negative value."""
        running = RunningHistogram()
        running.add(values)
        return running.histogram()

    @classmethod
    def merge(cls, histograms: Iterable[Histogram]) -> Self:
        """The histogram of all values of all of them."""
        parts = [part for part in histograms if part.count]
        if not parts:
            return cls()
        if len(parts) == 1 and type(parts[0]) is cls:
            return parts[0]
        dense = np.zeros(BUCKETS, dtype=np.int64)
        for part in parts:
            indices, counts = part.buckets()
            dense[indices] += counts  # indices are unique within one histogram
        indices = np.flatnonzero(dense)
        return cls.packed(
            indices,
            dense[indices],
            min(part.minimum for part in parts),
            max(part.maximum for part in parts),
            sum(part.total for part in parts),
            sum(part.clamped for part in parts),
        )

    @classmethod
    def packed(cls, indices: Ints, counts: Ints, minimum: int, maximum: int, total: int, clamped: int) -> Self:
        """indices: filled buckets, ascending; counts: one for each. The rest as in the fields."""
        width = "<u4" if int(counts.max()) < 1 << 32 else "<u8"
        return cls(
            indices.astype("<u2").tobytes(),
            counts.astype(width).tobytes(),
            int(counts.sum()),
            minimum,
            maximum,
            total,
            clamped,
        )

    def buckets(self) -> tuple[Ints, Ints]:
        """(indices, counts) of the filled buckets, ascending; both int64 of shape (k,)."""
        indices = np.frombuffer(self.indices, dtype="<u2").astype(np.int64)
        width = "<u4" if len(self.counts) == 2 * len(self.indices) else "<u8"
        return indices, np.frombuffer(self.counts, dtype=width).astype(np.int64)

    @property
    def mean(self) -> float:
        """Exact mean of the values (after clamping); 0.0 when empty."""
        return self.total / self.count if self.count else 0.0

    def quantile(self, q: float) -> int:
        """The value at rank ceil(q * count): highest value of its bucket, within the exact minimum and maximum.

        q in 0..1; 0 for an empty histogram. As HdrHistogram's `valueAtPercentile`.
        """
        return self.quantiles((q,))[0]

    def quantiles(self, qs: Iterable[float]) -> list[int]:
        """`quantile` of each q, in one pass over the buckets."""
        wanted = list(qs)
        if not self.count:
            return [0] * len(wanted)
        indices, counts = self.buckets()
        cumulative = np.cumsum(counts)
        # Whole billionths, because binary fractions move ranks: 0.999 * 1000 must stay rank 999 at every count.
        ranks = [max(1, -(-round(q * 1e9) * self.count // 10**9)) for q in wanted]
        positions = np.searchsorted(cumulative, ranks, side="left")
        highest = bucket_bounds(indices[positions])[1]
        return [min(max(int(value), self.minimum), self.maximum) for value in highest]


EMPTY = Histogram()


class RunningHistogram:
    """A histogram of values that come in bulks. Dense between its outermost buckets, so that a bulk costs no sort."""

    __slots__ = ("_clamped", "_counts", "_first", "_maximum", "_minimum", "_total")

    def __init__(self) -> None:
        self._counts: Ints | None = None  # of the buckets from `_first` on
        self._first = 0
        self._minimum, self._maximum = MAX_VALUE, 0
        self._total = self._clamped = 0

    def add(self, values: Ints, times: Ints | None = None) -> None:
        """Whole values >= 0; shape (n,). times: how often each occurred, less than 2**53 in all; None for once each.
        Raises ValueError for a negative value."""
        if not values.size:
            return
        lowest, highest = int(values.min()), int(values.max())
        if lowest < 0:
            raise ValueError(f"histogram: expected values >= 0, got {lowest}")
        if highest > MAX_VALUE:
            over = values > MAX_VALUE
            self._clamped += int(np.count_nonzero(over) if times is None else times[over].sum())
            values = np.minimum(values, MAX_VALUE)
        self._minimum = min(self._minimum, lowest)
        self._maximum = min(max(self._maximum, highest), MAX_VALUE)
        self._total += int(values.sum() if times is None else np.dot(values, times))
        indices = bucket_indices(values)
        first = _bucket_index(min(lowest, MAX_VALUE))
        self._add_counts(first, np.bincount(indices - first, times).astype(np.int64, copy=False))

    def _add_counts(self, first: int, counts: Ints) -> None:
        if self._counts is None:
            self._first, self._counts = first, counts
            return
        begin = min(first, self._first)
        end = max(first + counts.size, self._first + self._counts.size)
        if end - begin > self._counts.size:
            grown = np.zeros(end - begin, dtype=np.int64)
            grown[self._first - begin :][: self._counts.size] = self._counts
            self._first, self._counts = begin, grown
        self._counts[first - begin :][: counts.size] += counts

    def histogram(self) -> Histogram:
        """Of all values so far."""
        if self._counts is None:
            return EMPTY
        filled = np.flatnonzero(self._counts)
        indices = filled + self._first
        return Histogram.packed(indices, self._counts[filled], self._minimum, self._maximum, self._total, self._clamped)
