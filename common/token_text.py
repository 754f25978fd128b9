"""Where the text of a token comes from: a variable, stdin, or a file or pipe. Nothing here waits for ever, or reads a
file that others may read too."""

from __future__ import annotations

import os
import select
import shlex
import stat
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from common.clock import monotonic_ns
from common.errors import UsageError
from common.units import NS_PER_S

TOKEN, KEY, TOKEN_FILE = "STAMPEDE_TOKEN", "STAMPEDE_TOKEN_KEY", "STAMPEDE_TOKEN_FILE"
WAIT_S = 10.0
"""How long a pipe may take to deliver. Process substitution, `<(vault read ...)`, is a pipe that needs some time."""
_MOST_BYTES = 16 * 1024
_STDIN, _STDIN_NAME = 0, "stdin"
_ROOT_GROUP = 0


@dataclass(frozen=True, slots=True)
class Variables:
    """What the environment says of the token. token, key: texts of the two files; file: where the token is."""

    token: str = field(default="", repr=False)
    key: str = field(default="", repr=False)
    file: str = ""

    @classmethod
    def taken_from(cls, environment: MutableMapping[str, str]) -> Self:
        """Read them, and remove the secrets: no process that we start may inherit them."""
        return cls(environment.pop(TOKEN, ""), environment.pop(KEY, ""), environment.get(TOKEN_FILE, ""))


def read_secret_file(path: Path, what: str, wait_s: float = WAIT_S) -> str:
    """The text of a file or pipe. what: names its content in errors, such as "the token".

    Raises UsageError if there is no such text, or if others may read it.
    """
    try:
        # Before it is opened: opening a device may already do something.
        _refuse_kind(path, path.stat().st_mode, what)
        # Non-blocking: a pipe that nobody writes to must not hold us up here.
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            _refuse_kind(path, status.st_mode, what)
            _refuse_readers(path, status)
            return _read(fd, str(path), what, wait_s)
        finally:
            os.close(fd)
    except OSError as error:
        raise UsageError(f"{path}: cannot read {what}: {error.strerror}") from error


def read_secret_stdin(what: str, wait_s: float = WAIT_S) -> str:
    """All of stdin. Raises UsageError if it is a terminal, closed, or not ended in time."""
    if os.isatty(_STDIN):
        raise UsageError(f"{_STDIN_NAME}: expected {what} from a pipe or a file, got a terminal")
    try:
        return _read(_STDIN, _STDIN_NAME, what, wait_s)
    except OSError as error:
        raise UsageError(f"{_STDIN_NAME}: cannot read {what}: {error.strerror}") from error


def _refuse_kind(path: Path, mode: int, what: str) -> None:
    kinds = ((stat.S_ISDIR, "a directory"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device or terminal"))
    for is_kind, name in (*kinds, (stat.S_ISBLK, "a device")):
        if is_kind(mode):
            raise UsageError(f"{path}: expected a file or a pipe with {what}, got {name}")


def _refuse_readers(path: Path, status: os.stat_result) -> None:
    """Only the owner may read it, or a group of ours besides: so Kubernetes (fsGroup) and systemd hand out secrets."""
    ours = {_ROOT_GROUP, os.getegid(), *os.getgroups()}
    allowed = 0o640 if status.st_gid in ours else 0o600
    if stat.S_IMODE(status.st_mode) & 0o077 & ~allowed:
        raise UsageError(
            f"{path}: others may read it; expected mode 0600 (chmod 600 {shlex.quote(str(path))}), or 0640 with a "
            "group that this user is in"
        )


def _read(fd: int, name: str, what: str, wait_s: float) -> str:
    data = b""
    give_up_ns = monotonic_ns() + round(wait_s * NS_PER_S)
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    while len(data) <= _MOST_BYTES:
        left_ms = (give_up_ns - monotonic_ns()) / 1e6
        if left_ms <= 0 or not poller.poll(left_ms):
            raise UsageError(f"{name}: expected {what} from this pipe, but it did not end within {wait_s:g} s")
        try:
            part = os.read(fd, _MOST_BYTES)
        except BlockingIOError:
            continue
        if not part:
            break
        data += part
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: cannot read {what}: it is no text") from error
