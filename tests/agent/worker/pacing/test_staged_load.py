from __future__ import annotations

from collections import Counter
from itertools import chain

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.worker.pacing.pacer import LEG_BY_TIME, NEVER_NS, Span, Turn, constant_schedule, quota_of
from agent.worker.pacing.staged_load import StagedPacer, schedules_of
from common.plan.schema import Arrivals, Load, Ramp
from common.plan.timeline import Floats, operations_due, timeline
from common.units import NS_PER_S, Count, PerSecond, Seconds
from tests.support.stages import loads, stage

T0_NS = 123_456_789_012_345


class PacedWorker:
    """A worker without a driver, on a clock that the test sets."""

    def __init__(
        self,
        load: Load,
        *,
        batch: int = 1,
        thread: int = 0,
        threads: int = 1,
        service_ns: int = 1_000_000,
        from_s: float = 0.0,
    ) -> None:
        self.line = timeline(load)
        from_ns = round(from_s * NS_PER_S)
        self.now_ns = T0_NS + from_ns
        self.service_ns = service_ns
        self.span = Span(T0_NS, NEVER_NS if self.line.end_ns is None else T0_NS + self.line.end_ns, from_ns=from_ns)
        self.missed: Counter[int] = Counter()
        self.pacer = StagedPacer(
            self.span,
            self.line,
            batch=batch,
            quota=quota_of(load.requests, thread, threads),
            schedules=schedules_of(load, self.line, 1, thread, threads, from_ns),
            threads=threads,
            missed=self.missed,
            now=lambda: self.now_ns,
        )
        self.turns: list[Turn] = []
        self.begins_ns: list[int] = []

    def work(self) -> None:
        """Run as a driver does: wait until a turn is due, begin, and finish after the service time."""
        for turn in self.pacer.turns():
            self.now_ns = max(self.now_ns, turn.times_ns[-1])
            if self.now_ns >= self.span.end_ns:
                self.unsent = self.pacer.unsent(turn.times_ns)
                return
            self.turns.append(turn)
            self.begins_ns.append(self.now_ns)
            self.now_ns += self.service_ns

    def legs(self) -> Counter[int]:
        """Operations sent, by leg."""
        return Counter(
            self.line.at(due_ns - T0_NS) if turn.leg == LEG_BY_TIME else turn.leg
            for turn in self.turns
            for due_ns in turn.times_ns
        )


def due_times(load: Load, thread: int, threads: int) -> list[int]:
    schedules = schedules_of(load, timeline(load), 1, thread, threads)
    return [*chain.from_iterable(schedule for schedule in schedules if schedule is not None)]


@given(loads(), st.integers(1, 7))
def test_threads_share_the_schedule_and_each_leg_has_the_integral_of_its_rate(load: Load, threads: int) -> None:
    load = msgspec.structs.replace(load, arrivals=Arrivals.CONSTANT)
    line = timeline(load)
    alone = due_times(load, 0, 1)
    assert alone == sorted(alone)
    parts = [due_times(load, thread, threads) for thread in range(threads)]
    assert all(part == sorted(part) for part in parts)
    assert sorted(chain.from_iterable(parts)) == alone
    found = Counter(line.at(offset_ns) for offset_ns in alone)
    assert line.end_ns is not None
    for number, leg in enumerate(line.legs):
        assert found[number] == operations_due(leg, line.end_ns)


@given(st.floats(0.1, 5000.0), st.integers(1, 3000), st.integers(1, 3000))
def test_a_warmup_at_the_same_rate_changes_no_due_time(rate: float, warmup_ms: int, length_ms: int) -> None:
    load = Load(warmup_s=Seconds(warmup_ms / 1000), duration_s=Seconds(length_ms / 1000), rate_per_s=PerSecond(rate))
    found = due_times(load, 1, 3)
    plain = constant_schedule(0, rate, 1, 3)
    assert found == [next(plain) for _ in found]


@given(loads(open_only=True), st.integers(0, 3))
def test_poisson_arrivals_ascend_within_their_legs(load: Load, thread: int) -> None:
    load = msgspec.structs.replace(load, arrivals=Arrivals.POISSON)
    line = timeline(load)
    for leg, schedule in zip(line.legs, schedules_of(load, line, 5, thread, 4), strict=True):
        times = list(schedule or ())
        assert times == sorted(times)
        assert all(leg.begin_ns <= time_ns < (leg.end_ns or 0) for time_ns in times)


