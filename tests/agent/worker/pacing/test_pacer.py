from __future__ import annotations

from fractions import Fraction
from itertools import chain, dropwhile, islice, takewhile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.pacing.pacer import (
    NEVER_NS,
    NO_DUE_TIME,
    Pacer,
    Schedule,
    Span,
    Turn,
    constant_schedule,
    poisson_schedule,
    quota_of,
    schedule_of,
)
from common.plan.schema import Arrivals, Load
from common.units import NS_PER_S, PerSecond

T0_NS = 123_456_789_012_345
RATES = st.floats(min_value=1e-3, max_value=1e9)


def unending() -> Span:
    return Span(T0_NS, NEVER_NS)


def merged(schedules: list[Schedule], count: int) -> list[int]:
    """The first `count` times of all schedules together, taking every one of each that could be among them."""
    return sorted(chain.from_iterable(islice(schedule, count) for schedule in schedules))[:count]


# Quotas


@given(requests=st.integers(0, 10**12), threads=st.integers(1, 500))
def test_quotas_add_up_to_the_requests_and_differ_by_one_at_most(requests: int, threads: int) -> None:
    quotas = [quota_of(requests, thread, threads) for thread in range(threads)]
    counts = [quota for quota in quotas if quota is not None]
    assert len(counts) == threads
    assert sum(counts) == requests
    assert max(counts) - min(counts) <= 1


# Schedules


@given(rate=RATES, threads=st.integers(1, 100), data=st.data())
def test_a_constant_schedule_is_exact_and_does_not_drift(rate: float, threads: int, data: st.DataObject) -> None:
    thread = data.draw(st.integers(0, threads - 1))
    far = data.draw(st.integers(0, 2000))
    found = next(islice(constant_schedule(T0_NS, rate, thread, threads), far, None))
    exact = (far * threads + thread) * Fraction(NS_PER_S) / Fraction(rate)
    assert 0 <= exact - (found - T0_NS) < 1


def test_the_millionth_operation_of_a_thread_is_due_to_the_nanosecond() -> None:
    # 3/s: a gap without an exact binary fraction.
    found = next(islice(constant_schedule(0, 3.0, 1, 2), 1_000_000, None))
    assert found == 2_000_001 * NS_PER_S // 3


@given(rate=RATES, threads=st.integers(1, 12), count=st.integers(1, 200))
def test_threads_share_the_schedule_of_the_fleet(rate: float, threads: int, count: int) -> None:
    parts = [constant_schedule(T0_NS, rate, thread, threads) for thread in range(threads)]
    assert merged(parts, count) == list(islice(constant_schedule(T0_NS, rate, 0, 1), count))


@given(rate=RATES, thread=st.integers(0, 7), seed=st.integers(0, 2**32))
def test_every_schedule_ascends_from_the_start(rate: float, thread: int, seed: int) -> None:
    constant = constant_schedule(T0_NS, rate, thread, 8)
    poisson = poisson_schedule(T0_NS, rate, 8, np.random.default_rng(seed))
    for schedule in (constant, poisson):
        times = list(islice(schedule, 1200))
        assert times[0] >= T0_NS
        assert times == sorted(times)


def ks_distance_to_exponential(gaps_ns: list[int], mean_ns: float) -> float:
    """The Kolmogorov-Smirnov statistic: the largest distance between the two cumulative distributions."""
    ordered = np.sort(np.array(gaps_ns, dtype=np.float64))
    count = len(ordered)
    expected = 1 - np.exp(-ordered / mean_ns)
    above = np.arange(1, count + 1) / count - expected
    below = expected - np.arange(count) / count
    return float(max(above.max(), below.max()))


def critical_ks_distance(count: int) -> float:
    """999 of 1000 large samples of the right distribution stay below this."""
    return 1.95 / float(np.sqrt(count))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 4])
def test_poisson_arrivals_have_exponential_gaps_at_the_rate_of_the_fleet(seed: int, threads: int) -> None:
    load = Load(rate_per_s=PerSecond(50_000.0), arrivals=Arrivals.POISSON)
    parts = [schedule_of(load, seed, thread, threads, 0) for thread in range(threads)]
    # Up to the time of about 20,000 arrivals; stopping at the last arrival would favour long gaps.
    times = sorted(chain.from_iterable(takewhile(lambda due: due < 400_000_000, part or ()) for part in parts))
    assert len(times) == pytest.approx(20_000, abs=4 * 20_000**0.5)
    gaps = np.diff([0, *times]).tolist()
    assert ks_distance_to_exponential(gaps, 20_000) < critical_ks_distance(len(gaps))


