"""Clusters and Sentinels to test against: clients of each process, failovers and moving slots.

`scripts.shapes.targets` starts the servers, as for all other shapes.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import redis
from redis.sentinel import Sentinel

from common.redis_client import failure_of
from coordinator.embedded import HOST, EmbeddedServer
from scripts.shapes.targets import Group as Servers
from scripts.shapes.targets import start_cluster as start_cluster_servers
from scripts.shapes.targets import start_sentinels as start_sentinel_servers
from tests.support.runs import wait_until


class Group:
    """The common part of both groups. Closes the clients that it opened."""

    def __init__(self, servers: Servers | EmbeddedServer) -> None:
        self._servers = servers
        self._clients = contextlib.ExitStack()
        self._asking: dict[int, redis.Redis] = {}

    @property
    def url(self) -> str:
        return self._servers.url

    @property
    def ports(self) -> tuple[int, ...]:
        """The ports of all processes, Sentinels last."""
        return self._servers.ports

    @property
    def pids(self) -> tuple[int, ...]:
        return self._servers.pids

    def at(self, port: int) -> redis.Redis:
        """A client of the process at this port, with text replies."""
        if port not in self._asking:
            self._asking[port] = self._node_client(port, decode_responses=True)
        return self._asking[port]

    def role(self, port: int) -> str:
        """Return "master" or "slave"."""
        return str(self.at(port).info("replication")["role"])

    def calls(self, command: str, port: int) -> int:
        """Count the calls of a command in this process, including rejected calls."""
        row = self.at(port).info("commandstats").get(f"cmdstat_{command}", {})
        return int(row.get("calls", 0) + row.get("rejected_calls", 0))

    def kill(self, port: int) -> None:
        """Kill the process at this port."""
        os.kill(dict(zip(self.ports, self.pids, strict=True))[port], signal.SIGKILL)

    def disconnect(self) -> None:
        """Close all clients. New ones may be opened."""
        self._clients.close()
        self._asking.clear()

    def _node_client(self, port: int, **options: Any) -> redis.Redis:
        return self._clients.enter_context(redis.Redis(host=HOST, port=port, socket_timeout=5.0, **options))

    def follows(self, port: int) -> bool:
        """Whether the process is a replica with a link to its primary."""
        with contextlib.suppress(redis.RedisError):
            return self.at(port).info("replication").get("master_link_status") == "up"
        return False


G = TypeVar("G", bound=Group)


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A node as the cluster reports it. primary: the port of its primary, None for a primary. slots: served ranges."""

    port: int
    name: str
    primary: int | None
    slots: tuple[range, ...]


class ClusterGroup(Group):
    """Three primaries with a replica each."""

    def client(self, **options: Any) -> Any:
        """Open a `redis.RedisCluster` with these options."""
        client = redis.RedisCluster(host=HOST, port=self._alive(), socket_timeout=5.0, **options)
        self._clients.callback(client.close)
        return client

    @property
    def nodes(self) -> list[ClusterNode]:
        """All nodes that have not failed, in the order of `ports`, as a live node reports them."""
        seen = {
            int(place.rpartition(":")[2]): row
            for place, row in self.at(self._alive()).execute_command("CLUSTER NODES").items()
            if "fail" not in row["flags"].split(",")
        }
        ports = {row["node_id"]: port for port, row in seen.items()}
        return [
            ClusterNode(
                port=port,
                name=seen[port]["node_id"],
                primary=ports.get(seen[port]["master_id"]),
                slots=tuple(range(int(ends[0]), int(ends[-1]) + 1) for ends in seen[port]["slots"]),
            )
            for port in self.ports
            if port in seen
        ]

    @property
    def primaries(self) -> list[int]:
        """Their ports."""
        return [port for port in self.ports if self._answers(port) and self.role(port) == "master"]

    @property
    def replicas(self) -> list[int]:
        """Their ports."""
        return [port for port in self.ports if self._answers(port) and self.role(port) == "slave"]

    def owner(self, slot: int) -> int:
        """The port of the primary that serves the slot."""
        return next(node.port for node in self.nodes if any(slot in served for served in node.slots))

    def replica_of(self, primary: int) -> int:
        return next(node.port for node in self.nodes if node.primary == primary)

    def failover(self, primary: int | None = None) -> tuple[int, int]:
        """Swap a primary (by default the first) and its replica, and wait until all nodes know.

        Returns (port of the old primary, port of the new one).
        """
        old = self.primaries[0] if primary is None else primary
        new = self.replica_of(old)
        self.at(new).execute_command("CLUSTER FAILOVER")
        wait_until(lambda: self.role(new) == "master" and self.follows(old), "the failover")
        wait_until(lambda: all(self._sees_primary(port, new) for port in self.ports if self._answers(port)), "its news")
        return old, new

    def move_slot(self, slot: int, to: int) -> None:
        """Move a slot and its keys to the primary at the port `to`, and wait until all nodes know."""
        with self.migrating(slot, to) as source:
            name = self.at(to).execute_command("CLUSTER MYID")
            for port in (to, source, *(port for port in self.primaries if port not in (to, source))):
                self.at(port).execute_command("CLUSTER SETSLOT", slot, "NODE", name)
        wait_until(lambda: all(self._owner_seen_by(port, slot) == to for port in self.ports), "the slot's move")

    @contextlib.contextmanager
    def migrating(self, slot: int, to: int) -> Iterator[int]:
        """Within it, the slot migrates to the primary at the port `to`, which already has its keys: the owner answers
        with ASK. Yields the owner's port. At the end, a slot that was not handed over goes back."""
        source = self.owner(slot)
        names = {port: self.at(port).execute_command("CLUSTER MYID") for port in (source, to)}
        self.at(to).execute_command("CLUSTER SETSLOT", slot, "IMPORTING", names[source])
        self.at(source).execute_command("CLUSTER SETSLOT", slot, "MIGRATING", names[to])
        self._carry(slot, source, to)
        try:
            yield source
        finally:
            if self._owner_seen_by(source, slot) == source:
                self.at(source).execute_command("CLUSTER SETSLOT", slot, "STABLE")
                self._carry(slot, to, source)
                self.at(to).execute_command("CLUSTER SETSLOT", slot, "STABLE")

    def flush(self) -> None:
        """Delete all keys and reset all counters."""
        for port in self.primaries:
            self.at(port).flushall()
        for port in self.ports:
            self.at(port).config_resetstat()

    def _carry(self, slot: int, source: int, to: int) -> None:
        while keys := self.at(source).execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
            self.at(source).execute_command("MIGRATE", HOST, to, "", 0, 5000, "KEYS", *keys)

    def _alive(self) -> int:
        return next(port for port in self.ports if self._answers(port))

    def _answers(self, port: int) -> bool:
        try:
            return bool(self.at(port).ping())
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def _sees_primary(self, port: int, primary: int) -> bool:
        return any(end[0][1] == primary for end in (row[2:] for row in self.at(port).execute_command("CLUSTER SLOTS")))

    def _owner_seen_by(self, port: int, slot: int) -> int | None:
        rows = self.at(port).execute_command("CLUSTER SLOTS")
        return next((row[2][1] for row in rows if row[0] <= slot <= row[1]), None)


