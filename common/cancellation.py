"""What everything that waits for the target hangs on, so that one cut ends all of it at once."""

from __future__ import annotations

import socket
import threading
import weakref
from contextlib import suppress


class CutShort(Exception):
    """The run's end came while somebody was connecting, waiting for a reply, to try again, or for a client."""


class Lifeline:
    """Cutting it ends, at once and for good, what hangs on it: blocked sockets, backoffs, further connects.

    So neither a server that hangs nor a long retry policy can hold up the end of a run. Thread-safe.
    """

    def __init__(self) -> None:
        self._cut = threading.Event()
        self._lock = threading.Lock()
        self._sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()

    @property
    def is_cut(self) -> bool:
        """Whether it was cut."""
        return self._cut.is_set()

    def cut(self) -> None:
        """End everything. Threads blocked in a socket or a backoff come out with an error."""
        with self._lock:
            self._cut.set()
            sockets = list(self._sockets)
        for sock in sockets:
            with suppress(OSError):  # closed already, or never connected
                sock.shutdown(socket.SHUT_RDWR)

    def check(self) -> None:
        """Raises CutShort once it was cut."""
        if self._cut.is_set():
            raise CutShort("the run is over")

    def hold(self, sock: socket.socket) -> None:
        """From now on cutting shuts this socket down. Raises CutShort when it is too late."""
        with self._lock:
            self._sockets.add(sock)
        self.check()

    def wait(self, seconds: float) -> None:
        """Sleep. Raises CutShort as soon as it is cut."""
        if seconds > 0:
            self._cut.wait(seconds)
        self.check()
