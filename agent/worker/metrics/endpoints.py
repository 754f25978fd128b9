"""The servers of one target, numbered. Rows of operations contain the number of the server that they were sent to; rows
of a target that is one server contain NO_ENDPOINT."""

from __future__ import annotations

import threading

from common.metrics.intervals import MAX_ENDPOINT_LENGTH, MAX_ENDPOINTS, OTHER
from common.plan.schema.target_url import Host
from common.redis_client import PRIMARY, REPLICA

_MOST_ROLES = 1 << 14
"""A cluster has at most one primary for each slot. A target that names more servers over time is not trusted."""


def _name(host: str, port: int) -> str:
    return str(Host(host, port))[:MAX_ENDPOINT_LENGTH]


class Endpoints:
    """The servers of one target that clients of this process have used. Thread-safe. names: by number, `host:port`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[tuple[str, int], int] = {}
        self._roles: dict[str, str] = {}
        self.names: list[str] = []

    def number(self, host: str, port: int) -> int:
        """The number of this server. A new server gets a new number, until there are `MAX_ENDPOINTS`."""
        number = self._numbers.get((host, port))
        return self._add(host, port) if number is None else number

    def _add(self, host: str, port: int) -> int:
        name = _name(host, port)
        with self._lock:
            if name not in self.names and len(self.names) >= MAX_ENDPOINTS - 1:
                name = OTHER
            if name not in self.names:
                self.names.append(name)
            number = self.names.index(name)
            if name != OTHER:
                self._numbers[host, port] = number
            return number

    def has_role(self, host: str, port: int, role: str) -> None:
        """The target says that this server has this role, PRIMARY or REPLICA. A server that clients never use gets no
        number."""
        if len(self._roles) >= _MOST_ROLES:
            self._roles.clear()
        self._roles[_name(host, port)] = role

    def is_replica(self, number: int) -> bool:
        """Whether the server was a replica when the target last said so."""
        return self._roles.get(self.names[number], PRIMARY) == REPLICA
