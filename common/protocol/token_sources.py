"""Reads the text of a token from a variable, stdin, a file or a pipe. Pipes have a time limit. Files that other users
may read are refused."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from common.errors import UsageError
from common.file_reading import WAIT_S, WrongKind, opened, read_to_end

TOKEN, KEY, TOKEN_FILE = "STAMPEDE_TOKEN", "STAMPEDE_TOKEN_KEY", "STAMPEDE_TOKEN_FILE"
_MOST_BYTES = 16 * 1024
_STDIN, _STDIN_NAME = 0, "stdin"
_ROOT_GROUP = 0


@dataclass(frozen=True, slots=True)
class TokenVariables:
    """Environment variables about the token. token, key: texts of the two files. file: path of the token."""

    token: str = field(default="", repr=False)
    key: str = field(default="", repr=False)
    file: str = ""

    @classmethod
    def taken_from(cls, environment: MutableMapping[str, str]) -> Self:
        """Read the variables, and remove the secrets, so that no child process inherits them."""
        return cls(environment.pop(TOKEN, ""), environment.pop(KEY, ""), environment.get(TOKEN_FILE, ""))


def read_secret_file(path: Path, what: str, wait_s: float = WAIT_S) -> str:
    """The text of a file or pipe. what: names its content in errors, such as "the token".

    Raises UsageError if there is no such text, or if others may read it.
    """
    try:
        with opened(path) as fd:
            _refuse_readers(path, os.fstat(fd))
            return _read(fd, str(path), what, wait_s)
    except WrongKind as error:
        raise UsageError(f"{path}: expected a file or a pipe with {what}, got {error.kind}") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot read {what}: {error.strerror}") from error


def read_secret_stdin(what: str, wait_s: float = WAIT_S) -> str:
    """All of stdin. Raises UsageError if stdin is a terminal, is closed, or does not end in time."""
    if os.isatty(_STDIN):
        raise UsageError(f"{_STDIN_NAME}: expected {what} from a pipe or a file, got a terminal")
    try:
        return _read(_STDIN, _STDIN_NAME, what, wait_s)
    except OSError as error:
        raise UsageError(f"{_STDIN_NAME}: cannot read {what}: {error.strerror}") from error


def _refuse_readers(path: Path, status: os.stat_result) -> None:
    """Raises UsageError if anybody but the owner and a group of ours may read the file. Kubernetes (fsGroup) and
    systemd give secrets to groups."""
    ours = {_ROOT_GROUP, os.getegid(), *os.getgroups()}
    allowed = 0o640 if status.st_gid in ours else 0o600
    if stat.S_IMODE(status.st_mode) & 0o077 & ~allowed:
        raise UsageError(
            f"{path}: others may read it; expected mode 0600 (chmod 600 {shlex.quote(str(path))}), or 0640 with a "
            "group that this user is in"
        )


def _read(fd: int, name: str, what: str, wait_s: float) -> str:
    try:
        data = read_to_end(fd, _MOST_BYTES, wait_s)
    except TimeoutError as error:
        raise UsageError(f"{name}: expected {what} from this pipe, but it did not end within {wait_s:g} s") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name}: cannot read {what}: it is not text") from error
