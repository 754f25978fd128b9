"""What nodes of a cluster send elsewhere: MOVED and ASK are followed as by redis-py, and the topology with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from agent.worker.drivers.wire.channel import Channel
from agent.worker.drivers.wire.request_source import Block
from agent.worker.drivers.wire.routing import Detour, Node, Routes
from agent.worker.drivers.wire.worker_context import Means
from agent.worker.pacing.pacer import Turn
from common.clock import MonotonicNs
from common.redis_client.wire_connections import redirect_kind, redirect_target

_MOST_HOPS = 16
"""As many redirections as redis-py follows of one command."""
_FOLLOWED = ("MOVED", "ASK")


class Redirects:
    """Those of one worker. issue: has a connection that is free send what is next."""

    def __init__(
        self, routes: Routes, means: Means, is_transaction: bool, issue: Callable[[Channel], None], now: MonotonicNs
    ) -> None:
        self._routes, self._means, self._issue, self._now = routes, means, issue, now
        self._is_transaction = is_transaction
        self._moves = 0

    def followed(self, channel: Channel, block: Block, told: list[Any]) -> list[Any]:
        """Send on what a node would not do. told: (intended time, operation, reply or error, when it came) of each.
        Returns those that came to their end."""
        kinds = [redirect_kind(reply) if isinstance(reply, Exception) else None for _, _, reply, _ in told]
        # Of a transaction, all have the one error.
        for kind in kinds[: 1 if self._is_transaction else len(kinds)]:
            if kind is not None:
                self._means.events.redirected(self._now(), kind)
            if kind == "CLUSTERDOWN":
                self._means.reread()
        if channel.hops >= _MOST_HOPS:
            return told
        if self._is_transaction:
            if kinds[0] not in _FOLLOWED:
                return told
            self._send_on(channel, block, channel.begin, channel.end, channel.turn, told[0][2])
            return []
        for index, (kind, (due_ns, _, reply, _)) in enumerate(zip(kinds, told, strict=True)):
            if kind in _FOLLOWED:
                begin = channel.begin + index
                self._send_on(channel, block, begin, begin + 1, (due_ns,), reply)
        return [each for kind, each in zip(kinds, told, strict=True) if kind not in _FOLLOWED]

    def _send_on(self, channel: Channel, block: Block, begin: int, end: int, turn: Turn, error: Any) -> None:
        slot, name = redirect_target(error)
        is_asking = redirect_kind(error) == "ASK"
        node = self._routes.node(name)
        node.detours.append(Detour(block, begin, end, turn, channel.begun_ns, channel.hops + 1, is_asking))
        node.mark()
        self._welcome(node)
        if not is_asking:
            self._routes.moved(slot, name)
            self._moves += 1
            if self._means.refresh_after and self._moves % self._means.refresh_after == 0:
                self._means.refresh()
        if node.idle:
            self._issue(node.idle.pop())

    def take(self, channel: Channel) -> None:
        """Have a free connection send what others sent on to its node."""
        detour = channel.node.detours.popleft()
        channel.hops, channel.skip = detour.hops, int(detour.asking)
        channel.send(detour.block, detour.begin, detour.end, detour.turn, detour.begun_ns)
        # Its own replies have to be told from what comes before them.
        channel.is_simple = False
        if channel.is_under_way:
            # It is waited for from now on, not from when it was first sent.
            channel.notes.append((self._now(), 0))
        channel.node.mark()

    def found(self, slots: Sequence[str]) -> None:
        """The topology was read anew."""
        if self._routes.update(slots):
            self._means.events.topology_refreshed(self._now())
        homes = [node for node in self._routes.nodes if not node.is_gone]
        for node in homes:
            self._welcome(node)
        # What was sent on to a node that is gone goes to whichever node there is: it will say where to.
        for node in self._routes.nodes:
            while node.is_gone and node.detours and homes:
                homes[0].detours.append(node.detours.popleft())
                homes[0].mark()

    def _welcome(self, node: Node) -> None:
        """A node may have been gone before: its connections are wanted again."""
        node.is_gone = False
        while node.parked:
            channel = node.parked.pop()
            node.channels.append(channel)
            self._means.reopen(channel)
