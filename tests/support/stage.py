"""A worker of the client or asyncio driver, with a clock and a client that the test controls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import pytest

from agent.worker.drivers.aio import run_asyncio_worker
from agent.worker.drivers.base import WorkerContext
from agent.worker.drivers.client import run_client_worker
from agent.worker.metrics.connection_events import EventLog
from agent.worker.metrics.hits import hit_counter
from agent.worker.metrics.outcomes import Outcomes
from agent.worker.metrics.rows import ThreadRecord
from agent.worker.pacing.pacer import NEVER_NS, Pacer, Span
from agent.worker.workload.reply_effects import Operation
from common.cancellation import Cancellation
from common.commands import COMMANDS
from common.plan.schema import Driver
from common.redis_client import Failure
from common.units import NS_PER_S
from tests.support.rows import Row, named

T0_NS = 10**15
MS = 1_000_000
GET: Operation = (0, ("GET", b"key"), 22, None)
SET: Operation = (1, ("SET", b"key", b"value"), 33, None)
MEASURES = [lambda reply: 100 + len(reply), lambda _: 5]
COUNTERS = [hit_counter(COMMANDS["GET"].template), None]

Reply = Any


class Stage:
    """A worker whose clock moves only by the time that calls take, and whose client gives the test's answers.

    answers: the result or error of each call, the last one repeated. takes_ns: the time of a call.
    """

    def __init__(
        self,
        *,
        end_ns: int = NEVER_NS,
        quota: int | None = None,
        due: list[int] | None = None,
        batch: int = 1,
        transaction: bool = False,
        takes_ns: int = 10 * MS,
        answers: list[Reply] | None = None,
        operations: Iterator[Operation] | None = None,
        driver: Driver = Driver.CLIENT,
    ) -> None:
        self.is_async = driver is Driver.ASYNCIO
        self.now_ns = T0_NS
        self.takes_ns = takes_ns
        self.answers = answers or [b"value"]
        self.calls: list[list[tuple[Any, ...]]] = []
        self.checkout_takes_ns = 0
        self.record = ThreadRecord()
        self.outcomes = Outcomes()
        self.cancellation = Cancellation()
        self.client = FakeAsyncClient(self) if self.is_async else FakeClient(self)
        self.pool = FakeAsyncPool(self) if self.is_async else FakePool(self)
        span = Span(T0_NS, end_ns, lambda: self.now_ns, self.sleep)
        schedule = None if due is None else iter([*due, *repeat(NEVER_NS, 1000)])
        self.worker: WorkerContext[Any] = WorkerContext(
            span=span,
            pacer=Pacer(span, batch=batch, quota=quota, schedule=schedule),
            pool=self.pool,
            operations=operations or repeat(GET),
            record=self.record,
            outcomes=self.outcomes,
            cancellation=self.cancellation,
            measures=MEASURES,
            counters=COUNTERS,
            batch=batch,
            transaction=transaction,
        )

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * NS_PER_S)

    async def sleep_in_a_task(self, seconds: float) -> None:
        self.sleep(seconds)

    def answer(self, commands: list[tuple[Any, ...]]) -> Reply:
        self.calls.append(commands)
        assert len(self.calls) < 1000, "it never ends"
        self.now_ns += self.takes_ns
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = answer()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def kind(self, row: int, replied: bool, name: str) -> int:
        return row + len(MEASURES) * self.outcomes.number(Failure(replied, name, 0))

    def run(self) -> list[Row]:
        """Run to the end. Returns the recorded rows; times from T0."""
        with pytest.MonkeyPatch.context() as patch:
            for module in ("client", "aio", "result_rows"):
                patch.setattr(f"agent.worker.drivers.{module}.monotonic_ns", lambda: self.now_ns)
            patch.setattr("agent.worker.drivers.aio.sleep", self.sleep_in_a_task)
            if self.is_async:
                asyncio.run(run_asyncio_worker(self.worker))
            else:
                run_client_worker(self.worker)
        assert self.pool.lent == 0
        rows = named(self.record.take(), T0_NS)
        assert all(row.count == 1 for row in rows)
        return rows


class FakeClient:
    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.client = self
        self.events = EventLog()

    def execute(self, *arguments: Any) -> Reply:
        return self._stage.answer([arguments])

    def pipeline(self, transaction: bool) -> Any:
        assert transaction is self._stage.worker.transaction
        return FakePipeline(self._stage)


class FakePipeline:
    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._commands: list[tuple[Any, ...]] = []

    def execute_command(self, *arguments: Any) -> None:
        self._commands.append(arguments)

    def execute(self, raise_on_error: bool) -> Reply:
        assert not raise_on_error
        return self._stage.answer(self._commands)


class FakeAsyncClient(FakeClient):
    async def execute(self, *arguments: Any) -> Reply:
        return self._stage.answer([arguments])

    def pipeline(self, transaction: bool) -> Any:
        assert transaction is self._stage.worker.transaction
        return FakeAsyncPipeline(self._stage)


class FakeAsyncPipeline(FakePipeline):
    async def execute(self, raise_on_error: bool) -> Reply:
        return super().execute(raise_on_error)


class FakePool:
    """Lends one client. Each checkout takes `checkout_takes_ns` and first calls `before`."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.lent = 0
        self.checkouts = 0
        self.before: Callable[[int], None] = lambda _: None

    def checkout(self) -> tuple[Any, int]:
        self.checkouts += 1
        assert self.checkouts < 1000, "it never ends"
        self._stage.now_ns += self._stage.checkout_takes_ns
        self.before(self.checkouts)
        self.lent += 1
        return self._stage.client, self._stage.checkout_takes_ns

    def give_back(self, instance: Any) -> None:
        assert instance is self._stage.client
        self.lent -= 1


class FakeAsyncPool(FakePool):
    """Never has a free client at once: every checkout waits."""

    def take(self) -> None: ...

    async def checkout(self) -> tuple[Any, int]:
        return super().checkout()
