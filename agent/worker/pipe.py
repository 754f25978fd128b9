"""The worker process' end of the pipe to its agent, and the lease that the agent renews through it.

Theory of operation. The load goes on only as long as the agent's own process renews the lease: each `WorkerRenew` names
the instant at which it ends. An agent that is stopped, that hangs in a write, or that has lost its coordinator renews
nothing, and the worker process stops its load by its own clock. The instant is absolute, on a clock that also counts
while the machine is suspended. So a renewal that waited in the pipe extends nothing, and neither does a suspended
machine. A worker process that was never renewed may not begin.

An agent that is stopped does not read either. So a thread of its own sends: the thread that watches over the load never
waits for the agent.
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
    """Messages to and from the agent. Close it on every way out: it joins the thread that sends."""

    def __init__(self, connection: Any, now: MonotonicNs = boottime_ns) -> None:
        """connection: a multiprocess Connection, which stays open. now: the clock of the lease."""
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
        """Whether the agent has not renewed the lease in time. Read all orders before: a renewal may be among them."""
        return self._now() >= self._lease_ends_ns

    @property
    def is_clear(self) -> bool:
        """Whether the agent has taken everything so far, or the system has for it."""
        return not self._waiting

    def send(self, message: WorkerMessage) -> None:
        """Leave a message to the thread that sends. Raises AgentGone."""
        data = pack(message)
        with self._changed:
            if self._is_broken:
                raise AgentGone
            self._waiting.append(data)
            self._changed.notify_all()

    def receive(self, timeout_s: float | None) -> WorkerOrder | None:
        """The next order that is no renewal; None when there is none in time. Raises AgentGone, and ProtocolError for
        what is no order."""
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
        """Wait until the agent has taken everything, or is gone, however long it is stopped. Idempotent."""
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
        """The oldest message, which stays in its place while it is sent; None when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            return self._waiting[0] if self._waiting else None
