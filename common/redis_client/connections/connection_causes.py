"""Short, stable names for the causes of connections that do not open or are lost. Pure.

The name follows from the class of the error, its errno, or the code of the server's error reply. Two causes can only be
recognised by text: Redis sends "max number of clients reached" (in a cluster "max number of clients + cluster
connections reached") with the general code ERR, and asyncio joins the errors of several addresses into one text.
"""

from __future__ import annotations

import errno
import re
import socket
import ssl

import redis
from redis.sentinel import MasterNotFoundError

from common.metrics.intervals import CLOSED_BY_SERVER, LOCAL_PORTS, MAXCLIENTS, OPEN_FILES, RESET, SYSTEM_FILES

_MAXCLIENTS_TEXT = "max number of clients "
_AUTHENTICATION = ("NOAUTH", "WRONGPASS")
_BY_ERRNO = {
    errno.EMFILE: OPEN_FILES,
    errno.ENFILE: SYSTEM_FILES,
    errno.EADDRNOTAVAIL: LOCAL_PORTS,
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: RESET,
    errno.EPIPE: RESET,
    errno.ECONNABORTED: RESET,
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.ENOENT: "no socket file",
    # Only for Unix sockets.
    errno.EAGAIN: "backlog full",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
}
_JOINED_ERRNO = re.compile(r"\[Errno (\d+)\]")


def attempt_cause(error: BaseException) -> str:
    """Why an attempt to open a connection failed, in its handshake or before."""
    if is_maxclients(error):
        return MAXCLIENTS
    if isinstance(error, redis.AuthenticationError) or _code(error) in _AUTHENTICATION:
        return "authentication"
    if isinstance(error, MasterNotFoundError):
        return "no primary"
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return "timeout"
    return _code(error) or _cause_of_os(os_error_of(error)) or _cause_of_class(error)


def drop_cause(error: BaseException) -> str:
    """Why an open connection was lost."""
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return "timeout"
    return _code(error) or _cause_of_class(error)


def is_maxclients(error: BaseException) -> bool:
    """Whether the server refused the connection because `maxclients` is reached."""
    return isinstance(error, redis.ConnectionError | redis.ResponseError) and _MAXCLIENTS_TEXT in str(error)


def os_error_of(error: BaseException | None) -> OSError | None:
    """The socket's error behind an error of redis-py; None if there is none, and for a timeout."""
    # redis-py raises its error while it handles the socket's error, which is therefore the context, not the cause.
    while error is not None:
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _code(error: BaseException) -> str:
    return str(getattr(error, "status_code", None) or "")


def _cause_of_os(error: OSError | None) -> str:
    if error is None:
        return ""
    if isinstance(error, socket.gaierror):
        return "host name"
    if isinstance(error, ssl.SSLError):
        return CLOSED_BY_SERVER if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) else "TLS"
    number = error.errno
    if number is None and (joined := _JOINED_ERRNO.search(str(error))):
        number = int(joined[1])
    return _BY_ERRNO.get(number or 0, "")


def _cause_of_class(error: BaseException) -> str:
    # If the server closes a connection, redis-py raises a plain ConnectionError (end of file), or the socket raises a
    # reset or a broken pipe. Which one depends on timing, so all count as the same cause.
    closed = type(error) is redis.ConnectionError or isinstance(error, ConnectionResetError | BrokenPipeError)
    return CLOSED_BY_SERVER if closed else type(error).__name__
