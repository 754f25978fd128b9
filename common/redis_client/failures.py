"""The failure of an operation: what the server answered, or what kept it from answering."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import redis

from common.metrics.counts import MAX_NAME_LENGTH
from common.metrics.error_samples import MAX_MESSAGE
from common.metrics.intervals import MAXCLIENTS
from common.redis_client.connections.connection_causes import is_maxclients
from common.redis_client.error_translation import error_reply
from common.units import clipped

_PIPELINE_PREFIX = " of pipeline caused error: "


@dataclass(frozen=True, slots=True)
class Failure:
    """The failure of an operation. replied: whether the server sent an error reply. name: the code of the error reply,
    or the class of the error. bytes_in: size of the error reply on the wire; 0 without one. text: what distinguishes it
    from other failures of this name. error: the error; None if the client raised none. was_sent: to a server."""

    replied: bool
    name: str
    bytes_in: int
    text: str = field(default="", compare=False)
    error: BaseException | None = field(default=None, compare=False)
    was_sent: bool = field(default=True, compare=False)


def failure_of(error: BaseException) -> Failure:
    """The Failure for an error. error: raised by a client, or among the replies of a pipeline."""
    text = _text_of(error)
    code = getattr(error, "status_code", None)
    if getattr(error, "in_handshake", False):
        name = MAXCLIENTS if is_maxclients(error) else code or type(error).__name__
        return Failure(False, f"handshake: {name}", 0, text, error)
    if code:
        # redis-py removes the code from the text of errors that have a class of their own.
        return Failure(True, code, len(f"-{code} {text}\r\n".encode()), text, error)
    if isinstance(error, redis.ResponseError):
        first = text.partition(" ")[0]
        name = first if first.isalpha() and first.isupper() else "ERR"
        return Failure(True, name, len(f"-{text}\r\n".encode()), text, error)
    return Failure(False, type(error).__name__, 0, text, error)


def _text_of(error: BaseException) -> str:
    """The text of an error, without what redis-py's pipelines put before it: the number and arguments of the
    command."""
    text = str(error.args[0]) if error.args else ""
    if _PIPELINE_PREFIX not in text:
        return text
    text = text.partition(_PIPELINE_PREFIX)[2]
    # redis.asyncio inserts the tuple of the error's arguments.
    return text[2:-3] if text.startswith(("('", '("')) and text.endswith(("',)", '",)')) else text


def describe_failure(failure: Failure, hide: Callable[[str], str]) -> tuple[str, str, str]:
    """(message, class of redis-py's exception, error of the socket or system behind it), each in one line; "" for none.
    hide: removes secrets from a text."""
    error = failure.error
    if error is None:
        return _line(failure.text, hide), "", ""
    plain_text = failure.text if len(error.args) == 1 else str(error)
    text = error_reply(error, failure.text) if failure.replied else plain_text
    # The context of an error that redis-py raises may be another error, which it handles at that time.
    nearest = next((each for each in _causes(error) if isinstance(each, OSError)), error.__cause__)
    cause = f"{type(nearest).__name__}: {nearest}" if nearest is not None else ""
    return _line(text, hide), type(error).__name__[:MAX_NAME_LENGTH], _line(cause, hide)


def _line(text: str, hide: Callable[[str], str]) -> str:
    # Servers quote the arguments of an unknown command.
    short = " ".join(text[: 4 * MAX_MESSAGE].split()).partition(", with args beginning with")[0]
    return clipped(hide(short), MAX_MESSAGE)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The errors that led to an error, the nearest one first."""
    while (cause := error.__cause__ or error.__context__) is not None:
        yield cause
        error = cause
