from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.plan.schema import Load, Ramp, Stage
from common.plan.timeline import Leg, Timeline, operations_due, timeline
from common.units import NS_PER_S, Count, PerSecond, Seconds
from tests.support.stages import loads, stage

RAMPS = st.tuples(st.floats(0.0, 1e6), st.floats(1e-3, 1e6), st.integers(1, 10**14))


def facts(line: Timeline) -> list[tuple[str, float, float | None, float | None, float | None]]:
    return [
        (
            leg.name,
            leg.begin_ns / NS_PER_S,
            None if leg.end_ns is None else leg.end_ns / NS_PER_S,
            leg.from_per_s,
            leg.to_per_s,
        )
        for leg in line.legs
    ]


def ramp(from_per_s: float, to_per_s: float, length_ns: int) -> Leg:
    return Leg("ramp", 0, length_ns, from_per_s, to_per_s, Fraction(0), True)


def test_a_plain_load_is_one_leg() -> None:
    assert facts(timeline(Load(duration_s=Seconds(3), rate_per_s=PerSecond(5)))) == [("measure", 0, 3, 5, 5)]
    assert facts(timeline(Load(requests=Count(7)))) == [("measure", 0, None, None, None)]


def test_a_warmup_comes_first_at_the_same_load_and_is_not_measured() -> None:
    line = timeline(Load(warmup_s=Seconds(2), duration_s=Seconds(3), rate_per_s=PerSecond(5)))
    assert facts(line) == [("warmup", 0, 2, 5, 5), ("measure", 2, 5, 5, 5)]
    assert [leg.measured for leg in line.legs] == [False, True]
    assert line.end_ns == 5 * NS_PER_S
    assert facts(timeline(Load(warmup_s=Seconds(2), requests=Count(3))))[1] == ("measure", 2, None, None, None)


def test_stages_follow_each_other_and_ramps_begin_where_the_rate_was() -> None:
    stages = (
        stage(1, 100, Ramp.LINEAR),
        stage(2, 300, Ramp.LINEAR, name="up"),
        stage(1),
        stage(3, 50, Ramp.LINEAR),
        stage(1, 20),
    )
    line = timeline(Load(stages=stages, warmup_s=Seconds(1)))
    assert facts(line) == [
        ("warmup", 0, 1, 100, 100),
        ("stage 1", 1, 2, 0, 100),
        ("up", 2, 4, 100, 300),
        ("stage 3", 4, 5, None, None),
        ("stage 4", 5, 8, 0, 50),
        ("stage 5", 8, 9, 20, 20),
    ]
    assert [operations_due(leg, 9 * NS_PER_S) for leg in line.legs] == [100, 50, 400, 0, 75, 20]


def test_the_warmup_of_a_closed_first_stage_is_closed() -> None:
    assert not timeline(Load(stages=(stage(1), stage(1, 5)), warmup_s=Seconds(1))).legs[0].is_open


def test_every_time_and_every_second_has_its_legs() -> None:
    line = timeline(Load(stages=(stage(0.5), stage(1.5, 5), stage(1))))
    assert [line.at(round(at_s * NS_PER_S)) for at_s in (-1, 0, 0.49, 0.5, 1.9, 2, 3, 99)] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert [list(line.in_second(second)) for second in range(4)] == [[0, 1], [1], [2], [2]]


@given(loads())
def test_legs_touch_and_integrals_add_up(load: Load) -> None:
    line = timeline(load)
    assert line.legs[0].begin_ns == 0
    for before, after in zip(line.legs, line.legs[1:], strict=False):
        assert before.end_ns == after.begin_ns
        assert after.due_before == before.due_before + before.due(after.begin_ns)
    assert line.end_ns is not None
    last = line.legs[-1]
    due = sum(operations_due(leg, line.end_ns) for leg in line.legs)
    assert 0 <= due - (last.due_before + last.due(line.end_ns)) < 1


@given(loads(), st.integers(0, 20 * NS_PER_S))
def test_the_length_of_a_run_is_divided_over_the_legs(load: Load, ran_ns: int) -> None:
    assert sum(timeline(load).lengths_ns(ran_ns)) == ran_ns


def test_a_short_run_leaves_later_legs_empty_and_overtime_counts_for_the_last() -> None:
    line = timeline(Load(stages=(stage(1), stage(2), stage(3))))
    assert line.lengths_ns(NS_PER_S * 3 // 2) == (NS_PER_S, NS_PER_S // 2, 0)
    assert line.lengths_ns(7 * NS_PER_S) == (NS_PER_S, 2 * NS_PER_S, 4 * NS_PER_S)


@given(RAMPS)
@example((860006.0874768544, 0.99999, 23_529_810_911))
@example((845783.0, 1.0, 90_791_583_107))
@example((1e6, 1e-3, 10**14))
@example((1e6, 0.0, 10**14))
@example((31602.277744298364, 57435.22265625, 99_999_999_999_999))
def test_the_times_of_a_ramp_are_where_the_exact_integral_reaches_the_counts(rates: tuple[float, float, int]) -> None:
    leg = ramp(*rates)
    assert leg.end_ns is not None
    counts = np.linspace(0.0, float(leg.due(leg.end_ns)), 50)
    times_ns = leg.times(counts).tolist()
    assert times_ns == sorted(times_ns)
    for count, time_ns in zip(counts.tolist(), times_ns, strict=True):
        # One for rounding down, one for floats that fall just short of a whole nanosecond.
        room_ns = 2 + leg.end_ns // 10**15
        assert leg.due(max(0, time_ns - room_ns)) <= Fraction(count) or time_ns <= room_ns
        assert leg.due(time_ns + room_ns) >= Fraction(count) or time_ns + room_ns >= leg.end_ns


def test_a_ramp_grows_as_the_square_of_time() -> None:
    leg = ramp(0, 1000, 2 * NS_PER_S)
    assert leg.times(np.array([0.0, 250.0, 1000.0])).tolist() == [0, NS_PER_S, 2 * NS_PER_S]
    assert (leg.rate_at(0), leg.rate_at(NS_PER_S), leg.rate_at(9 * NS_PER_S)) == (0, 500, 1000)
    down = ramp(1000, 500, NS_PER_S)
    assert down.times(np.array([437.5])).tolist() == [NS_PER_S // 2]
    assert down.due(NS_PER_S // 2) == Fraction(875, 2)


def test_a_closed_leg_has_no_rate_and_nothing_is_due_in_it() -> None:
    closed = timeline(Load(requests=Count(1))).legs[0]
    assert closed.rate_at(5) is None
    assert closed.due(10**18) == 0


@pytest.mark.parametrize("stages", [(Stage(duration_s=Seconds(1)),), (Stage(duration_s=Seconds(1)),) * 2])
def test_a_load_of_stages_ends_after_the_last_stage(stages: tuple[Stage, ...]) -> None:
    assert timeline(Load(stages=stages)).end_ns == len(stages) * NS_PER_S
