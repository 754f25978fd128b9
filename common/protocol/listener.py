"""The coordinator's end of the fleet's connections: one bound ROUTER, and the thread that owns it.

Theory of operation. The thread empties the socket, also while the loop is busy: messages go into a bounded queue for
each connection (`common.protocol.inbox`), from which the loop takes them. The loop's messages go to the thread through
a bounded queue. Each side wakes the other by a pipe, once for any number of messages. The thread also reads the
socket's monitor until the sockets are closed, and answers ZeroMQ's requests about new peers (ZAP).

A connection is cut if more messages wait on it than an agent can have sent, if it sends messages of several parts, or
if it fills memory with a message that never ends. ZeroMQ cuts strangers (peers that have not completed the handshake)
after `HANDSHAKE_S`; if there are too many, the thread cuts the oldest ones. To cut a connection, the thread shuts down
the TCP socket: ZeroMQ has no call for this, but reports the file descriptor of each message. The descriptor may have
been reused, so the thread first checks that the socket belongs to our port.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections import Counter, deque
from contextlib import ExitStack, suppress
from pathlib import Path
from time import sleep

import zmq
from zmq.utils import z85

from common.clock import monotonic_ns
from common.closing import Closing
from common.errors import UsageError
from common.machine import open_files_limit
from common.protocol.inbox import Connection, Inbox, PutResult
from common.protocol.peer_connections import Peers, Penalties
from common.protocol.transport import (
    BROKEN_OFF,
    HANDSHAKE_S,
    Context,
    CurveServer,
    Monitor,
    cause_of,
    new_socket,
    reason_of,
    use_ipv6,
)
from common.units import NS_PER_S

_BACKLOG = 1024  # connections that the kernel completes before we accept them; a large fleet joins at once
_PING_MS = 5000  # for each connection. Agents ping more often; our pings only detect dead connections
_KERNEL_BYTES = 256 << 10  # per connection; after a cut, the thread must still read what the kernel has
_TAKE_AT_MOST = 256  # messages that the loop takes in a row, so that it has time for other work
_READ_AT_MOST = 512  # messages, and events, that the thread reads in a row
_APART_NS = 5_000_000  # least time between rounds that bring messages, so that one wake-up serves many
_HOUSEKEEPING_NS = NS_PER_S // 10
_MAX_STRANGERS = 2_000
_MAX_UNSENT = 20_000
_MOST_NAMED = 100
_GROWTH_BYTES = 32 << 20  # growth of this process's memory before we look for endless messages
_ENDLESS_BYTES = 8 << 20  # received without a message; a message has 1 MiB at most
_FORGET_NS = 5 * NS_PER_S  # messages of a closed connection may still wait in ZeroMQ for a moment
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # struct linger: on, 0 s
_TCP_INFO_BYTES_RECEIVED = struct.Struct("=128xQ")
_ZAP_ENDPOINT, _ZAP_DOMAIN = "inproc://zeromq.zap.01", b"fleet"
_REFUSALS = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
)
_MONITORED = zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
for _event in _REFUSALS:
    _MONITORED |= _event


class _Wakeup:
    """Wakes a thread that polls a file descriptor; any number of `set` calls cost one system call."""

    def __init__(self) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)
        self._is_set = False

    def fileno(self) -> int:
        return self._reading

    def set(self) -> None:
        if not self._is_set:
            self._is_set = True
            with suppress(BlockingIOError):
                os.write(self._writing, b"!")

    def clear(self) -> None:
        """Call it before looking for work, so that later work sets it again."""
        with suppress(BlockingIOError):
            os.read(self._reading, 4096)
        self._is_set = False

    def close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


class Listener(Closing):
    """A bound ROUTER. It gives each connection its own routing id, which no peer can choose or learn."""

    def __init__(self, context: Context, endpoint: str, curve: CurveServer | None) -> None:
        """endpoint: numeric, an interface, or `*`. Raises UsageError if it is not an address, or is in use."""
        with ExitStack() as stack:
            zap = context.socket(zmq.REP)
            stack.callback(zap.close, 0)
            zap.bind(_ZAP_ENDPOINT)
            router = new_socket(context, zmq.ROUTER)
            stack.callback(router.close)
            use_ipv6(router, endpoint)
            router.setsockopt(zmq.ROUTER_MANDATORY, 1)
            router.setsockopt(zmq.BACKLOG, _BACKLOG)
            router.setsockopt(zmq.HEARTBEAT_IVL, _PING_MS)
            router.setsockopt(zmq.RCVBUF, _KERNEL_BYTES)
            # Also without keys: with a domain, ZeroMQ refuses peers that do not speak ZMTP 3, such as browsers.
            router.setsockopt(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
            if curve is not None:
                router.curve_server = 1
                router.curve_secretkey = curve.keys.secret
            monitor = Monitor(context, router, _MONITORED)
            stack.callback(monitor.close)
            try:
                router.bind(endpoint)
            except zmq.ZMQError as error:
                raise UsageError(
                    f"--bind {endpoint}: cannot listen there: {reason_of(error)}; "
                    "expected a free address of this host such as tcp://127.0.0.1:5555"
                ) from error
            self.endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)
            """The bound address, with the actual port if a free port was requested."""
            self._wakeup = _Wakeup()
            stack.callback(self._wakeup.close)
            self._reader = _Reader(router, monitor, zap, self.port, curve, self._wakeup)
            stack.callback(self._reader.close)
            self._opened = stack.pop_all()

    @property
    def port(self) -> int:
        """The bound TCP port."""
        return int(self.endpoint.rpartition(":")[2])

    def fileno(self) -> int:
        """The file descriptor to poll: readable when messages have arrived."""
        return self._wakeup.fileno()

    def receive(self) -> list[tuple[bytes, bytes]]:
        """(routing id, data) of waiting messages, without blocking; control messages first, connections in turn. Raises
        the error that ended the thread."""
        self._wakeup.clear()
        taken, more = self._reader.take(_TAKE_AT_MOST)
        if more:
            self._wakeup.set()
        return taken

    def send(self, routing_id: bytes, data: bytes) -> bool:
        """Send a message. Returns whether it was accepted. An accepted message is lost if the peer is gone or does not
        read."""
        return self._reader.send(routing_id, data)

    def introduce(self, routing_id: bytes, name: str, *, metrics: bool) -> None:
        """Record that a connection belongs to an agent, so that more messages may wait on it. metrics: it is the
        metrics connection."""
        self._reader.introduce(routing_id, name, metrics)

    def take_floods(self) -> list[str]:
        """Lines about connections that were cut since the last call: one for each agent, or host of unknown peers, that
        was not reported before."""
        return self._reader.take_floods()

    def count_cut(self) -> int:
        """How many connections were cut."""
        return self._reader.cut

    def count_refused(self) -> Counter[str]:
        """How many connections were refused, by cause, such as another token."""
        return self._reader.refused

    def close(self) -> None:
        """Close the sockets. Accepted messages may still leave for a second. Idempotent.

        Order: the thread ends first, after it has sent the waiting messages; then no other thread uses the sockets. The
        monitor is disabled before its socket is closed. ZAP is closed last, because handshakes need its answers."""
        self._opened.close()


class _Reader:
    """The thread. The loop calls the methods above the line, the thread those below it."""

    def __init__(
        self,
        router: zmq.Socket[bytes],
        monitor: Monitor,
        zap: zmq.Socket[bytes],
        port: int,
        curve: CurveServer | None,
        loop: _Wakeup,
    ) -> None:
        self._router, self._monitor, self._zap, self._port, self._loop = router, monitor, zap, port, loop
        self._admitted = None if curve is None else z85.decode(curve.admitted)
        self._most_strangers = min(_MAX_STRANGERS, (open_files_limit() or 4 * _MAX_STRANGERS) // 4)
        self._peers = Peers(HANDSHAKE_S, BROKEN_OFF)
        self._penalties = Penalties()
        self._lock = threading.Lock()
        """Guards the inbox, `_connections` and `_floods`."""
        self._inbox = Inbox()
        self._connections: dict[bytes, Connection] = {}
        self.cut = 0
        self._floods: list[str] = []
        self._named: set[tuple[str, str]] = set()
        self._closed: deque[tuple[int, Connection]] = deque()
        self._unsent: deque[tuple[bytes, bytes]] = deque()
        self._housekeeping_ns = 0
        self._resident_bytes = _resident_bytes()
        self._error: BaseException | None = None
        self._ending = False
        self._wakeup = _Wakeup()
        self._thread = threading.Thread(target=self._run, name="fleet socket", daemon=True)
        self._thread.start()

    @property
    def refused(self) -> Counter[str]:
        """How many connections were refused, by cause."""
        return self._peers.refused()

    def take(self, most: int) -> tuple[list[tuple[bytes, bytes]], bool]:
        """(at most `most` messages, whether there are more)."""
        if self._error is not None:
            raise self._error
        with self._lock:
            return self._inbox.take(most), bool(self._inbox)

    def send(self, routing_id: bytes, data: bytes) -> bool:
        """Queue a message. Returns whether there was room."""
        if len(self._unsent) >= _MAX_UNSENT:
            return False
        self._unsent.append((routing_id, data))
        self._wakeup.set()
        return True

    def introduce(self, routing_id: bytes, name: str, metrics: bool) -> None:
        """Record the agent of a connection."""
        with self._lock:
            if (connection := self._connections.get(routing_id)) is not None:
                connection.name, connection.metrics = name, metrics

    def take_floods(self) -> list[str]:
        """See `Listener.take_floods`."""
        if not self._floods:
            return []
        with self._lock:
            taken, self._floods = self._floods, []
        return taken

    def close(self) -> None:
        """End the thread, after it has sent the waiting messages."""
        self._ending = True
        self._wakeup.set()
        self._thread.join()
        self._wakeup.close()

    # -- the thread

    def _run(self) -> None:
        try:
            poller = zmq.Poller()
            for source in (self._router, self._monitor.socket, self._zap, self._wakeup.fileno()):
                poller.register(source, zmq.POLLIN)
            read_ns = 0
            while not self._ending:
                poller.poll(_HOUSEKEEPING_NS // 1_000_000)
                if (early_ns := read_ns + _APART_NS - monotonic_ns()) > 0:
                    sleep(early_ns / NS_PER_S)
                self._wakeup.clear()
                self._send_all()
                if self._read():
                    read_ns = monotonic_ns()
                self._watch()
                self._admit()
                self._do_housekeeping()
            self._send_all()
        except BaseException as error:  # noqa: BLE001 - raised in the loop
            self._error = error
            self._loop.set()

    def _send_all(self) -> None:
        while self._unsent:
            try:
                self._router.send_multipart(self._unsent.popleft(), zmq.NOBLOCK)
            except zmq.ZMQError as error:
                if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                    raise

    def _read(self) -> bool:
        """Pass arrived messages to the inbox. Returns whether there were any."""
        batch: list[tuple[Connection, bytes]] = []
        for _ in range(_READ_AT_MOST):
            try:
                routing_id = self._router.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            part = self._router.recv(zmq.NOBLOCK, copy=False)
            connection = self._connections.get(routing_id) or self._add_connection(routing_id, part)
            if part.more:
                self._skip_parts()
                self._cut(connection, "messages of several parts")
            else:
                batch.append((connection, part.bytes))
            self._peers.message_received(connection.fileno)
        if not batch:
            return False
        flooded = set()
        with self._lock:
            for connection, data in batch:
                if self._inbox.put(connection, data) is PutResult.FLOOD and not connection.is_cut:
                    flooded.add(connection)
        for connection in flooded:
            self._cut(connection, "more messages than an agent sends")
        self._loop.set()
        return True

    def _add_connection(self, routing_id: bytes, part: zmq.Frame) -> Connection:
        connection = Connection(routing_id, int(part.get(zmq.SRCFD)), str(part.get("Peer-Address")))
        # By now, the monitor has reported that this connection was accepted, and that the previous connection with the
        # same file descriptor has ended.
        while self._watch():
            pass
        if connection.fileno in self._peers:
            self._peers.first_message(connection.fileno, connection)
        else:
            self._closed.append((monotonic_ns(), connection))
        with self._lock:
            self._connections[routing_id] = connection
        return connection

    def _skip_parts(self) -> None:
        while self._router.getsockopt(zmq.RCVMORE):
            self._router.recv(zmq.NOBLOCK)

    def _watch(self) -> bool:
        """Read monitor events about connections. Returns whether there may be more events."""
        now_ns = monotonic_ns()
        events = self._monitor.take(_READ_AT_MOST)
        for event, value in events:
            if event == zmq.EVENT_ACCEPTED:
                self._peers.accepted(value, now_ns)
            elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._peers.succeeded()
            elif event in _REFUSALS:
                self._peers.failed(cause_of(event, value))
            elif event == zmq.EVENT_DISCONNECTED and (connection := self._peers.disconnected(value)) is not None:
                connection.fileno = -1
                self._closed.append((now_ns, connection))
        return len(events) == _READ_AT_MOST

    def _admit(self) -> None:
        """Answer ZeroMQ's requests about new peers: admit peers with the agents' public key; without keys, every
        peer."""
        now_ns = monotonic_ns()
        for _ in range(_READ_AT_MOST):
            try:
                version, request_id, _domain, address, _routing_id, mechanism, *keys = self._zap.recv_multipart(
                    zmq.NOBLOCK
                )
            except zmq.Again:
                return
            admitted = mechanism == b"NULL" if self._admitted is None else keys == [self._admitted]
            status = (b"200", b"OK") if admitted else (b"400", b"another key")
            if admitted and not self._penalties.may_connect(address.decode(errors="replace"), now_ns):
                status = (b"300", b"later")  # ends the connection without an error to the peer
                self._peers.postponed()
            self._zap.send_multipart((version, request_id, *status, b"", b""))

    def _do_housekeeping(self) -> None:
        now_ns = monotonic_ns()
        if now_ns - self._housekeeping_ns < _HOUSEKEEPING_NS:
            return
        self._housekeeping_ns = now_ns
        for fileno in self._peers.check(now_ns, self._most_strangers):
            shut_down(fileno, self._port)
        while self._closed and now_ns - self._closed[0][0] > _FORGET_NS and not self._closed[0][1].messages:
            with self._lock:
                self._connections.pop(self._closed.popleft()[1].routing_id, None)
        grown_bytes = (resident_bytes := _resident_bytes()) - self._resident_bytes
        if grown_bytes > _GROWTH_BYTES:
            received = {fileno: _received_bytes(fileno) for fileno in self._peers.filenos()}
            for peer in self._peers.endless(received, _ENDLESS_BYTES):
                self._cut(peer.connection or Connection(b"", peer.fileno), "a message that never ends")
        if not 0 <= grown_bytes <= _GROWTH_BYTES:
            self._resident_bytes = resident_bytes

    def _cut(self, connection: Connection, why: str) -> None:
        """Discard the messages that wait on a connection, and shut it down."""
        if connection.is_cut:
            return
        with self._lock:
            self._inbox.drop(connection)
        address = shut_down(connection.fileno, self._port)
        self.cut += 1
        self._penalties.flooded(connection.address, monotonic_ns())
        named = connection.name, connection.address
        if named in self._named or len(self._named) >= _MOST_NAMED:
            return
        self._named.add(named)
        whose = f"agent {connection.name}" if connection.name else "a peer"
        address = address or connection.address
        with self._lock:
            self._floods.append(f"cut a connection of {whose}{address and f' at {address}'}: {why}")
        self._loop.set()


def shut_down(fileno: int, port: int) -> str:
    """Shut down a TCP connection of this local port, so that closing it sends a reset. Returns its peer's address; ""
    if the file descriptor belongs to another socket or is closed."""
    try:
        with socket.socket(fileno=os.dup(fileno)) as connection:
            if connection.getsockname()[1] != port:
                return ""
            host, peer_port = connection.getpeername()[:2]
            # Without a reset, a peer that has filled our receive window would wait a minute for it to open again.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            connection.shutdown(socket.SHUT_RDWR)
    except (OSError, IndexError):
        return ""
    return f"[{host}]:{peer_port}" if ":" in host else f"{host}:{peer_port}"


def _resident_bytes() -> int:
    """Resident memory of this process; 0 without /proc."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def _received_bytes(fileno: int) -> int:
    """Bytes that a TCP connection has received; 0 if it is closed."""
    try:
        with socket.socket(fileno=os.dup(fileno)) as peer:
            info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES_RECEIVED.size)
        return int(_TCP_INFO_BYTES_RECEIVED.unpack(info)[0])
    except (OSError, struct.error):
        return 0
