"""Who counts: what was served, and by which processes. The server's own counters, or those of null responders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from common.errors import TargetError
from common.plan.schema import Target
from coordinator.journal.records import Reading, ServerCounted
from coordinator.servers.commandstats import read_server_counts


class Referee(Protocol):
    """One that counts for a contender."""

    def served(self) -> int:
        """GETs and SETs that were served so far. Raises TargetError."""

    def connected(self) -> int:
        """Connections that are open, its own among them. Raises TargetError."""

    def pids(self) -> Sequence[int]:
        """The processes that serve."""


@dataclass(frozen=True, slots=True)
class ServerReferee:
    """A server's own counters, or those of all nodes of a cluster. server: its processes."""

    target: Target
    server: Sequence[int]

    def served(self) -> int:
        calls = self._read().calls
        return calls.get("get", 0) + calls.get("set", 0)

    def connected(self) -> int:
        return self._read().connected_clients

    def pids(self) -> Sequence[int]:
        return self.server

    def _read(self) -> ServerCounted:
        counted = read_server_counts(self.target, Reading.BEFORE)
        if counted.error:
            raise TargetError(counted.error)
        return counted
