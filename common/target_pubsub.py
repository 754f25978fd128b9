"""Subscriptions on one connection of a client: what redis-py's PubSub does, for a single thread that waits by itself.

Facts about redis-py that this stands on, held by tests/common/test_target_pubsub.py:
- a PubSub takes one connection from its client's TCP pool with its first command, and closes it when it is closed;
- a connection that is lost while reading is opened again by the retry policy, and all its channels are subscribed
  anew, in one command; `register_connect_callback` tells of that afterwards;
- `parse_response` with a timeout waits no longer for a reply, but may wait in the middle of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

from common.target import TARGET_ERRORS, Client

Received: TypeAlias = tuple[str, bytes, bytes | int]
"""(kind, channel, what). kind: "message", or the confirmation "subscribe" or "unsubscribe"; what: the message, or to
how many channels the connection is subscribed now."""

_MESSAGES = {b"message": "message"}
_READ_S = 5.0
"""How long the rest of a reply may take to come, once it has begun."""


class Line:
    """The subscriptions of one connection. One thread alone uses it. Its methods raise what redis-py does."""

    def __init__(self, client: Client, on_replay: Callable[[int], None]) -> None:
        """Opens nothing. on_replay: told, after a reconnect, how many commands subscribed to all channels anew."""
        self._pubsub = client.pubsub()
        self._on_replay = on_replay
        self._is_watched = False
        self._wanted: set[bytes] = set()

    def subscribe(self, channel: bytes) -> None:
        """Ask for a channel; the confirmation will be among what is received."""
        self._wanted.add(channel)
        self._pubsub.subscribe(channel)
        if not self._is_watched:
            self._is_watched = True
            # The first connect lies behind us; redis-py's own callback comes before ours.
            self._pubsub.connection.register_connect_callback(self._reconnected)

    def unsubscribe(self, channels: Iterable[bytes]) -> None:
        """Give up channels."""
        if leaving := [channel for channel in channels if channel in self._wanted]:
            self._wanted.difference_update(leaving)
            self._pubsub.unsubscribe(*leaving)

    def forget(self, channel: bytes) -> None:
        """The server refused this channel: do not ask for it again after a reconnect."""
        self._wanted.discard(channel)
        self._pubsub.channels.pop(channel, None)

    def _reconnected(self, _connection: object) -> None:
        subscribed = self._pubsub.channels.keys()
        if subscribed:
            self._on_replay(1)
        # redis-py has forgotten by then which of them were being given up.
        if unwanted := subscribed - self._wanted:
            self._pubsub.unsubscribe(*unwanted)

    @property
    def channels(self) -> set[bytes]:
        """Those that were asked for, and not given up since."""
        return self._wanted

    @property
    def is_subscribed(self) -> bool:
        """Whether the server may still send messages: until it has confirmed that all channels were given up."""
        return bool(self._pubsub.subscribed)

    def fileno(self) -> int:
        """What to poll; -1 while there is no connection."""
        connection = self._pubsub.connection
        sock = connection and connection._sock  # noqa: SLF001 - it has no public name
        return sock.fileno() if sock else -1

    def receive(self, at_most: int) -> Iterator[Received]:
        """What has come, up to so many replies, without waiting for more. Connects anew where a connection was lost."""
        pubsub = self._pubsub
        for _ in range(at_most):
            if not self._has_something():
                return
            reply = pubsub.parse_response(block=False, timeout=_READ_S)
            if reply is None:
                continue  # of a health check
            kind = _MESSAGES.get(reply[0])
            if kind is None:
                pubsub.handle_message(reply)
                kind = reply[0].decode()
            yield kind, reply[1], reply[2]

    def _has_something(self) -> bool:
        connection = self._pubsub.connection
        if self.fileno() < 0:
            return connection is not None and bool(self._wanted)
        try:
            return bool(connection.can_read(0))
        except TARGET_ERRORS:
            return True  # reading meets the same error, and connects anew

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._pubsub.connection is not None:
            self._pubsub.connection.deregister_connect_callback(self._reconnected)
        self._pubsub.close()


class Lines:
    """The connections of one client that have subscriptions. One thread alone uses them."""

    def __init__(self, client: Client, on_replay: Callable[[int], None]) -> None:
        self._client = client
        self._on_replay = on_replay
        self._lines: list[Line] = []

    def of(self, channel: bytes) -> Line:
        """The connection to which a channel belongs."""
        if not self._lines:
            self._lines.append(Line(self._client, self._on_replay))
        return self._lines[0]

    def __iter__(self) -> Iterator[Line]:
        """All of them, in the order in which they were first asked for."""
        return iter(self._lines)
