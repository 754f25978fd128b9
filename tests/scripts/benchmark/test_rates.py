from __future__ import annotations

import numpy as np
import pytest

from common.metrics.histogram import Histogram
from common.metrics.intervals import CommandMetrics, IntervalMetrics, PoolMetrics
from scripts.benchmark.rates import kept


def second(number: int, operations: int, lag_ns: int = 1000) -> IntervalMetrics:
    pool = PoolMetrics(
        commands={"GET": CommandMetrics(ok=operations)},
        send_lag=Histogram.of(np.full(operations, lag_ns, dtype=np.int64)),
    )
    return IntervalMetrics(first=number, last=number, pools={"main": pool})


def test_the_first_second_and_what_came_after_the_end_are_left_out() -> None:
    found = kept("wire", 0.5, 100, 3, [second(0, 7, 10**9), second(1, 100), second(2, 100), second(3, 9, 10**9)])
    assert (found.achieved_per_s, found.off) == (100, 0)
    assert found.lag_p99_us == pytest.approx(1.0)
    assert found.judged().verdict == "ok"


def test_a_rate_missed_by_more_than_a_thousandth_is_not_enough() -> None:
    assert kept("wire", 0.5, 10_000, 2, [second(1, 9_991)]).judged().verdict == "ok"
    assert kept("wire", 0.5, 10_000, 2, [second(1, 9_989)]).judged().verdict == "BELOW"
    assert kept("wire", 0.5, 10_000, 2, [second(1, 10_011)]).judged().verdict == "BELOW"


def test_a_rate_that_was_kept_by_sending_late_is_not_enough() -> None:
    assert kept("client", 0.5, 100, 2, [second(1, 100, 999_000)]).judged().verdict == "ok"
    assert kept("client", 0.5, 100, 2, [second(1, 100, 1_002_000)]).judged().verdict == "BELOW"


def test_a_run_in_which_nothing_came_to_an_end_has_figures_too() -> None:
    found = kept("wire", 0.9, 100, 2, [])
    assert (found.achieved_per_s, found.off, found.judged().verdict) == (0, 1, "BELOW")
