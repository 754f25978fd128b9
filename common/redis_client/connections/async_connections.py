"""redis.asyncio's connections, observed like their twins in `thread_connections`, at no cost per operation."""

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
from common.plan.schema.address_map import AddressMap
from common.redis_client.connections.cluster_topology import AnnouncedAddresses
from common.redis_client.connections.connection_tracking import ConnectionEvents, ConnectionTracker, checked_handshake
from common.redis_client.connections.maintenance import report_notifications

_LOST = (redis.ConnectionError, redis.TimeoutError, OSError)


class AsyncObserved(AbstractConnection):
    """A connection that reports its events. Its waits end when its task is cancelled. After cancellation of the run it
    does not connect. is_announced, IS_MEMBER: see `ConnectionTracker`."""

    IS_MEMBER = False

    def __init__(
        self, *, events: ConnectionEvents, cancellation: Cancellation, is_announced: bool = False, **arguments: Any
    ) -> None:
        self._tracker = ConnectionTracker(events, cancellation, is_announced=is_announced, is_member=self.IS_MEMBER)
        super().__init__(**arguments)
        report_notifications(self, self._tracker.notified)

    async def _connect(self) -> None:
        self._tracker.socket_begins()
        try:
            await super()._connect()  # type: ignore[safe-super, no-untyped-call]
        except OSError as error:  # a timeout among them
            self._tracker.socket_failed(error)
            raise
        self._tracker.socket_opened(with_tls=isinstance(self, SSLConnection))

    async def on_connect_check_health(self, check_health: bool = True) -> None:
        with checked_handshake(self):
            await super().on_connect_check_health(check_health=check_health)

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        # Not in `on_connect_check_health`, because a cluster client adds its own function to the handshake.
        if self.is_connected:
            return
        # Not in `_connect`, where redis-py would convert the error into a ConnectionError and retry.
        self._tracker.cancellation.check()
        self._tracker.begin(self)
        try:
            await super().connect_check_health(check_health=check_health, retry_socket_connect=retry_socket_connect)
        except redis.RedisError as error:
            self._tracker.failed(error, self)
            raise
        self._tracker.opened()

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        self._tracker.closing(sys.exc_info()[1], self._is_loss)
        await super().disconnect(*args, **kwargs)

    def _is_loss(self, error: BaseException) -> bool:
        # After a change of the topology, redis-py replaces connections, perhaps while another error is handled.
        return not self._should_reconnect or isinstance(error, _LOST)


class _NamedTls(SSLConnection):
    """A TLS connection. server_name: the name to request (SNI) and to expect in the certificate; None for the host."""

    def __init__(self, *, server_name: str | None = None, **arguments: Any) -> None:
        self._server_name = server_name
        super().__init__(**arguments)

    def _connection_arguments(self) -> Mapping[str, Any]:
        arguments = super()._connection_arguments()
        # Certificates do not contain zones.
        address, zoned, _ = self.host.partition("%")
        name = self._server_name or (address if zoned else None)
        return {**arguments, "server_hostname": name} if name else arguments


class AsyncObservedTcp(AsyncObserved, redis.asyncio.Connection):
    """A connection to a server's port."""


class AsyncObservedTls(AsyncObserved, _NamedTls):
    """A connection to a server's TLS port."""


class AsyncObservedUnix(AsyncObserved, UnixDomainSocketConnection):
    """A connection to a Unix socket."""

    async def on_connect(self) -> None:
        """Does nothing, because redis-py would do the handshake twice on a Unix socket."""


class AsyncObservedMember(AsyncObserved):
    """A connection to one of several servers of a target."""

    IS_MEMBER = True

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        self._tracker.sending()
        await super().send_packed_command(command, check_health)


class AsyncObservedMemberTcp(AsyncObservedMember, redis.asyncio.Connection):
    """A connection to one of several servers' ports."""


class AsyncObservedMemberTls(AsyncObservedMember, _NamedTls):
    """A connection to one of several servers' TLS ports."""


class AsyncObservedSentinel(AsyncObservedMember, SentinelManagedConnection):
    """A connection to the primary that Sentinels name."""


class AsyncObservedSentinelTls(AsyncObservedMember, _NamedTls, SentinelManagedSSLConnection):
    """A connection to the primary that Sentinels name, with TLS."""


class AsyncObservedClusterNode(AsyncObserved):
    """A connection to a node of a cluster, which may redirect commands. remap: for the addresses that the node
    announces."""

    IS_MEMBER = True

    def __init__(self, *, remap: AddressMap, **arguments: Any) -> None:
        self._remap = remap
        self._is_asked_for_slots = False
        super().__init__(is_announced=True, **arguments)
        self._tracker.located(self)
        self._asking_for_slots = self.pack_command("CLUSTER SLOTS")

    @property
    def addresses(self) -> AnnouncedAddresses:
        """Corrects the addresses that this node announces."""
        return AnnouncedAddresses(self.host, self._remap)

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        is_asked_for_slots = command == self._asking_for_slots
        if not is_asked_for_slots:
            self._tracker.sending()
        await super().send_packed_command(command, check_health)
        # After the call, because the call may send the commands of a handshake or health check too.
        self._is_asked_for_slots = is_asked_for_slots

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            reply = await super().read_response(*args, **kwargs)
        except (AskError, TryAgainError, ClusterDownError) as error:
            self._tracker.redirected(error, self.addresses)
            raise
        return self.addresses.topology(reply) if self._is_asked_for_slots else reply


class AsyncObservedNode(AsyncObservedClusterNode, redis.asyncio.Connection):
    """A connection to a node of a cluster."""


class AsyncObservedNodeTls(AsyncObservedClusterNode, _NamedTls):
    """A connection to a node of a cluster, with TLS."""


def async_connection_class_of(*, path: bool, tls: bool, member: bool = False) -> type[AsyncObserved]:
    """The class of connections to one server. path: over a Unix socket. member: it is one of several servers."""
    if member:
        return AsyncObservedMemberTls if tls else AsyncObservedMemberTcp
    if path:
        return AsyncObservedUnix
    return AsyncObservedTls if tls else AsyncObservedTcp


def async_sentinel_connection_class_of(*, tls: bool) -> type[AsyncObserved]:
    """The class of connections to a primary that Sentinels know."""
    return AsyncObservedSentinelTls if tls else AsyncObservedSentinel
