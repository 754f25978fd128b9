"""One worker process's share of a run: builds, starts and ends its pools and workers.

Order of shutdown:

1. The span ends, so no operation begins any more.
2. Workers end by themselves. At the deadline of the drain, the others are cut; their operations in flight count as
   failed.
3. Subscribers read messages in flight, for at most the grace, and close their connections.
4. The last rows are collected.
5. Client instances are closed, because no worker uses them any more.
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
from agent.worker.metrics.endpoints import Endpoints
from agent.worker.metrics.hits import hit_counter
from agent.worker.metrics.outcomes import Outcomes
from agent.worker.metrics.process_usage import ProcessUsage
from agent.worker.metrics.rows import ThreadRecord, WorkerRecord
from agent.worker.metrics.wire_sizes import Measure, reply_measure
from agent.worker.pacing.pacer import NEVER_NS, Pacer, Span, quota_of, schedule_of
from agent.worker.pacing.staged_load import StagedPacer, schedules_of
from agent.worker.pools.prewarm import Prewarmable, prewarm
from agent.worker.pubsub.pubsub_mix import Subscribers
from agent.worker.visibility import with_stamps
from agent.worker.workload.mix import CommandMix
from agent.worker.workload.operations import draw_operations
from common.cancellation import Cancellation
from common.clock import monotonic_ns
from common.errors import FleetError
from common.machine import open_files, open_files_limit
from common.plan.open_files import REMEDY, needed, shortage
from common.plan.planned_commands import has_endpoints, keys_per_hash_tag
from common.plan.schema import Connections, Driver, Plan, Pools, Target
from common.protocol.messages import Assignment, TakeOver
from common.redis_client import address_of, ping_target


@dataclass(frozen=True, slots=True)
class _DriverParts:
    """The parts of a driver.

    runner: makes the runner of a pool from (target, pools, name, cancellation). draw: makes the operations of a worker
    from (mix, seed, worker, workers). record: makes the record of a worker.
    """

    runner: Callable[[Target, Pools, str, Cancellation], PoolRunner]
    draw: Callable[[CommandMix, int, int, int], Any]
    record: Callable[[CommandMix], WorkerRecord]


def _driver_parts(mix: CommandMix, endpoints: Endpoints, protocol: int) -> dict[Driver, _DriverParts]:
    """The drivers of one process; all wire pools share one loop."""
    loop = WireLoop()
    wire_runner = partial(WirePoolRunner, loop=loop, mix=mix, endpoints=endpoints)
    return {
        Driver.CLIENT: _DriverParts(
            partial(ThreadPoolRunner, endpoints=endpoints), draw_operations, lambda _: ThreadRecord()
        ),
        Driver.ASYNCIO: _DriverParts(
            partial(TaskPoolRunner, endpoints=endpoints), draw_operations, lambda _: ThreadRecord()
        ),
        Driver.WIRE: _DriverParts(wire_runner, draw_requests, lambda mix: record_of(mix, protocol)),
    }


@dataclass(frozen=True, slots=True)
class _PlannedWorker:
    """A worker before it starts. number: among all workers of the fleet. operations: see `_DriverParts.draw`."""

    number: int
    name: str
    operations: Any
    record: WorkerRecord


@dataclass(slots=True)
class _PoolGroup:
    """The pools of one group of the plan in this process, each with its workers."""

    pools: Pools
    deliveries: DeliveryRecord = field(default_factory=DeliveryRecord)
    runners: list[tuple[PoolRunner, list[_PlannedWorker]]] = field(default_factory=list)

    @property
    def records(self) -> list[WorkerRecord]:
        return [worker.record for _, workers in self.runners for worker in workers]


class WorkerRun:
    """The pools, workers and records of one worker process in one run.

    crash: one line about an unexpected error of a worker, "" without one.
    """

    def __init__(self, assignment: Assignment, run_id: str = "") -> None:
        """Builds everything except cluster clients: they connect when they are built, so `open` builds them. Opens no
        connection. run_id: marks this run's messages and stamps. Raises PlanError."""
        self._plan: Plan = assignment.plan
        self._threads_total = assignment.threads_total
        self._line = assignment.timeline
        self._first_leg = assignment.first_leg
        self._cancellation = Cancellation()
        per_hash_tag = keys_per_hash_tag(self._plan.target, self._plan.workload)
        self._mix = CommandMix(self._plan.workload, self._plan.seed, per_hash_tag)
        self._endpoints = Endpoints()
        self._driver_parts = _driver_parts(self._mix, self._endpoints, self._plan.target.protocol)
        self._counters = [hit_counter(template) for template in self._mix.templates]
        target = self._plan.target
        self._outcomes = Outcomes(
            self._mix.key_positions,
            [each for each in (target.password, target.sentinel.password) if each],
            "" if has_endpoints(target) else str(address_of(target)),
        )
        self._shares = assignment.pools
        self._groups: dict[int, _PoolGroup] = {}
        self._ended_ns: dict[int, int] = {}
        self.crash = ""
        self._run_id = run_id
        self._subscribers = Subscribers(self._plan, run_id, self._crashed)
        for share in assignment.pools:
            group = self._groups.setdefault(share.group, _PoolGroup(self._plan.pools[share.group]))
            self._add_pool(group, share.number, share.first_thread)

    def _add_pool(self, group: _PoolGroup, number: int, first_thread: int) -> None:
        pools, seed, threads = group.pools, self._plan.seed, self._threads_total
        parts = self._driver_parts[pools.driver]
        runner = parts.runner(self._plan.target, pools, f"pool {number}", self._cancellation)
        workers = [
            _PlannedWorker(
                thread,
                f"pool {number} thread {thread}",
                parts.draw(self._mix, seed, thread, threads),
                parts.record(self._mix),
            )
            for thread in range(first_thread, first_thread + pools.workers_per_pool)
        ]
        group.runners.append((runner, workers))

    @property
    def _runners(self) -> list[PoolRunner]:
        return [runner for group in self._groups.values() for runner, _ in group.runners]

    def open(self, on_progress: Callable[[int, int], None]) -> int:
        """Check that the target answers, build cluster clients, and prewarm connections. Returns how many connections
        were prewarmed.

        Raises TargetError; FleetError if this process may not open enough files for the connections that it needs at
        the start; and every error that `on_progress` raises (see `prewarm`).
        """
        ping_target(self._plan.target)
        wanted: list[Prewarmable] = []
        for group in self._groups.values():
            for runner, _ in group.runners:
                instances = runner.open(lambda: on_progress(0, 0))
                if group.pools.connections is Connections.PREWARM:
                    wanted += instances
        self._check_open_files()
        return prewarm(wanted, self._plan.target, self._cancellation, on_progress)

    def _check_open_files(self) -> None:
        """Fail before the load if the limit of open files is too low: otherwise the connections that did open would
        carry the whole load."""
        nodes = max((runner.nodes for runner in self._runners), default=1)
        connections = nodes * needed(self._plan, self._shares).all_at_once
        if connections and (found := shortage(open_files_limit(), open_files(), connections)):
            raise FleetError(f"a worker process {found}; {REMEDY}")

    def start(self, t0_ns: int, takeover: TakeOver | None = None) -> tuple[Span, Collector]:
        """Start all workers; each waits for `t0_ns`. Call it once, after `open`. takeover: another agent had these
        pools before; they continue from there."""
        end_ns = self._line.end_ns
        from_ns = max(self._line.legs[0].begin_ns, takeover.from_ns if takeover else 0)
        span = Span(t0_ns, NEVER_NS if end_ns is None else t0_ns + end_ns, from_ns=from_ns)
        quotas = self._quotas(takeover)
        groups = [
            CollectedGroup(
                group.pools.name,
                group.records,
                [log for runner, _ in group.runners for log in runner.logs],
                group.deliveries,
                span.begin_ns,
            )
            for group in self._groups.values()
        ]
        for group in self._groups.values():
            measures = self._measures(group.runners[0][0].client)
            for runner, workers in group.runners:
                pools = [self._pool_for(worker.number, group, runner.pool, span) for worker in workers]
                each = zip(workers, pools, strict=True)
                runner.start([self._job(worker, pool, span, measures, quotas[worker.number]) for worker, pool in each])
        loops = [record for runner in self._runners for record in runner.loops]
        usage = ProcessUsage(loops, t0_ns, self._line, from_ns=from_ns)
        return span, Collector(
            groups,
            self._mix.names,
            self._outcomes,
            t0_ns,
            self._line,
            usage,
            from_ns=from_ns,
            first_leg=self._first_leg,
            endpoints=self._endpoints,
        )

    def _pool_for(self, worker: int, group: _PoolGroup, pool: Any, span: Span) -> Any:
        """The pool that a worker uses: its driver's, or one that wraps it for messages or stamps."""
        listening = self._subscribers.pool_for(worker, group.pools.driver, pool, group.deliveries)
        return with_stamps(self._plan, self._run_id, listening, worker, self._threads_total, span, group.deliveries)

    def _quotas(self, takeover: TakeOver | None) -> dict[int, int | None]:
        """How many operations each worker may issue, by worker number."""
        left = dict(takeover.remaining or ()) if takeover else {}
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
        protocol, callbacks = self._plan.target.protocol, client.response_callbacks
        return [reply_measure(template.name, protocol, callbacks) for template in self._mix.templates]

    def _job(self, worker: _PlannedWorker, pool: Any, span: Span, measures: list[Measure], quota: int | None) -> Job:
        workload = self._plan.workload
        batch = workload.transaction or workload.pipeline
        context = WorkerContext(
            span=span,
            pacer=self._pacer(worker, span, batch, quota),
            pool=pool,
            operations=worker.operations,
            record=worker.record,
            outcomes=self._outcomes,
            cancellation=self._cancellation,
            measures=measures,
            counters=self._counters,
            batch=batch,
            transaction=workload.transaction > 0,
        )
        # Workers stay for the planned duration, even if their schedule ends earlier.
        return Job(worker.name, context, self._line.end_ns is not None, self._watched(worker.number))

    def _pacer(self, worker: _PlannedWorker, span: Span, batch: int, quota: int | None) -> Pacer:
        load, seed, thread, threads = self._plan.load, self._plan.seed, worker.number, self._threads_total
        from_ns = span.begin_ns - span.t0_ns
        if self._line.has_one_leg and not load.stages:
            start_ns = self._line.legs[0].begin_ns
            schedule = schedule_of(load, seed, thread, threads, span.t0_ns + start_ns, from_ns - start_ns)
            return Pacer(span, batch=batch, quota=quota, schedule=schedule)
        return StagedPacer(
            span,
            self._line,
            batch=batch,
            quota=quota,
            schedules=schedules_of(load, self._line, seed, thread, threads, from_ns),
            threads=threads,
            missed=worker.record.missed,
        )

    @contextmanager
    def _watched(self, number: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the last resort: the process reports it in one line
            self._crashed(error)
        finally:
            self._ended_ns[number] = monotonic_ns()

    def _crashed(self, error: Exception) -> None:
        self.crash = self.crash or describe(error)

    @property
    def ended_ns(self) -> int:
        """When the last worker ended; the present time while any worker runs."""
        return monotonic_ns() if self.is_alive else max(self._ended_ns.values(), default=0)

    @property
    def is_alive(self) -> bool:
        """Whether any worker still runs."""
        return any(runner.is_alive for runner in self._runners)

    @property
    def is_listening(self) -> bool:
        """Whether any subscriber still reads messages. Subscribers may outlast the workers."""
        return self._subscribers.is_alive

    def finish_listening(self, now_ns: int) -> None:
        """Make subscribers read the messages in flight and end; cut them after their grace. Call it repeatedly once all
        workers have ended."""
        if now_ns >= self._subscribers.finish(now_ns):
            self.cut()

    def cut(self) -> None:
        """End all waits of workers now. The span must have ended before. Idempotent."""
        self._cancellation.cancel()
        self._subscribers.cut()
        for runner in self._runners:
            runner.cut()

    def close(self) -> None:
        """Close all subscribers and client instances. Idempotent."""
        self._subscribers.close()
        for runner in self._runners:
            runner.close()


def describe(error: BaseException) -> str:
    """One line about an unexpected error, with the function and line that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_name}:{trace.tb_lineno}" if trace else ""
    text = " ".join(str(error).split())[:200]
    return f"unexpected {type(error).__name__}{place}: {text}"
