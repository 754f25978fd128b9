"""plan.target -> redis-py clients and connections. The only place that builds them, and the only import of redis.

Facts about redis-py that this stands on are held by a contract test (tests/common/test_target.py):
- every connection of a pool is made with the pool's keyword arguments, so a `connection_class` can be given our own;
- `_connect` opens one socket; `on_connect_check_health` is the handshake; `disconnect` is the only way out, may come
  twice, and comes while the error that caused it is being handled;
- `Backoff.compute` is called exactly once for every retry, of a command as of a connect; `Retry` is deep-copied into
  each connection;
- an error that is not among a `Retry`'s supported errors passes through all of it at once.
"""

from __future__ import annotations

import copy
import errno
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import redis
from redis.backoff import (
    AbstractBackoff,
    ConstantBackoff,
    DecorrelatedJitterBackoff,
    EqualJitterBackoff,
    ExponentialBackoff,
    FullJitterBackoff,
    NoBackoff,
)
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from common.clock import monotonic_ns
from common.errors import TargetError
from common.lifeline import CutShort, Lifeline
from common.plan import schema
from common.plan.url import Address, parse_redis_url

Client: TypeAlias = redis.Redis

TARGET_ERRORS: tuple[type[Exception], ...] = (redis.RedisError, OSError)
"""What redis-py raises when the target is at fault: for `except` at callers of the clients made here."""


def address_of(target: schema.Target) -> Address:
    """Where the target is; user name and password of the plan go before those of its URL. Raises PlanError."""
    address = parse_redis_url(target.url)
    return Address(
        host=address.host,
        port=address.port,
        db=address.db,
        username=target.username or address.username,
        password=target.password or address.password,
    )


def open_control_client(target: schema.Target) -> Client:
    """A client of one connection that tries nothing twice, with the target's timeouts; for questions to the target
    beside the load. The connection opens with the first call; close the client to close it. Raises PlanError."""
    pool = redis.ConnectionPool(
        connection_class=WaryConnection,
        max_connections=1,
        retry=Retry(NoBackoff(), 0),
        **_connection_arguments(target),
    )
    return redis.Redis.from_pool(pool)


