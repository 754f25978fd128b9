"""redis-py's cluster client for threads, with observed connections to every node.

This module relies on these facts about redis-py's cluster client:
- its constructor reads the topology, so it calls the target;
- it accepts a connection class and a pool class only if it is made from a URL, and passes its pools only arguments that
  it knows. So each client has its own connection class, bound to its events;
- the clients of its nodes do not retry; the cluster client itself repeats a command, at once and without backoff, on
  errors of exactly the classes in `ERRORS_ALLOW_RETRY`, after reading the topology; before each repetition it calls
  `_record_error_metric`;
- a pipeline repeats commands that were redirected or lost their connection one by one, by `parent_execute_command`;
- a transaction is repeated by the policy's `Retry`, with backoff;
- a command, pipeline or transaction for a slot without a node ends with SlotNotCoveredError before anything is sent,
  and redis-py does not read the topology. So it would not notice that the slot is served again until another error. Our
  client reads the topology at this error, so redis-py's repetition finds the slot's new node.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

import redis
from redis.cluster import ClusterNode, ClusterPipeline
from redis.event import AfterSlotsCacheRefreshEvent, EventDispatcher, EventListenerInterface
from redis.exceptions import SlotNotCoveredError

from common.cancellation import Cancellation
from common.plan import schema
from common.plan.schema.address_map import AddressMap
from common.redis_client.address import address_of, cluster_arguments, connection_arguments, server_name
from common.redis_client.connections.connection_tracking import ClusterTracker, ConnectionEvents
from common.redis_client.connections.retry_policy import cluster_errors_of, observed_retry
from common.redis_client.connections.thread_connections import ObservedClusterNode, ObservedNode, ObservedNodeTls

# Arguments that redis-py's cluster client does not pass to its connections, or refuses (clusters have databases only
# since Valkey 9).
_OF_THE_CLASS = ("health_check_interval", "db")

OnMade: TypeAlias = Callable[[ObservedClusterNode], object]

_LOST = (redis.ConnectionError, redis.TimeoutError)


class _TopologyListener(EventListenerInterface):
    def __init__(self, tracker: ClusterTracker, after: Callable[[], None]) -> None:
        """after: called whenever the topology was read."""
        self._tracker = tracker
        self._after = after

    def listen(self, event: object) -> None:  # noqa: ARG002 - the interface is redis-py's
        self._tracker.topology_read()
        self._after()


class ClusterClient(redis.RedisCluster):
    """redis-py's cluster client, observed. Made by `open_cluster`."""

    def __init__(
        self,
        target: schema.Target,
        pool_arguments: dict[str, Any],
        *,
        events: ConnectionEvents,
        cancellation: Cancellation,
    ) -> None:
        self._tracker = ClusterTracker(events, cancellation)
        # redis-py forgets nodes that it asked for the topology only once, and leaves their connections open.
        self._made_connections: weakref.WeakSet[ObservedClusterNode] = weakref.WeakSet()
        first, *others = address_of(target).hosts
        # redis-py adds the URL's node to this list.
        first_nodes = [ClusterNode(host.name, host.port) for host in others]  # type: ignore[no-untyped-call]
        listeners: list[Any] = [_TopologyListener(self._tracker, self._note_nodes)]
        try:
            super().__init__(
                # With any other scheme, redis-py would choose the connection class itself.
                url=f"redis://{first.in_url}",
                startup_nodes=first_nodes,
                retry=observed_retry(target.retry, events, cancellation),
                event_dispatcher=EventDispatcher({AfterSlotsCacheRefreshEvent: listeners}),
                **pool_arguments,
                **cluster_arguments(target),
                **node_arguments(target, events, cancellation, self._made_connections.add),
            )
        except BaseException:
            self._disconnect_all()
            raise
        self._tracker.has_topology = True
        self._note_nodes()
        manager: Any = self.nodes_manager
        self._look_up = manager.get_node_from_slot
        # Replaced in the manager, because pipelines and transactions call only the manager.
        manager.get_node_from_slot = self._node_of_slot

    @property
    def response_callbacks(self) -> dict[str, Any]:
        """redis-py's callbacks by command, as `redis.Redis` has them."""
        node: Any = self.get_redis_connection(self.get_default_node())  # type: ignore[no-untyped-call]
        return {**node.response_callbacks, **self.cluster_response_callbacks}

    def _note_nodes(self) -> None:
        manager: Any = getattr(self, "nodes_manager", None)  # not there while it reads the topology first
        if manager is not None:
            self._tracker.has_nodes(list(manager.nodes_cache.values()))

    def _node_of_slot(self, slot: int, *args: Any, **kwargs: Any) -> ClusterNode:
        try:
            node: ClusterNode = self._look_up(slot, *args, **kwargs)
        except SlotNotCoveredError:
            if self._tracker.should_refresh():
                # If no node answers, report the slot without a node, not this error.
                with contextlib.suppress(redis.RedisError, redis.RedisClusterException, OSError):
                    self.nodes_manager.initialize()
            self._tracker.not_covered()
            raise
        return node

    def nodes(self) -> list[ClusterNode]:
        """All known nodes."""
        return list(self.get_nodes())  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> ClusterPipeline:
        """redis-py's pipeline, which reports repeated commands too. The pipeline is a separate client object."""
        pipeline: Any = super().pipeline(transaction, shard_hint)  # type: ignore[no-untyped-call]
        pipeline._record_error_metric = self._record_error_metric
        commands, repeat = pipeline._execution_strategy, pipeline.parent_execute_command

        def observed_repeat(*args: Any, **options: Any) -> Any:
            if any(isinstance(each.result, _LOST) and each.args == args for each in commands.command_queue):
                self._tracker.repeating()
            return repeat(*args, **options)

        pipeline.parent_execute_command = observed_repeat
        if not transaction:
            self._observe_nodes(commands)
        return pipeline  # type: ignore[no-any-return]

    def _observe_nodes(self, strategy: Any) -> None:
        """Report the node of each command of a pipeline. Its commands are assigned to nodes in their order."""
        send, determine, tracker = strategy._send_cluster_commands, strategy._determine_nodes, self._tracker

        def observed_send(*args: Any, **options: Any) -> Any:
            tracker.batch_begins()
            return send(*args, **options)

        def observed_determine(*args: Any, **options: Any) -> Any:
            nodes = determine(*args, **options)
            if nodes:
                tracker.batch_command_sent(nodes[0])
            return nodes

        strategy._send_cluster_commands, strategy._determine_nodes = observed_send, observed_determine

    def close(self) -> None:
        """Close all connections, also of the pools with our class, which redis-py does not close. Idempotent."""
        super().close()
        self._disconnect_all()

    def _disconnect_all(self) -> None:
        for connection in list(self._made_connections):
            connection.disconnect()

    def _record_error_metric(self, error: Exception, *args: Any, **kwargs: Any) -> None:
        super()._record_error_metric(error, *args, **kwargs)
        self._tracker.error_recorded(kwargs)


