"""Command templates: the arguments of a command in order, each a literal, a placeholder, or several pieces joined.

A placeholder (see `PLACEHOLDERS`) stands for a whole argument or for a part of one ("field:__rand(1,100)__"). A
placeholder that makes several arguments (`__keys(3)__`) must be a whole word.

`parse_template` reads a template from text, and `template_text` writes it as text. `Template.render` fills in the
placeholders.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from typing import TypeVar

import msgspec

from common.commands.splitting import bytes_word, quote_word, show_word, split_words, word_bytes

T = TypeVar("T")


class Placeholder(enum.Enum):
    """A value that is new for each operation: a whole argument, or a piece of one."""

    KEY = "__key__"
    DATA = "__data__"
    TEXT = "__text__"
    RAND_INT = "__rand_int__"
    TTL = "__ttl__"
    THREAD = "__thread__"
    SEQ = "__seq__"
    NEW_KEY = "__new_key__"
    CURSOR = "__cursor__"
    IDS = "__ids__"
    MESSAGE = "__message__"


KEY_PLACEHOLDERS = (Placeholder.KEY, Placeholder.NEW_KEY)


class RandomInteger(msgspec.Struct, frozen=True):
    """`__rand(low,high)__`: a whole number, uniform over low..high, both included."""

    low: int
    high: int


class ScriptDigest(msgspec.Struct, frozen=True):
    """`__sha(script)__`: the SHA-1 digest of one of the plan's scripts, for EVALSHA."""

    script: str


Variable = Placeholder | RandomInteger


class Repeated(msgspec.Struct, frozen=True):
    """A further occurrence of a named placeholder (`__seq:name__`): it has the value of the first occurrence.

    first: index of the first occurrence among all pieces of the template.
    """

    piece: Variable
    first: int


Piece = bytes | Placeholder | RandomInteger | ScriptDigest | Repeated


class Compound(msgspec.Struct, frozen=True):
    """An argument of several pieces."""

    pieces: tuple[Piece, ...]


Argument = Piece | Compound

PLACEHOLDERS: dict[str, str] = {
    "__key__": "a key, drawn from the command's keys",
    "__keys(N)__": "N arguments `__key__`",
    "__pairs(N)__": "N times `__key__ __data__`",
    "__new_key__": "a key beyond the largest number, different from the keys of other workers",
    "__data__": "a value",
    "__text__": "a value of letters, digits, - and _, which JSON need not escape",
    "__rand(A,B)__": "a whole number, uniform over A..B, both included",
    "__rand_int__": "a number drawn like key numbers, in 12 digits",
    "__rand_1st__": "a `__rand_int__` shared by all its places in a command; also `__rand_2nd__` to `__rand_9th__`",
    "__ttl__": "a time to live in whole seconds, drawn from the plan's expiry",
    "__thread__": "the number of the worker in the fleet",
    "__seq__": "1, 2, 3..., counted by each worker",
    "__cursor__": "the cursor of the worker's last SCAN, HSCAN, SSCAN or ZSCAN; 0 at first and after the end",
    "__ids__": "in `then`: the ids of the stream entries in the reply, one argument each",
    "__sha(NAME)__": "the digest of one of the plan's scripts",
    "__message__": "a message whose delivery is measured",
    "__seq:NAME__": "any drawn placeholder with a name: the same value at all its places in a command",
}
"""Every placeholder, and its meaning as text."""

MOST_REPEATED = 10_000
_SMALLEST, _LARGEST = -(1 << 62), 1 << 62
_WHOLE_ARGUMENT = frozenset({Placeholder.IDS, Placeholder.MESSAGE})
_BY_TEXT = {placeholder.value: placeholder for placeholder in Placeholder}
_NAMED = (
    Placeholder.KEY,
    Placeholder.NEW_KEY,
    Placeholder.DATA,
    Placeholder.TEXT,
    Placeholder.RAND_INT,
    Placeholder.TTL,
    Placeholder.SEQ,
)
# Anything between double underscores counts as a placeholder; a name may have single underscores.
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9.-]|_(?!_))*"
_MARK = re.compile(rf"__[A-Za-z](?:[A-Za-z0-9]|_(?!_))*(?:\([^()]*\))?(?::{_NAME})?__")
_CALL = re.compile(r"__([a-z]+)\(([^()]*)\)__")
_WITH_NAME = re.compile(rf"(__[A-Za-z_]+(?:\([^()]*\))?):({_NAME})__")
_ORDINAL = re.compile(r"__rand_(?:1st|2nd|3rd|[4-9]th)__")
"""The numbered placeholders of valkey-benchmark."""


