"""One worker process' share of a run: builds it, starts it, stops it, cuts it short.

Order of shutdown: the span ends, so that nothing more is begun; threads come to their own end; those that have not by
the drain's deadline are cut short, and come out with what they were doing counted as failed; subscribers read what is
still under way to them, no longer than their grace, and close their connections; the rest is collected;
client instances are closed last, when no thread uses them any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from agent.worker.client_driver import Worker, run_client_worker
from agent.worker.collector import CollectedGroup, Collector
from agent.worker.deliveries import DeliveryRecord
from agent.worker.operations import Mix, Operation, draw_operations
from agent.worker.pacer import NEVER_NS, Pacer, Span, quota_of, schedule_of
from agent.worker.pools import ClientInstance, ClientInstancePool, prewarm
from agent.worker.pubsub import Subscribers
from agent.worker.recorder import Outcomes, ThreadRecord
from agent.worker.resp import Measure, reply_measure
from agent.worker.stages import StagedPacer, schedules_of
from common.clock import monotonic_ns
from common.commands import keys_per_hash_tag
from common.lifeline import Lifeline
from common.messages import Assignment
from common.plan.schema import Connections, Driver, Plan, Pools
from common.plan.timeline import timeline
from common.target import ping_target

_DRIVERS: dict[Driver, Callable[[Worker], None]] = {Driver.CLIENT: run_client_worker}


@dataclass(frozen=True, slots=True)
class _Seat:
    """A worker thread before it starts. number: among all threads of the fleet."""

    number: int
    name: str
    driver: Driver
    pool: ClientInstancePool
    operations: Iterator[Operation]
    record: ThreadRecord


@dataclass(slots=True)
class _Group:
    """The pools of one group of the plan that this process hosts."""

    pools: Pools
    deliveries: DeliveryRecord = field(default_factory=DeliveryRecord)
    hosted: list[ClientInstancePool] = field(default_factory=list)
    seats: list[_Seat] = field(default_factory=list)

    @property
    def instances(self) -> list[ClientInstance]:
        return [instance for pool in self.hosted for instance in pool.instances]


class WorkerRun:
    """Pools, threads and what they record, of one worker process and one run.

    crash: one line on what went wrong in a worker thread that never should; "" as long as nothing did.
    """

    def __init__(self, assignment: Assignment, run_id: str = "") -> None:
        """Builds everything but the clients of a cluster, which connect when they are made: `open` makes them. Opens no
        connection. run_id: tells this run's pub/sub messages from others'. Raises PlanError."""
        self._plan: Plan = assignment.plan
        self._threads_total = assignment.threads_total
        self._line = timeline(self._plan.load)
        self._lifeline = Lifeline()
        per_hash_tag = keys_per_hash_tag(self._plan.target, self._plan.workload)
        self._mix = Mix(self._plan.workload, self._plan.seed, per_hash_tag)
        self._outcomes = Outcomes()
        self._groups: dict[int, _Group] = {}
        self._threads: list[threading.Thread] = []
        self._ended_ns: dict[int, int] = {}
        self.crash = ""
        self._subscribers = Subscribers(self._plan, run_id, self._crashed)
        for share in assignment.pools:
            group = self._groups.setdefault(share.group, _Group(self._plan.pools[share.group]))
            self._add_pool(group, share.number, share.first_thread)

    def _add_pool(self, group: _Group, number: int, first_thread: int) -> None:
        pools = group.pools
        pool = ClientInstancePool(
            [ClientInstance(self._plan.target, pools, self._lifeline) for _ in range(pools.client_instances_per_pool)],
            pools.checkout_timeout_s,
        )
        group.hosted.append(pool)
        for thread in range(first_thread, first_thread + pools.workers_per_pool):
            operations = draw_operations(self._mix, self._plan.seed, thread, self._threads_total)
            name = f"pool {number} thread {thread}"
            group.seats.append(_Seat(thread, name, pools.driver, pool, operations, ThreadRecord()))

    def open(self, on_progress: Callable[[int, int], None]) -> int:
        """Make sure that the target answers, make what is still to be made (clients of a cluster, which read its
        topology), and open what is to be prewarmed. Returns how many connections were prewarmed.

        Raises TargetError, and whatever on_progress raises (see `prewarm`).
        """
        ping_target(self._plan.target)
        for group in self._groups.values():
            for instance in group.instances:
                instance.open()
                on_progress(0, 0)
        wanted = [
            instance
            for group in self._groups.values()
            if group.pools.connections is Connections.PREWARM
            for instance in group.instances
        ]
        return prewarm(wanted, self._plan.target, self._lifeline, on_progress)

    def start(self, t0_ns: int) -> tuple[Span, Collector]:
        """Start all threads; they wait for `t0_ns` by themselves. To be called once."""
        end_ns = self._line.end_ns
        span = Span(t0_ns, NEVER_NS if end_ns is None else t0_ns + end_ns)
        groups = [
            CollectedGroup(
                group.pools.name,
                [seat.record for seat in group.seats],
                [instance.events for instance in group.instances],
                group.deliveries,
            )
            for group in self._groups.values()
        ]
        for group in self._groups.values():
            measures = self._measures(group)
            for seat in group.seats:
                worker = self._worker(group, seat, span, measures)
                thread = threading.Thread(target=self._work, args=(seat, worker), name=seat.name, daemon=True)
                self._threads.append(thread)
        for thread in self._threads:
            thread.start()
        return span, Collector(groups, self._mix.names, self._outcomes, t0_ns, self._line)

    def _measures(self, group: _Group) -> list[Measure]:
        callbacks = group.instances[0].client.response_callbacks
        return [reply_measure(name, self._plan.target.protocol, callbacks) for name in self._mix.names]

    def _worker(self, group: _Group, seat: _Seat, span: Span, measures: list[Measure]) -> Worker:
        workload = self._plan.workload
        batch = workload.transaction or workload.pipeline
        return Worker(
            span=span,
            pacer=self._pacer(seat, span, batch),
            pool=self._subscribers.pool_for(seat.number, seat.pool, group.deliveries),
            operations=seat.operations,
            record=seat.record,
            outcomes=self._outcomes,
            lifeline=self._lifeline,
            measures=measures,
            batch=batch,
            transaction=workload.transaction > 0,
        )

    def _pacer(self, seat: _Seat, span: Span, batch: int) -> Pacer:
        load, seed, thread, threads = self._plan.load, self._plan.seed, seat.number, self._threads_total
        quota = quota_of(load.requests, thread, threads)
        if self._line.is_plain and not load.stages:
            schedule = schedule_of(load, seed, thread, threads, span.t0_ns)
            return Pacer(span, batch=batch, quota=quota, schedule=schedule)
        return StagedPacer(
            span,
            self._line,
            batch=batch,
            quota=quota,
            schedules=schedules_of(load, self._line, seed, thread, threads),
            threads=threads,
            missed=seat.record.missed,
        )

    def _work(self, seat: _Seat, worker: Worker) -> None:
        try:
            _DRIVERS[seat.driver](worker)
            if self._line.end_ns is not None:
                # A schedule may be over before the run is: the run lasts as long as was said all the same.
                worker.span.wait_until(worker.span.end_ns)
        except Exception as error:  # noqa: BLE001 - the last stop of a thread: said in one line, by the process
            self._crashed(error)
        finally:
            self._ended_ns[seat.number] = monotonic_ns()

    def _crashed(self, error: Exception) -> None:
        self.crash = self.crash or describe(error)

    @property
    def ended_ns(self) -> int:
        """When the last worker thread ended; now, as long as one runs."""
        return monotonic_ns() if self.is_alive else max(self._ended_ns.values(), default=0)

    @property
    def is_alive(self) -> bool:
        """Whether any worker thread still runs."""
        return any(thread.is_alive() for thread in self._threads)

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
        """End whatever any thread is waiting for, now. The span must have ended before. Idempotent."""
        self._lifeline.cut()
        self._subscribers.cut()
        for group in self._groups.values():
            for pool in group.hosted:
                pool.abort()

    def close(self) -> None:
        """Close all subscribers and client instances. Idempotent."""
        self._subscribers.close()
        for group in self._groups.values():
            for pool in group.hosted:
                pool.close()


def describe(error: BaseException) -> str:
    """An unexpected error in one line, with the place where it was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {trace.tb_frame.f_code.co_name}:{trace.tb_lineno}" if trace else ""
    text = " ".join(str(error).split())[:200]
    return f"unexpected {type(error).__name__}{place}: {text}"
