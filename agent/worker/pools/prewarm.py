"""Opens all TCP connections of client instances before the load, for every driver."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any, Protocol, TypeAlias

from common.cancellation import Cancellation
from common.errors import TargetError
from common.plan.schema import Target
from common.redis_client import translated

Release: TypeAlias = Callable[[], object]
"""Returns an opened connection to its TCP pool, where it stays open."""
AsyncRelease: TypeAlias = Callable[[], Coroutine[Any, Any, object]]
"""The twin of `Release`."""

_PREWARM_THREADS = _PREWARM_TASKS = 8
_PROGRESS_S = 0.1


class Prewarmable(Protocol):
    """A client instance of any driver."""

    def open_all(self, executor: Executor, /) -> list[Future[Release]]:
        """Begin to open every connection that the instance's TCP pools can have. executor: threads for blocking
        connects. Each future returns a function; until it is called, the connection stays taken from its pool."""


def prewarm(
    instances: Iterable[Prewarmable],
    target: Target,
    cancellation: Cancellation,
    on_progress: Callable[[int, int], None],
) -> int:
    """Open every TCP connection of these instances (in a cluster, to each node), and leave them open in their TCP
    pools. Returns how many there are.

    on_progress: called about ten times per second with (open connections, all connections); an error that it raises
    ends the prewarming. At the first connection that cannot be opened, cancels and raises TargetError.
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
            # Otherwise the executor, and so this error, waits for connects in progress.
            cancellation.cancel()
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    for future in opening:
        future.result()()
    return len(opening)


def open_one(pool: Any) -> Release:
    """Open a connection of a TCP pool, and take it from the pool. Call the result to return it."""
    return partial(pool.release, pool.get_connection())


async def open_one_async(pool: Any, semaphore: asyncio.Semaphore) -> AsyncRelease:
    """The twin of `open_one`. semaphore: see `prewarm_semaphore`."""
    async with semaphore:
        return partial(pool.release, await pool.get_connection())


def prewarm_semaphore() -> asyncio.Semaphore:
    """Limits how many connections of one pool are opened at once."""
    return asyncio.Semaphore(_PREWARM_TASKS)
