"""Keys, sockets and monitors for both ends of the fleet's connections, and the agent's end, `Dialer`. Only this module
and `common.protocol.listener`, the coordinator's end, import zmq.

The coordinator binds one ROUTER. An agent connects two DEALERs to it, for control and for metrics, so a heartbeat never
waits behind metrics, and a firewall needs only one rule. Only `SocketPoller.wait` blocks. Sending never waits: it
returns whether the message was accepted. An accepted message is lost if its connection is, so senders repeat messages
until they are answered.

Two defects of libzmq 4.3.5 affect both ends. A socket with a full receive queue stops reading; if its peer leaves then,
the process aborts. So receive queues have no limit (`RCVHWM` 0), and their readers keep them short. A monitor with a
full queue blocks the I/O thread forever. So monitors have no limit either, and are read in every phase.
"""

from __future__ import annotations

import enum
import itertools
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import zmq

from common.clock import monotonic_ns
from common.closing import Closing
from common.errors import UsageError
from common.protocol.messages import MAX_MESSAGE_BYTES

HANDSHAKE_S = 5.0
"""A peer that has not completed the handshake after this time is cut."""
_MAX_WIRE_BYTES = MAX_MESSAGE_BYTES + 1024  # CURVE adds some bytes to each message
_LINGER_MS = 1000  # enough for last messages to leave
_HEARTBEAT_MS = 1000  # between ZMTP pings, by which ZeroMQ detects a dead connection and reconnects
_HEARTBEAT_TIMEOUT_MS = 5000
_RECONNECT_MS = 100
_RECONNECT_MAX_MS = 1000
_SEND_QUEUE = 200  # messages; beyond it, messages to a peer that does not read are lost
_GAVE_UP_AFTER_NS = 1_000_000_000  # if ZeroMQ reconnects by itself, it reports an attempt at once
_RECEIVE_AT_MOST = 256  # messages read in a row, so that the loop has time for other work
_EVENTS_AT_MOST = 256  # for the same reason
_FLOOD = 20_000  # messages in a row; a coordinator sends a few each second


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE key pair, both halves in Z85 (40 characters)."""

    public: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"KeyPair(public={self.public!r})"


def new_key_pair() -> KeyPair:
    """A new random key pair."""
    public, secret = zmq.curve_keypair()
    return KeyPair(public, secret)


def key_pair_of(secret: bytes) -> KeyPair:
    """The pair of a secret key. Raises ValueError for anything but a Z85 key."""
    try:
        return KeyPair(zmq.curve_public(secret), secret)
    except (zmq.ZMQError, ValueError) as error:
        raise ValueError("expected a CURVE key of 40 Z85 characters") from error


@dataclass(frozen=True, slots=True)
class CurveServer:
    """The coordinator's side: its own key pair, and the agents' public key."""

    keys: KeyPair
    admitted: bytes


@dataclass(frozen=True, slots=True)
class CurveClient:
    """An agent's side: the agents' key pair, and the coordinator's public key."""

    keys: KeyPair
    server: bytes


class LinkEvent(enum.Enum):
    """What a monitor reports about an agent's connection."""

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
NO_CONNECTION, _NO_ANSWER = "no TCP connection", "no answer to its handshake"
_REFUSED, _CUT = "its handshake is refused", "it is cut in its handshake"
BROKEN_OFF = "no agent, or a connection that broke off"
"""The cause of a failed handshake if no other is known."""
_TRYING_EVENTS = (zmq.EVENT_CONNECT_DELAYED, zmq.EVENT_CONNECT_RETRIED, zmq.EVENT_CONNECTED)
_MONITORED = 0
for _event in (*_LINK_EVENTS, *_TRYING_EVENTS):
    _MONITORED |= _event


class Context(Closing):
    """One ZeroMQ context. Make it in the process that uses it, because it does not survive a fork."""

    def __init__(self) -> None:
        self._zmq = zmq.Context()

    def socket(self, kind: int) -> zmq.Socket[bytes]:
        """A new socket. The caller closes it before the context."""
        return self._zmq.socket(kind)

    def close(self) -> None:
        """Wait until the last messages have left, up to the linger time of each socket. Idempotent."""
        self._zmq.term()


