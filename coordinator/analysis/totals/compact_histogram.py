"""A histogram in compressed form, without loss: for past seconds of a run, which are seldom read before its end.

Filled buckets lie close together, and most counts are small. So the differences between indices and the high bytes of
both are mostly zeros. The bytes are grouped by significance (first all lowest bytes, and so on); zlib's fastest level
then makes them 6 to 8 times smaller, in 0.3 ms for 6,000 buckets.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import msgspec
import numpy as np

from common.metrics.histogram import Histogram

_LEVEL = 1
_INDEX_BYTES = 2


@dataclass(frozen=True, slots=True)
class CompactHistogram:
    """A compressed histogram. scalars: the histogram without its buckets. count_bytes: width of each count in bytes."""

    scalars: Histogram
    count_bytes: int
    indices: bytes
    counts: bytes

    @classmethod
    def from_histogram(cls, histogram: Histogram) -> CompactHistogram:
        """Compress a histogram that is not empty."""
        indices = np.frombuffer(histogram.indices, "<u2")
        count_bytes = len(histogram.counts) // len(indices)
        return cls(
            msgspec.structs.replace(histogram, indices=b"", counts=b""),
            count_bytes,
            _compress(np.diff(indices, prepend=np.uint16(0)).tobytes(), _INDEX_BYTES),
            _compress(histogram.counts, count_bytes),
        )

    def expand(self) -> Histogram:
        """Return the original histogram."""
        steps = np.frombuffer(_expand(self.indices, _INDEX_BYTES), "<u2")
        return msgspec.structs.replace(
            self.scalars,
            indices=np.cumsum(steps, dtype="<u2").tobytes(),
            counts=_expand(self.counts, self.count_bytes),
        )


def _compress(data: bytes, width: int) -> bytes:
    return zlib.compress(np.frombuffer(data, np.uint8).reshape(-1, width).T.tobytes(), _LEVEL)


def _expand(data: bytes, width: int) -> bytes:
    return np.frombuffer(zlib.decompress(data), np.uint8).reshape(width, -1).T.tobytes()
