"""The `wire` driver: a worker keeps all connections of its pool busy, each with a batch at a time.

A connection that is free takes the next turn of the pacer and the next requests of its node. In an open loop, where the
next turn is not due yet, it rests until it is. What is measured: service time runs from the moment before a batch is
given to the socket to the moment in which the read returned that completed a reply, so all of a batch that come with
one read have the same; response time from each operation's own intended send.

Only connects are retried here. An operation that is in flight on a lost connection fails. So does an operation that
cannot be sent when its turn comes, because its node cannot be reached or no node serves its slot. A node cannot be
reached when one of its connections fails with all retries of the plan, or gets no reply in time, and the node has no
other connection. In an open loop each such operation fails when it is due. In a closed loop such operations fail in
proportion to those that other nodes do; if no node can be reached, one operation fails for each connection that cannot
be made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from agent.worker.drivers.accounting import Worker
from agent.worker.drivers.wire.batch_results import ends_of, failed_alike, settled, unwrapped
from agent.worker.drivers.wire.batch_rows import TOLD_APART, WireRecord, pack_batch
from agent.worker.drivers.wire.channel import Channel
from agent.worker.drivers.wire.redirects import Redirects
from agent.worker.drivers.wire.request_source import NOWHERE, Block
from agent.worker.drivers.wire.routing import AHEAD, Node, Routes
from agent.worker.drivers.wire.worker_context import Means
from agent.worker.pacing.pacer import NEVER_NS, WHENEVER, Turn
from agent.worker.workload.operations import Operation
from common.cancellation import CutShort
from common.clock import MonotonicNs, monotonic_ns
from common.redis_client.wire_connections import is_read_only, reply_timeout, socket_failure

_AT_ONCE = 64
"""Most turns that are dealt, or fail, in one go: in between, the loop must look after its connections."""


class WireWorker:
    """The worker of one pool. All of it happens on the loop's thread."""

    __slots__ = (
        *("_worker", "_routes", "_means", "_now", "_pacer", "_turns", "_held", "_stuck", "_redirects"),
        *("_has_begun", "_has_ended", "_is_open", "_is_unsteady", "may_be_steady"),
        *("span", "record", "batch", "steady", "until_ns", "whenever", "is_transaction", "is_plain", "is_fixed"),
    )

    def __init__(self, worker: Worker[Any], routes: Routes, means: Means, now: MonotonicNs = monotonic_ns) -> None:
        """worker: its record is a WireRecord."""
        self._worker, self._routes, self._means, self._now = worker, routes, means, now
        self._pacer = worker.pacer
        self.span = worker.span
        self.record: WireRecord = worker.record  # type: ignore[assignment]
        self.batch = worker.batch
        self.is_transaction = worker.transaction
        self.is_plain = means.is_plain and not worker.transaction
        self.is_fixed = means.is_fixed
        # Whether a row a batch tells all. Where turns are alike, too, connections need not ask for each.
        self.may_be_steady = self.is_plain and (self.is_fixed or self.batch == 1) and not means.is_shared
        self.steady = worker.pacer.steady if self.may_be_steady else None
        """The turn that is dealt over and over, as long as operations begin before `until_ns`; None where turns differ.
        """
        self.until_ns = self.span.end_ns
        self.span.tell(self._look_at_the_end)
        self.whenever = self.steady[0] if self.steady else WHENEVER
        """The intended time of its operations, which is none."""
        self._is_unsteady = self.steady is None
        # Whether the last turn was of an open loop.
        self._is_open = self._is_unsteady
        self._turns: Iterator[Turn] = worker.pacer.turns() if self._is_unsteady else worker.pacer.rest()
        self._held: Turn | None = None
        # The turn that was due, when those that might have sent it had to wait for others.
        self._stuck: Turn | None = None
        self._has_begun = self._has_ended = False
        self._redirects = Redirects(routes, means, self.is_transaction, self.issue, now)

    @property
    def has_begun(self) -> bool:
        """Whether it has been told to."""
        return self._has_begun

    @property
    def is_done(self) -> bool:
        """Whether all that it was to do has come to its end."""
        return self._has_ended and not any(
            node.detours or node.dealt or any(channel.is_under_way for channel in node.channels)
            for node in self._routes.nodes
        )

    @property
    def is_timed(self) -> bool:
        """Whether it may wait for something to be due, now or later."""
        return self._is_unsteady

    @property
    def due_ns(self) -> int:
        """When it wants to be asked to `pump` again, unless a connection does something before."""
        held = self._held
        # In an open loop, an operation that fails needs no idle connection.
        fails = self._is_open and bool(self._routes.failing)
        is_waited_for = fails or any(node.idle for node in self._routes.nodes)
        if held is not None:
            is_waited_for = is_waited_for and held is not self._stuck
            return min(held[-1], self.span.end_ns) if is_waited_for else NEVER_NS
        # A connection has just sent what was held: others that rest can ask for the next.
        return 0 if is_waited_for and self._is_unsteady and not self._has_ended else NEVER_NS

    def begin(self) -> None:
        """The start has come."""
        self._has_begun = True
        self.pump()

    def opened(self, channel: Channel) -> None:
        """A connection stands."""
        self._routes.works(channel.node)
        if self._has_begun:
            self.issue(channel)
        else:
            channel.node.idle.append(channel)

    def issue(self, channel: Channel) -> None:
        """Have a connection, whose batch is over, send what is due; where nothing is, it rests."""
        channel.freed()
        node = channel.node
        if channel.is_closing:
            self._part(channel)
        elif node.detours:
            self.record.transactions += self.is_transaction
            self._redirects.take(channel)
        elif node.dealt:
            self._take_dealt(channel)
        elif self._is_unsteady:
            self._issue_turn(channel)
        else:
            batch, begun_ns = node.next_batch(), self._now()
            channel.batch = batch
            if batch is None or begun_ns >= self.until_ns:
                self.turn_aside(channel)
            else:
                self.record.issued += self.batch
                channel.send_steadily(batch, begun_ns)

    def turn_aside(self, channel: Channel) -> None:
        """In a steady load: the batch of a connection is one that may not be sent any more; or there was none, because
        that was the last one, or because others have to catch up."""
        batch = channel.batch
        channel.freed()
        if batch is None and self._routes.is_starved(channel.node):
            channel.node.idle.append(channel)
            return
        self._routes.recall(channel.node if batch is not None else None)
        # What is under way was begun in the steady part, and belongs to it.
        for node in self._routes.nodes:
            for other in node.channels:
                other.unfold()
        self._is_unsteady = True
        self._issue_turn(channel)

    def _issue_turn(self, channel: Channel) -> None:
        node, turn = channel.node, self._next_turn()
        if turn is not None and turn[0] >= 0 and self._routes.is_cluster:
            self._held = turn
            node.idle.append(channel)
            self._deal(channel)
            return
        for _ in range(_AT_ONCE):
            if turn is None or (place := self._behind(node, turn)) is None:
                break
            self._fail_unsent(place, turn)
            turn = self._next_turn()
        if turn is not None and self._routes.more(node, len(turn)):
            self._settle_down(turn)
            self._send(channel, turn)
            return
        if turn is not None:
            self._held = self._stuck = turn
        node.idle.append(channel)

    def _next_turn(self) -> Turn | None:
        """The next turn, if it is due."""
        turn, self._held = self._held, None
        if turn is None and not self._has_ended:
            turn = next(self._turns, None)
        now_ns = self._now()
        if turn is None:
            self._has_ended = True
        elif now_ns >= self.span.end_ns:
            self._end(turn)
        else:
            self._is_open = turn[-1] >= 0
            if turn[-1] <= now_ns:
                return turn
            self._held = turn
        return None

    def _behind(self, node: Node, turn: Turn) -> Node | None:
        return self._routes.behind(node, len(turn)) if self._routes.failing else None

    def _send(self, channel: Channel, turn: Turn) -> None:
        block, begin, end = channel.node.feed.take(len(turn))
        self.record.issued += len(turn)
        self.record.transactions += self.is_transaction
        channel.send(block, begin, end, turn, self._now())

    def _deal(self, channel: Channel | None = None) -> None:
        """In an open loop: give each due turn to the node of the next request, until this idle connection has one.
        Without a connection: until no turn is due."""
        for _ in range(_AT_ONCE):
            if channel is not None and not (channel.node.idle and channel.node.idle[-1] is channel):
                return
            turn = self._next_turn()
            if turn is None:
                return
            place = self._routes.due(len(turn)) if turn[0] >= 0 else None
            if place is None:
                # A leg in closed loop: any idle connection may take its turns.
                self._wait_with(turn)
                return
            if place.error is None and not place.idle and place.dealt_operations >= AHEAD:
                self._held = self._stuck = turn
                return
            self._routes.dealt()
            if place.error is not None:
                self._fail_unsent(place, turn)
            elif place.idle:
                place.feed.advance(len(turn), self.record)
                self._send(place.idle.pop(), turn)
            else:
                place.keep(turn)

    def _wait_with(self, turn: Turn) -> None:
        self._held = turn
        if not any(node.idle for node in self._routes.nodes):
            self._stuck = turn

    def _take_dealt(self, channel: Channel) -> None:
        """Send the turn that has waited longest for a connection of this node."""
        node = channel.node
        if self._now() >= self.span.end_ns:
            self._end(self._held or ())
            node.idle.append(channel)
            return
        turn = node.take_turn()
        if self._held is self._stuck:
            # The node's queue has room again, so the turn that was held back can be dealt.
            self._stuck = None
        node.mark()
        node.feed.advance(len(turn), self.record)
        self._send(channel, turn)

    def _settle_down(self, turn: Turn | None) -> None:
        """From now on the load may be steady for a while: a stage that is a closed loop."""
        until_ns = self._pacer.closed_until_ns if self.may_be_steady else None
        if until_ns is not None and turn is not None and turn[0] < 0 and len(turn) == self.batch:
            self.steady, self.whenever = turn, turn[0]
            self.until_ns = min(until_ns, self.span.end_ns)
            self._is_unsteady = False

    def pump(self) -> None:
        """Have connections that rest send what is due. Of several nodes, the one comes first for which most lies ready:
        so none falls behind."""
        if not self._has_begun:
            return
        for node in sorted(self._routes.nodes, key=lambda node: -node.feed.backlog):
            while node.idle:
                channel = node.idle.pop()
                self.issue(channel)
                if node.idle and node.idle[-1] is channel:
                    break
        if self._routes.failing and self._is_open and self._is_unsteady:
            self._deal()

    def _end(self, turn: Turn) -> None:
        """The span has ended: this turn, and all that wait for connections, were never sent."""
        left: list[int] = []
        for node in self._routes.nodes:
            while node.dealt:
                left += node.take_turn()
            node.mark()
        if left or not self._has_ended:
            self._has_ended, self._held = True, None
            self.record.unsent += self._pacer.unsent((*turn, *left))

    def _look_at_the_end(self) -> None:
        self.until_ns = min(self.until_ns, self.span.end_ns)

    def check(self, now_ns: int) -> None:
        """To be called some twenty times a second: notices the end of the span, and replies that never come."""
        self._look_at_the_end()
        if self._has_begun and now_ns >= self.span.end_ns:
            self._end(self._held or ())
        for node in self._routes.nodes:
            if self._worker.cancellation.is_cancelled:
                self._fail_detours(node, CutShort("the run is over"))
            for channel in tuple(node.channels):
                if channel.is_under_way and now_ns - channel.heard_ns > self._means.timeout_ns:
                    self.lost(channel, error := reply_timeout())
                    if not node.is_up:
                        self._fails(node, error)
                        if self._routes.is_cluster:
                            self._means.refresh()
                elif channel.is_closing and channel.is_free:
                    node.idle.remove(channel)
                    self._part(channel)
        if self._has_begun and all(node.is_gone for node in self._routes.nodes):
            self._fail_one(now_ns)
        if self._routes.has_starved:
            # Whom they wait for may be down by now.
            self.pump()

    # What becomes of connections.

    def lost(self, channel: Channel, error: Exception) -> None:
        """A connection is lost, and what was under way on it has failed."""
        channel.left()
        channel.link.lose(error)
        if channel in channel.node.idle:
            channel.node.idle.remove(channel)
        channel.unfold()
        if (block := channel.block) is not None:
            operations = block.operations_of(channel.begin, channel.end)
            self._failed(block, channel.turn, operations, error, channel.begun_ns)
            channel.freed()
        self._open_again(channel, self._means.reopen)

    def _part(self, channel: Channel) -> None:
        """A connection is to be closed, which is free: for good where its node is gone, else to be made anew."""
        channel.left()
        channel.link.close()
        self._open_again(channel, self._means.reopen)

    def _open_again(self, channel: Channel, reopen: Callable[[Channel], None]) -> None:
        channel.is_closing = False
        if channel.node.is_gone:
            channel.node.channels.remove(channel)
            channel.node.parked.append(channel)
            self._means.parked(channel)
        else:
            reopen(channel)
        channel.node.mark()

    def refused(self, channel: Channel, error: Exception, began_ns: int) -> None:
        """A connection could not be made, with all retries that the plan has. As long as its node has no other one,
        that is the end of an operation, as it would be of a call of redis-py's client."""
        node = channel.node
        if self._worker.cancellation.is_cancelled:
            return
        if self._routes.is_cluster:
            self._means.refresh()
        if not node.is_up:
            self._fails(node, error)
            if self._has_begun and not self._has_ended and not any(each.is_up for each in self._routes.nodes):
                self._fail_one(began_ns)
        is_any_up = any(each.is_up for each in self._routes.nodes)
        self._open_again(channel, self._means.reopen_later if is_any_up else self._means.reopen_soon)

    def _fail_detours(self, node: Node, error: Exception) -> None:
        """What others have sent on to a node fails with it."""
        while node.detours:
            detour = node.detours.popleft()
            operations = detour.block.operations_of(detour.begin, detour.end)
            self._failed(detour.block, detour.turn, operations, error, detour.begun_ns)
        node.mark()

    def _fails(self, node: Node, error: Exception) -> None:
        """A node cannot be reached: operations that wait for the node fail."""
        self._routes.fails(node, error)
        if self._has_begun:
            self._fail_detours(node, error)
            self._fail_dealt(node)
            self.pump()

    def _fail_dealt(self, node: Node) -> None:
        while node.dealt:
            self._fail_unsent(node, node.take_turn())

    def _fail_one(self, began_ns: int) -> None:
        """In a closed loop, if no node can be reached: fail the next operations."""
        turn = self.steady if not self._is_unsteady and self._routes.is_cluster else None
        if turn is None and not self._is_unsteady:
            # One node: its batches count the quota, if there is one.
            (node,) = self._routes.nodes
            if (batch := node.next_batch()) is not None and self._now() < self.until_ns:
                place, _, block = batch
                self._fail_batch(block, place - block.place, self.steady or (), node, began_ns)
                return
            self._routes.recall(node if batch is not None else None)
            self._is_unsteady = True
        turn = turn or self._next_turn()
        due = self._routes.due(len(turn)) if turn else None
        if turn is None:
            return
        if turn[0] < 0 and due is not None and due.error is not None:
            self._routes.dealt()
            self._fail_unsent(due, turn, began_ns)
        elif self._is_unsteady:
            self._held = turn

    def fail_batches(self, node: Node, count: int) -> None:
        """In a steady load: fail `count` batches of a node that cannot be reached."""
        assert node.error is not None
        feed = node.feed
        while count and feed.advance(self.batch, self.record):
            batches = min(count, (feed.block.count - feed.at) // self.batch)
            count -= batches
            block, begin, end = feed.take(batches * self.batch)
            self.record.issued += end - begin
            self.record.add(failed_alike(self._worker, block, begin, end, node.error, self._now(), self.whenever))
            self._leave(block, end - begin)
        if node is self._routes.nowhere:
            self._means.reread()

    def _fail_unsent(self, node: Node, turn: Turn, began_ns: int | None = None) -> None:
        """Fail the next operations of a node that cannot be reached."""
        node.feed.advance(len(turn), self.record)
        block, begin, _ = node.feed.take(len(turn))
        self._fail_batch(block, begin, turn, node, began_ns)

    def _fail_batch(self, block: Block, begin: int, turn: Turn, node: Node, began_ns: int | None) -> None:
        assert node.error is not None
        if node is self._routes.nowhere:
            self._means.reread()
        self.record.issued += len(turn)
        self.record.transactions += self.is_transaction
        operations = block.operations_of(begin, begin + len(turn))
        self._failed(block, turn, operations, node.error, self._now() if began_ns is None else began_ns)

    def _failed(
        self, block: Block, turn: Turn, operations: Sequence[Operation], error: Exception, begun_ns: int
    ) -> None:
        now_ns = self._now()
        told = [(due_ns, each, error, now_ns) for due_ns, each in zip(turn, operations, strict=True)]
        self.record.add(settled(self._worker, self._means.replies, told, begun_ns, None, executed=False))
        self._leave(block, len(turn))

    # What becomes of replies.

    def settle(self, channel: Channel, block: Block, replies: Any, got_bytes: int, ended_ns: int) -> None:
        """Look at each reply of a batch, and set the connection free."""
        count, turn, errors, marks = channel.end - channel.begin, channel.turn, channel.errors, channel.marks
        if count + channel.skip + 2 * self.is_transaction == 1:
            replies = [replies]
        replies = replies[channel.skip :]
        executed = False
        if self.is_transaction:
            replies, executed = unwrapped(replies)
        operations = block.operations_of(channel.begin, channel.end)
        ends = [ended_ns] * count
        if marks and not self.is_transaction:
            sizes = [self._means.replies.size(each[0], reply) for each, reply in zip(operations, replies, strict=True)]
            sizes[0] += channel.skip * len(b"+OK\r\n")
            ends = ends_of(sizes, marks, ended_ns)
        is_alone = count == 1 and not (self.is_transaction or channel.skip or channel.is_pushed_to)
        told = list(zip(turn, operations, replies, ends, strict=True))
        if errors and self._routes.is_cluster and not self._worker.cancellation.is_cancelled:
            told = self._redirects.followed(channel, block, told)
        if told:
            alone_bytes = got_bytes if is_alone else None
            self.record.add(
                settled(self._worker, self._means.replies, told, channel.begun_ns, alone_bytes, executed=executed)
            )
            self._leave(block, len(told))
        channel.freed()
        if self._means.is_watched and any(is_read_only(error) for error in errors):
            # As redis-py does, so that Sentinels are asked again: what it leads to is no primary any more.
            self.lost(channel, socket_failure(ConnectionError("the server has become a replica")))

    def _leave(self, block: Block, count: int) -> None:
        """Note that `count` operations of a block have rows of their own."""
        if block.place != NOWHERE:
            self.record.add_batch(pack_batch(0, 0, block.place, count, TOLD_APART, 0))

    def found(self, slots: Sequence[str]) -> None:
        """The topology was read anew."""
        self._redirects.found(slots)
        for node in self._routes.failing:
            self._fail_dealt(node)
        self.pump()