class Template(msgspec.Struct, frozen=True):
    """A command's arguments in order. The first one is its name, in upper case, which also names its row in reports."""

    name: str
    arguments: tuple[Argument, ...]

    def pieces(self) -> Iterator[Piece]:
        """Every piece of every argument, in order."""
        for argument in self.arguments:
            yield from pieces_of(argument)

    def count(self, *wanted: Placeholder) -> int:
        """How many pieces are one of these placeholders. Repeated placeholders do not count."""
        return sum(piece in wanted for piece in self.pieces())

    def first_with(self, *wanted: Placeholder) -> int | None:
        """Index of the first argument that contains one of these placeholders."""
        return next(
            (index for index, argument in enumerate(self.arguments) if any(p in wanted for p in pieces_of(argument))),
            None,
        )

    @property
    def scripts(self) -> tuple[str, ...]:
        """Names of the scripts whose digests the template contains."""
        return tuple(piece.script for piece in self.pieces() if isinstance(piece, ScriptDigest))

    def render(self, resolve: Callable[[Variable | ScriptDigest], bytes]) -> tuple[bytes, ...]:
        """The arguments as bytes. resolve: returns the bytes of each piece that is not a literal. It is called in
        order, and for a repeated placeholder with the original."""

        def text(piece: Piece) -> bytes:
            source = original(piece)
            return source if isinstance(source, bytes) else resolve(source)

        return self.convert(text, b"".join)

    def convert(self, piece: Callable[[Piece], T], join: Callable[[tuple[T, ...]], T]) -> tuple[T, ...]:
        """One value for each argument: the result of `piece` for its only piece, or `join` of the results of several.
        Pieces are converted in order."""
        return tuple(
            join(tuple(map(piece, argument.pieces))) if isinstance(argument, Compound) else piece(argument)
            for argument in self.arguments
        )


def pieces_of(argument: Argument) -> tuple[Piece, ...]:
    """The pieces of one argument; one for an argument that is not a compound."""
    return argument.pieces if isinstance(argument, Compound) else (argument,)


def original(piece: Piece) -> bytes | Variable | ScriptDigest:
    """The placeholder that a repeated one repeats; any other piece itself."""
    return piece.piece if isinstance(piece, Repeated) else piece


def parse_template(text: str) -> Template:
    """A template from text, split as redis-cli splits a line (see `common.commands.splitting`).

    Raises ValueError if the text has no command, a quote does not end, or a placeholder is unknown or misplaced.
    """
    try:
        words = split_words(text)
    except ValueError as error:
        raise ValueError(
            f'expected a command such as "SET __key__ __data__", got {show_word(text)}: {error}'
        ) from error
    if not words or not words[0] or "__" in words[0]:
        raise ValueError(f'expected a command such as "SET __key__ __data__", got {show_word(text)}')
    name = words[0].upper()
    if not name.isprintable():
        raise ValueError(f"expected the name of a command, got {show_word(words[0])}")
    parser = _Parser()
    arguments: list[Argument] = [name.encode()]
    for word in words[1:]:
        arguments += parser.arguments(word)
    parser.check_names()
    return Template(name, tuple(arguments))


class _Parser:
    """Parses the words of one template in order. Remembers the first occurrence of each named placeholder."""

    def __init__(self) -> None:
        self._pieces = 1  # the command's name
        self._first: dict[str, Repeated] = {}
        self._used_once: dict[str, str] = {}

    def arguments(self, word: str) -> list[Argument]:
        """The arguments of one word: several for `__keys(N)__` and `__pairs(N)__`, otherwise one."""
        if "__" not in word:
            self._pieces += 1
            return [word_bytes(word)]
        call = _CALL.fullmatch(word)
        if call and call[1] in ("keys", "pairs"):
            repeated = _repeated(word, call[1], call[2])
            self._pieces += len(repeated)
            return repeated
        pieces: list[Piece] = []
        at = 0
        for mark in _MARK.finditer(word):
            if literal := word[at : mark.start()]:
                pieces.append(_literal(literal, word))
            pieces.append(self._placeholder(mark[0], word, self._pieces + len(pieces)))
            at = mark.end()
        if literal := word[at:]:
            pieces.append(_literal(literal, word))
        self._pieces += len(pieces)
        if len(pieces) == 1:
            return [pieces[0]]
        for piece in pieces:
            if piece in _WHOLE_ARGUMENT:
                assert isinstance(piece, Placeholder)
                raise ValueError(f"expected {piece.value} as a whole argument, got {show_word(word)}")
        return [Compound(tuple(pieces))]

    def check_names(self) -> None:
        """Raises ValueError for a name that is used only once: it may be misspelt."""
        for name, mark in self._used_once.items():
            raise ValueError(f'expected {mark} at several places of the command, got it at one; leave out ":{name}"')

    def _placeholder(self, mark: str, word: str, index: int) -> Piece:
        """The piece for a placeholder. index: among all pieces of the template."""
        if _ORDINAL.fullmatch(mark):
            return self._first.get(mark) or self._remember(mark, Placeholder.RAND_INT, index)
        named = _WITH_NAME.fullmatch(mark)
        if named is None:
            return _piece(mark, word)
        piece, name = _piece(f"{named[1]}__", word), named[2]
        if not (isinstance(piece, RandomInteger) or (isinstance(piece, Placeholder) and piece in _NAMED)):
            raise ValueError(f"expected {named[1]}__ without a name, got {show_word(mark)}")
        first = self._first.get(name)
        if first is None:
            self._used_once[name] = mark
            return self._remember(name, piece, index)
        self._used_once.pop(name, None)
        if first.piece != piece:
            raise ValueError(
                f"expected one placeholder for the name {name} in a command, got another one in {show_word(mark)}"
            )
        return first

    def _remember(self, name: str, piece: Variable, index: int) -> Piece:
        self._first[name] = Repeated(piece, index)
        return piece


