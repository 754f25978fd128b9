"""Connection events of a client instance, and their sums per second of the run.

A connection is wanted while it is open or being opened, and until the end of the second in which an attempt failed. A
client of redis-py opens connections as calls need them, so it wants as many as calls need. The wire driver wants all
its connections, here called *links*, for the whole run. Links are counted instead of redis-py's connection objects,
because after a failed attempt redis-py's pool gives the object to the next link that tries."""

from __future__ import annotations

import enum
import itertools
from collections import Counter
from collections.abc import Iterable
from typing import TypeAlias

import numpy as np

from agent.worker.metrics.endpoints import Endpoints
from common.metrics.histogram import EMPTY, Histogram
from common.metrics.intervals import PENDING, ConnectionMetrics, merge_counts
from common.redis_client import NO_ENDPOINT
from common.redis_client.connections.connection_tracking import ConnectTimes

_NUMBERS = itertools.count()


def next_number() -> int:
    """The number of a new connection or link, unique in this process."""
    return next(_NUMBERS)


class EventKind(enum.Enum):
    """What can happen to a connection. The comment names the event's detail, if it has one."""

    TRIED = "tried"
    CONNECTED = "connected"  # its ConnectTimes; comes just before OPENED
    TLS_OPENED = "TLS opened"
    NOTIFIED = "notified"  # the kind of the maintenance notification
    OPENED = "opened"  # when the previous connection was dropped, or None
    ATTEMPT_FAILED = "attempt failed"  # its cause
    DROPPED = "dropped"  # its cause
    CLOSED = "closed"
    RETRIED = "retried"
    REDIRECTED = "redirected"  # which of common.redis_client.REDIRECTS
    TOPOLOGY_REFRESHED = "topology refreshed"
    LINK_WANTED = "link wanted"
    LINK_UNWANTED = "link unwanted"
    LINK_OPENED = "link opened"
    LINK_FAILED = "link failed"  # its cause


ConnectionEvent: TypeAlias = tuple[int, EventKind, int | str | ConnectTimes | None, int | None]
"""(monotonic ns, kind, detail, number of the connection or the link)."""


class EventLog:
    """The events of one client instance, see `common.redis_client.ConnectionEvents`. Any thread writes; one thread
    takes.

    It needs no lock: under the interpreter lock, appending to a list and removing its head are one step each.
    """

    def __init__(self, endpoints: Endpoints | None = None, *, of_links: bool = False) -> None:
        """endpoints: numbers the servers. of_links: count links instead of redis-py's connections."""
        self.endpoint = NO_ENDPOINT
        self._endpoints = endpoints or Endpoints()
        self._batch: list[int] = []
        self._events: list[ConnectionEvent] = []
        self._of_links = of_links

    def number(self) -> int | None:
        return None if self._of_links else next_number()

    def tried(self, at_ns: int, which: int | None) -> None:
        self._events.append((at_ns, EventKind.TRIED, None, which))

    def connected(self, at_ns: int, times: ConnectTimes) -> None:
        self._events.append((at_ns, EventKind.CONNECTED, times, None))

    def tls_opened(self, at_ns: int) -> None:
        self._events.append((at_ns, EventKind.TLS_OPENED, None, None))

    def notified(self, at_ns: int, kind: str) -> None:
        self._events.append((at_ns, EventKind.NOTIFIED, kind, None))

    def opened(self, at_ns: int, lost_ns: int | None, which: int | None) -> None:
        self._events.append((at_ns, EventKind.OPENED, lost_ns, which))

    def attempt_failed(self, at_ns: int, cause: str, which: int | None) -> None:
        self._events.append((at_ns, EventKind.ATTEMPT_FAILED, cause, which))

    def dropped(self, at_ns: int, cause: str, which: int | None) -> None:
        self._events.append((at_ns, EventKind.DROPPED, cause, which))

    def closed(self, at_ns: int, which: int | None) -> None:
        self._events.append((at_ns, EventKind.CLOSED, None, which))

    def retried(self, at_ns: int) -> None:
        self._events.append((at_ns, EventKind.RETRIED, None, None))

    def redirected(self, at_ns: int, kind: str) -> None:
        self._events.append((at_ns, EventKind.REDIRECTED, kind, None))

    def topology_refreshed(self, at_ns: int) -> None:
        self._events.append((at_ns, EventKind.TOPOLOGY_REFRESHED, None, None))

    def link_wanted(self, at_ns: int, which: int) -> None:
        """A link is wanted from `at_ns` on, even if no operation needs it."""
        self._events.append((at_ns, EventKind.LINK_WANTED, None, which))

    def link_unwanted(self, at_ns: int, which: int) -> None:
        """A link is no longer wanted: its node is gone."""
        self._events.append((at_ns, EventKind.LINK_UNWANTED, None, which))

    def link_opened(self, at_ns: int, which: int) -> None:
        """A link is open."""
        self._events.append((at_ns, EventKind.LINK_OPENED, None, which))

    def link_failed(self, at_ns: int, cause: str, which: int) -> None:
        """A link could not be opened, with all retries of the plan. cause: of the last failed attempt."""
        self._events.append((at_ns, EventKind.LINK_FAILED, cause, which))

    def endpoint_number(self, host: str, port: int) -> int:
        return self._endpoints.number(host, port)

    def has_role(self, host: str, port: int, role: str) -> None:
        self._endpoints.has_role(host, port, role)

    def batch_begins(self) -> None:
        self._batch = []

    def batch_command_sent(self, host: str, port: int) -> None:
        self._batch.append(self._endpoints.number(host, port))

    def endpoints_of_batch(self, count: int) -> list[int]:
        """The endpoint of each command of the last batch, which had `count`."""
        found, self._batch = self._batch, []
        return found[:count] if len(found) >= count else [self.endpoint] * count

    def take(self) -> list[ConnectionEvent]:
        """All events since the last call."""
        count = len(self._events)
        taken = self._events[:count]
        del self._events[:count]
        return taken


