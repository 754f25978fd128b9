"""Which connections and which requests belong to which node.

Of a target that is no cluster there is one node, and all is its. In a cluster each request goes to the node of its
slot: requests are drawn over the whole key space, as the plan says, and dealt to the nodes; so whatever each node does
with its part, the whole keeps its distribution. For that, no node may be far ahead of another one: where requests for
one node pile up, the others wait. Only for a node that is down nobody waits; what was drawn for it is forgotten.

Pure but for the drawing: nodes and their slots are told, nobody is asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat

import numpy as np

from agent.worker.pacer import Turn
from agent.worker.wire.channel import Channel
from agent.worker.wire.record import WireRecord
from agent.worker.wire.source import Batch, Block, Feed, Source
from common.histogram import Ints
from common.target.wire import ALONE

AHEAD = 8192
"""Requests that may lie ready for one node before others have to wait for it."""
_DRAWS = 64
"""Blocks drawn in one go for a node that few requests fall to."""


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
    more at all."""

    name: str
    number: int
    feed: Feed = field(default_factory=Feed)
    channels: list[Channel] = field(default_factory=list)
    idle: list[Channel] = field(default_factory=list)
    parked: list[Channel] = field(default_factory=list)
    detours: deque[Detour] = field(default_factory=deque)
    is_gone: bool = False
    is_special: bool = False
    next_batch: Callable[[], Batch | None] = lambda: None

    def mark(self) -> None:
        """Note whether its connections have anything to do but its own requests."""
        self.is_special = bool(self.detours) or any(channel.is_closing for channel in self.channels)

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
        batch: int,
        batches: int | None = None,
    ) -> None:
        """add_node: told of each node that is new, to give it connections. fed: told when some that had nothing to send
        may have. batch: operations of each batch of a steady load; batches: how many of them there are, None for no
        end (of several nodes, it has none)."""
        self._source, self._record, self._add_node, self._fed = source, record, add_node, fed
        self._batch = batch
        self._batches = batches
        self._starved: set[str] = set()
        self._by_name: dict[str, Node] = {}
        self._numbers: Ints | None = None
        self.nodes: list[Node] = []

    @property
    def is_cluster(self) -> bool:
        """Whether there are slots."""
        return self._numbers is not None

    def begin(self, slots: Sequence[str] | None) -> None:
        """Tell of the nodes that there are. slots: as for `update`; None where the target is no cluster."""
        if slots is None:
            self.node(ALONE)
        else:
            self.update(slots)

    def prepare(self) -> None:
        """Draw what each node is to begin with, ahead of the start: the first block takes longest."""
        for node in self.nodes:
            self.more(node, self._batch)

    def update(self, slots: Sequence[str]) -> bool:
        """In a cluster: the name of the node of each slot, "" for none. Returns whether anything has changed. A node
        without slots is gone; what waits for it is forgotten, and what was sent there by others is left to them."""
        names = sorted(set(slots) - {""})
        for name in names:
            self.node(name).is_gone = False
        numbers = np.array([self._by_name[name].number if name else -1 for name in slots], dtype=np.int64)
        has_changed = self._numbers is None or bool((numbers != self._numbers).any())
        self._numbers = numbers
        for node in self.nodes:
            if node.name not in names and not node.is_gone:
                node.is_gone = True
                node.feed.clear(self._record)
                for channel in node.channels:
                    channel.is_closing = True
                node.mark()
        return has_changed

    def moved(self, slot: int, name: str) -> bool:
        """One slot is another node's now. Returns whether that is news."""
        assert self._numbers is not None
        node = self.node(name)
        if self._numbers[slot] == node.number:
            return False
        self._numbers[slot] = node.number
        node.is_gone = False
        return True

    def node(self, name: str) -> Node:
        """The node of this name, a new one where it was not known."""
        if name not in self._by_name:
            node = self._by_name[name] = Node(name, len(self.nodes))
            node.next_batch = self._batches_of(node)
            self.nodes.append(node)
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
            for number, block in self._source.draw(count, self._numbers):
                self.nodes[number].feed.append(block)
        self._starved.add(node.name)
        return False

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
            if self.more(node, self._batch):
                yield node.feed.batches(self._batch)
            else:
                yield (None,)

    def _may_draw(self, node: Node, count: int) -> bool:
        limit = max(AHEAD, 2 * count)
        for other in self.nodes:
            if other is not node and other.feed.backlog > limit:
                if other.is_up:
                    return False
                other.feed.clear(self._record)
        return self._numbers is not None and node.number in self._numbers
