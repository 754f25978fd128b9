"""Client instances of redis-py, and the pools that lend them to worker threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

from agent.worker.metrics.connection_events import EventLog
from agent.worker.metrics.endpoints import Endpoints
from agent.worker.pools.instance_queue import CheckoutTimeout, InstanceQueue, run_over_error
from agent.worker.pools.prewarm import Release, open_one
from common.cancellation import Cancellation
from common.clock import MonotonicNs, monotonic_ns
from common.plan.schema import Pools, Target
from common.redis_client import Client, build_client, connects_when_built, tcp_pools
from common.redis_client.connections.maintenance import cancel_timers


class ClientInstance:
    """One client of redis-py with its own TCP pools, retry policy and event counters. One thread uses it at a time.
    `client` and `execute` exist at once, except for a cluster: then `open` makes them."""

    client: Client
    execute: Callable[..., Any]

    def __init__(
        self, target: Target, pools: Pools, cancellation: Cancellation, endpoints: Endpoints | None = None
    ) -> None:
        """Opens no connection. endpoints: numbers the servers. Raises PlanError."""
        self.events = EventLog(endpoints)
        self.max_connections = pools.max_connections
        self._build = partial(build_client, target, pools, events=self.events, cancellation=cancellation)
        self._is_built = False
        if not connects_when_built(target):
            self.open()

    def open(self) -> None:
        """Make the client, unless it exists. A cluster's client calls the target, and may raise TargetError."""
        if not self._is_built:
            self.client = self._build()
            # Bound once: it is called for every operation.
            self.execute = self.client.execute_command
            self._is_built = True

    def open_all(self, executor: Executor, /) -> list[Future[Release]]:
        """See `Prewarmable`."""
        pools = tcp_pools(self.client)
        return [executor.submit(open_one, pool) for pool in pools for _ in range(self.max_connections)]

    def close(self) -> None:
        """Close all connections. Idempotent."""
        if self._is_built:
            pools = tcp_pools(self.client)
            self.client.close()
            cancel_timers(pools)


class _ThreadWaiter:
    """A waiting thread. `ready` is locked until `serve` is called. `instance` stays None if the pool is aborted."""

    __slots__ = ("instance", "is_served", "ready")

    def __init__(self) -> None:
        self.ready = threading.Lock()
        self.ready.acquire()
        self.instance: ClientInstance | None = None
        self.is_served = False

    def serve(self, instance: ClientInstance | None) -> None:
        self.instance = instance
        self.is_served = True
        self.ready.release()


class ClientInstancePool(InstanceQueue[ClientInstance]):
    """Lends client instances to threads. `checkout` and `give_back` run for every operation, so they repeat the code of
    `InstanceQueue` instead of calling it."""

    def __init__(
        self, instances: Iterable[ClientInstance], checkout_timeout_s: float, now: MonotonicNs = monotonic_ns
    ) -> None:
        super().__init__(instances)
        self._timeout_s = checkout_timeout_s
        self._now = now
        self._lock = threading.Lock()
        self._acquire, self._release = self._lock.acquire, self._lock.release

    def checkout(self) -> tuple[ClientInstance, int]:
        """An instance, and how long this thread waited for it in ns; 0 if one was free.

        Raises CheckoutTimeout if none came free in time, CutShort if the pool was aborted.
        """
        # Without `with`, here and in `give_back`: `with` takes twice as long, and no statement in between can raise.
        self._acquire()
        if self._free:
            instance = self._free.pop()
            self._release()
            return instance, 0
        self._release()
        with self._lock:
            if self._free:
                return self._free.pop(), 0
            waiter = _ThreadWaiter()
            self._enqueue(waiter)
        return self._wait(waiter)

    def give_back(self, instance: ClientInstance) -> None:
        """Return a lent instance."""
        self._acquire()
        if self._waiters:
            self._waiters.popleft().serve(instance)
        else:
            self._free.append(instance)
        self._release()

    def _wait(self, waiter: _ThreadWaiter) -> tuple[ClientInstance, int]:
        began_ns = self._now()
        waiter.ready.acquire(timeout=self._timeout_s)
        waited_ns = self._now() - began_ns
        with self._lock:
            # The waiter may have got an instance after the timeout, but before we took the lock. Use this instance.
            if not waiter.is_served:
                self._waiters.remove(waiter)
                raise CheckoutTimeout(waited_ns)
        if waiter.instance is None:
            raise run_over_error()
        return waiter.instance, waited_ns

    def abort(self) -> None:
        """Wake all waiting threads, and raise CutShort for every later wait. Idempotent."""
        with self._lock:
            super().abort()

    def close(self) -> None:
        """Close all instances. Idempotent. Call it when no thread uses an instance any more."""
        self.abort()
        for instance in self.instances:
            instance.close()
