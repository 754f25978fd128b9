from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.commands.splitting import as_text, bytes_word, join_words, quote_word, split_words, word_bytes
from common.commands.template import parse_template


def split(line: str) -> list[bytes]:
    return [word_bytes(word) for word in split_words(line)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", []),
        (" \t\n\v\f\r ", []),
        ("SET  a\tb\n", [b"SET", b"a", b"b"]),
        ("a\vb a\fb", [b"a\vb", b"a\fb"]),
        (r"SET k C:\temp\new", [b"SET", b"k", rb"C:\temp\new"]),
        (r'"\x00\xff\xFf" x', [b"\x00\xff\xff", b"x"]),
        (r'"\n\r\t\b\a\\\"\'"', [b"\n\r\t\b\a\\\"'"]),
        (r"'\n\x00' '\''", [rb"\n\x00", b"'"]),
        ("""'{"a": 1}'""", [b'{"a": 1}']),
        (r'"{\"a\":\"it' + "'" + r's\"}"', [b'{"a":"it' + b"'" + b's"}']),
        ("\"\" ''", [b"", b""]),
        (r"a\ b", [b"a\\", b"b"]),
        ("é \u00a0", ["é".encode(), "\u00a0".encode()]),
        ('"é\\xe9"', ["é".encode() + b"\xe9"]),
    ],
)
def test_a_line_is_split_as_redis_cli_splits_it(line: str, words: list[bytes]) -> None:
    # Checked with redis-cli 7.0: each line as `RPUSH list ...`, then LRANGE.
    assert split(line) == words


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('SET k {"a":1}', 'unquoted argument "{"a":1}"; put the whole argument in single quotes, such as'),
        ('SET k a"b"', "a quote within the unquoted argument"),
        ("ECHO don't", """put the whole argument in double quotes, such as "it's\""""),
        ('SET "a"b', "a quote closes before the end of its argument"),
        ("""ECHO 'it'"'"'s'""", "a quote closes before the end of its argument"),
        ("SET 'a", "no closing quote"),
        (r"SET 'a\'", "no closing quote"),
        ('SET "a', "no closing quote"),
        ('SET "a\\', "no closing quote"),
        (r'FT.SEARCH "\d+"', r"write \\ for a backslash"),
        (r'SET "\x4"', r"expected \n, \r, \t, \b, \a, \\, \" or \xHH, got \x"),
    ],
)
def test_a_line_that_redis_cli_would_change_silently_is_refused(line: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)) as raised:
        split_words(line)
    assert "\n" not in str(raised.value)


@given(st.lists(st.binary(max_size=12), max_size=5))
def test_any_bytes_survive_quoting(arguments: list[bytes]) -> None:
    line = join_words([bytes_word(data) for data in arguments])
    assert split(line) == arguments
    assert "__" not in line
    line.encode()  # text that can be printed, and kept in a plan


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=12), max_size=5))
def test_any_words_survive_quoting(words: list[str]) -> None:
    assert split(join_words(words)) == [word.encode() for word in words]


@given(st.binary(max_size=12).map(lambda data: data.decode(errors="surrogateescape")))
def test_a_flag_with_any_bytes_becomes_text_for_the_same_bytes(word: str) -> None:
    line = as_text(f"SET __key__ {quote_word(word)} {word if word.isalnum() else ''}")
    line.encode()
    assert "__key__" in line
    assert split(line)[2] == word.encode(errors="surrogateescape")


def test_a_flag_of_text_stays_unchanged() -> None:
    assert as_text("SET  __key__   'é'") == "SET  __key__   'é'"
    assert as_text("SET __key__ \udcff\udc80é") == r'SET __key__ "\xff\x80é"'


def test_a_message_shows_bytes_as_escapes() -> None:
    with pytest.raises(ValueError, match=r"__seq:NAME__, got") as caught:
        parse_template(r'SET __key__ "\x00\xff__kye__\xc3"')
    assert r'got "__kye__" in "\x00\xff__kye__\xc3"' in str(caught.value)
