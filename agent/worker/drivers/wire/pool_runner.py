"""Runs one pool of the wire driver. All connections of its client instances carry load, on the process's one loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

from agent.worker.drivers.base import Job, WorkerContext
from agent.worker.drivers.wire.batch_hits import BatchHits
from agent.worker.drivers.wire.batch_rows import WireRecord
from agent.worker.drivers.wire.connection import BatchConnection, TargetNode
from agent.worker.drivers.wire.event_loop import BlockingCalls, WireLoop
from agent.worker.drivers.wire.replies import ReplyParser
from agent.worker.drivers.wire.requests import OperationRequestSource, PackedRequestSource, RequestSource
from agent.worker.drivers.wire.routing import PoolServices, RequestRouter
from agent.worker.drivers.wire.worker import WireWorker
from agent.worker.metrics.connection_events import EventLog, next_number
from agent.worker.metrics.endpoints import Endpoints
from agent.worker.metrics.hits import shown_by_nil
from agent.worker.metrics.process_usage import LoopRecord
from agent.worker.metrics.wire_sizes import raw_measure
from agent.worker.pacing.pacer import NEVER_NS
from agent.worker.pools.prewarm import Prewarmable, Release, open_one
from agent.worker.workload.encoding.stream import PackedStream, draw_packed
from agent.worker.workload.mix import CommandMix
from agent.worker.workload.operations import draw_operations
from agent.worker.workload.reply_effects import Operation
from common.cancellation import Cancellation
from common.clock import monotonic_ns
from common.plan.schema import Maintenance, Pools, Target
from common.plan.schema.target_url import TargetKind
from common.redis_client import Client, address_of, translated
from common.redis_client.connections.cluster_topology import RefreshLimit
from common.redis_client.connections.connection_causes import attempt_cause
from common.redis_client.wire_connections import SINGLE_NODE, InstancePools, SlotMap, WireConnection

_SHORT_PAUSE_S = 0.02
"""Least time between two rounds of attempts to connect: without retries, a failing round takes no time."""
_GRACE_S = 1.0
"""At the end, how long connects in flight may take to succeed, and then again to notice their cancellation."""


class WireInstance:
    """One client instance: its TCP pools, one for each node, and its events."""

    def __init__(self, target: Target, pools: Pools, cancellation: Cancellation, endpoints: Endpoints | None) -> None:
        """Opens no connection. endpoints: numbers the servers. Raises PlanError."""
        # Count links, not redis-py's connections: redis-py's pool gives a failed connection to the next link that
        # tries.
        self.events = EventLog(endpoints, of_links=True)
        self.pools = InstancePools(target, pools, events=self.events, cancellation=cancellation)
        self.max_connections = pools.max_connections
        self.nodes: list[str] = []

    def open_all(self, executor: Executor, /) -> list[Future[Release]]:
        """See `Prewarmable`. Opens connections to all known nodes."""
        each = [self.pools.pool_for(node) for node in self.nodes]
        return [executor.submit(open_one, pool) for pool in each for _ in range(self.max_connections)]


class WirePoolRunner:
    """See `PoolRunner`. Has one worker, on a loop that all pools of the process share."""

    def __init__(
        self,
        target: Target,
        pools: Pools,
        _: str,
        cancellation: Cancellation,
        loop: WireLoop,
        mix: CommandMix,
        endpoints: Endpoints | None = None,
    ) -> None:
        """endpoints: numbers the servers. Raises PlanError."""
        self._target, self._mix, self._cancellation, self._loop = target, mix, cancellation, loop
        count = pools.client_instances_per_pool
        self._instances = [WireInstance(target, pools, cancellation, endpoints) for _ in range(count)]
        self._is_sentinel = address_of(target).kind is TargetKind.SENTINEL
        self._has_pushes = target.maintenance is not Maintenance.OFF
        self._connector = BlockingCalls(cancellation, loop.call)
        # A separate thread for the topology, because a node that hangs may block all threads of the connector.
        self._topology_reader = BlockingCalls(cancellation, loop.call, threads=1)
        self._worker: WireWorker | None = None
        self._primaries: SlotMap | None = None
        self._is_refreshing = False
        self._links: dict[BatchConnection, tuple[EventLog, int]] = {}
        self._refresh_limit = RefreshLimit()

    @property
    def pool(self) -> WirePoolRunner:
        return self

    @property
    def logs(self) -> Sequence[EventLog]:
        return [instance.events for instance in self._instances]

    @property
    def loops(self) -> Sequence[LoopRecord]:
        return [self._loop.turns]

    @property
    def client(self) -> Client:
        assert self._primaries is not None
        return self._primaries.client

    @property
    def nodes(self) -> int:
        return len(self._instances[0].nodes)

    @property
    def is_alive(self) -> bool:
        return self._worker is not None and self._loop.is_working(self._worker)

    def open(self, between: Callable[[], object]) -> Sequence[Prewarmable]:
        self._loop.open()
        with translated(self._target):
            self._primaries = SlotMap(self._target)
        between()
        for instance in self._instances:
            instance.nodes = sorted(set(self._primaries.slots()) - {""}) if self._primaries.is_cluster else [""]
        return self._instances

    def start(self, jobs: Iterable[Job]) -> None:
        (job,) = jobs
        assert self._primaries is not None
        context = job.context
        protocol, names = self._target.protocol, [template.name for template in self._mix.templates]
        replies = ReplyParser(
            names, self._primaries.client.response_callbacks, [raw_measure(n, protocol) for n in names]
        )
        record: WireRecord = context.record  # type: ignore[assignment]
        is_cluster = self._primaries.is_cluster
        router = RequestRouter(
            self._source(context),
            record,
            self._give_connections,
            lambda: self._loop.call(self._pump),
            self._fail_batches,
            context.batch,
            context.pacer.steady_turns,
        )
        services = PoolServices(
            replies=replies,
            hits=BatchHits(self._mix.templates, context.counters),
            events=self._instances[0].events,
            reopen=self._open,
            reopen_later=partial(self._open, pause_s=max(float(self._target.retry.cap_s), _SHORT_PAUSE_S)),
            reopen_soon=partial(self._open, pause_s=_SHORT_PAUSE_S),
            refresh=self._refresh,
            refresh_uncovered=self._refresh_uncovered,
            parked=self._parked,
            ignores_replies=self._mix.ignores_replies and not self._has_pushes,
            has_known_sizes=sum(size is None for size in self._mix.fixed_reply_bytes) <= 1,
            is_sentinel=self._is_sentinel,
            has_shared_quota=is_cluster and context.pacer.steady_turns is not None,
            timeout_ns=self._target.socket_timeout_s.ns or NEVER_NS,
            refresh_after=self._target.cluster.reinitialize_steps if is_cluster else 0,
        )
        self._worker = WireWorker(context, router, services)
        # On the loop's thread, because the worker and its connections are used only there.
        self._loop.call(partial(router.begin, self._primaries.slots() if is_cluster else None))
        if self._mix.ignores_replies:
            self._loop.call(router.prefetch)
        self._loop.start(self._worker, job)

    def _source(self, context: WorkerContext[Any]) -> RequestSource:
        assert self._primaries is not None
        operations: Any = context.operations
        if isinstance(operations, PackedStream):
            return PackedRequestSource(operations)
        return OperationRequestSource(operations, self._primaries.slot_of, context.batch if context.transaction else 1)

    # The following methods run on the loop's thread.

    def _give_connections(self, node: TargetNode) -> None:
        assert self._worker is not None
        if node.name != SINGLE_NODE:
            host, _, port = node.name.rpartition(":")
            node.endpoint = self._instances[0].events.endpoint_number(host, int(port))
        for instance in self._instances:
            pool = instance.pools.pool_for(node.name)
            for _ in range(instance.max_connections):
                connection = BatchConnection(self._worker, node, WireConnection(pool), has_pushes=self._has_pushes)
                self._links[connection] = (instance.events, next_number())
                node.connections.append(connection)
                self._open(connection)

    def _open(self, connection: BatchConnection, pause_s: float = 0.0) -> None:
        began_ns = monotonic_ns()
        log, number = self._links[connection]
        log.link_wanted(began_ns, number)
        refused = partial(self._refused, connection, began_ns)
        self._connector.do(connection.link.open, partial(self._opened, connection), refused, pause_s)

    def _parked(self, connection: BatchConnection) -> None:
        log, number = self._links[connection]
        log.link_unwanted(monotonic_ns(), number)

    def _opened(self, connection: BatchConnection, sock: Any) -> None:
        assert self._worker is not None
        log, number = self._links[connection]
        log.link_opened(monotonic_ns(), number)
        if self._is_sentinel:
            connection.endpoint = connection.node.endpoint = log.endpoint_number(*connection.link.place)
        connection.opened(sock, self._loop)
        self._loop.watch(connection)
        self._worker.opened(connection)

    def _refused(self, connection: BatchConnection, began_ns: int, error: Exception) -> None:
        assert self._worker is not None
        log, number = self._links[connection]
        log.link_failed(monotonic_ns(), attempt_cause(error), number)
        self._worker.refused(connection, error, began_ns)

    def _pump(self) -> None:
        assert self._worker is not None
        self._worker.pump()

    def _fail_batches(self, node: TargetNode, count: int) -> None:
        assert self._worker is not None
        self._worker.fail_batches(node, count)

    def _refresh_uncovered(self) -> None:
        if self._refresh_limit.is_due():
            self._refresh()

    def _refresh(self) -> None:
        if self._is_refreshing:
            return
        self._is_refreshing = True
        assert self._primaries is not None
        primaries = self._primaries

        def read() -> list[str]:
            primaries.refresh()
            return primaries.slots()

        self._topology_reader.do(read, self._refreshed, self._not_refreshed, _SHORT_PAUSE_S)

    def _refreshed(self, slots: Sequence[str]) -> None:
        assert self._worker is not None
        self._is_refreshing = False
        self._worker.update_topology(slots)

    def _not_refreshed(self, _: Exception) -> None:
        # The next operation that needs the topology starts another refresh.
        self._is_refreshing = False

    def cut(self) -> None:
        # The cancellation of the run ends calls in flight.
        self._connector.end()
        self._topology_reader.end()

    def close(self) -> None:
        # Start no more connects, and wait for those in flight before closing the pools: a pool does not close a
        # connection that opens later.
        self._topology_reader.end()
        self._connector.end()
        self._connector.wait(_GRACE_S)
        self._cancellation.cancel()
        self._connector.wait(_GRACE_S)
        self._topology_reader.wait(_GRACE_S)
        self._loop.close()
        for instance in self._instances:
            instance.pools.close()
        if self._primaries is not None:
            self._primaries.close()


def draw_requests(mix: CommandMix, seed: int, worker: int, workers: int) -> PackedStream | Iterator[Operation]:
    """The operations of a worker: drawn and packed ahead if none depends on a reply, otherwise one by one."""
    draw = draw_packed if mix.ignores_replies else draw_operations
    return draw(mix, seed, worker, workers)


def record_of(mix: CommandMix, protocol: int) -> WireRecord:
    """The record of a worker. protocol: the version of RESP."""
    return WireRecord(mix.fixed_reply_bytes, [shown_by_nil(template) for template in mix.templates], protocol)
