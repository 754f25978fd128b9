"""Which connections and which requests belong to which node.

Of a target that is no cluster there is one node, and all is its. In a cluster each request goes to the node of its
slot: requests are drawn over the whole key space, as the plan says, and dealt to the nodes; so whatever each node does
with its part, the whole keeps its distribution. For that, no node may be far ahead of another one: where requests for
one node pile up, the others wait. Only for a node that is down nobody waits; what was drawn for it is forgotten.

Pure but for the drawing: nodes and their slots are told, nobody is asked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from agent.worker.pacer import Turn
from agent.worker.wire.channel import Channel
from agent.worker.wire.record import WireRecord
from agent.worker.wire.source import Block, Feed, Source
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
    """One server. idle: its connections that are open and rest. detours: requests that others sent here."""

    name: str
    number: int
    feed: Feed = field(default_factory=Feed)
    channels: list[Channel] = field(default_factory=list)
    idle: list[Channel] = field(default_factory=list)
    detours: deque[Detour] = field(default_factory=deque)
    is_gone: bool = False

    @property
    def is_up(self) -> bool:
        """Whether any of its connections is open."""
        return any(channel.is_open for channel in self.channels)


class Routes:
    """The nodes of one worker's target, and the requests that wait for each."""

    def __init__(self, source: Source, record: WireRecord, add_node: Callable[[Node], None]) -> None:
        """add_node: told of each node that is new, to give it connections."""
        self._source, self._record, self._add_node = source, record, add_node
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
            self.nodes.append(node)
            self._add_node(node)
        return self._by_name[name]

    def more(self, node: Node, count: int) -> bool:
        """Have so many requests lie ready for a node. Returns whether they do: they do not where others have to catch
        up before more may be drawn, and where no slot is the node's."""
        feed = node.feed
        for _ in range(_DRAWS):
            if feed.advance(count, self._record):
                return True
            if self._numbers is not None and not self._may_draw(node, count):
                return False
            for number, block in self._source.draw(count, self._numbers):
                self.nodes[number].feed.append(block)
        return feed.advance(count, self._record)

    def _may_draw(self, node: Node, count: int) -> bool:
        limit = max(AHEAD, 2 * count)
        for other in self.nodes:
            if other is not node and other.feed.backlog > limit:
                if other.is_up:
                    return False
                other.feed.clear(self._record)
        return self._numbers is not None and node.number in self._numbers
