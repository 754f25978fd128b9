"""Server counters: how many operations a server has served, and its processes' ids. `turns` reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from common.errors import TargetError
from common.plan.schema import Target
from coordinator.journal.records import CountersRead, Reading
from coordinator.servers.commandstats import read_server_counts


class ServerCounters(Protocol):
    """The counters of a server, or of several together."""

    def served(self) -> int:
        """GETs and SETs served so far. Raises TargetError."""

    def connections(self) -> int:
        """Open connections, including the one that asks. Raises TargetError."""

    def pids(self) -> Sequence[int]:
        """The server's processes."""


@dataclass(frozen=True, slots=True)
class RedisCounters:
    """Counters from INFO of a server, or of all nodes of a cluster. server_pids: the server's processes."""

    target: Target
    server_pids: Sequence[int]

    def served(self) -> int:
        calls = self._read().calls
        return calls.get("get", 0) + calls.get("set", 0)

    def connections(self) -> int:
        return self._read().connected_clients

    def pids(self) -> Sequence[int]:
        return self.server_pids

    def _read(self) -> CountersRead:
        counted = read_server_counts(self.target, Reading.BEFORE)
        if counted.error:
            raise TargetError(counted.error)
        return counted
