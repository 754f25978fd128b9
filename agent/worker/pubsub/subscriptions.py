"""The channels of one worker: assigns them to connections, and interprets replies. The same for both drivers.

No I/O: the owner of the connections (`thread_subscriber` or `task_subscriber`) reports replies and errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

from agent.worker.metrics.deliveries import DeliveryClassifier, DeliveryEvent, DeliveryRecord, pack_delivery
from common.cancellation import CutShort
from common.clock import monotonic_ns
from common.pubsub_header import HeaderReader
from common.redis_client import TARGET_ERRORS, failure_of
from common.redis_client.pubsub import MESSAGE, Channel, Received

REPLIES_PER_TURN = 256
"""Replies to read from one connection before other connections and requests get a turn."""

_MAX_REDIRECTS = 5
"""How often a cluster may redirect one subscription."""


class SubscribeRequest:
    """A worker's request to subscribe to one channel. `reply` or `error` is set before `wake` is called."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.redirects_left = _MAX_REDIRECTS
        self.reply: list[Any] = []
        self.error: Exception | None = None

    def end(self, error: Exception | None = None) -> None:
        """End the request, and wake the worker. error: None if the server confirmed the subscription."""
        self.error = error
        self.wake()

    def wake(self) -> None:
        """Wake the worker."""
        raise NotImplementedError

    def result(self) -> list[Any]:
        """The server's confirmation: [word, channel, number of channels]. Raises the error instead if there is one."""
        if self.error is not None:
            raise self.error
        return self.reply


class ChannelConnection(Protocol):
    """A connection with subscriptions. Its methods raise redis-py's errors, or report them later to
    `Subscriptions.refused`."""

    @property
    def number(self) -> int:
        """The connection's number among the connections of its client."""

    def subscribe(self, channel: Channel) -> None:
        """Send a subscription to a channel. The confirmation arrives as a reply."""

    def unsubscribe(self, channel: Channel) -> None:
        """Unsubscribe from a channel."""

    def forget(self, channel: Channel) -> None:
        """Do not subscribe to this channel again after a reconnect."""


C = TypeVar("C", bound=ChannelConnection)
C_co = TypeVar("C_co", bound=ChannelConnection, covariant=True)


class ChannelConnections(Protocol[C_co]):
    """The connections of one client that have subscriptions."""

    def connection_for(self, channel: Channel) -> C_co:
        """The connection that a channel belongs to. Raises redis-py's error for a slot without a node."""

    def __iter__(self) -> Iterator[C_co]:
        """All connections so far."""


class Subscriptions(Generic[C]):
    """The channels of one worker, at most `most` at a time. Use it in one thread or one event loop only."""

    def __init__(
        self, most: int, connections: ChannelConnections[C], reader: HeaderReader, record: DeliveryRecord
    ) -> None:
        self._most = most
        self._connections = connections
        self._record = record
        self._deliveries = DeliveryClassifier(reader, record)
        self._subscribed: dict[Channel, C] = {}
        """Oldest first."""
        self._pending: SubscribeRequest | None = None

    def begin(self, request: SubscribeRequest) -> None:
        """Subscribe to a channel. Replaces the pending request, because the worker no longer waits for it."""
        self._pending = request
        self._try()

    def _try(self) -> None:
        assert self._pending is not None
        channel = self._pending.channel
        try:
            self._subscribe(channel)
        except TARGET_ERRORS as error:
            self.refused(channel, error)

    def _subscribe(self, channel: Channel) -> None:
        connection = self._connections.connection_for(channel)
        before = self._subscribed.pop(channel, None)
        if before is not None and before is not connection:
            self._unsubscribe(before, channel)  # its slot has moved
        if before is None and len(self._subscribed) >= self._most:
            oldest = next(iter(self._subscribed))
            self._unsubscribe(self._subscribed.pop(oldest), oldest)
        self._subscribed[channel] = connection
        connection.subscribe(channel)

    def _unsubscribe(self, connection: C, channel: Channel) -> None:
        with suppress(*TARGET_ERRORS):  # the connection is lost, and reopens without this channel
            connection.unsubscribe(channel)

    def refused(self, channel: Channel, error: Exception) -> None:
        """A subscription could not be sent, or the server refused it."""
        if (connection := self._subscribed.pop(channel, None)) is not None:
            connection.forget(channel)
        if self._pending is not None and self._pending.channel == channel:
            self.end_pending(error)

    def received(self, connection: C, received: Received) -> None:
        """A reply has come on a connection."""
        kind, channel, value = received
        if kind is MESSAGE:
            self._deliveries.arrived(connection.number, value, monotonic_ns())
        elif kind == "sunsubscribe" and self._subscribed.get(channel) is connection:
            # The server unsubscribed us, because the slot has moved.
            self._move(channel, connection)
        elif self._pending is not None and self._pending.channel == channel and kind == channel[0].lower():
            self._pending.reply = [kind.encode(), channel[1], value]
            self.end_pending(None)

    def failed(self, connection: C, error: Exception, is_redirected: bool) -> None:
        """Reading from a connection failed. is_redirected: the error is a redirection that `of` already follows."""
        # An error reply answers our only pending command. After any other error, the connection is reopened and
        # subscribes to all its channels again.
        if self._pending is not None and self._subscribed.get(self._pending.channel) in (connection, None):
            if failure_of(error).replied and is_redirected and self._pending.redirects_left:
                self._pending.redirects_left -= 1
                if (before := self._subscribed.pop(self._pending.channel, None)) is not None:
                    before.forget(self._pending.channel)
                self._try()
                return
            if failure_of(error).replied:
                self.refused(self._pending.channel, error)
            else:
                self.end_pending(error)
        for channel in [channel for channel, owner in self._subscribed.items() if owner is connection]:
            with suppress(*TARGET_ERRORS):  # no node serves the channel's slot now
                if self._connections.connection_for(channel) is not connection:
                    self._move(channel, connection)

    def _move(self, channel: Channel, connection: C) -> None:
        """Move a channel from this connection, which lost it, to the connection that it belongs to now."""
        del self._subscribed[channel]
        connection.forget(channel)
        with suppress(*TARGET_ERRORS):  # the channel is lost until the worker subscribes to it again
            new = self._connections.connection_for(channel)
            if new is not connection:
                self._subscribed[channel] = new
                new.subscribe(channel)
                self.resubscribed(1)

    def end_pending(self, error: Exception | None) -> None:
        """End the pending request, if there is one."""
        if self._pending is not None:
            request, self._pending = self._pending, None
            request.end(error)

    def resubscribed(self, commands: int) -> None:
        """Record that a connection subscribed to its channels again, by this many commands."""
        if commands:
            self._record.add(pack_delivery(monotonic_ns(), DeliveryEvent.RESUBSCRIBED, commands))


def run_over_error() -> CutShort:
    """The error for requests at the end of the run."""
    return CutShort("the run is over")


def not_confirmed_error(timeout_s: float | None) -> TimeoutError:
    """The error for a request that was not confirmed in time."""
    return TimeoutError(f"no confirmation of a subscription in {timeout_s} s")
