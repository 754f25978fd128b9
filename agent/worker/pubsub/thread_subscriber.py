"""A worker's subscriptions, and the thread that reads what comes on them as soon as it comes.

The thread owns the connections alone: redis-py's PubSub is for one thread, and connects anew by itself. The worker asks
it to subscribe, and waits for the server's confirmation.

Order of shutdown, once no worker asks any more: all channels are given up, and what comes before the server's
confirmation of that is still read; so nothing that the server handed out is left behind. Then the connections are
closed, and the thread ends. A connection that is lost then, or a cancellation, ends it too: so it never outlasts
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

from agent.worker.metrics.deliveries import DeliveryRecord
from agent.worker.pubsub.subscriptions import AT_MOST, SubscribeRequest, Subscriptions, over
from common.cancellation import CutShort
from common.pubsub_header import HeaderReader
from common.redis_client import TARGET_ERRORS, Client
from common.redis_client.pubsub import Channel, Line, Lines

_AGAIN_MS = 100
"""A connection that could not be opened again is tried once more after so long."""


class _Order(SubscribeRequest):
    """For a thread. `ready` is locked until it is woken."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self.ready = threading.Lock()
        self.ready.acquire()

    def wake(self) -> None:
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
        reader: HeaderReader,
        record: DeliveryRecord,
        crash: Callable[[Exception], None],
    ) -> None:
        """Opens no connection."""
        self._timeout_s = timeout_s
        self._crash = crash
        self._lines = Lines(client, self._replayed)
        self._subscriptions: Subscriptions[Line] = Subscriptions(most, self._lines, reader, record)
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
                raise over()
            if not self._is_started:
                self._is_started = True
                self._thread.start()
            self._orders.append(order)
        self._wake()
        if not order.ready.acquire(timeout=-1 if self._timeout_s is None else self._timeout_s):
            raise TimeoutError(f"no confirmation of a subscription in {self._timeout_s} s")
        return order.outcome()

    def finish(self) -> None:
        """Have the thread read what is left, and end. Idempotent; for when nobody subscribes any more."""
        self._is_closing = True
        self._wake()

    def cut(self) -> None:
        """Have it end now: what it waits for ended when the run was cancelled. Idempotent."""
        self.finish()

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
            self._subscriptions.end_pending(over())
            for order in self._orders:
                order.end(over())
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
            self._subscriptions.begin(self._orders.popleft())

    def _read_all(self) -> bool:
        """Whether there may be more to read, of which no poll would tell."""
        is_more = False
        for number, line in enumerate(self._lines):
            count = 0
            try:
                for received in line.receive(AT_MOST):
                    count += 1
                    self._subscriptions.received(number, line, received)
            except TARGET_ERRORS as error:
                self._subscriptions.failed(line, error, self._lines.redirected(error))
            is_more = is_more or count == AT_MOST
        return is_more

    def _replayed(self, commands: int) -> None:
        self._subscriptions.replayed(commands)
