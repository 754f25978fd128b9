"""redis-py's connections for the wire driver, which reads and writes their sockets itself.

redis-py still connects, does the handshake and closes. So authentication, TLS, protocol, client name, database,
Sentinels and retries of connects are the same as for the other drivers.
"""

from __future__ import annotations

import random
import socket
import ssl
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import hiredis
import redis
from redis.exceptions import AskError, SlotNotCoveredError

from common.cancellation import Cancellation
from common.plan import schema
from common.redis_client.client_assembly import connects_when_built
from common.redis_client.clients import Client, build_client, node_pool, open_control_client, tcp_pools
from common.redis_client.cluster import ClusterClient
from common.redis_client.connections.cluster_topology import SLOTS as SLOTS
from common.redis_client.connections.connection_tracking import REDIRECTS, ConnectionEvents
from common.redis_client.connections.maintenance import cancel_timers
from common.redis_client.connections.retry_policy import observed_retry
from common.redis_client.connections.thread_connections import Observed, ObservedClusterNode
from common.redis_client.error_translation import TARGET_ERRORS
from common.units import NS_PER_S

SINGLE_NODE = ""
"""The node name of a target that is not a cluster."""

WOULD_BLOCK: tuple[type[OSError], ...] = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""Errors of a non-blocking socket that has nothing to read, or accepts no more data at the moment."""

PENDING = object()
"""A reader returns this while a reply is not complete."""

ASKING = b"*1\r\n$6\r\nASKING\r\n"
"""Sent before a command that was redirected by ASK."""

pack_command: Callable[[Sequence[str | bytes]], bytes] = hiredis.pack_command  # type: ignore[assignment]
"""A command as RESP."""


class WireConnection:
    """One connection of a TCP pool. Only `open` may block. Use it in one thread at a time."""

    def __init__(self, pool: redis.ConnectionPool) -> None:
        self._pool = pool
        self._connection: Any = None

    def open(self) -> socket.socket:
        """Connect, with handshake and the plan's retries. Returns the non-blocking socket. Raises TARGET_ERRORS,
        CutShort."""
        if self._connection is None:
            self._connection = self._pool.get_connection()
        else:
            self._connection.connect()
        sock: socket.socket = self._connection._sock
        sock.setblocking(False)
        return sock

    @property
    def place(self) -> tuple[str, int]:
        """Host and port of the server that it is connected to."""
        return self._connection.host, self._connection.port

    def reader(self, errors: list[Any]) -> Any:
        """A parser of this connection's replies, with redis-py's settings. It returns PENDING while a reply is not
        complete. errors: the parser appends every error reply to this list, also one inside another reply."""

        def parse_error(message: str) -> Exception:
            error: Exception = self._connection._parser.parse_error(message)
            if isinstance(error, AskError) and isinstance(self._connection, ObservedClusterNode):
                self._connection.addresses.correct(error)
            errors.append(error)
            return error

        return hiredis.Reader(protocolError=redis.InvalidResponse, replyError=parse_error, notEnoughData=PENDING)

    def pushed(self, message: object) -> None:
        """Pass a push message to redis-py: it handles maintenance notifications."""
        self._connection._parser.handle_push_response(message)

    @property
    def timeout_ns(self) -> int:
        """The longest wait for a reply at present: a notification may have relaxed it. 0 without a limit."""
        return round((self._connection.socket_timeout or 0) * NS_PER_S)

    @property
    def wants_reconnect(self) -> bool:
        """Whether redis-py wants to reopen this connection, after a notification."""
        return bool(self._connection.should_reconnect())

    def drop(self, error: Exception) -> None:
        """Close the connection, which was lost with this error. Reports the loss as redis-py's connections do."""
        connection: Observed = self._connection
        connection.drop(error)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._connection is not None:
            self._connection.disconnect()


def is_push(reply: object) -> bool:
    """Whether a reader has returned a push message instead of a reply."""
    return isinstance(reply, hiredis.PushNotification)


def socket_error(error: Exception | None) -> Exception:
    """redis-py's error for an error of the socket. error: None if the server closed the connection."""
    if error is None:
        return redis.ConnectionError("Connection closed by server.")
    if isinstance(error, redis.RedisError):
        return error
    lost = redis.ConnectionError(f"Error while reading from the socket: {error}")
    lost.__cause__ = error
    return lost


def reply_timeout_error() -> Exception:
    """The error that redis-py raises if no reply comes in time."""
    return redis.TimeoutError("Timeout reading from socket")


def slot_not_covered_error() -> Exception:
    """The error that redis-py raises for a slot that no node serves."""
    return SlotNotCoveredError("a slot is not covered by the cluster")


def redirect_kind(error: Exception) -> str | None:
    """The code of an error reply if it is one of REDIRECTS; None for other errors."""
    code = getattr(error, "status_code", None)
    return code if code in REDIRECTS else None


def is_read_only(error: Exception) -> bool:
    """Whether an error reply says that the server is not a primary."""
    return isinstance(error, redis.ReadOnlyError)


def redirect_target(error: Any) -> tuple[int, str]:
    """(slot, node as `host:port`) of a MOVED or an ASK."""
    return error.slot_id, f"{error.host}:{error.port}"


class InstancePools:
    """The TCP pools of one client instance. For a cluster, there is a pool for each node, made at the node's first use;
    for any other target, there is one pool."""

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

    def pool_for(self, node: str) -> redis.ConnectionPool:
        """The pool of a node. node: its name, SINGLE_NODE if the target is not a cluster."""
        if node not in self._pools:
            host, _, port = node.rpartition(":")
            # The plan's retry policy applies to connects. redis-py's cluster client would try another node instead.
            self._pools[node] = self._make(host=host, port=int(port), retry=self._retry())
        return self._pools[node]

    def close(self) -> None:
        """Close all connections. Idempotent."""
        for pool in self._pools.values():
            pool.disconnect()
        cancel_timers(self._pools.values())
        if self._client is not None:
            # The client also has the connections to Sentinels.
            self._client.close()


class SlotMap:
    """The node of each slot, as redis-py's client reads the topology. A target that is not a cluster counts as one node
    with all slots. client: a control client that issues no load."""

    def __init__(self, target: schema.Target) -> None:
        """Connects to a cluster, and reads its topology. Raises TARGET_ERRORS, PlanError."""
        self.client: Client = open_control_client(target)
        self.is_cluster = isinstance(self.client, ClusterClient)

    def slots(self) -> list[str]:
        """The name of the node of each slot; "" for a slot without a node."""
        if not self.is_cluster:
            return [SINGLE_NODE] * SLOTS
        client: Any = self.client
        found: dict[int, list[Any]] = dict(client.nodes_manager.slots_cache)
        return [found[slot][0].name if found.get(slot) else "" for slot in range(SLOTS)]

    def refresh(self) -> None:
        """Read the topology again. Blocks. Raises TARGET_ERRORS."""
        client: Any = self.client
        client.nodes_manager.initialize()

    def slot_of(self, arguments: Sequence[str | bytes]) -> int:
        """The slot of a command's keys. A random slot if the command has no keys; also if redis-py must ask a node
        which arguments are keys and gets no answer. Then the random slot's node redirects the command."""
        client: Any = self.client
        try:
            slot = client.determine_slot(*arguments)
        except TARGET_ERRORS:
            slot = None
        return random.randrange(SLOTS) if slot is None else int(slot)

    def close(self) -> None:
        """Close its connections. Idempotent."""
        self.client.close()
