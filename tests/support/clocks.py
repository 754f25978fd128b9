"""Manual clocks."""

from __future__ import annotations

import threading


class ReadClock:
    """A clock that stands still until the test sets it. The test can wait for a reading."""

    def __init__(self, now_ns: int = 0) -> None:
        self.now_ns = now_ns
        self._reads = threading.Semaphore(0)

    def __call__(self) -> int:
        now_ns = self.now_ns
        self._reads.release()
        return now_ns

    def await_reading(self) -> None:
        """Wait for one more reading. Raises AssertionError after ten seconds."""
        assert self._reads.acquire(timeout=10.0), "the clock was not read"
