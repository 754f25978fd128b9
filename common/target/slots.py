"""Where a key lives in a cluster, and how often to ask again while nobody serves its slot."""

from __future__ import annotations

from redis.crc import key_slot

from common.clock import MonotonicNs, monotonic_ns
from common.units import NS_PER_S

SLOTS = 16384
"""How many a cluster has."""

REREAD_S = 0.25
"""Between two readings of the topology that found a slot without a node, in seconds: redis-py's own pause after
CLUSTERDOWN."""


class Rereading:
    """Limits how often one client reads the topology because a slot has no node."""

    def __init__(self, now: MonotonicNs = monotonic_ns) -> None:
        self._now = now
        self._next_ns = now()

    def is_due(self) -> bool:
        """Whether to read it now. True at most once in `REREAD_S`."""
        now_ns = self._now()
        if now_ns < self._next_ns:
            return False
        self._next_ns = now_ns + int(REREAD_S * NS_PER_S)
        return True


def slot_of(key: bytes) -> int:
    """The slot of a key, below `SLOTS`; keys with the same hash tag, the part in braces, share one."""
    slot: int = key_slot(key)
    return slot
