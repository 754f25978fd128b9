from __future__ import annotations

import numpy as np
import pytest

from common.metrics.histogram import Histogram
from common.metrics.intervals import CommandMetrics, IntervalMetrics, PoolMetrics
from scripts.benchmark.rates import rate_result


def second(number: int, operations: int, lag_ns: int = 1000) -> IntervalMetrics:
    pool = PoolMetrics(
        commands={"GET": CommandMetrics(ok=operations)},
        send_lag=Histogram.from_values(np.full(operations, lag_ns, dtype=np.int64)),
    )
    return IntervalMetrics(first=number, last=number, pools={"main": pool})


def test_the_first_second_and_seconds_after_the_end_are_left_out() -> None:
    found = rate_result("wire", 0.5, 100, 3, [second(0, 7, 10**9), second(1, 100), second(2, 100), second(3, 9, 10**9)])
    assert (found.achieved_per_s, found.deviation) == (100, 0)
    assert found.lag_p99_us == pytest.approx(1.0)
    assert found.goal_result().verdict == "ok"


def test_a_rate_that_is_off_by_more_than_a_thousandth_misses_the_goal() -> None:
    assert rate_result("wire", 0.5, 10_000, 2, [second(1, 9_991)]).goal_result().verdict == "ok"
    assert rate_result("wire", 0.5, 10_000, 2, [second(1, 9_989)]).goal_result().verdict == "MISSED"
    assert rate_result("wire", 0.5, 10_000, 2, [second(1, 10_011)]).goal_result().verdict == "MISSED"


def test_the_right_rate_with_late_sends_misses_the_goal() -> None:
    assert rate_result("client", 0.5, 100, 2, [second(1, 100, 999_000)]).goal_result().verdict == "ok"
    assert rate_result("client", 0.5, 100, 2, [second(1, 100, 1_002_000)]).goal_result().verdict == "MISSED"


def test_a_run_without_operations_misses_the_goal() -> None:
    found = rate_result("wire", 0.9, 100, 2, [])
    assert (found.achieved_per_s, found.deviation, found.goal_result().verdict) == (0, 1, "MISSED")
