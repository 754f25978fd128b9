from __future__ import annotations

import msgspec
import pytest

from common.plan.schema import Load, Plan
from common.serde import from_builtins, to_builtins
from common.units import Seconds


def test_quantities_become_plain_numbers_and_come_back_as_themselves() -> None:
    plain = to_builtins(Load(duration_s=Seconds(1.5)))
    assert type(plain["duration"]) is float
    assert type(from_builtins(plain, Load).duration_s) is Seconds


def test_a_plan_survives_being_made_plain() -> None:
    assert from_builtins(to_builtins(Plan()), Plan) == Plan()


def test_text_of_a_quantity_is_read_where_the_type_asks_for_one() -> None:
    assert from_builtins({"duration": "90s"}, Load).duration_s == 90


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="durations"):
        from_builtins({"durations": 1}, Load)


def test_what_is_none_of_our_types_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="object"):
        to_builtins(object())
    with pytest.raises(NotImplementedError, match="range"):
        from_builtins(3, range)
