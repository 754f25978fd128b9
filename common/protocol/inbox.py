"""Messages that wait for the coordinator's loop: a bounded queue for each connection. Pure.

A thread empties the socket into these queues, also while the loop is busy, so the queues limit the memory that peers
can fill. An agent stays far below the limits. Each second it sends one heartbeat and at most a few reports of progress.
It sends at most `agent.core.outbox.WINDOW` frames without an acknowledgement, and then only one `Attach` each second.
So after a stall of a minute, the loop finds a few hundred small messages and 32 frames from each agent.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field

MAX_MESSAGES, MAX_BYTES = 2_000, 64 << 20
"""Limits of one connection of an agent."""
MAX_UNKNOWN_MESSAGES, MAX_UNKNOWN_BYTES = 64, 4 << 20
"""Limits of a connection before its first `Hello` or `Attach`."""
MAX_TOTAL_BYTES = 512 << 20
"""Limit of all connections together. Beyond it, frames are discarded: agents send them again."""
_IN_TURN = 8
"""Messages taken from one connection before the next connection's turn."""
_METRICS_SHARE = 4
"""One of this many messages is a frame, even while control messages wait."""


class PutResult(enum.Enum):
    """What the inbox did with a message."""

    TAKEN = "taken"
    DISCARDED = "discarded"
    FLOOD = "flood"
    """Too many messages wait on its connection, or the connection was cut."""


@dataclass(slots=True, eq=False)
class Connection:
    """One connection and its waiting messages. name: of its agent, "" if unknown. fileno: of its TCP socket, -1 once
    the socket is closed. address: of its peer, without the port."""

    routing_id: bytes
    fileno: int = -1
    address: str = ""
    name: str = ""
    metrics: bool = False
    is_cut: bool = False
    messages: deque[bytes] = field(default_factory=deque)
    size: int = 0


class Inbox:
    """The queues of all connections. Control messages come first; connections take turns."""

    def __init__(self) -> None:
        self.total = 0
        self._control: deque[Connection] = deque()
        self._metrics: deque[Connection] = deque()

    def __bool__(self) -> bool:
        return bool(self._control or self._metrics)

    def put(self, connection: Connection, data: bytes) -> PutResult:
        """Queue a message for the loop, unless too many messages wait already."""
        if connection.is_cut or self._is_full(connection, len(data)):
            return PutResult.FLOOD
        if connection.metrics and self.total + len(data) > MAX_TOTAL_BYTES:
            return PutResult.DISCARDED
        if not connection.messages:
            (self._metrics if connection.metrics else self._control).append(connection)
        connection.messages.append(data)
        connection.size += len(data)
        self.total += len(data)
        return PutResult.TAKEN

    def _is_full(self, connection: Connection, size: int) -> bool:
        known = bool(connection.name)
        most, most_bytes = (MAX_MESSAGES, MAX_BYTES) if known else (MAX_UNKNOWN_MESSAGES, MAX_UNKNOWN_BYTES)
        return len(connection.messages) >= most or connection.size + size > most_bytes

    def take(self, most: int) -> list[tuple[bytes, bytes]]:
        """(routing id, data) of at most `most` messages."""
        taken: list[tuple[bytes, bytes]] = []
        self._take(self._control, most - most // _METRICS_SHARE if self._metrics else most, taken)
        self._take(self._metrics, most, taken)
        return taken

    def _take(self, waiting: deque[Connection], most: int, taken: list[tuple[bytes, bytes]]) -> None:
        while waiting and len(taken) < most:
            connection = waiting.popleft()
            for _ in range(min(_IN_TURN, len(connection.messages), most - len(taken))):
                data = connection.messages.popleft()
                connection.size -= len(data)
                self.total -= len(data)
                taken.append((connection.routing_id, data))
            if connection.messages:
                (self._metrics if connection.metrics else self._control).append(connection)

    def drop(self, connection: Connection) -> None:
        """Cut this connection: discard its waiting messages, and all later ones."""
        connection.is_cut = True
        self.total -= connection.size
        connection.size = 0
        connection.messages.clear()
