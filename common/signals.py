"""Signals as data: a socket that becomes readable with their numbers, for a loop that polls. SIGHUP is among them: a
terminal that closes must end a run as a Ctrl-C in it does, with its report. Where it is ignored, it stays so: `nohup`
asks for that."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager


class Signals:
    """SIGINT, SIGTERM and SIGHUP that have come and were not asked for yet."""

    def __init__(self, reader: socket.socket) -> None:
        self._reader = reader

    def fileno(self) -> int:
        """What to poll."""
        return self._reader.fileno()

    def take(self) -> int:
        """How many have come since the last call."""
        try:
            return len(self._reader.recv(64))
        except BlockingIOError:
            return 0


@contextmanager
def caught_signals() -> Iterator[Signals]:
    """Catch these signals for as long as the block runs; the handlers before are put back after it."""
    reader, writer = socket.socketpair()
    reader.setblocking(False)
    writer.setblocking(False)
    numbers = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, _leave_to_wakeup_fd) for number in numbers}
    wakeup_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield Signals(reader)
    finally:
        signal.set_wakeup_fd(wakeup_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        reader.close()
        writer.close()


def _leave_to_wakeup_fd(number: int, frame: object) -> None:
    """Python writes the number to the wakeup socket by itself; a handler only has to be there."""
