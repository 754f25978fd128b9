"""One event loop for all wire workers of a process, on a thread of its own.

A turn: wait until a connection can be read or written or an operation is due; have each such connection do what it can;
then what other threads asked for; then what is due. Whatever comes meanwhile waits until the turn is over, so how long
turns take is noted: it is what the loop adds to the times that it measures.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack

from agent.worker.drivers.base import Job
from agent.worker.drivers.wire.channel import Channel
from agent.worker.drivers.wire.driver import WireWorker
from agent.worker.drivers.wire.poller import Poller, open_poller
from agent.worker.metrics.loop_usage import LoopRecord, pack_turn
from common.clock import MonotonicNs, monotonic_ns

_NAP_NS = 50_000_000
_CLOSE_WITHIN_S = 5.0


class _Seat:
    """A worker on the loop, and what watches it."""

    def __init__(self, worker: WireWorker, job: Job) -> None:
        self.worker, self.job = worker, job
        self.watched = ExitStack()
        self.watched.enter_context(job.watched)
        self.is_over = False

    def end(self) -> None:
        """All that it was to do is done."""
        self.is_over = True
        self.watched.close()


class WireLoop:
    """Runs from the first `start` to `close`. Everything but these, `open` and `call` is for its own thread."""

    def __init__(self, now: MonotonicNs = monotonic_ns) -> None:
        self._now = now
        self.turns = LoopRecord()
        self._thread = threading.Thread(target=self._live, name="wire loop", daemon=True)
        self._calls: deque[Callable[[], None]] = deque()
        self._seats: list[_Seat] = []
        self._channels: dict[int, Callable[[int], None]] = {}
        self._is_over = False
        self._check_ns = 0
        self._is_open = False

    def open(self) -> None:
        """Make ready what `call` and `start` need. Idempotent."""
        if self._is_open:
            return
        self._is_open = True
        self._poller: Poller = open_poller()
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._poller.add(self._wake.fileno())

    def start(self, worker: WireWorker, job: Job) -> None:
        """Have a worker do its job, from the start of its span."""
        seat = _Seat(worker, job)
        self._seats.append(seat)
        if self._thread.ident is None:  # one that has ended already told why, and takes nobody in any more
            self._thread.start()

    def is_working(self, worker: WireWorker) -> bool:
        """Whether this worker's job is not over."""
        return self._thread.is_alive() and any(seat.worker is worker and not seat.is_over for seat in self._seats)

    def call(self, what: Callable[[], None]) -> None:
        """Have the loop call this soon. From any thread."""
        self._calls.append(what)
        try:
            self._waker.send(b"!")
        except OSError:  # full, so it will wake; or closed, so nothing matters any more
            return

    # What connections take for their poller.

    def add(self, fd: int) -> None:
        """See `Files`; `watch` says for whom."""
        self._poller.add(fd)

    def watch_write(self, fd: int, wanted: bool) -> None:
        """See `Files`."""
        self._poller.watch_write(fd, wanted)

    def remove(self, fd: int) -> None:
        """See `Files`."""
        self._channels.pop(fd, None)
        self._poller.remove(fd)

    def watch(self, channel: Channel) -> None:
        """A connection was added, and is to be told."""
        self._channels[channel.fd] = channel.on_ready

    def close(self) -> None:
        """End it, whatever it does. Idempotent."""
        self._is_over = True
        if self._thread.is_alive():
            self.call(lambda: None)
            self._thread.join(_CLOSE_WITHIN_S)
        if self._is_open and not self._thread.is_alive():
            self._poller.close()
            self._wake.close()
            self._waker.close()

    def _live(self) -> None:
        try:
            self._run()
        except Exception as error:  # noqa: BLE001 - the last stop: said in one line by those who watch the workers
            for seat in self._seats:
                if not seat.is_over:
                    seat.is_over = True
                    seat.watched.__exit__(type(error), error, error.__traceback__)

    def _run(self) -> None:
        now, wait, channels, calls = self._now, self._poller.wait, self._channels, self._calls
        nobody: Callable[[int], None] = self._wakened
        next_ns, is_fine, at_ns, add_turn = now(), False, now(), self.turns.add
        while not self._is_over:
            ready = wait(next_ns - at_ns, is_fine)
            woken_ns = now()
            for fd, events in ready:
                channels.get(fd, nobody)(events)
            if calls:
                while calls:
                    calls.popleft()()
                next_ns = 0
            at_ns = now()
            if is_fine or at_ns >= next_ns:
                next_ns, is_fine = self._tend(at_ns)
                at_ns = now()
            add_turn(pack_turn(at_ns, at_ns - woken_ns))

    def _tend(self, at_ns: int) -> tuple[int, bool]:
        """What is not of a single connection. Returns when to do so again, and whether that has to be exact: in that
        case, also after anything has happened, because it may be due earlier then."""
        is_fine = False
        next_ns = at_ns + _NAP_NS
        for seat in self._seats:
            worker, span = seat.worker, seat.job.worker.span
            if not worker.has_begun:
                if at_ns < (begin_ns := min(span.begin_ns, span.end_ns)):
                    next_ns, is_fine = min(next_ns, begin_ns), True
                    continue
                worker.begin()
            elif worker.due_ns <= at_ns:
                worker.pump()
            if worker.is_timed:
                next_ns, is_fine = min(next_ns, worker.due_ns), True
        if at_ns >= self._check_ns:
            self._check(at_ns)
            self._check_ns = at_ns + _NAP_NS
        return next_ns, is_fine

    def _check(self, at_ns: int) -> None:
        for seat in self._seats:
            if not seat.is_over:
                seat.worker.check(at_ns)
                if seat.worker.is_done and (not seat.job.stays or at_ns >= seat.job.worker.span.end_ns):
                    seat.end()

    def _wakened(self, _: int) -> None:
        try:
            self._wake.recv(4096)
        except BlockingIOError:
            return