@given(loads(), st.integers(1, 7), st.floats(0, 1))
def test_a_takeover_continues_the_schedule_of_all_stages(load: Load, threads: int, share: float) -> None:
    load = msgspec.structs.replace(load, arrivals=Arrivals.CONSTANT)
    line = timeline(load)
    assert line.end_ns is not None
    from_ns = round(line.end_ns * share)
    for thread in range(threads):
        whole = schedules_of(load, line, 1, thread, threads)
        rest = schedules_of(load, line, 1, thread, threads, from_ns)
        for leg, every, later in zip(line.legs, whole, rest, strict=True):
            if every is None:
                assert later is None
                continue
            times, found = list(every), list(later or ())
            assert found == sorted(found)
            assert all(time_ns >= from_ns for time_ns in found)
            # The number of earlier operations is exact; times of a ramp may differ by a nanosecond.
            assert len(times) - len(found) == sum(time_ns < from_ns for time_ns in times) or leg.is_ramp
            tail = times[len(times) - len(found) :]
            assert all(abs(one - other) <= leg.is_ramp for one, other in zip(tail, found, strict=True))


@given(loads(open_only=True), st.floats(0, 1))
def test_a_takeover_continues_poisson_arrivals_within_their_legs(load: Load, share: float) -> None:
    load = msgspec.structs.replace(load, arrivals=Arrivals.POISSON)
    line = timeline(load)
    assert line.end_ns is not None
    from_ns = round(line.end_ns * share)
    for leg, schedule in zip(line.legs, schedules_of(load, line, 5, 1, 4, from_ns), strict=True):
        times = list(schedule or ())
        assert times == sorted(times)
        assert all(max(leg.begin_ns, from_ns) <= time_ns < (leg.end_ns or 0) for time_ns in times)


@pytest.mark.parametrize("from_s", [0.5, 1.5, 2.5])
def test_a_takeover_begins_inside_a_closed_leg(from_s: float) -> None:
    load = Load(stages=(stage(1), stage(1, 100), stage(1)))
    worker = PacedWorker(load, from_s=from_s)
    worker.work()
    assert worker.begins_ns[0] == T0_NS + round(from_s * NS_PER_S)
    before, at = worker.line.at(round(from_s * NS_PER_S)) - 1, worker.line.at(round(from_s * NS_PER_S))
    legs = worker.legs()
    assert min(legs) == at
    assert before not in legs
    assert legs[1] == {0: 100, 1: 50, 2: 0}[at]


def ks_distance_to_uniform(values: Floats) -> float:
    ordered = np.sort(values)
    count = len(ordered)
    above = np.arange(1, count + 1) / count - ordered
    return float(max(above.max(), (ordered - np.arange(count) / count).max()))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 4])
def test_poisson_arrivals_follow_the_integral_of_a_ramp(seed: int, threads: int) -> None:
    load = Load(stages=(stage(2, 5000), stage(4, 15_000, Ramp.LINEAR)), arrivals=Arrivals.POISSON)
    line = timeline(load)
    leg = line.legs[1]
    times = [
        time_ns for thread in range(threads) for time_ns in schedules_of(load, line, seed, thread, threads)[1] or ()
    ]
    # 5000/s to 15,000/s in four seconds, from the second second on: its integral is 5000 t + 1250 t^2.
    after_s = (np.sort(np.array(times)) - leg.begin_ns) / NS_PER_S
    reached = 5000 * after_s + 1250 * after_s**2
    assert len(times) == pytest.approx(40_000, abs=4 * 40_000**0.5)
    critical = 1.95 / len(times) ** 0.5
    # Given their number, Poisson arrivals are independent draws from the integral of the rate.
    assert ks_distance_to_uniform(reached / 40_000) < critical
    assert ks_distance_to_uniform(after_s / 4) > 2 * critical
    # The gaps in that integral are exponential.
    assert ks_distance_to_uniform(1 - np.exp(-np.diff(reached, prepend=0.0))) < critical


def test_threads_and_legs_draw_different_times() -> None:
    load = Load(stages=(stage(1, 100), stage(1, 100)), arrivals=Arrivals.POISSON)
    line = timeline(load)
    drawn = [
        tuple(time_ns - leg.begin_ns for time_ns in schedule or ())
        for thread in (0, 1)
        for leg, schedule in zip(line.legs, schedules_of(load, line, 1, thread, 2), strict=True)
    ]
    assert len(set(drawn)) == 4


