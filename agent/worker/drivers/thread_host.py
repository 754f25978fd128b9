"""Where the workers of the `client` driver live: each has a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from agent.worker.drivers.base import Job
from agent.worker.drivers.client import run_client_worker
from agent.worker.metrics.connection_events import EventLog
from agent.worker.metrics.loop_usage import LoopRecord
from agent.worker.pools.thread_pools import ClientInstance, ClientInstancePool, Prewarmable
from common.cancellation import Cancellation
from common.plan.schema import Pools, Target
from common.redis_client import Client
from common.redis_client.clients import count_nodes


class ThreadHost:
    """Workers are threads, their clients `redis.Redis`."""

    def __init__(self, target: Target, pools: Pools, _: str, cancellation: Cancellation) -> None:
        """Raises PlanError."""
        self.pool = ClientInstancePool(
            [ClientInstance(target, pools, cancellation) for _ in range(pools.client_instances_per_pool)],
            pools.checkout_timeout_s,
        )
        self._threads: list[threading.Thread] = []

    @property
    def logs(self) -> Sequence[EventLog]:
        return [instance.events for instance in self.pool.instances]

    @property
    def loops(self) -> Sequence[LoopRecord]:
        return ()

    @property
    def client(self) -> Client:
        return self.pool.instances[0].client

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
        with job.watched:
            run_client_worker(job.worker)
            if job.stays:
                job.worker.span.wait_until(job.worker.span.end_ns)

    def cut(self) -> None:
        # What waits for the target ends when the run is cancelled.
        self.pool.abort()

    def close(self) -> None:
        self.pool.close()
