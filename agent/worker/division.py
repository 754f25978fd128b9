"""What each thread of the fleet gets: its share of a total, and its own random numbers."""

from __future__ import annotations

import numpy as np


def divide(total: int, thread: int, threads: int) -> tuple[int, int]:
    """(how many all earlier threads get, how many this thread gets) of `total`. Shares differ by one at most; the first
    threads get the larger ones. Requests and keys are divided in the same way, so that a thread with as many requests
    as keys uses each key once."""
    share, rest = divmod(total, threads)
    return thread * share + min(thread, rest), share + (thread < rest)


def seed_sequence(seed: int, thread: int, purpose: int) -> np.random.SeedSequence:
    """The root of one thread's random numbers for one purpose, independent of all others.

    purpose: 0 operations, 1 arrivals, 2 effects of replies, 3 preload, 4 nodes of requests without keys.
    """
    return np.random.SeedSequence(seed, spawn_key=(thread, purpose))
