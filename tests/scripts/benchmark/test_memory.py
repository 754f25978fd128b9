from __future__ import annotations

import pytest

from scripts.benchmark.memory import growth


def test_what_is_taken_while_all_warms_up_is_no_growth() -> None:
    assert growth([1, 2, *[100] * 18]) == 0


def test_growth_is_from_the_second_tenth_to_the_last() -> None:
    assert growth([100] * 10 + [110] * 10) == pytest.approx(0.1)
    assert growth([100] * 10 + [90] * 10) == pytest.approx(-0.1)


def test_one_large_second_is_no_growth() -> None:
    assert growth([100] * 95 + [500, *[100] * 4]) == 0


def test_a_few_sizes_tell_nothing() -> None:
    with pytest.raises(ValueError, match="at least 10"):
        growth([100] * 9)