@settings(max_examples=30)
@given(loads(), st.integers(1, 4), st.integers(1, 7))
def test_an_open_leg_has_exactly_the_operations_that_are_due_in_it(load: Load, threads: int, batch: int) -> None:
    sent: Counter[int] = Counter()
    for thread in range(threads):
        worker = PacedWorker(load, batch=batch, thread=thread, threads=threads, service_ns=100_000)
        worker.work()
        # Unsent operations at the end count as due, too.
        sent += worker.legs() + worker.missed
        assert all(len(turn.times_ns) == batch for turn in worker.turns[:-1])
    line = timeline(load)
    due = [
        sum(len(list(schedules_of(load, line, 1, thread, threads)[number] or ())) for thread in range(threads))
        for number in range(len(line.legs))
    ]
    assert [sent[number] for number, leg in enumerate(line.legs) if leg.is_open] == [
        count for count, leg in zip(due, line.legs, strict=True) if leg.is_open
    ]


def test_a_closed_stage_begins_and_ends_on_time() -> None:
    worker = PacedWorker(Load(stages=(stage(1, 10), stage(1), stage(1, 10))), service_ns=30_000_000)
    worker.work()
    assert worker.legs() == {0: 10, 1: 34, 2: 10}
    closed = [(begin_ns - T0_NS) / NS_PER_S for begin_ns in worker.begins_ns[10:44]]
    assert (closed[0], closed[-1]) == (1.0, pytest.approx(1.99))


def test_a_backlog_is_sent_late_and_counts_in_its_own_stage() -> None:
    worker = PacedWorker(Load(stages=(stage(1, 100), stage(2), stage(1, 10))), service_ns=20_000_000)
    worker.work()
    assert worker.legs() == {0: 100, 1: 50, 2: 10}
    assert worker.begins_ns[99] == T0_NS + 99 * 20_000_000


def test_a_backlog_longer_than_a_closed_stage_skips_that_stage() -> None:
    worker = PacedWorker(Load(stages=(stage(1, 100), stage(0.5), stage(3, 10))), service_ns=20_000_000)
    worker.work()
    assert worker.legs() == {0: 100, 2: 30}


def test_operations_left_at_the_end_are_unsent_per_leg() -> None:
    worker = PacedWorker(Load(stages=(stage(1, 100), stage(1, 50))), service_ns=30_000_000)
    worker.work()
    assert worker.legs() == {0: 67}
    assert worker.missed == {0: 33, 1: 50}
    assert worker.unsent == 83


def test_unsent_operations_of_fast_legs_are_estimated() -> None:
    load = Load(stages=(stage(1, 10), stage(10, 1e8, Ramp.LINEAR), stage(5, 1e7)))
    worker = PacedWorker(load, threads=2)
    assert worker.pacer.unsent() == pytest.approx((10 + 10 * (1e8 + 10) / 2 + 5e7) / 2, rel=1e-4)
    assert worker.missed[1] == pytest.approx(2.5e8, rel=1e-4)


@pytest.mark.parametrize("rate_per_s", [None, 200.0])
@pytest.mark.parametrize("batch", [1, 7])
def test_requests_count_from_the_end_of_the_warmup_to_the_last_one(rate_per_s: float | None, batch: int) -> None:
    load = Load(
        warmup_s=Seconds(0.5),
        requests=Count(30),
        rate_per_s=None if rate_per_s is None else PerSecond(rate_per_s),
    )
    measured = warming = 0
    for thread in range(4):
        worker = PacedWorker(load, batch=batch, thread=thread, threads=4)
        worker.work()
        warming += worker.legs()[0]
        measured += worker.legs()[1]
    assert measured == 30
    assert warming == (100 if rate_per_s else 4 * 500 * batch)


def test_a_batch_may_cross_a_stage_border_and_is_shortened_only_at_the_end() -> None:
    worker = PacedWorker(Load(stages=(stage(1, 10), stage(1, 5), stage(0.01), stage(1, 2))), batch=4)
    worker.work()
    sizes = [len(turn.times_ns) for turn in worker.turns]
    assert sizes[-1] == 2
    assert set(sizes[:-1]) == {4}
    border_ns = T0_NS + 2 * NS_PER_S
    [mixed] = [turn for turn in worker.turns if border_ns in turn.times_ns]
    assert mixed.times_ns[-1] == border_ns
    assert worker.legs()[0] == 10
    assert worker.legs()[1] == 5


def test_a_stopped_run_deals_no_operation_that_is_due_after_its_end() -> None:
    worker = PacedWorker(Load(stages=(stage(1, 10), stage(1), stage(1, 10))))
    worker.span.end_at(T0_NS + NS_PER_S // 2)
    worker.work()
    assert worker.legs() == {0: 5}
