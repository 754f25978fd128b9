from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.benchmark.figures import Quartiles, Reading, cpu_ratio, cpu_s_per_million, even, filled, order, speed_ratio


def reading(operations: int = 1000, seconds: float = 0.5, generator: float = 0.4, server: float = 0.1) -> Reading:
    return Reading(operations, seconds, generator, server, generator + server + 0.1)


def test_a_reading_tells_operations_a_second_of_its_own_length() -> None:
    assert reading(operations=1000, seconds=0.5).ops_per_s == 2000


def test_a_ratio_is_taken_between_turns_of_the_same_round() -> None:
    # Both halve their speed in the second round: a ratio of sums over shuffled rounds would not be 2.
    ones, others = [reading(2000), reading(1000), reading(400)], [reading(1000), reading(500), reading(200)]
    assert speed_ratio(ones, others) == Quartiles(2.0, 2.0, 2.0, 2.0, 2.0)


def test_one_disturbed_round_does_not_move_the_median() -> None:
    ones = [reading(1000)] * 4 + [reading(10)]
    ratio = speed_ratio(ones, [reading(1000)] * 5)
    assert ratio.median == 1.0
    assert ratio.minimum == 0.01


def test_readings_of_different_numbers_of_rounds_are_not_compared() -> None:
    with pytest.raises(ValueError, match="longer"):
        speed_ratio([reading()], [reading()] * 2)


def test_the_middle_half_lies_between_the_quartiles() -> None:
    assert Quartiles.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Quartiles(
        median=3.0, lower=2.0, upper=4.0, minimum=1.0, maximum=5.0
    )


@given(st.lists(st.floats(0.1, 10), min_size=1))
def test_a_spread_is_in_order(numbers: list[float]) -> None:
    spread = Quartiles.of(numbers)
    slack = 1e-9  # quartiles are interpolated, and rounded
    assert spread.minimum - slack <= spread.lower <= spread.median + slack
    assert spread.median - slack <= spread.upper <= spread.maximum + slack


def test_cpu_is_divided_by_all_operations_because_a_turn_is_shorter_than_the_clock_is_exact() -> None:
    assert cpu_s_per_million([reading(1000, generator=0.0), reading(3000, generator=0.2)]) == pytest.approx(50.0)


def test_cores_are_full_when_server_and_generator_together_use_all_of_them() -> None:
    assert filled([reading(seconds=0.5, generator=0.6, server=0.4)] * 3, cores=2) == pytest.approx(1.0)
    assert filled([reading(seconds=0.5, generator=0.3, server=0.2)] * 3, cores=2) == pytest.approx(0.5)


@given(st.integers(1, 5), st.integers(-3, 100))
def test_everybody_has_one_turn_a_round(contenders: int, number: int) -> None:
    assert sorted(order(range(contenders), number)) == [*range(contenders)]


@given(st.integers(2, 5))
def test_over_enough_rounds_everybody_is_at_each_place_equally_often(contenders: int) -> None:
    places = Counter(
        (place, who) for number in range(2 * contenders) for place, who in enumerate(order(range(contenders), number))
    )
    assert set(places.values()) == {2}


def test_halves_are_made_one_with_as_many_operations_of_each() -> None:
    # 1000 a second of the one, 4000 of the other: a thousand of each take 1 s and 0.25 s, and half of their CPU.
    [both] = even([reading(500, 0.5, 0.4, 0.1)], [reading(2000, 0.5, 0.4, 0.1)])
    assert both == Reading(1000, pytest.approx(0.625), pytest.approx(0.5), pytest.approx(0.125), pytest.approx(0.75))


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_the_speed_of_two_halves_is_their_harmonic_mean(ones: int, others: int) -> None:
    [both] = even([reading(ones)], [reading(others)])
    assert both.ops_per_s == pytest.approx(2 / (1 / reading(ones).ops_per_s + 1 / reading(others).ops_per_s))


def test_a_half_in_which_nothing_was_done_is_refused() -> None:
    with pytest.raises(ValueError, match="none in one"):
        even([reading(0)], [reading(1)])


def test_operations_for_a_second_of_cpu_are_compared_over_all_turns() -> None:
    ones, others = [reading(1000, generator=0.2)] * 2, [reading(1000, generator=0.4)] * 2
    assert cpu_ratio(ones, others) == pytest.approx(2.0)
