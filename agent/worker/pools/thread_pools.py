"""Client instances, and the pools that lend them to worker threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Protocol, TypeAlias

from agent.worker.metrics.connection_events import EventLog
from common.cancellation import Cancellation, CutShort
from common.clock import MonotonicNs, monotonic_ns
from common.errors import TargetError
from common.plan.schema import Pools, Target
from common.redis_client import Client, build_client, connects_when_built, tcp_pools, translated

Release: TypeAlias = Callable[[], object]
"""Leaves a connection that was opened ahead open in its TCP pool."""

_PREWARM_THREADS = 8
_PROGRESS_S = 0.1


class CheckoutTimeout(Exception):
    """No client instance came free in time. waited_ns: how long the thread had waited."""

    def __init__(self, waited_ns: int) -> None:
        super().__init__(f"no client instance came free in {waited_ns} ns")
        self.waited_ns = waited_ns


class ClientInstance:
    """One client of redis-py with TCP pools of its own, its retry policy and its event counters. One thread at a time
    has it. `client` and `execute` are there from the beginning, but for a cluster's, which `open` makes."""

    client: Client
    execute: Callable[..., Any]

    def __init__(self, target: Target, pools: Pools, cancellation: Cancellation) -> None:
        """Opens no connection. Raises PlanError."""
        self.events = EventLog()
        self.max_connections = pools.max_connections
        self._build = partial(build_client, target, pools, events=self.events, cancellation=cancellation)
        self._is_built = False
        if not connects_when_built(target):
            self.open()

    def open(self) -> None:
        """Make sure that the client is there. Raises TargetError where that takes a call of the target."""
        if not self._is_built:
            self.client = self._build()
            # Bound once: it is called for every operation.
            self.execute = self.client.execute_command
            self._is_built = True

    def open_all(self, executor: Executor, /) -> list[Future[Release]]:
        """Begin to open every connection that its TCP pools can have (see `Prewarmable`)."""
        pools = tcp_pools(self.client)
        return [executor.submit(open_one, pool) for pool in pools for _ in range(self.max_connections)]

    def close(self) -> None:
        """Close all its connections. Idempotent."""
        if self._is_built:
            self.client.close()


def open_one(pool: Any) -> Release:
    """Open a connection of a TCP pool, and take it until what is returned is called."""
    return partial(pool.release, pool.get_connection())


class _Waiter:
    """A thread in line. `ready` is locked until it is served; `instance` stays None when the pool is aborted."""

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


class ClientInstancePool:
    """Lends client instances: the one last returned is the first lent, so that as few as possible are kept busy.

    Threads that find it empty stand in line. A returned instance goes straight to the one that has waited longest, so
    nobody who comes later can get ahead of it.
    """

    def __init__(
        self, instances: Iterable[ClientInstance], checkout_timeout_s: float, now: MonotonicNs = monotonic_ns
    ) -> None:
        self.instances = tuple(instances)
        self._timeout_s = checkout_timeout_s
        self._now = now
        self._lock = threading.Lock()
        self._acquire, self._release = self._lock.acquire, self._lock.release
        self._free = list(reversed(self.instances))
        self._waiters: deque[_Waiter] = deque()
        self._is_aborted = False

    def checkout(self) -> tuple[ClientInstance, int]:
        """An instance, and how long this thread waited for it in ns: 0 when one was free at once.

        Raises CheckoutTimeout when none came free in time, CutShort when the pool was aborted.
        """
        # Not `with`, here and in `give_back`: it is twice the cost, and nothing in between can raise.
        self._acquire()
        if self._free:
            instance = self._free.pop()
            self._release()
            return instance, 0
        self._release()
        with self._lock:
            if self._free:
                return self._free.pop(), 0
            if self._is_aborted:
                raise CutShort("the run is over")
            waiter = _Waiter()
            self._waiters.append(waiter)
        return self._wait(waiter)

    def give_back(self, instance: ClientInstance) -> None:
        """Return what `checkout` lent."""
        self._acquire()
        if self._waiters:
            self._waiters.popleft().serve(instance)
        else:
            self._free.append(instance)
        self._release()

    def _wait(self, waiter: _Waiter) -> tuple[ClientInstance, int]:
        began_ns = self._now()
        waiter.ready.acquire(timeout=self._timeout_s)
        waited_ns = self._now() - began_ns
        with self._lock:
            # Served after the time was up, but before we took the lock: then it is ours all the same.
            if not waiter.is_served:
                self._waiters.remove(waiter)
                raise CheckoutTimeout(waited_ns)
        if waiter.instance is None:
            raise CutShort("the run is over")
        return waiter.instance, waited_ns

    def abort(self) -> None:
        """Wake all who wait, and let nobody wait from now on. Idempotent."""
        with self._lock:
            self._is_aborted = True
            while self._waiters:
                self._waiters.popleft().serve(None)

    def close(self) -> None:
        """Close all instances. Idempotent; for when no thread uses them any more."""
        self.abort()
        for instance in self.instances:
            instance.close()


class Prewarmable(Protocol):
    """A client instance, of whatever driver, whose connections can be opened ahead."""

    def open_all(self, executor: Executor, /) -> list[Future[Release]]:
        """Begin to open every connection that its TCP pools can have, with these threads if it needs any. Each is taken
        until the function is called that its future brings, which leaves it open in its pool."""


def prewarm(
    instances: Iterable[Prewarmable],
    target: Target,
    cancellation: Cancellation,
    on_progress: Callable[[int, int], None],
) -> int:
    """Open every TCP connection of these instances, to each node of a cluster, and leave all of them open in their TCP
    pools. Returns how many.

    on_progress: told how many are open, of how many, some ten times a second; what it raises ends the prewarming.
    Raises TargetError with the first connection that cannot be opened; the run is cancelled then.
    """
    with ThreadPoolExecutor(_PREWARM_THREADS, thread_name_prefix="prewarm") as executor:
        opening = [future for instance in instances for future in instance.open_all(executor)]
        pending = set(opening)
        try:
            while pending:
                done, pending = wait(pending, timeout=_PROGRESS_S, return_when=FIRST_EXCEPTION)
                try:
                    with translated(target):
                        for future in done:
                            future.result()
                except TargetError as error:
                    opened = sum(
                        future.done() and not future.cancelled() and not future.exception() for future in opening
                    )
                    raise TargetError(f"{error} ({opened:,} of {len(opening):,} connections were open)") from error
                on_progress(len(opening) - len(pending), len(opening))
        except BaseException:
            # Whoever is still connecting must not keep the executor, and so the failure, waiting.
            cancellation.cancel()
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    for future in opening:
        future.result()()
    return len(opening)
