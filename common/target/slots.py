"""Where a key lives in a cluster."""

from __future__ import annotations

from redis.crc import key_slot

SLOTS = 16384
"""How many a cluster has."""


def slot_of(key: bytes) -> int:
    """The slot of a key, below `SLOTS`; keys with the same hash tag, the part in braces, share one."""
    slot: int = key_slot(key)
    return slot
