"""The effects of replies: a scan's cursor advances, a value is verified, or further commands follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from agent.worker.metrics.wire_sizes import request_bytes
from agent.worker.workload.arguments import ArgumentContext, Arguments, CommandBuilder, CommandNumbers
from agent.worker.workload.distributions import KeyDistribution
from agent.worker.workload.sampling import SEQUENCE, WorkerCounters
from agent.worker.workload.values import is_intact
from common.commands import COMMANDS, Placeholder, ReplyKind, Template
from common.plan.schema import When
from common.redis_client import Failure

OnReply: TypeAlias = Callable[[Any], Failure | None]
"""Called with each reply that is not an error, before the worker's next operation is drawn. Returns a Failure if the
reply is wrong, otherwise None."""

Operation: TypeAlias = tuple[int, Arguments, int, OnReply | None]
"""(row, arguments, request bytes, on_reply). row: index into `CommandMix.names`."""

MISMATCH = Failure(replied=True, name="DataMismatch", bytes_in=0, text="the reply is not the value of this key")
"""The reply is not the value that was written to its key: it belongs to another key, or is cut short or damaged."""

_START = b"0"
_IDS = b"__ids__"
_BUILT_AT_A_TIME = 64
"""Follow-up commands whose arguments are made together, if they do not depend on the reply."""


class ScanCursor:
    """The cursor of a worker's SCAN, HSCAN, SSCAN or ZSCAN. A scan keeps its key until its end."""

    def __init__(self) -> None:
        self._position = _START
        self.key = b""

    def position(self) -> bytes:
        """The cursor of the next call."""
        return self._position

    def choose_key(self, drawn: bytes) -> bytes:
        """The key of the next call: the drawn one at the start of a scan, else the scan's own."""
        if self._position == _START:
            self.key = drawn
        return self.key

    def advance(self, reply: Any) -> None:
        """Take the new position from a reply: its first item."""
        if isinstance(reply, list | tuple) and reply:
            found = reply[0]
            self._position = found if isinstance(found, bytes) else str(found).encode()


def verifier_of(template: Template) -> Callable[[Arguments], OnReply] | None:
    """A function that returns, for a call's arguments, the function that verifies the reply. None for commands whose
    reply is not the value of a key, or whose keys are only parts of arguments."""
    row = COMMANDS.get(template.name)
    places = [index for index, argument in enumerate(template.arguments) if argument is Placeholder.KEY]
    if row is None or not places:
        return None
    if row.reply is ReplyKind.VALUE and places[0] == 1:
        return lambda arguments: partial(_verify_value, arguments[1])
    if row.reply is ReplyKind.VALUES and places == list(range(1, len(template.arguments))):
        return lambda arguments: partial(_verify_values, arguments[1:])
    return None


def _verify_value(key: str | bytes, reply: Any) -> Failure | None:
    """The reply must be one or several values of this key, or nothing."""
    values = reply if isinstance(reply, list | tuple) else (reply,)
    return None if all(is_intact(value, key) for value in values if isinstance(value, bytes)) else MISMATCH


def _verify_values(keys: Sequence[str | bytes], reply: Any) -> Failure | None:
    """The reply must have a value, or nothing, for each of these keys."""
    if not isinstance(reply, list | tuple) or len(reply) != len(keys):
        return MISMATCH
    pairs = zip(reply, keys, strict=True)
    return None if all(value is None or is_intact(value, key) for value, key in pairs) else MISMATCH


def is_miss(reply: Any) -> bool:
    """Whether a reply has no data: nil, empty, 0, or a list of nils."""
    return not reply or (isinstance(reply, list | tuple) and all(item is None for item in reply))


def follows_reply(when: When, miss: bool) -> bool:
    """Whether a follow-up command is issued after such a reply."""
    return when is When.ALWAYS or (when is When.MISS) is miss


def entry_ids(name: str, reply: Any) -> list[bytes]:
    """Ids of the stream entries in a reply, in order. name: of the command that it answers."""
    if name == "XADD":
        return [reply] if isinstance(reply, bytes) else []
    if name in ("XREAD", "XREADGROUP"):
        return [entry for entries in _stream_entries(reply) for entry in _ids(entries)]
    if name == "XAUTOCLAIM":
        return list(_ids(reply[1])) if isinstance(reply, list | tuple) and len(reply) > 1 else []
    return list(_ids(reply))


def _stream_entries(reply: Any) -> Iterator[Any]:
    """The entries of each stream. redis-py returns pairs of a name and entries, or a mapping of names to lists of entry
    lists."""
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


class FollowUpCommand:
    """A command that follows the reply of another one in the same worker, on the same key.

    context: of the first command. If the template has several `__key__`, the first is the first command's key; the
    others are drawn as usual, or, with hash tags, within that key's tag.
    """

    def __init__(
        self,
        row: int,
        when: When,
        template: Template,
        context: ArgumentContext,
        distribution: KeyDistribution,
        generator: np.random.Generator,
        counters: WorkerCounters,
    ) -> None:
        self.row, self.when = row, when
        self._key = b""
        self._verifier = verifier_of(template) if context.values.verify else None
        self._needs_ids = template.count(Placeholder.IDS) > 0
        deferred = {**context.deferred, Placeholder.IDS: lambda: _IDS}
        self._keyspace = context.keyspace
        self._builder = CommandBuilder(template, replace(context, deferred=deferred, choose_key=lambda _: self._key))
        self._distribution, self._generator, self._counters = distribution, generator, counters
        counts = self._builder.counts
        one_by_one = counts.new_keys or counts.sequences or (counts.keys > 1 and self._keyspace.per_hash_tag)
        self._at_a_time = 1 if one_by_one else _BUILT_AT_A_TIME
        self._built: Iterator[Arguments] = iter(())

    def operation(self, key: bytes, name: str, reply: Any) -> Operation | None:
        """The operation that follows this reply. name: of the command that was answered. None if the template needs
        ids of stream entries and the reply has none."""
        ids = entry_ids(name, reply) if self._needs_ids else []
        if self._needs_ids and not ids:
            return None
        self._key = key
        arguments = next(self._built, None)
        if arguments is None:
            self._built = self._build(self._at_a_time)
            arguments = next(self._built)
        if ids:
            arguments = tuple(item for argument in arguments for item in (ids if argument is _IDS else (argument,)))
        on_reply = self._verifier(arguments) if self._verifier else None
        return self.row, arguments, request_bytes(arguments), on_reply

    def _build(self, count: int) -> Iterator[Arguments]:
        counts, generator, keyspace = self._builder.counts, self._generator, self._keyspace
        if counts.keys > 1 and keyspace.per_hash_tag:
            keys = keyspace.siblings(generator, np.array([keyspace.number(self._key)]), counts.keys)
        else:
            keys = self._distribution.draw(generator, count * counts.keys).reshape(count, counts.keys)
        rand_ints = self._distribution.draw(generator, count * counts.rand_ints).reshape(count, counts.rand_ints)
        numbers = CommandNumbers(
            generator=generator,
            count=count,
            keys=keys,
            rand_ints=rand_ints,
            new_keys=self._counters.take(keyspace.name, np.full(count, counts.new_keys)),
            sequence=self._counters.take(SEQUENCE, np.full(count, counts.sequences)),
        )
        return self._builder.build(numbers)[0]
