"""One connection under load: a batch of requests goes out, its replies come in, and the next batch goes out.

This is the hot path: all that happens to a batch happens in `send` and `on_ready`. Replies of several requests are
read as one array, whose head the reader is given beforehand: so a batch costs one call of the parser, however many
replies it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from agent.worker.pacer import Turn
from agent.worker.wire.poller import READ, WRITE, Poller
from agent.worker.wire.record import pack_batch
from agent.worker.wire.source import Block
from common.clock import monotonic_ns
from common.target.wire import ASKING, PENDING, WOULD_BLOCK, Link, is_push, lost_by

if TYPE_CHECKING:
    from agent.worker.wire.driver import WireWorker
    from agent.worker.wire.routes import Node

_READ_BYTES = 1 << 16

_MULTI, _EXEC = b"*1\r\n$5\r\nMULTI\r\n", b"*1\r\n$4\r\nEXEC\r\n"

Mark: TypeAlias = tuple[int, int]
"""(when, how many bytes had come by then)."""


class Channel:
    """A connection of one worker to one node. At most one batch is under way: `block` from `begin` to `end`.

    begun_ns: when it was first sent. turn: its intended times. notes: what makes it worth a closer look: error replies,
    and where replies came in several reads, a mark for each but the last. hops: how often it was redirected; skip: how
    many replies come before its own.
    """

    def __init__(self, worker: WireWorker, node: Node, link: Link, *, is_pushed_to: bool) -> None:
        """is_pushed_to: messages may come that are no replies."""
        self._worker, self.node, self.link = worker, node, link
        self.is_pushed_to = is_pushed_to
        self.is_open = self.is_closing = False
        self.block: Block | None = None
        self.begin = self.end = self.begun_ns = self.hops = self.skip = 0
        self.turn: Turn = ()
        self.notes: list[Exception | Mark] = []
        self.is_simple = False
        self._place = self._count = self._lag_ns = 0
        self._unsent = b""
        self._replies: list[Any] = []
        self._wanted = 0

    def opened(self, sock: Any, poller: Poller) -> None:
        """The connection stands."""
        self._sock, self._fd, self._poller = sock, sock.fileno(), poller
        self._recv, self._send = sock.recv, sock.send
        # Only a TLS socket may hold bytes that were read, and that no poller knows of.
        self._more = getattr(sock, "pending", None)
        self.notes.clear()
        reader = self.link.reader(self.notes)
        self._feed, self._get = reader.feed, reader.gets
        self._gets = self._gets_each if self.is_pushed_to else reader.gets
        self._add_batch = self._worker.add_batch
        poller.add(self._fd)
        self.is_open = True

    @property
    def fd(self) -> int:
        """Its file, while it is open."""
        return int(self._fd)

    @property
    def is_free(self) -> bool:
        """Whether it may send."""
        return self.is_open and self.block is None

    @property
    def marks(self) -> list[Mark]:
        """Of each read but the last, where there were several."""
        return [note for note in self.notes if isinstance(note, tuple)]

    @property
    def errors(self) -> list[Exception]:
        """The error replies among those that came."""
        return [note for note in self.notes if not isinstance(note, tuple)]

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
        if self.is_pushed_to:
            self._wanted = count
        elif count > 1:
            self._feed(b"*%d\r\n" % count)
        try:
            sent = self._send(payload)
        except WOULD_BLOCK:
            sent = 0
        except OSError as error:
            worker.lost(self, lost_by(error))
            return
        if sent < len(payload):
            self._unsent = payload[sent:]
            self._poller.watch_write(self._fd, True)

    def _dressed(self, payload: bytes, count: int) -> tuple[bytes, int]:
        """What goes around the requests themselves, and how many replies there are then."""
        if self._worker.is_transaction:
            payload, count = b"".join((_MULTI, payload, _EXEC)), count + 2
        if self.skip:
            payload, count = ASKING + payload, count + 1
        return payload, count

    def on_ready(self, events: int) -> None:
        """The poller says that it can be read or written."""
        if events != READ:
            if events & WRITE:
                self._write_on()
            if not (events & ~WRITE and self.is_open):
                return
        try:
            data = self._recv(_READ_BYTES)
        except WOULD_BLOCK:
            return
        except OSError as error:
            self._worker.lost(self, lost_by(error))
            return
        ended_ns = monotonic_ns()
        try:
            self._feed(data)
            replies = self._gets()
        except Exception as error:  # noqa: BLE001 - what is no RESP ends the connection, and what is under way on it
            self._worker.lost(self, lost_by(error))
            return
        if replies is not PENDING and self.is_simple and not self.notes and self.block is not None:
            self._add_batch(pack_batch(ended_ns, self.begun_ns, self._place, self._count, len(data), self._lag_ns))
            self._worker.issue(self)
        else:
            self._on_part(data, replies, ended_ns)

    def _on_part(self, data: bytes, replies: Any, ended_ns: int) -> None:
        """The end of the connection has come; a part of the replies; or what takes a closer look."""
        worker, block = self._worker, self.block
        if not data:
            worker.lost(self, lost_by(None))
        elif replies is PENDING:
            if block is not None:
                self.notes.append((ended_ns, self.got_bytes + len(data)))
            if self._more is not None and self._more():
                self.on_ready(READ)
        elif block is None:
            worker.lost(self, lost_by(ConnectionError("a reply came to no request")))
        else:
            worker.settle(self, block, replies, self.got_bytes + len(data), ended_ns)
            if self.is_open:
                worker.issue(self)

    @property
    def got_bytes(self) -> int:
        """How many bytes of replies have come in all reads but the last one."""
        return max((size for _, size in self.marks), default=0)

    def _write_on(self) -> None:
        try:
            sent = self._send(self._unsent)
        except WOULD_BLOCK:
            return
        except OSError as error:
            self._worker.lost(self, lost_by(error))
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._poller.watch_write(self._fd, False)

    def _gets_each(self) -> Any:
        """The replies one by one, with messages between them handed on."""
        while self.block is None or len(self._replies) < self._wanted:
            reply = self._get()
            if reply is PENDING:
                return PENDING
            if is_push(reply):
                self.link.pushed(reply)
                self.is_closing = self.is_closing or self.link.wants_reconnect
            else:
                self._replies.append(reply)
        replies, self._replies = self._replies, []
        return replies if self._wanted > 1 else replies[0]

    def freed(self) -> None:
        """Its batch is over, one way or another."""
        self.block = None
        self.hops = self.skip = 0
        self.notes.clear()

    def left(self) -> None:
        """It is not to be used any more: before the connection is closed."""
        if self.is_open:
            self.is_open = False
            self._unsent = b""
            self._replies = []
            self._poller.remove(self._fd)
