from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.commands import COMMANDS, parse_template, template_labels

SCRIPT = 'EVAL \'return redis.call("GET", KEYS[1]) or redis.call("SET", KEYS[1], {})\' 1 __key__'


@pytest.mark.parametrize(
    ("texts", "labels"),
    [
        (["SET __key__ __data__", "GET __key__"], ["SET", "GET"]),
        (["SET __key__ __data__", "SET __key__ __data__ EX 60"], ["SET", "SET EX 60"]),
        (["SET __key__ __data__ EX 60", "SET __key__ __data__ EX 120"], ["SET EX 60", "SET EX 120"]),
        (["SET __key__ __data__", "SET __key__ __rand_int__"], ["SET __data__", "SET __rand_int__"]),
        (["HGET __key__ name", "HGET __key__ address"], ["HGET name", "HGET address"]),
        (["HSET __key__ f:__rand(1,9)__ __data__", "HSET __key__ n __data__"], ["HSET f:__rand(1,9)__", "HSET n"]),
        (["MGET __keys(3)__", "MGET __keys(30)__"], ["MGET __keys(3)__", "MGET __keys(30)__"]),
        ([SCRIPT.format(1), SCRIPT.format(2)], ["EVAL #1", "EVAL #2"]),
        ([SCRIPT.format(1), "EVAL 'return 1' 1 __key__"], ['EVAL \'return redis.call("GET"...', "EVAL 'return 1'"]),
        (['SET __key__ "\\x00"', 'SET __key__ "\\x01"'], ['SET "\\x00"', 'SET "\\x01"']),
    ],
)
def test_a_label_has_the_words_in_which_templates_of_a_command_differ(texts: list[str], labels: list[str]) -> None:
    assert list(template_labels(map(parse_template, texts)).values()) == labels


def test_equal_templates_have_one_label() -> None:
    templates = [parse_template(text) for text in ("GET __key__", "get __key__", "GET '__key__'")]
    assert list(template_labels(templates).values()) == ["GET"]


words = st.sampled_from(["__key__", "__data__", "EX", "60", "#1", "#2", "...", "x" * 40, "x" * 41, '"\\n"', "é"])
texts = st.lists(words, max_size=4).map(lambda drawn: " ".join(["SET", *drawn]))


@given(st.lists(texts, max_size=6))
def test_labels_are_distinct_short_and_printable(drawn: list[str]) -> None:
    templates = dict.fromkeys(map(parse_template, drawn))
    labels = list(template_labels(templates).values())
    assert len(set(labels)) == len(labels) == len(templates)
    assert all(len(label) <= 32 and label.isprintable() for label in labels)


def test_the_rows_of_the_command_table_are_labelled_by_their_names() -> None:
    labels = template_labels(row.template for row in COMMANDS.values())
    assert list(labels.values()) == list(COMMANDS)
