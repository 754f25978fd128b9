"""One event loop for all wire workers of a process, on its own thread; and threads for blocking calls.

A turn of the loop: wait until a connection can be read or written, or an operation is due; handle each ready
connection; call the functions that other threads passed to `call`; send what is due. Replies that arrive during a turn
are read in the next one. So the loop records how long each turn takes, because a turn may add its length to measured
times.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import TypeVar

from agent.worker.drivers.base import Job
from agent.worker.drivers.wire.connection import BatchConnection
from agent.worker.drivers.wire.poller import FilePoller, open_poller
from agent.worker.drivers.wire.worker import WireWorker
from agent.worker.metrics.process_usage import LoopRecord, pack_turn
from common.cancellation import Cancellation, CutShort
from common.clock import MonotonicNs, monotonic_ns
from common.redis_client import TARGET_ERRORS

T = TypeVar("T")

Call = Callable[[Callable[[], None]], None]
"""Makes the loop call a function, from any thread."""

_CHECK_EVERY_NS = 50_000_000
_CLOSE_WITHIN_S = 5.0
_THREADS = 16


class _RunningJob:
    """A worker that runs on the loop, with its job."""

    def __init__(self, worker: WireWorker, job: Job) -> None:
        self.worker, self.span, self.stays = worker, job.context.span, job.stays
        self.watched = ExitStack()
        self.watched.enter_context(job.watched)
        self.is_over = False

    def end(self) -> None:
        """The job has ended."""
        self.is_over = True
        self.watched.close()


class WireLoop:
    """Runs from the first `start` until `close`. Other threads may only call `open`, `start`, `call` and `close`."""

    def __init__(self, now: MonotonicNs = monotonic_ns) -> None:
        self._now = now
        self.turns = LoopRecord()
        self._thread = threading.Thread(target=self._run_thread, name="wire loop", daemon=True)
        self._calls: deque[Callable[[], None]] = deque()
        self._jobs: list[_RunningJob] = []
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._is_over = False
        self._check_ns = 0
        self._is_open = False

    def open(self) -> None:
        """Open the poller and the wake-up sockets, which `call` and `start` need. Idempotent."""
        if self._is_open:
            return
        self._is_open = True
        self._poller: FilePoller = open_poller()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._poller.add(self._wake.fileno())

    def start(self, worker: WireWorker, job: Job) -> None:
        """Run a worker's job, from the beginning of its span."""
        self._jobs.append(_RunningJob(worker, job))
        if self._thread.ident is None:  # not for a thread that has ended: it has reported its error
            self._thread.start()

    def is_working(self, worker: WireWorker) -> bool:
        """Whether this worker's job has not ended."""
        return self._thread.is_alive() and any(each.worker is worker and not each.is_over for each in self._jobs)

    def call(self, what: Callable[[], None]) -> None:
        """Call a function on the loop's thread, soon. Any thread may use it."""
        self._calls.append(what)
        try:
            self._waker.send(b"!")
        except OSError:  # full: the loop will wake up anyway. Closed: the run is over
            return

    # The interface of a poller, for connections.

    def add(self, fd: int) -> None:
        """See `WatchedFiles`; `watch` sets the handler."""
        self._poller.add(fd)

    def watch_write(self, fd: int, wanted: bool) -> None:
        """See `WatchedFiles`."""
        self._poller.watch_write(fd, wanted)

    def remove(self, fd: int) -> None:
        """See `WatchedFiles`."""
        self._handlers.pop(fd, None)
        self._poller.remove(fd)

    def watch(self, connection: BatchConnection) -> None:
        """Call the connection's `on_ready` when it is ready. Call `add` first."""
        self._handlers[connection.fd] = connection.on_ready

    def close(self) -> None:
        """End the loop after its current turn. Idempotent."""
        self._is_over = True
        if self._thread.is_alive():
            self.call(lambda: None)
            self._thread.join(_CLOSE_WITHIN_S)
        if self._is_open and not self._thread.is_alive():
            self._poller.close()
            self._wake.close()
            self._waker.close()

    def _run_thread(self) -> None:
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - the last resort: each job's `watched` reports it
            for job in self._jobs:
                if not job.is_over:
                    job.is_over = True
                    job.watched.__exit__(type(error), error, error.__traceback__)

    def _run(self) -> None:
        now, wait, handlers, calls = self._now, self._poller.wait, self._handlers, self._calls
        no_handler: Callable[[int], None] = self._woken
        next_ns, is_precise, at_ns, add_turn = now(), False, now(), self.turns.add
        while not self._is_over:
            ready = wait(next_ns - at_ns, is_precise)
            woken_ns = now()
            for fd, events in ready:
                handlers.get(fd, no_handler)(events)
            if calls:
                while calls:
                    calls.popleft()()
                next_ns = 0
            at_ns = now()
            if is_precise or at_ns >= next_ns:
                next_ns, is_precise = self._do_due_work(at_ns)
                at_ns = now()
            add_turn(pack_turn(at_ns, at_ns - woken_ns))

    def _do_due_work(self, at_ns: int) -> tuple[int, bool]:
        """Do what is due. Returns (when to call it again, whether to wake up precisely then). If precisely, call it
        also after any event, because an event may make an operation due earlier."""
        is_precise = False
        next_ns = at_ns + _CHECK_EVERY_NS
        for job in self._jobs:
            worker, span = job.worker, job.span
            if not worker.has_begun:
                if at_ns < (begin_ns := min(span.begin_ns, span.end_ns)):
                    next_ns, is_precise = min(next_ns, begin_ns), True
                    continue
                worker.begin()
            elif worker.due_ns <= at_ns:
                worker.pump()
            if worker.is_timed:
                next_ns, is_precise = min(next_ns, worker.due_ns), True
        if at_ns >= self._check_ns:
            self._check(at_ns)
            self._check_ns = at_ns + _CHECK_EVERY_NS
        return next_ns, is_precise

    def _check(self, at_ns: int) -> None:
        for job in self._jobs:
            if not job.is_over:
                job.worker.check(at_ns)
                if job.worker.is_done and (not job.stays or at_ns >= job.span.end_ns):
                    job.end()

    def _woken(self, _: int) -> None:
        try:
            self._wake.recv(4096)
        except BlockingIOError:
            return


