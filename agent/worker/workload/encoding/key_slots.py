"""The slots of a cluster that many keys are in, by tables.

A slot is a CRC, and that is linear: of a key of constant bytes and a number it is the exclusive or of what the
constant bytes with the number's leading digits come to, and of what each four digits behind them come to at their
place. Redis has the CRC-16 of XMODEM: polynomial 0x1021, beginning with 0.
"""

from __future__ import annotations

from binascii import crc_hqx
from functools import cache

import numpy as np
from numpy.typing import NDArray

from agent.worker.workload.encoding.digits import FOUR, LAST_DIGITS, fours_of
from common.metrics.histogram import Ints
from common.redis_client.slots import SLOTS as SLOTS

Crcs = NDArray[np.uint16]

_BYTES = np.array([crc_hqx(bytes([number]), 0) for number in range(256)], dtype=np.uint16)


def hashed(key: bytes) -> slice:
    """Which part of a key its slot is reckoned from: what is in the first braces if that is anything, else all."""
    begin = key.find(b"{")
    end = key.find(b"}", begin + 1)
    return slice(begin + 1, end) if 0 <= begin < end - 1 else slice(0, len(key))


class NumberSlots:
    """The slots of texts that are constant bytes with a number >= 0 behind them."""

    def __init__(self, prefix: bytes) -> None:
        before = np.array([crc_hqx(prefix + bytes(digits), 0) for digits in range(5)], dtype=np.uint16)
        own, fours = _numbers()
        self._tables = [np.concatenate([own ^ before.take(LAST_DIGITS[:FOUR]), fours])]

    def of(self, numbers: Ints) -> Ints:
        """Their slots, shape (count,)."""
        fours = fours_of(numbers, max(1, -(-len(str(int(numbers.max(initial=0)))) // 4)))
        crcs: Crcs = self._table(0).take(fours[0])
        for place, four in enumerate(fours[1:], 1):
            crcs ^= self._table(place).take(four)
        return (crcs % SLOTS).astype(np.int64)

    def _table(self, place: int) -> Crcs:
        """By index what four digits come to that have four more behind them so many times."""
        while place >= len(self._tables):
            table = self._tables[-1]
            for _ in range(4):
                table = _followed(table)
            table[0] = 0
            self._tables.append(table)
        return self._tables[place]


@cache
def _numbers() -> tuple[Crcs, Crcs]:
    """What the numbers of at most four digits come to, and what they do with zeros before them."""
    own, fours = ([crc_hqx(form % number, 0) for number in range(FOUR)] for form in (b"%d", b"%04d"))
    return np.array(own, dtype=np.uint16), np.array(fours, dtype=np.uint16)


def _followed(crcs: Crcs) -> Crcs:
    """What they come to with a byte of zeros behind them."""
    followed: Crcs = (crcs << np.uint16(8)) ^ _BYTES[crcs >> np.uint16(8)]
    return followed
