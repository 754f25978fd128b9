"""What nodes of a cluster say of each other: read as clients can use it, before redis-py looks at it.

A node may be named by an address that clients cannot use, which the plan maps; or by none at all: an empty host or null
is that of the node that was asked (`cluster-preferred-endpoint-type unknown-endpoint`), and so is "?", a node without
the hostname that the cluster prefers, unless its IP address stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis
from redis.exceptions import AskError
from redis.utils import str_if_bytes

from common.plan.remap import AddressMap
from common.target.slots import SLOTS


class NoSlots(redis.RedisError):
    """A node of a cluster knows of no node that serves slots."""


class Announced:
    """Reads the addresses that one node tells. asked: the host by which that node is reached."""

    def __init__(self, asked: str, remap: AddressMap) -> None:
        self._asked, self._remap = asked, remap

    def topology(self, reply: Any) -> list[list[Any]]:
        """A reply to CLUSTER SLOTS, with addresses that clients can use. Raises NoSlots, and InvalidResponse for a
        reply that tells no topology."""
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
        """Have a MOVED or an ASK lead to where its node is reached."""
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
            # Nodes know no zones, which are names that this machine gives to its own interfaces.
            host = f"{host}%{zone}"
        return self._remap.reached(host, port)


def _ip_beside(node: Sequence[Any]) -> str | None:
    """What a node's further facts say, which are a list of names and values, or a map."""
    facts = node[3] if len(node) > 3 else {}
    pairs = facts.items() if isinstance(facts, dict) else zip(facts[::2], facts[1::2], strict=False)
    return next((str_if_bytes(value) for name, value in pairs if str_if_bytes(name) == "ip"), None)
