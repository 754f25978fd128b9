"""Client instances of redis.asyncio, and the pools that lend them to worker tasks.

All of a pool happens on one event loop: between two `await`s nobody else has a say, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable

from agent.worker.events import EventLog
from agent.worker.pools import CheckoutTimeout
from common.clock import MonotonicNs, monotonic_ns
from common.lifeline import CutShort, Lifeline
from common.plan.schema import Target
from common.target_asynchronous import AsyncClient, AsyncConnection, build_async_client

_OPENING_AT_ONCE = 8


class AsyncClientInstance:
    """One `redis.asyncio.Redis` with its own TCP pool, its retry policy and its event counters. One task at a time has
    it. Made anywhere; used and closed on one event loop."""

    def __init__(self, target: Target, max_connections: int, lifeline: Lifeline) -> None:
        self.events = EventLog()
        self.max_connections = max_connections
        self.client: AsyncClient = build_async_client(
            target, max_connections=max_connections, events=self.events, lifeline=lifeline
        )
        # Bound once: it is called for every operation.
        self.execute = self.client.execute_command

    async def open_one(self, gate: asyncio.Semaphore) -> AsyncConnection:
        """One more of its TCP connections, which stays taken until it is released. gate: how many open at once."""
        async with gate:
            connection: AsyncConnection = await self.client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        return connection

    async def release(self, connections: Iterable[AsyncConnection]) -> None:
        """Leave these open in the TCP pool."""
        for connection in connections:
            await self.client.connection_pool.release(connection)

    async def close(self) -> None:
        """Close all its connections. Idempotent."""
        await self.client.aclose()


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

    async def checkout(self) -> tuple[AsyncClientInstance, int]:
        """An instance, and how long this task waited for it in ns: 0 when one was free at once.

        Raises CheckoutTimeout when none came free in time, CutShort when the pool was aborted.
        """
        if self._free:
            return self._free.pop(), 0
        if self._is_aborted:
            raise CutShort("the run is over")
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[AsyncClientInstance | None] = loop.create_future()
        self._waiters.append(waiter)
        began_ns = self._now()
        # Not asyncio.wait_for: it may time out although the instance has come, which then nobody would have.
        timer = loop.call_later(self._timeout_s, self._give_up, waiter)
        try:
            instance = await waiter
        except TimeoutError:
            raise CheckoutTimeout(self._now() - began_ns) from None
        except asyncio.CancelledError:
            self._put_back(waiter)
            raise
        finally:
            timer.cancel()
        if instance is None:
            raise CutShort("the run is over")
        return instance, self._now() - began_ns

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


def opening_gate() -> asyncio.Semaphore:
    """How many connections of one pool are opened at once when it is prewarmed."""
    return asyncio.Semaphore(_OPENING_AT_ONCE)
