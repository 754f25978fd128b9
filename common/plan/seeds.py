"""Random numbers of one worker: a separate stream for each purpose, so that no purpose changes another's draws."""

from __future__ import annotations

import enum

from numpy.random import SeedSequence


class SeedPurpose(enum.IntEnum):
    """The purpose of a stream of random numbers."""

    OPERATIONS = 0
    ARRIVALS = 1
    FOLLOW_UPS = 2
    PRELOAD = 3
    KEYLESS_NODES = 4


def seed_sequence(seed: int, thread: int, purpose: SeedPurpose) -> SeedSequence:
    """The seed of one purpose in one worker. thread: its number in the fleet."""
    return SeedSequence(seed, spawn_key=(thread, int(purpose)))
