"""Cancels everything that waits for the target: blocked sockets, retry backoffs and new connects."""

from __future__ import annotations

import socket
import threading
import weakref
from contextlib import suppress


class CutShort(Exception):
    """The run was cancelled during a connect, a reply, a backoff or a wait for a client."""


class Cancellation:
    """Ends all present and later waits that use this object. Thread-safe.

    So neither a server that hangs nor a long retry policy can delay the end of a run.
    """

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Wake every thread that is blocked in a watched socket or in `wait`: it gets an error. Idempotent."""
        with self._lock:
            self._cancelled.set()
            sockets = list(self._sockets)
        for sock in sockets:
            with suppress(OSError):  # closed already, or never connected
                sock.shutdown(socket.SHUT_RDWR)

    def check(self) -> None:
        """Raises CutShort after cancellation."""
        if self._cancelled.is_set():
            raise CutShort("the run is over")

    def watch(self, sock: socket.socket) -> None:
        """Shut this socket down on cancellation. Raises CutShort if it was cancelled already."""
        with self._lock:
            self._sockets.add(sock)
        self.check()

    def wait(self, seconds: float) -> None:
        """Sleep. Raises CutShort on cancellation."""
        if seconds > 0:
            self._cancelled.wait(seconds)
        self.check()