class BlockingCalls:
    """Threads for blocking calls, such as connects. The results go to the loop.

    Each call ends when the run is cancelled, or at its own timeout.
    """

    def __init__(self, cancellation: Cancellation, call: Call, threads: int = _THREADS) -> None:
        self._cancellation, self._call = cancellation, call
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="wire connector")
        # Protects `do` against a concurrent `end`.
        self._lock = threading.Lock()
        self._is_over = False
        self._in_flight: set[Future[None]] = set()

    def do(
        self,
        what: Callable[[], T],
        then: Callable[[T], None],
        otherwise: Callable[[Exception], None],
        pause_s: float = 0.0,
    ) -> None:
        """After a pause, call `what` on a thread. Then, on the loop, call `then` with the result, or `otherwise` with
        an error of TARGET_ERRORS. After cancellation, call nothing."""
        with self._lock:
            if self._is_over or self._cancellation.is_cancelled:
                return
            future = self._executor.submit(self._do, what, then, otherwise, pause_s)
            self._in_flight.add(future)
        future.add_done_callback(self._in_flight.discard)

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
        except Exception as error:  # noqa: BLE001 - a bug: raise it in the loop, which reports it
            defect = error
            self._call(lambda: _raise(defect))
        else:
            self._call(lambda: then(result))

    def end(self) -> None:
        """Start no more calls. Idempotent."""
        with self._lock:
            self._is_over = True
            self._executor.shutdown(wait=False, cancel_futures=True)

    def wait(self, timeout_s: float) -> None:
        """Wait until no call is in flight, but at most `timeout_s`."""
        wait(tuple(self._in_flight), timeout_s)


def _raise(error: Exception) -> None:
    raise error
