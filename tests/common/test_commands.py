from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from common.commands import (
    COMMANDS,
    PLACEHOLDERS,
    Holds,
    Mixed,
    Placeholder,
    Rand,
    SameAs,
    Sha,
    Template,
    find_command,
    origin,
    parse_template,
    sample_calls,
)
from common.commands.splitting import join_words
from common.plan.schema import Command, Script, Target, Workload
from tests.support.servers import Server

KEY, DATA = Placeholder.KEY, Placeholder.DATA


def test_a_template_is_split_as_redis_cli_does_and_its_placeholders_are_found() -> None:
    assert parse_template("set __key__ __data__ EX 10") == Template("SET", (b"SET", KEY, DATA, b"EX", b"10"))
    assert parse_template("EVAL 'return 1' 0") == Template("EVAL", (b"EVAL", b"return 1", b"0"))
    assert parse_template('ECHO ""') == Template("ECHO", (b"ECHO", b""))
    assert parse_template(r'SET __key__ "\x00\xff"') == Template("SET", (b"SET", KEY, b"\x00\xff"))
    assert parse_template(r"SET __key__ C:\temp") == Template("SET", (b"SET", KEY, rb"C:\temp"))
    assert parse_template(r'ECHO "\x5f_key\x5f_"') == Template("ECHO", (b"ECHO", b"__key__"))
    assert parse_template("ECHO é") == Template("ECHO", (b"ECHO", "é".encode()))


def test_placeholders_mix_with_text_and_repeat() -> None:
    assert parse_template("HSET a:__key__ field:__rand(-1,10)__").parts[1:] == (
        Mixed((b"a:", KEY)),
        Mixed((b"field:", Rand(-1, 10))),
    )
    assert parse_template("X __key____seq__b").parts[1:] == (Mixed((KEY, Placeholder.SEQ, b"b")),)
    assert parse_template("MGET __keys(3)__").parts[1:] == (KEY, KEY, KEY)
    assert parse_template("MSET __pairs(2)__").parts[1:] == (KEY, DATA, KEY, DATA)
    assert parse_template("EVALSHA __sha(my_script)__ 0").parts[1:] == (Sha("my_script"), b"0")


@pytest.mark.parametrize("name", list(PLACEHOLDERS))
def test_every_placeholder_that_people_are_told_of_is_understood(name: str) -> None:
    text = name.replace("(N)", "(2)").replace("(A,B)", "(1,2)").replace("(NAME)", "(main)")
    assert not all(isinstance(part, bytes) for part in parse_template(f"X {text} {text}").parts)


def test_people_are_told_of_every_placeholder() -> None:
    assert {placeholder.value for placeholder in Placeholder} <= set(PLACEHOLDERS)


