"""Which keys are drawn: a prefix followed by a whole number from a range."""

from __future__ import annotations

import numpy as np


class Keyspace:
    """Keys `<prefix><number>`, numbers uniform over minimum..maximum, both included."""

    def __init__(self, prefix: str, minimum: int, maximum: int) -> None:
        self._form = prefix.encode().replace(b"%", b"%%") + b"%d"
        self._minimum = minimum
        self._end = maximum + 1

    def draw(self, generator: np.random.Generator, count: int) -> list[bytes]:
        """`count` keys."""
        form = self._form
        numbers: list[int] = generator.integers(self._minimum, self._end, count).tolist()
        return [form % number for number in numbers]
