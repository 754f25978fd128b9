"""A worker's subscriptions, and the thread that reads their messages as soon as they arrive.

Only this thread uses the connections: redis-py's PubSub is for one thread, and reconnects by itself. The worker asks it
to subscribe, and waits for the server's confirmation.

Order of shutdown, once all workers have ended: the thread unsubscribes from all channels and reads until the server has
confirmed, so it misses no message that the server sent. Then it closes the connections and ends. It does not wait for a
connection that is lost meanwhile, and cancelling the run ends it at once.
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
from agent.worker.pubsub.subscriptions import (
    REPLIES_PER_TURN,
    SubscribeRequest,
    Subscriptions,
    not_confirmed_error,
    run_over_error,
)
from common.cancellation import CutShort
from common.pubsub_header import HeaderReader
from common.redis_client import TARGET_ERRORS, Client
from common.redis_client.pubsub import Channel, SubscribedConnection, SubscribedConnections

_RECONNECT_MS = 100
"""Pause before a lost connection is tried again."""


class _ThreadRequest(SubscribeRequest):
    """`ready` is locked until `wake`."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self.ready = threading.Lock()
        self.ready.acquire()

    def wake(self) -> None:
        self.ready.release()


class Subscriber:
    """The subscriptions of one worker, at most `most` at a time. Its thread starts with the first subscription.

    timeout_s: how long the worker waits for a confirmation; None: without a limit. crash: called with an unexpected
    error that ended the thread.
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
        self._connections = SubscribedConnections(client, self._resubscribed)
        self._subscriptions: Subscriptions[SubscribedConnection] = Subscriptions(
            most, self._connections, reader, record
        )
        self._lock = threading.Lock()
        self._requests: deque[_ThreadRequest] = deque()
        self._is_closing = False
        self._is_over = False
        self._wake_sender, self._wake_receiver = socket.socketpair()
        self._wake_sender.setblocking(False)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._is_started = False

    def subscribe(self, command: str, name: bytes) -> list[Any]:
        """The server's confirmation: [word, channel, number of channels].

        Raises redis-py's errors, TimeoutError without a confirmation in time, CutShort at the end of the run.
        """
        request = _ThreadRequest((command, name))
        with self._lock:
            if self._is_over:
                raise run_over_error()
            if not self._is_started:
                self._is_started = True
                self._thread.start()
            self._requests.append(request)
        self._wake()
        if not request.ready.acquire(timeout=-1 if self._timeout_s is None else self._timeout_s):
            raise not_confirmed_error(self._timeout_s)
        return request.result()

    def finish(self) -> None:
        """Make the thread read the last messages, and end. Idempotent. Call it once all workers have ended."""
        self._is_closing = True
        self._wake()

    def cut(self) -> None:
        """End the thread now; cancelling the run has ended its waits. Idempotent."""
        self.finish()

    @property
    def is_alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def close(self, within_s: float = 1.0) -> None:
        """Wait up to `within_s` for the thread, and close its wake-up sockets. Idempotent. Call `finish` first if the
        thread was started."""
        with self._lock:
            self._is_over = True
        if self._is_started:
            self._thread.join(max(0.0, within_s))
        self._wake_sender.close()
        self._wake_receiver.close()

    def _wake(self) -> None:
        with suppress(OSError):  # full of wake-ups, or closed
            self._wake_sender.send(b"\0")

    def _run(self) -> None:
        try:
            self._listen()
        except CutShort:
            pass
        except Exception as error:  # noqa: BLE001 - the process reports it in one line
            self._crash(error)
        finally:
            with self._lock:
                self._is_over = True
            self._subscriptions.end_pending(run_over_error())
            for request in self._requests:
                request.end(run_over_error())
            for connection in self._connections:
                with suppress(*TARGET_ERRORS):
                    connection.close()

    def _listen(self) -> None:
        poll = select.poll()
        wake = self._wake_receiver.fileno()
        poll.register(wake, select.POLLIN)
        polled: set[int] = set()
        has_more = False
        while not self._is_done():
            filenos = {connection.fileno() for connection in self._connections}
            for fileno in polled - filenos:
                poll.unregister(fileno)
            for fileno in filenos - polled - {-1}:
                poll.register(fileno, select.POLLIN)
            polled = filenos - {-1}
            is_lost = any(connection.is_lost for connection in self._connections)
            ready = poll.poll(0 if has_more else _RECONNECT_MS if is_lost else None)
            if any(fileno == wake for fileno, _ in ready):
                self._wake_receiver.recv(4096)
                self._take_requests()
            has_more = self._read_all()

    def _is_done(self) -> bool:
        if not self._is_closing:
            return False
        for connection in self._connections:
            with suppress(*TARGET_ERRORS):  # a lost connection receives no more messages
                connection.unsubscribe_all()
        return not any(connection.is_subscribed for connection in self._connections)

    def _take_requests(self) -> None:
        while self._requests:
            self._subscriptions.begin(self._requests.popleft())

    def _read_all(self) -> bool:
        """Read from all connections. Returns whether one may have more replies in its buffer, which `poll` does not
        report."""
        has_more = False
        for connection in self._connections:
            count = 0
            try:
                for received in connection.receive(REPLIES_PER_TURN):
                    count += 1
                    self._subscriptions.received(connection, received)
            except TARGET_ERRORS as error:
                self._subscriptions.failed(connection, error, self._connections.redirected(error))
            has_more = has_more or count == REPLIES_PER_TURN
        return has_more

    def _resubscribed(self, commands: int) -> None:
        self._subscriptions.resubscribed(commands)
