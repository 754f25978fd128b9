from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agent.worker.drivers.base import Job
from agent.worker.drivers.wire.connection import BatchConnection
from agent.worker.drivers.wire.event_loop import WireLoop
from agent.worker.drivers.wire.poller import READ
from agent.worker.drivers.wire.worker import WireWorker
from agent.worker.pacing.pacer import NEVER_NS, Span
from common.clock import monotonic_ns
from tests.support.runs import wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")

MS = 1_000_000


class FakeWorker:
    """A worker that only records its calls, their times and their thread."""

    def __init__(self, *, is_done: bool = False) -> None:
        self.has_begun = self.is_timed = False
        self.is_done = is_done
        self.due_ns = NEVER_NS
        self.began_ns = 0
        self.pumped_ns: list[int] = []
        self.checks = 0
        self.on_check: Callable[[], None] = lambda: None
        self.thread: threading.Thread | None = None

    def begin(self) -> None:
        self.has_begun = True
        self.began_ns = monotonic_ns()
        self.thread = threading.current_thread()

    def pump(self) -> None:
        self.due_ns = NEVER_NS
        self.pumped_ns.append(monotonic_ns())

    def check(self, _: int) -> None:
        self.checks += 1
        self.on_check()


class Watch:
    """The context in which a worker runs. ended: one entry per end, the error's text or ""."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    def __call__(self) -> AbstractContextManager[None]:
        @contextmanager
        def watched() -> Iterator[None]:
            try:
                yield
            except Exception as error:  # noqa: BLE001 - that is what a watch is for
                self.ended.append(str(error))
            else:
                self.ended.append("")

        return watched()


def job_of(watch: Watch, *, in_ns: int = 0, end_ns: int = NEVER_NS, stays: bool = False) -> Job:
    now_ns = monotonic_ns()
    span = Span(now_ns + in_ns, end_ns if end_ns == NEVER_NS else now_ns + end_ns)
    return Job("a worker", cast(Any, SimpleNamespace(span=span)), stays, watch())


def start(loop: WireLoop, worker: FakeWorker, job: Job) -> WireWorker:
    started = cast(WireWorker, worker)
    loop.start(started, job)
    return started


@pytest.fixture
def loop(_leak_check_first: None) -> Iterator[WireLoop]:
    made = WireLoop()
    made.open()
    made.open()
    yield made
    made.close()
    made.close()


def test_a_loop_that_was_never_started_has_nothing_to_close(loop: WireLoop) -> None:
    other = WireLoop()
    other.close()
    assert not loop.is_working(cast(WireWorker, FakeWorker()))


def test_calls_from_other_threads_run_on_the_loop_thread_in_order(loop: WireLoop) -> None:
    worker, done = FakeWorker(), []
    start(loop, worker, job_of(Watch()))
    for number in range(5000):
        loop.call(lambda number=number: done.append((number, threading.current_thread())))  # type: ignore[misc]
    wait_until(lambda: len(done) == 5000, "all is done")
    assert [number for number, _ in done] == list(range(5000))
    assert {thread for _, thread in done} == {worker.thread}


def test_a_call_before_the_start_runs_after_it(loop: WireLoop) -> None:
    done = threading.Event()
    loop.call(done.set)
    assert not done.is_set()
    start(loop, FakeWorker(), job_of(Watch()))
    assert done.wait(10)


def test_a_worker_begins_with_its_span(loop: WireLoop) -> None:
    worker = FakeWorker()
    job = job_of(Watch(), in_ns=30 * MS)
    start(loop, worker, job)
    wait_until(lambda: worker.has_begun, "it begins")
    assert worker.began_ns >= job.context.span.t0_ns


def test_a_worker_that_waits_for_its_start_notices_an_earlier_end(loop: WireLoop) -> None:
    worker, watch = FakeWorker(is_done=True), Watch()
    job = job_of(watch, in_ns=3600 * 1000 * MS)
    started = start(loop, worker, job)
    job.context.span.end_at(monotonic_ns())
    wait_until(lambda: not loop.is_working(started), "it ends")
    assert watch.ended == [""]


def test_a_worker_is_pumped_at_its_due_time(loop: WireLoop) -> None:
    worker = FakeWorker()
    worker.is_timed = True
    due_ns = worker.due_ns = monotonic_ns() + 5 * MS
    start(loop, worker, job_of(Watch()))
    wait_until(lambda: worker.pumped_ns, "it is pumped")
    assert worker.pumped_ns[0] >= due_ns


@pytest.mark.parametrize("stays", [False, True])
def test_a_worker_ends_with_its_work_or_stays_to_the_end_of_the_span(loop: WireLoop, stays: bool) -> None:
    worker, watch = FakeWorker(is_done=True), Watch()
    job = job_of(watch, end_ns=150 * MS, stays=stays)
    started = start(loop, worker, job)
    wait_until(lambda: not loop.is_working(started), "it ends")
    assert (monotonic_ns() >= job.context.span.end_ns) or not stays
    assert watch.ended == [""]


def test_an_error_of_the_loop_is_reported_for_each_worker(loop: WireLoop) -> None:
    watches = [Watch(), Watch(), Watch()]
    workers = [FakeWorker(is_done=True), FakeWorker(), FakeWorker()]
    started = [start(loop, each, job_of(watch)) for each, watch in zip(workers, watches, strict=True)]
    wait_until(lambda: not loop.is_working(started[0]), "the first ends")

    def crash() -> None:
        raise RuntimeError("broken")

    loop.call(crash)
    wait_until(lambda: not any(loop.is_working(each) for each in started), "all end")
    wait_until(lambda: all(watch.ended for watch in watches), "all errors are reported")
    assert [watch.ended for watch in watches] == [[""], ["broken"], ["broken"]]
    loop.call(crash)


def test_an_error_of_a_worker_is_reported(loop: WireLoop) -> None:
    def crash() -> None:
        raise RuntimeError("broken")

    worker, watch = FakeWorker(), Watch()
    worker.on_check = crash
    started = start(loop, worker, job_of(watch))
    wait_until(lambda: watch.ended, "the error is reported")
    assert watch.ended == ["broken"]
    wait_until(lambda: not loop.is_working(started), "it works no more")


def test_a_connection_gets_its_events_until_it_is_removed(loop: WireLoop) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        heard: list[int] = []
        connection = SimpleNamespace(fd=ours.fileno(), on_ready=heard.append)

        def watch() -> None:
            loop.add(ours.fileno())
            loop.watch(cast(BatchConnection, connection))

        start(loop, FakeWorker(), job_of(Watch()))
        loop.call(watch)
        theirs.send(b"x")
        wait_until(lambda: heard == [READ], "the event")
        removed = threading.Event()
        loop.call(lambda: (loop.remove(ours.fileno()), removed.set())[0])  # type: ignore[func-returns-value]
        assert removed.wait(10)
        theirs.send(b"x")
        done = threading.Event()
        loop.call(done.set)
        assert done.wait(10)
        assert heard == [READ]


def test_each_turn_is_recorded_with_its_duration(loop: WireLoop) -> None:
    start(loop, FakeWorker(), job_of(Watch()))
    done = threading.Event()
    loop.call(done.set)
    assert done.wait(10)
    wait_until(lambda: len(loop.turns.take()) > 0, "a turn is noted")


def test_a_closed_event_loop_does_nothing(loop: WireLoop) -> None:
    worker, watch = FakeWorker(), Watch()
    started = start(loop, worker, job_of(watch))
    wait_until(lambda: worker.has_begun, "it begins")
    loop.close()
    assert not loop.is_working(started)
    loop.call(pytest.fail)
