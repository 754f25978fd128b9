"""redis-py's connections, lent for good to somebody who reads and writes their sockets himself.

Connecting, the handshake and closing stay redis-py's: so authentication, TLS, protocol, client name, database,
Sentinels, retries and backoff of a connect are the very same code as everywhere else.
"""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Sequence
from functools import partial
from typing import Any

import hiredis
import redis
from redis.exceptions import AskError, SlotNotCoveredError

from common.cancellation import Cancellation
from common.plan import schema
from common.redis_client.clients import (
    Client,
    build_client,
    connects_when_built,
    node_pool,
    open_control_client,
    tcp_pools,
)
from common.redis_client.clusters import ClusterClient
from common.redis_client.connections import REDIRECTS, ConnectionEvents, Observed, WithRedirects
from common.redis_client.error_translation import TARGET_ERRORS
from common.redis_client.retry_policy import observed_retry
from common.redis_client.slots import SLOTS as SLOTS

SINGLE_NODE = ""
"""The name of the one node of a target that is no cluster."""

WOULD_BLOCK: tuple[type[OSError], ...] = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""What a socket raises that has nothing to read, or takes nothing more, right now."""

PENDING = object()
"""What a reader returns as long as a reply is not complete."""

ASKING = b"*1\r\n$6\r\nASKING\r\n"
"""Sent before a command that was redirected by ASK."""


class WireConnection:
    """One connection of a TCP pool. `open` may block, and is for one thread at a time; the rest does not."""

    def __init__(self, pool: redis.ConnectionPool) -> None:
        self._pool = pool
        self._connection: Any = None

    def open(self) -> socket.socket:
        """Connect, with the handshake and the retries of the plan. Returns the socket, which does not block.

        Raises what TARGET_ERRORS names, and CutShort.
        """
        if self._connection is None:
            self._connection = self._pool.get_connection()
        else:
            self._connection.connect()
        sock: socket.socket = self._connection._sock
        sock.setblocking(False)
        return sock

    def reader(self, notes: list[Any]) -> Any:
        """A parser of what comes on this connection, as redis-py sets it up. Each error reply that it meets, it adds to
        `notes`, also one within another reply. Returns PENDING where a reply is not complete."""

        def noted(message: str) -> Exception:
            error: Exception = self._connection._parser.parse_error(message)
            if isinstance(error, AskError) and isinstance(self._connection, WithRedirects):
                self._connection.announced.correct(error)
            notes.append(error)
            return error

        return hiredis.Reader(protocolError=redis.InvalidResponse, replyError=noted, notEnoughData=PENDING)

    def pushed(self, message: object) -> None:
        """Hand redis-py a message that is no reply: a maintenance notification."""
        self._connection._parser.handle_push_response(message)

    @property
    def wants_reconnect(self) -> bool:
        """Whether a notification told redis-py that this connection is to be made anew."""
        return bool(self._connection.should_reconnect())

    def lose(self, error: Exception) -> None:
        """The connection turned out to be lost: this error says how. It is told as what redis-py itself finds."""
        connection: Observed = self._connection
        connection.lose(error)

    def close(self) -> None:
        """Close the connection, on purpose. Idempotent."""
        if self._connection is not None:
            self._connection.disconnect()


def is_push(reply: object) -> bool:
    """Whether what a reader returned is no reply, but a message that came by itself."""
    return isinstance(reply, hiredis.PushNotification)


def socket_failure(error: Exception | None) -> Exception:
    """What redis-py raises for an error of a socket; None: the server closed the connection."""
    if error is None:
        return redis.ConnectionError("Connection closed by server.")
    if isinstance(error, redis.RedisError):
        return error
    lost = redis.ConnectionError(f"Error while reading from the socket: {error}")
    lost.__cause__ = error
    return lost


def reply_timeout() -> Exception:
    """What redis-py raises where no reply came in time."""
    return redis.TimeoutError("Timeout reading from socket")


def slot_not_covered() -> Exception:
    """The error that redis-py raises for a slot that no node serves."""
    return SlotNotCoveredError("a slot is not covered by the cluster")


def redirect_kind(error: Exception) -> str | None:
    """Which of REDIRECTS an error reply is; None for any other."""
    code = getattr(error, "status_code", None)
    return code if code in REDIRECTS else None


def is_read_only(error: Exception) -> bool:
    """Whether an error reply says that the server is no primary."""
    return isinstance(error, redis.ReadOnlyError)


def redirect_target(error: Any) -> tuple[int, str]:
    """(slot, node as `host:port`) that a MOVED or an ASK tells of."""
    return error.slot_id, f"{error.host}:{error.port}"


class InstancePools:
    """The TCP pools of one client instance: one for each node of a cluster, made as nodes are found; else its one."""

    def __init__(
        self, target: schema.Target, pools: schema.Pools, *, events: ConnectionEvents, cancellation: Cancellation
    ) -> None:
        """Opens no connection. Raises PlanError."""
        self._make = partial(node_pool, target, pools, events=events, cancellation=cancellation)
        self._retry = partial(observed_retry, target.retry, events, cancellation)
        self._pools: dict[str, redis.ConnectionPool] = {}
        self._client: Client | None = None
        if not connects_when_built(target):
            self._client = build_client(target, pools, events=events, cancellation=cancellation)
            self._pools[SINGLE_NODE] = tcp_pools(self._client)[0]

    def of(self, node: str) -> redis.ConnectionPool:
        """The pool of the node of this name, SINGLE_NODE for what is no cluster."""
        if node not in self._pools:
            host, _, port = node.rpartition(":")
            # A cluster's client of redis-py would try nothing twice here, but turn to another node.
            self._pools[node] = self._make(host=host, port=int(port), retry=self._retry())
        return self._pools[node]

    def close(self) -> None:
        """Close all connections. Idempotent."""
        for pool in self._pools.values():
            pool.disconnect()
        if self._client is not None:
            # It also has what asks Sentinels.
            self._client.close()


class SlotMap:
    """Which node has which slots, as redis-py reads it; of a target that is no cluster: one node that has all.

    client: beside the load; its connections carry none of it.
    """

    def __init__(self, target: schema.Target) -> None:
        """A cluster's connects, and reads the topology. Raises what TARGET_ERRORS names, and PlanError."""
        self.client: Client = open_control_client(target)
        self.is_cluster = isinstance(self.client, ClusterClient)

    def slots(self) -> list[str]:
        """The node of each slot by its name, "" for a slot that nobody serves."""
        if not self.is_cluster:
            return [SINGLE_NODE] * SLOTS
        client: Any = self.client
        found: dict[int, list[Any]] = dict(client.nodes_manager.slots_cache)
        return [found[slot][0].name if found.get(slot) else "" for slot in range(SLOTS)]

    def refresh(self) -> None:
        """Read the topology anew. Blocks. Raises what TARGET_ERRORS names."""
        client: Any = self.client
        client.nodes_manager.initialize()

    def slot_of(self, arguments: Sequence[str | bytes]) -> int:
        """The slot of a command of a cluster, which its keys tell; one by chance for a command without keys, and where
        redis-py has to ask a node for them that does not answer: whoever gets it will say whose it is."""
        client: Any = self.client
        try:
            slot = client.determine_slot(*arguments)
        except TARGET_ERRORS:
            slot = None
        return random.randrange(SLOTS) if slot is None else int(slot)

    def close(self) -> None:
        """Close its connections. Idempotent."""
        self.client.close()
