"""A fixed log-linear histogram: record in bulk, merge exactly, read quantiles.

Layout: equal to HdrHistogram with 3 significant digits and unit 1 ns. For grouping power g = 10 and a value v,
`s = max(v.bit_length() - (g + 1), 0)` and `index = (s << g) + (v >> s)`. So values below 2048 are exact and every
other bucket is at most 1/1024 of its value wide. The layout never changes with the data: counts of two histograms
add bucket by bucket, and a merged quantile is the quantile that one histogram of all values would have given.

A `Histogram` is immutable and sparse (only filled buckets are kept), in the very form in which it crosses the wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

GROUPING_POWER = 10
MAX_VALUE = (1 << 42) - 1
"""Highest value kept apart, in ns: about 73 minutes. Values above it are clamped to it and counted in `clamped`."""

_EXACT_BELOW = 1 << (GROUPING_POWER + 1)
BUCKETS = ((42 - GROUPING_POWER - 1) << GROUPING_POWER) + _EXACT_BELOW
"""How many buckets the layout has: index of `MAX_VALUE` plus one."""

_AT_ONCE = 256
"""Histograms that numpy looks at together: enough to make its calls cheap, few enough for the processor's caches."""

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


class Histogram(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Counts of values by bucket, with exact count, minimum, maximum and sum (of the values after clamping).

    indices: filled buckets, ascending, little-endian uint16. counts: one for each, little-endian uint32, or uint64
    where a count needs it. minimum and maximum are 0 when empty. What a peer sent may be anything: `check_histograms`.
    """

    indices: bytes = b""
    counts: bytes = b""
    count: int = 0
    minimum: int = 0
    maximum: int = 0
    total: int = 0
    clamped: int = 0

    @classmethod
    def of(cls, values: Ints) -> Histogram:
        """The histogram of whole values >= 0; shape (n,). Raises ValueError for a negative value."""
        running = RunningHistogram()
        running.add(values)
        return running.histogram()

    @classmethod
    def merge(cls, histograms: Iterable[Histogram]) -> Histogram:
        """The histogram of all values of all of them."""
        parts = [part for part in histograms if part.count]
        if len(parts) < 2:
            return parts[0] if parts else EMPTY
        minimum, maximum = min([part.minimum for part in parts]), max([part.maximum for part in parts])
        first = _bucket_index(minimum)
        dense = np.zeros(_bucket_index(maximum) - first + 1, dtype=np.int64)
        for begin in range(0, len(parts), _AT_ONCE):
            indices, counts = _joined(parts[begin : begin + _AT_ONCE])
            np.add.at(dense, indices.astype(np.int64) - first, counts.astype(np.int64))  # fast for one type only
        filled = np.flatnonzero(dense)
        return cls.packed(
            filled + first,
            dense[filled],
            minimum,
            maximum,
            sum([part.total for part in parts]),
            sum([part.clamped for part in parts]),
        )

    @classmethod
    def packed(cls, indices: Ints, counts: Ints, minimum: int, maximum: int, total: int, clamped: int) -> Histogram:
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


def check_histograms(histograms: Iterable[Histogram]) -> None:
    """Raises ValueError for one that `of` and `merge` cannot have made.

    Many at once: numpy looks at all of them in the time that it takes for a few.
    """
    filled = []
    for histogram in histograms:
        if histogram is EMPTY:
            continue
        narrow = len(histogram.counts) == 2 * len(histogram.indices) and not len(histogram.indices) % 2
        if narrow and histogram.indices:
            filled.append(histogram)
        else:
            _check(histogram)
    for begin in range(0, len(filled), _AT_ONCE):
        some = filled[begin : begin + _AT_ONCE]
        if not _are_sound(some):
            for histogram in some:
                _check(histogram)


def _are_sound(filled: Sequence[Histogram]) -> bool:
    """Whether each passes `_check`. All have some buckets and counts of 32 bits, which add up within 64 bits."""
    try:
        totals = np.array([each.count for each in filled], dtype=np.int64)
        minima = np.array([each.minimum for each in filled], dtype=np.int64)
        maxima = np.array([each.maximum for each in filled], dtype=np.int64)
    except OverflowError:
        return False
    indices, counts = _joined(filled)
    sizes = np.array([len(each.indices) // 2 for each in filled])
    ends = np.cumsum(sizes)
    begins = ends - sizes
    ascend = indices[1:] > indices[:-1]
    ascend[ends[:-1] - 1] = True  # from the last bucket of one to the first of the next
    in_order = (minima >= 0) & (minima <= maxima) & (maxima <= MAX_VALUE)
    return bool(
        counts.min() >= 1
        and ascend.all()
        and (np.add.reduceat(counts, begins, dtype=np.int64) == totals).all()
        and in_order.all()
        and (bucket_indices(minima) == indices[begins]).all()
        and (bucket_indices(maxima) == indices[ends - 1]).all()
        and all(
            0 <= each.clamped <= each.count and each.minimum * each.count <= each.total <= each.maximum * each.count
            for each in filled
        )
    )


def _check(one: Histogram) -> None:
    if len(one.counts) not in (2 * len(one.indices), 4 * len(one.indices)) or len(one.indices) % 2:
        raise ValueError(f"histogram: {len(one.indices)} bytes of indices do not fit {len(one.counts)} bytes of counts")
    if not one.indices:
        if any((one.count, one.minimum, one.maximum, one.total, one.clamped)):
            raise ValueError("histogram: expected nothing but zeros where no bucket is filled")
        return
    indices, counts = one.buckets()
    # A count of 2**63 and more would turn negative, and could make any sum come out right.
    if int(counts.min()) < 1 or (indices[1:] <= indices[:-1]).any() or sum(counts.tolist()) != one.count:
        raise ValueError("histogram: expected ascending buckets whose counts add up to its count")
    ends = indices[[0, -1]]
    ordered = 0 <= one.minimum <= one.maximum <= MAX_VALUE
    if not ordered or (bucket_indices(np.array([one.minimum, one.maximum])) != ends).any():
        raise ValueError("histogram: expected its minimum and maximum in its first and last bucket")
    possible = one.minimum * one.count <= one.total <= one.maximum * one.count
    if not possible or not 0 <= one.clamped <= one.count:
        raise ValueError("histogram: expected a sum and a clamped count that its values can have")


def _joined(histograms: Sequence[Histogram]) -> tuple[NDArray[np.unsignedinteger], NDArray[np.integer]]:
    """(indices, counts) of the buckets of all of them, one after the other."""
    indices = np.frombuffer(b"".join([each.indices for each in histograms]), dtype="<u2")
    if all(len(each.counts) == 2 * len(each.indices) for each in histograms):
        return indices, np.frombuffer(b"".join([each.counts for each in histograms]), dtype="<u4")
    return indices, np.concatenate([each.buckets()[1] for each in histograms])


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
