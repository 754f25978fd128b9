from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.commands import (
    COMMANDS,
    PLACEHOLDERS,
    Compound,
    Placeholder,
    RandomInteger,
    Repeated,
    ScriptDigest,
    Template,
    original,
    parse_template,
    template_text,
)
from common.commands.splitting import join_words

KEY, DATA = Placeholder.KEY, Placeholder.DATA


def test_a_template_is_split_like_redis_cli_and_its_placeholders_are_found() -> None:
    assert parse_template("set __key__ __data__ EX 10") == Template("SET", (b"SET", KEY, DATA, b"EX", b"10"))
    assert parse_template("EVAL 'return 1' 0") == Template("EVAL", (b"EVAL", b"return 1", b"0"))
    assert parse_template('ECHO ""') == Template("ECHO", (b"ECHO", b""))
    assert parse_template(r'SET __key__ "\x00\xff"') == Template("SET", (b"SET", KEY, b"\x00\xff"))
    assert parse_template(r"SET __key__ C:\temp") == Template("SET", (b"SET", KEY, rb"C:\temp"))
    assert parse_template(r'ECHO "\x5f_key\x5f_"') == Template("ECHO", (b"ECHO", b"__key__"))
    assert parse_template("ECHO é") == Template("ECHO", (b"ECHO", "é".encode()))


def test_placeholders_join_with_text_and_repeat() -> None:
    assert parse_template("HSET a:__key__ field:__rand(-1,10)__").arguments[1:] == (
        Compound((b"a:", KEY)),
        Compound((b"field:", RandomInteger(-1, 10))),
    )
    assert parse_template("X __key____seq__b").arguments[1:] == (Compound((KEY, Placeholder.SEQ, b"b")),)
    assert parse_template("MGET __keys(3)__").arguments[1:] == (KEY, KEY, KEY)
    assert parse_template("MSET __pairs(2)__").arguments[1:] == (KEY, DATA, KEY, DATA)
    assert parse_template("EVALSHA __sha(my_script)__ 0").arguments[1:] == (ScriptDigest("my_script"), b"0")


@pytest.mark.parametrize("name", list(PLACEHOLDERS))
def test_every_documented_placeholder_is_parsed(name: str) -> None:
    text = name.replace("(N)", "(2)").replace("(A,B)", "(1,2)").replace("(NAME)", "(main)")
    assert not all(isinstance(part, bytes) for part in parse_template(f"X {text} {text}").arguments)


def test_every_placeholder_is_documented() -> None:
    assert {placeholder.value for placeholder in Placeholder} <= set(PLACEHOLDERS)


def test_a_named_placeholder_refers_to_its_first_place() -> None:
    assert parse_template("SET k:__seq:n__ v:__seq:n__ __seq__ __seq:n__").arguments[1:] == (
        Compound((b"k:", Placeholder.SEQ)),
        Compound((b"v:", Repeated(Placeholder.SEQ, 2))),
        Placeholder.SEQ,
        Repeated(Placeholder.SEQ, 2),
    )
    assert parse_template("X a:__key__:b __keys(2)__ __seq:n__ __seq:n__").arguments[-1] == Repeated(Placeholder.SEQ, 6)
    template = parse_template("ZADD __key__ __rand(1,9):a.b_c__ __rand(1,9):a.b_c__ __key:a__ __key:a__")
    assert template.arguments[2:4] == (RandomInteger(1, 9), Repeated(RandomInteger(1, 9), 2))
    assert template.count(KEY) == 2
    assert parse_template("X __rand_1st__ __rand_2nd__ __rand_int__ a__rand_1st__").arguments[1:] == (
        Placeholder.RAND_INT,
        Placeholder.RAND_INT,
        Placeholder.RAND_INT,
        Compound((b"a", Repeated(Placeholder.RAND_INT, 1))),
    )
    assert [original(piece) for piece in template.pieces()][3] == RandomInteger(1, 9)


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",))).filter(lambda word: "__" not in word), max_size=5))
def test_any_words_become_literal_arguments(words: list[str]) -> None:
    parts = parse_template(join_words(["ECHO", *words])).arguments
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
def test_a_wrong_template_is_refused_with_what_would_be_right(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)) as raised:
        parse_template(text)
    assert "\n" not in str(raised.value)


def test_a_template_renders_each_piece_and_joins_those_of_one_argument() -> None:
    template = parse_template("SET k:__key:k__ __rand(3,9)__:__key:k__ __sha(one)__")

    def resolve(piece: Placeholder | RandomInteger | ScriptDigest) -> bytes:
        match piece:
            case RandomInteger(low):
                return b"%d" % low
            case ScriptDigest(script):
                return script.encode()
        return piece.value.strip("_").encode()

    assert template.render(resolve) == (b"SET", b"k:key", b"3:key", b"one")
    assert template.convert(repr, " ".join)[1] == "b'k:' <Placeholder.KEY: '__key__'>"
    assert (template.first_with(KEY), template.first_with(DATA)) == (1, None)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_the_text_of_a_template_parses_to_the_same_template(name: str) -> None:
    template = COMMANDS[name].template
    assert parse_template(template_text(template)) == template


@pytest.mark.parametrize(
    "text",
    [
        "SET __key__ 'a b'",
        "MGET __keys(12)__",
        "MSET __pairs(3)__ __key__ x",
        "MSET __key__ __data__ __key__ __data__",
        "HSET __key__ 'a field:__rand(-1,100)__' __data__",
        "EVALSHA __sha(limiter)__ 1 __key__ __rand_int__",
        "SET x ''",
        r'SET x "\x00\xff\x5f_key"',
        "ZADD __key:n1__ __key__ __rand(1,9):n2__ a:__key:n1__:__rand(1,9):n2__",
        "MSET __key:n1__ __data:n2__ __key:n1__ __data:n2__ __key__ __data__",
    ],
)
def test_the_text_of_a_template_is_the_shortest_one(text: str) -> None:
    assert template_text(parse_template(text)) == text
