"""Subscriptions on the connections of a client, by redis-py's PubSub, for a thread that polls the sockets itself.

`WantedChannels` and `ConnectionsByNode` are shared with the asyncio twin, `async_pubsub`.

This module relies on these facts about redis-py, which tests/common/redis_client/test_pubsub.py checks:
- a PubSub takes a connection from a TCP pool with its first command; its `close` closes and returns the connection;
- the retry policy reopens a connection that is lost while reading; then `on_connect` subscribes to all channels in one
  command, also to channels that were being unsubscribed;
- `parse_response` waits up to its timeout for the first byte of a reply, and again for each further part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeAlias, TypeVar

import redis
from redis.client import PubSub

from common.redis_client.clients import Client
from common.redis_client.cluster import ClusterClient
from common.redis_client.connections.cluster_topology import by_slot
from common.redis_client.error_translation import TARGET_ERRORS

Channel: TypeAlias = tuple[str, bytes]
"""(command that subscribes to it: SUBSCRIBE or SSUBSCRIBE, name)."""

Received: TypeAlias = tuple[str, Channel, Any]
"""(kind, channel, value). kind: MESSAGE, or the word of a confirmation. value: the message, or the number of channels
that the connection is subscribed to now."""

MESSAGE = "message"

SUBSCRIBE, SHARDED = "SUBSCRIBE", "SSUBSCRIBE"
_READ_S = 5.0

_KINDS: dict[bytes, tuple[str, str]] = {
    b"message": (MESSAGE, SUBSCRIBE),
    b"smessage": (MESSAGE, SHARDED),
    b"subscribe": ("subscribe", SUBSCRIBE),
    b"ssubscribe": ("ssubscribe", SHARDED),
    b"unsubscribe": ("unsubscribe", SUBSCRIBE),
    b"sunsubscribe": ("sunsubscribe", SHARDED),
}


def received_of(reply: Any) -> Received | None:
    """The parts of a reply about a channel; None for other replies, such as the reply to PING."""
    kind = _KINDS.get(reply[0])
    if kind is None:
        return None
    word, command = kind
    return word, (command, reply[1]), reply[2]


class WantedChannels:
    """The channels that one connection should have. They may differ from the channels in `pubsub`, to which redis-py
    subscribes again after a reconnect. pubsub: for threads or for asyncio."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub
        self._wanted: set[Channel] = set()

    def __bool__(self) -> bool:
        return bool(self._wanted)

    def __contains__(self, channel: Channel) -> bool:
        return channel in self._wanted

    def __iter__(self) -> Iterator[Channel]:
        return iter(list(self._wanted))

    def add(self, channel: Channel) -> None:
        """Record that the connection should have this channel."""
        self._wanted.add(channel)

    def remove(self, channel: Channel) -> None:
        """Record that the connection should not have this channel any more."""
        self._wanted.discard(channel)

    def forget(self, channel: Channel) -> None:
        """Remove a channel that the connection does not have, so that no reconnect subscribes to it."""
        self._wanted.discard(channel)
        command, name = channel
        (self._pubsub.shard_channels if command == SHARDED else self._pubsub.channels).pop(name, None)

    def surplus(self) -> set[Channel]:
        """Unwanted channels to which redis-py subscribed again after a reconnect."""
        pubsub = self._pubsub
        has = {(SUBSCRIBE, name) for name in pubsub.channels} | {(SHARDED, name) for name in pubsub.shard_channels}
        return has - self._wanted


def count_resubscribe_commands(pubsub: Any) -> int:
    """How many commands a PubSub sends to subscribe to all its channels again."""
    return bool(pubsub.channels) + len(by_slot(pubsub.shard_channels))


C = TypeVar("C")


class ConnectionsByNode(Generic[C]):
    """The subscribed connections of one client. A cluster has one for each node with a subscribed channel; any other
    target has one. make: returns a new connection for (number, pool)."""

    def __init__(self, client: Any, node_pool: Callable[[Any], Any] | None, make: Callable[[int, Any], C]) -> None:
        """Opens nothing. node_pool: the TCP pool of a node of a cluster; None for a client of one server."""
        self._client = client
        self._node_pool = node_pool
        self._make = make
        self._connections: dict[str, C] = {}

    def connection_for(self, channel: Channel) -> C:
        """The connection that a channel belongs to. Raises redis-py's error for a slot without a node."""
        client = self._client
        node = None if self._node_pool is None else client.get_node_from_key(channel[1])
        name = "" if node is None else node.name
        connection = self._connections.get(name)
        if connection is None:
            pool = client.connection_pool if self._node_pool is None else self._node_pool(node)
            connection = self._connections[name] = self._make(len(self._connections), pool)
        return connection

    def is_moved(self, error: Exception) -> bool:
        """Whether an error is a redirection because a slot of this cluster has moved."""
        return self._node_pool is not None and type(error) is redis.exceptions.MovedError

    def __iter__(self) -> Iterator[C]:
        return iter(list(self._connections.values()))


