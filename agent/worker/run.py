"""One worker process' share of a run: builds it, starts it, stops it, cuts it short.

Order of shutdown: the span ends, so that nothing more is begun; workers come to their own end; those that have not by
the drain's deadline are cut short, and come out with what they were doing counted as failed; subscribers read what is
still under way to them, no longer than their grace, and close their connections; the rest is collected; client
instances are closed last, when no worker uses them any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from agent.worker.drivers.aio import TaskPoolRunner
from agent.worker.drivers.base import Job, PoolRunner, WorkerContext
from agent.worker.drivers.client import ThreadPoolRunner
from agent.worker.drivers.wire.event_loop import WireLoop
from agent.worker.drivers.wire.pool_runner import WirePoolRunner, draw_requests, record_of
from agent.worker.metrics.collector import CollectedGroup, Collector
from agent.worker.metrics.deliveries import DeliveryRecord
from agent.worker.metrics.process_usage import SelfWatch
from agent.worker.metrics.rows import Outcomes, Record, ThreadRecord
from agent.worker.metrics.wire_sizes import Measure, reply_measure
from agent.worker.pacing.pacer import NEVER_NS, Pacer, Span, quota_of, schedule_of
from agent.worker.pacing.staged_load import StagedPacer, schedules_of
from agent.worker.pools.prewarm import Prewarmable, prewarm
from agent.worker.pubsub.pubsub_mix import Subscribers
from agent.worker.workload.mix import CommandMix
from agent.worker.workload.operations import draw_operations
from common.cancellation import Cancellation
from common.clock import monotonic_ns
from common.errors import FleetError
from common.machine import open_files, open_files_limit
from common.open_files import REMEDY, needed, shortage
from common.plan.planned_commands import keys_per_hash_tag
from common.plan.schema import Connections, Driver, Plan, Pools, Target
from common.plan.timeline import timeline
from common.protocol.messages import Assignment, TakeOver
from common.redis_client import ping_target


@dataclass(frozen=True, slots=True)
class _Kind:
    """The parts of a driver. host: of (target, pools, name, cancellation). draw: what a worker issues, of (mix, seed,
    worker, workers). record: where it leaves what it did."""

    host: Callable[[Target, Pools, str, Cancellation], PoolRunner]
    draw: Callable[[CommandMix, int, int, int], Any]
    record: Callable[[CommandMix], Record]


def _kinds(mix: CommandMix) -> dict[Driver, _Kind]:
    """Those of one process."""
    loop = WireLoop()
    return {
        Driver.CLIENT: _Kind(ThreadPoolRunner, draw_operations, lambda _: ThreadRecord()),
        Driver.ASYNCIO: _Kind(TaskPoolRunner, draw_operations, lambda _: ThreadRecord()),
        Driver.WIRE: _Kind(partial(WirePoolRunner, loop=loop, mix=mix), draw_requests, record_of),
    }


@dataclass(frozen=True, slots=True)
class _Seat:
    """A worker before it starts. number: among all threads, tasks and loops of the fleet. operations: as its driver
    draws them."""

    number: int
    name: str
    operations: Any
    record: Record


@dataclass(slots=True)
class _Group:
    """The pools of one group of the plan that this process hosts, each with its workers' seats."""

    pools: Pools
    deliveries: DeliveryRecord = field(default_factory=DeliveryRecord)
    hosted: list[tuple[PoolRunner, list[_Seat]]] = field(default_factory=list)

    @property
    def records(self) -> list[Record]:
        return [seat.record for _, seats in self.hosted for seat in seats]


