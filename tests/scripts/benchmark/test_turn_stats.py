from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts.benchmark.turn_stats import (
    Quartiles,
    TurnResult,
    combine_halves,
    core_utilization,
    cpu_s_per_million,
    ops_per_cpu_ratio,
    throughput_ratio,
    turn_order,
)


def turn(operations: int = 1000, seconds: float = 0.5, generator: float = 0.4, server: float = 0.1) -> TurnResult:
    return TurnResult(operations, seconds, generator, server, generator + server + 0.1)


def test_operations_per_second_are_divided_by_the_length_of_the_turn() -> None:
    assert turn(operations=1000, seconds=0.5).ops_per_s == 2000


def test_a_ratio_compares_turns_of_the_same_round() -> None:
    # Both get slower from round to round; the ratio stays 2 in each round.
    ones, others = [turn(2000), turn(1000), turn(400)], [turn(1000), turn(500), turn(200)]
    assert throughput_ratio(ones, others) == Quartiles(2.0, 2.0, 2.0, 2.0, 2.0)


def test_one_disturbed_round_does_not_move_the_median() -> None:
    ones = [turn(1000)] * 4 + [turn(10)]
    ratio = throughput_ratio(ones, [turn(1000)] * 5)
    assert ratio.median == 1.0
    assert ratio.minimum == 0.01


def test_different_numbers_of_turns_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        throughput_ratio([turn()], [turn()] * 2)


def test_the_middle_half_lies_between_the_quartiles() -> None:
    assert Quartiles.of([5.0, 1.0, 3.0, 2.0, 4.0]) == Quartiles(
        median=3.0, lower=2.0, upper=4.0, minimum=1.0, maximum=5.0
    )


@given(st.lists(st.floats(0.1, 10), min_size=1))
def test_quartiles_are_in_ascending_order(numbers: list[float]) -> None:
    spread = Quartiles.of(numbers)
    tolerance = 1e-9  # quartiles are interpolated, and rounded
    assert spread.minimum - tolerance <= spread.lower <= spread.median + tolerance
    assert spread.median - tolerance <= spread.upper <= spread.maximum + tolerance


def test_cpu_per_operation_is_taken_over_all_turns_together() -> None:
    assert cpu_s_per_million([turn(1000, generator=0.0), turn(3000, generator=0.2)]) == pytest.approx(50.0)


def test_utilization_is_the_share_that_server_and_generator_use_together() -> None:
    assert core_utilization([turn(seconds=0.5, generator=0.6, server=0.4)] * 3, cores=2) == pytest.approx(1.0)
    assert core_utilization([turn(seconds=0.5, generator=0.3, server=0.2)] * 3, cores=2) == pytest.approx(0.5)


@given(st.integers(1, 5), st.integers(-3, 100))
def test_each_contender_has_one_turn_per_round(contenders: int, number: int) -> None:
    assert sorted(turn_order(range(contenders), number)) == [*range(contenders)]


@given(st.integers(2, 5))
def test_each_contender_is_at_each_position_equally_often(contenders: int) -> None:
    counts = Counter(
        (position, contender)
        for number in range(2 * contenders)
        for position, contender in enumerate(turn_order(range(contenders), number))
    )
    assert set(counts.values()) == {2}


def test_combined_halves_have_equally_many_operations_of_both() -> None:
    # One does 1000 per second, the other 4000. 500 operations of each take 0.5 s and 0.125 s.
    [both] = combine_halves([turn(500, 0.5, 0.4, 0.1)], [turn(2000, 0.5, 0.4, 0.1)])
    assert both == TurnResult(1000, pytest.approx(0.625), pytest.approx(0.5), pytest.approx(0.125), pytest.approx(0.75))


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_the_throughput_of_combined_halves_is_their_harmonic_mean(ones: int, others: int) -> None:
    [both] = combine_halves([turn(ones)], [turn(others)])
    assert both.ops_per_s == pytest.approx(2 / (1 / turn(ones).ops_per_s + 1 / turn(others).ops_per_s))


def test_a_half_without_operations_is_refused() -> None:
    with pytest.raises(ValueError, match="none in one"):
        combine_halves([turn(0)], [turn(1)])


def test_operations_per_cpu_second_are_compared_over_all_turns() -> None:
    ones, others = [turn(1000, generator=0.2)] * 2, [turn(1000, generator=0.4)] * 2
    assert ops_per_cpu_ratio(ones, others) == pytest.approx(2.0)
