"""Finds the coordinator's address, and why nothing answers there. ZeroMQ only tries again and reports no reason.

The name is resolved first. While there is no link, an examination resolves the name again (names move), connects to
each address, and reads the first bytes. A coordinator sends the ZMTP greeting of ZeroMQ at once. The greeting also says
whether the coordinator uses encryption. An examination takes some seconds, so it runs in a separate thread.
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
"""How long to try one address of several before the next one."""
FIRST_AFTER_NS = NS_PER_S // 2
"""How long a connection may take before its address is examined."""
HANDSHAKE_NS = 3 * NS_PER_S // 2
"""How much longer the handshake may take. An examination counts as a broken connection at the coordinator."""
EVERY_NS = NS_PER_S
SLOW_NS = 2 * NS_PER_S
"""How long to resolve a name before a line reports the delay: a resolver may wait 30 s for its servers."""
CONNECT_S = 2.0
ANSWER_S = 1.0
_SIGNATURE = b"\xff\0\0\0\0\0\0\0\x01\x7f"
_ZMTP_3 = b"\3\0"
_MECHANISM = slice(12, 32)
_QUESTION = b"GET / HTTP/1.0\r\n\r\n"
"""Servers that wait for the client to speak first answer this, if only with an error: HTTP, Redis."""
_KINDS = (
    (b"HTTP/", "an HTTP server"),
    (b"-", "a Redis server"),
    (b"+", "a Redis server"),
    (b"SSH-", "an SSH server"),
    (b"\x15\x03", "a TLS server"),
)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The address to try, and those to try after it."""

    address: Endpoint
    others: tuple[Endpoint, ...] = ()


@dataclass(frozen=True, slots=True)
class Reached:
    """A coordinator answers at this address, and secures its links as we do."""

    address: Endpoint


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What is in the way. lasting: waiting does not help."""

    text: str
    lasting: bool = False


Finding = Resolved | Reached | Obstacle


class Connectivity:
    """Resolves and examines one address beside the loop, one question at a time."""

    def __init__(self, address: Endpoint, *, curve: bool) -> None:
        self._address, self._curve = address, curve
        self._asked: Future[Finding] | None = _begin(lambda: resolved(address))
        self._due_ns = 0
        self._others: tuple[Endpoint, ...] = ()
        self._next_ns = 0
        self._is_first = True
        self._slow_ns: int | None = None
        """When to report that the first resolution is slow; 0 once reported, or when it has ended."""

    def look(self, *, is_up: bool, now_ns: int, is_connected: bool = False) -> Finding | None:
        """What was found, once. Begins the next examination when it is due, and the link is not up. is_connected: the
        address that is tried accepts connections."""
        finding: Finding | None = None
        if self._slow_ns is None:
            self._slow_ns = now_ns + SLOW_NS
        elif self._slow_ns and now_ns >= self._slow_ns:
            self._slow_ns = 0
            finding = Obstacle(f"cannot resolve {self._address.host}: the name servers have not answered yet")
        if self._asked is not None and self._asked.done():
            finding, self._asked, self._slow_ns = self._asked.result(), None, 0
            self._due_ns = now_ns + (FIRST_AFTER_NS if isinstance(finding, Resolved) else EVERY_NS)
        if is_up:
            self._due_ns, self._others, self._is_first = now_ns + FIRST_AFTER_NS, (), True
            return None
        if self._others and not is_connected and now_ns >= self._next_ns:
            finding = Resolved(self._others[0], self._others[1:])
        if isinstance(finding, Resolved):
            self._others, self._next_ns = finding.others, now_ns + NEXT_AFTER_NS
        due_ns = self._due_ns + (HANDSHAKE_NS if self._is_first and is_connected else 0)
        if self._asked is None and now_ns >= due_ns:
            self._is_first = False
            self._asked = _begin(lambda: examine(self._address, curve=self._curve))
        return finding


def resolved(address: Endpoint) -> Resolved | Obstacle:
    """The addresses of a host, or the reason why it has none."""
    try:
        first, *others = resolve(address)
        return Resolved(first, tuple(others))
    except UnresolvedError as error:
        return Obstacle(str(error))


def examine(address: Endpoint, *, curve: bool) -> Reached | Obstacle:
    """Try each address of a host. curve: whether we use encryption. Waits for some seconds; raises nothing."""
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
            return _who_answers(connection, address, curve=curve)
        except OSError:
            return Obstacle(f"{address} closes connections at once: it may be a proxy without a coordinator behind it")


def _who_answers(connection: socket.socket, address: Endpoint, *, curve: bool) -> Reached | Obstacle:
    connection.settimeout(ANSWER_S)
    said = _read(connection, len(_SIGNATURE))
    if said is None:
        connection.sendall(_QUESTION)
        said = _read(connection, len(_SIGNATURE))
    if said is None:
        return Obstacle(f"{address} accepts connections, but nothing answers there: a coordinator may hang")
    if not said:
        raise ConnectionResetError
    if said[:1] != _SIGNATURE[:1] or said[-1:] != _SIGNATURE[-1:]:
        kind = next((kind for start, kind in _KINDS if said.startswith(start)), "something else")
        return Obstacle(f"{kind} listens at {address}, not a coordinator", lasting=True)
    # Not our mechanism: a coordinator with another one would hang up before it says its own.
    connection.sendall(_SIGNATURE + _ZMTP_3)
    greeting = said + (_read(connection, _MECHANISM.stop - len(said)) or b"")
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
    """Received bytes, at most the given number; None if none arrive, b"" if the connection ends."""
    read = b""
    try:
        while len(read) < size and (part := connection.recv(size - len(read))):
            read += part
    except TimeoutError:
        return read or None
    return read


def _begin(find: Callable[[], Finding]) -> Future[Finding]:
    asked: Future[Finding] = Future()

    def work() -> None:
        try:
            asked.set_result(find())
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for, which is the loop
            asked.set_exception(error)

    # A daemon thread: a resolver may take half a minute, and the end of the program does not wait for it.
    threading.Thread(target=work, name="connectivity", daemon=True).start()
    return asked
