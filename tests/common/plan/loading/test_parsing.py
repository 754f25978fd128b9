from __future__ import annotations

import pytest

from common.errors import PlanError
from common.plan.loading.parsing import parse_plan_text


def refusal(data: bytes, name: str = "plan.yaml") -> str:
    with pytest.raises(PlanError) as caught:
        parse_plan_text(data, name)
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith(name)
    return line


def test_yaml_and_json_say_the_same() -> None:
    assert parse_plan_text(b"load: {duration: 30s}\n", "p.yaml") == parse_plan_text(
        b'{"load": {"duration": "30s"}}', "p.json"
    )


def test_a_byte_order_mark_is_ignored() -> None:
    assert parse_plan_text(b"\xef\xbb\xbfseed: 1", "p.yaml") == {"seed": 1}


def test_a_date_stays_text() -> None:
    assert parse_plan_text(b"a: 2001-01-01\nb: 2001-99-99", "p.yaml") == {"a": "2001-01-01", "b": "2001-99-99"}


def test_a_key_that_overrides_a_merged_one_is_not_a_duplicate() -> None:
    text = b"base: &b {x: 1}\nuse: {<<: *b, x: 2}\n"
    assert parse_plan_text(text, "p.yaml")["use"] == {"x": 2}


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"load: [1\nseed: 2", "plan.yaml:2:5: expected YAML, got: "),
        (b"load:\n\t- 1", "plan.yaml:2:1: expected YAML, got: "),
        (b"seed: 1\nload: {}\nseed: 2", 'plan.yaml:3:1: expected YAML, got: the key "seed" comes twice'),
        (b"load: {rate: 1, rate: 2}", 'plan.yaml:1:17: expected YAML, got: the key "rate" comes twice'),
        (b"a: 1\n---\nb: 2", "plan.yaml:2:1: expected YAML, got: "),
        (b"? [a, b]\n: 1", "plan.yaml:1:3: expected YAML, got: found unhashable key"),
        (b"a: *nobody", "plan.yaml:1:4: expected YAML, got: "),
        (b"a: !!python/object/apply:os.system [id]", "plan.yaml:1:4: expected YAML, got: could not determine"),
        (b"seed: 1\nb: \x07", "plan.yaml:2: expected YAML text, got the control character"),
    ],
)
def test_an_error_of_yaml_has_its_line_and_column(data: bytes, place: str) -> None:
    assert refusal(data).startswith(place)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b'{"seed": 1,\n "load" 2}', "plan.json:2:9: expected JSON, got: "),
        (b'{"seed": 1, "seed": 2}', 'plan.json: expected JSON, got: the key "seed" comes twice'),
        (b'{"seed": NaN}', "plan.json: expected JSON, got: NaN, which JSON does not have"),
        (b'{"seed": 1} {}', "plan.json:1:13: expected JSON, got: Extra data"),
    ],
)
def test_an_error_of_json_has_its_line_and_column(data: bytes, place: str) -> None:
    assert refusal(data, "plan.json").startswith(place)


@pytest.mark.parametrize("name", ["plan.yaml", "plan.json"])
def test_an_empty_file_is_refused(name: str) -> None:
    assert refusal(b" \n", name) == f"{name}: expected a plan, got an empty file"


def test_a_file_of_comments_is_refused() -> None:
    assert refusal(b"# nothing yet\n") == "plan.yaml: expected a plan, got nothing but comments"


def test_a_binary_file_is_refused() -> None:
    assert refusal(b"seed: \xff\xfe") == "plan.yaml: expected UTF-8 text, got byte 0xff at 6"


@pytest.mark.parametrize("name", ["plan.yaml", "plan.json"])
def test_too_deep_nesting_is_refused(name: str) -> None:
    assert refusal(b"[" * 100_000, name) == f"{name}: expected a plan, got lists or mappings nested too deeply"


@pytest.mark.parametrize("name", ["plan.yaml", "plan.json"])
def test_a_number_too_long_for_python_is_refused(name: str) -> None:
    refusal(b'{"seed": ' + b"9" * 5000 + b"}", name)


def test_a_word_that_begins_like_a_boolean_is_text() -> None:
    assert parse_plan_text(b"a: True0\nb: falsehood\nc: true", "p.yaml") == {"a": "True0", "b": "falsehood", "c": True}
