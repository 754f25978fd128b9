"""Where the workers of an asyncio pool live: an event loop on a thread of its own, from the opening to the close."""

from __future__ import annotations

import asyncio
import select
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from agent.worker.drivers.aio import run_asyncio_worker, until
from agent.worker.drivers.base import Job
from agent.worker.metrics.connection_events import EventLog
from agent.worker.metrics.loop_usage import LoopRecord, pack_turn
from agent.worker.pools.task_pools import AsyncClientInstance, AsyncClientInstancePool, AsyncRelease, prewarm_semaphore
from agent.worker.pools.thread_pools import Prewarmable, Release
from common.cancellation import Cancellation
from common.clock import monotonic_ns
from common.plan.schema import Pools, Target
from common.redis_client.async_clients import AsyncClient, count_async_nodes

_FINE_S = 0.1
_CLOSE_GRACE_S = 2.0
_PATIENCE_S = 0.05
_wait = selectors.DefaultSelector.select  # bound once: it is called for every turn
_SELECTABLE = 1024
"""File descriptors below it can be given to select(2)."""


class LoopHost:
    """Workers are tasks of one event loop, their clients `redis.asyncio.Redis`. Neither spans threads.

    Everything of the loop happens on its thread; from outside it is only asked for.
    """

    def __init__(self, target: Target, pools: Pools, name: str, cancellation: Cancellation) -> None:
        """Raises PlanError."""
        self.pool = AsyncClientInstancePool(
            [AsyncClientInstance(target, pools, cancellation) for _ in range(pools.client_instances_per_pool)],
            pools.checkout_timeout_s,
        )
        self._turns = LoopRecord()
        self._close_within_s = float(target.connect_timeout_s) + _CLOSE_GRACE_S
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._over = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._running = 0

    @property
    def logs(self) -> Sequence[EventLog]:
        return [instance.events for instance in self.pool.instances]

    @property
    def loops(self) -> Sequence[LoopRecord]:
        return [self._turns]

    @property
    def client(self) -> AsyncClient:
        return self.pool.instances[0].client

    @property
    def nodes(self) -> int:
        return count_async_nodes(self.client)

    @property
    def is_alive(self) -> bool:
        return self._running > 0 and self._thread.is_alive()

    def open(self, between: Callable[[], object]) -> Sequence[Prewarmable]:
        self._thread.start()
        loop = self._started.result()
        for instance in self.pool.instances:
            asyncio.run_coroutine_threadsafe(instance.open(), loop).result()
            between()
        gate = prewarm_semaphore()
        return [_Opening(loop, instance, gate) for instance in self.pool.instances]

    def start(self, jobs: Iterable[Job]) -> None:
        jobs = list(jobs)
        self._running = len(jobs)
        self._started.result().call_soon_threadsafe(self._start, jobs)

    def _start(self, jobs: list[Job]) -> None:
        self._tasks = [asyncio.create_task(self._work(job), name=job.name) for job in jobs]
        for task in self._tasks:
            # Not at the end of `_work`, which a task that is cancelled at once never begins.
            task.add_done_callback(self._one_less)

    def _one_less(self, _: asyncio.Task[None]) -> None:
        self._running -= 1

    async def _work(self, job: Job) -> None:
        with job.watched:
            await run_asyncio_worker(job.worker)
            if job.stays:
                await until(job.worker.span, job.worker.span.end_ns)

    def cut(self) -> None:
        self._ask(self._cut)

    def _cut(self) -> None:
        self.pool.abort()
        for task in (running := [task for task in self._tasks if not task.done()]):
            task.cancel()
        if running:
            # On its way through redis-py a cancellation may meet a step that ends by itself, and then is forgotten.
            asyncio.get_running_loop().call_later(_PATIENCE_S, self._cut)

    def close(self) -> None:
        self._ask(self._over.set)
        if self._thread.ident is not None:
            self._thread.join(self._close_within_s)

    def _ask(self, what: Any) -> None:
        if self._thread.is_alive():
            try:
                self._started.result().call_soon_threadsafe(what)
            except RuntimeError:  # the loop was closed in this very moment
                return

    def _live(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: fine_loop(self._turns)) as runner:
                self._started.set_result(runner.get_loop())
                runner.run(self._until_over())
        except Exception as error:
            if not self._started.done():
                self._started.set_exception(error)
                return
            raise

    async def _until_over(self) -> None:
        await self._over.wait()
        # Workers that cling to what they do, and connections that were to be prewarmed when that came to nothing.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=_PATIENCE_S)
        await self.pool.close()


class _Opening:
    """One client instance, whose connections are opened from outside of its loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, instance: AsyncClientInstance, gate: asyncio.Semaphore) -> None:
        self._loop = loop
        self._instance = instance
        self._gate = gate

    def open_all(self, _: Executor, /) -> list[Future[Release]]:
        return [
            asyncio.run_coroutine_threadsafe(self._opened(one), self._loop)
            for one in self._instance.open_all(self._gate)
        ]

    async def _opened(self, one: Coroutine[Any, Any, AsyncRelease]) -> Release:
        keep = await one
        return lambda: asyncio.run_coroutine_threadsafe(keep(), self._loop).result()


class _FineSelector(selectors.DefaultSelector):
    """Waits as long as it is told, and takes note of how long it was not asked to. epoll alone rounds up to whole
    milliseconds: half of one late in the mean."""

    def __init__(self, turns: LoopRecord) -> None:
        super().__init__()
        self._add_turn = turns.add
        self._woke_ns = monotonic_ns()
        self._is_selectable = self.fileno() < _SELECTABLE

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        called_ns = monotonic_ns()
        self._add_turn(pack_turn(called_ns, called_ns - self._woke_ns))
        if timeout and 0 < timeout < _FINE_S and self._is_selectable:
            # An epoll can be waited for as anything else. A timeout of redis-py's, seconds ahead, needs no such care.
            select.select([self.fileno()], [], [], timeout)
            timeout = 0
        ready = _wait(self, timeout)
        self._woke_ns = monotonic_ns()
        return ready


def fine_loop(turns: LoopRecord) -> asyncio.AbstractEventLoop:
    """A loop that wakes its tasks when they are due. turns: where it leaves how long each of its turns took."""
    return asyncio.SelectorEventLoop(_FineSelector(turns))
