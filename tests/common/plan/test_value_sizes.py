from __future__ import annotations

import pytest

from common.errors import PlanError
from common.plan.schema import Values
from common.plan.value_sizes import mean_value_bytes, parse_size_file
from common.serde import from_builtins


def test_lines_are_sizes_with_weights_and_comments() -> None:
    text = b"# what we saw in June\n\n100 3\n 1KiB\t0.5 # large ones\n7\n"
    assert parse_size_file(text, "s.txt") == [
        {"size": 100, "weight": 3.0},
        {"size": 1024, "weight": 0.5},
        {"size": 7, "weight": 1.0},
    ]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"1 2 3", 's.txt: line 1: expected a size and its weight such as "1KiB 30", got "1 2 3"'),
        (b"\nlarge 2", 's.txt: line 2: expected a size such as 100, "1KiB" or "4MB", got "large"'),
        (b"1 -2", 's.txt: line 1: expected a weight of 0 or more, got "-2"'),
        (b"1 many", 's.txt: line 1: expected a weight of 0 or more, got "many"'),
        (b"1 nan", 's.txt: line 1: expected a weight of 0 or more, got "nan"'),
        (b"# none", 's.txt: expected a size and its weight such as "1KiB 30" on each line, got none'),
        (b"\xff\xfe", "s.txt: expected lines of text, got a file that is not UTF-8"),
    ],
)
def test_a_fault_in_a_line_has_its_number(text: bytes, line: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse_size_file(text, "s.txt")
    assert str(caught.value) == line


def test_the_mean_of_sizes_is_weighted() -> None:
    assert mean_value_bytes(from_builtins({"minimum": 10, "maximum": 20}, Values)) == 15
    assert mean_value_bytes(from_builtins({"sizes": [{"size": 10, "weight": 3}, {"size": 50}]}, Values)) == 20
