"""Writes a program's stderr in a thread, so that no other thread waits for stderr.

A write to a paused terminal (Ctrl-S), to a full pipe or to a hung ssh session blocks, but the loops that keep a fleet
alive must not block. So a thread writes, from a bounded queue. Lines that do not fit or cannot be written are dropped.
When stderr accepts output again, one line reports how many lines are missing.

O_NONBLOCK would be simpler, but on a terminal it would affect the shell and all other programs there. Polling before a
write is not enough: another process may fill a pipe in between, and a file on a hung disk always counts as writable.
"""

from __future__ import annotations

import atexit
import io
import os
import select
import signal
import sys
import threading
from collections import deque

MOST_BYTES = 256 * 1024
"""Size of the queue: thousands of lines, or fifty screens of the live view."""
PATIENCE_S = 1.0
"""How long the end of a program waits for a stderr that accepts nothing."""
_STDERR = 2
_PIECE_BYTES = 4096
"""Size of one write. Small, so that progress of a slow reader is visible."""


class StderrWriter(io.BufferedIOBase):
    """A file descriptor that a thread writes to. `write` never raises and never waits."""

    def __init__(self, fd: int, most_bytes: int = MOST_BYTES) -> None:
        super().__init__()
        self._fd, self._most_bytes = fd, most_bytes
        lock = threading.Lock()
        self._wanted, self._progress = threading.Condition(lock), threading.Condition(lock)
        self._queue: deque[tuple[bytes, int]] = deque()
        """Texts, and how many lines are missing if one cannot be written."""
        self._waiting_bytes = 0
        """Bytes in the queue, and in the write in progress."""
        self._missing = 0
        """Dropped lines that are not reported yet."""
        self._pieces = 0
        """Number of pieces written. Shows `drain` whether there is progress."""
        self._thread: threading.Thread | None = None
        self._ended = False

    def writable(self) -> bool:
        """True."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    @property
    def name(self) -> int:
        """The descriptor, as for other streams."""
        return self._fd

    def isatty(self) -> bool:
        """Whether the descriptor is a terminal."""
        return os.isatty(self._fd)

    @property
    def is_behind(self) -> bool:
        """Whether earlier output is still waiting."""
        return self._waiting_bytes > 0

    def write(self, data: object) -> int:
        """Queue all data, or drop all of it. Returns its size in either case."""
        text = bytes(memoryview(data))  # type: ignore[arg-type]  # typeshed has no name for a buffer in 3.11
        with self._wanted:
            # The report of missing lines takes their place, so no later text is queued before the report is written.
            has_room = not self._waiting_bytes or self._waiting_bytes + len(text) <= self._most_bytes
            must_wait = self._missing and self._waiting_bytes
            if self._ended or must_wait or not has_room or not self._has_thread():
                self._missing += _lines(text)
            else:
                missing, self._missing = self._missing, 0
                self._put(_report(missing) + text, missing + _lines(text))
                self._wanted.notify()
        return len(text)

    def drain(self, patience_s: float | None) -> bool:
        """Wait until everything is written, but no longer than `patience_s` without progress; None: without a limit.
        Returns whether everything is written."""
        with self._progress:
            while self._waiting_bytes:
                before = self._pieces
                self._progress.wait(patience_s)
                if patience_s is not None and self._pieces == before:
                    return False
        return True

    def close(self) -> None:
        """Drop what is not written yet. Does not wait for a write in progress. Idempotent."""
        with self._wanted:
            self._ended = True
            self._wanted.notify()
        super().close()

    def _has_thread(self) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._write_queue, name="stderr writer", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads, or the interpreter is shutting down
                return False
            self._thread = thread
        return True

    def _put(self, text: bytes, lines: int) -> None:
        self._queue.append((text, lines))
        self._waiting_bytes += len(text)

    def _write_queue(self) -> None:
        # Signals are for the main thread: a signal delivered to this thread would not interrupt the main thread's
        # waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while True:
            with self._wanted:
                while not self._queue and not self._ended:
                    self._wanted.wait()
                if self._ended:
                    return
                text, lines = self._queue.popleft()
            written = self._write(text)
            with self._wanted:
                self._waiting_bytes -= len(text)
                if not written:
                    self._missing += lines
                elif self._missing and not self._queue:
                    missing, self._missing = self._missing, 0
                    self._put(_report(missing), missing)
                self._progress.notify_all()

    def _write(self, text: bytes) -> bool:
        """Whether everything was written."""
        left = memoryview(text)
        while left:
            try:
                left = left[os.write(self._fd, left[:_PIECE_BYTES]) :]
            except BlockingIOError:  # another program on the same terminal made it non-blocking
                if self._ended:
                    return False
                select.select([], [self._fd], [], PATIENCE_S)
            except OSError:
                return False
            else:
                with self._progress:
                    self._pieces += 1
                    self._progress.notify_all()
        return True


def text_stream(writer: StderrWriter, encoding: str | None = None) -> io.TextIOWrapper:
    """A line-buffered text stream on a StderrWriter."""
    return io.TextIOWrapper(writer, encoding=encoding or "utf-8", errors="backslashreplace", line_buffering=True)


def is_behind(stream: object) -> bool:
    """Whether earlier output of a stream is not written yet. False for a stream that is not on a StderrWriter."""
    writer = getattr(stream, "buffer", None)
    return isinstance(writer, StderrWriter) and writer.is_behind


def write_stderr_by_thread() -> None:
    """Write stderr in a thread from now on. The process waits for stderr only at its end, for at most a second."""
    writer = StderrWriter(_STDERR)
    sys.stderr = text_stream(writer)
    atexit.register(writer.drain, PATIENCE_S)


def _lines(text: bytes) -> int:
    """How many lines `text` has; an incomplete line counts."""
    return max(1, text.count(b"\n")) if text else 0


def _report(missing: int) -> bytes:
    if not missing:
        return b""
    found = "1 line was" if missing == 1 else f"{missing:,} lines were"
    return f"({found} not shown: stderr took no output)\n".encode()