class Monitor:
    """Reports of libzmq about the connections of a socket. The queue has no limit: see the module's docstring."""

    _numbers = itertools.count()

    def __init__(self, context: Context, socket: zmq.Socket[bytes], events: int) -> None:
        self._watched = socket
        self.socket = context.socket(zmq.PAIR)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.LINGER, 0)
        name = f"inproc://monitor-{next(self._numbers)}"
        socket.monitor(name, events)
        self.socket.connect(name)

    def take(self, most: int) -> list[tuple[int, int]]:
        """At most `most` new pairs (event, value). The value of most events is a file descriptor."""
        taken: list[tuple[int, int]] = []
        while len(taken) < most:
            try:
                taken.append(_EVENT.unpack(self.socket.recv_multipart(zmq.NOBLOCK)[0]))
            except zmq.Again:
                break
        return taken

    def close(self) -> None:
        """Disable events, then close the monitor. Call it before the socket is closed. Idempotent."""
        if not self.socket.closed:
            self._watched.disable_monitor()
            self.socket.close()


_EVENT = struct.Struct("=HI")


def new_socket(context: Context, kind: int) -> zmq.Socket[bytes]:
    """A socket with the options that both ends have in common."""
    socket = context.socket(kind)
    socket.setsockopt(zmq.LINGER, _LINGER_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, _MAX_WIRE_BYTES)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.SNDHWM, _SEND_QUEUE)
    socket.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
    socket.setsockopt(zmq.HANDSHAKE_IVL, round(HANDSHAKE_S * 1000))
    return socket


