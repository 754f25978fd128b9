"""Reports which sockets are ready to be read or written: by epoll on Linux, by kqueue on macOS.

Edge-triggered: a file is reported when new bytes arrive, and not again while they are unread. So a reader that stops
early must remember that more may be left. In return, a wait does not examine files that were reported before.
"""

from __future__ import annotations

import select
import sys
from typing import Any, Protocol

READ, WRITE = 1, 4
"""What a file is ready for, as epoll's bits. Any other bit means: read to the end of the stream."""

_SELECTABLE = 1024
"""select(2) takes file descriptors below this."""
_AT_ONCE = 256
_NS_PER_S = 1e9


class WatchedFiles(Protocol):
    """Watches files for reading, and some of them for writing. For one thread."""

    def add(self, fd: int) -> None:
        """Watch this file for reading."""

    def watch_write(self, fd: int, wanted: bool) -> None:
        """Begin or stop to watch this file for writing too."""

    def remove(self, fd: int) -> None:
        """Stop watching this file. Call it before the file is closed."""


class FilePoller(WatchedFiles, Protocol):
    """Waits until any of the files is ready."""

    def wait(self, timeout_ns: int, is_precise: bool) -> list[tuple[int, int]]:
        """[(file, what it is ready for)], as soon as any file is ready, or after `timeout_ns`. is_precise: wait to the
        microsecond if the system can; otherwise to the millisecond."""

    def close(self) -> None:
        """Idempotent."""


_WATCHED = READ | getattr(select, "EPOLLRDHUP", 0) | getattr(select, "EPOLLET", 0)


class EpollPoller:
    """A poller on epoll."""

    def __init__(self) -> None:
        self._epoll: Any = select.epoll()
        self._is_selectable = self._epoll.fileno() < _SELECTABLE
        self._poll = self._epoll.poll

    def add(self, fd: int) -> None:
        self._epoll.register(fd, _WATCHED)

    def watch_write(self, fd: int, wanted: bool) -> None:
        self._epoll.modify(fd, _WATCHED | WRITE if wanted else _WATCHED)

    def remove(self, fd: int) -> None:
        self._epoll.unregister(fd)

    def wait(self, timeout_ns: int, is_precise: bool) -> list[tuple[int, int]]:
        if timeout_ns <= 0 or (is_precise and self._is_selectable):
            ready: list[tuple[int, int]] = self._poll(0, _AT_ONCE)
            if ready or timeout_ns <= 0:
                return ready
            # epoll rounds up to whole milliseconds. select does not, and can wait for an epoll as for any file.
            select.select((self._epoll,), (), (), timeout_ns / _NS_PER_S)
            timeout_ns = 0
        found: list[tuple[int, int]] = self._poll(timeout_ns / _NS_PER_S, _AT_ONCE)
        return found

    def close(self) -> None:
        self._epoll.close()


class KqueuePoller:
    """A poller on kqueue."""

    def __init__(self) -> None:
        self._queue: Any = select.kqueue()  # type: ignore[attr-defined]
        self._writes: set[int] = set()

    def add(self, fd: int) -> None:
        self._change(fd, select.KQ_FILTER_READ, select.KQ_EV_ADD | select.KQ_EV_CLEAR)  # type: ignore[attr-defined]

    def watch_write(self, fd: int, wanted: bool) -> None:
        if wanted is (fd in self._writes):
            return
        (self._writes.add if wanted else self._writes.discard)(fd)
        flag = select.KQ_EV_ADD if wanted else select.KQ_EV_DELETE  # type: ignore[attr-defined]
        self._change(fd, select.KQ_FILTER_WRITE, flag)  # type: ignore[attr-defined]

    def remove(self, fd: int) -> None:
        self.watch_write(fd, False)
        self._change(fd, select.KQ_FILTER_READ, select.KQ_EV_DELETE)  # type: ignore[attr-defined]

    def _change(self, fd: int, which: int, flag: int) -> None:
        self._queue.control([select.kevent(fd, which, flag)], 0)  # type: ignore[attr-defined]

    def wait(self, timeout_ns: int, is_precise: bool) -> list[tuple[int, int]]:  # noqa: ARG002 - kqueue is precise
        found: dict[int, int] = {}
        for event in self._queue.control(None, _AT_ONCE, max(0.0, timeout_ns / _NS_PER_S)):
            kind = WRITE if event.filter == select.KQ_FILTER_WRITE else READ  # type: ignore[attr-defined]
            found[event.ident] = found.get(event.ident, 0) | kind
        return list(found.items())

    def close(self) -> None:
        self._queue.close()


def open_poller() -> FilePoller:
    """The poller of this system. Close it."""
    return EpollPoller() if sys.platform == "linux" else KqueuePoller()
