"""Reads small files that the user names. Their size is limited, and for pipes also the time.

The name may be that of a pipe: bash passes one for `<(pass show redis)`. The writer of a pipe may need some time, and a
named pipe may have no writer. Devices are refused before they are opened, because opening a device may have effects.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.clock import monotonic_ns
from common.units import NS_PER_S

WAIT_S = 10.0
"""How long a pipe may take to end."""
_CHUNK_BYTES = 1 << 16
_KINDS = ((stat.S_ISDIR, "a directory"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device or terminal"),
          (stat.S_ISBLK, "a device"))  # fmt: skip


class WrongKind(OSError):
    """The name is neither a file's nor a pipe's. kind: what it is, such as "a socket"."""

    def __init__(self, kind: str) -> None:
        super().__init__(errno.EINVAL, f"it is {kind}")
        self.kind = kind


def read_bounded(path: Path, limit: int, wait_s: float = WAIT_S) -> bytes:
    """The content of a file or pipe, or its first `limit + 1` bytes. Raises OSError: WrongKind, or TimeoutError for a
    pipe that does not end in time."""
    with opened(path) as fd:
        return read_to_end(fd, limit, wait_s)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A file descriptor of a file or pipe, for `read_to_end`. Raises OSError: WrongKind for anything else."""
    _refuse_kind(path.stat().st_mode)
    # Non-blocking: otherwise `open` waits for a writer if the pipe has none.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _refuse_kind(os.fstat(fd).st_mode)
        yield fd
    finally:
        os.close(fd)


def _refuse_kind(mode: int) -> None:
    """Raises WrongKind for anything but a file or pipe. mode: its st_mode."""
    for is_kind, name in _KINDS:
        if is_kind(mode):
            raise WrongKind(name)


def read_to_end(fd: int, limit: int, wait_s: float) -> bytes:
    """The rest of a file or pipe, or its first `limit + 1` bytes. Raises OSError: TimeoutError if it does not end in
    time."""
    parts: list[bytes] = []
    left = limit + 1
    give_up_ns = monotonic_ns() + round(wait_s * NS_PER_S)
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while left:
        if not poller.poll(max(0, give_up_ns - monotonic_ns()) / 1e6):
            raise TimeoutError(errno.ETIMEDOUT, f"it is a pipe that did not end within {wait_s:g} s")
        try:
            part = os.read(fd, min(_CHUNK_BYTES, left))
        except BlockingIOError:
            continue
        if not part:
            break
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
