"""The keys that a plan may have written, as patterns, so that no list of keys is necessary. Pure.

A pattern describes the keys of one argument of one command: literal pieces, and between them numbers of the command's
key range and other drawn values. `SET user:__key__ __data__` with the prefix "k" and a range of 1..9 may write user:k1
to user:k9 and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, count

import msgspec

from common.commands import (
    COMMANDS,
    KEY_PLACEHOLDERS,
    Argument,
    Placeholder,
    RandomInteger,
    Repeated,
    ScriptDigest,
    Template,
    Variable,
    find_command,
    original,
    pieces_of,
)
from common.plan.planned_commands import keys_of, keys_per_hash_tag, planned_commands, script_digests
from common.plan.schema import Keys, Plan

_GLOB_SPECIAL = re.compile(rb"([\\*?\[\]^-])")
_NUMBER = rb"(?:0|[1-9][0-9]*)"
_SCRIPTED = frozenset({"EVAL", "EVALSHA", "FCALL"})
"""Commands that run a script, which may write."""

FindKeys = Callable[[tuple[bytes, ...]], frozenset[bytes] | None]
"""Takes the arguments of a command, and returns which of them are keys; None if that is not known."""
IsWrite = Callable[[str], bool]
"""Takes the name of a command that is not in our table, and returns whether it may write."""


class IssuedCommand(msgspec.Struct, frozen=True, kw_only=True):
    """A command that the run issues before or during the load, and its key range."""

    template: Template
    keys: Keys


@dataclass(frozen=True, slots=True)
class KeyPattern:
    """glob: the pattern for SCAN, which may match other keys too. regex: matches a whole key, and captures its numbers.
    bounds: of each captured number, both ends included; None for no upper end. per_hash_tag: how many keys share each
    captured hash tag."""

    glob: bytes
    regex: re.Pattern[bytes]
    bounds: tuple[tuple[int, int | None], ...] = ()
    per_hash_tag: int = 0

    def matches(self, key: bytes) -> bool:
        """Return whether the plan may have written this key."""
        found = self.regex.fullmatch(key)
        if found is None:
            return False
        groups = found.groupdict()
        numbers = {name[1:]: int(text) for name, text in groups.items() if name[0] == "n"}
        tags = {name[1:]: int(text) for name, text in groups.items() if name[0] == "t"}
        within = (
            low <= number and (high is None or number <= high)
            for number, (low, high) in zip(numbers.values(), self.bounds, strict=True)
        )
        return all(within) and all(tag == numbers[index] // self.per_hash_tag for index, tag in tags.items())


class KeyPatterns(msgspec.Struct, frozen=True, kw_only=True):
    """All keys that a plan may have written. unrecognizable: commands whose keys contain a value, so that no pattern
    distinguishes these keys from other keys; they are not deleted."""

    patterns: tuple[KeyPattern, ...]
    unrecognizable: tuple[str, ...]


def issued_commands(plan: Plan) -> Iterator[IssuedCommand]:
    """Yield every command of the plan: setup, preload, mix, and the commands that follow one of the mix."""
    workload = plan.workload
    for text in workload.setup:
        yield IssuedCommand(template=find_command(text), keys=workload.keys)
    for entry in workload.preload:
        template = find_command(entry.command, workload.expiry.maximum_s > 0)
        yield IssuedCommand(template=template, keys=keys_of(workload, entry))
    for planned in planned_commands(workload):
        yield IssuedCommand(template=planned.template, keys=keys_of(workload, planned.command))


def key_patterns(plan: Plan, find_keys: FindKeys, is_write: IsWrite) -> KeyPatterns:
    """Return each pattern once, in the order of the plan's commands. Raises ValueError like `find_command`."""
    per_hash_tag = keys_per_hash_tag(plan.target, plan.workload)
    digests = script_digests(plan.workload)
    patterns: dict[KeyPattern, None] = {}
    unrecognizable: dict[str, None] = {}
    for issued in issued_commands(plan):
        if not _may_write(issued.template.name, is_write):
            continue
        for argument, begin in _key_arguments(issued.template, find_keys, digests):
            pattern = _pattern(argument, begin, issued.keys, per_hash_tag)
            if pattern is None:
                unrecognizable[issued.template.name] = None
            else:
                patterns[pattern] = None
    return KeyPatterns(patterns=tuple(patterns), unrecognizable=tuple(unrecognizable))


