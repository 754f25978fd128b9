"""Layouts of embedded servers: which processes form a standalone, cluster or Sentinel target, and how to connect them.

Commands are sent with the same clients that the coordinator uses for any target.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from common.plan.schema import Target
from common.redis_client import SLOTS, open_control_client
from coordinator.embedded.servers import HOST, Layout, ServerProcess

SERVICE = "stampede"
"""The name by which Sentinels know the primary."""

# Short timeouts, so that failovers can be tried out quickly.
NODE_TIMEOUT_MS = 2000
DOWN_AFTER_MS = 1000
FAILOVER_TIMEOUT_MS = 3000

_SHARDS = 3
_QUORUM = 2
_SENTINELS = 3

_Execute: TypeAlias = Callable[..., Any]


@contextmanager
def _client(port: int) -> Iterator[_Execute]:
    """A function that executes a command on the server at this port, and returns the parsed reply."""
    with open_control_client(Target(url=f"redis://{HOST}:{port}")) as client:
        yield client.execute_command


def _is_replicating(execute_on_primary: _Execute) -> bool:
    """Whether the replica receives the primary's writes.

    For up to a second after the full synchronization, a primary reports a replica as online but sends it no writes yet.
    So write something (the server is still empty), and check that the write has arrived.
    """
    execute_on_primary("FLUSHDB")
    return int(execute_on_primary("WAIT", 1, 1)) == 1


_DATA_OPTIONS = (
    "--save", "",
    "--appendonly", "no",
    # The server raises its limit of open files as far as the system permits, and lowers maxclients to fit.
    "--maxclients", "65000",
    "--tcp-backlog", "4096",
    # Replication without files: there is no directory.
    "--repl-diskless-sync", "yes",
    "--repl-diskless-sync-delay", "0",
    "--repl-diskless-load", "flush-before-load",
)  # fmt: skip


class _Standalone:
    """One server."""

    ports = 1

    def processes(self, ports: Sequence[int]) -> list[ServerProcess]:
        return [ServerProcess(ports[0], _DATA_OPTIONS)]

    def connect(self, _ports: Sequence[int]) -> None:
        """Nothing to do for one server."""

    def missing(self, _ports: Sequence[int]) -> str:
        return ""

    def url(self, ports: Sequence[int]) -> str:
        return f"redis://{HOST}:{ports[0]}"


class _Cluster:
    """Six nodes: three primaries, then their replicas. `ports`: client ports of all nodes, then their bus ports."""

    nodes = 2 * _SHARDS
    ports = 2 * nodes

    def processes(self, ports: Sequence[int]) -> list[ServerProcess]:
        nodes, buses = ports[: self.nodes], ports[self.nodes :]
        return [
            ServerProcess(port, (*_DATA_OPTIONS, *self._options(bus))) for port, bus in zip(nodes, buses, strict=True)
        ]

    def connect(self, ports: Sequence[int]) -> None:
        nodes, buses = ports[: self.nodes], ports[self.nodes :]
        for number, port in enumerate(nodes):
            with _client(port) as execute:
                # Different epochs, because nodes with equal epochs must first resolve the conflict.
                execute("CLUSTER SET-CONFIG-EPOCH", number + 1)
                if number < _SHARDS:
                    first, end = (SLOTS * shard // _SHARDS for shard in (number, number + 1))
                    execute("CLUSTER ADDSLOTSRANGE", first, end - 1)
        for number, port in enumerate(nodes):
            with _client(port) as execute:
                # Introduce each node to all nodes after it: faster than to wait for gossip.
                for other in range(number + 1, self.nodes):
                    execute("CLUSTER MEET", HOST, nodes[other], buses[other])

    def missing(self, ports: Sequence[int]) -> str:
        nodes = ports[: self.nodes]
        for port, primary in zip(nodes[_SHARDS:], nodes[:_SHARDS], strict=True):
            with _client(port) as execute, _client(primary) as execute_on_primary:
                role = execute("INFO", "replication")
                if role["role"] != "slave":
                    # Fails until the node knows its primary; `missing` is called again.
                    execute("CLUSTER REPLICATE", execute_on_primary("CLUSTER MYID"))
                    return f"node {port} is no replica"
                if role["master_link_status"] != "up" or not _is_replicating(execute_on_primary):
                    return f"node {port} receives no writes from its primary"
        for port in nodes:
            with _client(port) as execute:
                known, served = execute("CLUSTER INFO"), execute("CLUSTER SLOTS")
                if known["cluster_state"] != "ok":
                    return f"node {port} reports that the cluster is not ok"
                if sum(len(slots[2:]) for slots in served) != self.nodes:
                    return f"node {port} does not know all nodes"
        return ""

    def url(self, ports: Sequence[int]) -> str:
        return "redis+cluster://" + ",".join(f"{HOST}:{port}" for port in ports[: self.nodes])

    def _options(self, bus: int) -> tuple[str, ...]:
        return (
            *("--cluster-enabled", "yes", "--cluster-port", str(bus)),
            *("--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
            # Otherwise a node exits if it cannot write nodes.conf.
            *("--cluster-config-save-behavior", "best-effort"),
            # Replicas stay with their primaries.
            *("--cluster-allow-replica-migration", "no"),
        )


class _Sentinels:
    """A primary, its replica, and three Sentinels with a quorum of two."""

    ports = 2 + _SENTINELS

    def processes(self, ports: Sequence[int]) -> list[ServerProcess]:
        primary, replica, *sentinels = ports
        config = (
            f"sentinel monitor {SERVICE} {HOST} {primary} {_QUORUM}\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}\n"
        )
        return [
            ServerProcess(primary, _DATA_OPTIONS),
            ServerProcess(replica, (*_DATA_OPTIONS, "--replicaof", HOST, str(primary))),
            *(ServerProcess(port, ("--sentinel",), config) for port in sentinels),
        ]

    def connect(self, ports: Sequence[int]) -> None:
        for port in ports[2:]:
            # Sentinels find each other by messages, published every two seconds: publish faster during setup.
            with _client(port) as execute:
                execute("SENTINEL DEBUG", "PUBLISH-PERIOD", 100, "INFO-PERIOD", 200)

    def missing(self, ports: Sequence[int]) -> str:
        with _client(ports[0]) as execute:
            if not _is_replicating(execute):
                return f"replica {ports[1]} receives no writes from its primary"
        for port in ports[2:]:
            with _client(port) as execute:
                seen = execute("SENTINEL MASTER", SERVICE)
                if (seen["num-other-sentinels"], seen["num-slaves"]) != (_SENTINELS - 1, 1):
                    return f"Sentinel {port} does not know the other Sentinels and the replica"
                if seen["is_sdown"]:
                    return f"Sentinel {port} reports that the primary is down"
        for port in ports[2:]:
            # Back to slower periods. A Sentinel that publishes too fast may revert a failover that others have not
            # noticed yet. INFO every second finds a returning old primary quickly.
            with _client(port) as execute:
                execute("SENTINEL DEBUG", "PUBLISH-PERIOD", 2000, "INFO-PERIOD", 1000)
        return ""

    def url(self, ports: Sequence[int]) -> str:
        return "redis+sentinel://" + ",".join(f"{HOST}:{port}" for port in ports[2:]) + f"/{SERVICE}"


STANDALONE: Layout = _Standalone()
CLUSTER: Layout = _Cluster()
SENTINEL: Layout = _Sentinels()
