from __future__ import annotations

from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ExecAbortError

from agent.worker.drivers.wire.replies import ReplyParser, ends_of, unwrap_transaction
from agent.worker.metrics.wire_sizes import raw_measure

ERROR, ABORT = redis.ResponseError("ERR no"), ExecAbortError("EXECABORT discarded")


@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    cuts=st.sets(st.integers(1, 100)),
)
def test_a_reply_ends_with_the_read_that_brought_its_last_byte(sizes: list[int], cuts: set[int]) -> None:
    total = sum(sizes)
    inner = sorted(cut for cut in cuts if cut < total)
    marks = [(number, cut) for number, cut in enumerate(inner)]
    last = len(inner)
    expected, reached = [], 0
    for size in sizes:
        reached += size
        expected.append(next((number for number, cut in marks if cut >= reached), last))
    assert ends_of(sizes, marks, last) == expected


def test_without_marks_all_end_with_the_last_read() -> None:
    assert ends_of([5, 6], [], 7) == [7, 7]


def test_replies_of_a_transaction_are_those_of_exec() -> None:
    assert unwrap_transaction([b"OK", b"QUEUED", b"QUEUED", [b"a", ERROR]]) == ([b"a", ERROR], True)


@pytest.mark.parametrize(
    ("replies", "error"),
    [
        ([b"OK", b"QUEUED", ERROR, ABORT], ERROR),
        ([ERROR, b"a", b"b", ABORT], ERROR),
        ([b"OK", b"QUEUED", b"QUEUED", ABORT], ABORT),
    ],
)
def test_a_transaction_that_was_not_executed_failed_by_its_first_error(replies: list[Any], error: Any) -> None:
    assert unwrap_transaction(replies) == ([error, error], False)


def test_an_exec_that_is_answered_with_nothing_is_an_error() -> None:
    found, executed = unwrap_transaction([b"OK", b"QUEUED", None])
    assert not executed
    assert [type(error) for error in found] == [ConnectionError]


def test_a_raw_reply_becomes_what_redis_py_makes_of_it_and_keeps_its_size() -> None:
    measures = [raw_measure("GET", 3), raw_measure("TTL", 3)]
    parser = ReplyParser(("GET", "TTL"), {"TTL": lambda reply: reply + 1}, measures)
    assert (parser.parse(0, b"a"), parser.parse(1, 3)) == (b"a", 4)
    assert (parser.raw_bytes(0, b"abc"), parser.raw_bytes(1, 3)) == (len(b"$3\r\nabc\r\n"), len(b":3\r\n"))
    assert parser.raw_bytes(0, redis.ResponseError("WRONGTYPE no")) == len(b"-WRONGTYPE no\r\n")


def test_an_error_that_redis_py_raises_over_a_reply_takes_its_place() -> None:
    parser = ReplyParser(("GET",), {"GET": int}, [raw_measure("GET", 3)])
    assert type(parser.parse(0, b"x")) is ValueError
    assert parser.parse(0, ERROR) is ERROR
