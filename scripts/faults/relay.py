"""A TCP relay on loopback between one agent and its coordinator, which can fail as a network does.

One thread moves the bytes of all connections. Attributes control the faults; a change takes effect within `_POLL_S`.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field

HOST = "127.0.0.1"
_POLL_S = 0.01
_READ_BYTES = 65536
_MAX_BUFFERED = 1 << 20
_RESET = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class _Direction:
    """One direction of a connection. buffered: (time of arrival, bytes) not sent yet; `size` bytes together. budget:
    bytes that the bandwidth limit allows now."""

    source: socket.socket
    sink: socket.socket
    to_coordinator: bool
    buffered: deque[tuple[float, bytes]] = field(default_factory=deque)
    size: int = 0
    budget: float = 0.0


@dataclass(slots=True)
class _Pair:
    """A connection from the agent, and its counterpart to the coordinator. number: in the order of accepting."""

    agent: socket.socket
    coordinator: socket.socket
    number: int
    half_open: bool = False
    directions: tuple[_Direction, ...] = ()


class Relay:
    """Listens on a port of its own. Close it with `close`.

    refuses: resets all connections, and new ones at once. blocks_to_coordinator, blocks_to_agent: nothing passes in
    this direction; bytes are buffered, as TCP buffers them. delay_s: delay in each direction. bytes_per_s: bandwidth;
    None for no limit.
    """

    def __init__(self, port: int, *, proxied: bool = False) -> None:
        """port: of the coordinator. proxied: without a coordinator, close connections instead of holding them."""
        self._proxied = proxied
        self._target = (HOST, port)
        self.refuses = self.blocks_to_coordinator = self.blocks_to_agent = False
        self.delay_s = 0.0
        self.bytes_per_s: float | None = None
        self.dead: int | None = None
        """Of the agent's two connections, the one that passes nothing (its number modulo 2); None for neither."""
        self._accepted = 0
        self._resets = threading.Event()
        self._half_opens = threading.Event()
        self._closed = threading.Event()
        self._listener = socket.create_server((HOST, 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._waiting: list[socket.socket] = []
        """Connections of the agent that wait for a coordinator."""
        self._pairs: list[_Pair] = []
        self._thread = threading.Thread(target=self._serve, name="relay", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """The endpoint for the agent."""
        return f"tcp://{HOST}:{self.port}"

    def reset(self) -> None:
        """Reset all connections."""
        self._resets.set()

    def half_open(self) -> None:
        """Close the coordinator's side of all connections. The agent's side stays open, and passes nothing."""
        self._half_opens.set()

    def heal(self) -> None:
        """End all faults."""
        self.refuses = self.blocks_to_coordinator = self.blocks_to_agent = False
        self.delay_s, self.bytes_per_s, self.dead = 0.0, None, None

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._closed.set()
        self._thread.join()

    def _serve(self) -> None:
        last_s = time.monotonic()
        with self._listener:
            while not self._closed.is_set():
                self._wait()
                now_s = time.monotonic()
                if self._resets.is_set():
                    self._resets.clear()
                    self._drop_all()
                if self._half_opens.is_set():
                    self._half_opens.clear()
                    for pair in self._pairs:
                        pair.half_open = True
                        pair.coordinator.close()
                self._accept()
                if self.refuses:
                    self._drop_all()
                for pair in list(self._pairs):
                    self._move(pair, now_s, now_s - last_s)
                last_s = now_s
            self._drop_all()

    def _drop_all(self) -> None:
        self._drop(list(self._pairs))
        while self._waiting:
            _close_hard(self._waiting.pop())

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            for pair in self._pairs:
                for direction in pair.directions if not pair.half_open else ():
                    if direction.size < _MAX_BUFFERED and not self._is_blocked(pair, direction):
                        selector.register(direction.source, selectors.EVENT_READ)
            has_data = any(direction.buffered for pair in self._pairs for direction in pair.directions)
            selector.select(0.002 if has_data else _POLL_S)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._waiting.append(self._listener.accept()[0])
        while self._waiting and not self.refuses:
            try:
                coordinator = socket.create_connection(self._target, timeout=0.2)
            except OSError:  # no coordinator listens
                if self._proxied:
                    self._waiting.pop(0).close()
                    continue
                return
            agent = self._waiting.pop(0)
            for end in (agent, coordinator):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(agent, coordinator, self._accepted)
            pair.directions = (_Direction(agent, coordinator, True), _Direction(coordinator, agent, False))
            self._accepted += 1
            self._pairs.append(pair)

    def _is_blocked(self, pair: _Pair, direction: _Direction) -> bool:
        if self.dead is not None and pair.number % 2 == self.dead % 2:
            return True
        return self.blocks_to_coordinator if direction.to_coordinator else self.blocks_to_agent

    def _move(self, pair: _Pair, now_s: float, passed_s: float) -> None:
        if pair.half_open:
            return
        try:
            for direction in pair.directions:
                if self._is_blocked(pair, direction):
                    continue
                self._read(direction, now_s)
                self._write(direction, now_s, passed_s)
        except OSError:
            self._drop([pair])

    def _read(self, direction: _Direction, now_s: float) -> None:
        while direction.size < _MAX_BUFFERED:
            try:
                piece = direction.source.recv(_READ_BYTES)
            except BlockingIOError:
                return
            if not piece:
                raise ConnectionResetError
            direction.buffered.append((now_s, piece))
            direction.size += len(piece)

    def _write(self, direction: _Direction, now_s: float, passed_s: float) -> None:
        limit = self.bytes_per_s
        direction.budget = _MAX_BUFFERED if limit is None else min(limit, direction.budget + limit * passed_s)
        while direction.buffered and direction.buffered[0][0] + self.delay_s <= now_s and direction.budget >= 1:
            received_s, piece = direction.buffered[0]
            try:
                sent = direction.sink.send(piece[: int(direction.budget)])
            except BlockingIOError:
                return
            direction.budget -= sent
            direction.size -= sent
            if sent < len(piece):
                direction.buffered[0] = (received_s, piece[sent:])
            else:
                direction.buffered.popleft()

    def _drop(self, pairs: list[_Pair]) -> None:
        for pair in pairs:
            _close_hard(pair.agent)
            _close_hard(pair.coordinator)
            self._pairs.remove(pair)


def _close_hard(end: socket.socket) -> None:
    """Close with RST instead of FIN."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    end.close()
