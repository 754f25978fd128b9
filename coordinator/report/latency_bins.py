"""The bins of a histogram of latencies, as reports show them. Pure."""

from __future__ import annotations

import numpy as np

from common.metrics.histogram import Histogram, bucket_bounds
from coordinator.report.summary_types import Bin

_NS_PER_US = 1e3
_BIN_EDGES_NS = tuple(factor * 10**power for power in range(2, 12) for factor in (10, 15, 20, 30, 50, 70))


def bins(histogram: Histogram) -> tuple[Bin, ...]:
    """Return six bins a decade, from the first to the last that is not empty.

    A bucket counts in the bin of its highest value, so a bin's edge is off by up to 0.1%, the width of a bucket.
    """
    indices, counts = histogram.buckets()
    if not indices.size:
        return ()
    highest = bucket_bounds(indices)[1]
    positions = np.searchsorted(np.array(_BIN_EDGES_NS), highest, side="left")
    per_bin = np.bincount(positions, weights=counts, minlength=len(_BIN_EDGES_NS))
    filled = np.flatnonzero(per_bin)
    return tuple(
        Bin(up_to_us=_BIN_EDGES_NS[position] / _NS_PER_US, count=int(per_bin[position]))
        for position in range(int(filled[0]), int(filled[-1]) + 1)
    )
