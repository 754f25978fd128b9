"""One connection under load: a batch of requests goes out, its replies come in, and the next batch goes out.

This is the hot path. Replies of several requests are read as one array, whose head the reader is given beforehand: so
a batch costs one call of the parser, however many replies it has. In a load that is the same from begin to end, a
function made for it (`_steadily`) does all that happens to a batch whose replies come at once and without an error;
whatever is not as usual is left to the methods.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from agent.worker.drivers.wire.batch_rows import pack_batch
from agent.worker.drivers.wire.poller import READ, WRITE, Files
from agent.worker.drivers.wire.request_source import Batch, Block
from agent.worker.pacing.pacer import Turn
from common.clock import monotonic_ns
from common.redis_client.wire_connections import ASKING, PENDING, WOULD_BLOCK, WireConnection, is_push, socket_failure

if TYPE_CHECKING:
    from agent.worker.drivers.wire.driver import WireWorker
    from agent.worker.drivers.wire.routing import Node

_BUFFER = bytearray(1 << 17)
"""Where all of a process read to, which is parsed at once: there is one loop."""

_MULTI, _EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"

_TABLED = 4096


def _whole_replies() -> list[tuple[bytes, ...]]:
    """For each size below `_TABLED`: how a read of so many bytes begins that is one whole reply. A bulk string says its
    length first, so bytes that begin so and are as many as they should be are it, and nothing else."""
    heads: list[tuple[bytes, ...]] = [()] * _TABLED
    for length in range(_TABLED):
        head = b"$%d\r\n" % length
        if (size := len(head) + length + 2) < _TABLED:
            heads[size] = (head,)
    for reply in (b"+OK\r\n", b"$-1\r\n", b"_\r\n"):
        heads[len(reply)] += (reply,)
    return heads


_WHOLE = _whole_replies()

Mark: TypeAlias = tuple[int, int]
"""(when, how many bytes had come by then)."""


class Channel:
    """A connection of one worker to one node. At most one batch is under way: `block` from `begin` to `end`; or, in a
    steady load, `batch`.

    begun_ns: when it was first sent. turn: its intended times. on_ready: to be called when the poller says so. notes:
    what makes it worth a closer look: error replies, and where replies came in several reads, a mark for each but the
    last. hops: how often it was redirected. skip: how many replies come before its own.
    """

    # They are far faster to reach than those of an object without, of which there are some more than Python caters for.
    __slots__ = (
        *("block", "begin", "end", "turn", "begun_ns", "notes", "hops", "skip"),
        *("_worker", "node", "link", "is_pushed_to", "is_open", "is_closing", "is_simple"),
        *("batch", "on_ready"),
        *("_sock", "_fd", "_poller", "_recv", "_send", "_feed", "_get", "_gets", "_is_writing"),
        *("_place", "_count", "_lag_ns", "_unsent", "_replies", "_wanted"),
    )

    def __init__(self, worker: WireWorker, node: Node, link: WireConnection, *, is_pushed_to: bool) -> None:
        """is_pushed_to: messages may come that are no replies."""
        self._worker, self.node, self.link = worker, node, link
        self.is_pushed_to = is_pushed_to
        self.is_open = self.is_closing = False
        self.block: Block | None = None
        self.batch: Batch | None = None
        self.on_ready: Callable[[int], None] = self._on_ready
        self.begin = self.end = self.begun_ns = self.hops = self.skip = 0
        self.turn: Turn = ()
        self.notes: list[Exception | Mark] = []
        self.is_simple = self._is_writing = False
        self._place = self._count = self._lag_ns = 0
        self._unsent: bytes | memoryview = b""
        self._replies: list[Any] = []
        self._wanted = 0

    def opened(self, sock: Any, poller: Files) -> None:
        """The connection stands."""
        self._sock, self._fd, self._poller = sock, sock.fileno(), poller
        self._recv, self._send = sock.recv_into, sock.send
        self.notes.clear()
        reader = self.link.reader(self.notes)
        self._feed, self._get = reader.feed, reader.gets
        self._gets = self._gets_each if self.is_pushed_to else reader.gets
        self._is_writing = False
        self.on_ready = self._steadily() if self._worker.may_be_steady else self._on_ready
        poller.add(self._fd)
        self.is_open = True

    @property
    def fd(self) -> int:
        """Its file, while it is open."""
        return int(self._fd)

    @property
    def is_free(self) -> bool:
        """Whether it may send."""
        return self.is_open and not self.is_under_way

    @property
    def is_under_way(self) -> bool:
        """Whether replies are waited for."""
        return self.block is not None or self.batch is not None

    @property
    def marks(self) -> list[Mark]:
        """Of each read but the last, where there were several."""
        return [note for note in self.notes if isinstance(note, tuple)]

    @property
    def errors(self) -> list[Exception]:
        """The error replies among those that came."""
        return [note for note in self.notes if not isinstance(note, tuple)]

    @property
    def got_bytes(self) -> int:
        """How many bytes of replies have come in all reads but the last one."""
        return max((size for _, size in self.marks), default=0)

    @property
    def heard_ns(self) -> int:
        """When the batch under way was sent, or the last part of its replies came."""
        return max((at_ns for at_ns, _ in self.marks), default=self.begun_ns)

    def send(self, block: Block, begin: int, end: int, turn: Turn, begun_ns: int) -> None:
        """Send these requests of a block."""
        self.block, self.begin, self.end, self.turn, self.begun_ns = block, begin, end, turn, begun_ns
        worker, offsets, count, due_ns = self._worker, block.offsets, end - begin, turn[0]
        payload = block.payload[offsets[begin] : offsets[end]]
        # Whether one row tells all, unless something is noted.
        self.is_simple = worker.is_plain and (count == 1 or (due_ns < 0 and worker.is_fixed))
        self._place, self._count = block.place + begin, count
        self._lag_ns = begun_ns - due_ns if due_ns >= 0 else due_ns
        if worker.is_transaction or self.skip:
            payload, count = self._dressed(payload, count)
        self._send_expecting(count, payload)

    def send_steadily(self, batch: Batch, begun_ns: int) -> None:
        """Send the next batch of a steady load."""
        self.batch, self.begun_ns = batch, begun_ns
        self._send_expecting(self._worker.batch, batch[1])

    def unfold(self) -> None:
        """What is under way, as `block` from `begin` to `end` and `turn`, where it is of a steady load."""
        if self.batch is not None:
            place, _, block = self.batch
            self.block, self.batch = block, None
            self.turn = self._worker.steady or ()
            self.begin = place - block.place
            self.end = self.begin + self._worker.batch

    def _dressed(self, payload: bytes, count: int) -> tuple[bytes, int]:
        """What goes around the requests themselves, and how many replies there are then."""
        if self._worker.is_transaction:
            payload, count = b"".join((_MULTI, payload, _EXEC)), count + 2
        if self.skip:
            payload, count = ASKING + payload, count + 1
        return payload, count

    def _send_expecting(self, count: int, payload: bytes) -> None:
        if self.is_pushed_to:
            self._wanted = count
        elif count > 1:
            self._feed(_array_head(count))
        self._unsent = payload
        self._write_on()

    def _write_on(self) -> None:
        """Send what is not sent yet, as far as the socket takes it: TLS takes a piece a call, and the poller tells only
        of a socket that had been full."""
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
            self._worker.lost(self, socket_failure(error))
            return
        self._unsent = unsent
        if self._is_writing is not bool(self._unsent):
            self._is_writing = not self._is_writing
            self._poller.watch_write(self._fd, self._is_writing)

    def _steadily(self) -> Callable[[int], None]:
        """`_on_ready` and what comes after it, for a steady load: whatever is not as usual is left to the methods.
        Names instead of attributes, no call that can be spared: each step is a part of what every operation costs."""
        worker, node = self._worker, self.node
        record, count, add = worker.record, worker.batch, worker.record.add_batch
        recv, send, feed, gets = self._recv, self._send, self._feed, self._gets
        next_batch, notes, begins, whole = node.next_batch, self.notes, _BUFFER.startswith, _WHOLE
        # Of one reply a look at its beginning may tell all; of several only the parser.
        largest = _TABLED if count == 1 else 0
        head = _array_head(count) if count > 1 else b""

        def on_ready(events: int) -> None:
            if events != READ:
                self._on_ready(events)
                return
            try:
                size = recv(_BUFFER)
                ended_ns = monotonic_ns()
                batch = self.batch
                if size < largest and begins(whole[size]) and batch is not None:
                    replies = None
                else:
                    feed(_BUFFER, 0, size)
                    replies = gets()
            except Exception as error:  # noqa: BLE001 - of the socket, or of the parser
                self._on_error(error)
                return
            if replies is PENDING or notes or batch is None:
                self._received(size, replies, ended_ns)
                if replies is PENDING:
                    self._read(to_the_end=False)
                return
            add(pack_batch(ended_ns, self.begun_ns, batch[0], count, size, worker.whenever))
            if node.is_special:
                worker.issue(self)
                return
            self.batch = batch = next_batch()
            self.begun_ns = begun_ns = monotonic_ns()
            if batch is None or begun_ns >= worker.until_ns:
                worker.turn_aside(self)
                return
            record.issued += count
            if head:
                feed(head)
            try:
                sent = send(batch[1])
            except OSError:
                sent = 0
            if sent != len(batch[1]):
                self._unsent = batch[1][sent:]
                self._write_on()

        return on_ready

    def _on_ready(self, events: int) -> None:
        if events & WRITE and self.is_open:
            self._write_on()
        if events & ~WRITE:
            # More than readable: the end has come, maybe behind a reply.
            self._read(to_the_end=events & ~WRITE != READ)

    def _read(self, to_the_end: bool) -> None:
        while self.is_open:
            try:
                size = self._recv(_BUFFER)
                ended_ns = monotonic_ns()
                self._feed(_BUFFER, 0, size)
                replies = self._gets()
            except Exception as error:  # noqa: BLE001 - of the socket, or of the parser: what is no RESP
                self._on_error(error)
                return
            self._received(size, replies, ended_ns)
            if replies is not PENDING and not to_the_end:
                return

    def _received(self, size: int, replies: Any, ended_ns: int) -> None:
        """Something has come: what replies it completed, or PENDING."""
        if not size:
            self._worker.lost(self, socket_failure(None))
        elif self.is_simple and replies is not PENDING and not self.notes and self.block is not None:
            add, began_ns = self._worker.record.add_batch, self.begun_ns
            add(pack_batch(ended_ns, began_ns, self._place, self._count, size, self._lag_ns))
            self._worker.issue(self)
        else:
            self._take_part(size, replies, ended_ns)

    def _on_error(self, error: Exception) -> None:
        """Reading came to nothing: for now, or for good. The poller may have told of a connection that was closed
        since, in the same turn."""
        if self.is_open and not isinstance(error, WOULD_BLOCK):
            self._worker.lost(self, socket_failure(error))

    def _take_part(self, size: int, replies: Any, ended_ns: int) -> None:
        """A part of the replies has come, or what takes a closer look."""
        worker = self._worker
        self.unfold()
        if replies is PENDING:
            if self.block is not None:
                self.notes.append((ended_ns, self.got_bytes + size))
        elif self.block is None:
            worker.lost(self, socket_failure(ConnectionError("a reply came to no request")))
        else:
            worker.settle(self, self.block, replies, self.got_bytes + size, ended_ns)
            if self.is_open:
                worker.issue(self)

    def _gets_each(self) -> Any:
        """The replies one by one, with messages between them handed on."""
        while self.block is None or len(self._replies) < self._wanted:
            reply = self._get()
            if reply is PENDING:
                return PENDING
            if is_push(reply):
                self.link.pushed(reply)
                self.is_closing = self.is_closing or self.link.wants_reconnect
            elif self.block is None:
                return reply
            else:
                self._replies.append(reply)
        replies, self._replies = self._replies, []
        return replies if self._wanted > 1 else replies[0]

    def freed(self) -> None:
        """Its batch is over, one way or another."""
        self.block = self.batch = None
        self.is_simple = False
        self.hops = self.skip = 0
        self.notes.clear()

    def left(self) -> None:
        """It is not to be used any more: before the connection is closed."""
        if self.is_open:
            self.is_open = self._is_writing = False
            self._unsent = b""
            self._replies = []
            self._poller.remove(self._fd)


def _array_head(count: int) -> bytes:
    """What makes one reply, an array, of so many."""
    return b"*%d\r\n" % count
