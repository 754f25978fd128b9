"""Counts hits and misses in replies, by `common.commands.lookups`.

The hits and misses of one or of several replies are one number: hits in the high bits, misses in the low bits. So a row
has one column for both, and numpy adds them up at once. 0: the replies do not tell.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from common.commands import Lookup, Template, looked_up, lookup_of

HitCounter: TypeAlias = Callable[[Any], int]
"""Returns the hits and misses of one reply, as redis-py or hiredis returns it."""

MISS = 1
HIT = 1 << 32
"""More misses than are ever added up at once: some thousand of a reply, for some thousand rows."""

_COLLECTIONS = frozenset({list, dict, tuple, set, frozenset})


def hits_of(found: int) -> tuple[int, int]:
    """(hits, misses)."""
    return divmod(found, HIT)


def hit_counter(template: Template) -> HitCounter | None:
    """Counts the hits and misses in replies to a command; None if its replies do not tell."""
    match lookup_of(template):
        case None:
            return None
        case Lookup.NIL | Lookup.VALUE:
            return _of_value
        case Lookup.COUNT:
            return partial(_of_count, looked_up(template))
        case Lookup.ANY:
            return partial(_of_any, looked_up(template))
        case lookup:
            return _COUNTERS[lookup]


def shown_by_nil(template: Template) -> bool:
    """Whether nil is a miss, and any other reply, which is longer, a hit."""
    return lookup_of(template) is Lookup.NIL


def _of_value(reply: Any) -> int:
    if reply:  # nearly always
        return HIT
    return MISS if reply is None or type(reply) in _COLLECTIONS else HIT


def _of_size(reply: Any) -> int:
    return HIT if reply else MISS


def _of_each(reply: Any) -> int:
    if type(reply) is not list:
        return _of_value(reply)
    misses = reply.count(None)
    return (len(reply) - misses) * HIT + misses


def _of_each_flag(reply: Any) -> int:
    return sum(HIT if flag else MISS for flag in reply) if type(reply) is list else _of_size(reply)


def _of_count(wanted: int, reply: Any) -> int:
    found = min(int(reply), wanted)
    return found * HIT + (wanted - found)


def _of_state(reply: Any) -> int:
    states = reply if type(reply) is list else (reply,)
    return sum(MISS if state in _ABSENT else HIT for state in states)


_ABSENT = (-2, b"none", "none", None)


def _of_any(keys: int, reply: Any) -> int:
    kind = type(reply)
    if reply is None:
        return MISS
    if kind is bytes or kind is str:
        return 0 if reply in _DONE else HIT
    if kind not in _COLLECTIONS:
        return 0
    return _of_each(reply) if keys > 1 and len(reply) == keys else _of_value(reply)


_DONE = (b"OK", "OK")

_COUNTERS: dict[Lookup, HitCounter] = {
    Lookup.SIZE: _of_size,
    Lookup.EACH: _of_each,
    Lookup.EACH_FLAG: _of_each_flag,
    Lookup.STATE: _of_state,
}
