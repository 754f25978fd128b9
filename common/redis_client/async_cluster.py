"""redis.asyncio's cluster client, with observed connections to every node.

This module relies on these facts about redis.asyncio's cluster client:
- its constructor connects to nothing; `initialize` reads the topology;
- each node has its own connections, made from `connection_class` with `connection_kwargs`; nodes found later take both
  from the one dictionary that the client and its nodes manager share;
- it repeats a command at once, without backoff, on errors of exactly the classes in `ERRORS_ALLOW_RETRY`, after reading
  the topology; before each repetition it calls `_record_error_metric`;
- a pipeline repeats redirected commands one by one, by `execute_command`, but not commands that lost their connection;
- a transaction queues its commands by a coroutine; redis-py's own `execute_command` starts a thread with a new loop for
  each of them;
- to read the topology, it opens further connections to the URL's nodes, and keeps them open;
- while it is due to read the topology again, it closes nothing, and it forgets nodes that have left;
- for a slot without a node it raises KeyError instead of SlotNotCoveredError, and does not read the topology. So it
  would not notice that the slot is served again until another error. Our client reads the topology and raises
  SlotNotCoveredError, so redis-py's repetition finds the slot's new node.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.cluster import ClusterNode, ClusterPipeline
from redis.asyncio.connection import AbstractConnection
from redis.event import AsyncAfterSlotsCacheRefreshEvent, AsyncEventListenerInterface, EventDispatcher
from redis.exceptions import SlotNotCoveredError

from common.cancellation import Cancellation
from common.errors import PlanError
from common.plan import schema
from common.plan.schema.address_map import AddressMap
from common.redis_client.address import address_of, cluster_arguments, connection_arguments, server_name
from common.redis_client.connections.async_connections import AsyncObservedNode, AsyncObservedNodeTls
from common.redis_client.connections.connection_tracking import ClusterTracker, ConnectionEvents
from common.redis_client.connections.retry_policy import cluster_errors_of, observed_async_retry


class _AsyncTopologyListener(AsyncEventListenerInterface):
    def __init__(self, tracker: ClusterTracker, after: Callable[[], Awaitable[None]]) -> None:
        """after: called whenever the topology was read."""
        self._tracker = tracker
        self._after = after

    async def listen(self, event: object) -> None:  # noqa: ARG002 - the interface is redis-py's
        self._tracker.topology_read()
        await self._after()


class AsyncClusterClient(redis.asyncio.RedisCluster):
    """redis.asyncio's cluster client, observed. Made by `build_async_cluster`; call `open` before use."""

    def __init__(
        self, target: schema.Target, max_connections: int, *, events: ConnectionEvents, cancellation: Cancellation
    ) -> None:
        self._cancellation = cancellation
        self._tracker = ClusterTracker(events, cancellation)
        self._made_connections: weakref.WeakSet[AbstractConnection] = weakref.WeakSet()
        listeners: list[Any] = [_AsyncTopologyListener(self._tracker, self._topology_read)]
        self._is_batching = False
        address, arguments = address_of(target), connection_arguments(target)
        more: dict[str, Any] = {
            "events": events,
            "cancellation": cancellation,
            "remap": AddressMap(target.address_remap),
        }
        # redis-py refuses a database for clusters, which have databases only since Valkey 9.
        more["db"] = arguments.pop("db")
        if address.tls:
            more["server_name"] = server_name(target)
            # The client does not accept this argument, but its connections do.
            more["ssl_password"] = arguments.pop("ssl_password")
        super().__init__(
            startup_nodes=[ClusterNode(host.name, host.port) for host in address.hosts],
            max_connections=max_connections,
            retry=observed_async_retry(target.retry, events, cancellation),
            event_dispatcher=EventDispatcher({AsyncAfterSlotsCacheRefreshEvent: listeners}),
            ssl=address.tls,
            **cluster_arguments(target),
            **arguments,
        )
        base: type[AbstractConnection] = AsyncObservedNodeTls if address.tls else AsyncObservedNode
        make: Any = functools.partial(self._make_connection, base)
        self.connection_kwargs.update(more, connection_class=make)
        for node in self.startup_nodes:
            node.connection_class = make
            node.connection_kwargs.update(more)

    async def _determine_nodes(self, command: str, *args: Any, **kwargs: Any) -> list[ClusterNode]:
        # Called for commands and for pipelines.
        try:
            nodes = await super()._determine_nodes(command, *args, **kwargs)
            if self._is_batching and nodes:
                self._tracker.batch_command_sent(nodes[0])
            return nodes
        except (KeyError, SlotNotCoveredError) as error:
            raise await self._not_covered() from error

    async def _not_covered(self) -> SlotNotCoveredError:
        """The error for a slot without a node. Reads the topology first, but not too often."""
        if self._tracker.should_refresh():
            # If no node answers, report the slot without a node, not this error.
            with contextlib.suppress(redis.RedisError, redis.RedisClusterException, OSError):
                await self.nodes_manager.initialize()
        self._tracker.not_covered()
        return SlotNotCoveredError("a slot is not covered by the cluster")

    def _make_connection(self, base: type[AbstractConnection], **arguments: Any) -> AbstractConnection:
        connection = base(**arguments)
        self._made_connections.add(connection)
        return connection

    async def _topology_read(self) -> None:
        self._tracker.has_nodes(self.get_nodes())
        await self._close_first_nodes()

    async def _close_first_nodes(self) -> None:
        """Close connections that were used only to read the topology, so that no node has more than the plan allows."""
        manager = self.nodes_manager
        for name, node in list(manager.startup_nodes.items()):
            if manager.nodes_cache.get(name) is not node:
                await node.disconnect_free_connections()

    async def open(self) -> None:
        """Read the topology. Raises TARGET_ERRORS, CutShort."""
        try:
            await self.initialize()
        except redis.RedisClusterException:
            # redis-py reports a cancellation as a cluster without a usable node.
            self._cancellation.check()
            raise
        self._tracker.has_topology = True

    async def close_all(self) -> None:
        """Close every connection, also to nodes that redis-py has forgotten. Idempotent. Not named `aclose`, because
        redis-py itself calls `aclose` before it reads the topology again."""
        await self.aclose()
        for connection in list(self._made_connections):
            await connection.disconnect()

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> ClusterPipeline:
        """redis-py's pipeline, or a transaction."""
        pipeline = super().pipeline(transaction, shard_hint)
        self._is_batching = not transaction
        self._tracker.batch_begins()
        return _Transaction(pipeline) if transaction else pipeline  # type: ignore[return-value]

    async def _record_error_metric(self, error: Exception, *args: Any, **kwargs: Any) -> None:
        await super()._record_error_metric(error, *args, **kwargs)
        self._tracker.error_recorded(kwargs)


