"""Which servers make a standalone, a cluster or a Sentinel target, and how they are introduced to each other.

They are asked with the clients that the coordinator asks any target with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from common.plan.schema import Target
from common.redis_client import SLOTS, open_control_client
from coordinator.embedded.servers import HOST, Layout, ServerProcess

SERVICE = "stampede"
"""How Sentinels call the primary that they watch."""

# Failovers are to be tried out: what is down for so long is given up.
NODE_TIMEOUT_MS = 2000
DOWN_AFTER_MS = 1000
FAILOVER_TIMEOUT_MS = 3000

_SHARDS = 3
_QUORUM = 2
_SENTINELS = 3

_Ask: TypeAlias = Callable[..., Any]


@contextmanager
def _asking(port: int) -> Iterator[_Ask]:
    """A function that sends a command there and returns the parsed reply."""
    with open_control_client(Target(url=f"redis://{HOST}:{port}")) as client:
        yield client.execute_command


def _has_copies(ask_primary: _Ask) -> bool:
    """Whether the primary's replica takes part in what happens.

    For up to a second after its first copy, a primary calls a replica online to which it does not write yet. So have it
    write something, to a server that is still empty, and ask whether that has arrived.
    """
    ask_primary("FLUSHDB")
    return int(ask_primary("WAIT", 1, 1)) == 1


_DATA = (
    "--save", "",
    "--appendonly", "no",
    # The server raises its own limit of open files as far as the system lets it, and lowers this to what that allows.
    "--maxclients", "65000",
    "--tcp-backlog", "4096",
    # Copies go from memory to memory: there is no directory.
    "--repl-diskless-sync", "yes",
    "--repl-diskless-sync-delay", "0",
    "--repl-diskless-load", "flush-before-load",
)  # fmt: skip


class _Standalone:
    """One server."""

    ports = 1

    def parts(self, ports: Sequence[int]) -> list[ServerProcess]:
        return [ServerProcess(ports[0], _DATA)]

    def arrange(self, _ports: Sequence[int]) -> None:
        """It is alone."""

    def missing(self, _ports: Sequence[int]) -> str:
        return ""

    def url(self, ports: Sequence[int]) -> str:
        return f"redis://{HOST}:{ports[0]}"


class _Cluster:
    """Six nodes: three primaries, then the replica of each. A port each for clients, then one each for their bus."""

    nodes = 2 * _SHARDS
    ports = 2 * nodes

    def parts(self, ports: Sequence[int]) -> list[ServerProcess]:
        nodes, buses = ports[: self.nodes], ports[self.nodes :]
        return [ServerProcess(port, (*_DATA, *self._options(bus))) for port, bus in zip(nodes, buses, strict=True)]

    def arrange(self, ports: Sequence[int]) -> None:
        nodes, buses = ports[: self.nodes], ports[self.nodes :]
        for number, port in enumerate(nodes):
            with _asking(port) as ask:
                # Nodes that start with the same epoch have to find out first whose claim to a slot goes before.
                ask("CLUSTER SET-CONFIG-EPOCH", number + 1)
                if number < _SHARDS:
                    first, end = (SLOTS * shard // _SHARDS for shard in (number, number + 1))
                    ask("CLUSTER ADDSLOTSRANGE", first, end - 1)
        for number, port in enumerate(nodes):
            with _asking(port) as ask:
                # Each is told of all that follow: quicker than to wait until they hear of each other.
                for other in range(number + 1, self.nodes):
                    ask("CLUSTER MEET", HOST, nodes[other], buses[other])

    def missing(self, ports: Sequence[int]) -> str:
        nodes = ports[: self.nodes]
        for port, primary in zip(nodes[_SHARDS:], nodes[:_SHARDS], strict=True):
            with _asking(port) as ask, _asking(primary) as ask_primary:
                role = ask("INFO", "replication")
                if role["role"] != "slave":
                    # Refused until it has heard of its primary.
                    ask("CLUSTER REPLICATE", ask_primary("CLUSTER MYID"))
                    return f"node {port} is no replica"
                if role["master_link_status"] != "up" or not _has_copies(ask_primary):
                    return f"node {port} gets nothing from its primary"
        for port in nodes:
            with _asking(port) as ask:
                known, served = ask("CLUSTER INFO"), ask("CLUSTER SLOTS")
                if known["cluster_state"] != "ok":
                    return f"node {port} finds that the cluster is not ok"
                if sum(len(slots[2:]) for slots in served) != self.nodes:
                    return f"node {port} does not know of every node"
        return ""

    def url(self, ports: Sequence[int]) -> str:
        return "redis+cluster://" + ",".join(f"{HOST}:{port}" for port in ports[: self.nodes])

    def _options(self, bus: int) -> tuple[str, ...]:
        return (
            *("--cluster-enabled", "yes", "--cluster-port", str(bus)),
            *("--cluster-node-timeout", str(NODE_TIMEOUT_MS)),
            # Otherwise a node ends when it cannot write down what it knows of its cluster.
            *("--cluster-config-save-behavior", "best-effort"),
            # Who replicates whom stays as it was arranged.
            *("--cluster-allow-replica-migration", "no"),
        )


class _Sentinels:
    """A primary, its replica, and three Sentinels, two of which must agree that it is down."""

    ports = 2 + _SENTINELS

    def parts(self, ports: Sequence[int]) -> list[ServerProcess]:
        primary, replica, *sentinels = ports
        config = (
            f"sentinel monitor {SERVICE} {HOST} {primary} {_QUORUM}\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} {FAILOVER_TIMEOUT_MS}\n"
        )
        return [
            ServerProcess(primary, _DATA),
            ServerProcess(replica, (*_DATA, "--replicaof", HOST, str(primary))),
            *(ServerProcess(port, ("--sentinel",), config) for port in sentinels),
        ]

    def arrange(self, ports: Sequence[int]) -> None:
        for port in ports[2:]:
            # They meet by what they publish, every two seconds: at first, make that quicker.
            with _asking(port) as ask:
                ask("SENTINEL DEBUG", "PUBLISH-PERIOD", 100, "INFO-PERIOD", 200)

    def missing(self, ports: Sequence[int]) -> str:
        with _asking(ports[0]) as ask:
            if not _has_copies(ask):
                return f"replica {ports[1]} gets nothing from its primary"
        for port in ports[2:]:
            with _asking(port) as ask:
                seen = ask("SENTINEL MASTER", SERVICE)
                if (seen["num-other-sentinels"], seen["num-slaves"]) != (_SENTINELS - 1, 1):
                    return f"Sentinel {port} does not know of every other one and of the replica"
                if seen["is_sdown"]:
                    return f"Sentinel {port} finds that the primary is down"
        for port in ports[2:]:
            # Those who publish quickly give others little time to hear of a promotion, and take it back. Who asks often
            # soon finds that an old primary is there again.
            with _asking(port) as ask:
                ask("SENTINEL DEBUG", "PUBLISH-PERIOD", 2000, "INFO-PERIOD", 1000)
        return ""

    def url(self, ports: Sequence[int]) -> str:
        return "redis+sentinel://" + ",".join(f"{HOST}:{port}" for port in ports[2:]) + f"/{SERVICE}"


STANDALONE: Layout = _Standalone()
CLUSTER: Layout = _Cluster()
SENTINEL: Layout = _Sentinels()
