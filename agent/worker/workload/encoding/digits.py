"""Whole numbers taken apart into four decimal digits at a time, so that what each four mean comes out of a table.

A four is told by an index: itself where the number begins with it, 10,000 more where others go before it, and 0 where
the number has already begun behind it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from common.metrics.histogram import Ints

FOUR = 10_000

_OWN = np.array([len(str(number)) for number in range(FOUR)])
TEXTS = np.tile(np.frombuffer(b"".join(b"%04d" % number for number in range(FOUR)), dtype=np.uint32), 2)
"""The four digits as four bytes, by index."""
LAST_DIGITS = np.concatenate([_OWN, np.full(FOUR, 4)])
"""How many of the last four are the number's, by index: one at least."""
OTHER_DIGITS = np.concatenate([[0], _OWN[1:], np.full(FOUR, 4)])
"""The same of all fours before the last."""


def fours_of(numbers: Ints, count: int) -> list[Ints]:
    """The last four digits of each number >= 0, those before them, and so on: `count` times."""
    fours = []
    rest = numbers
    for _ in range(count - 1):
        higher = rest // FOUR
        fours.append(rest - np.maximum(higher - 1, 0) * FOUR)
        rest = higher
    return [*fours, rest]


def digits_of(fours: list[Ints]) -> Ints:
    """How many digits each number has."""
    digits: Ints = LAST_DIGITS.take(fours[0])
    for four in fours[1:]:
        digits += OTHER_DIGITS.take(four)
    return digits


def texts_of(fours: list[Ints]) -> NDArray[np.uint8]:
    """The digits of each number as bytes, with zeros before it: shape (count, 4 * fours)."""
    texts = np.empty((fours[0].size, len(fours)), dtype=np.uint32)
    for place, four in enumerate(reversed(fours)):
        TEXTS.take(four, out=texts[:, place], mode="clip")
    return texts.view(np.uint8)