class WorkerRun:
    """Pools, workers and what they record, of one worker process and one run.

    crash: one line on what went wrong in a worker that never should; "" as long as nothing did.
    """

    def __init__(self, assignment: Assignment, run_id: str = "") -> None:
        """Builds everything but the clients of a cluster, which connect when they are made: `open` makes them. Opens no
        connection. run_id: tells this run's pub/sub messages from others'. Raises PlanError."""
        self._plan: Plan = assignment.plan
        self._threads_total = assignment.threads_total
        self._line = timeline(self._plan.load)
        self._cancellation = Cancellation()
        per_hash_tag = keys_per_hash_tag(self._plan.target, self._plan.workload)
        self._mix = CommandMix(self._plan.workload, self._plan.seed, per_hash_tag)
        self._kinds = _kinds(self._mix)
        self._outcomes = Outcomes()
        self._shares = assignment.pools
        self._groups: dict[int, _Group] = {}
        self._ended_ns: dict[int, int] = {}
        self.crash = ""
        self._subscribers = Subscribers(self._plan, run_id, self._crashed)
        for share in assignment.pools:
            group = self._groups.setdefault(share.group, _Group(self._plan.pools[share.group]))
            self._add_pool(group, share.number, share.first_thread)

    def _add_pool(self, group: _Group, number: int, first_thread: int) -> None:
        pools, seed, threads = group.pools, self._plan.seed, self._threads_total
        kind = self._kinds[pools.driver]
        host = kind.host(self._plan.target, pools, f"pool {number}", self._cancellation)
        seats = [
            _Seat(
                thread,
                f"pool {number} thread {thread}",
                kind.draw(self._mix, seed, thread, threads),
                kind.record(self._mix),
            )
            for thread in range(first_thread, first_thread + pools.workers_per_pool)
        ]
        group.hosted.append((host, seats))

    @property
    def _hosts(self) -> list[PoolRunner]:
        return [host for group in self._groups.values() for host, _ in group.hosted]

    def open(self, on_progress: Callable[[int, int], None]) -> int:
        """Make sure that the target answers, make what is still to be made (clients of a cluster, which read its
        topology), and open what is to be prewarmed. Returns how many connections were prewarmed.

        Raises TargetError, FleetError if this process may not open enough files for the connections that it needs
        from the start, and every error of on_progress (see `prewarm`).
        """
        ping_target(self._plan.target)
        wanted: list[Prewarmable] = []
        for group in self._groups.values():
            for host, _ in group.hosted:
                instances = host.open(lambda: on_progress(0, 0))
                if group.pools.connections is Connections.PREWARM:
                    wanted += instances
        self._refuse_shortage_of_files()
        return prewarm(wanted, self._plan.target, self._cancellation, on_progress)

    def _refuse_shortage_of_files(self) -> None:
        """Fail before the load: during it, the connections that opened would carry all of the load."""
        nodes = max((host.nodes for host in self._hosts), default=1)
        connections = nodes * needed(self._plan, self._shares).all_at_once
        if connections and (found := shortage(open_files_limit(), open_files(), connections)):
            raise FleetError(f"a worker process {found}; {REMEDY}")

    def start(self, t0_ns: int, takeover: TakeOver | None = None) -> tuple[Span, Collector]:
        """Start all workers; they wait for `t0_ns` by themselves. To be called once, after `open`. takeover: another
        agent had these pools before, and they go on from there."""
        end_ns = self._line.end_ns
        from_ns = takeover.from_ns if takeover else 0
        span = Span(t0_ns, NEVER_NS if end_ns is None else t0_ns + end_ns, from_ns=from_ns)
        quotas = self._quotas(takeover)
        groups = [
            CollectedGroup(
                group.pools.name,
                group.records,
                [log for host, _ in group.hosted for log in host.logs],
                group.deliveries,
                span.begin_ns,
            )
            for group in self._groups.values()
        ]
        for group in self._groups.values():
            measures = self._measures(group.hosted[0][0].client)
            for host, seats in group.hosted:
                pools = [
                    self._subscribers.pool_for(seat.number, group.pools.driver, host.pool, group.deliveries)
                    for seat in seats
                ]
                each = zip(seats, pools, strict=True)
                host.start([self._job(seat, pool, span, measures, quotas[seat.number]) for seat, pool in each])
        loops = [record for host in self._hosts for record in host.loops]
        watch = SelfWatch(loops, t0_ns, self._line, from_ns=from_ns)
        return span, Collector(groups, self._mix.names, self._outcomes, t0_ns, self._line, watch, from_ns=from_ns)

    def _quotas(self, takeover: TakeOver | None) -> dict[int, int | None]:
        """How many operations each worker may issue, by its number."""
        left = dict(takeover.left or ()) if takeover else {}
        quotas: dict[int, int | None] = {}
        for share in self._shares:
            workers = self._plan.pools[share.group].workers_per_pool
            for worker in range(workers):
                number = share.first_thread + worker
                of_pool = left.get(share.number)
                quotas[number] = (
                    quota_of(self._plan.load.requests, number, self._threads_total)
                    if of_pool is None
                    else quota_of(of_pool, worker, workers)
                )
        return quotas

    def _measures(self, client: Any) -> list[Measure]:
        return [reply_measure(name, self._plan.target.protocol, client.response_callbacks) for name in self._mix.names]

    def _job(self, seat: _Seat, pool: Any, span: Span, measures: list[Measure], quota: int | None) -> Job:
        workload = self._plan.workload
        batch = workload.transaction or workload.pipeline
        context = WorkerContext(
            span=span,
            pacer=self._pacer(seat, span, batch, quota),
            pool=pool,
            operations=seat.operations,
            record=seat.record,
            outcomes=self._outcomes,
            cancellation=self._cancellation,
            measures=measures,
            batch=batch,
            transaction=workload.transaction > 0,
        )
        # A schedule may be over before the run is: the run lasts as long as was said all the same.
        return Job(seat.name, context, self._line.end_ns is not None, self._watched(seat.number))

    def _pacer(self, seat: _Seat, span: Span, batch: int, quota: int | None) -> Pacer:
        load, seed, thread, threads = self._plan.load, self._plan.seed, seat.number, self._threads_total
        from_ns = span.begin_ns - span.t0_ns
        if self._line.is_plain and not load.stages:
            schedule = schedule_of(load, seed, thread, threads, span.t0_ns, from_ns)
            return Pacer(span, batch=batch, quota=quota, schedule=schedule)
        return StagedPacer(
            span,
            self._line,
            batch=batch,
            quota=quota,
            schedules=schedules_of(load, self._line, seed, thread, threads, from_ns),
            threads=threads,
            missed=seat.record.missed,
        )

    @contextmanager
    def _watched(self, number: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the last stop of a worker: said in one line, by the process
            self._crashed(error)
        finally:
            self._ended_ns[number] = monotonic_ns()

    def _crashed(self, error: Exception) -> None:
        self.crash = self.crash or describe(error)

    @property
    def ended_ns(self) -> int:
        """When the last worker ended; now, as long as one runs."""
        return monotonic_ns() if self.is_alive else max(self._ended_ns.values(), default=0)

    @property
    def is_alive(self) -> bool:
        """Whether any worker still runs."""
        return any(host.is_alive for host in self._hosts)

    @property
    def is_listening(self) -> bool:
        """Whether any subscriber still reads: after the worker threads have ended, what is under way to it."""
        return self._subscribers.is_alive

    def finish_listening(self, now_ns: int) -> None:
        """Have subscribers read what is under way, and end; cut them short once their grace is over. To be called
        whenever some time has passed, once all worker threads have ended."""
        if now_ns >= self._subscribers.finish(now_ns):
            self.cut()

    def cut(self) -> None:
        """End whatever any worker is waiting for, now. The span must have ended before. Idempotent."""
        self._cancellation.cancel()
        self._subscribers.cut()
        for host in self._hosts:
            host.cut()

    def close(self) -> None:
        """Close all subscribers and client instances. Idempotent."""
        self._subscribers.close()
        for host in self._hosts:
            host.close()


def describe(error: BaseException) -> str:
    """An unexpected error in one line, with the place where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_name}:{trace.tb_lineno}" if trace else ""
    text = " ".join(str(error).split())[:200]
    return f"unexpected {type(error).__name__}{place}: {text}"
