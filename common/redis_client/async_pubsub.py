"""Subscriptions on the connections of a client of redis.asyncio; each connection is owned by one task that runs it.

Facts about redis.asyncio that this stands on, held by tests/common/redis_client/test_async_pubsub.py:
- a PubSub takes one connection from a TCP pool with its first command, and gives it back closed when it is closed;
- reading that is cancelled loses nothing of what has come, and leaves the connection open if it is told so;
- a connection that is opened anew subscribes to all its channels in `on_connect`, and forgets which of them were being
  given up.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

import redis
from redis.asyncio.client import PubSub

from common.redis_client.async_clients import AsyncClient
from common.redis_client.async_cluster import AsyncClusterClient, NodePool
from common.redis_client.error_translation import TARGET_ERRORS
from common.redis_client.pubsub import MESSAGE, SHARDED, Channel, Received, by_slot, received_of, subscribed_by

_AGAIN_S = 0.1
"""A connection that could not be opened again is tried once more after so long."""

_TURN = 256
"""Replies read in a row, before others have their turn."""


class _PubSub(PubSub):
    """redis-py's, which tells when it has subscribed anew, and by how many commands."""

    connection: Any

    def __init__(self, pool: Any, encoder: Any, on_replay: Callable[[int], None]) -> None:
        super().__init__(pool, encoder=encoder)
        self._on_replay = on_replay

    async def on_connect(self, connection: Any) -> None:
        commands = bool(self.channels) + len(by_slot(self.shard_channels))
        await super().on_connect(connection)
        self._on_replay(commands)

    async def _resubscribe_shard_channels(self) -> None:
        # A cluster's node refuses a command with channels of several slots; redis-py's cluster client does the same.
        for channels in by_slot(self.shard_channels).values():
            await self.ssubscribe(*channels)

    async def read(self) -> Any:
        """The next reply, whenever it comes. May be cancelled: then the next call has it. Never connects."""
        reply = await self.connection.read_response(timeout=math.inf, disconnect_on_error=False, push_request=True)
        if reply is None:
            raise redis.TimeoutError("the connection timed out")  # by TCP: redis-py makes nothing of it
        return reply

    async def recover(self, error: Exception) -> None:
        """Do what the retry policy says of an error that `read` raised: connect anew, or raise it."""
        errors = [error]

        async def again() -> None:
            if errors:
                raise errors.pop()

        connection = self.connection
        lost = connection._reader
        try:
            await self._execute(connection, again)  # type: ignore[no-untyped-call]
        except (redis.ConnectionError, redis.TimeoutError):
            if connection._reader is lost:  # the policy has no say in it
                await connection.disconnect(nowait=True)
            raise


class Owner(Protocol):
    """Hears of all that happens on a line, as it happens."""

    def received(self, line: AsyncLine, received: Received) -> None:
        """Something came."""

    def refused(self, line: AsyncLine, channel: Channel, error: Exception) -> None:
        """A channel could not be asked for."""

    async def failed(self, line: AsyncLine, error: Exception) -> None:
        """Reading met an error, which may be the reply to a subscription."""

    def replayed(self, commands: int) -> None:
        """After a reconnect, so many commands subscribed to all channels anew."""


