r"""Split a line into the arguments of a command, and join them again, by the rules of redis-cli.

    unquoted          literal, backslashes included, up to the next blank
    "in quotes"       with the escapes \n \r \t \b \a \\ \" \' and \xHH (any byte)
    'in quotes'       literal, except for \', which is a quote

A closing quote ends the argument. Two forms that redis-cli would change silently are refused: a quote within an
unquoted argument, such as {"a":1}, and any other escape in double quotes.

A word is text. Bytes that are written as escapes, or that come from the command line and are not UTF-8, are in it as
one code point each: 0xDC00 plus the byte, as with `surrogateescape`. Such a byte is never part of a placeholder.
"""

from __future__ import annotations

import re

from common.units import show

_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "a": "\a", "\\": "\\", '"': '"', "'": "'"}
_ESCAPED = {mark: f"\\{letter}" for letter, mark in _ESCAPES.items() if letter != "'"}
_BLANK = " \t\n\v\f\r"
_ENDS_UNQUOTED = " \t\n\r"
_BYTE = 0xDC00
_HEX = re.compile(r"x([0-9a-fA-F]{2})")
_RAW_BYTE = re.compile("[\udc00-\udcff]")
_SAFE = re.compile(r"""[^\s"'\x00-\x1f\x7f\ud800-\udfff]+""")


def split_words(text: str) -> list[str]:
    """The words of a line. Raises ValueError for a quote that does not end or is misplaced."""
    words: list[str] = []
    at = 0
    while True:
        while at < len(text) and text[at] in _BLANK:
            at += 1
        if at == len(text):
            return words
        begin, quote = at, text[at]
        if quote in "\"'":
            word, at = _quoted(text, at)
            if at < len(text) and text[at] not in _BLANK:
                raise ValueError(f"a quote closes before the end of its argument, at {show(text[begin:][:40])}")
        else:
            while at < len(text) and text[at] not in _ENDS_UNQUOTED:
                at += 1
            word = text[begin:at]
            if '"' in word or "'" in word:
                raise ValueError(_inner_quote(word))
        words.append(word)


def _quoted(text: str, begin: int) -> tuple[str, int]:
    """(the text between the opening quote at `begin` and its closing quote, the position after the closing quote)."""
    quote, at = text[begin], begin + 1
    letters: list[str] = []
    while at < len(text):
        letter = text[at]
        if letter == quote:
            return "".join(letters), at + 1
        if letter == "\\" and quote == '"':
            letter, length = _escape(text, at)
            at += length
        elif letter == "\\" and text[at + 1 : at + 2] == "'":
            letter = "'"
            at += 1
        letters.append(letter)
        at += 1
    raise ValueError(f"no closing quote: the one at {show(text[begin:][:40])} does not end")


def _escape(text: str, at: int) -> tuple[str, int]:
    """(the character that the escape at this backslash stands for, the number of characters after the backslash)."""
    if found := _HEX.match(text, at + 1):
        return chr(_BYTE + int(found[1], 16)), 3
    letter = text[at + 1 : at + 2]
    if letter in _ESCAPES:
        return _ESCAPES[letter], 1
    if not letter:
        return "\\", 0  # the text ends here: `_quoted` reports the missing closing quote
    raise ValueError(
        rf"in double quotes expected \n, \r, \t, \b, \a, \\, \" or \xHH, got {text[at:][:2]}; write \\ for a backslash"
    )


def _inner_quote(word: str) -> str:
    remedy = """single quotes, such as '{"a": 1}'""" if "'" not in word else """double quotes, such as "it's\""""
    return f"a quote within the unquoted argument {show(word[:40])}; put the whole argument in {remedy}"


def word_bytes(word: str) -> bytes:
    """The bytes of a word."""
    if word.isascii():
        return word.encode()
    parts = re.split(f"({_RAW_BYTE.pattern})", word)
    return b"".join(
        bytes([ord(part) - _BYTE]) if _RAW_BYTE.fullmatch(part) else part.encode() for part in parts if part
    )


def bytes_word(data: bytes) -> str:
    """The word for literal bytes, without placeholders."""
    # Two underscores may begin a placeholder, so the first one becomes a byte.
    return re.sub("_(?=_)", "\udc5f", data.decode(errors="surrogateescape"))


def quote_word(word: str) -> str:
    """A word in the form that `split_words` reads back; in quotes only if necessary."""
    if _SAFE.fullmatch(word):
        return word
    if "'" not in word and not word.endswith("\\") and word.isprintable():
        return f"'{word}'"
    return f'"{"".join(map(_escaped, word))}"'


def _escaped(letter: str) -> str:
    if _RAW_BYTE.fullmatch(letter):
        return f"\\x{ord(letter) - _BYTE:02x}"
    return _ESCAPED.get(letter) or (f"\\x{ord(letter):02x}" if letter < " " or letter == "\x7f" else letter)


def show_word(word: str) -> str:
    """A word in quotes, for a message; bytes as escapes."""
    return show(_RAW_BYTE.sub(lambda byte: _escaped(byte[0]), word))


def join_words(words: list[str]) -> str:
    """A line that `split_words` splits into these words."""
    return " ".join(map(quote_word, words))


def as_text(line: str) -> str:
    """A line from the command line as UTF-8 text; other bytes become escapes. Raises ValueError like `split_words`."""
    return join_words(split_words(line)) if _RAW_BYTE.search(line) else line