class _Transaction:
    """redis-py's transaction, with commands queued on the loop of its client."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._commands: list[tuple[Any, ...]] = []

    def execute_command(self, *arguments: Any) -> None:
        """Queue a command."""
        self._commands.append(arguments)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """The replies to all commands. Reads the topology first if it is outdated: redis-py's pipelines do so, but its
        transactions do not."""
        client = self._pipeline.cluster_client
        if client._initialize:
            await client.initialize()
        strategy = self._pipeline._execution_strategy
        for arguments in self._commands:
            await strategy._execute_command(*arguments)
        try:
            replies: list[Any] = await self._pipeline.execute(raise_on_error=raise_on_error)
        except (KeyError, SlotNotCoveredError) as error:
            raise await client._not_covered() from error
        return replies


class NodePool:
    """The connections of one node, with the interface of a TCP pool."""

    def __init__(self, node: ClusterNode) -> None:
        self._node = node

    async def get_connection(self) -> AbstractConnection:
        """Take an open connection. Release it later."""
        connection = self._node.acquire_connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            self._node.release(connection)
            raise
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Return a connection; it stays open."""
        self._node.release(connection)  # type: ignore[arg-type]


def build_async_cluster(
    target: schema.Target, pools: schema.Pools, *, events: ConnectionEvents, cancellation: Cancellation
) -> AsyncClusterClient:
    """A cluster client. Connects to nothing yet. Raises PlanError."""
    if pools.tcp_pool is schema.TcpPool.BLOCKING:
        raise PlanError(
            f"pools {pools.name}: expected tcp_pool raising for redis.asyncio and a cluster, whose nodes have no other "
            "pools, got blocking"
        )
    kind = _client_class(cluster_errors_of(target.retry))
    return kind(target, pools.max_connections, events=events, cancellation=cancellation)


@functools.cache
def _client_class(errors: tuple[type[Exception], ...]) -> type[AsyncClusterClient]:
    # redis-py reads the errors from the class, so each policy needs a class.
    return type("AsyncClusterClient", (AsyncClusterClient,), {"ERRORS_ALLOW_RETRY": errors})
