"""The worker process's end of the pipe to its agent, and the lease that the agent renews through the pipe.

Theory of operation. The load continues only while the agent renews the lease; each `WorkerRenew` has the instant at
which the lease ends. An agent that is stopped, that hangs in a write, or that has lost its coordinator does not renew
the lease, and the worker process stops its load by its own clock. The instant is absolute, on a clock that also runs
while the machine is suspended. So neither a renewal that waited in the pipe nor a suspended machine extends the lease.
A worker process without a renewal may not begin.

A stopped agent does not read either. So a separate thread sends, and the main thread never waits for the agent.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from common.clock import MonotonicNs, boottime_ns
from common.protocol.codec import decode_worker_order, pack
from common.protocol.messages import WorkerMessage, WorkerOrder, WorkerRenew


class AgentGone(Exception):
    """The other end of the pipe is closed."""


class Pipe:
    """Messages to and from the agent. Always close it, to join the sending thread."""

    def __init__(self, connection: Any, now: MonotonicNs = boottime_ns) -> None:
        """connection: a multiprocess Connection; it stays open. now: the clock of the lease."""
        self._connection = connection
        self._now = now
        self._lease_ends_ns = 0
        self._waiting: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._is_closing = False
        self._is_broken = False
        self._sender = threading.Thread(target=self._send_all, name="to the agent", daemon=True)
        self._sender.start()

    @property
    def lease_is_over(self) -> bool:
        """Whether the lease has ended. Read all orders first, because one of them may be a renewal."""
        return self._now() >= self._lease_ends_ns

    @property
    def is_clear(self) -> bool:
        """Whether no message waits in the queue."""
        return not self._waiting

    def send(self, message: WorkerMessage) -> None:
        """Queue a message for the sending thread. Raises AgentGone."""
        data = pack(message)
        with self._changed:
            if self._is_broken:
                raise AgentGone
            self._waiting.append(data)
            self._changed.notify_all()

    def receive(self, timeout_s: float | None) -> WorkerOrder | None:
        """The next order that is not a renewal; None if none comes in time. Raises AgentGone, and ProtocolError for
        bytes that are not an order."""
        while True:
            try:
                if not self._connection.poll(timeout_s):
                    return None
                data = self._connection.recv_bytes()
            except (EOFError, OSError) as error:
                raise AgentGone from error
            order = decode_worker_order(data)
            if not isinstance(order, WorkerRenew):
                return order
            self._lease_ends_ns = max(self._lease_ends_ns, order.until_ns)
            timeout_s = None if timeout_s is None else 0

    def close(self) -> None:
        """Wait until all messages are sent, or the agent is gone; without a limit while the agent is stopped.
        Idempotent."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._sender.join()

    def _send_all(self) -> None:
        while (data := self._next()) is not None:
            try:
                self._connection.send_bytes(data)
            except OSError:
                with self._changed:
                    self._is_broken = True
                    self._waiting.clear()
                return
            self._waiting.popleft()

    def _next(self) -> bytes | None:
        """The oldest message, which stays in the queue while it is sent; None at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            return self._waiting[0] if self._waiting else None
