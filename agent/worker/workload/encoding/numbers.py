"""Numbers with what is constant around them, written as one piece: most of what requests with small values are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.worker.workload.encoding.pieces import NARROW, Buffer, Decimals, window, windows
from common.metrics.histogram import Ints

_DIGITS = range(1, NARROW + 1)
_MASK_BYTES = np.array([[0] * (NARROW - digits) + [255] * digits for digits in range(NARROW + 1)], dtype=np.uint8)
_MASKS = _MASK_BYTES.view(np.uint64)[:, 0]
"""By number of digits, a word whose last bytes are those of the digits."""


class Frame:
    """`<length><before><number><after>`, where the length is that of the number and of `constant_bytes` more.

    There is a row for each number of digits, in which the number's bytes are zero. They are the same ones in all rows,
    and a word of eight, so that one `or` puts them in.
    """

    def __init__(self, constant_bytes: int, before: bytes, after: bytes) -> None:
        begins = [b"%d%b" % (constant_bytes + digits, before) for digits in _DIGITS]
        longest = max(map(len, begins))
        self.word = -(-longest // NARROW)
        place = self.word * NARROW
        self.rows: Buffer = np.zeros((NARROW + 1, -(-(place + NARROW + len(after)) // NARROW) * NARROW), dtype=np.uint8)
        for digits, begin in zip(_DIGITS, begins, strict=True):
            end = place + NARROW - digits
            self.rows[digits, end - len(begin) : end] = np.frombuffer(begin, dtype=np.uint8)
            self.rows[digits, place + NARROW :][: len(after)] = np.frombuffer(after, dtype=np.uint8)
        self.lengths = np.array(
            [0, *(len(begin) + digits + len(after) for begin, digits in zip(begins, _DIGITS, strict=True))]
        )
        self.begin, self.width = place - longest, longest + NARROW + len(after)


@dataclass(frozen=True, slots=True)
class Framed:
    """Numbers of at most eight digits in their frame."""

    frame: Frame
    numbers: Decimals

    @property
    def lengths(self) -> Ints:
        """As `Piece.lengths`."""
        lengths: Ints = self.frame.lengths.take(self.numbers.lengths)
        return lengths

    def write(self, buffer: Buffer, ends: Ints) -> None:
        """As `Piece.write`."""
        frame, digits = self.frame, self.numbers.lengths
        rows = frame.rows.take(digits, axis=0)
        rows.view(np.uint64)[:, frame.word] |= self.numbers.texts.view(np.uint64)[:, 0] & _MASKS.take(digits)
        whole = np.ndarray((digits.size,), window(frame.width), rows, offset=frame.begin, strides=(rows.shape[1],))
        windows(buffer, frame.width)[ends - frame.width] = whole
