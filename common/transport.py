"""Sockets of the fleet, CURVE, and what their monitors tell. The only place that imports zmq.

The coordinator binds one ROUTER (`Listener`), an agent connects two DEALERs to it (`Dialer`), for control and for
metrics: a heartbeat never waits behind metrics, and a firewall needs one rule. Nothing
blocks here except `Poller.wait`. Sending never waits either: it says whether the message was taken. A message that was
taken can still be lost with its connection, so every sender above repeats itself until it is answered.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from common.clock import monotonic_ns
from common.errors import UsageError

MAX_MESSAGE_BYTES = 64 * 2**20
"""No peer can make us hold a larger message than this."""

_LINGER_MS = 1000  # long enough for a goodbye to leave, short enough for nobody to wait for it
_HEARTBEAT_MS = 1000  # ZMTP pings, so that a link that died silently is noticed and connected anew
_HEARTBEAT_TIMEOUT_MS = 5000
_RECONNECT_MS = 100
_RECONNECT_MAX_MS = 1000
_GAVE_UP_AFTER_NS = 1_000_000_000  # ZeroMQ says at once that it will try again, if it will
_RECEIVE_AT_MOST = 256  # messages taken in one go, so that one loud peer cannot starve the loop


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair, both halves in Z85 (40 characters)."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"


def new_key_pair() -> KeyPair:
    """A fresh key pair from the system's randomness."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public, secret)


def key_pair_of(secret: bytes) -> KeyPair:
    """The pair that a secret key belongs to. Raises ValueError for anything that is no Z85 key."""
    try:
        return KeyPair(zmq.curve_public(secret), secret)
    except (zmq.ZMQError, ValueError) as error:
        raise ValueError("expected a CURVE key of 40 Z85 characters") from error


@dataclass(frozen=True, slots=True)
class CurveServer:
    """The coordinator's side: its own pair, and the one public key that is admitted."""

    keys: KeyPair
    admitted: bytes


@dataclass(frozen=True, slots=True)
class CurveClient:
    """An agent's side: the pair that is admitted, and the coordinator's public key."""

    keys: KeyPair
    server: bytes


class LinkEvent(enum.Enum):
    """What a monitor says of a link, as far as anybody here cares."""

    UNCONNECTED = "unconnected"
    """No TCP connection could be made."""
    CONNECTED = "connected"
    """There is a TCP connection; the handshake follows."""
    UP = "up"
    DOWN = "down"
    REFUSED = "refused"
    """The handshake failed: the other side does not accept our keys, or does not speak ZMTP with CURVE."""


_LINK_EVENTS: dict[int, LinkEvent] = {
    zmq.EVENT_CLOSED: LinkEvent.UNCONNECTED,
    zmq.EVENT_CONNECTED: LinkEvent.CONNECTED,
    zmq.EVENT_HANDSHAKE_SUCCEEDED: LinkEvent.UP,
    zmq.EVENT_DISCONNECTED: LinkEvent.DOWN,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH: LinkEvent.REFUSED,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL: LinkEvent.REFUSED,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL: LinkEvent.REFUSED,
}
NO_CONNECTION, _NO_ANSWER, _REFUSED = "no TCP connection", "no answer to its handshake", "its handshake is refused"
BROKEN_OFF = "no agent, or a connection that broke off"
"""Why a handshake failed of which nothing more is known."""
_TRYING_EVENTS = (zmq.EVENT_CONNECT_DELAYED, zmq.EVENT_CONNECT_RETRIED, zmq.EVENT_CONNECTED)
_MONITORED = 0
for _event in (*_LINK_EVENTS, *_TRYING_EVENTS):
    _MONITORED |= _event


