"""Slots of a cluster, and the addresses of its nodes. No I/O. Both cluster clients and the wire driver use it.

Cluster nodes announce addresses in CLUSTER SLOTS and in redirections. These are corrected before redis-py reads them:

- An address that clients cannot use is mapped as the plan says (`target.address_remap`).
- An empty host or null (`cluster-preferred-endpoint-type unknown-endpoint`) means the host of the node that was asked.
- "?" means that the cluster prefers host names, and the node has none: its IP address is used if the reply has one,
  else the host of the node that was asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import redis
from redis.crc import key_slot
from redis.exceptions import AskError
from redis.utils import str_if_bytes

from common.clock import MonotonicNs, monotonic_ns
from common.plan.schema.address_map import AddressMap
from common.units import NS_PER_S

SLOTS = 16384
"""Number of slots of a cluster."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 4.0


class NoSlots(redis.RedisError):
    """A cluster node reports a topology in which no node serves slots."""


def slot_of(key: bytes) -> int:
    """The slot of a key, below `SLOTS`; keys with the same hash tag, the part in braces, share one."""
    slot: int = key_slot(key)
    return slot


def by_slot(names: Iterable[bytes]) -> dict[int, list[bytes]]:
    """Keys, or names of sharded channels, by their slot."""
    slots: dict[int, list[bytes]] = {}
    for name in names:
        slots.setdefault(key_slot(name), []).append(name)
    return slots


class RefreshLimit:
    """Limits how often one client reads the topology while a slot has no node, because reading is expensive: redis-py
    opens new connections to all nodes. The first pause is 0.25 s, like redis-py's after CLUSTERDOWN. Each further pause
    is twice as long, up to 4 s."""

    def __init__(self, now: MonotonicNs = monotonic_ns) -> None:
        self._now = now
        self._next_ns = self._asked_ns = now()
        self._pause_ns = 0

    def is_due(self) -> bool:
        """Whether to read the topology now. Call it whenever an operation finds no node."""
        now_ns = self._now()
        if now_ns - self._asked_ns > _LONGEST_PAUSE_S * NS_PER_S:
            # All operations found a node for a while, so this is a new outage: begin with short pauses again.
            self._pause_ns = 0
        self._asked_ns = now_ns
        if now_ns < self._next_ns:
            return False
        self._pause_ns = int(min(max(2 * self._pause_ns, _FIRST_PAUSE_S * NS_PER_S), _LONGEST_PAUSE_S * NS_PER_S))
        self._next_ns = now_ns + self._pause_ns
        return True


class AnnouncedAddresses:
    """Corrects the addresses that one node announces. asked: the host at which clients reach this node."""

    def __init__(self, asked: str, remap: AddressMap) -> None:
        self._asked, self._remap = asked, remap

    def topology(self, reply: Any) -> list[list[Any]]:
        """A reply to CLUSTER SLOTS, with addresses that clients can use. Raises NoSlots, and InvalidResponse for a
        reply that is not a topology."""
        rows: list[list[Any]]
        try:
            rows = [
                [int(first), int(last), *(self._node(node) for node in nodes)] for first, last, *nodes in reply if nodes
            ]
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise redis.InvalidResponse("CLUSTER SLOTS was not answered with slots and nodes") from error
        if any(not 0 <= row[0] <= row[1] < SLOTS for row in rows):
            raise redis.InvalidResponse("CLUSTER SLOTS was answered with slots that no cluster has")
        if not rows:
            raise NoSlots("no slots are served")
        return rows

    def correct(self, error: AskError) -> None:
        """Replace the address in a MOVED or ASK by the address at which clients reach that node."""
        error.host, error.port = error.node_addr = self._reachable(error.host, error.port)

    def _node(self, node: Sequence[Any]) -> list[Any]:
        host: str | None = str_if_bytes(node[0])
        if host == "?":
            host = _ip_beside(node)
        return [*self._reachable(host, int(node[1])), *node[2:]]

    def _reachable(self, host: str | None, port: int) -> tuple[str, int]:
        if not host or host == "?":
            host = self._asked
        _, percent, zone = self._asked.partition("%")
        if percent and host.lower().startswith("fe80:") and "%" not in host:
            # Nodes cannot announce a zone: it is the name of an interface of this machine.
            host = f"{host}%{zone}"
        return self._remap.resolve(host, port)


def _ip_beside(node: Sequence[Any]) -> str | None:
    """The IP address in a node's metadata, which is a flat list of names and values, or a map; None without one."""
    facts = node[3] if len(node) > 3 else {}
    pairs = facts.items() if isinstance(facts, dict) else zip(facts[::2], facts[1::2], strict=False)
    return next((str_if_bytes(value) for name, value in pairs if str_if_bytes(name) == "ip"), None)
