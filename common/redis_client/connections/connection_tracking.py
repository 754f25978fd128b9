"""Events of connections, for threads and for asyncio. No I/O.

`thread_connections` and `async_connections` do the I/O and report it to a `ConnectionTracker`. The tracker decides
which event this is: a failed attempt, a connection that was opened, dropped or closed on purpose, or a redirection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import redis
from redis.exceptions import AskError

from common.cancellation import Cancellation
from common.clock import monotonic_ns
from common.plan.schema.target_url import Host
from common.redis_client.connections.cluster_topology import AnnouncedAddresses, RefreshLimit
from common.redis_client.connections.connection_causes import attempt_cause, drop_cause

REDIRECTS = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")
"""Error replies of a cluster node that did not execute the command. Its commandstats count each as a rejected call."""

PRIMARY, REPLICA = "primary", "replica"

NO_ENDPOINT = -1
"""The number of no server."""


class ConnectTimes(NamedTuple):
    """How long a successful connect took, in ns: the attempt that succeeded, without earlier attempts and backoffs.

    total_ns: from the beginning of the attempt to the end of the handshake. tcp_ns: until the TCP connection or the
    Unix socket was open, name lookup included. tls_ns: the TLS handshake, with the reading of certificates, which
    redis-py does for each connection. Both are None where there is no such part, and where redis-py does not show the
    parts: redis.asyncio opens TCP and TLS in one call. handshake_ns: the commands with which redis-py prepares a
    connection: HELLO, AUTH, CLIENT, SELECT.
    """

    total_ns: int
    tcp_ns: int | None
    tls_ns: int | None
    handshake_ns: int


class ConnectionEvents(Protocol):
    """Receives the events of all connections of one client, from any thread. Times are monotonic ns.

    which: the connection's number, from `number`. endpoint: the number of the server that the client's last command was
    sent to, -1 for none; only for clients of several servers.
    """

    endpoint: int

    def number(self) -> int | None:
        """The number of a new connection; None if connections are not counted one by one."""

    def tried(self, at_ns: int, which: int | None) -> None:
        """An attempt to open the connection begins."""

    def opened(self, at_ns: int, lost_ns: int | None, which: int | None) -> None:
        """The connection is open, handshake included. lost_ns: when it was dropped before; None for a first connect."""

    def connected(self, at_ns: int, times: ConnectTimes) -> None:
        """A connect has succeeded; reported just before `opened`."""

    def tls_opened(self, at_ns: int) -> None:
        """A TLS handshake has succeeded."""

    def notified(self, at_ns: int, kind: str) -> None:
        """The server has sent a maintenance notification. kind: see `maintenance.KINDS`."""

    def attempt_failed(self, at_ns: int, cause: str, which: int | None) -> None:
        """A connect or its handshake failed. cause: see `attempt_cause`."""

    def dropped(self, at_ns: int, cause: str, which: int | None) -> None:
        """An open connection was lost unexpectedly. cause: see `drop_cause`."""

    def closed(self, at_ns: int, which: int | None) -> None:
        """We closed an open connection."""

    def retried(self, at_ns: int) -> None:
        """The retry policy is about to repeat a command or a connect."""

    def redirected(self, at_ns: int, kind: str) -> None:
        """A cluster node answered with one of REDIRECTS."""

    def topology_refreshed(self, at_ns: int) -> None:
        """A cluster client changed its slot map, after a redirection or by reading the whole topology."""

    def endpoint_number(self, host: str, port: int) -> int:
        """The number of this server."""

    def has_role(self, host: str, port: int, role: str) -> None:
        """The target says that this server is a "primary" or a "replica"."""

    def batch_begins(self) -> None:
        """The commands of a batch are about to be assigned to servers; perhaps again, after an error."""

    def batch_command_sent(self, host: str, port: int) -> None:
        """The next command of the batch goes to this server."""


class Unobserved:
    """ConnectionEvents that discards everything."""

    endpoint = NO_ENDPOINT

    def number(self) -> int | None: ...
    def tried(self, at_ns: int, which: int | None) -> None: ...
    def opened(self, at_ns: int, lost_ns: int | None, which: int | None) -> None: ...
    def connected(self, at_ns: int, times: ConnectTimes) -> None: ...
    def tls_opened(self, at_ns: int) -> None: ...
    def notified(self, at_ns: int, kind: str) -> None: ...
    def attempt_failed(self, at_ns: int, cause: str, which: int | None) -> None: ...
    def dropped(self, at_ns: int, cause: str, which: int | None) -> None: ...
    def closed(self, at_ns: int, which: int | None) -> None: ...
    def retried(self, at_ns: int) -> None: ...
    def redirected(self, at_ns: int, kind: str) -> None: ...
    def topology_refreshed(self, at_ns: int) -> None: ...
    def endpoint_number(self, host: str, port: int) -> int:  # noqa: ARG002 - the interface
        return NO_ENDPOINT

    def has_role(self, host: str, port: int, role: str) -> None: ...
    def batch_begins(self) -> None: ...
    def batch_command_sent(self, host: str, port: int) -> None: ...


class ConnectionTracker:
    """Reports the events of one redis-py connection.

    An attempt is `begin`, then `socket_begins`, with TLS `tls_begins`, then `socket_opened` or `socket_failed`, then
    `opened` or `failed`. Every open connection ends with `closing`. is_announced: its address is not from the plan; a
    cluster or Sentinels announced it. is_member: the client uses several servers.
    """

    def __init__(
        self, events: ConnectionEvents, cancellation: Cancellation, *, is_announced: bool, is_member: bool
    ) -> None:
        self._events = events
        self.cancellation = cancellation
        self._number = events.number()
        self._is_announced = is_announced
        self._is_member = is_member
        self._is_open = False
        self._has_socket = False
        self._lost_ns: int | None = None
        self._endpoint = NO_ENDPOINT
        self._is_connecting = False
        self._began_ns = self._socket_ns = 0
        self._tls_began_ns: int | None = None
        self._is_split = True

    def begin(self, connection: Any) -> None:
        """An attempt to connect begins."""
        self._has_socket = False
        self._is_connecting = True
        self.located(connection)
        self._events.tried(monotonic_ns(), self._number)

    def located(self, connection: Any) -> None:
        """The connection has an address."""
        if self._is_member:
            self._endpoint = self._events.endpoint_number(connection.host, connection.port)

    def sending(self) -> None:
        """A command is sent on the connection, perhaps one of the handshake, which is not counted. For connections to
        one of several servers."""
        if not self._is_connecting:
            self._events.endpoint = self._endpoint

    def socket_begins(self) -> None:
        """The socket is about to be opened, perhaps again after a backoff."""
        self._began_ns = monotonic_ns()
        self._tls_began_ns = None

    def tls_begins(self) -> None:
        """TCP is connected, and the TLS handshake is about to begin."""
        self._tls_began_ns = monotonic_ns()

    def socket_opened(self, *, with_tls: bool = False) -> None:
        """There is a socket; the handshake follows. with_tls: one call has opened TCP and TLS, so nothing has called
        `tls_begins`."""
        self._has_socket = True
        self._socket_ns = monotonic_ns()
        self._is_split = not with_tls
        if with_tls or self._tls_began_ns is not None:
            self._events.tls_opened(self._socket_ns)

    def notified(self, kind: str) -> None:
        """The server has sent a maintenance notification."""
        self._events.notified(monotonic_ns(), kind)

    def socket_failed(self, error: OSError) -> None:
        """There is no socket, because of this error."""
        self._events.attempt_failed(monotonic_ns(), attempt_cause(error), self._number)

    def failed(self, error: redis.RedisError, connection: Any) -> None:
        """The attempt ended with this error of redis-py. Marks the error for `translate` and `failure_of`."""
        self._is_connecting = False
        if self._is_member:
            self._events.endpoint = self._endpoint
        if self._is_announced:
            error.announced_address = Host(connection.host, connection.port)  # type: ignore[attr-defined]
        if self._has_socket:
            if not self.cancellation.is_cancelled:
                self._events.attempt_failed(monotonic_ns(), attempt_cause(error), self._number)
            # The error may reach the caller of a command, which must not take it for a reply to that command.
            error.in_handshake = True  # type: ignore[attr-defined]

    def opened(self) -> None:
        """The connection is open, handshake included."""
        now_ns = monotonic_ns()
        self._events.connected(now_ns, self._times(now_ns))
        self._events.opened(now_ns, self._lost_ns, self._number)
        self._is_open = True
        self._is_connecting = False
        self._lost_ns = None

    def _times(self, now_ns: int) -> ConnectTimes:
        tls_began_ns = self._tls_began_ns
        tcp_ns = (tls_began_ns or self._socket_ns) - self._began_ns if self._is_split else None
        tls_ns = None if tls_began_ns is None else self._socket_ns - tls_began_ns
        return ConnectTimes(now_ns - self._began_ns, tcp_ns, tls_ns, now_ns - self._socket_ns)

    def closing(self, error: BaseException | None, is_loss: Callable[[BaseException], bool]) -> None:
        """The connection is about to be closed, while `error` is handled. is_loss: whether this error means that this
        connection was lost. Does nothing for a connection that is not open."""
        if not self._is_open:
            return
        self._is_open = False
        if error is None or self.cancellation.is_cancelled or not is_loss(error):
            self._events.closed(monotonic_ns(), self._number)
        else:
            self._lost_ns = monotonic_ns()
            self._events.dropped(self._lost_ns, drop_cause(error), self._number)

    def redirected(self, error: redis.ResponseError, addresses: AnnouncedAddresses) -> None:
        """A cluster node answered with this error. Reports a redirection, and corrects the address that it names."""
        if isinstance(error, AskError):  # a MOVED is an AskError, too
            addresses.correct(error)
        if error.status_code in REDIRECTS:
            self._events.redirected(monotonic_ns(), error.status_code)


class ClusterTracker:
    """Reports what one cluster client does, and decides when it reads the topology because a slot has no node."""

    def __init__(self, events: ConnectionEvents, cancellation: Cancellation) -> None:
        self._events = events
        self._cancellation = cancellation
        self._refresh_limit = RefreshLimit()
        self.has_topology = False
        """Whether the topology was read once. Later readings are refreshes."""

    def topology_read(self) -> None:
        """The topology has changed, or was read."""
        if self.has_topology:
            self._events.topology_refreshed(monotonic_ns())

    def has_nodes(self, nodes: Iterable[Any]) -> None:
        """The cluster has these nodes of redis-py."""
        for node in nodes:
            self._events.has_role(node.host, int(node.port), node.server_type)

    def batch_begins(self) -> None:
        """See `ConnectionEvents`."""
        self._events.batch_begins()

    def batch_command_sent(self, node: Any) -> None:
        """See `ConnectionEvents`. node: of redis-py."""
        self._events.batch_command_sent(node.host, node.port)

    def not_covered(self) -> None:
        """A command has a slot that no node serves, so it is sent to none."""
        self._events.endpoint = NO_ENDPOINT

    def error_recorded(self, options: dict[str, Any]) -> None:
        """redis-py has recorded an error of a command. options: arguments of its `_record_error_metric`. Raises
        CutShort after cancellation if it means to repeat the command."""
        if options.get("retry_attempts") and options.get("is_internal", True):
            self.repeating()

    def repeating(self) -> None:
        """A command is about to be repeated. Raises CutShort after cancellation."""
        self._cancellation.check()
        self._events.retried(monotonic_ns())

    def should_refresh(self) -> bool:
        """Whether to read the topology now that a slot has no node."""
        return self._refresh_limit.is_due()


@contextmanager
def checked_handshake(connection: Any) -> Iterator[None]:
    """Check a handshake with a server of any kind. Errors of redis-py get the attribute `handshake_step`: the command
    that failed, such as ("CLIENT", "SETNAME"). Raises InvalidResponse for a reply to HELLO that is not a map."""
    sent: list[tuple[str, ...]] = [("", "")]
    send = connection.send_command

    def recorded_send(*arguments: Any, **options: Any) -> Any:
        sent.append(tuple(map(str, arguments[:2])))
        return send(*arguments, **options)

    # Only during the handshake, so that commands of the load have no extra cost.
    connection.send_command = recorded_send
    try:
        yield
    except AttributeError as error:
        # redis-py does not check that the reply to HELLO is a map.
        raise redis.InvalidResponse("HELLO was not answered with a map") from error
    except redis.RedisError as error:
        error.handshake_step = sent[-1]  # type: ignore[attr-defined]
        raise
    finally:
        del connection.send_command
