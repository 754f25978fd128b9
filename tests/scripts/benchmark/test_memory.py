from __future__ import annotations

import pytest

from scripts.benchmark.memory import growth


def test_memory_that_is_allocated_during_the_warm_up_is_no_growth() -> None:
    assert growth([1, 2, *[100] * 18]) == 0


def test_growth_is_measured_from_the_second_tenth_to_the_last() -> None:
    assert growth([100] * 10 + [110] * 10) == pytest.approx(0.1)
    assert growth([100] * 10 + [90] * 10) == pytest.approx(-0.1)


def test_one_second_with_more_memory_is_no_growth() -> None:
    assert growth([100] * 95 + [500, *[100] * 4]) == 0


def test_fewer_than_ten_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 10"):
        growth([100] * 9)
