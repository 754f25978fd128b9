"""redis-py's connections for threads: observed and cancellable, at no cost per operation.

A `ConnectionTracker` decides what to report. `async_connections` has the twins for asyncio. Both modules repeat only
the code that runs for every command on a cluster node (`send_packed_command`, `read_response`).
"""

from __future__ import annotations

import socket
import ssl
import sys
import traceback
from typing import Any

import redis
from redis.connection import AbstractConnection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import AskError, ClusterDownError, TryAgainError
from redis.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from common.cancellation import Cancellation, CutShort
from common.plan.schema.address_map import AddressMap
from common.redis_client.connections.cluster_topology import AnnouncedAddresses
from common.redis_client.connections.connection_tracking import (
    REDIRECTS,
    ConnectionEvents,
    ConnectionTracker,
    checked_handshake,
)
from common.redis_client.connections.maintenance import report_notifications


class Observed(AbstractConnection):
    """A connection that reports its events, and ends when the run is cancelled. is_announced,
    IS_MEMBER: see `ConnectionTracker`."""

    IS_MEMBER = False

    def __init__(
        self, *, events: ConnectionEvents, cancellation: Cancellation, is_announced: bool = False, **arguments: Any
    ) -> None:
        self._tracker = ConnectionTracker(events, cancellation, is_announced=is_announced, is_member=self.IS_MEMBER)
        super().__init__(**arguments)
        report_notifications(self, self._tracker.notified)

    def _connect(self) -> socket.socket:
        self._tracker.cancellation.check()
        self._tracker.socket_begins()
        try:
            sock: socket.socket = super()._connect()  # type: ignore[safe-super, no-untyped-call]
        except OSError as error:
            self._tracker.socket_failed(error)
            raise
        try:
            self._tracker.cancellation.watch(sock)
        except CutShort:
            sock.close()
            raise
        self._tracker.socket_opened()
        return sock

    def on_connect_check_health(self, check_health: bool = True) -> None:
        with checked_handshake(self):
            super().on_connect_check_health(check_health=check_health)

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        # Not in `on_connect_check_health`, because a cluster client adds its own function to the handshake.
        if self._sock:
            return
        self._tracker.begin(self)
        try:
            super().connect_check_health(check_health=check_health, retry_socket_connect=retry_socket_connect)
        except redis.RedisError as error:
            self._tracker.failed(error, self)
            raise
        self._tracker.opened()

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        self._tracker.closing(sys.exc_info()[1], self._is_loss)
        super().disconnect(*args, **kwargs)  # type: ignore[no-untyped-call]

    def drop(self, error: Exception) -> None:
        """Close the connection, because the reader of its socket found it lost with this error."""
        try:
            raise error
        except type(error):
            self.disconnect()

    def _is_loss(self, error: BaseException) -> bool:
        # When redis-py loses one connection to a cluster or a primary, or is redirected, it also closes other
        # connections while it handles the error. These are not lost: the error's traceback does not contain them.
        if getattr(error, "status_code", None) in REDIRECTS:
            return False
        return any(
            self is frame.f_locals.get("connection" if frame.f_code.co_name == "get_connection" else "self")
            for frame, _ in traceback.walk_tb(error.__traceback__)
        )


class _CancellableTls(SSLConnection):
    """A TLS connection whose handshake ends when the run is cancelled. server_name: the name to request (SNI) and to
    expect in the certificate; None for the host."""

    _tracker: ConnectionTracker

    def __init__(self, *, server_name: str | None = None, **arguments: Any) -> None:
        self._server_name = server_name
        super().__init__(**arguments)

    def _wrap_socket_with_ssl(self, sock: socket.socket) -> Any:
        # redis-py takes the expected name from `_host`. Certificates do not contain zones.
        host, self._host = self._host, self._server_name or self._host.partition("%")[0]
        try:
            # Python's ssl detaches the socket during the handshake, so a duplicate is watched.
            with sock.dup() as duplicate:
                self._tracker.cancellation.watch(duplicate)
                self._tracker.tls_begins()
                return super()._wrap_socket_with_ssl(sock)  # type: ignore[no-untyped-call]
        except CutShort:
            # redis-py closes the socket only after errors of the target.
            sock.close()
            raise
        except OSError as error:
            _close_half_made(error)
            raise
        finally:
            self._host = host


def _close_half_made(error: OSError) -> None:
    """Close the TLS socket that Python's ssl leaves open if the connection was reset before the TLS handshake: only the
    frames of the error's traceback still refer to this socket, because the plain socket was detached."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if isinstance(half_made := frame.f_locals.get("self"), ssl.SSLSocket):
            half_made.close()


class ObservedTcp(Observed, redis.Connection):
    """A connection to a server's port."""


class ObservedTls(Observed, _CancellableTls):
    """A connection to a server's TLS port."""


class ObservedUnix(Observed, UnixDomainSocketConnection):
    """A connection to a Unix socket."""


class ObservedMember(Observed):
    """A connection to one of several servers of a target."""

    IS_MEMBER = True

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        self._tracker.sending()
        super().send_packed_command(command, check_health=check_health)  # type: ignore[no-untyped-call]


class ObservedMemberTcp(ObservedMember, redis.Connection):
    """A connection to one of several servers' ports."""


class ObservedMemberTls(ObservedMember, _CancellableTls):
    """A connection to one of several servers' TLS ports."""


class ObservedSentinel(ObservedMember, SentinelManagedConnection):
    """A connection to the primary that Sentinels name."""


class ObservedSentinelTls(ObservedMember, _CancellableTls, SentinelManagedSSLConnection):
    """A connection to the primary that Sentinels name, with TLS."""


class ObservedClusterNode(Observed):
    """A connection to a node of a cluster, which may redirect commands. remap: for the addresses that the node
    announces."""

    IS_MEMBER = True

    def __init__(self, *, remap: AddressMap, **arguments: Any) -> None:
        self._remap = remap
        self._is_asked_for_slots = False
        super().__init__(is_announced=True, **arguments)
        self._tracker.located(self)
        self._asking_for_slots: Any = self.pack_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]

    @property
    def addresses(self) -> AnnouncedAddresses:
        """Corrects the addresses that this node announces."""
        return AnnouncedAddresses(self.host, self._remap)

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        is_asked_for_slots = command == self._asking_for_slots
        if not is_asked_for_slots:
            self._tracker.sending()
        super().send_packed_command(command, check_health=check_health)  # type: ignore[no-untyped-call]
        # After the call, because the call may send the commands of a handshake or health check too.
        self._is_asked_for_slots = is_asked_for_slots

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            reply = super().read_response(*args, **kwargs)
        except (AskError, TryAgainError, ClusterDownError) as error:
            self._tracker.redirected(error, self.addresses)
            raise
        return self.addresses.topology(reply) if self._is_asked_for_slots else reply


class ObservedNode(ObservedClusterNode, redis.Connection):
    """A connection to a node of a cluster."""


class ObservedNodeTls(ObservedClusterNode, _CancellableTls):
    """A connection to a node of a cluster, with TLS."""


def connection_class_of(*, path: bool, tls: bool, member: bool = False) -> type[Observed]:
    """The class of connections to one server. path: over a Unix socket. member: it is one of several servers."""
    if member:
        return ObservedMemberTls if tls else ObservedMemberTcp
    if path:
        return ObservedUnix
    return ObservedTls if tls else ObservedTcp


def sentinel_connection_class_of(*, tls: bool) -> type[Observed]:
    """The class of connections to a primary that Sentinels know."""
    return ObservedSentinelTls if tls else ObservedSentinel
