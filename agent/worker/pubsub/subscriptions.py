"""Which channels one worker holds and on which connections, and what comes on them: the same for every driver.

Nothing here waits or connects. Whoever owns the connections tells what came on them, and what went wrong with them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar

from agent.worker.metrics.deliveries import DeliveryClassifier, DeliveryRecord, What, pack_delivery
from common.cancellation import CutShort
from common.clock import monotonic_ns
from common.pubsub_header import HeaderReader
from common.redis_client import TARGET_ERRORS, failure_of
from common.redis_client.pubsub import MESSAGE, Channel, Received

AT_MOST = 256
"""Messages read in a row from one connection, before others and the worker have their turn."""

_MOVES = 5
"""How often a cluster may send one subscription to another node."""


class SubscribeRequest:
    """A worker waits for one channel's confirmation. Once it is woken, `reply` or `error` is there."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.moves_left = _MOVES
        self.reply: list[Any] = []
        self.error: Exception | None = None

    def end(self, error: Exception | None = None) -> None:
        """There is nothing more to wait for."""
        self.error = error
        self.wake()

    def wake(self) -> None:
        """Have the worker go on."""
        raise NotImplementedError

    def outcome(self) -> list[Any]:
        """The server's confirmation: [word, channel, number of channels]. Raises why there is none."""
        if self.error is not None:
            raise self.error
        return self.reply


class Connected(Protocol):
    """A connection with subscriptions: raises what redis-py does, or tells later, by `Subscriptions.refused`."""

    def subscribe(self, channel: Channel) -> None:
        """Ask for a channel; the confirmation will be among what comes."""

    def unsubscribe(self, channel: Channel) -> None:
        """Give up a channel."""

    def forget(self, channel: Channel) -> None:
        """Do not ask for this channel again after a reconnect."""


L = TypeVar("L", bound=Connected)
L_co = TypeVar("L_co", bound=Connected, covariant=True)


class Places(Protocol[L_co]):
    """The connections of one client that have subscriptions."""

    def of(self, channel: Channel) -> L_co:
        """The one to which a channel belongs. Raises what redis-py does for a slot that no node has."""

    def __iter__(self) -> Iterator[L_co]:
        """All of them."""


class Subscriptions(Generic[L]):
    """The channels of one worker, `most` at a time. One thread, or one event loop, alone uses it."""

    def __init__(self, most: int, places: Places[L], reader: HeaderReader, record: DeliveryRecord) -> None:
        self._most = most
        self._places = places
        self._record = record
        self._arrivals = DeliveryClassifier(reader, record)
        self._held: dict[Channel, L] = {}
        """In the order in which they were asked for."""
        self._pending: SubscribeRequest | None = None

    def begin(self, order: SubscribeRequest) -> None:
        """Ask for a channel. Whoever gave the order before has waited for it as long as it would."""
        self._pending = order
        self._try()

    def _try(self) -> None:
        assert self._pending is not None
        channel = self._pending.channel
        try:
            self._subscribe(channel)
        except TARGET_ERRORS as error:
            self.refused(channel, error)

    def _subscribe(self, channel: Channel) -> None:
        line = self._places.of(channel)
        before = self._held.pop(channel, None)
        if before is not None and before is not line:
            self._give_up(before, channel)  # its slot has moved
        if before is None and len(self._held) >= self._most:
            oldest = next(iter(self._held))
            self._give_up(self._held.pop(oldest), oldest)
        self._held[channel] = line
        line.subscribe(channel)

    def _give_up(self, line: L, channel: Channel) -> None:
        with suppress(*TARGET_ERRORS):  # it does not come back with the connection
            line.unsubscribe(channel)

    def refused(self, channel: Channel, error: Exception) -> None:
        """A channel could not be asked for."""
        if (line := self._held.pop(channel, None)) is not None:
            line.forget(channel)
        if self._pending is not None and self._pending.channel == channel:
            self.end_pending(error)

    def received(self, number: int, line: L, received: Received) -> None:
        """Something came on the connection of this number."""
        kind, channel, what = received
        if kind is MESSAGE:
            self._arrivals.arrived(number, what, monotonic_ns())
        elif kind == "sunsubscribe" and self._held.get(channel) is line:
            # We did not ask for it: the slot has moved.
            self._follow(channel, line)
        elif self._pending is not None and self._pending.channel == channel and kind == channel[0].lower():
            self._pending.reply = [kind.encode(), channel[1], what]
            self.end_pending(None)

    def failed(self, line: L, error: Exception, has_moved: bool) -> None:
        """Reading from a connection failed. has_moved: the error told where a channel belongs, which is known now."""
        # Only a command that we sent is answered with an error, and one is under way at most. After any other error the
        # connection will be opened anew, and all its channels with it.
        if self._pending is not None and self._held.get(self._pending.channel) in (line, None):
            if failure_of(error).replied and has_moved and self._pending.moves_left:
                self._pending.moves_left -= 1
                if (before := self._held.pop(self._pending.channel, None)) is not None:
                    before.forget(self._pending.channel)
                self._try()
                return
            if failure_of(error).replied:
                self.refused(self._pending.channel, error)
            else:
                self.end_pending(error)
        for channel in [channel for channel, holder in self._held.items() if holder is line]:
            with suppress(*TARGET_ERRORS):  # no node has its slot at the moment
                if self._places.of(channel) is not line:
                    self._follow(channel, line)

    def _follow(self, channel: Channel, line: L) -> None:
        """Subscribe to a channel that this connection cannot have any more where it belongs now, as far as we know."""
        del self._held[channel]
        line.forget(channel)
        with suppress(*TARGET_ERRORS):  # whoever wants it has to ask for it again
            new = self._places.of(channel)
            if new is not line:
                self._held[channel] = new
                new.subscribe(channel)
                self.replayed(1)

    def end_pending(self, error: Exception | None) -> None:
        """Have whoever waits go on, if anybody does."""
        if self._pending is not None:
            order, self._pending = self._pending, None
            order.end(error)

    def replayed(self, commands: int) -> None:
        """So many commands asked anew for what a lost connection had."""
        if commands:
            self._record.add(pack_delivery(monotonic_ns(), What.RESUBSCRIBED, commands))


def over() -> CutShort:
    """Why nobody waits any more."""
    return CutShort("the run is over")