class AsyncLine:
    """The subscriptions of one connection. What is asked of it is done, in turn, by the one task that runs `run`."""

    def __init__(self, number: int, pool: Any, encoder: Any, owner: Owner) -> None:
        """Opens nothing."""
        self.number = number
        self._owner = owner
        self._pubsub: Any = _PubSub(pool, encoder, self._replayed)
        self._wanted: set[Channel] = set()
        self._unsent: deque[tuple[bool, Channel]] = deque()
        """(whether it is to be given up, the channel)."""
        self._is_ending = False
        self._nap: asyncio.Timeout | None = None

    def subscribe(self, channel: Channel) -> None:
        """Ask for a channel; the confirmation will be among what is received."""
        self._wanted.add(channel)
        self._send(False, channel)

    def unsubscribe(self, channel: Channel) -> None:
        """Give up a channel."""
        self._wanted.discard(channel)
        self._send(True, channel)

    def forget(self, channel: Channel) -> None:
        """The server refused this channel, or took it away: do not ask for it again after a reconnect."""
        self._wanted.discard(channel)
        command, name = channel
        (self._pubsub.shard_channels if command == SHARDED else self._pubsub.channels).pop(name, None)

    def end(self) -> None:
        """Have `run` give up all channels, and return once the server has confirmed that. Idempotent."""
        self._is_ending = True
        self._wake()

    async def run(self) -> None:
        """Send what is asked, receive what comes, connect anew where the connection was lost. Ends when it was told to,
        and when it is cancelled; the connection is closed then. Raises CutShort, and what never should happen."""
        try:
            while not self._is_done():
                try:
                    await self._go_on()
                except TARGET_ERRORS as error:
                    await self._owner.failed(self, error)
        finally:
            await self._pubsub.aclose()

    async def _go_on(self) -> None:
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
                await asyncio.sleep(_AGAIN_S if self._is_lost else math.inf)
            if self._is_lost and not self._unsent:
                await self._pubsub.connect()

    def _is_done(self) -> bool:
        if not self._is_ending:
            return False
        for channel in list(self._wanted):
            self.unsubscribe(channel)
        return not self._unsent and not (self._pubsub.subscribed and self._is_connected)

    @property
    def _is_connected(self) -> bool:
        connection = self._pubsub.connection
        return connection is not None and connection.is_connected

    @property
    def _is_lost(self) -> bool:
        return bool(self._wanted) and self._pubsub.connection is not None

    def _send(self, is_given_up: bool, channel: Channel) -> None:
        self._unsent.append((is_given_up, channel))
        self._wake()

    async def _send_one(self, is_given_up: bool, channel: Channel) -> None:
        command, name = channel
        pubsub = self._pubsub
        if not is_given_up:
            if channel not in self._wanted:
                return  # it belongs elsewhere by now
            try:
                await (pubsub.ssubscribe if command == SHARDED else pubsub.subscribe)(name)
            except TARGET_ERRORS as error:
                self._owner.refused(self, channel, error)
        elif not self._is_connected:
            self.forget(channel)
        else:
            with suppress(*TARGET_ERRORS):  # it does not come back with the connection
                await (pubsub.sunsubscribe if command == SHARDED else pubsub.unsubscribe)(name)

    async def _receive(self) -> None:
        pubsub = self._pubsub
        while True:
            for _ in range(_TURN):
                reply = await pubsub.read()
                received = received_of(reply)
                if received is None or received[0] is not MESSAGE:
                    await pubsub.handle_message(reply)
                if received is not None:
                    self._owner.received(self, received)
                if self._is_ending and not pubsub.subscribed:
                    return
            await asyncio.sleep(0)

    @asynccontextmanager
    async def _until_woken(self) -> AsyncIterator[None]:
        # Redis-py reads no other way with a timeout of its own; nothing that has come is lost by it.
        try:
            async with asyncio.timeout(None) as self._nap:
                try:
                    yield
                finally:
                    self._nap = None
        except TimeoutError:
            return

    def _wake(self) -> None:
        if self._nap is not None:
            nap, self._nap = self._nap, None
            nap.reschedule(asyncio.get_running_loop().time())

    def _replayed(self, commands: int) -> None:
        self._owner.replayed(commands)
        for channel in subscribed_by(self._pubsub) - self._wanted:
            self.unsubscribe(channel)


class AsyncLines:
    """The connections of one client that have subscriptions: one, or one for each node of a cluster that has a channel
    of ours."""

    def __init__(self, client: AsyncClient, owner: Owner, start: Callable[[AsyncLine], None]) -> None:
        """Opens nothing. start: has a new line run."""
        self._client = client
        self._owner = owner
        self._start = start
        self._lines: dict[str, AsyncLine] = {}

    def of(self, channel: Channel) -> AsyncLine:
        """The connection to which a channel belongs. Raises what redis-py does for a slot that no node has."""
        name, pool = self._place_of(channel)
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = AsyncLine(len(self._lines), pool, self._encoder(), self._owner)
            self._start(line)
        return line

    def _encoder(self) -> Any:
        client: Any = self._client
        return client.encoder if isinstance(client, AsyncClusterClient) else client.connection_pool.get_encoder()

    def _place_of(self, channel: Channel) -> tuple[str, Any]:
        client: Any = self._client
        if not isinstance(client, AsyncClusterClient):
            return "", client.connection_pool
        node: Any = client.get_node_from_key(channel[1])  # type: ignore[arg-type]
        return node.name, NodePool(node)

    async def redirected(self, error: Exception) -> bool:
        """Whether an error says which node has the slot now; from now on its channels belong there."""
        if not isinstance(self._client, AsyncClusterClient) or type(error) is not redis.exceptions.MovedError:
            return False
        await self._client.nodes_manager.move_slot(error)
        return True

    def __iter__(self) -> Iterator[AsyncLine]:
        return iter(list(self._lines.values()))
