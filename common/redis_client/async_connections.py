"""redis.asyncio's connections, observed as those of threads are: each tells of its life, at no cost per operation."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.connection import AbstractConnection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection
from redis.exceptions import AskError, ClusterDownError, TryAgainError

from common.cancellation import Cancellation
from common.clock import monotonic_ns
from common.plan.address_map import AddressMap
from common.plan.target_url import Host
from common.redis_client.announced_addresses import AnnouncedAddresses
from common.redis_client.connection_causes import attempt_cause, drop_cause
from common.redis_client.connections import REDIRECTS, ConnectionEvents, checked_handshake


class AsyncWary(AbstractConnection):
    """A connection whose handshake may meet any kind of server."""

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        with checked_handshake(self):
            await super().on_connect_check_health(check_health=check_health)


class AsyncNamed(SSLConnection):
    """A TLS connection that asks for a server name of its own choice (SNI), and expects it in the certificate."""

    def __init__(self, *, server_name: str | None = None, **arguments: Any) -> None:
        self._server_name = server_name
        super().__init__(**arguments)

    def _connection_arguments(self) -> Mapping[str, Any]:
        arguments = super()._connection_arguments()
        # No certificate has a zone.
        address, zoned, _ = self.host.partition("%")
        name = self._server_name or (address if zoned else None)
        return {**arguments, "server_hostname": name} if name else arguments


class AsyncObserved(AsyncWary):
    """Tells of its life. What it waits for ends when its task is cancelled; nothing begins after cancellation."""

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

    async def _connect(self) -> None:
        try:
            await super()._connect()  # type: ignore[safe-super, no-untyped-call]
        except OSError as error:  # a timeout among them
            self._events.attempt_failed(monotonic_ns(), attempt_cause(error), self._which)
            raise
        self._has_socket = True

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        # Here and not where the handshake is made: a cluster's client adds to that, by a function of its own.
        if self.is_connected:
            return
        # Here, because redis-py would make a ConnectionError of it, and try again, if `_connect` raised it.
        self._cancellation.check()
        self._has_socket = False
        self._events.tried(monotonic_ns(), self._which)
        try:
            await super().connect_check_health(check_health=check_health, retry_socket_connect=retry_socket_connect)
        except redis.RedisError as error:
            if self._is_announced:
                error.announced = Host(self.host, self.port)  # type: ignore[attr-defined]
            if self._has_socket:
                if not self._cancellation.is_cancelled:
                    self._events.attempt_failed(monotonic_ns(), attempt_cause(error), self._which)
                # It may reach the caller of a command, who must not take it for a reply to that.
                error.in_handshake = True  # type: ignore[attr-defined]
            raise
        self._events.opened(monotonic_ns(), self._lost_ns, self._which)
        self._is_up = True
        self._lost_ns = None

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        if self._is_up:
            self._is_up = False
            error = sys.exc_info()[1]
            is_renewed = self._should_reconnect and not isinstance(error, _LOST)
            if error is None or self._cancellation.is_cancelled or is_renewed:
                self._events.closed(monotonic_ns(), self._which)
            else:
                self._lost_ns = monotonic_ns()
                self._events.dropped(self._lost_ns, drop_cause(error), self._which)
        await super().disconnect(*args, **kwargs)


_LOST = (redis.ConnectionError, redis.TimeoutError, OSError)
"""A connection that redis-py means to renew, after a change of the topology, may be closed while any other error is on
its way: that is no loss."""


class AsyncObservedTcp(AsyncObserved, redis.asyncio.Connection):
    """To a server's port."""


class AsyncObservedTls(AsyncObserved, AsyncNamed):
    """To a server's TLS port."""


class AsyncObservedUnix(AsyncObserved, UnixDomainSocketConnection):
    """To a socket of this machine."""

    async def on_connect(self) -> None:
        """Nothing: of the two times that redis-py would shake hands over such a socket, the second is enough."""


class AsyncObservedSentinel(AsyncObserved, SentinelManagedConnection):
    """To whichever server Sentinels say is the primary."""


class AsyncObservedSentinelTls(AsyncObserved, AsyncNamed, SentinelManagedSSLConnection):
    """The same, with TLS."""


class AsyncWithRedirects(AsyncObserved):
    """A connection to a cluster node, which may redirect us. remap: for the addresses that the node announces."""

    def __init__(self, *, remap: AddressMap, **arguments: Any) -> None:
        self._remap = remap
        self._is_asked_for_slots = False
        super().__init__(is_announced=True, **arguments)
        self._asking_for_slots = self.pack_command("CLUSTER SLOTS")

    @property
    def announced(self) -> AnnouncedAddresses:
        """Corrects the addresses that this node announces."""
        return AnnouncedAddresses(self.host, self._remap)

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        await super().send_packed_command(command, check_health)
        # After the call, because in it the handshake and the health check send commands too.
        self._is_asked_for_slots = command == self._asking_for_slots

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            reply = await super().read_response(*args, **kwargs)
        except (AskError, TryAgainError, ClusterDownError) as error:  # a MOVED is an AskError, too
            if isinstance(error, AskError):
                self.announced.correct(error)
            if error.status_code in REDIRECTS:
                self._events.redirected(monotonic_ns(), error.status_code)
            raise
        return self.announced.topology(reply) if self._is_asked_for_slots else reply


class AsyncObservedNode(AsyncWithRedirects, redis.asyncio.Connection):
    """To a node of a cluster."""


class AsyncObservedNodeTls(AsyncWithRedirects, AsyncNamed):
    """To a node of a cluster, with TLS."""
