"""Which keys are drawn: a prefix followed by a whole number from a range."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from agent.worker.resp import decimal_digits
from common.histogram import Ints


class Keyspace:
    """Keys `<prefix><number>`, numbers uniform over minimum..maximum, both included."""

    def __init__(self, prefix: str, minimum: int, maximum: int) -> None:
        encoded = prefix.encode()
        self._form = encoded.replace(b"%", b"%%") + b"%d"
        self._prefix_bytes = len(encoded)
        self._minimum = minimum
        self._end = maximum + 1

    def draw(self, generator: np.random.Generator, count: int) -> tuple[Iterator[bytes], Ints]:
        """`count` keys and their lengths, as `agent.worker.operations.Drawn`."""
        numbers = generator.integers(self._minimum, self._end, count)
        return map(self._form.__mod__, numbers.tolist()), self._prefix_bytes + decimal_digits(numbers)
