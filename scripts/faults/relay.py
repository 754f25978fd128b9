"""A TCP relay on loopback between one agent and its coordinator, which can fail as networks do.

One thread moves the bytes of all its connections. What is to happen is set by attributes, and taken up within
`_TURN_S`; so everything here is as coarse as that.
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
_TURN_S = 0.01
_PIECE = 65536
_MOST_HELD = 1 << 20
_RESET = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class _Way:
    """One direction of a connection: what has come and is yet to go on. budget: bytes that may go on now."""

    source: socket.socket
    sink: socket.socket
    upward: bool
    held: deque[tuple[float, bytes]] = field(default_factory=deque)
    size: int = 0
    budget: float = 0.0


@dataclass(slots=True)
class _Pair:
    """A connection of the agent and its continuation to the coordinator. number: in the order of accepting."""

    agent: socket.socket
    coordinator: socket.socket
    number: int
    half_open: bool = False
    ways: tuple[_Way, ...] = ()


class Relay:
    """Listens on a port of its own. Closed by `close` or `with`.

    refuses: closes every connection at once. stops_up, stops_down: nothing passes towards the coordinator, or towards
    the agent; bytes are kept, as TCP keeps them. delay_s: of each byte, each way. bytes_per_s: None for no limit.
    """

    def __init__(self, port: int, *, proxied: bool = False) -> None:
        """port: of the coordinator. proxied: without one, connections are closed at once, instead of kept waiting."""
        self._proxied = proxied
        self._target = (HOST, port)
        self.refuses = self.stops_up = self.stops_down = False
        self.delay_s = 0.0
        self.bytes_per_s: float | None = None
        self.dead: int | None = None
        """The number, counted round, of one connection of two that passes nothing; None for neither."""
        self._accepted = 0
        self._resets = threading.Event()
        self._half_opens = threading.Event()
        self._over = threading.Event()
        self._listener = socket.create_server((HOST, 0))
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._waiting: list[socket.socket] = []
        """Connections of the agent for which there is no coordinator yet."""
        self._pairs: list[_Pair] = []
        self._thread = threading.Thread(target=self._serve, name="relay", daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where its agent joins."""
        return f"tcp://{HOST}:{self.port}"

    def reset(self) -> None:
        """Reset all connections."""
        self._resets.set()

    def half_open(self) -> None:
        """Close the coordinator's side of all connections; the agent's stays open, and hears nothing more."""
        self._half_opens.set()

    def heal(self) -> None:
        """Pass everything on again."""
        self.refuses = self.stops_up = self.stops_down = False
        self.delay_s, self.bytes_per_s, self.dead = 0.0, None, None

    def close(self) -> None:
        """Close all connections. Idempotent."""
        self._over.set()
        self._thread.join()

    def _serve(self) -> None:
        last_s = time.monotonic()
        with self._listener:
            while not self._over.is_set():
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
                for way in pair.ways if not pair.half_open else ():
                    if way.size < _MOST_HELD and not self._is_stopped(pair, way):
                        selector.register(way.source, selectors.EVENT_READ)
            selector.select(_TURN_S if not any(way.held for pair in self._pairs for way in pair.ways) else 0.002)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._waiting.append(self._listener.accept()[0])
        while self._waiting and not self.refuses:
            try:
                coordinator = socket.create_connection(self._target, timeout=0.2)
            except OSError:  # it is not there yet, or not any more
                if self._proxied:
                    self._waiting.pop(0).close()
                    continue
                return
            agent = self._waiting.pop(0)
            for end in (agent, coordinator):
                end.setblocking(False)
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(agent, coordinator, self._accepted)
            pair.ways = (_Way(agent, coordinator, True), _Way(coordinator, agent, False))
            self._accepted += 1
            self._pairs.append(pair)

    def _is_stopped(self, pair: _Pair, way: _Way) -> bool:
        if self.dead is not None and pair.number % 2 == self.dead % 2:
            return True
        return self.stops_up if way.upward else self.stops_down

    def _move(self, pair: _Pair, now_s: float, passed_s: float) -> None:
        if pair.half_open:
            return
        try:
            for way in pair.ways:
                if self._is_stopped(pair, way):
                    continue
                self._read(way, now_s)
                self._write(way, now_s, passed_s)
        except OSError:
            self._drop([pair])

    def _read(self, way: _Way, now_s: float) -> None:
        while way.size < _MOST_HELD:
            try:
                piece = way.source.recv(_PIECE)
            except BlockingIOError:
                return
            if not piece:
                raise ConnectionResetError
            way.held.append((now_s, piece))
            way.size += len(piece)

    def _write(self, way: _Way, now_s: float, passed_s: float) -> None:
        limit = self.bytes_per_s
        way.budget = _MOST_HELD if limit is None else min(limit, way.budget + limit * passed_s)
        while way.held and way.held[0][0] + self.delay_s <= now_s and way.budget >= 1:
            came_s, piece = way.held[0]
            try:
                sent = way.sink.send(piece[: int(way.budget)])
            except BlockingIOError:
                return
            way.budget -= sent
            way.size -= sent
            if sent < len(piece):
                way.held[0] = (came_s, piece[sent:])
            else:
                way.held.popleft()

    def _drop(self, pairs: list[_Pair]) -> None:
        for pair in pairs:
            _close_hard(pair.agent)
            _close_hard(pair.coordinator)
            self._pairs.remove(pair)


def _close_hard(end: socket.socket) -> None:
    """With a reset, not a farewell."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    end.close()
