"""A worker's subscriptions, and the thread that reads what comes on them as soon as it comes.

The thread owns the connections alone: redis-py's PubSub is for one thread, and connects anew by itself. The worker asks
it to subscribe, and waits for the server's confirmation.

Order of shutdown, once no worker asks any more: all channels are given up, and what comes before the server's
confirmation of that is still read; so nothing that the server handed out is left behind. Then the connections are
closed, and the thread ends. A connection that is lost then, or a cut of the lifeline, ends it too: so it never outlasts
what it waits for.
"""

from __future__ import annotations

import select
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from agent.worker.deliveries import Arrivals, DeliveryRecord, What, pack_delivery
from common.clock import monotonic_ns
from common.lifeline import CutShort
from common.stamp import StampReader
from common.target import TARGET_ERRORS, Client, ending_of
from common.target.pubsub import MESSAGE, Channel, Line, Lines

_AT_MOST = 256
"""Messages read in a row from one connection, before others and the worker have their turn."""

_AGAIN_MS = 100
"""A connection that could not be opened again is tried once more after so long."""

_MOVES = 5
"""How often a cluster may send one subscription to another node."""


class _Order:
    """A worker waits for one channel's confirmation. `ready` is locked until `reply` or `error` is there."""

    __slots__ = ("channel", "error", "moves_left", "ready", "reply")

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.moves_left = _MOVES
        self.ready = threading.Lock()
        self.ready.acquire()
        self.reply: list[Any] = []
        self.error: Exception | None = None

    def end(self, error: Exception | None = None) -> None:
        self.error = error
        self.ready.release()


