"""A client for control commands to one server, outside the load. It stores its last command and reply, so that an error
can quote a reply that makes no sense."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from common.errors import TargetError
from common.units import printable

BAD_REPLY_ERRORS = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    AssertionError,
)
"""Errors in redis-py, or in code that reads its replies, if a reply has an unexpected type, length or encoding.
ValueError also covers an overlong integer, which Python refuses to print."""

_NO_REPLY = object()
_UNKNOWN = object()
_WITH_SUBCOMMAND = frozenset({"INFO", "CONFIG", "SENTINEL", "SCRIPT", "FUNCTION"})


class ControlClient(redis.Redis):
    """redis-py's client of one server. last_command: the first words of the last command. last_reply: the last reply as
    parsed, before redis-py converts it."""

    last_command = ""
    last_reply: object = _NO_REPLY

    def execute_command(self, *args: Any, **options: Any) -> Any:
        # Only the first words: messages must not show keys and values.
        words = args[:2] if str(args[0]).upper() in _WITH_SUBCOMMAND else args[:1]
        self.last_command, self.last_reply = " ".join(map(str, words)), _NO_REPLY
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except Exception as error:
            error.command = self.last_command  # type: ignore[attr-defined]  # for `translate`
            raise

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        return super().parse_response(_RecordingConnection(connection, self), command_name, **options)  # type: ignore[no-untyped-call]


class _RecordingConnection:
    """A connection that stores its replies in the client."""

    def __init__(self, connection: Any, client: ControlClient) -> None:
        self._connection, self._client = connection, client

    def read_response(self, **options: Any) -> Any:
        self._client.last_reply = self._connection.read_response(**options)
        return self._client.last_reply


@contextmanager
def checked_replies(name: object, client: Any = None) -> Iterator[None]:
    """Converts errors from a reply that makes no sense (`BAD_REPLY_ERRORS`) into a TargetError that names the server,
    the command and the reply. name: of the server. client: sends the commands; only a ControlClient stores the last
    one."""
    try:
        yield
    except BAD_REPLY_ERRORS as error:
        command, reply = getattr(client, "last_command", ""), getattr(client, "last_reply", _NO_REPLY)
        raise TargetError(f"target {name} {bad_reply_finding(error, command, reply)}") from error


def bad_reply_finding(error: Exception, command: str = "", reply: object = _UNKNOWN) -> str:
    """What is wrong with a server's reply, and the error that it caused. The text follows the server's name. command:
    "" if unknown."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({os.path.basename(last[0].filename)}:{last[0].lineno})" if last else ""
    text = printable(" ".join(str(error).split()))[:100]
    what = f"{type(error).__name__}{': ' if text else ''}{text}{where}"
    if not command:
        return f"gave an answer that makes no sense: {what}"
    if reply is _NO_REPLY:
        return f"sent something that makes no sense before it answered {command}: {what}"
    found = "" if reply is _UNKNOWN else f", {_shown(reply)}"
    return f"answered {command}, but the answer makes no sense{found}: {what}"


def _shown(reply: object) -> str:
    try:
        text = printable(repr(reply))
    except (ValueError, RecursionError):
        return f"a {type(reply).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