_OPEN_CHANGE = {EventKind.OPENED: 1, EventKind.DROPPED: -1, EventKind.CLOSED: -1}
_FAILED_KINDS = (EventKind.ATTEMPT_FAILED, EventKind.LINK_FAILED)
_OPENED_KINDS = (EventKind.OPENED, EventKind.LINK_OPENED)
_LEAVING_KINDS = (EventKind.DROPPED, EventKind.CLOSED, EventKind.ATTEMPT_FAILED, EventKind.LINK_UNWANTED)
"""After these events a connection is wanted until the end of the second, unless it is tried again."""


class ConnectionTally:
    """Adds up the events of one group of pools in the order of time, and counts open and wanted connections."""

    def __init__(self) -> None:
        self._open = 0
        self._wanted: set[int] = set()
        self._links: set[int] = set()
        self._ever_open: set[int] = set()
        self._causes: dict[int, str] = {}
        self._failed: Counter[str] = Counter()

    def add_up(self, events: list[ConnectionEvent], *, is_late: bool) -> ConnectionMetrics:
        """Metrics of one second. is_late: the second has been reported already, with its gauges."""
        peak = self._open
        for _, kind, _, _ in events:
            self._open += _OPEN_CHANGE.get(kind, 0)
            peak = max(peak, self._open)
        wanted = self._follow(events)
        kinds = Counter(kind for _, kind, _, _ in events)
        failed_by_cause = _by_detail(events, EventKind.ATTEMPT_FAILED)
        self._failed.update(failed_by_cause)
        reconnects = [
            at_ns - detail for at_ns, kind, detail, _ in events if kind is EventKind.OPENED and isinstance(detail, int)
        ]
        times = [detail for _, _, detail, _ in events if isinstance(detail, ConnectTimes)]
        return ConnectionMetrics(
            opened=kinds[EventKind.OPENED],
            failed_attempts=kinds[EventKind.ATTEMPT_FAILED],
            failed_by_cause=failed_by_cause,
            drops=_by_detail(events, EventKind.DROPPED),
            reconnects=len(reconnects),
            reconnect=_histogram(reconnects),
            connect=_histogram(each.total_ns for each in times),
            connect_tcp=_histogram(each.tcp_ns for each in times),
            connect_tls=_histogram(each.tls_ns for each in times),
            connect_handshake=_histogram(each.handshake_ns for each in times),
            tls_handshakes=kinds[EventKind.TLS_OPENED],
            maintenance=_by_detail(events, EventKind.NOTIFIED),
            retries=kinds[EventKind.RETRIED],
            redirects=_by_detail(events, EventKind.REDIRECTED),
            topology_refreshes=kinds[EventKind.TOPOLOGY_REFRESHED],
            open_peak=0 if is_late else peak,
            wanted=0 if is_late else max(wanted, peak),
        )

    def never_opened(self) -> dict[str, int]:
        """How many wanted connections were never open, by cause of the last failed attempt. A link whose first attempt
        has not ended counts under the most frequent cause of its pool."""
        never = Counter(cause for which, cause in self._causes.items() if which not in self._ever_open)
        if pending := sum(which not in self._causes for which in self._links - self._ever_open):
            most = self._failed.most_common(1)
            never[most[0][0] if most else PENDING] += pending
        return merge_counts([never])

    def _follow(self, events: list[ConnectionEvent]) -> int:
        """Track each connection. Returns how many were wanted in this second."""
        leaving: set[int] = set()
        for _, kind, detail, which in events:
            if which is None:
                continue
            self._wanted.add(which)
            if kind in _LEAVING_KINDS:
                leaving.add(which)
            else:
                leaving.discard(which)
            if kind in _OPENED_KINDS:
                self._ever_open.add(which)
            elif kind in _FAILED_KINDS:
                self._causes[which] = str(detail)
            elif kind is EventKind.LINK_WANTED:
                self._links.add(which)
            elif kind is EventKind.LINK_UNWANTED:
                self._links.discard(which)
                self._causes.pop(which, None)
        count = len(self._wanted)
        self._wanted -= leaving
        return count


def _histogram(values_ns: Iterable[int | None]) -> Histogram:
    """The histogram of the values that are known."""
    known = [value_ns for value_ns in values_ns if value_ns is not None]
    return Histogram.from_values(np.array(known, dtype=np.int64)) if known else EMPTY


def _by_detail(events: list[ConnectionEvent], wanted: EventKind) -> dict[str, int]:
    return merge_counts([Counter(str(detail) for _, kind, detail, _ in events if kind is wanted)])
