"""One pool of the wire driver: client instances whose connections all carry load, on the loop of the process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

from agent.worker.drivers.accounting import Worker
from agent.worker.drivers.base import Job
from agent.worker.drivers.wire.batch_results import Replies
from agent.worker.drivers.wire.batch_rows import WireRecord
from agent.worker.drivers.wire.channel import Channel
from agent.worker.drivers.wire.connector import Connector
from agent.worker.drivers.wire.driver import WireWorker
from agent.worker.drivers.wire.event_loop import WireLoop
from agent.worker.drivers.wire.request_source import BlockSource, OperationSource, Source
from agent.worker.drivers.wire.routing import Node, Routes
from agent.worker.drivers.wire.worker_context import Means
from agent.worker.metrics.connection_events import EventLog, next_number
from agent.worker.metrics.loop_usage import LoopRecord
from agent.worker.metrics.wire_sizes import raw_measure
from agent.worker.pacing.pacer import NEVER_NS
from agent.worker.pools.thread_pools import Prewarmable, Release, open_one
from agent.worker.workload.encoding.stream import PackedStream, draw_packed
from agent.worker.workload.mix import Mix
from agent.worker.workload.operations import Operation, draw_operations
from common.cancellation import Cancellation
from common.clock import monotonic_ns
from common.plan.schema import Maintenance, Pools, Target
from common.plan.target_url import TargetKind
from common.redis_client import Client, address_of, translated
from common.redis_client.connection_causes import attempt_cause
from common.redis_client.slots import Rereading
from common.redis_client.wire_connections import InstancePools, SlotMap, WireConnection

_REST_S = 0.02
"""Between two rounds of the policy's attempts to connect, at the least: with no retries, a round takes no time."""
_GRACE_S = 1.0
"""For connections that are being opened when all is over: to stand, and then to be cut short."""


class WireInstance:
    """One client instance: its TCP pools, one for each node, and its events."""

    def __init__(self, target: Target, pools: Pools, cancellation: Cancellation) -> None:
        """Opens no connection. Raises PlanError."""
        # Count links: redis-py's pool hands a connection that failed to any link that tries next.
        self.events = EventLog(of_links=True)
        self.pools = InstancePools(target, pools, events=self.events, cancellation=cancellation)
        self.max_connections = pools.max_connections
        self.nodes: list[str] = []

    def open_all(self, executor: Executor, /) -> list[Future[Release]]:
        """See `Prewarmable`; of the nodes that are known."""
        each = [self.pools.of(node) for node in self.nodes]
        return [executor.submit(open_one, pool) for pool in each for _ in range(self.max_connections)]