class _ResubscribingPubSub(PubSub):
    """redis-py's PubSub. on_resubscribe: called after a reconnect with the number of commands that subscribe again."""

    def __init__(self, pool: redis.ConnectionPool, on_resubscribe: Callable[[int], None]) -> None:
        super().__init__(pool)
        self._on_resubscribe = on_resubscribe

    def on_connect(self, connection: Any) -> None:
        commands = count_resubscribe_commands(self)
        super().on_connect(connection)
        self._on_resubscribe(commands)

    def _resubscribe_shard_channels(self) -> None:
        # A cluster node refuses a command with channels of several slots; redis-py's cluster client does the same.
        for channels in by_slot(self.shard_channels).values():
            self.ssubscribe(*channels)


class SubscribedConnection:
    """The subscriptions of one connection, for one thread. Its methods raise redis-py's errors."""

    def __init__(self, number: int, pool: redis.ConnectionPool, on_resubscribe: Callable[[int], None]) -> None:
        """Opens nothing. number: the connection's number among the connections of its client. on_resubscribe: called
        after a reconnect, with the number of commands that subscribed again."""
        self.number = number
        self._on_resubscribe = on_resubscribe
        self._pubsub = _ResubscribingPubSub(pool, self._resubscribed)
        self._wanted = WantedChannels(self._pubsub)

    def subscribe(self, channel: Channel) -> None:
        """Send a subscription to a channel. The confirmation arrives as a reply."""
        self._wanted.add(channel)
        command, name = channel
        (self._pubsub.ssubscribe if command == SHARDED else self._pubsub.subscribe)(name)

    def unsubscribe(self, channel: Channel) -> None:
        """Unsubscribe from a channel. Without a connection, this is done at once."""
        self._wanted.remove(channel)
        if self.fileno() < 0:
            self.forget(channel)
            return
        command, name = channel
        (self._pubsub.sunsubscribe if command == SHARDED else self._pubsub.unsubscribe)(name)  # type: ignore[no-untyped-call]

    def unsubscribe_all(self) -> None:
        """Unsubscribe from all channels."""
        for channel in self._wanted:
            self.unsubscribe(channel)

    def forget(self, channel: Channel) -> None:
        """Do not subscribe to this channel again after a reconnect, because the server refused or ended it."""
        self._wanted.forget(channel)

    def _resubscribed(self, commands: int) -> None:
        self._on_resubscribe(commands)
        for channel in self._wanted.surplus():
            self.unsubscribe(channel)

    @property
    def is_subscribed(self) -> bool:
        """Whether messages may still arrive: True until the server has confirmed all unsubscriptions."""
        return self._pubsub.subscribed and self.fileno() >= 0

    @property
    def is_lost(self) -> bool:
        """Whether the connection is lost but should have channels. Then `receive` tries to reopen it."""
        return bool(self._wanted) and self.fileno() < 0

    def fileno(self) -> int:
        """The socket's file descriptor, for polling; -1 while there is no connection."""
        connection = self._pubsub.connection
        sock = connection and connection._sock
        return sock.fileno() if sock else -1

    def receive(self, at_most: int) -> Iterator[Received]:
        """Replies that have arrived, up to `at_most`, without waiting for more. Reopens a lost connection."""
        pubsub = self._pubsub
        for _ in range(at_most):
            if not self._can_read():
                return
            reply = pubsub.parse_response(block=False, timeout=_READ_S)  # type: ignore[no-untyped-call]
            if reply is None:
                continue  # it was the reply to a health check
            received = received_of(reply)
            if received is None or received[0] is not MESSAGE:
                pubsub.handle_message(reply)  # type: ignore[no-untyped-call]
            if received is not None:
                yield received

    def _can_read(self) -> bool:
        connection: Any = self._pubsub.connection
        if self.fileno() < 0:
            return connection is not None and self.is_lost
        try:
            return bool(connection.can_read(0))
        except TARGET_ERRORS:
            return True  # reading raises the same error, and reopens the connection

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._pubsub.close()


class SubscribedConnections(ConnectionsByNode[SubscribedConnection]):
    """All subscribed connections of one client, for one thread."""

    def __init__(self, client: Client, on_resubscribe: Callable[[int], None]) -> None:
        """Opens nothing. on_resubscribe: see `SubscribedConnection`."""
        self._cluster: Any = client if isinstance(client, ClusterClient) else None

        def node_pool(node: Any) -> redis.ConnectionPool:
            pool: redis.ConnectionPool = self._cluster.get_redis_connection(node).connection_pool
            return pool

        def make(number: int, pool: redis.ConnectionPool) -> SubscribedConnection:
            return SubscribedConnection(number, pool, on_resubscribe)

        super().__init__(client, None if self._cluster is None else node_pool, make)

    def redirected(self, error: Exception) -> bool:
        """Follow an error if it is a redirection: `of` then returns the connection of the slot's new node. Returns
        whether the error is a redirection."""
        if not self.is_moved(error):
            return False
        self._cluster.nodes_manager.move_slot(error)
        return True
