"""Signals as data: a socket that becomes readable, for a polling loop. SIGHUP is included, so closing the terminal ends
a run like Ctrl-C, with a report. If SIGHUP is ignored, as under `nohup`, it stays ignored."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager


class Signals:
    """SIGINT, SIGTERM and SIGHUP that have arrived."""

    def __init__(self, reader: socket.socket) -> None:
        self._reader = reader

    def fileno(self) -> int:
        """The file descriptor to poll: readable when signals have arrived."""
        return self._reader.fileno()

    def take(self) -> int:
        """How many signals have arrived since the last call."""
        try:
            return len(self._reader.recv(64))
        except BlockingIOError:
            return 0


@contextmanager
def caught_signals() -> Iterator[Signals]:
    """Catch these signals in a `with` block, and restore the previous handlers after it."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, _leave_to_wakeup_fd) for number in numbers}
    previous_wakeup_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield Signals(reader)
    finally:
        signal.set_wakeup_fd(previous_wakeup_fd)
        for number, handler in previous.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


def _leave_to_wakeup_fd(number: int, frame: object) -> None:
    """Does nothing. It must exist because Python writes the number to the wakeup socket only if there is a handler."""
