"""Subscriptions on the connections of a client: what redis-py's PubSub does, for a thread that waits by itself.

Facts about redis-py that this stands on, held by tests/common/redis_client/test_pubsub.py:
- a PubSub takes one connection from a TCP pool with its first command, and gives it back closed when it is closed;
- a connection that is lost while reading is opened again by the retry policy; then `on_connect` subscribes to all its
  channels anew, in one command, and forgets which of them were being given up;
- `parse_response` with a timeout waits no longer for a reply to begin, and no longer for it to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import redis
from redis.client import PubSub
from redis.cluster import ClusterNode
from redis.crc import key_slot

from common.redis_client.clients import Client
from common.redis_client.clusters import ClusterClient
from common.redis_client.error_translation import TARGET_ERRORS

Channel: TypeAlias = tuple[str, bytes]
"""(the command that subscribes to it, SUBSCRIBE or SSUBSCRIBE; its name)."""

Received: TypeAlias = tuple[str, Channel, Any]
"""(kind, channel, what). kind: MESSAGE, or the word of a confirmation; what: the message, or to how many channels the
connection is subscribed now."""

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
    """What a reply says; None of one that is about no channel of ours, such as that to a PING."""
    kind = _KINDS.get(reply[0])
    if kind is None:
        return None
    word, command = kind
    return word, (command, reply[1]), reply[2]


def by_slot(channels: Iterable[bytes]) -> dict[int, list[bytes]]:
    """Names of sharded channels by the slot that they are in."""
    slots: dict[int, list[bytes]] = {}
    for channel in channels:
        slots.setdefault(key_slot(channel), []).append(channel)
    return slots


def subscribed_by(pubsub: Any) -> set[Channel]:
    """All channels of a PubSub of redis-py's, of whatever driver."""
    return {(SUBSCRIBE, name) for name in pubsub.channels} | {(SHARDED, name) for name in pubsub.shard_channels}


class _PubSub(PubSub):
    """redis-py's, which tells when it has subscribed anew, and by how many commands."""

    def __init__(self, pool: redis.ConnectionPool, on_replay: Callable[[int], None]) -> None:
        super().__init__(pool)
        self._on_replay = on_replay

    def on_connect(self, connection: Any) -> None:
        commands = bool(self.channels) + len(by_slot(self.shard_channels))
        super().on_connect(connection)
        self._on_replay(commands)

    def _resubscribe_shard_channels(self) -> None:
        # A cluster's node refuses a command with channels of several slots; redis-py's cluster client does the same.
        for channels in by_slot(self.shard_channels).values():
            self.ssubscribe(*channels)


class Line:
    """The subscriptions of one connection. One thread alone uses it. Its methods raise what redis-py does."""

    def __init__(self, pool: redis.ConnectionPool, on_replay: Callable[[int], None]) -> None:
        """Opens nothing. on_replay: told, after a reconnect, how many commands subscribed to all channels anew."""
        self._on_replay = on_replay
        self._pubsub = _PubSub(pool, self._replayed)
        self._wanted: set[Channel] = set()

    def subscribe(self, channel: Channel) -> None:
        """Ask for a channel; the confirmation will be among what is received."""
        self._wanted.add(channel)
        command, name = channel
        (self._pubsub.ssubscribe if command == SHARDED else self._pubsub.subscribe)(name)

    def unsubscribe(self, channel: Channel) -> None:
        """Give up a channel; without a connection, at once."""
        self._wanted.discard(channel)
        if self.fileno() < 0:
            self.forget(channel)
            return
        command, name = channel
        (self._pubsub.sunsubscribe if command == SHARDED else self._pubsub.unsubscribe)(name)  # type: ignore[no-untyped-call]

    def unsubscribe_all(self) -> None:
        """Give up all channels."""
        for channel in list(self._wanted):
            self.unsubscribe(channel)

    def forget(self, channel: Channel) -> None:
        """The server refused this channel, or took it away: do not ask for it again after a reconnect."""
        self._wanted.discard(channel)
        command, name = channel
        (self._pubsub.shard_channels if command == SHARDED else self._pubsub.channels).pop(name, None)

    def _replayed(self, commands: int) -> None:
        self._on_replay(commands)
        for channel in subscribed_by(self._pubsub) - self._wanted:
            self.unsubscribe(channel)

    @property
    def is_subscribed(self) -> bool:
        """Whether messages may still come: until the server has confirmed that all channels were given up."""
        return self._pubsub.subscribed and self.fileno() >= 0

    @property
    def is_lost(self) -> bool:
        """Whether it has channels but no connection: then `receive` tries to open it anew."""
        return bool(self._wanted) and self.fileno() < 0

    def fileno(self) -> int:
        """What to poll; -1 while there is no connection."""
        connection = self._pubsub.connection
        sock = connection and connection._sock
        return sock.fileno() if sock else -1

    def receive(self, at_most: int) -> Iterator[Received]:
        """What has come, up to so many replies, without waiting for more. Connects anew where a connection was lost."""
        pubsub = self._pubsub
        for _ in range(at_most):
            if not self._has_something():
                return
            reply = pubsub.parse_response(block=False, timeout=_READ_S)  # type: ignore[no-untyped-call]
            if reply is None:
                continue  # of a health check
            received = received_of(reply)
            if received is None or received[0] is not MESSAGE:
                pubsub.handle_message(reply)  # type: ignore[no-untyped-call]
            if received is not None:
                yield received

    def _has_something(self) -> bool:
        connection: Any = self._pubsub.connection
        if self.fileno() < 0:
            return connection is not None and self.is_lost
        try:
            return bool(connection.can_read(0))
        except TARGET_ERRORS:
            return True  # reading meets the same error, and connects anew

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._pubsub.close()


class Lines:
    """The connections of one client that have subscriptions: one, or one for each node of a cluster that has a channel
    of ours. One thread alone uses them."""

    def __init__(self, client: Client, on_replay: Callable[[int], None]) -> None:
        """Opens nothing. on_replay: as that of a `Line`."""
        self._client = client
        self._on_replay = on_replay
        self._lines: dict[str, Line] = {}

    def of(self, channel: Channel) -> Line:
        """The connection to which a channel belongs. Raises what redis-py does for a slot that no node has."""
        name, pool = self._place_of(channel)
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = Line(pool, self._on_replay)
        return line

    def _place_of(self, channel: Channel) -> tuple[str, redis.ConnectionPool]:
        client = self._client
        if not isinstance(client, ClusterClient):
            return "", client.connection_pool
        node: ClusterNode = client.get_node_from_key(channel[1])  # type: ignore[no-untyped-call]
        return node.name, client.get_redis_connection(node).connection_pool

    def redirected(self, error: Exception) -> bool:
        """Whether an error says which node has the slot now; from now on its channels belong there."""
        if not isinstance(self._client, ClusterClient) or type(error) is not redis.exceptions.MovedError:
            return False
        self._client.nodes_manager.move_slot(error)
        return True

    def __iter__(self) -> Iterator[Line]:
        return iter(list(self._lines.values()))
