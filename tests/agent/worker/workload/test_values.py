from __future__ import annotations

import json
import zlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.workload.values import ValueGenerator, is_intact, with_checksum
from common.plan.schema import Values
from common.plan.value_sizes import CHECKSUM_BYTES, largest_value
from common.serde import from_builtins


def values(**settings: Any) -> ValueGenerator:
    return ValueGenerator(from_builtins(settings, Values), 1)


def draw(drawn: ValueGenerator, count: int) -> list[bytes]:
    made, sizes = drawn.draw(np.random.default_rng(1), count)
    found = list(made)
    assert [len(value) for value in found] == sizes.tolist()
    return found


def test_listed_sizes_are_drawn_by_weight() -> None:
    sizes = [{"size": 10, "weight": 1}, {"size": 2000, "weight": 0}, {"size": 300, "weight": 3}]
    drawn = Counter(map(len, draw(values(sizes=sizes), 20_000)))
    assert set(drawn) == {10, 300}
    assert abs(drawn[10] / 20_000 - 0.25) < 0.01


def test_the_largest_value_can_be_drawn() -> None:
    sizes = [{"size": 10, "weight": 1}, {"size": 2000, "weight": 0}]
    assert largest_value(from_builtins({"sizes": sizes}, Values)) == 10
    assert largest_value(from_builtins({"minimum": 5, "maximum": 70}, Values)) == 70


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.8, 0.95])
def test_a_compressor_removes_the_planned_share(share: float) -> None:
    for value in draw(values(minimum=100_000, maximum=100_000, compressible=share), 3):
        taken = 1 - len(zlib.compress(value, 6)) / len(value)
        assert abs(taken - share) < 0.03


@pytest.mark.parametrize("share", [0.0, 0.25, 0.3, 0.5, 0.8, 0.95])
def test_a_compressor_removes_at_least_a_quarter_of_text(share: float) -> None:
    for value in draw(values(minimum=100_000, maximum=100_000, compressible=share, kind="text"), 3):
        taken = 1 - len(zlib.compress(value, 6)) / len(value)
        assert abs(taken - max(share, 0.25)) < 0.03


def test_text_has_letters_and_digits_that_json_does_not_escape() -> None:
    drawn = values(minimum=1000, maximum=1000, kind="text")
    for value in draw(drawn, 100):
        text = value.decode("ascii")
        assert json.loads(f'"{text}"') == text
        assert text.isprintable()
    assert len(set(draw(drawn, 100))) == 100


def test_compressible_values_differ() -> None:
    assert len(set(draw(values(minimum=300, maximum=300, compressible=0.5), 200))) > 150


def test_values_that_compress_completely_are_zeros() -> None:
    [value] = draw(values(minimum=1000, maximum=1000, compressible=1), 1)
    assert value == bytes(1000)


@given(key=st.binary(max_size=40), value=st.binary(max_size=200), other=st.binary(max_size=40))
def test_a_value_with_a_checksum_keeps_its_size_and_is_intact_for_its_key_only(
    key: bytes, value: bytes, other: bytes
) -> None:
    made = with_checksum(value, key)
    assert len(made) == max(len(value), CHECKSUM_BYTES + len(key))
    assert is_intact(made, key)
    assert is_intact(made, other) is (other == key or made[9:].startswith(other + b" "))


@given(
    key=st.binary(max_size=10),
    value=st.binary(min_size=30, max_size=60),
    place=st.integers(0, 29),
    bit=st.integers(0, 7),
)
def test_a_flipped_bit_is_detected(key: bytes, value: bytes, place: int, bit: int) -> None:
    made = bytearray(with_checksum(value, key))
    made[place] ^= 1 << bit
    assert not is_intact(bytes(made), key)
