"""A client for questions to one server beside the load. It remembers its last question and the answer, so that an error
can name an answer that makes no sense."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from common.errors import TargetError
from common.units import printable

STUMBLES = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, AssertionError)
"""Errors in redis-py, or in code that reads its replies, if an answer has an unexpected type, length or encoding.
ValueError also covers an overlong integer, which Python refuses to print."""

_NOTHING = object()


class ControlClient(redis.Redis):
    """redis-py's client of one server. question: the last command; answer: its reply as it was read, before redis-py
    converts it."""

    question = ""
    answer: object = _NOTHING

    def execute_command(self, *args: Any, **options: Any) -> Any:
        # Only the first words: messages must not show keys and values.
        words = args[:2] if str(args[0]).upper() in _CONTAINERS else args[:1]
        self.question, self.answer = " ".join(map(str, words)), _NOTHING
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except Exception as error:
            error.question = self.question  # type: ignore[attr-defined]  # for `translate`
            raise

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        return super().parse_response(_Overheard(connection, self), command_name, **options)  # type: ignore[no-untyped-call]


_CONTAINERS = frozenset({"INFO", "CONFIG", "SENTINEL", "SCRIPT", "FUNCTION"})


class _Overheard:
    """A connection that stores its replies in the client."""

    def __init__(self, connection: Any, client: ControlClient) -> None:
        self._connection, self._client = connection, client

    def read_response(self, **options: Any) -> Any:
        self._client.answer = self._connection.read_response(**options)
        return self._client.answer


@contextmanager
def checked_replies(name: object, client: Any = None) -> Iterator[None]:
    """Turns errors from an answer that makes no sense (`STUMBLES`) into TargetError with the server, the question and
    the answer. name: of the server. client: the one that asks; only a ControlClient knows its question."""
    try:
        yield
    except STUMBLES as error:
        question, answer = getattr(client, "question", ""), getattr(client, "answer", _NOTHING)
        raise TargetError(f"target {name} {nonsense(error, question, answer)}") from error


_UNKNOWN = object()


def nonsense(error: Exception, question: str = "", answer: object = _UNKNOWN) -> str:
    """What is wrong with a server's answer, and the error that it caused. question: "" if it is not known."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({os.path.basename(last[0].filename)}:{last[0].lineno})" if last else ""
    text = printable(" ".join(str(error).split()))[:100]
    what = f"{type(error).__name__}{': ' if text else ''}{text}{where}"
    if not question:
        return f"gave an answer that makes no sense: {what}"
    if answer is _NOTHING:
        return f"said something that makes no sense before it answered {question}: {what}"
    found = "" if answer is _UNKNOWN else f", {_shown(answer)}"
    return f"answered {question}, but the answer makes no sense{found}: {what}"


def _shown(answer: object) -> str:
    try:
        text = printable(repr(answer))
    except (ValueError, RecursionError):
        return f"a {type(answer).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