def _may_write(name: str, is_write: IsWrite) -> bool:
    if name in _SCRIPTED:
        return True
    return COMMANDS[name].writes if name in COMMANDS else is_write(name)


def _key_arguments(template: Template, find_keys: FindKeys, digests: Mapping[str, bytes]) -> list[tuple[Argument, int]]:
    """Return the arguments that are keys, each with the index of its first piece among the template's pieces. If the
    command's keys are not known, arguments with a key placeholder count as keys."""
    begins = accumulate((len(pieces_of(argument)) for argument in template.arguments), initial=0)
    samples = template.render(_Samples(digests))
    keys = find_keys(samples)
    rows = list(zip(template.arguments, begins, samples, strict=False))[1:]
    if keys is None:
        return [(argument, begin) for argument, begin, _ in rows if _has_key(argument)]
    return [(argument, begin) for argument, begin, sample in rows if sample in keys]


def _has_key(argument: Argument) -> bool:
    return any(original(piece) in KEY_PLACEHOLDERS for piece in pieces_of(argument))


class _Samples:
    """Sample values for a template's pieces; each key is different."""

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        self._digests = digests
        self._keys = count()

    def __call__(self, piece: Variable | ScriptDigest) -> bytes:
        match piece:
            case ScriptDigest(script):
                return self._digests.get(script, b"")
            case RandomInteger(low):
                return b"%d" % low
            case Placeholder.KEY | Placeholder.NEW_KEY:
                return b"key %d" % next(self._keys)
        return _SAMPLES.get(piece, b"1")


_SAMPLES: dict[Placeholder, bytes] = {
    Placeholder.DATA: b"value",
    Placeholder.TEXT: b"text",
    Placeholder.MESSAGE: b"message",
    Placeholder.CURSOR: b"0",
    Placeholder.IDS: b"0-1",
}


_NUMBERS: dict[Placeholder, bytes] = {
    Placeholder.RAND_INT: rb"[0-9]{12,}",
    Placeholder.TTL: _NUMBER,
    Placeholder.THREAD: _NUMBER,
    Placeholder.SEQ: _NUMBER,
}
"""Regular expressions of placeholders that are numbers without a range. A value can be anything, so it has none."""


def _pattern(argument: Argument, begin: int, keys: Keys, per_hash_tag: int) -> KeyPattern | None:
    """Return the pattern of the keys that an argument can be; None if it contains a value. begin: the index of the
    argument's first piece among the template's pieces."""
    regex, glob, is_open = b"", b"", False
    bounds: list[tuple[int, int | None]] = []
    pieces = pieces_of(argument)
    repeated = {piece.first - begin for piece in pieces if isinstance(piece, Repeated)}
    for index, piece in enumerate(pieces):
        literal, number = b"", b""
        if isinstance(piece, Repeated) and piece.first >= begin:
            regex += b"(?P=a%d)" % (piece.first - begin)
            continue
        match original(piece):
            case bytes() as text:
                literal = text
            case RandomInteger(low, high):
                number = rb"(?P<n%d>-?%b)" % (index, _NUMBER)
                bounds.append((low, high))
            case (Placeholder.KEY | Placeholder.NEW_KEY) as drawn:
                literal = keys.prefix.encode()
                tag = rb"\{(?P<t%d>%b)\}:" % (index, _NUMBER) if per_hash_tag else b""
                number = tag + rb"(?P<n%d>%b)" % (index, _NUMBER)
                is_new = drawn is Placeholder.NEW_KEY
                bounds.append((int(keys.maximum) + 1, None) if is_new else (int(keys.minimum), int(keys.maximum)))
            case Placeholder() as drawn if drawn in _NUMBERS:
                number = _NUMBERS[drawn]
            case _:
                return None
        part = re.escape(literal) + number
        regex += b"(?P<a%d>%b)" % (index, part) if index in repeated else part
        if not is_open:
            glob += _GLOB_SPECIAL.sub(rb"\\\1", literal) + (b"*" if number else b"")
            is_open = bool(number)
    return KeyPattern(glob=glob, regex=re.compile(regex, re.DOTALL), bounds=tuple(bounds), per_hash_tag=per_hash_tag)
