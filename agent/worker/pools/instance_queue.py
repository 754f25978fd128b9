"""Decides which client instance a pool lends next, and to which worker: the core of the pools for threads and for
tasks. Never blocks.

The instance last returned is lent first, so that few instances are in use. Workers that find no free instance form a
queue. A returned instance goes to the first worker in the queue, so no later worker can overtake.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from common.cancellation import CutShort

I = TypeVar("I")  # noqa: E741 - an instance
I_contra = TypeVar("I_contra", contravariant=True)


class CheckoutTimeout(Exception):
    """No client instance came free in time. waited_ns: how long the worker had waited."""

    def __init__(self, waited_ns: int) -> None:
        super().__init__(f"no client instance came free in {waited_ns} ns")
        self.waited_ns = waited_ns


def run_over_error() -> CutShort:
    """The error for workers that wait when the pool is aborted, or that would have to wait later."""
    return CutShort("the run is over")


class Waiter(Protocol[I_contra]):
    """A worker that waits in the queue."""

    def serve(self, instance: I_contra | None, /) -> None:
        """Wake the worker with an instance; None if the pool was aborted."""


class InstanceQueue(Generic[I]):
    """The free instances of a pool, and the queue of waiting workers. Not thread-safe."""

    def __init__(self, instances: Iterable[I]) -> None:
        self.instances = tuple(instances)
        self._free = list(reversed(self.instances))
        self._waiters: deque[Waiter[I]] = deque()
        self._is_aborted = False

    def give_back(self, instance: I) -> None:
        """Return a lent instance."""
        if self._waiters:
            self._waiters.popleft().serve(instance)
        else:
            self._free.append(instance)

    def abort(self) -> None:
        """Wake all waiting workers. Later calls of `_enqueue` raise CutShort. Idempotent."""
        self._is_aborted = True
        while self._waiters:
            self._waiters.popleft().serve(None)

    def _enqueue(self, waiter: Waiter[I]) -> None:
        """Add a worker to the queue. Raises CutShort after `abort`."""
        if self._is_aborted:
            raise run_over_error()
        self._waiters.append(waiter)
