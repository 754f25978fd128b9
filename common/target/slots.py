"""Where a key lives in a cluster."""

from __future__ import annotations

from redis.crc import key_slot


def slot_of(key: bytes) -> int:
    """The slot of a key, 0 to 16383; keys with the same hash tag, the part in braces, share one."""
    slot: int = key_slot(key)
    return slot
