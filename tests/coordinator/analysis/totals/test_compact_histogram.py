from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.metrics.histogram import MAX_VALUE, Histogram
from coordinator.analysis.totals.compact_histogram import CompactHistogram

values = st.lists(st.integers(0, 2 * MAX_VALUE), min_size=1)


def of(numbers: list[int]) -> Histogram:
    return Histogram.from_values(np.array(numbers, np.int64))


@given(values, st.integers(0, 5))
def test_a_compact_histogram_expands_to_the_original(numbers: list[int], doublings: int) -> None:
    histogram = of(numbers)
    for _ in range(8 * doublings):  # up to counts beyond 32 bits
        histogram = Histogram.merge([histogram, histogram])
    assert CompactHistogram.from_histogram(histogram).expand() == histogram


def test_the_latencies_of_a_busy_second_take_a_fifth_of_the_memory() -> None:
    latencies_ns = np.random.default_rng(1).lognormal(np.log(300_000), 0.6, 100_000).astype(np.int64)
    histogram = Histogram.from_values(latencies_ns)
    compact = CompactHistogram.from_histogram(histogram)
    assert 5 * (len(compact.indices) + len(compact.counts)) < len(histogram.indices) + len(histogram.counts)
