"""A wire worker without threads, with a clock and sockets that the test controls."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice, repeat
from types import SimpleNamespace
from typing import Any, cast

import hiredis
import pytest
import redis
from redis._parsers import _HiredisParser

from agent.worker.drivers.base import WorkerContext
from agent.worker.drivers.wire.batch_hits import BatchHits
from agent.worker.drivers.wire.batch_rows import WireRecord
from agent.worker.drivers.wire.connection import BatchConnection
from agent.worker.drivers.wire.poller import READ, WRITE
from agent.worker.drivers.wire.replies import ReplyParser
from agent.worker.drivers.wire.requests import OperationRequestSource, PackedRequestSource, packed_block
from agent.worker.drivers.wire.routing import PoolServices, RequestRouter, TargetNode
from agent.worker.drivers.wire.worker import WireWorker
from agent.worker.metrics.connection_events import EventKind, EventLog
from agent.worker.metrics.hits import hit_counter, shown_by_nil
from agent.worker.metrics.outcomes import Outcomes
from agent.worker.metrics.wire_sizes import fixed_reply_bytes, raw_measure, reply_measure
from agent.worker.pacing.pacer import NEVER_NS, Pacer, Span
from agent.worker.pacing.staged_load import StagedPacer, schedules_of
from agent.worker.workload.encoding.stream import PackedBlock, PackedStream
from agent.worker.workload.reply_effects import Operation
from common.cancellation import Cancellation
from common.commands import COMMANDS
from common.metrics.intervals import PoolMetrics
from common.plan.schema import Load
from common.plan.timeline import timeline
from common.redis_client import Failure
from common.redis_client.connections.cluster_topology import slot_of
from common.redis_client.wire_connections import SINGLE_NODE, SLOTS, WireConnection
from tests.support.rows import Row, bin_rows, named

T0_NS = 10**15
MS = 1_000_000
NAMES = ("GET", "SET")
PROTOCOL = 3


def operation(name: str, *arguments: str, follow: Any = None) -> Operation:
    """An operation with its size in bytes."""
    made = (name, *(argument.encode() for argument in arguments))
    return NAMES.index(name), made, len(hiredis.pack_command(made)), follow  # type: ignore[arg-type]


GET = operation("GET", "key")
SET = operation("SET", "key", "value")


class FakeSocket:
    """Takes bytes while it has `room`, at most `piece` per call as TLS does. Raises `fails` if that is set.

    sent: all bytes that it took. incoming: what each recv returns or raises.
    """

    numbers = iter(range(100, 10**9))

    def __init__(self) -> None:
        self.fd = next(self.numbers)
        self.sent = bytearray()
        self.room = self.piece = 10**9
        self.fails: Exception | None = None
        self.incoming: deque[bytes | Exception] = deque()
        self.is_closed = False

    def fileno(self) -> int:
        return self.fd

    def send(self, data: bytes | memoryview) -> int:
        if self.is_closed:
            raise OSError(9, "Bad file descriptor")
        if self.fails is not None:
            raise self.fails
        taken = data[: min(self.room, self.piece)]
        if not taken and data:
            raise BlockingIOError
        self.sent += taken
        self.room -= len(taken)
        return len(taken)

    def recv_into(self, buffer: bytearray) -> int:
        """Fill the buffer with the next piece."""
        piece = self.recv(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def recv(self, size: int) -> bytes:
        if self.is_closed:
            raise OSError(9, "Bad file descriptor")
        if not self.incoming:
            raise BlockingIOError
        piece = self.incoming.popleft()
        if isinstance(piece, Exception):
            raise piece
        assert len(piece) <= size
        return piece

    def commands(self) -> list[list[bytes]]:
        """All complete requests that it took."""
        reader = hiredis.Reader()
        reader.feed(bytes(self.sent))
        return list(iter(reader.gets, False))


class FakePoller:
    """files: by watched descriptor, whether it is watched for writing."""

    def __init__(self) -> None:
        self.files: dict[int, bool] = {}

    def add(self, fd: int) -> None:
        assert fd not in self.files
        self.files[fd] = False

    def watch_write(self, fd: int, wanted: bool) -> None:
        assert fd in self.files
        self.files[fd] = wanted

    def remove(self, fd: int) -> None:
        del self.files[fd]

    def wait(self, timeout_ns: int, is_precise: bool) -> list[tuple[int, int]]:
        raise NotImplementedError

    def close(self) -> None: ...


class FakeLink(WireConnection):
    """A connection with a `FakeSocket` and redis-py's parser of errors. lost: the errors that ended it."""

    def __init__(self, stage: WireStage) -> None:
        self._stage = stage
        self._connection = SimpleNamespace(_parser=_HiredisParser(socket_read_size=65536))
        self.sock = FakeSocket()
        self.lost: list[Exception] = []
        self.closed = 0
        self.pushed_messages: list[object] = []
        self.must_reconnect = False
        self.relaxed_ns = 0

    @property
    def timeout_ns(self) -> int:
        return self.relaxed_ns

    def open(self) -> Any:
        self.sock = FakeSocket()
        self.must_reconnect = False
        return self.sock

    def pushed(self, message: object) -> None:
        self.pushed_messages.append(message)

    @property
    def wants_reconnect(self) -> bool:
        return self.must_reconnect

    def drop(self, error: Exception) -> None:
        self.lost.append(error)
        self.sock.is_closed = True

    def close(self) -> None:
        self.closed += 1
        self.sock.is_closed = True