class SentinelGroup(Group):
    """A primary, its replica, and three Sentinels that watch them."""

    @property
    def service(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def sentinels(self) -> tuple[int, ...]:
        """Their ports."""
        return self.ports[2:]

    @property
    def primary(self) -> int:
        """The port of the primary, as the first Sentinel reports it."""
        return self._primary_seen_by(self.sentinels[0])

    @property
    def replica(self) -> int:
        """The port of the replica."""
        return next(port for port in self.ports[:2] if port != self.primary)

    def client(self, **options: Any) -> redis.Redis:
        """Open a client of the primary, found by the Sentinels; options are those of `redis.Redis`."""
        client: redis.Redis = self._sentinel().master_for(self.service, **{"socket_timeout": 5.0, **options})
        return self._clients.enter_context(client)

    def failover(self) -> tuple[int, int]:
        """Make the replica the primary, and wait until all Sentinels know. The old primary follows some 8 s later.

        Returns (port of the old primary, port of the new one).
        """
        old, new = self.primary, self.replica
        # The Sentinel refuses until it has heard from the replica recently.
        wait_until(self._is_ordered, "an accepted failover")
        wait_until(lambda: all(self._primary_seen_by(port) == new for port in self.sentinels), "news of the failover")
        return old, new

    def flush(self) -> None:
        """Delete all keys and reset all counters."""
        self.at(self.primary).flushall()
        for port in self.ports[:2]:
            self.at(port).config_resetstat()

    def _is_ordered(self) -> bool:
        try:
            return bool(self.at(self.sentinels[0]).execute_command("SENTINEL FAILOVER", self.service))
        except redis.ResponseError as error:
            if failure_of(error).name != "NOGOODSLAVE":
                raise
            return False

    def _primary_seen_by(self, sentinel: int) -> int:
        return int(self.at(sentinel).execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self.service)[1])

    def _sentinel(self) -> Sentinel:
        asked: Any = Sentinel([], socket_timeout=5.0)
        asked.sentinels = [self.at(port) for port in self.sentinels]
        return asked  # type: ignore[no-any-return]


@contextlib.contextmanager
def start_cluster() -> Iterator[ClusterGroup]:
    """Start an empty cluster."""
    with start_cluster_servers() as servers, used(ClusterGroup(servers)) as group:
        yield group


@contextlib.contextmanager
def start_sentinels() -> Iterator[SentinelGroup]:
    """Start an empty primary and its replica, with Sentinels."""
    with start_sentinel_servers() as servers, used(SentinelGroup(servers)) as group:
        yield group


@contextlib.contextmanager
def used(group: G) -> Iterator[G]:
    """Close the clients of a group at the end."""
    try:
        yield group
    finally:
        group.disconnect()
