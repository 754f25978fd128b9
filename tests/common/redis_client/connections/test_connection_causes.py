from __future__ import annotations

import errno
import socket
import ssl

import pytest
import redis
from redis.sentinel import MasterNotFoundError

from common.plan.schema import Target
from common.redis_client import translate
from common.redis_client.connections.connection_causes import attempt_cause, drop_cause


def wrapped(cause: OSError) -> Exception:
    """As redis-py raises it: its own error, while it handles the socket's error."""
    try:
        try:
            raise cause
        except OSError as error:
            raise redis.ConnectionError(f"Error connecting to 127.0.0.1:6379. {error}")  # noqa: B904 - as redis-py does
    except redis.ConnectionError as error:
        return error


def replied(kind: type[redis.RedisError], text: str, code: str) -> Exception:
    error = kind(text)
    error.status_code = code  # type: ignore[attr-defined]
    return error


OS_ERRORS = {
    "ulimit -n": OSError(errno.EMFILE, "Too many open files"),
    "fs.file-max": OSError(errno.ENFILE, "Too many open files in system"),
    "local ports": OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"),
    "refused": ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    "reset": ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    "timeout": TimeoutError("timed out"),
    "unreachable": OSError(errno.EHOSTUNREACH, "No route to host"),
    "no socket file": FileNotFoundError(errno.ENOENT, "No such file or directory"),
    "backlog full": BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    "permission": PermissionError(errno.EACCES, "Permission denied"),
    "host name": socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    "TLS": ssl.SSLCertVerificationError(1, "certificate verify failed"),
    "closed by server": ssl.SSLEOFError(8, "EOF occurred in violation of protocol"),
}


@pytest.mark.parametrize(("cause", "error"), OS_ERRORS.items(), ids=OS_ERRORS.keys())
def test_an_os_error_has_the_same_cause_bare_and_wrapped_by_redis_py(cause: str, error: OSError) -> None:
    assert attempt_cause(error) == cause
    if cause != "timeout":  # of which redis-py makes a class of its own
        assert attempt_cause(wrapped(error)) == cause


REPLIES = {
    "maxclients": replied(redis.ConnectionError, "max number of clients reached", "ERR"),
    "timeout": redis.TimeoutError("Timeout connecting to server"),
    "authentication": replied(redis.AuthenticationError, "invalid username-password pair", "WRONGPASS"),
    "LOADING": replied(redis.BusyLoadingError, "Redis is loading the dataset in memory", "LOADING"),
    "ERR": replied(redis.ResponseError, "unknown command", "ERR"),
    "no primary": MasterNotFoundError("No master found"),
    "closed by server": redis.ConnectionError("Connection closed by server."),
    "InvalidResponse": redis.InvalidResponse("HELLO was not answered with a map"),
}


@pytest.mark.parametrize(("cause", "error"), REPLIES.items(), ids=REPLIES.keys())
def test_errors_of_the_handshake_have_causes(cause: str, error: Exception) -> None:
    assert attempt_cause(error) == cause


def test_the_refusal_of_a_full_cluster_node_is_maxclients_too() -> None:
    error = replied(redis.ResponseError, "max number of clients + cluster connections reached", "ERR")
    error.handshake_step = ("HELLO", "3")  # type: ignore[attr-defined]
    assert attempt_cause(error) == "maxclients"
    said = str(translate(error, Target(url="redis://127.0.0.1:6379")))
    assert said.endswith("raise maxclients on the server, or use fewer connections")
    assert "protocol" not in said


def test_the_text_alone_is_not_the_reply_of_a_full_server() -> None:
    assert attempt_cause(ValueError("max number of clients reached")) == "ValueError"


def test_the_first_cause_counts_if_asyncio_tried_several_addresses() -> None:
    joined = OSError(
        "Multiple exceptions: [Errno 111] Connect call failed ('::1', 1, 0, 0), "
        "[Errno 111] Connect call failed ('127.0.0.1', 1)"
    )
    assert attempt_cause(wrapped(joined)) == "refused"


def test_an_unknown_errno_gives_the_class_of_the_error() -> None:
    assert attempt_cause(OSError(errno.EIO, "Input/output error")) == "OSError"


def test_causes_of_a_drop() -> None:
    assert drop_cause(redis.TimeoutError("x")) == "timeout"
    assert drop_cause(redis.ConnectionError("Connection closed by server.")) == "closed by server"
    assert drop_cause(ConnectionResetError(errno.ECONNRESET, "x")) == "closed by server"
    assert drop_cause(replied(redis.ReadOnlyError, "x", "READONLY")) == "READONLY"
