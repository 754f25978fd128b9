from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import repeat
from typing import Any

import pytest

from agent.worker.drivers.aio import TaskContext, TaskPoolRunner, precise_loop
from agent.worker.drivers.base import Job, WorkerContext
from agent.worker.metrics.outcomes import Outcomes
from agent.worker.metrics.process_usage import LoopRecord
from agent.worker.metrics.rows import ThreadRecord
from agent.worker.pacing.pacer import NEVER_NS, Pacer, Span
from agent.worker.pools.prewarm import prewarm
from agent.worker.workload.reply_effects import Operation
from common.cancellation import Cancellation
from common.clock import monotonic_ns
from common.plan.schema import Driver, Pools, Retry, Target
from common.redis_client import Failure
from common.units import Seconds
from tests.support.loops import OthersTurn
from tests.support.rows import named
from tests.support.runs import wait_until
from tests.support.servers import Server, SocketServer

pytestmark = pytest.mark.usefixtures("no_leaks")

NOWHERE = Target(url="redis://127.0.0.1:1")
HOUR = Seconds(3600)
GET: Operation = (0, ("GET", b"key"), 22, None)


def quiet(*_: int) -> None:
    """A progress callback that does nothing."""


def plain_loop() -> asyncio.AbstractEventLoop:
    """An event loop without a time record."""
    return precise_loop(LoopRecord())


class Hosted:
    """A runner and what its workers need. ended: number of workers that ended. what: the errors that they raised."""

    def __init__(self, target: Target, operation: Operation = GET, *, tasks: int = 1, **pools: Any) -> None:
        self.cancellation = Cancellation()
        self.host = TaskPoolRunner(target, Pools(driver=Driver.ASYNCIO, **pools), "pool 7", self.cancellation)
        self.span = Span(monotonic_ns(), NEVER_NS)
        self.outcomes = Outcomes()
        self.ended: list[Exception | None] = []
        self.records = [ThreadRecord() for _ in range(tasks)]
        self.jobs = [self._job(record, operation) for record in self.records]

    def _job(self, record: ThreadRecord, operation: Operation) -> Job:
        worker: TaskContext = WorkerContext(
            span=self.span,
            pacer=Pacer(self.span, batch=1, quota=None, schedule=None),
            pool=self.host.pool,
            operations=repeat(operation),
            record=record,
            outcomes=self.outcomes,
            cancellation=self.cancellation,
            measures=[lambda _: 5],
            counters=[None],
            batch=1,
            transaction=False,
        )
        return Job("task", worker, False, self._watched())

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the test reads it
            self.ended.append(error)
        else:
            self.ended.append(None)

    def cut(self) -> None:
        self.span.end_at(monotonic_ns())
        self.cancellation.cancel()
        self.host.cut()

    @property
    def kinds(self) -> list[int]:
        return [row.kind for record in self.records for row in named(record.take())]

    @property
    def is_cut_short(self) -> int:
        return self.outcomes.number(Failure(False, "CutShort", 0))


def test_a_runner_that_was_never_opened_has_nothing_to_close() -> None:
    host = Hosted(NOWHERE).host
    host.cut()
    host.close()
    assert not host.is_alive


def test_a_runner_has_one_thread_which_ends_when_it_is_closed(valkey: Server) -> None:
    hosted = Hosted(Target(url=valkey.url), tasks=3, client_instances_per_pool=2)
    assert len(hosted.host.open(quiet)) == 2
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "pool 7"] == [True]
    hosted.host.start(hosted.jobs)
    wait_until(lambda: all(record.issued for record in hosted.records), "all tasks work")
    assert hosted.host.is_alive
    hosted.span.end_at(monotonic_ns())
    wait_until(lambda: not hosted.host.is_alive, "the tasks end")
    assert hosted.ended == [None] * 3
    hosted.host.close()
    hosted.host.close()
    hosted.host.cut()
    assert not [thread for thread in threading.enumerate() if thread.name == "pool 7"]


def test_a_cut_ends_tasks_that_wait_for_a_reply_or_for_a_client(valkey: Server) -> None:
    asking = valkey.client()
    hosted = Hosted(Target(url=valkey.url), (0, ("BLPOP", b"nothing", b"0"), 30, None), tasks=3)
    hosted.host.open(quiet)
    hosted.host.start(hosted.jobs)
    wait_until(lambda: asking.info("clients")["blocked_clients"] == 1, "a task waits for its reply")
    began_ns = monotonic_ns()
    hosted.cut()
    hosted.cut()
    wait_until(lambda: not hosted.host.is_alive, "the tasks end")
    assert monotonic_ns() - began_ns < 2_000_000_000
    assert hosted.kinds == [hosted.is_cut_short]
    assert sum(record.issued for record in hosted.records) == 1
    hosted.host.close()


@pytest.mark.parametrize("retries", [0, 10**6])
def test_a_cut_ends_a_connect_and_a_long_backoff(silent_server: SocketServer, refusing_url: str, retries: int) -> None:
    # Without retries the handshake waits for a reply; with retries a refused connect is followed by a backoff.
    url = refusing_url if retries else silent_server.url
    hosted = Hosted(Target(url=url, retry=Retry(retries=retries, base_s=HOUR, cap_s=HOUR)))
    hosted.host.open(quiet)
    hosted.host.start(hosted.jobs)
    wait_until(lambda: hosted.records[0].issued, "it has begun")
    hosted.cut()
    wait_until(lambda: not hosted.host.is_alive, "the task ends", 3.0)
    assert hosted.kinds == [hosted.is_cut_short]
    hosted.host.close()