def test_the_check_of_the_gaps_detects_even_gaps_and_a_rate_that_is_ten_percent_off() -> None:
    draw = np.random.default_rng(1)
    even = [20_000] * 20_000
    uniform = draw.uniform(0, 40_000, 20_000).tolist()
    slow = draw.exponential(22_000, 20_000).tolist()
    for gaps in (even, uniform, slow):
        assert ks_distance_to_exponential(gaps, 20_000) > 2 * critical_ks_distance(len(gaps))


def test_poisson_arrivals_depend_on_seed_and_thread_only() -> None:
    load = Load(rate_per_s=PerSecond(1000.0), arrivals=Arrivals.POISSON)

    def times(seed: int, thread: int) -> list[int]:
        return list(islice(schedule_of(load, seed, thread, 2, 0) or (), 600))

    assert times(1, 0) == times(1, 0)
    assert len({tuple(times(seed, thread)) for seed in (1, 2) for thread in (0, 1)}) == 4


@given(st.floats(0.1, 5000.0), st.integers(1, 7), st.integers(0, 10 * NS_PER_S), st.data())
def test_a_takeover_continues_the_constant_schedule(
    rate: float, threads: int, from_ns: int, data: st.DataObject
) -> None:
    thread = data.draw(st.integers(0, threads - 1))
    whole = constant_schedule(T0_NS, rate, thread, threads)
    rest = constant_schedule(T0_NS, rate, thread, threads, from_ns)
    expected = islice(dropwhile(lambda due_ns: due_ns < T0_NS + from_ns, whole), 5)
    assert [next(rest) for _ in range(5)] == list(expected)


def test_a_takeover_continues_poisson_arrivals() -> None:
    schedules = [poisson_schedule(T0_NS, 100.0, 2, np.random.default_rng(1), from_ns) for from_ns in (0, 7 * NS_PER_S)]
    for _ in range(2000):
        first, second = (next(schedule) for schedule in schedules)
        assert second - first == pytest.approx(7 * NS_PER_S, abs=2000)


def test_no_operation_begins_before_the_begin_of_a_takeover() -> None:
    assert Span(T0_NS, NEVER_NS, from_ns=5).begin_ns == T0_NS + 5
    assert Span(T0_NS, NEVER_NS).begin_ns == T0_NS