class FixedStream:
    """A `PackedStream` of these operations in blocks of `size`, followed by GET without end."""

    def __init__(self, operations: Iterable[Operation], size: int = 8) -> None:
        self._operations, self._size = chain(operations, repeat(GET)), size

    def block(self) -> PackedBlock:
        return self._packed(list(islice(self._operations, self._size)), 0)

    def blocks(self, nodes: Any) -> list[PackedBlock]:
        by_node: dict[int, list[Operation]] = {}
        for each in islice(self._operations, self._size):
            by_node.setdefault(int(nodes[slot_of(each[1][1])]), []).append(each)  # type: ignore[arg-type]
        return [self._packed(each, node) for node, each in by_node.items()]

    def _packed(self, operations: list[Operation], node: int) -> PackedBlock:
        block = packed_block(operations)
        return PackedBlock(block.payload, block.offsets, block.rows, block.sizes, node)


class WireStage:
    """A worker with its router. The test opens its connections (`open`) and sends replies to them (`receive`).

    load: of several legs, instead of quota and due. slots: the node of each slot of a cluster. is_plain: replies are
    only counted.
    """

    def __init__(
        self,
        operations: Iterable[Operation] | None = None,
        *,
        end_ns: int = NEVER_NS,
        quota: int | None = None,
        due: Sequence[int] | None = None,
        load: Load | None = None,
        batch: int = 1,
        transaction: bool = False,
        connections: int = 1,
        slots: Sequence[str] | None = None,
        is_plain: bool = True,
        has_known_sizes: bool = True,
        has_pushes: bool = False,
        is_sentinel: bool = False,
        timeout_ns: int = 1000 * MS,
        refresh_after: int = 0,
        block: int = 8,
        callbacks: dict[str, Any] | None = None,
    ) -> None:
        self.now_ns = T0_NS
        self.connections, self._is_pushed_to = connections, has_pushes
        self.cancellation, self.outcomes, self.events = Cancellation(), Outcomes(), EventLog()
        self.span = Span(T0_NS, end_ns, lambda: self.now_ns, lambda _: None)
        self.poller = FakePoller()
        templates = [COMMANDS[name].template for name in NAMES]
        counters = [hit_counter(template) for template in templates]
        self.record = WireRecord(
            [fixed_reply_bytes(template) for template in templates], list(map(shown_by_nil, templates)), PROTOCOL
        )
        schedule = None if due is None else iter([*due, *repeat(NEVER_NS, 1000)])
        made: Any = repeat(GET) if operations is None else operations
        pacer = Pacer(self.span, batch=batch, quota=quota, schedule=schedule)
        if load is not None:
            line = timeline(load)
            pacer = StagedPacer(
                self.span,
                line,
                batch=batch,
                quota=load.requests,
                schedules=schedules_of(load, line, 1, 0, 1),
                threads=1,
                missed=self.record.missed,
                now=lambda: self.now_ns,
            )
        callbacks = redis.Redis().response_callbacks | (callbacks or {})
        worker: WorkerContext[Any] = WorkerContext(
            span=self.span,
            pacer=pacer,
            pool=None,
            operations=made,
            record=self.record,
            outcomes=self.outcomes,
            cancellation=self.cancellation,
            measures=[reply_measure(name, PROTOCOL, callbacks) for name in NAMES],
            counters=counters,
            batch=batch,
            transaction=transaction,
        )
        source: PackedRequestSource | OperationRequestSource
        if is_plain:
            source = PackedRequestSource(cast(PackedStream, FixedStream(made, block)))
        else:
            source = OperationRequestSource(iter(made), lambda call: slot_of(call[1]), batch if transaction else 1)  # type: ignore[arg-type]
        self.fed = 0
        self.router = RequestRouter(
            source,
            self.record,
            self._give_connections,
            self._fed,
            lambda node, count: self.worker.fail_batches(node, count),
            batch,
            pacer.steady_turns,
        )
        self.reopening: list[BatchConnection] = []
        self.parked: list[BatchConnection] = []
        self.reopening_later: list[BatchConnection] = []
        self.reopening_soon: list[BatchConnection] = []
        self.refreshes = self.uncovered_refreshes = 0
        services = PoolServices(
            replies=ReplyParser(NAMES, callbacks, [raw_measure(name, PROTOCOL) for name in NAMES]),
            hits=BatchHits(templates, counters),
            events=self.events,
            reopen=self.reopening.append,
            reopen_later=self.reopening_later.append,
            reopen_soon=self.reopening_soon.append,
            refresh=self._refresh,
            parked=self.parked.append,
            refresh_uncovered=self._refresh_uncovered,
            ignores_replies=is_plain and not has_pushes,
            has_known_sizes=has_known_sizes,
            is_sentinel=is_sentinel,
            has_shared_quota=slots is not None and pacer.steady_turns is not None,
            timeout_ns=timeout_ns,
            refresh_after=refresh_after,
        )
        self.worker = WireWorker(worker, self.router, services, lambda: self.now_ns)
        self.to_open: list[BatchConnection] = []
        self.router.begin(slots)

    def _give_connections(self, node: TargetNode) -> None:
        for _ in range(self.connections):
            connection = BatchConnection(self.worker, node, FakeLink(self), has_pushes=self._is_pushed_to)
            node.connections.append(connection)
            self.to_open.append(connection)

    def _fed(self) -> None:
        self.fed += 1

    def _refresh(self) -> None:
        self.refreshes += 1

    def _refresh_uncovered(self) -> None:
        self.uncovered_refreshes += 1

    def node(self, name: str = SINGLE_NODE) -> TargetNode:
        return self.router.node(name)

    def connection(self, name: str = SINGLE_NODE, number: int = 0) -> BatchConnection:
        return self.node(name).connections[number]

    def sock(self, connection: BatchConnection | None = None) -> FakeSocket:
        link: Any = (connection or self.connection()).link
        sock: FakeSocket = link.sock
        return sock

    def lost(self, connection: BatchConnection | None = None) -> list[Exception]:
        """The errors that ended a connection."""
        link: Any = (connection or self.connection()).link
        lost: list[Exception] = link.lost
        return lost

    def open(self, *connections: BatchConnection) -> None:
        """Open these connections; by default all that were not opened yet."""
        for connection in connections or tuple(self.to_open):
            with self.clock():
                connection.opened(connection.link.open(), self.poller)
                self.worker.opened(connection)
            if connection in self.to_open:
                self.to_open.remove(connection)

    def reopen(self) -> None:
        """Open all connections that wait to be opened again."""
        again = []
        for waiting in (self.reopening, self.reopening_soon, self.reopening_later):
            again += waiting
            waiting.clear()
        if again:
            self.open(*again)

    def begin(self, after_ns: int = 0) -> None:
        """Open all connections, and start the load."""
        self.open()
        self.now_ns += after_ns
        with self.clock():
            self.worker.begin()

    @contextmanager
    def clock(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("agent.worker.drivers.wire.connection.monotonic_ns", lambda: self.now_ns)
            yield

    def receive(self, *pieces: bytes | Exception, on: BatchConnection | None = None, after_ns: int = 0) -> None:
        """Receive these pieces on a connection, one a read, each `after_ns` after the last."""
        connection = on or self.connection()
        sock = self.sock(connection)
        for piece in pieces:
            self.now_ns += after_ns
            sock.incoming.append(piece)
            with self.clock():
                connection.on_ready(READ)

    def writable(self, connection: BatchConnection | None = None) -> None:
        with self.clock():
            (connection or self.connection()).on_ready(WRITE)

    def check(self, after_ns: int = 0) -> None:
        self.now_ns += after_ns
        with self.clock():
            self.worker.check(self.now_ns)

    def pump(self, after_ns: int = 0) -> None:
        self.now_ns += after_ns
        with self.clock():
            self.worker.pump()

    def kind(self, row: int, replied: bool, name: str) -> int:
        return row + len(NAMES) * self.outcomes.number(Failure(replied, name, 0))

    def rows(self) -> list[Row]:
        """The rows recorded since the last call; times from T0."""
        return named(self.record.take(), T0_NS)

    def metrics(self) -> PoolMetrics:
        """Metrics of the rows recorded since the last call."""
        return bin_rows(self.record.take(), NAMES, self.outcomes.names)

    def redirects(self) -> list[str]:
        return [str(detail) for _, kind, detail, _ in self.events.take() if kind is EventKind.REDIRECTED]


def slots_of(*names: str) -> list[str]:
    """The nodes of all slots, in turn."""
    return [names[slot % len(names)] for slot in range(SLOTS)]


def keys_of(slots: Sequence[str], node: str, count: int = 1) -> list[str]:
    """Keys in a node's slots."""
    found = (key for key in map("key:{}".format, range(10**6)) if slots[slot_of(key.encode())] == node)
    return list(islice(found, count))
