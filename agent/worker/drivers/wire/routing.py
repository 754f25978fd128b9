"""Assigns requests to nodes.

A target that is not a cluster has one node, which gets all requests. In a cluster each request goes to the node of its
slot: requests are drawn over the whole key space, as the plan says, and divided among the nodes. Every drawn request is
issued, even if its node goes down:

- Requests for a node that cannot be reached fail, and so do requests for slots that no node serves: these belong to an
  artificial node, `uncovered`. Both kinds fail in proportion to the requests that are sent to other nodes.
- No node may be far ahead of another: if requests for one node pile up, the other nodes wait. They do not wait for a
  node that is known to be down.
- If a node loses its slots, its requests go to the node that now has most of these slots. That node redirects requests
  for other slots.

In an open loop, each due turn goes to the node of the next request. A busy node queues the turn until one of its
connections is idle, so a slow node does not delay other nodes.

Pure, except for random numbers: the router gets nodes and slots from its caller, and calls no server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, repeat
from typing import Any

import numpy as np

from agent.worker.drivers.result_rows import Result
from agent.worker.drivers.wire.batch_hits import BatchHits
from agent.worker.drivers.wire.batch_rows import WireRecord
from agent.worker.drivers.wire.connection import BatchConnection, RedirectedBatch, TargetNode
from agent.worker.drivers.wire.replies import ReplyParser
from agent.worker.drivers.wire.requests import NO_NODE, Batch, RequestSource
from agent.worker.pacing.pacer import NO_DUE_TIME, Turn
from common.clock import MonotonicNs
from common.metrics.histogram import Ints
from common.redis_client import ConnectionEvents
from common.redis_client.wire_connections import SINGLE_NODE, redirect_kind, redirect_target, slot_not_covered_error

AHEAD = 8192
"""How many requests may be queued for one node before the other nodes wait for it."""
_MAX_DRAWS = 64
"""Most blocks drawn in a row for a node that gets few requests."""
_SHORT_ROUND = 32
"""Batches of a steady load that a node sends before failing nodes fail their share."""

_MAX_HOPS = 16
"""redis-py follows this many redirections of one command."""
_FOLLOWED = ("MOVED", "ASK")


class RequestRouter:
    """The nodes of one worker's target, and the waiting requests of each node."""

    def __init__(
        self,
        source: RequestSource,
        record: WireRecord,
        add_node: Callable[[TargetNode], None],
        on_requests: Callable[[], None],
        fail_batches: Callable[[TargetNode, int], None],
        batch: int,
        batches: int | None = None,
    ) -> None:
        """add_node: gives a new node its connections. on_requests: called when nodes that had to wait may send again.
        fail_batches: fails this many batches of a steady load for a node with an `error`. batch: operations in each
        batch of a steady load. batches: number of these batches, None for no limit; always None with several nodes."""
        self._source, self._record, self._add_node = source, record, add_node
        self._on_requests, self._fail_batches = on_requests, fail_batches
        self._batch = batch
        self._batches = batches
        self._waiting: set[str] = set()
        self._by_name: dict[str, TargetNode] = {}
        self._numbers: Ints | None = None
        # The slots of the last `update_slots`; None if they have changed since.
        self._slots: Sequence[str] | None = None
        self.steady_turn = Turn((NO_DUE_TIME,) * batch)
        self.nodes: list[TargetNode] = []
        self.uncovered = TargetNode("", NO_NODE, error=slot_not_covered_error())
        self.failing: list[TargetNode] = []
        """Nodes with an `error` that get requests."""
        # `uncovered` is last, so that NO_NODE (-1) is its index.
        self._places = [self.uncovered]
        self._next_node: TargetNode | None = None
        self._order: Iterator[int] = iter(())
        # Seeded differently in each worker: otherwise all workers would use the same node at the same time.
        self._random = np.random.default_rng()

    @property
    def is_cluster(self) -> bool:
        """Whether the target is a cluster."""
        return self._numbers is not None

    def begin(self, slots: Sequence[str] | None) -> None:
        """Add the first nodes. slots: as for `update_slots`; None if the target is not a cluster."""
        if slots is None:
            self.node(SINGLE_NODE)
        else:
            self.update_slots(slots)

    def prefetch(self) -> None:
        """Draw the first requests of each node before the start, because the first block takes longest."""
        for node in self.nodes:
            self.ensure(node, self._batch)

    def update_slots(self, slots: Sequence[str]) -> bool:
        """Set the node of each slot of a cluster. slots: node names, "" for no node. Returns whether any slot has
        another node than before.

        A node without slots counts as gone: its requests go to the node that now has most of its slots. Batches that
        were redirected to it stay there.
        """
        if slots == self._slots:
            return False
        self._slots = slots
        names = sorted(set(slots) - {""})
        for name in names:
            self.node(name).is_gone = False
        numbers = np.array([self._by_name[name].number if name else NO_NODE for name in slots], dtype=np.int64)
        before = numbers if self._numbers is None else self._numbers
        has_changed = self._numbers is None or bool((numbers != before).any())
        self._numbers = numbers
        for node in self.nodes:
            if node.name not in names and not node.is_gone:
                node.is_gone, node.error = True, None
                self._hand_over(node, before)
                for connection in node.connections:
                    connection.is_closing = True
                node.update_special_work()
        if has_changed:
            self._hand_over(self.uncovered, before)
            self._update_failing()
        return has_changed

    def _hand_over(self, node: TargetNode, before: Ints) -> None:
        """Move a node's requests to the node that now has most of its slots. before: the node number of each slot
        before the change."""
        assert self._numbers is not None
        heirs = self._numbers[before == node.number]
        heir = self._places[int(np.bincount(heirs + 1).argmax()) - 1] if heirs.size else self.uncovered
        if heir is node:
            return
        self.take_back()
        for block in node.requests.remove_all(self._record):
            heir.requests.append(block)
        while node.turns:
            heir.push_turn(node.pop_turn())
        heir.update_special_work()
        self._next_node, self._order = None, iter(())

    def take_back(self, last: TargetNode | None = None) -> None:
        """Put the unsent requests of the steady load back into the queues, because the load has ended or changed. last:
        the node whose last batch was taken but not sent."""
        for node in self.nodes:
            node.requests.take_back(self._batch, 1 if node is last else 0)

    def set_error(self, node: TargetNode, error: Exception) -> None:
        """Make requests for this node fail with this error."""
        node.error = error
        self.take_back()
        self._update_failing()

    def clear_error(self, node: TargetNode) -> None:
        """Send requests for this node again."""
        if node.error is not None:
            node.error = None
            self._update_failing()

    def _update_failing(self) -> None:
        self.failing = [node for node in self._places if node.error is not None and not node.is_gone]
        has_uncovered = self._numbers is not None and bool((self._numbers == NO_NODE).any())
        if not self.uncovered.requests.backlog and not has_uncovered:
            self.failing.remove(self.uncovered)
        self._update_drawn()

    def slot_moved(self, slot: int, name: str) -> None:
        """Record that the slot now belongs to the node of this name."""
        assert self._numbers is not None
        node = self.node(name)
        if self._numbers[slot] != node.number:
            self._numbers[slot] = node.number
            self._slots = None
            node.is_gone = False

    def node(self, name: str) -> TargetNode:
        """The node of this name. Makes a new node for a new name."""
        if name not in self._by_name:
            node = self._by_name[name] = TargetNode(name, len(self.nodes))
            node.next_batch = self._steady_batches(node)
            self.nodes.append(node)
            self._places.insert(node.number, node)
            self._add_node(node)
        return self._by_name[name]

    def ensure(self, node: TargetNode, count: int) -> bool:
        """Draw requests until the node has `count` in its block. Returns False if other nodes must catch up before more
        requests may be drawn, or if no slot belongs to the node."""
        requests = node.requests
        if requests.block.count - requests.position >= count:
            return True
        for _ in range(_MAX_DRAWS):
            if requests.advance(count, self._record):
                if self._waiting:
                    self._waiting.clear()
                    self._on_requests()
                return True
            if self._numbers is not None and not self._may_draw(node, count):
                break
            self._draw(count)
        self._waiting.add(node.name)
        return False

    def _draw(self, count: int) -> None:
        for number, block in self._source.draw(count, self._numbers):
            self._places[number].requests.append(block)
        if self.failing:
            self._update_drawn()

    def _update_drawn(self) -> None:
        for place in self._places:
            place.drawn = place.requests.backlog

    def _may_draw(self, node: TargetNode, count: int) -> bool:
        limit = max(AHEAD, 2 * count)
        if any(other.requests.backlog > limit for other in self.nodes if other is not node and other.error is None):
            return False
        return self._numbers is not None and node.number in self._numbers

    def next_node(self, count: int) -> TargetNode | None:
        """The node for the next turn of `count` operations; the same node until `assigned` is called. The choice is
        random, in proportion to the requests without a turn. None if no node gets enough requests for a turn."""
        if self._next_node is not None and self._next_node.without_turn >= count:
            return self._next_node
        for _ in range(_MAX_DRAWS):
            for number in self._order:
                place = self._places[number]
                if place.without_turn >= count:
                    self._next_node = place
                    return place
            turns = [place.without_turn // count for place in self._places]
            if not any(turns):
                self._draw(count)
                turns = [place.without_turn // count for place in self._places]
            self._order = iter(self._shuffled(turns))
        return None

    def assigned(self) -> None:
        """Record that the node from `next_node` has got its turn."""
        self._next_node = None

    def _shuffled(self, turns: Sequence[int]) -> list[int]:
        if sum(turns) == 1:
            return [turns.index(1)]
        shuffled: list[int] = self._random.permutation(np.repeat(np.arange(len(turns)), turns)).tolist()
        return shuffled

    def must_fail_first(self, node: TargetNode, count: int) -> TargetNode | None:
        """In a closed loop: a failing node that must fail `count` requests before `node` may send `count` more; None if
        there is none."""
        places = (place for place in self.failing if place is not node and place.backlog_over(node) >= count)
        return next(places, None)

    @property
    def is_any_waiting(self) -> bool:
        """Whether any node must wait until other nodes have caught up."""
        return bool(self._waiting)

    def is_waiting(self, node: TargetNode) -> bool:
        """Whether the node must wait until other nodes have caught up."""
        return node.name in self._waiting

    def _steady_batches(self, node: TargetNode) -> Callable[[], Batch | None]:
        """See `TargetNode.next_batch`. An iterator written in C, for speed: it is called for each batch."""
        return chain(islice(chain.from_iterable(self._rounds(node)), self._batches), repeat(None)).__next__

    def _rounds(self, node: TargetNode) -> Iterator[Iterable[Batch | None]]:
        while True:
            if self.failing:
                self._fail_share(node)
            if not self.ensure(node, self._batch):
                yield (None,)
            else:
                yield node.requests.batches(self.steady_turn, _SHORT_ROUND if self.failing else None)

    def _fail_share(self, node: TargetNode) -> None:
        """Fail batches of failing nodes, in proportion to the batches that `node` has sent."""
        for place in self.failing:
            if place is not node and (batches := place.backlog_over(node) // self._batch) > 0:
                self._fail_batches(place, batches)


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolServices:
    """What the pool provides to its worker, in addition to the `WorkerContext`.

    reopen: connects again, and then calls `opened` or `refused`; `reopen_later` does so after a pause, `reopen_soon`
    after a short pause, for use when no node can be reached. refresh: reads the topology again; `refresh_uncovered`
    does so at most a few times per second, for slots that no node serves. parked: called for a connection whose node
    has left the cluster; `reopen` opens it if the node returns. ignores_replies: successful replies are only counted.
    has_known_sizes: the bytes of each command follow from the bytes of a batch. is_sentinel: Sentinels name the
    primary. has_shared_quota: several nodes share one quota. timeout_ns: the longest wait for a reply. refresh_after:
    refresh after this many MOVED, 0 for never.
    """

    replies: ReplyParser
    hits: BatchHits
    events: ConnectionEvents
    reopen: Callable[[BatchConnection], None]
    reopen_later: Callable[[BatchConnection], None]
    reopen_soon: Callable[[BatchConnection], None]
    refresh: Callable[[], None]
    refresh_uncovered: Callable[[], None]
    parked: Callable[[BatchConnection], None]
    ignores_replies: bool
    has_known_sizes: bool
    is_sentinel: bool
    has_shared_quota: bool
    timeout_ns: int
    refresh_after: int = 0


class RedirectFollower:
    """Follows MOVED and ASK as redis-py does, and keeps the topology up to date. One for each worker."""

    def __init__(
        self,
        router: RequestRouter,
        services: PoolServices,
        is_transaction: bool,
        issue: Callable[[BatchConnection], None],
        now: MonotonicNs,
    ) -> None:
        """issue: makes an idle connection send its next batch."""
        self._router, self._services, self._issue, self._now = router, services, issue, now
        self._is_transaction = is_transaction
        self._moved = 0

    def follow(self, connection: BatchConnection, batch: Batch, results: list[Result]) -> list[Result]:
        """Send redirected operations to their new nodes. Returns the other results, which are final."""
        kinds = [redirect_kind(reply) if isinstance(reply, Exception) else None for _, _, reply, _ in results]
        # All operations of a transaction have the same error.
        for kind in kinds[: 1 if self._is_transaction else len(kinds)]:
            if kind is not None:
                self._services.events.redirected(self._now(), kind)
            if kind == "CLUSTERDOWN":
                self._services.refresh_uncovered()
        if connection.hops >= _MAX_HOPS:
            return results
        if self._is_transaction:
            if kinds[0] not in _FOLLOWED:
                return results
            self._send_on(connection, batch, results[0][2])
            return []
        first, _, block, turn = batch
        for index, (kind, (due_ns, _, reply, _)) in enumerate(zip(kinds, results, strict=True), first - block.first):
            if kind in _FOLLOWED:
                self._send_on(connection, block.batch(index, Turn((due_ns,), turn.leg)), reply)
        return [each for kind, each in zip(kinds, results, strict=True) if kind not in _FOLLOWED]

    def _send_on(self, connection: BatchConnection, batch: Batch, error: Any) -> None:
        slot, name = redirect_target(error)
        is_asking = redirect_kind(error) == "ASK"
        node = self._router.node(name)
        node.redirected.append(RedirectedBatch(batch, connection.begun_ns, connection.hops + 1, is_asking))
        node.update_special_work()
        self._unpark(node)
        if not is_asking:
            self._router.slot_moved(slot, name)
            self._moved += 1
            if self._services.refresh_after and self._moved % self._services.refresh_after == 0:
                self._services.refresh()
        if node.idle:
            self._issue(node.idle.pop())

    def send(self, connection: BatchConnection) -> None:
        """Send the oldest batch that was redirected to this connection's node."""
        redirected = connection.node.redirected.popleft()
        connection.hops, connection.skip = redirected.hops, int(redirected.is_asking)
        connection.send(redirected.batch, redirected.begun_ns)
        if connection.batch is not None:
            # The mark restarts the reply timeout, which would otherwise count from the first send. It also makes the
            # worker examine each reply, because the reply to ASKING comes first.
            connection.notes.append((self._now(), 0))
        connection.node.update_special_work()

    def update_topology(self, slots: Sequence[str]) -> None:
        """The topology was read again."""
        if self._router.update_slots(slots):
            self._services.events.topology_refreshed(self._now())
        present = [node for node in self._router.nodes if not node.is_gone]
        for node in present:
            self._unpark(node)
        # Batches that were redirected to a node that has left go to any other node, which redirects them again.
        for node in self._router.nodes:
            while node.is_gone and node.redirected and present:
                present[0].redirected.append(node.redirected.popleft())
                present[0].update_special_work()

    def _unpark(self, node: TargetNode) -> None:
        """Count the node as present, and open its parked connections."""
        node.is_gone = False
        while node.parked:
            connection = node.parked.pop()
            node.connections.append(connection)
            self._services.reopen(connection)