def test_the_load_determines_the_kind_of_schedule() -> None:
    assert schedule_of(Load(), 1, 0, 2, T0_NS) is None
    constant = schedule_of(Load(rate_per_s=PerSecond(10.0)), 1, 1, 2, T0_NS)
    assert list(islice(constant or (), 2)) == [T0_NS + NS_PER_S // 10, T0_NS + 3 * NS_PER_S // 10]


# Turns


def test_in_a_closed_loop_turns_are_endless_and_due_at_once() -> None:
    turns = Pacer(unending(), batch=3, quota=None, schedule=None).turns()
    assert list(islice(turns, 1000)) == [Turn((NO_DUE_TIME,) * 3)] * 1000


@given(batch=st.integers(1, 50), quota=st.integers(0, 500), is_open=st.booleans())
def test_all_turns_except_the_last_are_full_and_add_up_to_the_quota(batch: int, quota: int, is_open: bool) -> None:
    schedule = constant_schedule(T0_NS, 1000.0, 0, 1) if is_open else None
    turns = list(Pacer(unending(), batch=batch, quota=quota, schedule=schedule).turns())
    sizes = [len(turn.times_ns) for turn in turns]
    assert sum(sizes) == quota
    assert set(sizes[:-1]) <= {batch}
    assert all(sizes)


@given(
    batch=st.integers(1, 20),
    quota=st.none() | st.integers(0, 300),
    end_ms=st.integers(0, 250),
    rate=st.floats(100.0, 2000.0),
)
def test_turns_of_an_open_loop_follow_its_schedule_up_to_the_end(
    batch: int, quota: int | None, end_ms: int, rate: float
) -> None:
    end_ns = T0_NS + end_ms * 1_000_000
    schedule = constant_schedule(T0_NS, rate, 0, 1)
    turns = list(Pacer(Span(T0_NS, end_ns), batch=batch, quota=quota, schedule=schedule).turns())
    due = takewhile(lambda due_ns: due_ns < end_ns, constant_schedule(T0_NS, rate, 0, 1))
    assert [*chain.from_iterable(turn.times_ns for turn in turns)] == list(islice(due, quota))
    assert all(len(turn.times_ns) == batch for turn in turns[:-1])


@given(
    batch=st.integers(1, 20),
    quota=st.none() | st.integers(1, 300),
    dealt=st.integers(1, 10),
    end_ms=st.integers(0, 250),
)
def test_unsent_operations_include_all_that_were_due_until_the_end(
    batch: int, quota: int | None, dealt: int, end_ms: int
) -> None:
    span = unending()
    pacer = Pacer(span, batch=batch, quota=quota, schedule=constant_schedule(T0_NS, 1000.0, 0, 1))
    turns = list(islice(pacer.turns(), dealt))
    span.end_at(T0_NS + end_ms * 1_000_000)
    # 1000/s: one operation is due at each ms from 0 to end_ms - 1. All turns before the last were sent.
    should = end_ms if quota is None else min(end_ms, quota)
    sent = sum(len(turn.times_ns) for turn in turns[:-1])
    assert pacer.unsent(turns[-1].times_ns) == max(0, should - sent)


def test_a_closed_loop_has_no_unsent_operations() -> None:
    pacer = Pacer(Span(T0_NS, T0_NS + 1), batch=2, quota=10, schedule=None)
    assert pacer.unsent(next(pacer.turns()).times_ns) == 0


@given(rate=st.floats(1.0, 1e9), seconds=st.floats(0.001, 100.0), quota=st.none() | st.integers(1, 10**9))
def test_unsent_operations_of_a_fast_schedule_are_estimated(rate: float, seconds: float, quota: int | None) -> None:
    span = Span(T0_NS, T0_NS + round(seconds * NS_PER_S))
    pacer = Pacer(span, batch=1, quota=quota, schedule=constant_schedule(T0_NS, rate, 0, 1))
    due = -(-round(seconds * NS_PER_S) * Fraction(rate) // NS_PER_S)
    assert pacer.unsent() == pytest.approx(due if quota is None else min(due, quota), rel=1e-4, abs=1)


# Span


class Sleeper:
    """A clock that moves with each sleep. ends_after: (number of sleeps, span, the end that it then gets)."""

    def __init__(self, now_ns: int = T0_NS) -> None:
        self.now_ns = now_ns
        self.naps_s: list[float] = []
        self.ends_after: tuple[int, Span, int] | None = None

    def now(self) -> int:
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.naps_s.append(seconds)
        self.now_ns += round(seconds * NS_PER_S)
        if self.ends_after is not None and len(self.naps_s) == self.ends_after[0]:
            self.ends_after[1].end_at(self.ends_after[2])


def span_with(sleeper: Sleeper, end_ns: int = NEVER_NS) -> Span:
    return Span(T0_NS, end_ns, sleeper.now, sleeper.sleep)


def test_a_wait_ends_exactly_at_its_time() -> None:
    sleeper = Sleeper()
    span_with(sleeper).wait_until(T0_NS + 123_456_789)
    assert sleeper.now_ns == T0_NS + 123_456_789


def test_a_time_in_the_past_needs_no_sleep() -> None:
    sleeper = Sleeper()
    for due_ns in (T0_NS, T0_NS - 1):
        span_with(sleeper).wait_until(due_ns)
    assert sleeper.naps_s == []


def test_a_wait_ends_at_the_end_of_the_span() -> None:
    sleeper = Sleeper()
    span_with(sleeper, T0_NS + 70_000_000).wait_until(T0_NS + 10 * NS_PER_S)
    assert sleeper.now_ns == T0_NS + 70_000_000


def test_a_waiting_thread_notices_an_earlier_end_within_50_ms() -> None:
    sleeper = Sleeper()
    span = span_with(sleeper)
    sleeper.ends_after = (3, span, T0_NS)
    span.wait_until(T0_NS + 3600 * NS_PER_S)
    assert len(sleeper.naps_s) == 3
    assert max(sleeper.naps_s) <= 0.05


def test_the_end_never_moves_later() -> None:
    span = Span(T0_NS, T0_NS + 100)
    span.end_at(T0_NS + 200)
    assert span.end_ns == T0_NS + 100
    span.end_at(T0_NS + 50)
    span.end_at(T0_NS + 70)
    assert span.end_ns == T0_NS + 50