class WireHost:
    """See `agent.worker.drivers.base.Host`. One worker, on a loop that it shares with those of other pools."""

    def __init__(
        self, target: Target, pools: Pools, _: str, cancellation: Cancellation, loop: WireLoop, mix: Mix
    ) -> None:
        """Raises PlanError."""
        self._target, self._mix, self._cancellation, self._loop = target, mix, cancellation, loop
        self._instances = [WireInstance(target, pools, cancellation) for _ in range(pools.client_instances_per_pool)]
        self._is_pushed_to = target.maintenance is not Maintenance.OFF
        self._connector = Connector(cancellation, loop.call)
        # A separate thread for the topology, because a node that hangs may block all other threads for long.
        self._reader = Connector(cancellation, loop.call, threads=1)
        self._worker: WireWorker | None = None
        self._primaries: SlotMap | None = None
        self._is_refreshing = False
        self._links: dict[Channel, tuple[EventLog, int]] = {}
        self._rereading = Rereading()

    @property
    def pool(self) -> WireHost:
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
        worker = job.worker
        protocol, names = self._target.protocol, self._mix.names
        replies = Replies(names, self._primaries.client.response_callbacks, [raw_measure(n, protocol) for n in names])
        record: WireRecord = worker.record  # type: ignore[assignment]
        is_cluster = self._primaries.is_cluster
        routes = Routes(
            self._source(worker),
            record,
            self._give_connections,
            lambda: self._loop.call(self._pump),
            self._fail_batches,
            worker.batch,
            worker.pacer.steady_turns,
        )
        means = Means(
            replies=replies,
            events=self._instances[0].events,
            reopen=self._open,
            reopen_later=partial(self._open, pause_s=max(float(self._target.retry.cap_s), _REST_S)),
            reopen_soon=partial(self._open, pause_s=_REST_S),
            refresh=self._refresh,
            parked=self._parked,
            reread=self._reread,
            is_plain=self._mix.is_plain and not self._is_pushed_to,
            is_fixed=sum(size is None for size in self._mix.fixed_reply_bytes) <= 1,
            is_watched=address_of(self._target).kind is TargetKind.SENTINEL,
            is_shared=is_cluster and worker.pacer.steady_turns is not None,
            timeout_ns=self._target.socket_timeout_s.ns or NEVER_NS,
            refresh_after=self._target.cluster.reinitialize_steps if is_cluster else 0,
        )
        self._worker = WireWorker(worker, routes, means)
        # Its channels are made on the loop's thread, as all of it.
        self._loop.call(partial(routes.begin, self._primaries.slots() if is_cluster else None))
        if self._mix.is_plain:
            self._loop.call(routes.prepare)
        self._loop.start(self._worker, job)

    def _source(self, worker: Worker[Any]) -> Source:
        assert self._primaries is not None
        operations: Any = worker.operations
        if isinstance(operations, PackedStream):
            return BlockSource(operations)
        return OperationSource(operations, self._primaries.slot_of, worker.batch if worker.transaction else 1)

    # On the loop's thread: connections, and what is to be known of a cluster.

    def _give_connections(self, node: Node) -> None:
        assert self._worker is not None
        for instance in self._instances:
            pool = instance.pools.of(node.name)
            for _ in range(instance.max_connections):
                channel = Channel(self._worker, node, WireConnection(pool), is_pushed_to=self._is_pushed_to)
                self._links[channel] = (instance.events, next_number())
                node.channels.append(channel)
                self._open(channel)

    def _open(self, channel: Channel, pause_s: float = 0.0) -> None:
        began_ns = monotonic_ns()
        log, number = self._links[channel]
        log.link_wanted(began_ns, number)
        refused = partial(self._refused, channel, began_ns)
        self._connector.do(channel.link.open, partial(self._opened, channel), refused, pause_s)

    def _parked(self, channel: Channel) -> None:
        log, number = self._links[channel]
        log.link_unwanted(monotonic_ns(), number)

    def _opened(self, channel: Channel, sock: Any) -> None:
        assert self._worker is not None
        log, number = self._links[channel]
        log.link_opened(monotonic_ns(), number)
        channel.opened(sock, self._loop)
        self._loop.watch(channel)
        self._worker.opened(channel)

    def _refused(self, channel: Channel, began_ns: int, error: Exception) -> None:
        assert self._worker is not None
        log, number = self._links[channel]
        log.link_failed(monotonic_ns(), attempt_cause(error), number)
        self._worker.refused(channel, error, began_ns)

    def _pump(self) -> None:
        assert self._worker is not None
        self._worker.pump()

    def _fail_batches(self, node: Node, count: int) -> None:
        assert self._worker is not None
        self._worker.fail_batches(node, count)

    def _reread(self) -> None:
        if self._rereading.is_due():
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

        self._reader.do(read, self._refreshed, self._not_refreshed, _REST_S)

    def _refreshed(self, slots: Sequence[str]) -> None:
        assert self._worker is not None
        self._is_refreshing = False
        self._worker.found(slots)

    def _not_refreshed(self, _: Exception) -> None:
        # Whoever found it to be needed will find so again.
        self._is_refreshing = False

    def cut(self) -> None:
        # What waits for the target ends when the run is cancelled.
        self._connector.end()
        self._reader.end()

    def close(self) -> None:
        # Connections that are still being opened when all is done are wanted no more: each is closed before the pools
        # are, because these would not find it.
        self._reader.end()
        self._connector.end()
        self._connector.wait(_GRACE_S)
        self._cancellation.cancel()
        self._connector.wait(_GRACE_S)
        self._reader.wait(_GRACE_S)
        self._loop.close()
        for instance in self._instances:
            instance.pools.close()
        if self._primaries is not None:
            self._primaries.close()


def draw_requests(mix: Mix, seed: int, worker: int, workers: int) -> PackedStream | Iterator[Operation]:
    """What a worker of this driver issues: requests drawn and packed ahead, where none depends on a reply."""
    return draw_packed(mix, seed, worker, workers) if mix.is_plain else draw_operations(mix, seed, worker, workers)


def record_of(mix: Mix) -> WireRecord:
    """Where a worker leaves what it did."""
    return WireRecord(mix.fixed_reply_bytes)
