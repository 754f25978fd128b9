"""Which keys a plan may have written: told by how they look, so that no list of them has to be kept. Pure.

A family is the keys of one argument of one command: its literal pieces, and between them numbers of the command's range
and what else is drawn. `SET user:__key__ __data__` with the prefix "k" and a range of 1..9 may write user:k1 to
user:k9, and nothing else.
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
"""What they do is their script's matter: they may write."""

KeyPlaces = Callable[[tuple[bytes, ...]], frozenset[bytes] | None]
"""Told the arguments of a command, which of them are keys; None where that is not known."""
Writes = Callable[[str], bool]
"""Told the name of a command that the table does not know, whether it may write."""


class Issued(msgspec.Struct, frozen=True, kw_only=True):
    """A command that is issued before or during the load, and its keys."""

    template: Template
    keys: Keys


@dataclass(frozen=True, slots=True)
class Family:
    """glob: what SCAN is to look for; it may find more than `holds` says is ours. form: how a key looks. bounds: of the
    numbers that it captures, both ends included, None for no end. per_hash_tag: how many of them share each tag that it
    captures."""

    glob: bytes
    form: re.Pattern[bytes]
    bounds: tuple[tuple[int, int | None], ...] = ()
    per_hash_tag: int = 0

    def holds(self, key: bytes) -> bool:
        """Whether this is a key that the plan may have written."""
        found = self.form.fullmatch(key)
        if found is None:
            return False
        groups = found.groupdict()
        numbers = {name[1:]: int(text) for name, text in groups.items() if name[0] == "n"}
        tags = {name[1:]: int(text) for name, text in groups.items() if name[0] == "t"}
        within = (
            low <= number and (high is None or number <= high)
            for number, (low, high) in zip(numbers.values(), self.bounds, strict=True)
        )
        return all(within) and all(tag == numbers[place] // self.per_hash_tag for place, tag in tags.items())


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """All that a plan may have written. untold: names of commands that write keys which nobody can tell from others' by
    their look, because a value is part of them: they stay."""

    families: tuple[Family, ...]
    untold: tuple[str, ...]


def issued_commands(plan: Plan) -> Iterator[Issued]:
    """Every command of the plan: of its setup, its preload and its mix with all that follows."""
    workload = plan.workload
    for text in workload.setup:
        yield Issued(template=find_command(text), keys=workload.keys)
    for entry in workload.preload:
        template = find_command(entry.command, workload.expiry.maximum_s > 0)
        yield Issued(template=template, keys=keys_of(workload, entry))
    for planned in planned_commands(workload):
        yield Issued(template=planned.template, keys=keys_of(workload, planned.command))


def written(plan: Plan, places: KeyPlaces, writes: Writes) -> Written:
    """Each family once, in the order in which the plan comes to them. Raises ValueError as `find_command` does."""
    per_hash_tag = keys_per_hash_tag(plan.target, plan.workload)
    digests = script_digests(plan.workload)
    families: dict[Family, None] = {}
    untold: dict[str, None] = {}
    for issued in issued_commands(plan):
        if not _may_write(issued.template.name, writes):
            continue
        for argument, begin in _key_arguments(issued.template, places, digests):
            family = _family(argument, begin, issued.keys, per_hash_tag)
            if family is None:
                untold[issued.template.name] = None
            else:
                families[family] = None
    return Written(families=tuple(families), untold=tuple(untold))


def _may_write(name: str, writes: Writes) -> bool:
    if name in _SCRIPTED:
        return True
    return COMMANDS[name].writes if name in COMMANDS else writes(name)


def _key_arguments(template: Template, places: KeyPlaces, digests: Mapping[str, bytes]) -> list[tuple[Argument, int]]:
    """The arguments that are keys, each with the index of its first piece among all pieces. If the command's keys are
    not known, arguments with a key placeholder count as keys."""
    begins = accumulate((len(pieces_of(argument)) for argument in template.arguments), initial=0)
    samples = template.render(_Samples(digests))
    keys = places(samples)
    rows = list(zip(template.arguments, begins, samples, strict=False))[1:]
    if keys is None:
        return [(argument, begin) for argument, begin, _ in rows if _has_key(argument)]
    return [(argument, begin) for argument, begin, sample in rows if sample in keys]


def _has_key(argument: Argument) -> bool:
    return any(original(piece) in KEY_PLACEHOLDERS for piece in pieces_of(argument))


class _Samples:
    """Sample values for a template's pieces; every key is a different one."""

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


_COUNTED: dict[Placeholder, bytes] = {
    Placeholder.RAND_INT: rb"[0-9]{12,}",
    Placeholder.TTL: _NUMBER,
    Placeholder.THREAD: _NUMBER,
    Placeholder.SEQ: _NUMBER,
}
"""How the pieces of a key look that are numbers without a range. Values and the like can look like anything."""


def _family(argument: Argument, begin: int, keys: Keys, per_hash_tag: int) -> Family | None:
    """The keys that an argument can be; None if they cannot be told from other keys. begin: the place of the argument's
    first piece among all pieces of the template."""
    form, glob, is_open = b"", b"", False
    bounds: list[tuple[int, int | None]] = []
    pieces = pieces_of(argument)
    repeated = {piece.first - begin for piece in pieces if isinstance(piece, Repeated)}
    for place, piece in enumerate(pieces):
        literal, number = b"", b""
        if isinstance(piece, Repeated) and piece.first >= begin:
            form += b"(?P=a%d)" % (piece.first - begin)
            continue
        match original(piece):
            case bytes() as text:
                literal = text
            case RandomInteger(low, high):
                number = rb"(?P<n%d>-?%b)" % (place, _NUMBER)
                bounds.append((low, high))
            case (Placeholder.KEY | Placeholder.NEW_KEY) as drawn:
                literal = keys.prefix.encode()
                tag = rb"\{(?P<t%d>%b)\}:" % (place, _NUMBER) if per_hash_tag else b""
                number = tag + rb"(?P<n%d>%b)" % (place, _NUMBER)
                is_new = drawn is Placeholder.NEW_KEY
                bounds.append((int(keys.maximum) + 1, None) if is_new else (int(keys.minimum), int(keys.maximum)))
            case Placeholder() as drawn if drawn in _COUNTED:
                number = _COUNTED[drawn]
            case _:
                return None
        one = re.escape(literal) + number
        form += b"(?P<a%d>%b)" % (place, one) if place in repeated else one
        if not is_open:
            glob += _GLOB_SPECIAL.sub(rb"\\\1", literal) + (b"*" if number else b"")
            is_open = bool(number)
    return Family(glob=glob, form=re.compile(form, re.DOTALL), bounds=tuple(bounds), per_hash_tag=per_hash_tag)
