"""Numbers that a worker thread counts up by itself: of the keys that it made, and of `__seq__`."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from common.metrics.histogram import Ints

SEQUENCE = "__seq__"


class Counters:
    """Counters from 0, by whatever they are of."""

    def __init__(self) -> None:
        self._next: dict[Hashable, int] = {}

    def take(self, counter: Hashable, uses: Ints) -> Ints:
        """Where the counter stood before each of these uses, each of which takes so many; shape (n,)."""
        begin = self._next.get(counter, 0)
        ends = begin + np.cumsum(uses)
        self._next[counter] = int(ends[-1]) if ends.size else begin
        return ends - uses
