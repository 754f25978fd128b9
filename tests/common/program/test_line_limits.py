from __future__ import annotations

from common.program.line_limits import LINES_AT_ONCE, LINES_PER_S, LineLimit
from common.units import NS_PER_S


def taken(limit: LineLimit, now_ns: int, asked: int) -> int:
    return sum(limit.take(now_ns) for _ in range(asked))


def test_many_lines_may_come_at_once_and_then_a_few_a_second() -> None:
    limit = LineLimit("agents", 0)
    assert taken(limit, 0, 10_000) == LINES_AT_ONCE
    assert taken(limit, NS_PER_S, 10_000) == LINES_PER_S
    assert taken(limit, 100_000 * NS_PER_S, 10_000) == LINES_AT_ONCE


def test_lines_left_out_are_reported_once_in_one_line() -> None:
    limit = LineLimit("agents", 0)
    assert limit.summary() == ""
    taken(limit, 0, LINES_AT_ONCE + 1234)
    assert limit.summary() == "1,234 more lines about agents left out"
    assert limit.summary() == ""
