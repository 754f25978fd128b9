"""How long an event loop was busy at a stretch: a row for each of its turns, from one wait to the next.

A reply that comes while a loop is busy lies unread until its next wait, for as long as the turn lasts at most. So the
lengths of turns say how far the generator itself may have put off what it measures, and their sum how much of the time
it had something to do. What the loop spends in its wait, a wait for the interpreter's own lock at its end included, is
in neither.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.worker.metrics.rows import take_rows

Turns: TypeAlias = NDArray[np.int64]
"""Shape (n, 2): ended_ns, busy_ns. ended_ns: when the loop went back to wait."""

NO_TURNS: Turns = np.empty((0, 2), dtype=np.int64)
pack_turn: Callable[[int, int], bytes] = struct.Struct("=2q").pack


class LoopRecord:
    """The turns of one event loop. Only the loop's own thread writes (`add(pack_turn(ended_ns, busy_ns))`); the
    collector reads. A loop that serves several pools has one record for all of them."""

    __slots__ = ("_buffer", "add")

    def __init__(self) -> None:
        self._buffer = array("q")
        self.add = self._buffer.frombytes

    def take(self) -> Turns:
        """All turns since the last call."""
        return take_rows(self._buffer, 2)
