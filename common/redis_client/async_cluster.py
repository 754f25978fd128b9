"""A cluster's client of redis.asyncio, with observed connections on every node.

Facts about redis-py's asyncio cluster client that this stands on:
- making it connects to nothing; `initialize` reads the topology;
- each node has its own connections, made of `connection_class` with `connection_kwargs`; nodes found later take both
  from the one dictionary that the client and its nodes manager share;
- it repeats a command at once, without any backoff, on errors of exactly the classes in `ERRORS_ALLOW_RETRY`, after it
  has read the topology again; before each repetition it calls `_record_error_metric`;
- of a pipeline it repeats one by one, by `execute_command`, what was redirected, and nothing that lost its connection;
- a transaction puts each of its commands in line by a coroutine, for which redis-py's own `execute_command` starts a
  thread with a loop of its own every time;
- the nodes of the URL are asked for the topology by connections of their own, beside those of the same nodes that do
  commands, and keep them open;
- it closes nothing while it means to read the topology again, and forgets nodes that have left;
- for a slot without a node it raises KeyError instead of SlotNotCoveredError, and does not read the topology: slots
  that come back would stay unknown until some other error. This client reads the topology and raises
  SlotNotCoveredError, so what redis-py repeats finds a slot that is back.
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
from common.clock import monotonic_ns
from common.errors import PlanError
from common.plan import schema
from common.plan.address_map import AddressMap
from common.redis_client.address import address_of, cluster_arguments, connection_arguments, server_name
from common.redis_client.async_connections import AsyncObservedNode, AsyncObservedNodeTls
from common.redis_client.async_retry_policy import observed_async_retry
from common.redis_client.connections import ConnectionEvents
from common.redis_client.retry_policy import cluster_errors_of
from common.redis_client.slots import Rereading


class _Refreshes(AsyncEventListenerInterface):
    """Tells of changes of the topology, but not of the first reading; after each one, calls `tidy_up`."""

    def __init__(self, events: ConnectionEvents, tidy_up: Callable[[], Awaitable[None]]) -> None:
        self._events = events
        self._tidy_up = tidy_up
        self.is_awake = False

    async def listen(self, event: object) -> None:  # noqa: ARG002 - the interface is redis-py's
        if self.is_awake:
            self._events.topology_refreshed(monotonic_ns())
        await self._tidy_up()


class AsyncClusterClient(redis.asyncio.RedisCluster):
    """redis.asyncio's cluster client, observed. To be made by `build_async_cluster`, and opened before it is used."""

    def __init__(
        self, target: schema.Target, max_connections: int, *, events: ConnectionEvents, cancellation: Cancellation
    ) -> None:
        self._events = events
        self._cancellation = cancellation
        self._refreshes = _Refreshes(events, self._leave_first_nodes)
        self._born: weakref.WeakSet[AbstractConnection] = weakref.WeakSet()
        listeners: list[Any] = [self._refreshes]
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
            # Its connections take it, but it does not.
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
        make: Any = functools.partial(self._bear, base)
        self.connection_kwargs.update(more, connection_class=make)
        for node in self.startup_nodes:
            node.connection_class = make
            node.connection_kwargs.update(more)
        self._rereading = Rereading()

    async def _determine_nodes(self, command: str, *args: Any, **kwargs: Any) -> list[ClusterNode]:
        # Of commands and of pipelines.
        try:
            return await super()._determine_nodes(command, *args, **kwargs)
        except (KeyError, SlotNotCoveredError) as error:
            raise await self._not_covered() from error

    async def _not_covered(self) -> SlotNotCoveredError:
        """The error for a slot without a node. Reads the topology first, if `Rereading` says that it is due."""
        if self._rereading.is_due():
            # If no node answers either, report the slot, not this error.
            with contextlib.suppress(redis.RedisError, redis.RedisClusterException, OSError):
                await self.nodes_manager.initialize()
        return SlotNotCoveredError("a slot is not covered by the cluster")

    def _bear(self, base: type[AbstractConnection], **arguments: Any) -> AbstractConnection:
        connection = base(**arguments)
        self._born.add(connection)
        return connection

    async def _leave_first_nodes(self) -> None:
        """Close what only the topology was read by, so that no node has more connections than the plan allows."""
        manager = self.nodes_manager
        for name, node in list(manager.startup_nodes.items()):
            if manager.nodes_cache.get(name) is not node:
                await node.disconnect_free_connections()

    async def open(self) -> None:
        """Read the topology. Raises what TARGET_ERRORS names, and CutShort."""
        try:
            await self.initialize()
        except redis.RedisClusterException:
            # That no node could be used is what redis-py makes of a cut, too.
            self._cancellation.check()
            raise
        self._refreshes.is_awake = True

    async def close_all(self) -> None:
        """Close every connection, also of nodes that redis-py has forgotten. For the very end: redis-py itself calls
        `aclose` in the middle of its work."""
        await self.aclose()
        for connection in list(self._born):
            await connection.disconnect()

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> ClusterPipeline:
        """A pipeline of redis-py's, or a transaction."""
        pipeline = super().pipeline(transaction, shard_hint)
        return _Transaction(pipeline) if transaction else pipeline  # type: ignore[return-value]

    async def _record_error_metric(self, error: Exception, *args: Any, **kwargs: Any) -> None:
        await super()._record_error_metric(error, *args, **kwargs)
        if kwargs.get("retry_attempts") and kwargs.get("is_internal", True):
            self._cancellation.check()
            self._events.retried(monotonic_ns())


class _Transaction:
    """A transaction of redis-py's whose commands are put in line on the loop that they belong to."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._commands: list[tuple[Any, ...]] = []

    def execute_command(self, *arguments: Any) -> None:
        """Put it in line."""
        self._commands.append(arguments)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Read the topology first if that is due: redis-py's pipelines do, its transactions do not."""
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
    """The connections of one node, to be had as those of a TCP pool are."""

    def __init__(self, node: ClusterNode) -> None:
        self._node = node

    async def get_connection(self) -> AbstractConnection:
        """One more, open, and taken until it is released."""
        connection = self._node.acquire_connection()
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            self._node.release(connection)
            raise
        return connection

    async def release(self, connection: AbstractConnection) -> None:
        """Leave it open."""
        self._node.release(connection)  # type: ignore[arg-type]


def build_async_cluster(
    target: schema.Target, pools: schema.Pools, *, events: ConnectionEvents, cancellation: Cancellation
) -> AsyncClusterClient:
    """A cluster's client. Connects to nothing yet. Raises PlanError."""
    if pools.tcp_pool is schema.TcpPool.BLOCKING:
        raise PlanError(
            f"pools {pools.name}: expected tcp_pool raising for redis.asyncio and a cluster, whose nodes have no other "
            "pools, got blocking"
        )
    kind = _client_class(cluster_errors_of(target.retry))
    return kind(target, pools.max_connections, events=events, cancellation=cancellation)


@functools.cache
def _client_class(errors: tuple[type[Exception], ...]) -> type[AsyncClusterClient]:
    # redis-py looks for it at the class, so that each policy needs one.
    return type("AsyncClusterClient", (AsyncClusterClient,), {"ERRORS_ALLOW_RETRY": errors})
