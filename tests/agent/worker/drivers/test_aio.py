"""Cancellation in the asyncio driver. test_client.py has what both drivers share."""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from collections.abc import Callable
from typing import Any

import pytest
import redis

from agent.worker.drivers.aio import run_asyncio_worker
from common.plan.schema import Driver
from common.units import NS_PER_S
from tests.support.loops import OthersTurn
from tests.support.stage import MS, T0_NS, Stage


def cancelled(*_: object) -> None:
    raise CancelledError


async def cancelled_in_a_task(*_: object) -> None:
    raise CancelledError


def task(**settings: Any) -> Stage:
    return Stage(driver=Driver.ASYNCIO, **settings)


@pytest.mark.parametrize("batch", [1, 3])
def test_an_operation_that_is_cancelled_in_flight_counts_once_as_cut_short(batch: int) -> None:
    due = [T0_NS + at * MS for at in range(9)]
    stage = task(end_ns=T0_NS + NS_PER_S, batch=batch, due=due, takes_ns=NS_PER_S, answers=[CancelledError()])
    stage.cancellation.cancel()
    rows = stage.run()
    assert [row.kind for row in rows] == [stage.kind(0, False, "CutShort")] * batch
    assert stage.record.issued == batch
    assert stage.record.issued + stage.record.unsent == 9


@pytest.mark.parametrize("batch", [1, 3])
def test_a_task_begins_nothing_after_a_cut_even_if_the_span_has_no_end(batch: int) -> None:
    stage = task(batch=batch, answers=[CancelledError()])
    stage.cancellation.cancel()
    assert len(stage.run()) == stage.record.issued == batch


@pytest.mark.parametrize("batch", [1, 3])
def test_a_task_that_is_cancelled_at_checkout_counts_what_it_did_not_send(batch: int) -> None:
    due = [T0_NS + at * MS for at in range(9)]
    stage = task(end_ns=T0_NS + NS_PER_S, batch=batch, due=due)
    stage.pool.before = cancelled
    assert stage.run() == []
    assert (stage.record.issued, stage.record.unsent) == (0, 9)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_task_that_is_cancelled_between_operations_counts_what_it_did_not_send(
    monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    due = [T0_NS + 500 * MS + at * MS for at in range(9)]
    stage = task(end_ns=T0_NS + NS_PER_S, batch=batch, due=due)
    monkeypatch.setattr(stage, "sleep_in_a_task", cancelled_in_a_task)
    assert stage.run() == []
    assert (stage.record.issued, stage.record.unsent) == (0, 9)


def test_a_task_that_is_cancelled_before_the_start_counts_what_it_did_not_send(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = task(end_ns=T0_NS + NS_PER_S, due=[T0_NS + at * MS for at in range(9)])
    stage.now_ns = T0_NS - NS_PER_S
    monkeypatch.setattr(stage, "sleep_in_a_task", cancelled_in_a_task)
    assert stage.run() == []
    assert (stage.record.issued, stage.record.unsent) == (0, 9)


def test_a_free_instance_is_taken_without_a_coroutine_and_without_a_wait() -> None:
    stage = task(quota=2)

    def take() -> Any:
        stage.pool.lent += 1
        return stage.client

    taking: Callable[[], Any] = take
    stage.pool.take = taking  # type: ignore[union-attr]
    assert [row.wait_ns for row in stage.run()] == [0, 0]
    assert stage.pool.checkouts == 0


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("due", [None, [T0_NS] * 900])
def test_a_task_whose_operations_fail_at_once_does_not_starve_other_tasks(
    monkeypatch: pytest.MonkeyPatch, batch: int, due: list[int] | None
) -> None:
    failing = task(quota=900, batch=batch, due=due, takes_ns=0, answers=[redis.ConnectionError("no connection free")])
    working = task(quota=30)
    failed_meanwhile: list[int] = []

    async def a_turn_of_the_loop(seconds: float) -> None:
        failing.sleep(seconds)
        await OthersTurn()

    async def replies_later(*_: object) -> bytes:
        await OthersTurn()
        return b"value"

    async def work() -> None:
        await run_asyncio_worker(working.worker)
        failed_meanwhile.append(len(failing.calls))

    async def both() -> None:
        await asyncio.gather(run_asyncio_worker(failing.worker), work())

    monkeypatch.setattr("agent.worker.drivers.aio.monotonic_ns", lambda: failing.now_ns)
    monkeypatch.setattr("agent.worker.drivers.aio.sleep", a_turn_of_the_loop)
    monkeypatch.setattr(working.client, "execute", replies_later)
    asyncio.run(both())
    assert (working.record.issued, failing.record.issued) == (30, 900)
    assert failed_meanwhile[0] < 100
