"""Finds the coordinator's address, and the reason if nothing answers there: ZeroMQ retries without giving a reason.

First the name is resolved. While there is no link, an examination resolves the name again, because it may have got
another address; then it connects to each address and reads the first bytes. A coordinator sends the ZMTP greeting of
ZeroMQ at once, and the greeting shows whether the coordinator uses encryption. An examination takes some seconds, so it
runs in a separate thread.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from common.protocol.endpoint import Endpoint, UnresolvedError, resolve
from common.units import NS_PER_S

NEXT_AFTER_NS = NS_PER_S // 4
"""How long to try one of several addresses before the next one."""
FIRST_AFTER_NS = NS_PER_S // 2
"""How long a connection may take before its address is examined."""
HANDSHAKE_NS = 3 * NS_PER_S // 2
"""How much longer the handshake may take before an examination. This is long, because the coordinator counts each
examination as a broken connection."""
EVERY_NS = NS_PER_S
SLOW_NS = 2 * NS_PER_S
"""How long a name may take to resolve before a line reports the delay: a resolver may wait 30 s for its servers."""
CONNECT_S = 2.0
ANSWER_S = 1.0
_SIGNATURE = b"\xff\0\0\0\0\0\0\0\x01\x7f"
_ZMTP_3 = b"\3\0"
_MECHANISM = slice(12, 32)
_QUESTION = b"GET / HTTP/1.0\r\n\r\n"
"""HTTP and Redis servers wait for the client to speak first. Both answer this request, if only with an error."""
_KINDS = (
    (b"HTTP/", "an HTTP server"),
    (b"-", "a Redis server"),
    (b"+", "a Redis server"),
    (b"SSH-", "an SSH server"),
    (b"\x15\x03", "a TLS server"),
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The address to try, and the addresses to try after it."""

    address: Endpoint
    others: tuple[Endpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Reached:
    """A coordinator answers at this address. Both sides use encryption, or neither does."""

    address: Endpoint


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why the coordinator cannot be reached. lasting: waiting does not help."""

    text: str
    lasting: bool = False


Finding = Resolved | Reached | Obstacle


class Connectivity:
    """Resolves and examines one address in a separate thread, one task at a time."""

    def __init__(self, address: Endpoint, *, curve: bool) -> None:
        self._address, self._curve = address, curve
        self._running: Future[Finding] | None = _begin(lambda: resolved(address))
        self._due_ns = 0
        self._others: tuple[Endpoint, ...] = ()
        self._next_ns = 0
        self._is_first = True
        self._slow_ns: int | None = None
        """When to report that the first resolution is slow; 0 once reported, or when it has ended."""

    def look(self, *, is_up: bool, now_ns: int, is_connected: bool = False) -> Finding | None:
        """The finding since the last call, None if there is none. Starts an examination if one is due and the link is
        not up. is_connected: the tried address accepts connections."""
        finding: Finding | None = None
        if self._slow_ns is None:
            self._slow_ns = now_ns + SLOW_NS
        elif self._slow_ns and now_ns >= self._slow_ns:
            self._slow_ns = 0
            finding = Obstacle(f"cannot resolve {self._address.host}: the name servers have not answered yet")
        if self._running is not None and self._running.done():
            finding, self._running, self._slow_ns = self._running.result(), None, 0
            self._due_ns = now_ns + (FIRST_AFTER_NS if isinstance(finding, Resolved) else EVERY_NS)
        if is_up:
            self._due_ns, self._others, self._is_first = now_ns + FIRST_AFTER_NS, (), True
            return None
        if self._others and not is_connected and now_ns >= self._next_ns:
            finding = Resolved(self._others[0], self._others[1:])
        if isinstance(finding, Resolved):
            self._others, self._next_ns = finding.others, now_ns + NEXT_AFTER_NS
        due_ns = self._due_ns + (HANDSHAKE_NS if self._is_first and is_connected else 0)
        if self._running is None and now_ns >= due_ns:
            self._is_first = False
            self._running = _begin(lambda: examine(self._address, curve=self._curve))
        return finding


def resolved(address: Endpoint) -> Resolved | Obstacle:
    """The addresses of a host, or the reason why it has none."""
    try:
        first, *others = resolve(address)
        return Resolved(first, tuple(others))
    except UnresolvedError as error:
        return Obstacle(str(error))


def examine(address: Endpoint, *, curve: bool) -> Reached | Obstacle:
    """Connect to each address of a host. curve: whether we use encryption. Takes some seconds; raises nothing."""
    try:
        candidates = resolve(address)
    except UnresolvedError as error:
        return Obstacle(str(error))
    obstacles = []
    for candidate in candidates:
        finding = _examine(candidate, curve=curve)
        if isinstance(finding, Reached):
            return finding
        obstacles.append(finding)
    return next((one for one in obstacles if one.lasting), Obstacle("; ".join(one.text for one in obstacles)))


def _examine(address: Endpoint, *, curve: bool) -> Reached | Obstacle:
    try:
        connection = socket.create_connection((address.host, address.port or 0), timeout=CONNECT_S)
    except ConnectionRefusedError:
        return Obstacle(f"nothing listens at {address}")
    except TimeoutError:
        return Obstacle(f"{address} does not answer: a firewall may be in the way")
    except OSError as error:
        return Obstacle(f"cannot connect to {address}: {error.strerror or error}")
    with connection:
        try:
            return _identify(connection, address, curve=curve)
        except OSError:
            return Obstacle(f"{address} closes connections at once: it may be a proxy without a coordinator behind it")


def _identify(connection: socket.socket, address: Endpoint, *, curve: bool) -> Reached | Obstacle:
    connection.settimeout(ANSWER_S)
    received = _read(connection, len(_SIGNATURE))
    if received is None:
        connection.sendall(_QUESTION)
        received = _read(connection, len(_SIGNATURE))
    if received is None:
        return Obstacle(f"{address} accepts connections, but nothing answers there: a coordinator may hang")
    if not received:
        raise ConnectionResetError
    if received[:1] != _SIGNATURE[:1] or received[-1:] != _SIGNATURE[-1:]:
        kind = next((kind for start, kind in _KINDS if received.startswith(start)), "something else")
        return Obstacle(f"{kind} listens at {address}, not a coordinator", lasting=True)
    # Do not send our mechanism: a coordinator with another one would hang up before it sends its own.
    connection.sendall(_SIGNATURE + _ZMTP_3)
    greeting = received + (_read(connection, _MECHANISM.stop - len(received)) or b"")
    if len(greeting) < _MECHANISM.stop:
        raise ConnectionResetError
    is_secured = greeting[_MECHANISM].rstrip(b"\0") == b"CURVE"
    if is_secured and not curve:
        text = f"the coordinator at {address} requires its token; join without --insecure, and with --token-file"
        return Obstacle(text, lasting=True)
    if curve and not is_secured:
        return Obstacle(f"the coordinator at {address} was started with --insecure; join with --insecure", lasting=True)
    return Reached(address)


def _read(connection: socket.socket, size: int) -> bytes | None:
    """Received bytes, at most `size`; None if none arrive in time, b"" if the connection ends."""
    read = b""
    try:
        while len(read) < size and (part := connection.recv(size - len(read))):
            read += part
    except TimeoutError:
        return read or None
    return read


def _begin(find: Callable[[], Finding]) -> Future[Finding]:
    future: Future[Finding] = Future()

    def work() -> None:
        try:
            future.set_result(find())
        except BaseException as error:  # noqa: BLE001 - `result` raises it in the loop
            future.set_exception(error)

    # A daemon thread: a resolver may take half a minute, and the program must not wait for it at its end.
    threading.Thread(target=work, name="connectivity", daemon=True).start()
    return future
