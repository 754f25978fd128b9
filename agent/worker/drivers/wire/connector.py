"""Connections opened beside the loop: what blocks happens on threads of its own, and the loop is told the result."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from common.cancellation import Cancellation, CutShort
from common.redis_client import TARGET_ERRORS

T = TypeVar("T")

Call = Callable[[Callable[[], None]], None]
"""Has the loop call something, from any thread."""

_THREADS = 16


class Connector:
    """Threads for blocking calls. They end when the run is cancelled, or with their call's timeout."""

    def __init__(self, cancellation: Cancellation, call: Call, threads: int = _THREADS) -> None:
        self._cancellation, self._call = cancellation, call
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="wire connector")
        # Of closing against `do`: the loop may want something done in the very moment in which it is over.
        self._lock = threading.Lock()
        self._is_over = False
        self._under_way: set[Future[None]] = set()

    def do(
        self,
        what: Callable[[], T],
        then: Callable[[T], None],
        otherwise: Callable[[Exception], None],
        pause_s: float = 0.0,
    ) -> None:
        """Do it on a thread, after a pause; then have the loop call `then` with its result, or `otherwise` with what
        it raised of TARGET_ERRORS. After cancellation, nothing is done, and nobody is called."""
        with self._lock:
            if self._is_over or self._cancellation.is_cancelled:
                return
            future = self._executor.submit(self._do, what, then, otherwise, pause_s)
            self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)

    def _do(
        self, what: Callable[[], T], then: Callable[[T], None], otherwise: Callable[[Exception], None], pause_s: float
    ) -> None:
        try:
            self._cancellation.wait(pause_s)
            result = what()
        except CutShort:
            return
        except TARGET_ERRORS as error:
            failure: Exception = error
            self._call(lambda: otherwise(failure))
        except Exception as error:  # noqa: BLE001 - never to be; the loop ends of it, as of an error of its own
            surprise = error
            self._call(lambda: _raise(surprise))
        else:
            self._call(lambda: then(result))

    def end(self) -> None:
        """Begin nothing more. Idempotent."""
        with self._lock:
            self._is_over = True
            self._executor.shutdown(wait=False, cancel_futures=True)

    def wait(self, timeout_s: float) -> None:
        """Until nothing is under way any more, but no longer than this."""
        wait(tuple(self._under_way), timeout_s)


def _raise(error: Exception) -> None:
    raise error
