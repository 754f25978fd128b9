from __future__ import annotations

import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.commands import COMMANDS, Placeholder, Template, find_command, parse_template
from tests.support.servers import Server

KEY, DATA = Placeholder.KEY, Placeholder.DATA


def test_a_template_is_split_as_a_shell_does_and_its_placeholders_are_found() -> None:
    assert parse_template("set __key__ __data__ EX 10") == Template("SET", (b"SET", KEY, DATA, b"EX", b"10"))
    assert parse_template("EVAL 'return 1' 0") == Template("EVAL", (b"EVAL", b"return 1", b"0"))
    assert parse_template('ECHO ""') == Template("ECHO", (b"ECHO", b""))
    assert parse_template("ECHO é") == Template("ECHO", (b"ECHO", "é".encode()))


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",))).filter(lambda word: "__" not in word), max_size=5))
def test_words_of_any_kind_come_through_as_they_are(words: list[str]) -> None:
    parts = parse_template(shlex.join(["ECHO", *words])).parts
    assert parts == (b"ECHO", *(word.encode() for word in words))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", 'expected a command such as "SET __key__ __data__", got ""'),
        ("   ", "expected a command such as"),
        ("__key__ GET", "expected a command such as"),
        ("SET 'a", "No closing quotation"),
        ("SET prefix:__key__ 1", 'expected __key__ or __data__ as a whole argument, got "prefix:__key__"'),
        ("SET __KEY__ 1", "expected __key__ or __data__ as a whole argument"),
        ("SET __field__ 1", "expected __key__ or __data__ as a whole argument"),
    ],
)
def test_a_template_that_cannot_be_is_refused_with_what_would_be_right(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)) as raised:
        parse_template(text)
    assert "\n" not in str(raised.value)


def test_a_name_alone_means_its_row_of_the_table_and_more_words_a_template() -> None:
    assert find_command("lrange").parts == (b"LRANGE", KEY, b"0", b"9")
    assert find_command("LRANGE __key__ 0 -1").parts == (b"LRANGE", KEY, b"0", b"-1")
    assert find_command("MEMORY USAGE __key__").name == "MEMORY"


def test_a_name_that_is_not_in_the_table_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r'expected one of SET, GET, .*, or a template .*, got "GETT"'):
        find_command("GETT")


def test_every_row_is_found_by_its_name_and_begins_with_it() -> None:
    for name, row in COMMANDS.items():
        assert find_command(name) is row.template
        assert row.template.name == name
        assert row.template.parts[0] == name.encode()
        assert row.summary


def test_the_table_says_of_each_command_what_the_server_itself_says(valkey: Server) -> None:
    for name, row in COMMANDS.items():
        [told] = valkey.client(decode_responses=True).execute_command("COMMAND", "INFO", name).values()
        assert ("write" in told["flags"]) is row.writes, name
        arguments = len(row.template.parts)
        assert arguments == told["arity"] or arguments >= -told["arity"] > 0, name
        position = told["first_key_pos"]
        assert (row.template.parts[position] is KEY) if position else (KEY not in row.template.parts), name
        category = "keyspace" if row.group == "generic" else row.group
        assert f"@{category}" in told["acl_categories"], name
