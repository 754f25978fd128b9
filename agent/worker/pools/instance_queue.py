"""Which client instance a pool lends next, and to whom: the core of the pools for threads and for tasks. No waiting.

The instance last returned is the first lent, so that as few as possible are in use. Workers that find no free instance
form a line. A returned instance goes straight to the first of them, so nobody who comes later can overtake it.
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


def run_over() -> CutShort:
    """The error of workers in line when the pool is aborted."""
    return CutShort("the run is over")


class Waiter(Protocol[I_contra]):
    """A worker in line."""

    def serve(self, instance: I_contra | None, /) -> None:
        """Wake it, with an instance; None if the pool was aborted."""


class InstanceQueue(Generic[I]):
    """The free instances of a pool and the workers in line. Not thread-safe."""

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
        """Wake all workers in line, and let nobody wait from now on. Idempotent."""
        self._is_aborted = True
        while self._waiters:
            self._waiters.popleft().serve(None)

    def _enqueue(self, waiter: Waiter[I]) -> None:
        """Put a worker in line. Raises CutShort after `abort`."""
        if self._is_aborted:
            raise run_over()
        self._waiters.append(waiter)
