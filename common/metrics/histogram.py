"""A fixed log-linear histogram: records in bulk, merges exactly, and gives quantiles.

Layout: equal to HdrHistogram with 3 significant digits and unit 1 ns. For grouping power g = 10 and a value v,
`s = max(v.bit_length() - (g + 1), 0)` and `index = (s << g) + (v >> s)`. So values below 2048 are exact, and the width
of any other bucket is at most 1/1024 of its values. The layout never depends on the data, so merging adds the counts of
each bucket, and a quantile of merged histograms equals the quantile of one histogram of all values.

A `Histogram` is immutable and sparse: it has only filled buckets. Its fields are already in the form that is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

GROUPING_POWER = 10
MAX_VALUE = (1 << 42) - 1
"""Highest value that can be recorded, in ns: about 73 minutes. Larger values are clamped to it, see `clamped`."""

_EXACT_BELOW = 1 << (GROUPING_POWER + 1)
BUCKETS = ((42 - GROUPING_POWER - 1) << GROUPING_POWER) + _EXACT_BELOW
"""Number of buckets of the layout: the index of `MAX_VALUE` plus one."""

_AT_ONCE = 256
"""Histograms per numpy call: enough to make the call's cost small, few enough for the CPU caches."""

_FRACTION_BITS = 52
_EXPONENT_OF_1 = 1023
_BITS_OF_BUCKET_0 = (_EXPONENT_OF_1 + GROUPING_POWER - 1) << GROUPING_POWER

Ints = NDArray[np.int64]


def bucket_indices(values: Ints) -> Ints:
    """Bucket index of each value; values are whole and lie in 0..MAX_VALUE."""
    # The upper bits of a float64 (the exponent and GROUPING_POWER bits of the fraction) are the bucket index plus a
    # constant. Whole numbers below 2**53 are exact as float64.
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
    where a count needs it. minimum and maximum are 0 when empty. `check_histograms` checks histograms from a peer.
    """

    indices: bytes = b""
    counts: bytes = b""
    count: int = 0
    minimum: int = 0
    maximum: int = 0
    value_sum: int = msgspec.field(default=0, name="total")
    clamped: int = 0

    @classmethod
    def from_values(cls, values: Ints) -> Histogram:
        """The histogram of whole values >= 0; shape (n,). Raises ValueError for a negative value."""
        running = RunningHistogram()
        running.add(values)
        return running.histogram()

    @classmethod
    def merge(cls, histograms: Iterable[Histogram]) -> Histogram:
        """The histogram of the values of all these histograms."""
        parts = [part for part in histograms if part.count]
        if len(parts) < 2:
            return parts[0] if parts else EMPTY
        minimum, maximum = min([part.minimum for part in parts]), max([part.maximum for part in parts])
        first = _bucket_index(minimum)
        dense = np.zeros(_bucket_index(maximum) - first + 1, dtype=np.int64)
        for begin in range(0, len(parts), _AT_ONCE):
            indices, counts = _joined(parts[begin : begin + _AT_ONCE])
            np.add.at(dense, indices.astype(np.int64) - first, counts.astype(np.int64))  # slow for mixed types
        filled = np.flatnonzero(dense)
        return cls.packed(
            filled + first,
            dense[filled],
            minimum,
            maximum,
            sum([part.value_sum for part in parts]),
            sum([part.clamped for part in parts]),
        )

    @classmethod
    def packed(cls, indices: Ints, counts: Ints, minimum: int, maximum: int, value_sum: int, clamped: int) -> Histogram:
        """The histogram with these fields. indices: filled buckets, ascending. counts: one for each bucket."""
        width = "<u4" if int(counts.max()) < 1 << 32 else "<u8"
        return cls(
            indices.astype("<u2").tobytes(),
            counts.astype(width).tobytes(),
            int(counts.sum()),
            minimum,
            maximum,
            value_sum,
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
        return self.value_sum / self.count if self.count else 0.0

    def quantile(self, q: float) -> int:
        """The value at rank ceil(q * count), rounded up to the highest value of its bucket, at most `maximum`.

        q: 0 to 1. Returns 0 for an empty histogram. HdrHistogram's `valueAtPercentile` defines it in the same way.
        """
        return self.quantiles((q,))[0]

    def quantiles(self, qs: Iterable[float]) -> list[int]:
        """`quantile` of each q, in one pass over the buckets."""
        wanted = list(qs)
        if not self.count:
            return [0] * len(wanted)
        indices, counts = self.buckets()
        cumulative = np.cumsum(counts)
        # In whole billionths: as floats, 0.07 * 100 is slightly more than 7, and would give rank 8.
        ranks = [max(1, -(-round(q * 1e9) * self.count // 10**9)) for q in wanted]
        positions = np.searchsorted(cumulative, ranks, side="left")
        highest = bucket_bounds(indices[positions])[1]
        return [min(max(int(value), self.minimum), self.maximum) for value in highest]


EMPTY = Histogram()


def check_histograms(histograms: Iterable[Histogram]) -> None:
    """Raises ValueError for a histogram whose fields contradict each other.

    Pass many histograms at once: numpy checks them together, in little more time than it needs for a few.
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
    """Whether `_check` accepts each histogram. filled: each has a filled bucket and 32-bit counts, whose sum fits 64
    bits."""
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
    ascend[ends[:-1] - 1] = True  # not compared: the last bucket of a histogram and the first of the next one
    in_order = (minima >= 0) & (minima <= maxima) & (maxima <= MAX_VALUE)
    return bool(
        counts.min() >= 1
        and ascend.all()
        and (np.add.reduceat(counts, begins, dtype=np.int64) == totals).all()
        and in_order.all()
        and (bucket_indices(minima) == indices[begins]).all()
        and (bucket_indices(maxima) == indices[ends - 1]).all()
        and all(
            0 <= each.clamped <= each.count and each.minimum * each.count <= each.value_sum <= each.maximum * each.count
            for each in filled
        )
    )