def test_a_placeholder_with_a_name_is_the_same_at_each_of_its_places() -> None:
    assert parse_template("SET k:__seq:n__ v:__seq:n__ __seq__ __seq:n__").parts[1:] == (
        Mixed((b"k:", Placeholder.SEQ)),
        Mixed((b"v:", SameAs(Placeholder.SEQ, 2))),
        Placeholder.SEQ,
        SameAs(Placeholder.SEQ, 2),
    )
    template = parse_template("ZADD __key__ __rand(1,9):a.b_c__ __rand(1,9):a.b_c__ __key:a__ __key:a__")
    assert template.parts[2:4] == (Rand(1, 9), SameAs(Rand(1, 9), 2))
    assert template.count(KEY) == 2
    assert parse_template("X __rand_1st__ __rand_2nd__ __rand_int__ a__rand_1st__").parts[1:] == (
        Placeholder.RAND_INT,
        Placeholder.RAND_INT,
        Placeholder.RAND_INT,
        Mixed((b"a", SameAs(Placeholder.RAND_INT, 1))),
    )
    assert [origin(piece) for piece in template.pieces()][3] == Rand(1, 9)


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",))).filter(lambda word: "__" not in word), max_size=5))
def test_words_of_any_kind_come_through_as_they_are(words: list[str]) -> None:
    parts = parse_template(join_words(["ECHO", *words])).parts
    assert parts == (b"ECHO", *(word.encode() for word in words))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", 'expected a command such as "SET __key__ __data__", got ""'),
        ("   ", "expected a command such as"),
        ("__key__ GET", "expected a command such as"),
        ("SET 'a", "no closing quote"),
        ("GET__key__ 1", "expected a command such as"),
        ("SET __KEY__ 1", "expected one of __key__, __keys(N)__, "),
        ("SET __field__ 1", '__seq:NAME__, got "__field__"'),
        ("SET a:__field__ 1", '__seq:NAME__, got "__field__" in "a:__field__"'),
        ("SET a__b 1", '__seq:NAME__, got "a__b"'),
        ("SET __key____ 1", '__seq:NAME__, got "__" in "__key____"'),
        ("MGET __keys(0)__", 'expected __keys(N)__ with a number from 1 to 10000, got "__keys(0)__"'),
        ("MGET __keys(x)__", 'expected __keys(N)__ with a number from 1 to 10000, got "__keys(x)__"'),
        ("MSET __pairs(99999)__", "expected __pairs(N)__ with a number from 1 to 10000"),
        ("MGET a:__keys(2)__", 'expected __keys(N)__ as a whole argument, got "a:__keys(2)__"'),
        ("HGET __key__ __rand(1)__", 'expected __rand(A,B)__ with two whole numbers, got "__rand(1)__"'),
        ("HGET __key__ __rand(1,x)__", 'expected __rand(A,B)__ with two whole numbers, got "__rand(1,x)__"'),
        (
            "HGET __key__ f__rand(2,1)__",
            'expected __rand(A,B)__ with A <= B, both within 62 bits, got "f__rand(2,1)__"',
        ),
        ("EVALSHA __sha()__ 0", "expected __sha(NAME)__ with the name of one of the plan's scripts"),
        ("XACK __key__ g a__ids__", 'expected __ids__ as a whole argument, got "a__ids__"'),
        ("PUBLISH c a__message__", 'expected __message__ as a whole argument, got "a__message__"'),
        (
            "SET k:__seq:n__ v:__seq:m__",
            "expected __seq:n__ at several places of the command, got it at one; leave out",
        ),
        ("X __seq:n__ __key:n__", 'one placeholder for the name n in a command, got another one in "__key:n__"'),
        (
            "X __rand(1,2):n__ __rand(1,3):n__",
            'one placeholder for the name n in a command, got another one in "__rand(1,3)',
        ),
        ("XACK __key__ g __ids:n__", 'expected __ids__ without a name, got "__ids:n__"'),
        ("EVALSHA __sha(x):n__ 0", 'expected __sha(x)__ without a name, got "__sha(x):n__"'),
        ("MGET __keys(3):n__", 'expected __keys(N)__ as a whole argument, got "__keys(3):n__"'),
        ("SET __foo:n__ 1", '__seq:NAME__, got "__foo__" in "__foo:n__"'),
        ("SET __rand_10th__ 1", '__seq:NAME__, got "__rand_10th__"'),
        ("SET __foo(1)__ 1", '__seq:NAME__, got "__foo(1)__"'),
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


def test_a_name_that_is_not_in_the_table_is_refused_with_those_that_are_like_it() -> None:
    with pytest.raises(
        ValueError, match=r'a name of the command table, or a template .*, got "GETT"; did you mean GET '
    ):
        find_command("GETT")
    with pytest.raises(ValueError, match=r'got "JSON.MERGE"; say =JSON.MERGE if it takes no arguments'):
        find_command("JSON.MERGE")


def test_any_command_without_arguments_can_be_named() -> None:
    assert find_command("=ft._list") == Template("FT._LIST", (b"FT._LIST",))


def test_a_plan_with_an_expiry_gets_it_where_the_table_says_so() -> None:
    assert find_command("SET", expiring=True).parts == (b"SET", KEY, DATA, b"EX", Placeholder.TTL)
    assert find_command("SET __key__ 1", expiring=True).parts == (b"SET", KEY, b"1")
    assert find_command("GET", expiring=True).parts == (b"GET", KEY)


def test_every_row_is_found_by_its_name_and_begins_with_it() -> None:
    for name, row in COMMANDS.items():
        assert find_command(name) is row.template
        assert row.template.name == name
        assert row.template.parts[0] == name.encode()
        assert row.summary


def test_the_table_says_of_each_command_what_the_server_itself_says(valkey: Server) -> None:
    client = valkey.client(decode_responses=True)
    workload = Workload(scripts=(Script(name="main", lua="return 1"),))
    for name, row in COMMANDS.items():
        [told] = client.execute_command("COMMAND", "INFO", name).values()
        assert (("write" in told["flags"]) or name in _SCRIPTS) is row.writes, name
        arguments = len(row.template.parts)
        assert arguments == told["arity"] or arguments >= -told["arity"] > 0, name
        category = "keyspace" if row.group == "generic" else row.group
        assert row.group == "server" or f"@{category}" in told["acl_categories"], name
        assert ("blocking" in told["flags"]) is (row.timeout is not None), name
        [(_, call)] = sample_calls(Target(), replace(workload, commands=(Command(command=row.template.name),)))
        keys = [part for part in call if part.startswith(b"stampede:")]
        if keys:
            assert client.execute_command("COMMAND GETKEYS", *call) == [key.decode() for key in keys], name
        else:
            assert row.holds is Holds.NOTHING, name
            assert told["first_key_pos"] == 0 or row.group == "pubsub", name


_SCRIPTS = {"EVAL", "EVALSHA", "FCALL"}
"""The server cannot know whether these write."""
