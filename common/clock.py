"""Monotonic time in whole nanoseconds, and the offset between two hosts' clocks.

Pure, except for the clocks: `monotonic_ns`; `boottime_ns` for limits that also run while the machine is suspended; and
`utc_of`, which reads the wall clock once, to label an instant.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

MonotonicNs = Callable[[], int]
monotonic_ns: MonotonicNs = time.monotonic_ns
_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_SUSPENDED_NS = 100_000_000


def boottime_ns() -> int:
    """Like `monotonic_ns`, but also counts while the machine is suspended. On Linux this is CLOCK_BOOTTIME. On macOS it
    is CLOCK_MONOTONIC, which is not the clock of `time.monotonic_ns` there."""
    return time.clock_gettime_ns(_BOOTTIME)


def utc_of(at_ns: int) -> int:
    """An instant of `monotonic_ns` by this machine's wall clock: ns since 1970, UTC."""
    return time.time_ns() + at_ns - monotonic_ns()


class Suspension:
    """Measures how long the machine was suspended, by comparing the two clocks."""

    def __init__(self, boottime: MonotonicNs = boottime_ns, monotonic: MonotonicNs = monotonic_ns) -> None:
        self._boottime, self._monotonic = boottime, monotonic
        self._counted_ns = self.ahead_ns()

    def ahead_ns(self) -> int:
        """`boottime_ns` minus `monotonic_ns`. A pause between the two readings makes it too small, never too large."""
        boottime_ns = self._boottime()
        return boottime_ns - self._monotonic()

    def take_ns(self) -> int:
        """How long the machine was suspended since the last call; 0 if it was not."""
        more_ns = self.ahead_ns() - self._counted_ns
        self._counted_ns += max(0, more_ns)
        return more_ns if more_ns > _SUSPENDED_NS else 0


@dataclass(frozen=True, slots=True)
class ClockSample:
    """The result of one exchange of timestamps. offset_ns: the remote clock minus the local one; its error is at most
    half of `rtt_ns`."""

    offset_ns: int
    rtt_ns: int


def clock_sample(sent_ns: int, received_ns: int, replied_ns: int, returned_ns: int) -> ClockSample:
    """The sample of one exchange from its four timestamps (RFC 5905, section 8: theta and delta). sent_ns and
    returned_ns are read from the local clock, received_ns and replied_ns from the remote clock."""
    offset_ns = ((received_ns - sent_ns) + (replied_ns - returned_ns)) // 2
    rtt_ns = (returned_ns - sent_ns) - (replied_ns - received_ns)
    return ClockSample(offset_ns, rtt_ns)


class ClockSync:
    """Keeps the last exchanges. Uses the exchange with the smallest round trip, because its error bound is smallest."""

    def __init__(self, window: int = 16) -> None:
        self._samples: deque[ClockSample] = deque(maxlen=window)

    def add(self, sample: ClockSample) -> None:
        """Add an exchange. A full window drops its oldest exchange. An exchange with a negative (impossible) round trip
        is ignored: it would count as the most precise one."""
        if sample.rtt_ns >= 0:
            self._samples.append(sample)

    @property
    def best(self) -> ClockSample | None:
        """The exchange with the smallest round trip; None before the first exchange."""
        return min(self._samples, key=lambda sample: sample.rtt_ns, default=None)

    @property
    def count(self) -> int:
        """How many exchanges are in the window."""
        return len(self._samples)

    def to_local_ns(self, remote_ns: int) -> int | None:
        """A remote instant on the local clock; None before the first exchange."""
        best = self.best
        return None if best is None else remote_ns - best.offset_ns
