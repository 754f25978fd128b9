"""The slot of a key, and how often to read the topology again while no node serves a slot."""

from __future__ import annotations

from redis.crc import key_slot

from common.clock import MonotonicNs, monotonic_ns
from common.units import NS_PER_S

SLOTS = 16384
"""How many a cluster has."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 4.0


class Rereading:
    """Limits how often one client reads the topology while a slot has no node. The first pause is 0.25 s, as redis-py's
    after CLUSTERDOWN; each further pause is twice as long, up to 4 s. Reading is expensive: redis-py opens new
    connections to all nodes."""

    def __init__(self, now: MonotonicNs = monotonic_ns) -> None:
        self._now = now
        self._next_ns = self._asked_ns = now()
        self._pause_ns = 0

    def is_due(self) -> bool:
        """Whether to read the topology now. Call it whenever an operation finds no node."""
        now_ns = self._now()
        if now_ns - self._asked_ns > _LONGEST_PAUSE_S * NS_PER_S:
            # No operation lacked a node for a while, so the slot was back: begin with short pauses again.
            self._pause_ns = 0
        self._asked_ns = now_ns
        if now_ns < self._next_ns:
            return False
        self._pause_ns = int(min(max(2 * self._pause_ns, _FIRST_PAUSE_S * NS_PER_S), _LONGEST_PAUSE_S * NS_PER_S))
        self._next_ns = now_ns + self._pause_ns
        return True


def slot_of(key: bytes) -> int:
    """The slot of a key, below `SLOTS`; keys with the same hash tag, the part in braces, share one."""
    slot: int = key_slot(key)
    return slot