def test_a_cancellation_that_a_task_swallows_is_repeated(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[str] = []

    async def stubborn(_: TaskContext) -> None:
        while len(lost) < 3:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                lost.append("again")

    monkeypatch.setattr("agent.worker.drivers.aio.run_asyncio_worker", stubborn)
    hosted = Hosted(Target(url=valkey.url))
    hosted.host.open(quiet)
    hosted.host.start(hosted.jobs)
    hosted.cut()
    wait_until(lambda: not hosted.host.is_alive, "the task ends", 3.0)
    hosted.host.close()


def test_closing_ends_running_tasks_and_connection_attempts(
    silent_server: SocketServer,
) -> None:
    hosted = Hosted(Target(url=silent_server.url))
    [opens] = hosted.host.open(quiet)
    hosted.host.start(hosted.jobs)
    futures = opens.open_all(None)  # type: ignore[arg-type]
    hosted.cancellation.cancel()
    hosted.host.close()
    assert not hosted.host.is_alive
    assert all(future.done() for future in futures)


def test_prewarming_opens_every_connection_and_returns_it_to_the_pool(valkey: Server) -> None:
    asking = valkey.client()
    asking.ping()
    hosted = Hosted(Target(url=valkey.url), client_instances_per_pool=3, max_connections=7)
    progress: list[tuple[int, int]] = []
    instances = hosted.host.open(quiet)
    opened = prewarm(instances, Target(url=valkey.url), hosted.cancellation, lambda *args: progress.append(args))
    assert (opened, progress[-1]) == (21, (21, 21))
    assert len(asking.client_list()) == 1 + 21
    hosted.host.start(hosted.jobs)
    wait_until(lambda: hosted.records[0].issued > 10, "a task works")
    assert len(asking.client_list()) == 1 + 21
    hosted.cut()
    hosted.host.close()
    wait_until(lambda: len(asking.client_list()) == 1, "no connection is left")
    kinds = [event[1].value for log in hosted.host.logs for event in log.take()]
    assert (kinds.count("opened"), kinds.count("closed"), kinds.count("dropped")) == (21, 21, 0)


def test_an_event_loop_that_cannot_be_created_raises_in_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: LoopRecord) -> asyncio.AbstractEventLoop:
        raise OSError("too many files")

    monkeypatch.setattr("agent.worker.drivers.aio.precise_loop", fail)
    host = Hosted(NOWHERE).host
    with pytest.raises(OSError, match="too many files"):
        host.open(quiet)
    host.close()


def test_the_loop_wakes_to_the_microsecond_and_not_to_the_millisecond(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waited_s: list[float] = []

    def select_at_once(readers: list[int], *_: Any) -> None:
        assert len(readers) == 1
        waited_s.append(_[-1])

    async def wait(seconds: float) -> None:
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        loop.call_at(loop.time() + seconds, woken.set_result, None)
        await woken

    with asyncio.Runner(loop_factory=plain_loop) as runner:
        runner.run(wait(0))
        monkeypatch.setattr("agent.worker.drivers.aio.select.select", select_at_once)
        runner.run(wait(0.0011))
    # select returned at once each time, so the loop called it again for the rest of the wait.
    assert 0.0001 < waited_s[0] <= 0.0011
    assert waited_s == sorted(waited_s, reverse=True)
    assert len(waited_s) > 1


def test_a_readable_socket_ends_a_short_wait() -> None:
    async def read() -> float:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            timer = loop.call_later(0.09, lambda: None)
            began = loop.time()
            reading = asyncio.create_task(loop.sock_recv(ours, 1))
            await OthersTurn()
            sender = threading.Timer(0.01, theirs.send, [b"x"])
            sender.start()
            assert await reading == b"x"
            sender.join()
            timer.cancel()
            return loop.time() - began

    with asyncio.Runner(loop_factory=plain_loop) as runner:
        assert min(runner.run(read()) for _ in range(3)) < 0.08


def test_the_time_of_a_loop_turn_is_the_time_of_its_callbacks_without_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    passed_ns = [1_000]

    def work(ns: int) -> None:
        passed_ns[0] += ns

    def wait(_: Any, timeout: float | None = None) -> list[Any]:
        assert timeout == 0
        work(500_000)
        return []

    monkeypatch.setattr("agent.worker.drivers.aio.monotonic_ns", lambda: passed_ns[0])
    monkeypatch.setattr("agent.worker.drivers.aio._wait", wait)
    turns = LoopRecord()
    with closing(precise_loop(turns)) as loop:
        loop.call_soon(work, 3_000)
        loop.call_soon(loop.call_soon, work, 4_000)
        loop.call_soon(loop.call_soon, loop.call_soon, loop.stop)
        loop.run_forever()
    # A loop begins with a wait, and no wait follows its last turn.
    assert turns.take().tolist() == [[1_000, 0], [504_000, 3_000], [1_008_000, 4_000]]


def test_a_runner_reports_the_turns_of_its_loop(valkey: Server) -> None:
    hosted = Hosted(Target(url=valkey.url), tasks=2)
    [record] = hosted.host.loops
    hosted.host.open(quiet)
    record.take()
    hosted.host.start(hosted.jobs)
    wait_until(lambda: hosted.records[1].issued > 10, "a task works")
    hosted.cut()
    hosted.host.close()
    turns = record.take()
    assert len(turns) > 10
    ended_ns, busy_ns = turns.T
    assert (busy_ns >= 0).all()
    # Turns do not overlap.
    assert (ended_ns[1:] - busy_ns[1:] >= ended_ns[:-1]).all()
