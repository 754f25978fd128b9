"""Clients with short timeouts, and the events of their connections."""

from __future__ import annotations

import resource
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeAlias

from agent.worker.metrics.connection_events import EventKind
from agent.worker.metrics.endpoints import Endpoints
from common.cancellation import Cancellation
from common.plan.schema import BackoffKind, Pools, Retry, Target
from common.redis_client import NO_ENDPOINT, Client, build_client
from common.redis_client.connections.connection_tracking import ConnectTimes
from common.units import Seconds

QUICK = Seconds(0.2)
NoFiles: TypeAlias = Callable[[], AbstractContextManager[None]]

DURING_CONNECT = (EventKind.TRIED, EventKind.TLS_OPENED, EventKind.CONNECTED)
"""Events before a connection is open, which most tests do not count."""


@contextmanager
def without_files() -> Iterator[None]:
    """A context in which this process cannot open any more files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


class Events:
    """All events of a client's connections, in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.first_retry = threading.Event()
        self.dropped_ns = 0
        self.made = 0
        self.tries: list[int | None] = []
        self.endpoints, self.endpoint = Endpoints(), NO_ENDPOINT
        self.batch: list[int] = []
        self.times: list[ConnectTimes] = []
        self.tls_handshakes = 0
        self.notifications: list[str] = []

    def number(self) -> int | None:
        self.made += 1
        return self.made

    def tried(self, at_ns: int, which: int | None) -> None:  # noqa: ARG002
        self.tries.append(which)

    def connected(self, at_ns: int, times: ConnectTimes) -> None:  # noqa: ARG002
        self.times.append(times)

    def tls_opened(self, at_ns: int) -> None:  # noqa: ARG002
        self.tls_handshakes += 1

    def notified(self, at_ns: int, kind: str) -> None:  # noqa: ARG002
        self.notifications.append(kind)

    def opened(self, at_ns: int, lost_ns: int | None, which: int | None) -> None:  # noqa: ARG002
        self.seen.append(("opened", None if lost_ns is None else at_ns - lost_ns))

    def attempt_failed(self, at_ns: int, cause: str, which: int | None) -> None:  # noqa: ARG002
        self.seen.append(("attempt failed", cause))

    def dropped(self, at_ns: int, cause: str, which: int | None) -> None:  # noqa: ARG002
        self.seen.append(("dropped", cause))
        self.dropped_ns = at_ns

    def closed(self, at_ns: int, which: int | None) -> None:  # noqa: ARG002
        self.seen.append(("closed", at_ns))

    def retried(self, at_ns: int) -> None:
        self.seen.append(("retried", at_ns))
        self.first_retry.set()

    def redirected(self, at_ns: int, kind: str) -> None:  # noqa: ARG002
        self.seen.append(("redirected", kind))

    def topology_refreshed(self, at_ns: int) -> None:
        self.seen.append(("topology refreshed", at_ns))

    def endpoint_number(self, host: str, port: int) -> int:
        return self.endpoints.number(host, port)

    def has_role(self, host: str, port: int, role: str) -> None:
        self.endpoints.has_role(host, port, role)

    def batch_begins(self) -> None:
        self.batch.clear()

    def batch_command_sent(self, host: str, port: int) -> None:
        self.batch.append(self.endpoints.number(host, port))

    def __getitem__(self, kind: str) -> list[Any]:
        return [detail for seen, detail in self.seen if seen == kind]

    @property
    def kinds(self) -> Counter[str]:
        return Counter(kind for kind, _ in self.seen)


def quick_target(url: str, **settings: Any) -> Target:
    return Target(url=url, connect_timeout_s=QUICK, socket_timeout_s=QUICK, **settings)


def quick_client(
    url: str, events: Events, cancellation: Cancellation | None = None, max_connections: int = 2, **retry: Any
) -> Client:
    policy = Retry(**{"retries": 0, "backoff": BackoffKind.NONE, **retry})
    return build_client(
        quick_target(url, retry=policy),
        Pools(max_connections=max_connections),
        events=events,
        cancellation=cancellation or Cancellation(),
    )
