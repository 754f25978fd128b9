"""Client instances of redis.asyncio, and the pools that lend them to worker tasks: the twins of `thread_pools`.

A pool belongs to one event loop. It needs no lock, because no other task runs between two `await`s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from agent.worker.metrics.connection_events import EventLog
from agent.worker.metrics.endpoints import Endpoints
from agent.worker.pools.instance_queue import CheckoutTimeout, InstanceQueue, run_over_error
from agent.worker.pools.prewarm import AsyncRelease, open_one_async
from common.cancellation import Cancellation
from common.clock import MonotonicNs, monotonic_ns
from common.plan.schema import Pools, Target
from common.redis_client.async_clients import (
    AsyncClient,
    async_tcp_pools,
    build_async_client,
    close_async_client,
    open_async_client,
)


class AsyncClientInstance:
    """One client of redis.asyncio with its own TCP pools, retry policy and event counters. One task uses it at a time.
    Made anywhere; opened, used and closed on one event loop."""

    def __init__(
        self, target: Target, pools: Pools, cancellation: Cancellation, endpoints: Endpoints | None = None
    ) -> None:
        """Opens no connection. endpoints: numbers the servers. Raises PlanError."""
        self.events = EventLog(endpoints)
        self._target = target
        self._max_connections = pools.max_connections
        self.client: AsyncClient = build_async_client(target, pools, events=self.events, cancellation=cancellation)
        # Bound once: it is called for every operation.
        self.execute: Callable[..., Awaitable[Any]] = self.client.execute_command

    async def open(self) -> None:
        """Prepare the client for its first call. A cluster's client calls the target, and may raise TargetError."""
        await open_async_client(self.client, self._target)

    def open_all(self, semaphore: asyncio.Semaphore) -> list[Coroutine[Any, Any, AsyncRelease]]:
        """One coroutine for each connection that the instance's TCP pools can have, which opens the connection. Each
        returns a coroutine function; until it is called, the connection stays taken from its pool. semaphore: limits
        how many open at once."""
        pools = async_tcp_pools(self.client)
        return [open_one_async(pool, semaphore) for pool in pools for _ in range(self._max_connections)]

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        await close_async_client(self.client)


class _TaskWaiter:
    """A waiting task."""

    __slots__ = ("future", "serve")

    def __init__(self, future: asyncio.Future[AsyncClientInstance | None]) -> None:
        self.future = future
        self.serve: Callable[[AsyncClientInstance | None], None] = future.set_result


class AsyncClientInstancePool(InstanceQueue[AsyncClientInstance]):
    """Lends client instances to tasks. `give_back` and `abort` are inherited from `InstanceQueue`."""

    def __init__(
        self, instances: Iterable[AsyncClientInstance], checkout_timeout_s: float, now: MonotonicNs = monotonic_ns
    ) -> None:
        super().__init__(instances)
        self._timeout_s = checkout_timeout_s
        self._now = now

    def take(self) -> AsyncClientInstance | None:
        """A free instance; None if there is none. Faster than `checkout`, because it is not a coroutine."""
        return self._free.pop() if self._free else None

    async def checkout(self) -> tuple[AsyncClientInstance, int]:
        """An instance, and how long this task waited for it in ns; 0 if one was free.

        Raises CheckoutTimeout if none came free in time, CutShort if the pool was aborted.
        """
        if (instance := self.take()) is not None:
            return instance, 0
        loop = asyncio.get_running_loop()
        waiter = _TaskWaiter(loop.create_future())
        self._enqueue(waiter)
        began_ns = self._now()
        # Not asyncio.wait_for: it may time out after the instance was assigned, and lose it.
        timer = loop.call_later(self._timeout_s, self._give_up, waiter)
        try:
            served = await waiter.future
        except TimeoutError:
            raise CheckoutTimeout(self._now() - began_ns) from None
        except asyncio.CancelledError:
            self._withdraw(waiter)
            raise
        finally:
            timer.cancel()
        if served is None:
            raise run_over_error()
        return served, self._now() - began_ns

    def _give_up(self, waiter: _TaskWaiter) -> None:
        # A waiter that is served in the same turn of the loop keeps its instance, and has left the queue.
        if not waiter.future.done():
            self._waiters.remove(waiter)
            waiter.future.set_exception(TimeoutError())

    def _withdraw(self, waiter: _TaskWaiter) -> None:
        """Remove a waiting task that was cancelled. It may have been served in the same turn of the loop."""
        future = waiter.future
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        elif not future.cancelled() and future.exception() is None and (instance := future.result()) is not None:
            self.give_back(instance)

    async def close(self) -> None:
        """Close all instances. Idempotent. Call it when no task uses an instance any more."""
        self.abort()
        for instance in self.instances:
            await instance.close()