def open_cluster(
    target: schema.Target, pool_arguments: dict[str, Any], *, events: ConnectionEvents, cancellation: Cancellation
) -> ClusterClient:
    """A cluster client. Connects and reads the topology. Raises TARGET_ERRORS, CutShort."""
    kind = _client_class(cluster_errors_of(target.retry))
    try:
        return kind(target, pool_arguments, events=events, cancellation=cancellation)
    except redis.RedisClusterException:
        # redis-py reports a cancellation as a cluster without a usable node.
        cancellation.check()
        raise


@functools.cache
def _client_class(errors: tuple[type[Exception], ...]) -> type[ClusterClient]:
    # redis-py reads the errors from the class, so each policy needs a class.
    return type("ClusterClient", (ClusterClient,), {"ERRORS_ALLOW_RETRY": errors})


def _connection_class(
    target: schema.Target, events: ConnectionEvents, cancellation: Cancellation, made: OnMade
) -> type[ObservedNode | ObservedNodeTls]:
    """The class of one client's connections, bound to the arguments that redis-py would not pass on."""
    is_tls = address_of(target).tls
    base: Any = ObservedNodeTls if is_tls else ObservedNode
    bound: dict[str, Any] = {name: connection_arguments(target)[name] for name in _OF_THE_CLASS}
    bound |= {"events": events, "cancellation": cancellation, "remap": AddressMap(target.address_remap)}
    if is_tls:
        bound["server_name"] = server_name(target)

    def init(self: Any, **arguments: Any) -> None:
        base.__init__(self, **bound, **arguments)
        made(self)

    return type(base.__name__, (base,), {"__init__": init})


def node_arguments(
    target: schema.Target, events: ConnectionEvents, cancellation: Cancellation, made: OnMade = lambda _: None
) -> dict[str, Any]:
    """Arguments of every node's pool, except for host and port. made: called with every new connection."""
    passed = {name: value for name, value in connection_arguments(target).items() if name not in _OF_THE_CLASS}
    return {**passed, "connection_class": _connection_class(target, events, cancellation, made)}