class Context:
    """One ZeroMQ context and, on the coordinator's side, the thread that answers who is admitted.

    Made after any spawn, inside the process that uses it: ZeroMQ contexts do not survive a fork.
    """

    def __init__(self, curve_server: CurveServer | None = None) -> None:
        self._zmq = zmq.Context()
        self._authenticator: ThreadAuthenticator | None = None
        if curve_server is not None:
            self._authenticator = ThreadAuthenticator(self._zmq)
            self._authenticator.start()
            self._authenticator.configure_curve_callback(domain="*", credentials_provider=_Admission(curve_server))

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        """A new socket; whoever asks for it closes it before the context."""
        return self._zmq.socket(kind)

    def close(self) -> None:
        """Stop the authenticator, then wait for lingering messages (bounded by each socket's linger). Idempotent."""
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        self._zmq.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Admission:
    """Answers the authenticator: exactly one public key is admitted."""

    def __init__(self, curve: CurveServer) -> None:
        self._admitted = curve.admitted

    def callback(self, domain: str, key: bytes) -> bool:
        del domain
        return key == self._admitted


class _Link:
    """What both kinds of endpoint share: one socket, its monitor, and how they are closed."""

    def __init__(self, context: Context, kind: int) -> None:
        self.socket = context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
        self.monitor = self.socket.get_monitor_socket(_MONITORED)
        self.cause = ""
        """Of the last handshake that failed, for people."""
        self._gave_up_ns: int | None = None
        """When a connection was lost, as long as nothing is known of an attempt to make another."""

    def link_events(self) -> Iterator[LinkEvent]:
        """What the monitor has seen since it was last asked."""
        while self.monitor.poll(0):
            seen = recv_monitor_message(self.monitor, zmq.NOBLOCK)
            event = int(seen["event"])
            if _LINK_EVENTS.get(event) is LinkEvent.REFUSED:
                self.cause = _cause(event, int(seen["value"]))
            if event in _TRYING_EVENTS:
                self._gave_up_ns = None
            elif event == zmq.EVENT_DISCONNECTED:
                self._gave_up_ns = monotonic_ns()
            if event in _LINK_EVENTS:
                yield _LINK_EVENTS[event]

    def use_ipv6(self, endpoint: str) -> None:
        """Allow IPv6 for an address that is of it, and for all interfaces. Not for others: ZeroMQ would look for IPv6
        only."""
        self.socket.setsockopt(zmq.IPV6, int("[" in endpoint or "//*" in endpoint))

    def close(self) -> None:
        """Close monitor and socket; what was sent may still leave for a second. Idempotent."""
        if not self.socket.closed:
            self.socket.disable_monitor()
            self.monitor.close()
            self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Listener(_Link):
    """A bound ROUTER. It gives each connection a routing id of its own, which no peer can choose or learn."""

    def __init__(self, context: Context, endpoint: str, curve: CurveServer | None) -> None:
        """endpoint: numeric, an interface, or `*`. Raises UsageError when it is not an address, or is in use."""
        super().__init__(context, zmq.ROUTER)
        self.use_ipv6(endpoint)
        self.refused: Counter[str] = Counter()
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        if curve is not None:
            self.socket.curve_server = 1
            self.socket.curve_secretkey = curve.keys.secret
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise UsageError(
                f"--bind {endpoint}: cannot listen there: {_reason(error)}; "
                "expected a free address of this host such as tcp://127.0.0.1:5555"
            ) from error

    @property
    def endpoint(self) -> str:
        """The address in force, with the port that a wildcard became."""
        return self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    @property
    def port(self) -> int:
        """The TCP port in force."""
        return int(self.endpoint.rpartition(":")[2])

    def receive(self) -> Iterator[tuple[bytes, bytes]]:
        """(routing id, data) of what has come, without waiting; malformed multiparts are passed over."""
        for _ in range(_RECEIVE_AT_MOST):
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(parts) == 2:
                yield parts[0], parts[1]

    def send(self, routing_id: bytes, data: bytes) -> bool:
        """Whether the message was taken; not when the peer is gone or its queue is full."""
        try:
            self.socket.send_multipart((routing_id, data), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                return False
            raise
        return True

    def count_refused(self) -> Counter[str]:
        """How many handshakes were refused so far, by cause: peers without our token, or no peers of ours at all."""
        for event in self.link_events():
            if event is LinkEvent.REFUSED:
                self.refused[self.cause] += 1
        return self.refused


class Dialer(_Link):
    """A connecting DEALER; it connects anew by itself for as long as it is open.

    ZeroMQ does not, once a peer was no ZeroMQ, spoke another mechanism or denied our key. All three may change while an
    agent waits, with another coordinator: so `link_events` sees to it.
    """

    def __init__(self, context: Context, endpoint: str, curve: CurveClient | None) -> None:
        """endpoint: numeric; "" for none yet, see `dial`. Raises UsageError when it is not an address."""
        super().__init__(context, zmq.DEALER)
        self.missing = NO_CONNECTION
        """What keeps the link from being up, for people; "" while it is up."""
        # Nothing is queued for a coordinator that is not there: what is sent then would be stale when it comes.
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        if curve is not None:
            self.socket.curve_serverkey = curve.server
            self.socket.curve_publickey = curve.keys.public
            self.socket.curve_secretkey = curve.keys.secret
        self._endpoint = ""
        if endpoint:
            self.dial(endpoint)

    def dial(self, endpoint: str) -> None:
        """Connect there instead, if that is another address. Raises UsageError when it is not an address."""
        if endpoint == self._endpoint:
            return
        self._disconnect()
        self._endpoint = endpoint
        self.use_ipv6(endpoint)
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise UsageError(
                f"{endpoint}: cannot connect there: {_reason(error)}; expected an address such as tcp://host:5555"
            ) from error

    def _disconnect(self) -> None:
        with suppress(zmq.ZMQError):  # it may have forgotten the endpoint by itself
            self.socket.disconnect(self._endpoint)

    def link_events(self) -> Iterator[LinkEvent]:
        """What the monitor has seen since it was last asked. A link that ZeroMQ gave up is connected anew."""
        for event in super().link_events():
            match event:
                case LinkEvent.UNCONNECTED:
                    self.missing = NO_CONNECTION
                case LinkEvent.CONNECTED:
                    self.missing = _REFUSED if self.missing == _REFUSED else _NO_ANSWER
                case LinkEvent.REFUSED:
                    self.missing = _REFUSED
                case LinkEvent.UP:
                    self.missing = ""
                case LinkEvent.DOWN:
                    self.missing = self.missing or NO_CONNECTION
            if event not in (LinkEvent.UNCONNECTED, LinkEvent.CONNECTED):
                yield event
        if self._gave_up_ns is not None and monotonic_ns() - self._gave_up_ns > _GAVE_UP_AFTER_NS:
            self._gave_up_ns = None
            self._disconnect()
            self.socket.connect(self._endpoint)

    def receive(self) -> Iterator[bytes]:
        """What has come, without waiting."""
        for _ in range(_RECEIVE_AT_MOST):
            try:
                parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(parts) == 1:
                yield parts[0]

    def send(self, data: bytes) -> bool:
        """Whether the message was taken; not while there is no connection."""
        try:
            self.socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True


def _cause(event: int, value: int) -> str:
    """Why a handshake failed, for people."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH or value == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
        return "another token"
    if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
        return "--insecure on one side only, or no agent"
    return BROKEN_OFF


def _reason(error: zmq.ZMQError) -> str:
    # pyzmq adds the address to its own text.
    return zmq.strerror(error.errno or 0).lower()


class Poller:
    """Waits for sockets of this module and for plain file descriptors alike."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()

    def watch(self, source: _Link | int) -> None:
        """Wake up for what comes on a link, for what its monitor says, or for a readable file descriptor."""
        if isinstance(source, _Link):
            self._poller.register(source.socket, zmq.POLLIN)
            self._poller.register(source.monitor, zmq.POLLIN)
        else:
            self._poller.register(source, zmq.POLLIN)

    def forget(self, source: _Link | int) -> None:
        """No longer wake up for it; before it is closed."""
        if isinstance(source, _Link):
            self._poller.unregister(source.socket)
            self._poller.unregister(source.monitor)
        else:
            self._poller.unregister(source)

    def wait(self, timeout_s: float) -> None:
        """Until something is ready, or for so long."""
        self._poller.poll(max(0, round(timeout_s * 1000)))
