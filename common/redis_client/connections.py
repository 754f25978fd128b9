"""redis-py's connections, observed: each tells of its life and can be cancelled, at no cost per operation."""

from __future__ import annotations

import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import redis
from redis.connection import AbstractConnection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import AskError, ClusterDownError, TryAgainError
from redis.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from common.cancellation import Cancellation, CutShort
from common.clock import monotonic_ns
from common.plan.address_map import AddressMap
from common.plan.target_url import Host
from common.redis_client.announced_addresses import AnnouncedAddresses
from common.redis_client.connection_causes import attempt_cause, drop_cause

REDIRECTS = ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")
"""What a cluster's node answers instead of doing a command. Its commandstats count each as a rejected call."""


class ConnectionEvents(Protocol):
    """Receives all events of the connections of one client, from any thread. Times are monotonic ns.

    which: the connection's number, as `number` returned it.
    """

    def number(self) -> int | None:
        """The number of a new connection; None if connections are not counted one by one."""

    def tried(self, at_ns: int, which: int | None) -> None:
        """An attempt to open the connection begins."""

    def opened(self, at_ns: int, lost_ns: int | None, which: int | None) -> None:
        """Connected, handshake included. lost_ns: when the connection before it was dropped; None for a first one."""

    def attempt_failed(self, at_ns: int, cause: str, which: int | None) -> None:
        """A connect or its handshake failed. cause: see `attempt_cause`."""

    def dropped(self, at_ns: int, cause: str, which: int | None) -> None:
        """An open connection was lost unexpectedly. cause: see `drop_cause`."""

    def closed(self, at_ns: int, which: int | None) -> None:
        """We closed an open connection."""

    def retried(self, at_ns: int) -> None:
        """The retry policy is about to try a command or a connect again."""

    def redirected(self, at_ns: int, kind: str) -> None:
        """A node of a cluster did not do a command, but answered with one of REDIRECTS."""

    def topology_refreshed(self, at_ns: int) -> None:
        """A cluster's client changed its mind on which node has which slots: it was redirected, or read it all anew."""


class Unobserved:
    """ConnectionEvents that nobody wants to hear of."""

    def number(self) -> int | None: ...
    def tried(self, at_ns: int, which: int | None) -> None: ...
    def opened(self, at_ns: int, lost_ns: int | None, which: int | None) -> None: ...
    def attempt_failed(self, at_ns: int, cause: str, which: int | None) -> None: ...
    def dropped(self, at_ns: int, cause: str, which: int | None) -> None: ...
    def closed(self, at_ns: int, which: int | None) -> None: ...
    def retried(self, at_ns: int) -> None: ...
    def redirected(self, at_ns: int, kind: str) -> None: ...
    def topology_refreshed(self, at_ns: int) -> None: ...


@contextmanager
def checked_handshake(connection: Any) -> Iterator[None]:
    """A handshake with a server that may be of any kind. An error of redis-py gets `handshake_step`: the command that
    failed, such as ("CLIENT", "SETNAME")."""
    sent: list[tuple[str, ...]] = [("", "")]
    send = connection.send_command

    def noted(*arguments: Any, **options: Any) -> Any:
        sent.append(tuple(map(str, arguments[:2])))
        return send(*arguments, **options)

    # Only during the handshake, so that commands of the load have no extra cost.
    connection.send_command = noted
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


class Wary(AbstractConnection):
    """A redis-py connection whose handshake may meet any kind of server."""

    def on_connect_check_health(self, check_health: bool = True) -> None:
        with checked_handshake(self):
            super().on_connect_check_health(check_health=check_health)


class Named(SSLConnection):
    """A TLS connection that asks for a server name of its own choice (SNI), and expects it in the certificate."""

    def __init__(self, *, server_name: str | None = None, **arguments: Any) -> None:
        self._server_name = server_name
        super().__init__(**arguments)

    def _wrap_socket_with_ssl(self, sock: socket.socket) -> Any:
        # redis-py checks the certificate for the host that it connects to. No certificate has a zone.
        host, self._host = self._host, self._server_name or self._host.partition("%")[0]
        try:
            return super()._wrap_socket_with_ssl(sock)  # type: ignore[no-untyped-call]
        finally:
            self._host = host


