"""What happened to the connections of a client instance, and how it adds up per second of the run."""

from __future__ import annotations

import enum
from collections import Counter
from typing import TypeAlias

import numpy as np

from common.histogram import Histogram
from common.metrics import ConnectionMetrics


class EventKind(enum.Enum):
    """One thing that can happen to a connection; what its detail holds."""

    OPENED = "opened"  # when the connection before it was dropped, or None
    ATTEMPT_FAILED = "attempt failed"
    DROPPED = "dropped"  # its cause
    CLOSED = "closed"
    RETRIED = "retried"
    REDIRECTED = "redirected"  # which of common.target.REDIRECTS
    TOPOLOGY_REFRESHED = "topology refreshed"


Event: TypeAlias = tuple[int, EventKind, int | str | None]
"""(monotonic ns, kind, detail)."""


class EventLog:
    """Events of one client instance, as `common.target.ConnectionEvents`; any thread writes, one takes.

    No lock: appending to a list and cutting off its head are one step each under the interpreter's own.
    """

    def __init__(self) -> None:
        self._events: list[Event] = []

    def opened(self, at_ns: int, lost_ns: int | None) -> None:
        self._events.append((at_ns, EventKind.OPENED, lost_ns))

    def attempt_failed(self, at_ns: int) -> None:
        self._events.append((at_ns, EventKind.ATTEMPT_FAILED, None))

    def dropped(self, at_ns: int, cause: str) -> None:
        self._events.append((at_ns, EventKind.DROPPED, cause))

    def closed(self, at_ns: int) -> None:
        self._events.append((at_ns, EventKind.CLOSED, None))

    def retried(self, at_ns: int) -> None:
        self._events.append((at_ns, EventKind.RETRIED, None))

    def redirected(self, at_ns: int, kind: str) -> None:
        self._events.append((at_ns, EventKind.REDIRECTED, kind))

    def topology_refreshed(self, at_ns: int) -> None:
        self._events.append((at_ns, EventKind.TOPOLOGY_REFRESHED, None))

    def take(self) -> list[Event]:
        """All events since the last call."""
        count = len(self._events)
        taken = self._events[:count]
        del self._events[:count]
        return taken


_STEP = {EventKind.OPENED: 1, EventKind.DROPPED: -1, EventKind.CLOSED: -1}


class ConnectionFold:
    """Adds up the events of one group of pools, in the order of time, and keeps count of what is open."""

    def __init__(self) -> None:
        self._open = 0

    def add_up(self, events: list[Event], *, is_late: bool) -> ConnectionMetrics:
        """Metrics of one second. is_late: it was reported before, these came after; its gauge stands already."""
        peak = self._open
        for _, kind, _ in events:
            self._open += _STEP.get(kind, 0)
            peak = max(peak, self._open)
        kinds = Counter(kind for _, kind, _ in events)
        reconnects = [
            at_ns - detail for at_ns, kind, detail in events if kind is EventKind.OPENED and isinstance(detail, int)
        ]
        return ConnectionMetrics(
            opened=kinds[EventKind.OPENED],
            failed_attempts=kinds[EventKind.ATTEMPT_FAILED],
            drops=_by_detail(events, EventKind.DROPPED),
            reconnects=len(reconnects),
            reconnect=Histogram.of(np.array(reconnects, dtype=np.int64)),
            retries=kinds[EventKind.RETRIED],
            redirects=_by_detail(events, EventKind.REDIRECTED),
            topology_refreshes=kinds[EventKind.TOPOLOGY_REFRESHED],
            open_peak=0 if is_late else peak,
        )


def _by_detail(events: list[Event], wanted: EventKind) -> dict[str, int]:
    return dict(Counter(str(detail) for _, kind, detail in events if kind is wanted))
