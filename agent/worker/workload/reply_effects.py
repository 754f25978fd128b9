"""What a reply leads to: a cursor that moves on, a value that is verified, commands that follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from agent.worker.metrics.wire_sizes import request_bytes
from agent.worker.workload.arguments import Arguments, Filler, Rows, Supplies
from agent.worker.workload.distributions import Numbers
from agent.worker.workload.sequences import SEQUENCE, Counters
from agent.worker.workload.values import is_sealed
from common.commands import COMMANDS, Placeholder, ReplyKind, Template
from common.plan.schema import When
from common.redis_client import Failure

Follow: TypeAlias = Callable[[Any], Failure | None]
"""What a reply leads to: told each reply that is no error, before the next operation of its thread is drawn. Returns
how the operation ended after all when the reply is not what it should be."""

Operation: TypeAlias = tuple[int, Arguments, int, Follow | None]
"""(row, arguments, request bytes, follow). row: index into `Mix.names`. arguments: the command's name first, as
text."""

MISMATCH = Failure(replied=True, name="DataMismatch", bytes_in=0)
"""A value that is not what was written to its key: another one's, cut short or damaged."""

_START = b"0"
_IDS = b"__ids__"
_FEW = 64
"""Arguments of following commands drawn at a time, where nothing about them depends on what they follow."""


class Cursor:
    """How far one SCAN, HSCAN, SSCAN or ZSCAN of a thread has come. As long as it is under way, it keeps its key."""

    def __init__(self) -> None:
        self._at = _START
        self.key = b""

    def at(self) -> bytes:
        """The cursor to ask with."""
        return self._at

    def hold(self, drawn: bytes) -> bytes:
        """The key to ask for, given the one that was drawn."""
        if self._at == _START:
            self.key = drawn
        return self.key

    def advance(self, reply: Any) -> None:
        """On to where the reply says; its first part does, whatever redis-py made of it."""
        if isinstance(reply, list | tuple) and reply:
            found = reply[0]
            self._at = found if isinstance(found, bytes) else str(found).encode()


def verifier_of(template: Template) -> Callable[[Arguments], Follow] | None:
    """What makes, of a call's arguments, the function that verifies its reply; None for commands whose reply is not the
    value of a key. Keys have to be arguments of their own."""
    row = COMMANDS.get(template.name)
    places = [index for index, part in enumerate(template.arguments) if part is Placeholder.KEY]
    if row is None or not places:
        return None
    if row.reply is ReplyKind.VALUE and places[0] == 1:
        return lambda arguments: partial(_verify_value, arguments[1])
    if row.reply is ReplyKind.VALUES and places == list(range(1, len(template.arguments))):
        return lambda arguments: partial(_verify_values, arguments[1:])
    return None


def _verify_value(key: str | bytes, reply: Any) -> Failure | None:
    """The reply is a value of this key, or several of them, or nothing."""
    values = reply if isinstance(reply, list | tuple) else (reply,)
    return None if all(is_sealed(value, key) for value in values if isinstance(value, bytes)) else MISMATCH


def _verify_values(keys: Sequence[str | bytes], reply: Any) -> Failure | None:
    """The reply holds a value, or nothing, for each of these keys."""
    if not isinstance(reply, list | tuple) or len(reply) != len(keys):
        return MISMATCH
    pairs = zip(reply, keys, strict=True)
    return None if all(value is None or is_sealed(value, key) for value, key in pairs) else MISMATCH


def is_miss(reply: Any) -> bool:
    """Whether a reply holds nothing: nil, empty, 0, or a list of nils."""
    return not reply or (isinstance(reply, list | tuple) and all(part is None for part in reply))


def wanted(when: When, miss: bool) -> bool:
    """Whether a command is to follow such a reply."""
    return when is When.ALWAYS or (when is When.MISS) is miss


def entry_ids(name: str, reply: Any) -> list[bytes]:
    """The ids of the stream entries in the reply to the command of this name, in their order."""
    if name == "XADD":
        return [reply] if isinstance(reply, bytes) else []
    if name in ("XREAD", "XREADGROUP"):
        return [entry for entries in _of_streams(reply) for entry in _ids(entries)]
    if name == "XAUTOCLAIM":
        return list(_ids(reply[1])) if isinstance(reply, list | tuple) and len(reply) > 1 else []
    return list(_ids(reply))


def _of_streams(reply: Any) -> Iterator[Any]:
    """The entries of each stream: redis-py gives pairs of name and entries, or a mapping of them to such lists."""
    if isinstance(reply, dict):
        for lists in reply.values():
            yield from lists
    else:
        for _, entries in reply or ():
            yield entries


def _ids(entries: Any) -> Iterator[bytes]:
    for entry in entries if isinstance(entries, list | tuple) else ():
        found = entry[0] if isinstance(entry, list | tuple) and entry else entry
        if isinstance(found, bytes):
            yield found


class FollowUp:
    """A command of one thread that follows another one, on the same key.

    supplies: as those of the command before. Of several `__key__`s the first is that key; the others are drawn as ever,
    or with hash tags from the key's own.
    """

    def __init__(
        self,
        row: int,
        when: When,
        template: Template,
        supplies: Supplies,
        numbers: Numbers,
        generator: np.random.Generator,
        counters: Counters,
    ) -> None:
        self.row, self.when = row, when
        self._key = b""
        self._verifier = verifier_of(template) if supplies.values.verify else None
        self._wants_ids = template.count(Placeholder.IDS) > 0
        late = {**supplies.late, Placeholder.IDS: lambda: _IDS}
        self._keyspace = supplies.keyspace
        self._filler = Filler(template, replace(supplies, late=late, hold=lambda _: self._key))
        self._numbers, self._generator, self._counters = numbers, generator, counters
        filler = self._filler
        alone = filler.new_keys or filler.sequences or (filler.keys > 1 and self._keyspace.per_hash_tag)
        self._at_a_time = 1 if alone else _FEW
        self._drawn: Iterator[Arguments] = iter(())

    def make(self, key: bytes, name: str, reply: Any) -> Operation | None:
        """The operation that follows this reply of the command `name` on this key; None when it names entries of the
        reply and there are none."""
        ids = entry_ids(name, reply) if self._wants_ids else []
        if self._wants_ids and not ids:
            return None
        self._key = key
        arguments = next(self._drawn, None)
        if arguments is None:
            self._drawn = self._draw(self._at_a_time)
            arguments = next(self._drawn)
        if ids:
            arguments = tuple(part for argument in arguments for part in (ids if argument is _IDS else (argument,)))
        follow = self._verifier(arguments) if self._verifier else None
        return self.row, arguments, request_bytes(arguments), follow

    def _draw(self, count: int) -> Iterator[Arguments]:
        filler, generator, keyspace = self._filler, self._generator, self._keyspace
        if filler.keys > 1 and keyspace.per_hash_tag:
            keys = keyspace.siblings(generator, np.array([keyspace.number(self._key)]), filler.keys)
        else:
            keys = self._numbers.draw(generator, count * filler.keys).reshape(count, filler.keys)
        rows = Rows(
            generator=generator,
            count=count,
            keys=keys,
            rand_ints=self._numbers.draw(generator, count * filler.rand_ints).reshape(count, filler.rand_ints),
            made=self._counters.take(keyspace.name, np.full(count, filler.new_keys)),
            sequence=self._counters.take(SEQUENCE, np.full(count, filler.sequences)),
        )
        return filler.fill(rows)[0]