def _check(one: Histogram) -> None:
    if len(one.counts) not in (2 * len(one.indices), 4 * len(one.indices)) or len(one.indices) % 2:
        raise ValueError(f"histogram: {len(one.indices)} bytes of indices do not fit {len(one.counts)} bytes of counts")
    if not one.indices:
        if any((one.count, one.minimum, one.maximum, one.value_sum, one.clamped)):
            raise ValueError("histogram: expected 0 in all fields, because no bucket is filled")
        return
    indices, counts = one.buckets()
    # As int64, a count of 2**63 or more is negative, so wrong counts could add up to the right sum.
    if int(counts.min()) < 1 or (indices[1:] <= indices[:-1]).any() or sum(counts.tolist()) != one.count:
        raise ValueError("histogram: expected ascending buckets, and counts >= 1 that add up to `count`")
    ends = indices[[0, -1]]
    ordered = 0 <= one.minimum <= one.maximum <= MAX_VALUE
    if not ordered or (bucket_indices(np.array([one.minimum, one.maximum])) != ends).any():
        raise ValueError("histogram: expected `minimum` in the first bucket and `maximum` in the last one")
    possible = one.minimum * one.count <= one.value_sum <= one.maximum * one.count
    if not possible or not 0 <= one.clamped <= one.count:
        raise ValueError("histogram: expected `total` and `clamped` to be possible for its count, minimum and maximum")


def _joined(histograms: Sequence[Histogram]) -> tuple[NDArray[np.unsignedinteger], NDArray[np.integer]]:
    """(indices, counts) of all buckets, histogram after histogram."""
    indices = np.frombuffer(b"".join([each.indices for each in histograms]), dtype="<u2")
    if all(len(each.counts) == 2 * len(each.indices) for each in histograms):
        return indices, np.frombuffer(b"".join([each.counts for each in histograms]), dtype="<u4")
    return indices, np.concatenate([each.buckets()[1] for each in histograms])


class RunningHistogram:
    """A histogram to which arrays of values are added. It has a count for every bucket from the lowest to the highest
    filled one, so adding needs no sort."""

    __slots__ = ("_clamped", "_counts", "_first", "_maximum", "_minimum", "_total")

    def __init__(self) -> None:
        self._counts: Ints | None = None  # of the buckets from `_first` on
        self._first = 0
        self._minimum, self._maximum = MAX_VALUE, 0
        self._total = self._clamped = 0

    def add(self, values: Ints, times: Ints | None = None) -> None:
        """Add whole values >= 0; shape (n,). times: how often each value occurred (in total less than 2**53); None:
        each once. Raises ValueError for a negative value."""
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
        """The histogram of all values so far."""
        if self._counts is None:
            return EMPTY
        filled = np.flatnonzero(self._counts)
        indices = filled + self._first
        return Histogram.packed(indices, self._counts[filled], self._minimum, self._maximum, self._total, self._clamped)
