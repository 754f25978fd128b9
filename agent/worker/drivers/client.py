"""The `client` driver: a worker thread checks out a client instance, operates through redis-py, and returns it.

It measures what an application of redis-py sees: one call of the client, including retries and reconnects. Service time
is from the call to its return. Every operation of a pipeline or transaction has the service time of the whole batch.

`_run_singles` and `_run_batches` are written a second time in `aio`, for speed: a change here belongs there too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TypeAlias

from agent.worker.drivers.base import FAILED_PACE_NS, InstancePoolRunner, Job, WorkerContext
from agent.worker.drivers.result_rows import (
    failed_kind,
    record_checkout_timeout,
    record_unsent,
    rejected_kind,
    result_rows,
)
from agent.worker.metrics.endpoints import Endpoints
from agent.worker.metrics.process_usage import LoopRecord
from agent.worker.metrics.rows import NONE, pack_row
from agent.worker.pools.instance_queue import CheckoutTimeout
from agent.worker.pools.prewarm import Prewarmable
from agent.worker.pools.thread_pools import ClientInstance, ClientInstancePool
from common.cancellation import Cancellation, CutShort
from common.clock import monotonic_ns
from common.plan.schema import Pools, Target
from common.redis_client.clients import count_nodes

ThreadContext: TypeAlias = WorkerContext[ClientInstancePool]


class ThreadPoolRunner(InstancePoolRunner[ClientInstancePool]):
    """See `PoolRunner`. Workers are threads, their clients `redis.Redis`."""

    def __init__(
        self,
        target: Target,
        pools: Pools,
        _: str,
        cancellation: Cancellation,
        endpoints: Endpoints | None = None,
    ) -> None:
        """endpoints: numbers the servers. Raises PlanError."""
        count = pools.client_instances_per_pool
        instances = [ClientInstance(target, pools, cancellation, endpoints) for _ in range(count)]
        super().__init__(ClientInstancePool(instances, pools.checkout_timeout_s))
        self._threads: list[threading.Thread] = []

    @property
    def loops(self) -> Sequence[LoopRecord]:
        return ()

    @property
    def nodes(self) -> int:
        return count_nodes(self.client)

    @property
    def is_alive(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def open(self, between: Callable[[], object]) -> Sequence[Prewarmable]:
        for instance in self.pool.instances:
            instance.open()
            between()
        return self.pool.instances

    def start(self, jobs: Iterable[Job]) -> None:
        self._threads = [threading.Thread(target=self._work, args=(job,), name=job.name, daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()

    def _work(self, job: Job) -> None:
        span = job.context.span
        with job.watched:
            run_client_worker(job.context)
            if job.stays:
                span.wait_until(span.end_ns)

    def cut(self) -> None:
        # The cancellation of the run has ended the waits for the target.
        self.pool.abort()

    def close(self) -> None:
        self.pool.close()


def run_client_worker(context: ThreadContext) -> None:
    """Issue operations from the beginning of the span until its end, or until the quota is used up."""
    context.span.wait_until(context.span.begin_ns)
    if context.batch == 1 and not context.transaction:
        _run_singles(context)
    else:
        _run_batches(context)


def _run_singles(context: ThreadContext) -> None:
    # The hot path, hence the local names: everything except the call itself must take only a few microseconds.
    span, record, measures, counters = context.span, context.record, context.measures, context.counters
    checkout, give_back = context.pool.checkout, context.pool.give_back
    add, now = record.add, monotonic_ns
    begin_ns = end_ns = now()
    has_failed = False
    for turn, (row, arguments, bytes_out, follow) in zip(context.pacer.turns(), context.operations, strict=False):
        (due_ns,) = turn.times_ns
        if due_ns > end_ns:
            span.wait_until(due_ns)
        elif has_failed:
            has_failed = False
            span.wait_until(begin_ns + FAILED_PACE_NS)
        try:
            instance, wait_ns = checkout()
        except CheckoutTimeout as timeout:
            end_ns = record_checkout_timeout(context, turn, [(row, arguments)], timeout)
            if end_ns >= span.end_ns:
                record.unsent += context.pacer.unsent()
                return
            continue
        except CutShort:
            record.unsent += context.pacer.unsent(turn.times_ns)
            return
        begin_ns = now()
        if begin_ns >= span.end_ns:
            context.pool.give_back(instance)
            record_unsent(context, turn, wait_ns)
            return
        record.issued += 1
        try:
            reply = instance.execute(*arguments)
        except Exception as error:  # noqa: BLE001 - any error of a client ends the operation
            end_ns = now()
            row, bytes_in = failed_kind(context, row, error, arguments)
            found = 0
            has_failed = due_ns < 0 and not bytes_in
        else:
            end_ns = now()
            bytes_in = measures[row](reply)
            found = 0 if (count := counters[row]) is None else count(reply)
            if follow is not None and (failure := follow(reply)) is not None:
                row = rejected_kind(context, row, failure, arguments)
        endpoint = instance.events.endpoint
        give_back(instance)
        lag_ns = begin_ns - due_ns if due_ns >= 0 else NONE
        add(pack_row(end_ns, row, end_ns - begin_ns, lag_ns, turn.leg, bytes_out, bytes_in, wait_ns, endpoint, found))


def _run_batches(context: ThreadContext) -> None:
    span, record, now = context.span, context.record, monotonic_ns
    begin_ns = end_ns = now()
    has_failed = False
    for turn in context.pacer.turns():
        times_ns = turn.times_ns
        count, due_ns = len(times_ns), times_ns[-1]
        operations = list(islice(context.operations, count))
        if due_ns > end_ns:
            span.wait_until(due_ns)
        elif has_failed:
            has_failed = False
            span.wait_until(begin_ns + FAILED_PACE_NS)
        try:
            instance, wait_ns = context.pool.checkout()
        except CheckoutTimeout as timeout:
            end_ns = record_checkout_timeout(context, turn, [each[:2] for each in operations], timeout)
            if end_ns >= span.end_ns:
                record.unsent += context.pacer.unsent()
                return
            continue
        except CutShort:
            record.unsent += context.pacer.unsent(turn.times_ns)
            return
        pipeline = instance.client.pipeline(transaction=context.transaction)
        for _, arguments, _, _ in operations:
            pipeline.execute_command(*arguments)  # type: ignore[no-untyped-call]
        begin_ns = now()
        if begin_ns >= span.end_ns:
            context.pool.give_back(instance)
            record_unsent(context, turn, wait_ns)
            return
        record.issued += count
        record.transactions += context.transaction
        executed = count if context.transaction else 0
        try:
            replies = pipeline.execute(raise_on_error=False)
        except Exception as error:  # noqa: BLE001 - any error of a client ends the operations
            replies = [error] * count
            executed = 0
            has_failed = due_ns < 0
        end_ns = now()
        endpoints = instance.events.endpoints_of_batch(count)
        context.pool.give_back(instance)
        results = zip(times_ns, operations, replies, [end_ns] * count, strict=True)
        record.add(result_rows(context, results, begin_ns, turn.leg, endpoints, executed=executed, wait_ns=wait_ns))
