"""A node's connections under load: each one sends a batch of requests, reads its replies, and sends the next batch.

This is the hot path. Replies to a batch of several requests are read as one array: the parser gets the array's header
before the replies come. So a batch costs one call of the parser, whatever the number of replies. In a steady load (all
batches have the same size, see `WireWorker`), one function, made for the connection, handles each batch whose replies
come in one read and without an error. The methods handle everything else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from agent.worker.drivers.wire.batch_hits import BatchHits, nils
from agent.worker.drivers.wire.batch_rows import WireRecord, pack_batch
from agent.worker.drivers.wire.poller import READ, WRITE, WatchedFiles
from agent.worker.drivers.wire.requests import Batch, RequestQueue
from agent.worker.metrics.rows import NONE
from agent.worker.pacing.pacer import NEVER_NS, Turn
from common.clock import monotonic_ns
from common.redis_client import NO_ENDPOINT
from common.redis_client.wire_connections import ASKING, PENDING, WOULD_BLOCK, WireConnection, is_push, socket_error

_BUFFER = bytearray(1 << 17)
"""The buffer for all reads of a process. One is enough, because one loop reads, and parses each read at once."""

_MULTI, _EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"

_TABLE_SIZE = 4096


def _whole_replies() -> list[tuple[bytes, ...]]:
    """For each size of a read: the beginnings with which a read of this size is exactly one reply. A bulk string begins
    with its length, so the beginning and the size of a read show whether it is one whole bulk string."""
    heads: list[tuple[bytes, ...]] = [()] * _TABLE_SIZE
    for length in range(_TABLE_SIZE):
        head = b"$%d\r\n" % length
        if (size := len(head) + length + 2) < _TABLE_SIZE:
            heads[size] = (head,)
    for reply in (b"+OK\r\n", b"$-1\r\n", b"_\r\n"):
        heads[len(reply)] += (reply,)
    return heads


_WHOLE_REPLIES = _whole_replies()

ReadMark: TypeAlias = tuple[int, int]
"""(when a read ended, how many bytes of replies had arrived by then)."""


class ConnectionOwner(Protocol):
    """The interface that a connection needs from its worker.

    hits: finds the hits and misses of a batch that one row describes.
    batch_size: requests in each batch of a steady load. ignores_replies: successful replies are only counted.
    has_known_sizes: the bytes of each command follow from the bytes of a batch. can_be_steady: the load may become
    steady, and then stays steady until `steady_until_ns`.
    """

    record: WireRecord
    hits: BatchHits
    batch_size: int
    is_transaction: bool
    ignores_replies: bool
    has_known_sizes: bool
    can_be_steady: bool
    steady_until_ns: int

    def issue(self, connection: BatchConnection, /) -> None:
        """The batch has ended: send the next one."""

    def leave_steady_load(self, connection: BatchConnection, /) -> None:
        """The steady load has no next batch, or the batch came too late to be sent."""

    def settle(self, connection: BatchConnection, batch: Batch, replies: Any, bytes_in: int, ended_ns: int, /) -> None:
        """All replies to a batch have arrived, and must be examined one by one."""

    def lost(self, connection: BatchConnection, error: Exception, /) -> None:
        """The connection is lost."""


@dataclass(frozen=True, slots=True)
class RedirectedBatch:
    """A batch that another node redirected. begun_ns: when it was first sent. hops: how often it was redirected.
    is_asking: by ASK instead of MOVED."""

    batch: Batch
    begun_ns: int
    hops: int
    is_asking: bool


@dataclass(slots=True, eq=False)
class TargetNode:
    """One server, with its connections and the requests that wait for it. endpoint: see `metrics.endpoints`.

    idle: open connections without a batch. parked: closed connections, kept in case the node returns to the cluster.
    turns: due turns that wait for an idle connection. redirected: batches that other nodes redirected here. next_batch:
    takes the next batch of a steady load; None if there is none, for now or for good. error: why requests fail at
    present, None if they are sent. drawn: the backlog when requests were last drawn. has_special_work: its connections
    have work other than the next batch of the steady load.
    """

    name: str
    number: int
    endpoint: int = NO_ENDPOINT
    requests: RequestQueue = field(default_factory=RequestQueue)
    connections: list[BatchConnection] = field(default_factory=list)
    idle: list[BatchConnection] = field(default_factory=list)
    parked: list[BatchConnection] = field(default_factory=list)
    turns: deque[Turn] = field(default_factory=deque)
    waiting_operations: int = 0
    redirected: deque[RedirectedBatch] = field(default_factory=deque)
    next_batch: Callable[[], Batch | None] = lambda: None
    error: Exception | None = None
    drawn: int = 0
    is_gone: bool = False
    has_special_work: bool = False

    def update_special_work(self) -> None:
        """Call it after a change of `redirected`, `turns` or `is_closing`."""
        self.has_special_work = bool(self.redirected or self.turns) or any(each.is_closing for each in self.connections)

    def push_turn(self, turn: Turn) -> None:
        """Queue a turn until a connection is idle."""
        self.turns.append(turn)
        self.waiting_operations += len(turn.times_ns)

    def pop_turn(self) -> Turn:
        """The turn that has waited longest."""
        turn = self.turns.popleft()
        self.waiting_operations -= len(turn.times_ns)
        return turn

    @property
    def without_turn(self) -> int:
        """How many requests have no turn yet."""
        return self.requests.backlog - self.waiting_operations

    def backlog_over(self, other: TargetNode) -> int:
        """How many more requests this node has left than if it had progressed as far as the other node. Progress is
        relative to the requests drawn for each node."""
        expected = self.drawn * other.requests.backlog // other.drawn if other.drawn else 0
        return self.requests.backlog - expected

    @property
    def is_up(self) -> bool:
        """Whether any connection is open."""
        return any(connection.is_open for connection in self.connections)


class BatchConnection:
    """A connection of one worker to one node, with at most one batch in flight.

    endpoint: number of its server, see `metrics.endpoints`. batch: in flight. begun_ns: when it was first sent.
    is_steady: it belongs to a steady load. on_ready: the poller calls it. notes: reasons to examine the replies: error
    replies, and a mark for each read except the last one. hops: how often the batch was redirected. skip: number of
    replies before the batch's replies.
    """

    # Slots: faster access; the object has more attributes than CPython inlines.
    __slots__ = (
        *("batch", "begun_ns", "is_steady", "notes", "hops", "skip"),
        *("_owner", "node", "endpoint", "link", "has_pushes", "is_open", "is_closing", "on_ready"),
        *("_sock", "_fd", "_poller", "_recv", "_send", "_feed", "_get", "_gets", "_is_writing"),
        *("_unsent", "_replies", "_wanted"),
    )

    def __init__(self, owner: ConnectionOwner, node: TargetNode, link: WireConnection, *, has_pushes: bool) -> None:
        """has_pushes: the server may send push messages between replies."""
        self._owner, self.node, self.link = owner, node, link
        self.endpoint = node.endpoint
        self.has_pushes = has_pushes
        self.is_open = self.is_closing = False
        self.batch: Batch | None = None
        self.is_steady = False
        self.on_ready: Callable[[int], None] = self._on_ready
        self.begun_ns = self.hops = self.skip = 0
        self.notes: list[Exception | ReadMark] = []
        self._is_writing = False
        self._unsent: bytes | memoryview = b""
        self._replies: list[Any] = []
        self._wanted = 0

    def opened(self, sock: Any, poller: WatchedFiles) -> None:
        """The connection is open."""
        self._sock, self._fd, self._poller = sock, sock.fileno(), poller
        self._recv, self._send = sock.recv_into, sock.send
        self.notes.clear()
        reader = self.link.reader(self.notes)
        self._feed, self._get = reader.feed, reader.gets
        self._gets = self._gets_each if self.has_pushes else reader.gets
        self._is_writing = False
        self.on_ready = self._fast_path() if self._owner.can_be_steady else self._on_ready
        poller.add(self._fd)
        self.is_open = True

    @property
    def fd(self) -> int:
        """The file descriptor, while it is open."""
        return int(self._fd)

    @property
    def is_free(self) -> bool:
        """Whether it may send."""
        return self.is_open and self.batch is None

    @property
    def marks(self) -> list[ReadMark]:
        """A mark for each read of the replies except the last one."""
        return [note for note in self.notes if isinstance(note, tuple)]

    @property
    def errors(self) -> list[Exception]:
        """The error replies to the batch so far."""
        return [note for note in self.notes if not isinstance(note, tuple)]

    @property
    def earlier_bytes(self) -> int:
        """How many bytes of replies came in all reads except the last one."""
        return max((size for _, size in self.marks), default=0)

    @property
    def last_reply_ns(self) -> int:
        """When the last part of the replies came; before the first one, when the batch was sent."""
        return max((at_ns for at_ns, _ in self.marks), default=self.begun_ns)

    def heed_link(self) -> None:
        """Reopen the connection after its batch if redis-py wants that: a notification on one connection may be about
        all connections of its pool, at once or some time later."""
        if self.has_pushes and self.is_open and not self.is_closing and self.link.wants_reconnect:
            self.is_closing = True
            self.node.update_special_work()

    def is_overdue(self, now_ns: int, timeout_ns: int) -> bool:
        """Whether a reply has not come in time. timeout_ns: of the plan; a maintenance notification may have relaxed
        it for this connection."""
        if self.batch is None or (waited_ns := now_ns - self.last_reply_ns) <= timeout_ns:
            return False
        return not self.has_pushes or not self.is_open or waited_ns > (self.link.timeout_ns or NEVER_NS)

    def send(self, batch: Batch, begun_ns: int, *, is_steady: bool = False) -> None:
        """Send a batch."""
        self.batch, self.begun_ns, self.is_steady = batch, begun_ns, is_steady
        _, payload, _, turn = batch
        count = len(turn.times_ns)
        if self._owner.is_transaction:
            payload, count = b"".join((_MULTI, payload, _EXEC)), count + 2
        if self.skip:
            payload, count = ASKING + payload, count + 1
        if self.has_pushes:
            self._wanted = count
        elif count > 1:
            self._feed(_array_header(count))
        self._unsent = payload
        self._write()

    def _write(self) -> None:
        """Send the unsent bytes until the socket is full. The loop is for TLS: a call may send only a part although the
        socket is not full, and the poller reports only sockets that were full."""
        unsent = self._unsent
        try:
            if (sent := self._send(unsent)) == len(unsent):
                unsent = b""
            else:
                unsent = memoryview(unsent)[sent:]
                while unsent:
                    unsent = unsent[self._send(unsent) :]
        except WOULD_BLOCK:
            pass
        except OSError as error:
            self._owner.lost(self, socket_error(error))
            return
        self._unsent = unsent
        if self._is_writing is not bool(self._unsent):
            self._is_writing = not self._is_writing
            self._poller.watch_write(self._fd, self._is_writing)

    def _fast_path(self) -> Callable[[int], None]:
        """`_on_ready` and everything after it, for a steady load. Leaves all unusual cases to the methods.

        It repeats their code for speed: local names instead of attributes, and few calls."""
        owner, node, endpoint = self._owner, self.node, self.endpoint
        record, count, add = owner.record, owner.batch_size, owner.record.add_batch
        recv, send, feed, gets = self._recv, self._send, self._feed, self._gets
        next_batch, notes, begins, whole = node.next_batch, self.notes, _BUFFER.startswith, _WHOLE_REPLIES
        hits = owner.hits
        examines = hits.examines
        needs_replies = examines or (hits.counts_nils and count > 1)
        # One reply can be recognised by its beginning; several replies need the parser.
        largest = _TABLE_SIZE if count == 1 and not examines else 0
        header = _array_header(count) if count > 1 else b""

        def on_ready(events: int) -> None:
            if events != READ:
                self._on_ready(events)
                return
            try:
                size = recv(_BUFFER)
                ended_ns = monotonic_ns()
                is_steady = self.is_steady
                if size < largest and is_steady and begins(whole[size]):
                    replies = None
                else:
                    feed(_BUFFER, 0, size)
                    replies = gets()
            except Exception as error:  # noqa: BLE001 - from the socket or the parser
                self._on_error(error)
                return
            batch = self.batch
            if replies is PENDING or notes or not is_steady or batch is None:
                self._received(size, replies, ended_ns)
                if replies is PENDING:
                    self._read(to_the_end=False)
                return
            found = 0
            if needs_replies:
                if examines:
                    found = hits.of_batch(batch, replies)
                elif not all(replies):  # type: ignore[arg-type]  # a list, because a batch has several operations
                    found = nils(replies)  # type: ignore[arg-type]
            add(pack_batch(ended_ns, self.begun_ns, batch[0], count, size, NONE, batch[3].leg, endpoint, found))
            if node.has_special_work:
                owner.issue(self)
                return
            self.batch = batch = next_batch()
            self.begun_ns = begun_ns = monotonic_ns()
            if batch is None or begun_ns >= owner.steady_until_ns:
                owner.leave_steady_load(self)
                return
            record.issued += count
            if header:
                feed(header)
            try:
                sent = send(batch[1])
            except OSError:
                sent = 0
            if sent != len(batch[1]):
                self._unsent = batch[1][sent:]
                self._write()

        return on_ready

    def _on_ready(self, events: int) -> None:
        if events & WRITE and self.is_open:
            self._write()
        if events & ~WRITE:
            # More than readable: the stream has ended, perhaps after another reply.
            self._read(to_the_end=events & ~WRITE != READ)

    def _read(self, to_the_end: bool) -> None:
        while self.is_open:
            try:
                size = self._recv(_BUFFER)
                ended_ns = monotonic_ns()
                self._feed(_BUFFER, 0, size)
                replies = self._gets()
            except Exception as error:  # noqa: BLE001 - from the socket, or from the parser for bytes that are not RESP
                self._on_error(error)
                return
            self._received(size, replies, ended_ns)
            if replies is not PENDING and not to_the_end:
                return

    def _received(self, size: int, replies: Any, ended_ns: int) -> None:
        """A read ended. replies: what it completed, or PENDING."""
        owner, batch = self._owner, self.batch
        if not size:
            owner.lost(self, socket_error(None))
        elif replies is PENDING:
            if batch is not None:
                self.notes.append((ended_ns, self.earlier_bytes + size))
        elif batch is None:
            owner.lost(self, socket_error(ConnectionError("a reply came without a request")))
        elif self.notes or not owner.ignores_replies:
            self._settle(batch, replies, size, ended_ns)
        else:
            number, _, _, turn = batch
            times_ns = turn.times_ns
            due_ns, count, begun_ns = times_ns[0], len(times_ns), self.begun_ns
            if count > 1 and (due_ns >= 0 or not owner.has_known_sizes):
                self._settle(batch, replies, size, ended_ns)
                return
            # One row describes the whole batch.
            lag_ns = begun_ns - due_ns if due_ns >= 0 else NONE
            found = owner.hits.of_batch(batch, replies)
            row = pack_batch(ended_ns, begun_ns, number, count, size, lag_ns, turn.leg, self.endpoint, found)
            owner.record.add_batch(row)
            owner.issue(self)

    def _settle(self, batch: Batch, replies: Any, size: int, ended_ns: int) -> None:
        self._owner.settle(self, batch, replies, self.earlier_bytes + size, ended_ns)
        if self.is_open:
            self._owner.issue(self)

    def _on_error(self, error: Exception) -> None:
        """Reading failed: nothing to read at the moment, or the connection is lost. Ignores a connection that was
        closed earlier in the same turn of the loop, because the poller may still report it."""
        if self.is_open and not isinstance(error, WOULD_BLOCK):
            self._owner.lost(self, socket_error(error))

    def _gets_each(self) -> Any:
        """The replies, read one by one. Passes the push messages between them to redis-py."""
        while self.batch is None or len(self._replies) < self._wanted:
            reply = self._get()
            if reply is PENDING:
                return PENDING
            if is_push(reply):
                self.link.pushed(reply)
                self.is_closing = self.is_closing or self.link.wants_reconnect
            elif self.batch is None:
                return reply
            else:
                self._replies.append(reply)
        replies, self._replies = self._replies, []
        return replies if self._wanted > 1 else replies[0]

    def clear(self) -> None:
        """Forget the batch, which has ended."""
        self.batch = None
        self.is_steady = False
        self.hops = self.skip = 0
        self.notes.clear()

    def stop(self) -> None:
        """Stop polling. Call it before the connection is closed."""
        if self.is_open:
            self.is_open = self._is_writing = False
            self._unsent = b""
            self._replies = []
            self._poller.remove(self._fd)


def _array_header(count: int) -> bytes:
    """The header that makes the parser return the next `count` replies as one array."""
    return b"*%d\r\n" % count