def _connection_arguments(target: schema.Target) -> dict[str, Any]:
    address = address_of(target)
    return {
        "host": address.host,
        "port": address.port,
        "db": address.db,
        "username": address.username,
        "password": address.password,
        "protocol": target.protocol,
        "client_name": target.client_name,
        "socket_connect_timeout": float(target.connect_timeout_s) or None,
        "socket_timeout": float(target.socket_timeout_s) or None,
        # "auto" costs a round trip on every connect to a server that lacks it.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


def ping_target(target: schema.Target) -> None:
    """Raises TargetError unless the target, asked once, answers as a Redis does; PlanError for a URL that is none."""
    with translated(target), open_control_client(target) as client:
        reply = client.execute_command("PING")
        if reply is not True:
            raise redis.InvalidResponse(f"PING was answered with {reply!r:.40}")


@contextmanager
def translated(target: schema.Target) -> Iterator[None]:
    """Whatever redis-py raises within comes out as TargetError, in one line."""
    try:
        yield
    except TARGET_ERRORS as error:
        raise translate(error, target) from error


def translate(error: Exception, target: schema.Target) -> TargetError:
    """redis-py's error as one line: which target, what it did, and what to do about it. Never shows a password."""
    return TargetError(f"target {address_of(target)} {_finding(error, target)}")


_TLS_HINT = "is it Redis, and not its TLS port?"


def _finding(error: Exception, target: schema.Target) -> str:
    cause = _os_error(error)
    if isinstance(cause, socket.gaierror):
        return "has a host name that cannot be resolved: check target.url"
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return (
            f"did not answer (waited up to {target.connect_timeout_s} to connect, {target.socket_timeout_s} for a "
            "reply): is it up, reachable from here, and a Redis?"
        )
    if cause is not None:
        return _OS_FINDINGS.get(cause.errno or 0, f"cannot be reached: {_one_line(cause.strerror or cause)}")
    code = getattr(error, "status_code", None)
    if code in _CODE_FINDINGS:
        return _CODE_FINDINGS[code]
    if code and type(error) is redis.ConnectionError:
        # So redis-py calls "-ERR max number of clients reached": it is a Redis, and it has said why.
        return f"refused the connection: {_reply_line(error)}"
    for kind, finding in _FINDINGS:
        if isinstance(error, kind):
            return finding.format(reply=_reply_line(error))
    return f"failed: {type(error).__name__}: {_reply_line(error)}"


def _os_error(error: BaseException | None) -> OSError | None:
    # redis-py raises its own error while it handles the socket's, which so is the context and not the cause.
    while error is not None:
        if isinstance(error, OSError) and not isinstance(error, TimeoutError):
            return error
        error = error.__cause__ or error.__context__
    return None


_OS_FINDINGS = {
    errno.ECONNREFUSED: "refused the connection: nothing listens there; start the server or correct target.url",
    errno.ECONNRESET: f"reset the connection: {_TLS_HINT}",
    errno.EMFILE: "was not reached, because this process may open no more files: raise `ulimit -n`",
    errno.EADDRNOTAVAIL: "was not reached, because this host has no local port left for it: use fewer connections",
}

_PASSWORD_PLACES = "target.password_env or target.password_file"
_CODE_FINDINGS = {
    "NOAUTH": f"wants a password: name it by {_PASSWORD_PLACES}, or write it into target.url",
    "WRONGPASS": f"refused our user name and password: correct target.username, {_PASSWORD_PLACES}",
}
_FINDINGS: tuple[tuple[type[Exception], str], ...] = (
    (redis.AuthenticationError, "refused our password: {reply}"),
    (redis.exceptions.NoPermissionError, "does not permit it: {reply}: use a user whose ACL does"),
    (redis.BusyLoadingError, "is still loading its data: {reply}: try again later"),
    (redis.InvalidResponse, f"does not speak RESP: {_TLS_HINT}"),
    (redis.ResponseError, "answered with an error: {reply}"),
    (redis.ConnectionError, f"ended the connection: {{reply}}: {_TLS_HINT}"),
)


def _reply_line(error: Exception) -> str:
    code = getattr(error, "status_code", None)
    text = _one_line(error.args[0] if error.args else error)
    return f"{code} {text}" if code and not text.startswith(code) else text


def _one_line(value: object) -> str:
    return " ".join(str(value).split())[:200].rstrip(".")


@dataclass(frozen=True, slots=True)
class Ending:
    """How an operation that was not done came to its end. replied: with an error reply, whose code is `name`; else
    `name` is the error's class. bytes_in: size of the error reply on the wire, 0 without one."""

    replied: bool
    name: str
    bytes_in: int


def ending_of(error: BaseException) -> Ending:
    """The Ending that an error means, raised by a client or found among a pipeline's replies."""
    text = str(error.args[0]) if error.args else ""
    code = getattr(error, "status_code", None)
    if getattr(error, "in_handshake", False):
        return Ending(False, f"handshake: {code or type(error).__name__}", 0)
    if code:
        # The parser cuts the code off the text of those errors that have a class of their own.
        return Ending(True, code, len(f"-{code} {text}\r\n".encode()))
    if isinstance(error, redis.ResponseError):
        first = text.partition(" ")[0]
        return Ending(True, first if first.isalpha() and first.isupper() else "ERR", len(f"-{text}\r\n".encode()))
    return Ending(False, type(error).__name__, 0)


def error_reply(error: Exception) -> str:
    """An error reply in one line, its code first."""
    return _reply_line(error)


class ConnectionEvents(Protocol):
    """Told of everything that happens to the connections of one client, from any thread. Stamps are monotonic ns."""

    def opened(self, at_ns: int, lost_ns: int | None) -> None:
        """Connected, handshake included. lost_ns: when the connection before it was dropped; None for a first one."""

    def attempt_failed(self, at_ns: int) -> None:
        """A connect or its handshake failed."""

    def dropped(self, at_ns: int, cause: str) -> None:
        """An open connection was lost without our meaning it."""

    def closed(self, at_ns: int) -> None:
        """We closed an open connection."""

    def retried(self, at_ns: int) -> None:
        """The retry policy is about to try a command or a connect again."""


class WaryConnection(redis.Connection):
    """A redis-py connection whose handshake may meet any kind of server."""

    def on_connect_check_health(self, check_health: bool = True) -> None:
        try:
            super().on_connect_check_health(check_health=check_health)
        except AttributeError as error:
            # redis-py takes the reply to HELLO for a map without looking.
            raise redis.InvalidResponse("HELLO was not answered with a map") from error


class ObservedConnection(WaryConnection):
    """A redis-py connection that tells of its life, and hangs on a lifeline. Costs nothing per operation."""

    def __init__(self, *, events: ConnectionEvents, lifeline: Lifeline, **arguments: Any) -> None:
        self._events = events
        self._lifeline = lifeline
        self._is_up = False
        self._lost_ns: int | None = None
        super().__init__(**arguments)  # type: ignore[no-untyped-call]

    def _connect(self) -> socket.socket:
        self._lifeline.check()
        try:
            sock: socket.socket = super()._connect()  # type: ignore[no-untyped-call]
        except OSError:
            self._events.attempt_failed(monotonic_ns())
            raise
        try:
            self._lifeline.hold(sock)
        except CutShort:
            sock.close()
            raise
        return sock

    def on_connect_check_health(self, check_health: bool = True) -> None:
        try:
            super().on_connect_check_health(check_health=check_health)
        except redis.RedisError as error:
            self._events.attempt_failed(monotonic_ns())
            # It may reach the caller of a command, who must not take it for a reply to that.
            error.in_handshake = True  # type: ignore[attr-defined]
            raise
        now_ns = monotonic_ns()
        self._events.opened(now_ns, self._lost_ns)
        self._is_up = True
        self._lost_ns = None

    def disconnect(self, *args: Any, **kwargs: Any) -> None:
        if self._is_up:
            self._is_up = False
            error = sys.exc_info()[1]
            if error is None or self._lifeline.is_cut:
                self._events.closed(monotonic_ns())
            else:
                self._lost_ns = monotonic_ns()
                self._events.dropped(self._lost_ns, _drop_cause(error))
        super().disconnect(*args, **kwargs)  # type: ignore[no-untyped-call]


def _drop_cause(error: BaseException) -> str:
    if isinstance(error, redis.TimeoutError | TimeoutError):
        return "timeout"
    code = getattr(error, "status_code", None)
    if code:
        return str(code)
    # redis-py has no class of its own for an end of file: it is a plain ConnectionError. Which of these a server's
    # closing shows as is for the moment in which we look to decide.
    closed = type(error) is redis.ConnectionError or isinstance(error, ConnectionResetError | BrokenPipeError)
    return "closed by server" if closed else type(error).__name__


class _ObservedBackoff(AbstractBackoff):
    """Counts retries, and waits by itself instead of letting redis-py sleep, so that the wait can be cut short."""

    def __init__(self, inner: AbstractBackoff, events: ConnectionEvents, lifeline: Lifeline) -> None:
        self._inner = inner
        self._events = events
        self._lifeline = lifeline
        # redis-py resets it twice in every call, and so it is the inner one's own: no call of ours in between.
        self.reset = inner.reset  # type: ignore[method-assign]

    def __deepcopy__(self, memo: dict[int, Any]) -> _ObservedBackoff:
        # Each connection gets a copy of its Retry: state of the policy is its own, events and lifeline are shared.
        return _ObservedBackoff(copy.deepcopy(self._inner, memo), self._events, self._lifeline)

    def compute(self, failures: int) -> float:
        self._lifeline.check()
        self._events.retried(monotonic_ns())
        self._lifeline.wait(self._inner.compute(failures))
        return 0.0


_BACKOFFS: dict[schema.BackoffKind, Callable[[float, float], AbstractBackoff]] = {
    schema.BackoffKind.NONE: lambda _base, _cap: NoBackoff(),
    schema.BackoffKind.CONSTANT: lambda base, _cap: ConstantBackoff(base),
    schema.BackoffKind.EXPONENTIAL: lambda base, cap: ExponentialBackoff(cap, base),
    schema.BackoffKind.FULL_JITTER: lambda base, cap: FullJitterBackoff(cap, base),
    schema.BackoffKind.EQUAL_JITTER: lambda base, cap: EqualJitterBackoff(cap, base),
    schema.BackoffKind.DECORRELATED_JITTER: lambda base, cap: DecorrelatedJitterBackoff(cap, base),
}


def build_client(
    target: schema.Target, *, max_connections: int, events: ConnectionEvents, lifeline: Lifeline
) -> Client:
    """A client with a TCP pool of its own and the plan's retry policy. Opens nothing yet. Raises PlanError."""
    policy = target.retry
    backoff = _BACKOFFS[policy.backoff](float(policy.base_s), float(policy.cap_s))
    pool = redis.ConnectionPool(
        connection_class=ObservedConnection,
        max_connections=max_connections,
        # Never left out: without it a pool of one's own has no retries at all, and redis.Redis() has ten.
        retry=Retry(_ObservedBackoff(backoff, events, lifeline), policy.retries),
        events=events,
        lifeline=lifeline,
        **_connection_arguments(target),
    )
    return redis.Redis.from_pool(pool)