def use_ipv6(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Enable IPv6 only for IPv6 addresses and for all interfaces: with it, ZeroMQ would resolve other addresses as IPv6
    only."""
    socket.setsockopt(zmq.IPV6, int("[" in endpoint or "//*" in endpoint))


class Dialer(Closing):
    """A connecting DEALER: one connection of an agent, which reconnects by itself while it is open.

    ZeroMQ stops reconnecting if the peer does not speak ZMTP, uses another security mechanism or refuses our key.
    Another coordinator may start while an agent waits, so `link_events` reconnects in these cases.
    """

    def __init__(self, context: Context, endpoint: str, curve: CurveClient | None) -> None:
        """endpoint: numeric; "" to wait for `dial`. Raises UsageError if it is not an address."""
        self.missing = NO_CONNECTION
        """Why the connection is not up, for messages; "" while it is up."""
        self._context, self._curve = context, curve
        self._open()
        if endpoint:
            self.dial(endpoint)

    def _open(self) -> None:
        self.socket = new_socket(self._context, zmq.DEALER)
        # Queue no messages while there is no coordinator: they would be outdated when one starts.
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        if self._curve is not None:
            self.socket.curve_serverkey = self._curve.server
            self.socket.curve_publickey = self._curve.keys.public
            self.socket.curve_secretkey = self._curve.keys.secret
        self.monitor = Monitor(self._context, self.socket, _MONITORED)
        self._endpoint = ""
        self._unread = 0
        self._is_flooded = False
        self._gave_up_ns: int | None = None
        """When a connection was lost, until ZeroMQ reports an attempt to reconnect."""

    def dial(self, endpoint: str) -> None:
        """Connect to this address, unless it is the current one. Raises UsageError if it is not an address."""
        if endpoint == self._endpoint:
            return
        self._disconnect()
        self._endpoint = endpoint
        use_ipv6(self.socket, endpoint)
        try:
            self.socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise UsageError(
                f"{endpoint}: cannot connect there: {reason_of(error)}; expected an address such as tcp://host:5555"
            ) from error

    def _disconnect(self) -> None:
        with suppress(zmq.ZMQError):  # ZeroMQ may have dropped the endpoint
            self.socket.disconnect(self._endpoint)

    def link_events(self) -> Iterator[LinkEvent]:
        """Events since the last call. Reconnects if ZeroMQ has stopped trying, or if the coordinator floods us."""
        for number, _ in self.monitor.take(_EVENTS_AT_MOST):
            if number in _TRYING_EVENTS:
                self._gave_up_ns = None
            elif number == zmq.EVENT_DISCONNECTED:
                self._gave_up_ns = monotonic_ns()
            event = _LINK_EVENTS.get(number)
            if event is not None:
                self._note_missing(event, _CUT if number == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL else _REFUSED)
                if event not in (LinkEvent.UNCONNECTED, LinkEvent.CONNECTED):
                    yield event
        if self._is_flooded:
            endpoint = self._endpoint
            self.close()  # discards waiting messages
            self.missing = NO_CONNECTION
            self._open()
            self.dial(endpoint)
            yield LinkEvent.DOWN
        if self._gave_up_ns is not None and monotonic_ns() - self._gave_up_ns > _GAVE_UP_AFTER_NS:
            self._gave_up_ns = None
            self._disconnect()
            self.socket.connect(self._endpoint)

    def _note_missing(self, event: LinkEvent, failure: str) -> None:
        match event:
            case LinkEvent.UNCONNECTED:
                self.missing = NO_CONNECTION
            case LinkEvent.CONNECTED:
                self.missing = self.missing if self.missing in (_REFUSED, _CUT) else _NO_ANSWER
            case LinkEvent.REFUSED:
                self.missing = failure
            case LinkEvent.UP:
                self.missing = ""
            case LinkEvent.DOWN:
                self.missing = self.missing or NO_CONNECTION

    def receive(self) -> Iterator[bytes]:
        """Messages that have arrived, without waiting."""
        for _ in range(_RECEIVE_AT_MOST):
            try:
                data = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                self._unread = 0
                return
            self._unread += 1
            if not self._has_more_parts():
                yield data
        self._is_flooded = self._unread > _FLOOD

    def _has_more_parts(self) -> bool:
        has_more = False
        while self.socket.getsockopt(zmq.RCVMORE):
            has_more = True
            self.socket.recv(zmq.NOBLOCK)
        return has_more

    def send(self, data: bytes) -> bool:
        """Send a message. Returns whether it was accepted; False without a connection."""
        try:
            self.socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Close monitor and socket. Accepted messages may still leave for a second. Idempotent."""
        self.monitor.close()
        self.socket.close()


def cause_of(event: int, value: int) -> str:
    """Why a handshake failed, for messages."""
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH or value == zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC:
        return "another token"
    if value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
        return "--insecure on one side only, or no agent"
    return BROKEN_OFF


def reason_of(error: zmq.ZMQError) -> str:
    """Why a call failed; pyzmq adds the address to its own text."""
    return zmq.strerror(error.errno or 0).lower()


class HasFileno(Protocol):
    """Something that a poller can watch."""

    def fileno(self) -> int:
        """Readable when there is something to do."""


class SocketPoller:
    """Waits for the fleet's connections and for file descriptors."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()

    def watch(self, source: Dialer | HasFileno | int) -> None:
        """Watch the messages and events of a connection, or a file descriptor for reading."""
        for each in _polled(source):
            self._poller.register(each, zmq.POLLIN)

    def forget(self, source: Dialer | HasFileno | int) -> None:
        """Stop watching. Call it before the source is closed."""
        for each in _polled(source):
            self._poller.unregister(each)

    def wait(self, timeout_s: float) -> None:
        """Wait until a source is ready, but no longer than `timeout_s`."""
        self._poller.poll(max(0, round(timeout_s * 1000)))


def _polled(source: Dialer | HasFileno | int) -> tuple[zmq.Socket[bytes] | int, ...]:
    if isinstance(source, Dialer):
        return source.socket, source.monitor.socket
    return (source if isinstance(source, int) else source.fileno(),)
