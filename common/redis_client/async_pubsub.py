"""Subscriptions on the connections of an asyncio client: the twin of `pubsub`. A task runs each connection.

This module relies on these facts about redis.asyncio, which tests/common/redis_client/test_async_pubsub.py checks:
- a PubSub takes a connection from a TCP pool with its first command; its `aclose` closes and returns the connection;
- a cancelled read loses nothing that has arrived, and leaves the connection open if asked to;
- a reopened connection subscribes to all its channels in `on_connect`, also to channels that were being unsubscribed.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import redis
from redis.asyncio.client import PubSub

from common.redis_client.async_clients import AsyncClient
from common.redis_client.async_cluster import AsyncClusterClient, NodePool
from common.redis_client.connections.cluster_topology import by_slot
from common.redis_client.error_translation import TARGET_ERRORS
from common.redis_client.pubsub import (
    MESSAGE,
    SHARDED,
    Channel,
    ConnectionsByNode,
    Received,
    WantedChannels,
    count_resubscribe_commands,
    received_of,
)

_RECONNECT_S = 0.1
"""Pause before a lost connection is tried again."""

_BATCH = 256
"""Replies to read from one connection before other tasks get a turn."""


class _AsyncResubscribingPubSub(PubSub):
    """redis.asyncio's PubSub. on_resubscribe: called after a reconnect with the number of commands that subscribed
    again."""

    connection: Any

    def __init__(self, pool: Any, encoder: Any, on_resubscribe: Callable[[int], None]) -> None:
        super().__init__(pool, encoder=encoder)
        self._on_resubscribe = on_resubscribe

    async def on_connect(self, connection: Any) -> None:
        commands = count_resubscribe_commands(self)
        await super().on_connect(connection)
        self._on_resubscribe(commands)

    async def _resubscribe_shard_channels(self) -> None:
        # A cluster node refuses a command with channels of several slots; redis-py's cluster client does the same.
        for channels in by_slot(self.shard_channels).values():
            await self.ssubscribe(*channels)

    async def read(self) -> Any:
        """The next reply. Waits without a limit. If a call is cancelled, the next call returns the reply. Never
        connects."""
        reply = await self.connection.read_response(timeout=math.inf, disconnect_on_error=False, push_request=True)
        if reply is None:
            raise redis.TimeoutError("the connection timed out")  # for a timeout of TCP itself, redis-py returns None
        return reply

    async def recover(self, error: Exception) -> None:
        """Apply the retry policy to an error that `read` raised: reconnect, or raise the error."""
        errors = [error]

        async def raise_once() -> None:
            if errors:
                raise errors.pop()

        connection = self.connection
        lost = connection._reader
        try:
            await self._execute(connection, raise_once)  # type: ignore[no-untyped-call]
        except (redis.ConnectionError, redis.TimeoutError):
            if connection._reader is lost:  # the policy does not cover this error
                await connection.disconnect(nowait=True)
            raise


class SubscriptionHandler(Protocol):
    """Receives everything that happens on a subscribed connection."""

    def received(self, connection: AsyncSubscribedConnection, received: Received) -> None:
        """A reply has come."""

    def refused(self, connection: AsyncSubscribedConnection, channel: Channel, error: Exception) -> None:
        """A subscription could not be sent, or the server refused it."""

    async def failed(self, connection: AsyncSubscribedConnection, error: Exception) -> None:
        """Reading failed with an error, which may be the reply to a subscription."""

    def resubscribed(self, commands: int) -> None:
        """A connection reconnected, and subscribed to all its channels again with this many commands."""


class AsyncSubscribedConnection:
    """The subscriptions of one connection. Its requests are queued for the task that runs `run`."""

    def __init__(self, number: int, pool: Any, encoder: Any, handler: SubscriptionHandler) -> None:
        """Opens nothing. number: the connection's number among the connections of its client."""
        self.number = number
        self._handler = handler
        self._pubsub: Any = _AsyncResubscribingPubSub(pool, encoder, self._resubscribed)
        self._wanted = WantedChannels(self._pubsub)
        self._unsent: deque[tuple[bool, Channel]] = deque()
        """(whether to unsubscribe, channel)."""
        self._is_ending = False
        self._wait: asyncio.Timeout | None = None

    def subscribe(self, channel: Channel) -> None:
        """Queue a subscription to a channel. The confirmation arrives as a reply."""
        self._wanted.add(channel)
        self._send(False, channel)

    def unsubscribe(self, channel: Channel) -> None:
        """Queue an unsubscription from a channel."""
        self._wanted.remove(channel)
        self._send(True, channel)

    def forget(self, channel: Channel) -> None:
        """Do not subscribe to this channel again after a reconnect, because the server refused or ended it."""
        self._wanted.forget(channel)

    def end(self) -> None:
        """Make `run` unsubscribe from all channels, and return once the server has confirmed it. Idempotent."""
        self._is_ending = True
        self._wake()

    async def run(self) -> None:
        """Send requests, receive replies, and reopen a lost connection, until `end` or until the task is cancelled.
        Closes the connection at the end. Raises CutShort, and errors that are not the target's."""
        try:
            while not self._is_done():
                try:
                    await self._step()
                except TARGET_ERRORS as error:
                    await self._handler.failed(self, error)
        finally:
            await self._pubsub.aclose()

    async def _step(self) -> None:
        while self._unsent:
            await self._send_one(*self._unsent.popleft())
        if self._is_connected:
            try:
                async with self._until_woken():
                    await self._receive()
            except (redis.RedisError, OSError) as error:
                await self._pubsub.recover(error)
        elif not self._is_ending:
            async with self._until_woken():
                await asyncio.sleep(_RECONNECT_S if self._is_lost else math.inf)
            if self._is_lost and not self._unsent:
                await self._pubsub.connect()

    def _is_done(self) -> bool:
        if not self._is_ending:
            return False
        for channel in self._wanted:
            self.unsubscribe(channel)
        return not self._unsent and not (self._pubsub.subscribed and self._is_connected)

    @property
    def _is_connected(self) -> bool:
        connection = self._pubsub.connection
        return connection is not None and connection.is_connected

    @property
    def _is_lost(self) -> bool:
        return bool(self._wanted) and self._pubsub.connection is not None

    def _send(self, is_unsubscribe: bool, channel: Channel) -> None:
        self._unsent.append((is_unsubscribe, channel))
        self._wake()

    async def _send_one(self, is_unsubscribe: bool, channel: Channel) -> None:
        command, name = channel
        pubsub = self._pubsub
        if not is_unsubscribe:
            if channel not in self._wanted:
                return  # the channel has moved to another node meanwhile
            try:
                await (pubsub.ssubscribe if command == SHARDED else pubsub.subscribe)(name)
            except TARGET_ERRORS as error:
                self._handler.refused(self, channel, error)
        elif not self._is_connected:
            self.forget(channel)
        else:
            with suppress(*TARGET_ERRORS):  # the connection is lost, and reopens without this channel
                await (pubsub.sunsubscribe if command == SHARDED else pubsub.unsubscribe)(name)

    async def _receive(self) -> None:
        pubsub = self._pubsub
        while True:
            for _ in range(_BATCH):
                reply = await pubsub.read()
                received = received_of(reply)
                if received is None or received[0] is not MESSAGE:
                    await pubsub.handle_message(reply)
                if received is not None:
                    self._handler.received(self, received)
                if self._is_ending and not pubsub.subscribed:
                    return
            await asyncio.sleep(0)

    @asynccontextmanager
    async def _until_woken(self) -> AsyncIterator[None]:
        # A timeout is the only way to interrupt a read of redis-py without losing a reply.
        try:
            async with asyncio.timeout(None) as self._wait:
                try:
                    yield
                finally:
                    self._wait = None
        except TimeoutError:
            return

    def _wake(self) -> None:
        if self._wait is not None:
            wait, self._wait = self._wait, None
            wait.reschedule(asyncio.get_running_loop().time())

    def _resubscribed(self, commands: int) -> None:
        self._handler.resubscribed(commands)
        for channel in self._wanted.surplus():
            self.unsubscribe(channel)


class AsyncSubscribedConnections(ConnectionsByNode[AsyncSubscribedConnection]):
    """All subscribed connections of one client, for one event loop."""

    def __init__(
        self, client: AsyncClient, handler: SubscriptionHandler, start: Callable[[AsyncSubscribedConnection], None]
    ) -> None:
        """Opens no connection. start: called with each new connection; starts a task that runs it."""
        self._cluster: Any = client if isinstance(client, AsyncClusterClient) else None

        def make(number: int, pool: Any) -> AsyncSubscribedConnection:
            encoder = client.encoder if isinstance(client, AsyncClusterClient) else pool.get_encoder()
            connection = AsyncSubscribedConnection(number, pool, encoder, handler)
            start(connection)
            return connection

        super().__init__(client, None if self._cluster is None else NodePool, make)

    async def redirected(self, error: Exception) -> bool:
        """Follow an error if it is a redirection: `of` then returns the connection of the slot's new node. Returns
        whether the error is a redirection."""
        if not self.is_moved(error):
            return False
        await self._cluster.nodes_manager.move_slot(error)
        return True
