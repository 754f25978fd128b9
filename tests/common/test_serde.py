from __future__ import annotations

import msgspec
import pytest

from common.plan.schema import Load, Plan
from common.serde import from_builtins, to_builtins
from common.units import Seconds


def test_quantities_become_numbers_and_back() -> None:
    plain = to_builtins(Load(duration_s=Seconds(1.5)))
    assert type(plain["duration"]) is float
    assert type(from_builtins(plain, Load).duration_s) is Seconds


def test_a_plan_becomes_builtins_and_back() -> None:
    assert from_builtins(to_builtins(Plan()), Plan) == Plan()


def test_the_text_of_a_quantity_is_parsed() -> None:
    assert from_builtins({"duration": "90s"}, Load).duration_s == 90


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="durations"):
        from_builtins({"durations": 1}, Load)


def test_other_types_are_refused() -> None:
    with pytest.raises(NotImplementedError, match="object"):
        to_builtins(object())
    with pytest.raises(NotImplementedError, match="range"):
        from_builtins(3, range)
