"""The client and the asyncio driver, whose workers check out client instances: each test runs with both.

The wire driver has no checkout: see tests/agent/worker/drivers/wire/test_worker.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import redis

from agent.worker.metrics.hits import HIT
from agent.worker.metrics.rows import NONE, WAIT_ONLY
from agent.worker.metrics.wire_sizes import MULTI_EXEC_REQUEST_BYTES, QUEUED_BYTES, transaction_reply_bytes
from agent.worker.pacing.pacer import LEG_BY_TIME, NO_DUE_TIME, Turn
from agent.worker.pools.instance_queue import CheckoutTimeout
from common.cancellation import CutShort
from common.plan.schema import Driver
from common.units import NS_PER_S
from tests.support import stage as on_stage
from tests.support.rows import Row, bin_rows
from tests.support.stage import GET, MS, SET, T0_NS

NEW: dict[str, Any] = {}


def Stage(**settings: Any) -> on_stage.Stage:
    return on_stage.Stage(**settings, **NEW)


@pytest.fixture(params=(Driver.CLIENT, Driver.ASYNCIO), ids=lambda driver: driver.value, autouse=True)
def _each_driver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NEW, "driver", request.param)


def test_a_row_has_the_times_and_the_bytes_of_its_operation() -> None:
    stage = Stage(quota=2, operations=iter([GET, SET]), answers=[b"value", True])
    stage.checkout_takes_ns = 3 * MS
    assert stage.run() == [
        Row(13 * MS, 0, 10 * MS, NONE, LEG_BY_TIME, 22, 105, 3 * MS, found=HIT),
        Row(26 * MS, 1, 10 * MS, NONE, LEG_BY_TIME, 33, 5, 3 * MS),
    ]
    assert stage.calls == [[("GET", b"key")], [("SET", b"key", b"value")]]
    assert (stage.record.issued, stage.record.unsent, stage.record.transactions) == (2, 0, 0)


def test_no_operation_begins_before_the_start() -> None:
    stage = Stage(quota=1)
    stage.now_ns = T0_NS - 3600 * NS_PER_S
    assert stage.run() == [Row(10 * MS, 0, 10 * MS, NONE, LEG_BY_TIME, 22, 105, 0, found=HIT)]


def test_in_a_closed_loop_no_operation_begins_after_the_end_and_the_last_one_finishes() -> None:
    stage = Stage(end_ns=T0_NS + 25 * MS)
    assert [row.ended_ns for row in stage.run()] == [10 * MS, 20 * MS, 30 * MS]
    assert (stage.record.issued, stage.record.unsent) == (3, 0)
    stage = Stage(end_ns=T0_NS + 20 * MS)
    assert [row.ended_ns for row in stage.run()] == [10 * MS, 20 * MS]


def test_an_operation_is_sent_when_it_is_due_and_its_lag_counts_from_then() -> None:
    due = [T0_NS + at for at in (0, 50 * MS, 55 * MS, 60 * MS)]
    rows = Stage(end_ns=T0_NS + NS_PER_S, due=due).run()
    assert [(row.ended_ns // MS, row.service_ns // MS, row.lag_ns // MS) for row in rows] == [
        (10, 10, 0),
        (60, 10, 0),
        (70, 10, 5),
        (80, 10, 10),
    ]


def test_operations_that_a_slow_target_delays_beyond_the_end_count_as_unsent() -> None:
    due = [T0_NS + at * 10 * MS for at in range(10)]
    stage = Stage(end_ns=T0_NS + 100 * MS, due=due, takes_ns=60 * MS)
    assert len(stage.run()) == stage.record.issued == 2
    assert stage.record.unsent == 8


def test_a_long_wait_for_a_client_is_recorded_even_without_an_operation() -> None:
    stage = Stage(end_ns=T0_NS + 10 * MS)
    stage.checkout_takes_ns = 15 * MS
    assert stage.run() == [Row(15 * MS, WAIT_ONLY, 0, NONE, LEG_BY_TIME, 0, 0, 15 * MS)]
    assert stage.record.issued == 0


def test_without_a_wait_and_an_operation_there_is_no_row() -> None:
    assert Stage(end_ns=T0_NS).run() == []


@pytest.mark.parametrize(
    ("error", "replied", "name", "bytes_in"),
    [
        (redis.ResponseError("WRONGTYPE of value"), True, "WRONGTYPE", len("-WRONGTYPE of value\r\n")),
        (redis.ConnectionError("gone"), False, "ConnectionError", 0),
        (redis.TimeoutError("late"), False, "TimeoutError", 0),
        (ValueError("odd"), False, "ValueError", 0),
    ],
)
def test_a_failed_operation_is_recorded_and_the_next_one_follows(
    error: Exception, replied: bool, name: str, bytes_in: int
) -> None:
    stage = Stage(quota=3, answers=[b"value", error, b"value"])
    rows = stage.run()
    assert rows[1] == Row(20 * MS, stage.kind(0, replied, name), 10 * MS, bytes_out=22, bytes_in=bytes_in)
    assert [rows[0].kind, rows[2].kind] == [0, 0]
    assert stage.record.issued == 3


def test_a_failure_after_cancellation_is_cut_short_but_an_error_reply_stays_an_error() -> None:
    for error, replied, name in (
        (redis.ConnectionError("we shut it down"), False, "CutShort"),
        (redis.ResponseError("ERR no"), True, "ERR"),
    ):
        stage = Stage(quota=1, answers=[error])
        stage.cancellation.cancel()
        assert [row.kind for row in stage.run()] == [stage.kind(0, replied, name)]


def timeouts(stage: on_stage.Stage, waited_ns: int) -> Callable[[int], None]:
    def give_up(_: int) -> None:
        raise CheckoutTimeout(waited_ns)

    stage.checkout_takes_ns = waited_ns
    return give_up


@pytest.mark.parametrize("batch", [1, 2])
def test_operations_without_a_client_fail_and_have_no_bytes(batch: int) -> None:
    stage = Stage(quota=2 * batch, batch=batch)
    stage.pool.before = timeouts(stage, 20 * MS)
    kind = stage.kind(0, False, "CheckoutTimeout")
    first = Row(20 * MS, kind, 20 * MS, NONE, LEG_BY_TIME, 0, 0, 20 * MS)
    others = [Row(20 * MS, kind, 20 * MS, NONE, LEG_BY_TIME, 0, 0, NONE)] * (batch - 1)
    rows = stage.run()
    assert rows[:batch] == [first, *others]
    assert len(rows) == stage.record.issued == 2 * batch
    assert stage.calls == []


@pytest.mark.parametrize("batch", [1, 2])
def test_no_worker_asks_for_a_client_after_the_end(batch: int) -> None:
    stage = Stage(end_ns=T0_NS + 50 * MS, batch=batch)
    stage.pool.before = timeouts(stage, 20 * MS)
    assert len(stage.run()) == stage.record.issued == 3 * batch
    assert stage.pool.checkouts == 3


@pytest.mark.parametrize("batch", [1, 2])
def test_operations_that_are_due_after_the_last_checkout_are_unsent(batch: int) -> None:
    due = [T0_NS + at * 5 * MS for at in range(10)]
    stage = Stage(end_ns=T0_NS + 50 * MS, batch=batch, due=due)
    stage.pool.before = timeouts(stage, 30 * MS)
    stage.run()
    assert stage.record.issued == 2 * batch
    assert stage.record.issued + stage.record.unsent == 10


@pytest.mark.parametrize("batch", [1, 3])
def test_a_worker_that_the_end_wakes_counts_what_it_did_not_send(batch: int) -> None:
    def cut(checkout: int) -> None:
        if checkout == 2:
            raise CutShort("the run is over")

    due = [T0_NS + at * MS for at in range(9)]
    stage = Stage(
        end_ns=T0_NS + NS_PER_S, batch=batch, due=due, answers=[[b""] * batch if batch > 1 else b""], takes_ns=NS_PER_S
    )
    stage.pool.before = cut
    assert len(stage.run()) == stage.record.issued == batch
    assert stage.record.unsent == 9 - batch


# Batches


def test_each_operation_of_a_pipeline_has_the_time_of_its_round_trip() -> None:
    stage = Stage(quota=5, batch=3, operations=iter([GET, SET, GET, SET, GET]), answers=[[b"a", True, None]])
    stage.answers = [[b"a", True, b"ccc"], [True, b""]]
    stage.checkout_takes_ns = 2 * MS
    assert stage.run() == [
        Row(12 * MS, 0, 10 * MS, NONE, LEG_BY_TIME, 22, 101, 2 * MS, found=HIT),
        Row(12 * MS, 1, 10 * MS, NONE, LEG_BY_TIME, 33, 5, NONE),
        Row(12 * MS, 0, 10 * MS, NONE, LEG_BY_TIME, 22, 103, NONE, found=HIT),
        Row(24 * MS, 1, 10 * MS, NONE, LEG_BY_TIME, 33, 5, 2 * MS),
        Row(24 * MS, 0, 10 * MS, NONE, LEG_BY_TIME, 22, 100, NONE, found=HIT),
    ]
    assert [len(call) for call in stage.calls] == [3, 2]
    assert (stage.record.issued, stage.record.transactions) == (5, 0)


def test_a_transaction_counts_multi_and_exec_once_and_queued_for_each_command() -> None:
    stage = Stage(quota=2, batch=2, transaction=True, operations=iter([GET, SET]), answers=[[b"a", True]])
    rows = stage.run()
    assert [row.bytes_out for row in rows] == [22 + MULTI_EXEC_REQUEST_BYTES, 33]
    assert [row.bytes_in for row in rows] == [101 + QUEUED_BYTES + transaction_reply_bytes(2), 5 + QUEUED_BYTES]
    assert (stage.record.issued, stage.record.transactions) == (2, 1)


def test_an_error_inside_exec_includes_a_queued_reply_and_an_aborted_transaction_does_not() -> None:
    wrong = redis.ResponseError("WRONGTYPE no")
    reply_bytes = len("-WRONGTYPE no\r\n")
    stage = Stage(quota=2, batch=2, transaction=True, answers=[[wrong, b"a"]])
    assert [row.bytes_in for row in stage.run()] == [
        reply_bytes + QUEUED_BYTES + transaction_reply_bytes(2),
        101 + QUEUED_BYTES,
    ]
    stage = Stage(quota=2, batch=2, transaction=True, answers=[wrong])
    assert [row.bytes_in for row in stage.run()] == [reply_bytes, reply_bytes]


def test_a_transaction_of_one_command_is_a_transaction() -> None:
    stage = Stage(quota=2, transaction=True, answers=[[b"a"]])
    assert len(stage.run()) == 2
    assert stage.record.transactions == 2


def test_in_a_batch_an_error_belongs_to_its_own_operation() -> None:
    replies = [b"a", redis.ResponseError("WRONGTYPE no"), b"c"]
    stage = Stage(quota=3, batch=3, answers=[replies])
    assert [row.kind for row in stage.run()] == [0, stage.kind(0, True, "WRONGTYPE"), 0]


def test_a_batch_without_replies_fails_as_a_whole() -> None:
    stage = Stage(quota=3, batch=3, operations=iter([GET, SET, GET]), answers=[redis.ConnectionError("gone")])
    rows = stage.run()
    assert [row.kind for row in rows] == [stage.kind(row, False, "ConnectionError") for row in (0, 1, 0)]
    assert [row.bytes_in for row in rows] == [0, 0, 0]


def test_a_batch_is_sent_with_its_last_operation_and_each_lag_counts_from_its_own_due_time() -> None:
    due = [T0_NS + at * MS for at in (0, 10, 20, 30)]
    stage = Stage(end_ns=T0_NS + NS_PER_S, due=due, batch=3, takes_ns=5 * MS, answers=[[b""] * 3, [b""]])
    assert [(row.ended_ns // MS, row.lag_ns // MS) for row in stage.run()] == [(25, 20), (25, 10), (25, 0), (35, 0)]


def test_a_batch_that_is_not_complete_at_the_end_is_not_sent() -> None:
    due = [T0_NS + at * 10 * MS for at in range(6)]
    stage = Stage(end_ns=T0_NS + 55 * MS, due=due, batch=3, takes_ns=50 * MS, answers=[[b""] * 3])
    assert len(stage.run()) == stage.record.issued == 3
    assert stage.record.unsent == 3


@pytest.mark.parametrize("batch", [1, 2])
def test_a_row_has_the_stage_of_its_turn(batch: int) -> None:
    in_third = Turn((NO_DUE_TIME,) * batch, 2)
    stage = Stage(batch=batch, answers=[b"value"] if batch == 1 else [[b"value"] * 2])
    stage.worker.pacer.turns = lambda: iter([in_third] * 3)  # type: ignore[method-assign]
    assert [(row.lag_ns, row.leg) for row in stage.run()] == [(NONE, 2)] * 3 * batch


@pytest.mark.parametrize("batch", [1, 2])
def test_an_operation_without_a_client_keeps_its_due_time(batch: int) -> None:
    due = [T0_NS + 5 * MS * number for number in range(2 * batch)]
    stage = Stage(quota=2 * batch, batch=batch, due=due)
    stage.pool.before = timeouts(stage, 20 * MS)
    rows = stage.run()
    assert [T0_NS + row.ended_ns - row.service_ns - row.lag_ns for row in rows] == due
    assert bin_rows(np.array(rows), ("GET", "SET"), stage.outcomes.names).send_lag.count == 0


@pytest.mark.parametrize("batch", [1, 3])
def test_in_a_closed_loop_operations_that_fail_at_once_begin_a_millisecond_apart(batch: int) -> None:
    stage = Stage(quota=3 * batch, batch=batch, takes_ns=0, answers=[redis.ConnectionError("gone")])
    assert [at_ns for at_ns, *_ in stage.run()][::batch] == [0, MS, 2 * MS]


def test_error_replies_and_slow_failures_do_not_slow_down_a_closed_loop() -> None:
    stage = Stage(quota=3, takes_ns=0, answers=[redis.ResponseError("WRONGTYPE of another kind")])
    assert [at_ns for at_ns, *_ in stage.run()] == [0, 0, 0]
    stage = Stage(quota=3, takes_ns=2 * MS, answers=[redis.TimeoutError("too late")])
    assert [at_ns for at_ns, *_ in stage.run()] == [2 * MS, 4 * MS, 6 * MS]
