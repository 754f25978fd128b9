"""The addresses that cluster nodes announce, corrected for clients before redis-py reads them.

- An address that clients cannot use is mapped as the plan says (`target.address_remap`).
- An empty host or null (`cluster-preferred-endpoint-type unknown-endpoint`) means the host of the node that was asked.
- "?" is a node without the hostname that the cluster prefers: its IP address is used if the reply has one, else the
  host of the node that was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from redis.exceptions import AskError
from redis.utils import str_if_bytes

from common.plan.address_map import AddressMap
from common.redis_client.slots import SLOTS


class NoSlots(redis.RedisError):
    """A cluster node reports a topology in which no node serves slots."""


class AnnouncedAddresses:
    """Corrects the addresses that one node announces. asked: the host at which clients reach that node."""

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
        """Replace the address in a MOVED or ASK by the one at which clients reach that node."""
        error.host, error.port = error.node_addr = self._reached(error.host, error.port)

    def _node(self, node: Sequence[Any]) -> list[Any]:
        host: str | None = str_if_bytes(node[0])
        if host == "?":
            host = _ip_beside(node)
        return [*self._reached(host, int(node[1])), *node[2:]]

    def _reached(self, host: str | None, port: int) -> tuple[str, int]:
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
