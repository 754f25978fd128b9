"""Client instances of redis.asyncio, and the pools that lend them to worker tasks.

All of a pool happens on one event loop: between two `await`s nobody else has a say, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeAlias

from agent.worker.metrics.connection_events import EventLog
from agent.worker.pools.thread_pools import CheckoutTimeout
from common.cancellation import Cancellation, CutShort
from common.clock import MonotonicNs, monotonic_ns
from common.plan.schema import Pools, Target
from common.redis_client.async_clients import (
    AsyncClient,
    async_tcp_pools,
    build_async_client,
    close_async_client,
    open_async_client,
)

AsyncRelease: TypeAlias = Callable[[], Coroutine[Any, Any, object]]
"""Leaves a connection that was opened ahead open in its TCP pool."""

_OPENING_AT_ONCE = 8


class AsyncClientInstance:
    """One client of redis.asyncio with TCP pools of its own, its retry policy and its event counters. One task at a
    time has it. Made anywhere; opened, used and closed on one event loop."""

    def __init__(self, target: Target, pools: Pools, cancellation: Cancellation) -> None:
        """Opens no connection. Raises PlanError."""
        self.events = EventLog()
        self._target = target
        self._max_connections = pools.max_connections
        self.client: AsyncClient = build_async_client(target, pools, events=self.events, cancellation=cancellation)
        # Bound once: it is called for every operation.
        self.execute: Callable[..., Awaitable[Any]] = self.client.execute_command

    async def open(self) -> None:
        """Make sure that the client can be used. Raises TargetError where that takes a call of the target."""
        await open_async_client(self.client, self._target)

    def open_all(self, gate: asyncio.Semaphore) -> list[Coroutine[Any, Any, AsyncRelease]]:
        """What opens every connection that its TCP pools can have, one each. Each is taken until the coroutine function
        is called that it returns. gate: how many open at once."""
        pools = async_tcp_pools(self.client)
        return [_open_one(pool, gate) for pool in pools for _ in range(self._max_connections)]

    async def close(self) -> None:
        """Close all its connections. Idempotent."""
        await close_async_client(self.client)


async def _open_one(pool: Any, gate: asyncio.Semaphore) -> AsyncRelease:
    async with gate:
        return partial(pool.release, await pool.get_connection())


class AsyncClientInstancePool:
    """Lends client instances as `ClientInstancePool` does: the one last returned is the first lent; tasks that find it
    empty stand in line, and a returned instance goes straight to the one that has waited longest."""

    def __init__(
        self, instances: Iterable[AsyncClientInstance], checkout_timeout_s: float, now: MonotonicNs = monotonic_ns
    ) -> None:
        self.instances = tuple(instances)
        self._timeout_s = checkout_timeout_s
        self._now = now
        self._free = list(reversed(self.instances))
        self._waiters: deque[asyncio.Future[AsyncClientInstance | None]] = deque()
        self._is_aborted = False

    def take(self) -> AsyncClientInstance | None:
        """An instance that is free at once, None where there is none. Spares the coroutine that `checkout` is."""
        return self._free.pop() if self._free else None

    async def checkout(self) -> tuple[AsyncClientInstance, int]:
        """An instance, and how long this task waited for it in ns: 0 when one was free at once.

        Raises CheckoutTimeout when none came free in time, CutShort when the pool was aborted.
        """
        if (instance := self.take()) is not None:
            return instance, 0
        if self._is_aborted:
            raise CutShort("the run is over")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[AsyncClientInstance | None] = loop.create_future()
        self._waiters.append(waiter)
        began_ns = self._now()
        # Not asyncio.wait_for: it may time out although the instance has come, which then nobody would have.
        timer = loop.call_later(self._timeout_s, self._give_up, waiter)
        try:
            served = await waiter
        except TimeoutError:
            raise CheckoutTimeout(self._now() - began_ns) from None
        except asyncio.CancelledError:
            self._put_back(waiter)
            raise
        finally:
            timer.cancel()
        if served is None:
            raise CutShort("the run is over")
        return served, self._now() - began_ns

    def give_back(self, instance: AsyncClientInstance) -> None:
        """Return what `checkout` lent."""
        if self._waiters:
            self._waiters.popleft().set_result(instance)
        else:
            self._free.append(instance)

    def _give_up(self, waiter: asyncio.Future[AsyncClientInstance | None]) -> None:
        # Whoever is served in the same turn of the loop is served: its future is done, and it is in line no more.
        if not waiter.done():
            self._waiters.remove(waiter)
            waiter.set_exception(TimeoutError())

    def _put_back(self, waiter: asyncio.Future[AsyncClientInstance | None]) -> None:
        """The task in line was cancelled; it may have been served in the very same moment."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        elif not waiter.cancelled() and waiter.exception() is None and (instance := waiter.result()) is not None:
            self.give_back(instance)

    def abort(self) -> None:
        """Wake all who wait, and let nobody wait from now on. Idempotent."""
        self._is_aborted = True
        while self._waiters:
            self._waiters.popleft().set_result(None)

    async def close(self) -> None:
        """Close all instances. Idempotent; for when no task uses them any more."""
        self.abort()
        for instance in self.instances:
            await instance.close()


def prewarm_semaphore() -> asyncio.Semaphore:
    """How many connections of one pool are opened at once when it is prewarmed."""
    return asyncio.Semaphore(_OPENING_AT_ONCE)
