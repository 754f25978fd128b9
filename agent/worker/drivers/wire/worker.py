"""The `wire` driver: a worker keeps all connections of its pool busy, each with one batch at a time.

A free connection takes the pacer's next turn and the next requests of its node. In an open loop it waits until the turn
is due. Service time is from just before the batch is written to the socket until the read that completes the reply has
returned. So all replies that come in one read have the same service time. Response time is from each operation's own
intended send.

Steady load: a closed loop in which all turns are the same and one row describes a batch. In a steady load, connections
call neither pacer nor worker: each takes the next batch of its node until `steady_until_ns`. When the steady load ends,
unsent batches go back into the queues, and the remaining turns are issued one by one.

Only connects are retried here. An operation in flight on a lost connection fails. So does an operation that cannot be
sent when its turn comes, because its node cannot be reached or no node serves its slot. A node counts as unreachable if
it has no open connection, and one of its connections has failed with all retries of the plan or got no reply in time.
In an open loop, each such operation fails when it is due. In a closed loop, such operations fail in proportion to the
operations of other nodes; if no node can be reached, one operation fails for each failed connect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agent.worker.drivers.base import WorkerContext
from agent.worker.drivers.result_rows import Result, result_rows
from agent.worker.drivers.wire.batch_rows import WireRecord
from agent.worker.drivers.wire.connection import BatchConnection, TargetNode
from agent.worker.drivers.wire.failed_requests import failed_rows, lazy_arguments
from agent.worker.drivers.wire.replies import ends_of, unwrap_transaction
from agent.worker.drivers.wire.requests import UNNUMBERED, Batch, RequestBlock
from agent.worker.drivers.wire.routing import AHEAD, PoolServices, RedirectFollower, RequestRouter
from agent.worker.pacing.pacer import NEVER_NS, Turn
from common.cancellation import CutShort
from common.clock import MonotonicNs, monotonic_ns
from common.redis_client.wire_connections import is_read_only, reply_timeout_error, socket_error

_AT_ONCE = 64
"""Most turns that are assigned, or fail, before the loop handles its connections again."""


class WireWorker:
    """The worker of one pool. Only the loop's thread uses it. See `ConnectionOwner` for the attributes."""

    __slots__ = (
        *("_context", "_router", "_services", "_now", "_pacer", "_turns", "_waiting_turn", "_blocked_turn"),
        *("_redirects", "_has_begun", "_has_ended", "_is_open_loop", "_is_steady"),
        *("span", "record", "hits", "batch_size", "steady_until_ns"),
        *("is_transaction", "ignores_replies", "has_known_sizes", "can_be_steady"),
    )

    def __init__(
        self,
        context: WorkerContext[Any],
        router: RequestRouter,
        services: PoolServices,
        now: MonotonicNs = monotonic_ns,
    ) -> None:
        """context: its record is a WireRecord."""
        self._context, self._router, self._services, self._now = context, router, services, now
        self._pacer = context.pacer
        self.span = context.span
        self.record: WireRecord = context.record  # type: ignore[assignment]
        self.hits, self.batch_size = services.hits, context.batch
        self.is_transaction = context.transaction
        self.ignores_replies = services.ignores_replies and not context.transaction
        self.has_known_sizes = services.has_known_sizes
        has_one_row = self.ignores_replies and (self.has_known_sizes or self.batch_size == 1)
        self.can_be_steady = has_one_row and not services.has_shared_quota
        self._is_steady = self.can_be_steady and context.pacer.steady_turn is not None
        self.steady_until_ns = self.span.end_ns
        self.span.on_new_end(self._update_steady_end)
        # Whether the latest turn belongs to an open loop.
        self._is_open_loop = not self._is_steady
        self._turns: Iterator[Turn] = context.pacer.rest() if self._is_steady else context.pacer.turns()
        # The next turn, if it is not due yet or has no requests yet.
        self._waiting_turn: Turn | None = None
        # The same turn as `_waiting_turn` while it cannot be sent, because other nodes must catch up first.
        self._blocked_turn: Turn | None = None
        self._has_begun = self._has_ended = False
        self._redirects = RedirectFollower(router, services, self.is_transaction, self.issue, now)

    @property
    def has_begun(self) -> bool:
        """Whether `begin` was called."""
        return self._has_begun

    @property
    def is_done(self) -> bool:
        """Whether all operations were issued and have ended."""
        return self._has_ended and not any(
            node.redirected or node.turns or any(each.batch is not None for each in node.connections)
            for node in self._router.nodes
        )

    @property
    def is_timed(self) -> bool:
        """Whether turns have due times, so that `due_ns` matters."""
        return not self._is_steady

    @property
    def due_ns(self) -> int:
        """When to call `pump` again, unless an event of a connection comes first."""
        turn = self._waiting_turn
        # In an open loop, a failing operation needs no idle connection.
        fails = self._is_open_loop and bool(self._router.failing)
        can_go = fails or any(node.idle for node in self._router.nodes)
        if turn is not None:
            can_go = can_go and turn is not self._blocked_turn
            return min(turn.times_ns[-1], self.span.end_ns) if can_go else NEVER_NS
        # A connection has just sent the waiting turn, so idle connections may get the next one.
        return 0 if can_go and not self._is_steady and not self._has_ended else NEVER_NS

    def begin(self) -> None:
        """Start the load."""
        self._has_begun = True
        self.pump()

    def opened(self, connection: BatchConnection) -> None:
        """A connection is open."""
        self._router.clear_error(connection.node)
        if self._has_begun:
            self.issue(connection)
        else:
            connection.node.idle.append(connection)

    def issue(self, connection: BatchConnection) -> None:
        """Make a connection without a batch send what is due. If nothing is due, the connection becomes idle."""
        connection.clear()
        node = connection.node
        if connection.is_closing:
            self._close(connection)
        elif node.redirected:
            self.record.transactions += self.is_transaction
            self._redirects.send(connection)
        elif node.turns:
            self._send_queued_turn(connection)
        elif self._is_steady:
            connection.batch = batch = node.next_batch()
            begun_ns = self._now()
            if batch is None or begun_ns >= self.steady_until_ns:
                self.leave_steady_load(connection)
            else:
                self.record.issued += self.batch_size
                connection.send(batch, begun_ns, is_steady=True)
        else:
            self._issue_turn(connection)

    def leave_steady_load(self, connection: BatchConnection) -> None:
        """The next batch came too late to be sent; or there was none, because all were taken or other nodes must catch
        up."""
        batch = connection.batch
        connection.clear()
        if batch is None and self._router.is_waiting(connection.node):
            connection.node.idle.append(connection)
            return
        self._router.take_back(connection.node if batch is not None else None)
        # Batches in flight still belong to the steady load, because they began in it; later batches do not.
        for node in self._router.nodes:
            for other in node.connections:
                other.is_steady = False
        self._is_steady = False
        self._issue_turn(connection)

    def _enter_steady_load(self, turn: Turn) -> None:
        """Make the load steady from this turn on, if the leg is a closed loop."""
        until_ns = self._pacer.closed_until_ns if self.can_be_steady else None
        if until_ns is not None and turn.times_ns[0] < 0 and len(turn.times_ns) == self.batch_size:
            self._router.steady_turn = turn
            self.steady_until_ns = min(until_ns, self.span.end_ns)
            self._is_steady = True

    def _issue_turn(self, connection: BatchConnection) -> None:
        node, turn = connection.node, self._next_turn()
        if turn is not None and turn.times_ns[0] >= 0 and self._router.is_cluster:
            self._waiting_turn = turn
            node.idle.append(connection)
            self._assign_turns(connection)
            return
        for _ in range(_AT_ONCE):
            if turn is None or not self._router.failing:
                break
            if (place := self._router.must_fail_first(node, len(turn.times_ns))) is None:
                break
            self._fail_turn(place, turn)
            turn = self._next_turn()
        if turn is not None and self._router.ensure(node, len(turn.times_ns)):
            self._enter_steady_load(turn)
            self._send(connection, turn)
            return
        if turn is not None:
            self._waiting_turn = self._blocked_turn = turn
        node.idle.append(connection)

    def _next_turn(self) -> Turn | None:
        """The next turn, if it is due."""
        turn, self._waiting_turn = self._waiting_turn, None
        if turn is None and not self._has_ended:
            turn = next(self._turns, None)
        now_ns = self._now()
        if turn is None:
            self._has_ended = True
        elif now_ns >= self.span.end_ns:
            self._end(turn.times_ns)
        else:
            due_ns = turn.times_ns[-1]
            self._is_open_loop = due_ns >= 0
            if due_ns <= now_ns:
                return turn
            self._waiting_turn = turn
        return None

    def _send(self, connection: BatchConnection, turn: Turn) -> None:
        self.record.issued += len(turn.times_ns)
        self.record.transactions += self.is_transaction
        connection.send(connection.node.requests.take(turn), self._now())

    def _assign_turns(self, connection: BatchConnection | None = None) -> None:
        """In an open loop: give each due turn to the node of the next request, until this idle connection has one.
        None: until no turn is due."""
        for _ in range(_AT_ONCE):
            if connection is not None and not (connection.node.idle and connection.node.idle[-1] is connection):
                return
            turn = self._next_turn()
            if turn is None:
                return
            place = self._router.next_node(len(turn.times_ns)) if turn.times_ns[0] >= 0 else None
            if place is None:
                # In a closed leg any idle connection may take the turn.
                self._keep_waiting(turn)
                return
            if place.error is None and not place.idle and place.waiting_operations >= AHEAD:
                self._waiting_turn = self._blocked_turn = turn
                return
            self._router.assigned()
            if place.error is not None:
                self._fail_turn(place, turn)
            elif place.idle:
                place.requests.advance(len(turn.times_ns), self.record)
                self._send(place.idle.pop(), turn)
            else:
                place.push_turn(turn)

    def _keep_waiting(self, turn: Turn) -> None:
        self._waiting_turn = turn
        if not any(node.idle for node in self._router.nodes):
            self._blocked_turn = turn

    def _send_queued_turn(self, connection: BatchConnection) -> None:
        """Send the turn that has waited longest for a connection of this node."""
        node = connection.node
        if self._now() >= self.span.end_ns:
            self._end_waiting()
            node.idle.append(connection)
            return
        turn = node.pop_turn()
        if self._waiting_turn is self._blocked_turn:
            # The node's queue has room again.
            self._blocked_turn = None
        node.update_special_work()
        node.requests.advance(len(turn.times_ns), self.record)
        self._send(connection, turn)

    def pump(self) -> None:
        """Make idle connections send what is due, beginning with the node with the longest backlog, so that no node
        falls behind."""
        if not self._has_begun:
            return
        for node in sorted(self._router.nodes, key=lambda node: -node.requests.backlog):
            while node.idle:
                connection = node.idle.pop()
                self.issue(connection)
                if node.idle and node.idle[-1] is connection:
                    break
        if self._router.failing and self._is_open_loop and not self._is_steady:
            self._assign_turns()

    def _end_waiting(self) -> None:
        self._end(self._waiting_turn.times_ns if self._waiting_turn else ())

    def _end(self, times_ns: tuple[int, ...]) -> None:
        """The span has ended: count operations with these times, and all turns in queues, as never sent."""
        left: list[int] = []
        for node in self._router.nodes:
            while node.turns:
                left += node.pop_turn().times_ns
            node.update_special_work()
        if left or not self._has_ended:
            self._has_ended, self._waiting_turn = True, None
            self.record.unsent += self._pacer.unsent((*times_ns, *left))

    def _update_steady_end(self) -> None:
        self.steady_until_ns = min(self.steady_until_ns, self.span.end_ns)

    def check(self, now_ns: int) -> None:
        """Detect the end of the span, and replies that do not come in time. Call it about twenty times per second."""
        self._update_steady_end()
        if self._has_begun and now_ns >= self.span.end_ns:
            self._end_waiting()
        for node in self._router.nodes:
            if self._context.cancellation.is_cancelled:
                self._fail_redirected(node, CutShort("the run is over"))
            for connection in tuple(node.connections):
                connection.heed_link()
                if connection.is_overdue(now_ns, self._services.timeout_ns):
                    self.lost(connection, error := reply_timeout_error())
                    if not node.is_up:
                        self._node_failed(node, error)
                        if self._router.is_cluster:
                            self._services.refresh()
                elif connection.is_closing and connection.is_free:
                    node.idle.remove(connection)
                    self._close(connection)
        if self._has_begun and all(node.is_gone for node in self._router.nodes):
            self._fail_next(now_ns)
        if self._router.is_any_waiting:
            # The nodes that others wait for may be down by now.
            self.pump()

    # The end of connections.

    def lost(self, connection: BatchConnection, error: Exception) -> None:
        """A connection is lost, so its batch fails."""
        connection.stop()
        connection.link.drop(error)
        if connection in connection.node.idle:
            connection.node.idle.remove(connection)
        if (batch := connection.batch) is not None:
            self._record_failed(batch, error, connection.begun_ns, connection.endpoint)
            connection.clear()
        self._open_again(connection, self._services.reopen)

    def _close(self, connection: BatchConnection) -> None:
        """Close a free connection, and open it again unless its node has left the cluster."""
        connection.stop()
        connection.link.close()
        self._open_again(connection, self._services.reopen)

    def _open_again(self, connection: BatchConnection, reopen: Callable[[BatchConnection], None]) -> None:
        connection.is_closing = False
        if connection.node.is_gone:
            connection.node.connections.remove(connection)
            connection.node.parked.append(connection)
            self._services.parked(connection)
        else:
            reopen(connection)
        connection.node.update_special_work()

    def refused(self, connection: BatchConnection, error: Exception, began_ns: int) -> None:
        """A connect failed, with all retries of the plan. If no node has an open connection, an operation fails too, as
        a call of redis-py's client would."""
        node = connection.node
        if self._context.cancellation.is_cancelled:
            return
        if self._router.is_cluster:
            self._services.refresh()
        if not node.is_up:
            self._node_failed(node, error)
            if self._has_begun and not self._has_ended and not any(each.is_up for each in self._router.nodes):
                self._fail_next(began_ns)
        is_any_up = any(each.is_up for each in self._router.nodes)
        self._open_again(connection, self._services.reopen_later if is_any_up else self._services.reopen_soon)

    # Operations that fail without a connection.

    def _node_failed(self, node: TargetNode, error: Exception) -> None:
        """A node cannot be reached, so operations that wait for it fail."""
        self._router.set_error(node, error)
        if self._has_begun:
            self._fail_redirected(node, error)
            self._fail_queued_turns(node)
            self.pump()

    def _fail_redirected(self, node: TargetNode, error: Exception) -> None:
        """Fail the batches that other nodes redirected to this one."""
        while node.redirected:
            redirected = node.redirected.popleft()
            self._record_failed(redirected.batch, error, redirected.begun_ns, node.endpoint)
        node.update_special_work()

    def _fail_queued_turns(self, node: TargetNode) -> None:
        while node.turns:
            self._fail_turn(node, node.pop_turn())

    def _fail_next(self, began_ns: int) -> None:
        """In a closed loop, if no node can be reached: fail the next operations."""
        turn = self._router.steady_turn if self._is_steady and self._router.is_cluster else None
        if turn is None and self._is_steady:
            # There is one node, and the batches of the steady load count the quota.
            (node,) = self._router.nodes
            if (batch := node.next_batch()) is not None and self._now() < self.steady_until_ns:
                self._fail_batch(batch, node, began_ns)
                return
            self._router.take_back(node if batch is not None else None)
            self._is_steady = False
        turn = turn or self._next_turn()
        node_of_turn = self._router.next_node(len(turn.times_ns)) if turn else None
        if turn is None:
            return
        if turn.times_ns[0] < 0 and node_of_turn is not None and node_of_turn.error is not None:
            self._router.assigned()
            self._fail_turn(node_of_turn, turn, began_ns)
        elif not self._is_steady:
            self._waiting_turn = turn

    def fail_batches(self, node: TargetNode, count: int) -> None:
        """In a steady load: fail `count` batches of a node that cannot be reached."""
        assert node.error is not None
        requests, size = node.requests, self.batch_size
        while count and requests.advance(size, self.record):
            block, begin = requests.block, requests.position
            batches = min(count, (block.count - begin) // size)
            count -= batches
            requests.position = end = begin + batches * size
            self.record.issued += end - begin
            place = self._router.steady_turn.leg, node.endpoint
            self.record.add(failed_rows(self._context, block, range(begin, end), node.error, self._now(), place))
            self._skip_numbers(block, end - begin)
        if node is self._router.uncovered:
            self._services.refresh_uncovered()

    def _fail_turn(self, node: TargetNode, turn: Turn, began_ns: int | None = None) -> None:
        """Fail the next operations of a node that cannot be reached."""
        node.requests.advance(len(turn.times_ns), self.record)
        self._fail_batch(node.requests.take(turn), node, began_ns)

    def _fail_batch(self, batch: Batch, node: TargetNode, began_ns: int | None) -> None:
        assert node.error is not None
        if node is self._router.uncovered:
            self._services.refresh_uncovered()
        self.record.issued += len(batch[3].times_ns)
        self.record.transactions += self.is_transaction
        self._record_failed(batch, node.error, self._now() if began_ns is None else began_ns, node.endpoint)

    def _record_failed(self, batch: Batch, error: Exception, begun_ns: int, endpoint: int) -> None:
        _, _, block, turn = batch
        count, now_ns = len(turn.times_ns), self._now()
        operations = block.operations_of(batch)
        results = zip(turn.times_ns, operations, [error] * count, [now_ns] * count, strict=True)
        lazily, endpoints = lazy_arguments(batch, operations), (endpoint,) * count
        self.record.add(result_rows(self._context, results, begun_ns, turn.leg, endpoints, arguments_of=lazily))
        self._skip_numbers(block, count)

    # Replies that must be examined one by one.

    def settle(self, connection: BatchConnection, batch: Batch, replies: Any, bytes_in: int, ended_ns: int) -> None:
        """Record each operation of a batch, and free the connection."""
        parser, skip, errors, marks = self._services.replies, connection.skip, connection.errors, connection.marks
        _, _, block, turn = batch
        count = len(turn.times_ns)
        if count + skip + 2 * self.is_transaction == 1:
            replies = [replies]
        replies = replies[skip:]
        replies, executed = unwrap_transaction(replies) if self.is_transaction else (replies, False)
        operations = block.operations_of(batch)
        ends: Sequence[int] = [ended_ns] * count
        if marks and not self.is_transaction:
            sizes = [parser.raw_bytes(each[0], reply) for each, reply in zip(operations, replies, strict=True)]
            sizes[0] += skip * len(b"+OK\r\n")
            ends = ends_of(sizes, marks, ended_ns)
        is_alone = count == 1 and not (self.is_transaction or skip or connection.has_pushes)
        results: list[Result] = list(zip(turn.times_ns, operations, replies, ends, strict=True))
        if errors and self._router.is_cluster and not self._context.cancellation.is_cancelled:
            results = self._redirects.follow(connection, batch, results)
        if results:
            rows = result_rows(
                self._context,
                results,
                connection.begun_ns,
                turn.leg,
                (connection.endpoint,) * count,
                executed=count if executed else 0,
                bytes_in=bytes_in if is_alone else None,
                parse=parser.parse,
                arguments_of=lazy_arguments(batch, operations) if errors else None,
            )
            self.record.add(rows)
            self._skip_numbers(block, len(results))
        connection.clear()
        if self._services.is_sentinel and any(is_read_only(error) for error in errors):
            # As redis-py does: reconnect, which asks the Sentinels, because this server is no longer the primary.
            self.lost(connection, socket_error(ConnectionError("the server has become a replica")))

    def _skip_numbers(self, block: RequestBlock, count: int) -> None:
        """Mark `count` requests of a block as recorded separately. Any numbers of the block will do."""
        if block.first != UNNUMBERED:
            self.record.skip(block.first, count)

    def update_topology(self, slots: Sequence[str]) -> None:
        """The topology was read again. slots: see `RequestRouter.update_slots`."""
        self._redirects.update_topology(slots)
        for node in self._router.failing:
            self._fail_queued_turns(node)
        self.pump()
