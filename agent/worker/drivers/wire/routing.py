"""Which connections and which requests belong to which node.

A target that is no cluster has one node, which gets all requests. In a cluster each request goes to the node of its
slot: requests are drawn over the whole key space, as the plan says, and dealt to the nodes. Every drawn request is
issued, also if its node goes down:

- Requests for a node that cannot be reached fail, and so do requests for slots that no node serves. The latter belong
  to a node of their own, `nowhere`. Both fail in proportion to the requests that other nodes send.
- No node may be far ahead of another: if requests for one node pile up, the other nodes wait. They do not wait for a
  node that is known to be down.
- Requests for a node that has lost its slots go to the node that has most of these slots now. That node redirects those
  for other slots.

In an open loop each due turn goes to the node of the next request. A busy node queues the turn until one of its
connections is idle, so that a slow node does not delay other nodes.

Pure but for the drawing: nodes and their slots are told, nobody is asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat

import numpy as np

from agent.worker.drivers.wire.batch_rows import WireRecord
from agent.worker.drivers.wire.channel import Channel
from agent.worker.drivers.wire.request_source import NOBODY, Batch, Block, Feed, Source
from agent.worker.pacing.pacer import Turn
from common.metrics.histogram import Ints
from common.redis_client.wire_connections import SINGLE_NODE, slot_not_covered

AHEAD = 8192
"""Requests that may lie ready for one node before others have to wait for it."""
_DRAWS = 64
"""Blocks drawn in one go for a node that few requests fall to."""
_SHORT_ROUND = 32
"""Batches of a steady load that are sent in one go before failing nodes fail their share."""


@dataclass(frozen=True, slots=True)
class Detour:
    """Requests that a node sent elsewhere; as a batch of their own, begun when they were first sent. asking: by ASK."""

    block: Block
    begin: int
    end: int
    turn: Turn
    begun_ns: int
    hops: int
    asking: bool


@dataclass(slots=True, eq=False)
class Node:
    """One server. idle: its connections that are open and rest. parked: those given up because it was gone. detours:
    requests that others sent here. next_batch: its next batch in a steady load, None where there is none for now, or no
    more at all. dealt: turns that wait for one of its connections. error: why its requests fail, while they do.
    drawn: how many requests it had when some were last drawn."""

    name: str
    number: int
    feed: Feed = field(default_factory=Feed)
    channels: list[Channel] = field(default_factory=list)
    idle: list[Channel] = field(default_factory=list)
    parked: list[Channel] = field(default_factory=list)
    detours: deque[Detour] = field(default_factory=deque)
    dealt: deque[Turn] = field(default_factory=deque)
    dealt_operations: int = 0
    error: Exception | None = None
    drawn: int = 0
    is_gone: bool = False
    is_special: bool = False
    next_batch: Callable[[], Batch | None] = lambda: None

    def mark(self) -> None:
        """Note whether its connections have anything to do but its own requests."""
        self.is_special = bool(self.detours or self.dealt) or any(channel.is_closing for channel in self.channels)

    def keep(self, turn: Turn) -> None:
        """Queue a turn until a connection is idle."""
        self.dealt.append(turn)
        self.dealt_operations += len(turn)

    def take_turn(self) -> Turn:
        """The turn that has waited longest."""
        turn = self.dealt.popleft()
        self.dealt_operations -= len(turn)
        return turn

    @property
    def undealt(self) -> int:
        """How many of its requests have no turn yet."""
        return self.feed.backlog - self.dealt_operations

    def lead(self, other: Node) -> int:
        """How many more of its requests are left than the other node has, in proportion to the drawn requests."""
        left = self.drawn * other.feed.backlog // other.drawn if other.drawn else 0
        return self.feed.backlog - left

    @property
    def is_up(self) -> bool:
        """Whether any of its connections is open."""
        return any(channel.is_open for channel in self.channels)


class Routes:
    """The nodes of one worker's target, and the requests that wait for each."""

    def __init__(
        self,
        source: Source,
        record: WireRecord,
        add_node: Callable[[Node], None],
        fed: Callable[[], None],
        fail: Callable[[Node, int], None],
        batch: int,
        batches: int | None = None,
    ) -> None:
        """add_node: told of each node that is new, to give it connections. fed: told when some that had nothing to send
        may have. fail: makes that many batches of a steady load fail, for a node with an `error`. batch: operations of
        each batch of a steady load; batches: how many of them there are, None for no end (of several nodes, it has
        none)."""
        self._source, self._record, self._add_node, self._fed, self._fail = source, record, add_node, fed, fail
        self._batch = batch
        self._batches = batches
        self._starved: set[str] = set()
        self._by_name: dict[str, Node] = {}
        self._numbers: Ints | None = None
        # The slots of the last call; None if they have changed since.
        self._slots: Sequence[str] | None = None
        self.nodes: list[Node] = []
        self.nowhere = Node("", NOBODY, error=slot_not_covered())
        self.failing: list[Node] = []
        """Those with an `error` that have requests."""
        # `nowhere` is last, so that NOBODY (-1) is its index.
        self._places = [self.nowhere]
        self._due: Node | None = None
        self._order: Iterator[int] = iter(())
        # Of its own for each worker: with the same one, all workers would turn to the same node at the same time.
        self._chance = np.random.default_rng()

    @property
    def is_cluster(self) -> bool:
        """Whether there are slots."""
        return self._numbers is not None

    def begin(self, slots: Sequence[str] | None) -> None:
        """Tell of the nodes that there are. slots: as for `update`; None where the target is no cluster."""
        if slots is None:
            self.node(SINGLE_NODE)
        else:
            self.update(slots)

    def prepare(self) -> None:
        """Draw what each node is to begin with, ahead of the start: the first block takes longest."""
        for node in self.nodes:
            self.more(node, self._batch)

    def update(self, slots: Sequence[str]) -> bool:
        """In a cluster: the name of the node of each slot, "" for none. Returns whether anything has changed. A node
        without slots is gone; what waits for it goes to the node that has most of its slots now, and what others sent
        there is left to them."""
        if slots == self._slots:
            return False
        self._slots = slots
        names = sorted(set(slots) - {""})
        for name in names:
            self.node(name).is_gone = False
        numbers = np.array([self._by_name[name].number if name else NOBODY for name in slots], dtype=np.int64)
        before = numbers if self._numbers is None else self._numbers
        has_changed = self._numbers is None or bool((numbers != before).any())
        self._numbers = numbers
        for node in self.nodes:
            if node.name not in names and not node.is_gone:
                node.is_gone, node.error = True, None
                self._hand_over(node, before)
                for channel in node.channels:
                    channel.is_closing = True
                node.mark()
        if has_changed:
            self._hand_over(self.nowhere, before)
            self._find_failing()
        return has_changed

    def _hand_over(self, node: Node, before: Ints) -> None:
        """Move the requests of a node to the one that has most of its slots now. before: the node of each slot
        before."""
        assert self._numbers is not None
        heirs = self._numbers[before == node.number]
        heir = self._places[int(np.bincount(heirs + 1).argmax()) - 1] if heirs.size else self.nowhere
        if heir is node:
            return
        self.recall()
        for block in node.feed.hand_over(self._record):
            heir.feed.append(block)
        while node.dealt:
            heir.keep(node.take_turn())
        heir.mark()
        self._forget_order()

    def recall(self, last: Node | None = None) -> None:
        """A steady load is over, or has changed: put unsent requests back into the feeds. last: the node whose last
        batch was taken, but not sent."""
        for node in self.nodes:
            node.feed.recall(self._batch, 1 if node is last else 0)

    def fails(self, node: Node, error: Exception) -> None:
        """Requests for this node fail from now on, with this error."""
        node.error = error
        self.recall()
        self._find_failing()

    def works(self, node: Node) -> None:
        """Requests for this node are sent from now on."""
        if node.error is not None:
            node.error = None
            self._find_failing()

    def _find_failing(self) -> None:
        self.failing = [node for node in self._places if node.error is not None and not node.is_gone]
        if not self.nowhere.feed.backlog and not (self._numbers is not None and (self._numbers == NOBODY).any()):
            self.failing.remove(self.nowhere)
        self._note_drawn()

    def moved(self, slot: int, name: str) -> bool:
        """One slot is another node's now. Returns whether that is news."""
        assert self._numbers is not None
        node = self.node(name)
        if self._numbers[slot] == node.number:
            return False
        self._numbers[slot] = node.number
        self._slots = None
        node.is_gone = False
        return True

    def node(self, name: str) -> Node:
        """The node of this name, a new one where it was not known."""
        if name not in self._by_name:
            node = self._by_name[name] = Node(name, len(self.nodes))
            node.next_batch = self._batches_of(node)
            self.nodes.append(node)
            self._places.insert(node.number, node)
            self._add_node(node)
        return self._by_name[name]

    def more(self, node: Node, count: int) -> bool:
        """Have so many requests lie ready for a node. Returns whether they do: they do not where others have to catch
        up before more may be drawn, and where no slot is the node's."""
        feed = node.feed
        if feed.block.count - feed.at >= count:
            return True
        for _ in range(_DRAWS):
            if feed.advance(count, self._record):
                if self._starved:
                    self._starved.clear()
                    self._fed()
                return True
            if self._numbers is not None and not self._may_draw(node, count):
                break
            self._draw(count)
        self._starved.add(node.name)
        return False

    def _draw(self, count: int) -> None:
        for number, block in self._source.draw(count, self._numbers):
            self._places[number].feed.append(block)
        if self.failing:
            self._note_drawn()

    def _note_drawn(self) -> None:
        for place in self._places:
            place.drawn = place.feed.backlog

    def due(self, count: int) -> Node | None:
        """The node for the next turn, of `count` operations: the same node until `dealt` is called. It is drawn at
        random, in proportion to the requests without a turn. None if one draw of requests does not fill a turn."""
        if self._due is not None and self._due.undealt >= count:
            return self._due
        for _ in range(_DRAWS):
            for number in self._order:
                place = self._places[number]
                if place.undealt >= count:
                    self._due = place
                    return place
            turns = [place.undealt // count for place in self._places]
            if not any(turns):
                self._draw(count)
                turns = [place.undealt // count for place in self._places]
            self._order = iter(self._shuffled(turns))
        return None

    def dealt(self) -> None:
        """The node that `due` returned has got its turn."""
        self._due = None

    def _shuffled(self, turns: Sequence[int]) -> list[int]:
        if sum(turns) == 1:
            return [turns.index(1)]
        shuffled: list[int] = self._chance.permutation(np.repeat(np.arange(len(turns)), turns)).tolist()
        return shuffled

    def _forget_order(self) -> None:
        self._due, self._order = None, iter(())

    def behind(self, node: Node, count: int) -> Node | None:
        """In a closed loop: a failing node of which `count` requests must fail before `node` sends `count` more; or
        None."""
        return next((place for place in self.failing if place is not node and place.lead(node) >= count), None)

    @property
    def has_starved(self) -> bool:
        """Whether there was nothing for some node because others have to catch up."""
        return bool(self._starved)

    def is_starved(self, node: Node) -> bool:
        """Whether there was nothing for it because others have to catch up."""
        return node.name in self._starved

    def _batches_of(self, node: Node) -> Callable[[], Batch | None]:
        """See `Node.next_batch`. One call of an iterator of C: it is made for each batch."""
        return chain(islice(chain.from_iterable(self._rounds(node)), self._batches), repeat(None)).__next__

    def _rounds(self, node: Node) -> Iterator[Iterable[Batch | None]]:
        while True:
            if self.failing:
                self._fail_behind(node)
            if not self.more(node, self._batch):
                yield (None,)
            else:
                yield node.feed.batches(self._batch, _SHORT_ROUND if self.failing else None)

    def _fail_behind(self, node: Node) -> None:
        for place in self.failing:
            if place is not node and (batches := place.lead(node) // self._batch) > 0:
                self._fail(place, batches)

    def _may_draw(self, node: Node, count: int) -> bool:
        limit = max(AHEAD, 2 * count)
        if any(other.feed.backlog > limit for other in self.nodes if other is not node and other.error is None):
            return False
        return self._numbers is not None and node.number in self._numbers