class Subscriber:
    """The subscriptions of one worker, `most` at a time. Its thread starts with the first one.

    timeout_s: how long the worker waits for a confirmation; None: for ever. crash: told of what ends the thread and
    never should.
    """

    def __init__(
        self,
        name: str,
        client: Client,
        most: int,
        timeout_s: float | None,
        reader: StampReader,
        record: DeliveryRecord,
        crash: Callable[[Exception], None],
    ) -> None:
        """Opens no connection."""
        self._most = most
        self._timeout_s = timeout_s
        self._record = record
        self._arrivals = Arrivals(reader, record)
        self._crash = crash
        self._lines = Lines(client, self._replayed)
        self._held: dict[Channel, Line] = {}
        """In the order in which they were asked for."""
        self._pending: _Order | None = None
        self._lock = threading.Lock()
        self._orders: deque[_Order] = deque()
        self._is_closing = False
        self._is_over = False
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._is_started = False

    def subscribe(self, command: str, name: bytes) -> list[Any]:
        """The server's confirmation: [word, channel, number of channels].

        Raises what redis-py does, TimeoutError without a confirmation in time, CutShort when the run is over.
        """
        order = _Order((command, name))
        with self._lock:
            if self._is_over:
                raise CutShort("the run is over")
            if not self._is_started:
                self._is_started = True
                self._thread.start()
            self._orders.append(order)
        self._wake()
        if not order.ready.acquire(timeout=-1 if self._timeout_s is None else self._timeout_s):
            raise TimeoutError(f"no confirmation of a subscription in {self._timeout_s} s")
        if order.error is not None:
            raise order.error
        return order.reply

    def finish(self) -> None:
        """Have the thread read what is left, and end. Idempotent; for when nobody subscribes any more."""
        self._is_closing = True
        self._wake()

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def close(self, within_s: float = 1.0) -> None:
        """Give its own sockets back. Idempotent; for when its thread was told to finish, for which it waits so long,
        or was never started."""
        with self._lock:
            self._is_over = True
        if self._is_started:
            self._thread.join(max(0.0, within_s))
        self._ours.close()
        self._theirs.close()

    def _wake(self) -> None:
        with suppress(OSError):  # it has been woken often enough, or needs it no more
            self._ours.send(b"\0")

    def _run(self) -> None:
        try:
            self._listen()
        except CutShort:
            pass
        except Exception as error:  # noqa: BLE001 - the last stop of a thread: said in one line, by the process
            self._crash(error)
        finally:
            with self._lock:
                self._is_over = True
            for order in (self._pending, *self._orders):
                if order is not None:
                    order.end(CutShort("the run is over"))
            for line in self._lines:
                with suppress(*TARGET_ERRORS):
                    line.close()

    def _listen(self) -> None:
        poll = select.poll()
        wake = self._theirs.fileno()
        poll.register(wake, select.POLLIN)
        polled: set[int] = set()
        is_more = False
        while not self._is_done():
            filenos = {line.fileno() for line in self._lines}
            for fileno in polled - filenos:
                poll.unregister(fileno)
            for fileno in filenos - polled - {-1}:
                poll.register(fileno, select.POLLIN)
            polled = filenos - {-1}
            is_lost = any(line.is_lost for line in self._lines)
            ready = poll.poll(0 if is_more else _AGAIN_MS if is_lost else None)
            if any(fileno == wake for fileno, _ in ready):
                self._theirs.recv(4096)
                self._take_orders()
            is_more = self._read_all()

    def _is_done(self) -> bool:
        if not self._is_closing:
            return False
        for line in self._lines:
            with suppress(*TARGET_ERRORS):  # then nothing more will come on it
                line.unsubscribe_all()
        return not any(line.is_subscribed for line in self._lines)

    def _take_orders(self) -> None:
        while self._orders:
            # Whoever gave the one before has waited for it as long as it would.
            self._pending = self._orders.popleft()
            self._begin(self._pending)

    def _begin(self, order: _Order) -> None:
        try:
            self._subscribe(order.channel)
        except TARGET_ERRORS as error:
            self._forget(order.channel)
            self._end_pending(error)

    def _forget(self, channel: Channel) -> None:
        if (line := self._held.pop(channel, None)) is not None:
            line.forget(channel)

    def _subscribe(self, channel: Channel) -> None:
        line = self._lines.of(channel)
        before = self._held.pop(channel, None)
        if before is not None and before is not line:
            self._give_up(before, channel)  # its slot has moved
        if before is None and len(self._held) >= self._most:
            oldest = next(iter(self._held))
            self._give_up(self._held.pop(oldest), oldest)
        self._held[channel] = line
        line.subscribe(channel)

    @staticmethod
    def _give_up(line: Line, channel: Channel) -> None:
        with suppress(*TARGET_ERRORS):  # it does not come back with the connection
            line.unsubscribe(channel)

    def _read_all(self) -> bool:
        """Whether there may be more to read, of which no poll would tell."""
        is_more = False
        for number, line in enumerate(self._lines):
            count = 0
            try:
                for kind, channel, what in line.receive(_AT_MOST):
                    count += 1
                    if kind is MESSAGE:
                        self._arrivals.arrived(number, what, monotonic_ns())
                    else:
                        self._confirmed(line, kind, channel, what)
            except TARGET_ERRORS as error:
                self._failed(line, error)
            is_more = is_more or count == _AT_MOST
        return is_more

    def _confirmed(self, line: Line, kind: str, channel: Channel, count: int) -> None:
        if kind == "sunsubscribe" and self._held.get(channel) is line:
            # We did not ask for it: the slot has moved.
            self._follow(channel, line)
        elif self._pending is not None and self._pending.channel == channel and kind == channel[0].lower():
            self._pending.reply = [kind.encode(), channel[1], count]
            self._end_pending(None)

    def _failed(self, line: Line, error: Exception) -> None:
        moved = self._lines.redirected(error)
        # Only a command that we sent is answered with an error, and one is under way at most. After any other error the
        # connection will be opened anew, and all its channels with it.
        if self._pending is not None and ending_of(error).replied:
            self._forget(self._pending.channel)
            if moved and self._pending.moves_left:
                self._pending.moves_left -= 1
                self._begin(self._pending)
                return
        self._end_pending(error)
        for channel in [channel for channel, holder in self._held.items() if holder is line]:
            with suppress(*TARGET_ERRORS):  # no node has its slot at the moment
                if self._lines.of(channel) is not line:
                    self._follow(channel, line)

    def _follow(self, channel: Channel, line: Line) -> None:
        """Subscribe to a channel that this connection cannot have any more where it belongs now, as far as we know."""
        del self._held[channel]
        line.forget(channel)
        with suppress(*TARGET_ERRORS):  # whoever wants it has to ask for it again
            new = self._lines.of(channel)
            if new is not line:
                self._held[channel] = new
                new.subscribe(channel)
                self._replayed(1)

    def _end_pending(self, error: Exception | None) -> None:
        if self._pending is not None:
            order, self._pending = self._pending, None
            order.end(error)

    def _replayed(self, commands: int) -> None:
        if commands:
            self._record.add(pack_delivery(monotonic_ns(), What.RESUBSCRIBED, commands))
