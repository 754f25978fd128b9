from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.units import (
    MOST_LISTED,
    Bytes,
    Count,
    Percentile,
    PerSecond,
    Seconds,
    SecondsOrOff,
    counted,
    format_bytes,
    format_count,
    format_seconds,
    listed,
    show,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("500ms", 0.5), ("1m30s", 90), ("2h", 7200), ("1d", 86400), ("29ms", 0.029), ("7", 7), ("1.5", 1.5)],
)
def test_a_duration_is_read_to_the_nearest_float(text: str, seconds: float) -> None:
    assert Seconds.parse(text) == seconds


@pytest.mark.parametrize(
    "value", ["", "five", "30 parsecs", "-1s", "inf", "nan", -1, True, None, [], math.nan, 10**400]
)
def test_a_malformed_duration_is_refused_and_quoted(value: object) -> None:
    with pytest.raises(ValueError, match=r'expected a duration such as "30s".*, got ') as caught:
        Seconds.parse(value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "per_second"), [("50k/s", 50_000), ("2000", 2000), ("600/m", 10), ("1.5M/sec", 1.5e6)]
)
def test_a_rate_is_read(text: str, per_second: float) -> None:
    assert PerSecond.parse(text) == per_second


@pytest.mark.parametrize("value", ["0", "-5", "k/s", "10/h", 0, -1, True, None, math.inf, 10**400])
def test_a_malformed_rate_or_one_of_zero_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected a rate above zero"):
        PerSecond.parse(value)


@pytest.mark.parametrize(
    ("text", "size"),
    [("100", 100), ("1KiB", 1024), ("4kB", 4000), ("1k", 1024), ("1.5KiB", 1536), ("0.1kB", 100), ("1MB", 10**6)],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert Bytes.parse(text) == size


@pytest.mark.parametrize("value", ["1.5", "1.0001KiB", "-1", "1TiB", "big", 1.5, True, None, {}])
def test_a_malformed_size_or_one_with_a_fraction_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected a size such as 100"):
        Bytes.parse(value)


@pytest.mark.parametrize(("text", "count"), [("1_000_000", 10**6), ("250k", 250_000), ("1.5M", 1_500_000), ("0", 0)])
def test_a_count_is_read(text: str, count: int) -> None:
    assert Count.parse(text) == count


@pytest.mark.parametrize("value", ["1.5", "1e6", "-1", "many", 1.0, True, None, "9" * 5000])
def test_a_malformed_count_or_one_with_a_fraction_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected a whole number such as"):
        Count.parse(value)


@given(st.integers(min_value=0, max_value=10**12))
def test_whole_milliseconds_are_written_and_read_exactly(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    written = format_seconds(seconds)
    assert math.isclose(Seconds.parse(written), seconds, rel_tol=1e-9, abs_tol=0)


@given(st.floats(min_value=1e-9, max_value=1e12))
def test_any_duration_is_written_and_read_to_ten_digits(seconds: float) -> None:
    assert math.isclose(Seconds.parse(str(Seconds(seconds))), seconds, rel_tol=1e-9)


@given(st.integers(min_value=0, max_value=2**63))
def test_any_size_is_written_and_read_exactly(size: int) -> None:
    assert Bytes.parse(str(Bytes(size))) == size
    assert Bytes.parse(format_bytes(size)) == Bytes.parse(size) == size


@given(st.integers(min_value=0, max_value=2**63))
def test_any_count_is_written_and_read_exactly(count: int) -> None:
    assert Count.parse(str(Count(count))) == Count.parse(count) == count


@given(st.floats(min_value=1e-3, max_value=1e12))
def test_any_rate_is_written_and_read_to_ten_digits(rate: float) -> None:
    assert math.isclose(PerSecond.parse(str(PerSecond(rate))), rate, rel_tol=1e-9)


@given(st.integers(min_value=1, max_value=10**10 - 1))
def test_any_whole_rate_of_ten_digits_is_written_and_read_exactly(rate: int) -> None:
    assert PerSecond.parse(format_count(rate)) == rate


@given(st.text())
def test_any_text_is_read_or_refused_with_a_value_error(text: str) -> None:
    for quantity in (Seconds, PerSecond, Bytes, Count):
        try:
            value = quantity.parse(text)
        except ValueError as error:
            value, message = None, str(error)
        else:
            message = ""
        assert message.isprintable()
        assert value is None or value >= 0


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.booleans()))
def test_a_shown_value_is_one_short_printable_line(value: object) -> None:
    assert len(show(value)) <= 60
    assert show(value).isprintable()


def test_a_shown_list_is_only_named_because_aliases_can_make_it_huge() -> None:
    nested: list[object] = []
    for _ in range(60):
        nested = [nested, nested]
    assert show(nested) == "a list"
    assert show({}) == "an empty mapping"
    assert show(10**9999) == "a number of more than 128 bits"


@pytest.mark.parametrize(
    ("number", "noun", "said"),
    [
        (1, "process", "1 process"),
        (2, "worker process", "2 worker processes"),
        (0, "client", "0 clients"),
        (1200, "key", "1,200 keys"),
        (3, "retry", "3 retries"),
        (1, "retry", "1 retry"),
        (2, "primary", "2 primaries"),
        (2, "batch", "2 batches"),
    ],
)
def test_a_count_has_its_noun_in_the_right_number(number: int, noun: str, said: str) -> None:
    assert counted(number, noun) == said


def test_a_long_list_ends_in_the_number_of_other_names() -> None:
    names = [f"web{number}" for number in range(1000)]
    assert listed(names[:MOST_LISTED]) == ", ".join(names[:MOST_LISTED])
    assert listed(names) == ", ".join(names[:MOST_LISTED]) + f" and {1000 - MOST_LISTED} more"
    assert listed([]) == ""


@pytest.mark.parametrize(
    ("value", "seconds", "text"), [("off", 0, "off"), (False, 0, "off"), (0, 0, "off"), ("2s", 2, "2s")]
)
def test_a_time_that_may_be_off(value: object, seconds: float, text: str) -> None:
    found = SecondsOrOff.parse(value)
    assert (found, str(found), SecondsOrOff.parse(str(found))) == (seconds, text, found)


def test_a_time_that_may_be_off_is_never_on() -> None:
    with pytest.raises(ValueError, match='expected a duration such as "1s", or "off", got true'):
        SecondsOrOff.parse(True)


@pytest.mark.parametrize("value", [50, 99.9, "97.5", " 1 "])
def test_a_percentile_is_a_number_above_0_and_below_100(value: object) -> None:
    assert Percentile.parse(value) == float(str(value))


@pytest.mark.parametrize("value", [0, 100, -1, "nan", "inf", "p50", "", None, True, [], 10**400])
def test_a_wrong_percentile_is_refused_and_quoted(value: object) -> None:
    with pytest.raises(ValueError, match=r"expected a percentile above 0 and below 100 such as 99.9, got "):
        Percentile.parse(value)