class Observed(Wary):
    """Reports its events, and ends when the run is cancelled. is_announced: a cluster or Sentinels announced its
    address; it is not in the plan."""

    def __init__(
        self, *, events: ConnectionEvents, cancellation: Cancellation, is_announced: bool = False, **arguments: Any
    ) -> None:
        self._events = events
        self._which = events.number()
        self._cancellation = cancellation
        self._is_announced = is_announced
        self._is_up = False
        self._has_socket = False
        self._lost_ns: int | None = None
        super().__init__(**arguments)

    def _connect(self) -> socket.socket:
        self._cancellation.check()
        try:
            sock: socket.socket = super()._connect()  # type: ignore[safe-super, no-untyped-call]
        except OSError as error:
            self._events.attempt_failed(monotonic_ns(), attempt_cause(error), self._which)
            raise
        try:
            self._cancellation.watch(sock)
        except CutShort:
            sock.close()
            raise
        self._has_socket = True
        return sock

    def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        # Here and not where the handshake is made: a cluster's client adds to that, by a function of its own.
        if self._sock:
            return
        self._has_socket = False
        self._events.tried(monotonic_ns(), self._which)
        try:
            super().connect_check_health(check_health=check_health, retry_socket_connect=retry_socket_connect)
        except redis.RedisError as error:
            if self._is_announced:
                error.announced = Host(self.host, self.port)  # type: ignore[attr-defined]
            if self._has_socket:
                if not self._cancellation.is_cancelled:
                    self._events.attempt_failed(monotonic_ns(), attempt_cause(error), self._which)
                # It may reach the caller of a command, who must not take it for a reply to that.
                error.in_handshake = True  # type: ignore[attr-defined]
            raise
        now_ns = monotonic_ns()
        self._events.opened(now_ns, self._lost_ns, self._which)
        self._is_up = True
        self._lost_ns = None

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        if self._is_up:
            self._is_up = False
            error = sys.exc_info()[1]
            if error is None or self._cancellation.is_cancelled or not self._is_of_ours(error):
                self._events.closed(monotonic_ns(), self._which)
            else:
                self._lost_ns = monotonic_ns()
                self._events.dropped(self._lost_ns, drop_cause(error), self._which)
        super().disconnect(*args, **kwargs)  # type: ignore[no-untyped-call]

    def lose(self, error: Exception) -> None:
        """Somebody who reads the socket himself has found the connection lost, by this error."""
        try:
            raise error
        except type(error):
            self.disconnect()

    def _is_of_ours(self, error: BaseException) -> bool:
        # When redis-py loses one connection to a cluster or a primary, or is redirected, it closes others on purpose,
        # and does so while it handles the loss: theirs is an error that did not come by them, or is no loss at all.
        if getattr(error, "status_code", None) in REDIRECTS:
            return False
        return any(
            self is frame.f_locals.get("connection" if frame.f_code.co_name == "get_connection" else "self")
            for frame, _ in traceback.walk_tb(error.__traceback__)
        )


class Held(Named):
    """A TLS connection whose handshake ends when the run is cancelled, too."""

    _cancellation: Cancellation

    def _wrap_socket_with_ssl(self, sock: socket.socket) -> Any:
        # Python's ssl takes the socket away from us for as long as the handshake lasts; its twin ends with it.
        with sock.dup() as twin:
            try:
                self._cancellation.watch(twin)
            except CutShort:
                # redis-py closes it only where the target is at fault.
                sock.close()
                raise
            return super()._wrap_socket_with_ssl(sock)


class ObservedTcp(Observed, redis.Connection):
    """To a server's port."""


class ObservedTls(Observed, Held):
    """To a server's TLS port."""


class ObservedUnix(Observed, UnixDomainSocketConnection):
    """To a socket of this machine."""


class ObservedSentinel(Observed, SentinelManagedConnection):
    """To whichever server Sentinels say is the primary."""


class ObservedSentinelTls(Observed, Held, SentinelManagedSSLConnection):
    """The same, with TLS."""


class WithRedirects(Observed):
    """A connection to a cluster node, which may redirect us. remap: for the addresses that the node announces."""

    def __init__(self, *, remap: AddressMap, **arguments: Any) -> None:
        self._remap = remap
        self._is_asked_for_slots = False
        super().__init__(is_announced=True, **arguments)
        self._asking_for_slots: Any = self.pack_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]

    @property
    def announced(self) -> AnnouncedAddresses:
        """Corrects the addresses that this node announces."""
        return AnnouncedAddresses(self.host, self._remap)

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        super().send_packed_command(command, check_health=check_health)  # type: ignore[no-untyped-call]
        # After the call, because in it the handshake and the health check send commands too.
        self._is_asked_for_slots = command == self._asking_for_slots

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            reply = super().read_response(*args, **kwargs)
        except (AskError, TryAgainError, ClusterDownError) as error:  # a MOVED is an AskError, too
            if isinstance(error, AskError):
                self.announced.correct(error)
            if error.status_code in REDIRECTS:
                self._events.redirected(monotonic_ns(), error.status_code)
            raise
        return self.announced.topology(reply) if self._is_asked_for_slots else reply


class ObservedNode(WithRedirects, redis.Connection):
    """To a node of a cluster."""


class ObservedNodeTls(WithRedirects, Held):
    """To a node of a cluster, with TLS."""


def connection_class_of(*, path: bool, tls: bool) -> type[Observed]:
    """The class of connections to one server. path: by a socket of this machine."""
    if path:
        return ObservedUnix
    return ObservedTls if tls else ObservedTcp


def sentinel_connection_class_of(*, tls: bool) -> type[Observed]:
    """The class of connections to a primary that Sentinels know."""
    return ObservedSentinelTls if tls else ObservedSentinel