def _literal(text: str, word: str) -> bytes:
    if "__" in text:
        raise _unknown(text, word)
    return word_bytes(text)


def _piece(mark: str, word: str) -> Piece:
    if mark in _BY_TEXT:
        return _BY_TEXT[mark]
    call = _CALL.fullmatch(mark)
    if call is None:
        raise _unknown(mark, word)
    name, inside = call[1], call[2].strip()
    if name == "rand":
        return _rand(inside, word)
    if name == "sha":
        if not inside:
            raise ValueError(
                f"expected __sha(NAME)__ with the name of one of the plan's scripts, got {show_word(word)}"
            )
        return ScriptDigest(inside)
    if name in ("keys", "pairs"):
        raise ValueError(f"expected __{name}(N)__ as a whole argument, got {show_word(word)}")
    raise _unknown(mark, word)


def _rand(inside: str, word: str) -> RandomInteger:
    numbers = [_whole(text) for text in inside.split(",")]
    if len(numbers) != 2 or None in numbers:
        raise ValueError(f"expected __rand(A,B)__ with two whole numbers, got {show_word(word)}")
    low, high = numbers
    assert low is not None
    assert high is not None
    if not _SMALLEST <= low <= high < _LARGEST:
        raise ValueError(f"expected __rand(A,B)__ with A <= B, both within 62 bits, got {show_word(word)}")
    return RandomInteger(low, high)


def _repeated(word: str, name: str, inside: str) -> list[Argument]:
    times = _whole(inside)
    if times is None or not 1 <= times <= MOST_REPEATED:
        raise ValueError(f"expected __{name}(N)__ with a number from 1 to {MOST_REPEATED}, got {show_word(word)}")
    unit: list[Argument] = [Placeholder.KEY] if name == "keys" else [Placeholder.KEY, Placeholder.DATA]
    return unit * times


def _whole(text: str) -> int | None:
    found = re.fullmatch(r"\s*(-?[0-9]{1,20})\s*", text)
    return int(found[1]) if found else None


def _unknown(found: str, word: str) -> ValueError:
    within = "" if found == word else f" in {show_word(word)}"
    return ValueError(
        f"expected one of {', '.join(PLACEHOLDERS)}, got {show_word(found)}{within}; "
        r'text with two underscores is "_\x5f" in double quotes'
    )


_FEWEST_REPEATS = 3
"""`template_text` writes this many keys, or pairs of key and value, in a row as `__keys(N)__` or `__pairs(N)__`."""


def template_text(template: Template) -> str:
    """A template as text, which `parse_template` reads back."""
    return " ".join(template_words(template))


def template_words(template: Template) -> list[str]:
    """The words of `template_text`, the first of which is the command's name."""
    names = {first: f"n{number}" for number, first in enumerate(_repeated_firsts(template), 1)}
    if names:
        return [template.name, *map(quote_word, _named_words(template, names))]
    words, arguments = [template.name], template.arguments[1:]
    texts = template.convert(_piece_text, "".join)[1:]
    index = 0
    while index < len(arguments):
        keys = _repeats(arguments[index:], (Placeholder.KEY,))
        pairs = _repeats(arguments[index:], (Placeholder.KEY, Placeholder.DATA))
        if keys >= _FEWEST_REPEATS:
            words.append(f"__keys({keys})__")
            index += keys
        elif pairs >= _FEWEST_REPEATS:
            words.append(f"__pairs({pairs})__")
            index += 2 * pairs
        else:
            words.append(quote_word(texts[index]))
            index += 1
    return words


def _repeated_firsts(template: Template) -> list[int]:
    return sorted({piece.first for piece in template.pieces() if isinstance(piece, Repeated)})


def _named_words(template: Template, names: Mapping[int, str]) -> tuple[str, ...]:
    """The words after the command's name. names: of placeholders that repeat, by the index of the first occurrence."""
    indexes = count()

    def text(piece: Piece) -> str:
        index = next(indexes)
        name = names.get(piece.first if isinstance(piece, Repeated) else index)
        plain = _piece_text(piece)
        return plain if name is None else f"{plain.removesuffix('__')}:{name}__"

    return template.convert(text, "".join)[1:]


def _piece_text(piece: Piece) -> str:
    match original(piece):
        case bytes() as literal:
            return bytes_word(literal)
        case Placeholder() as placeholder:
            return placeholder.value
        case RandomInteger(low, high):
            return f"__rand({low},{high})__"
        case ScriptDigest(script):
            return f"__sha({script})__"


def _repeats(arguments: tuple[Argument, ...], unit: tuple[Argument, ...]) -> int:
    """How often the arguments begin with this unit."""
    times = 0
    while arguments[times * len(unit) : (times + 1) * len(unit)] == unit:
        times += 1
    return times
