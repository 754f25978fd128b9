"""How many bytes requests and replies take on the wire, without looking at the wire.

A request is a RESP array of bulk strings, so its size follows from the lengths of its arguments. A reply's size follows
from what redis-py made of it. That is exact for integers, bulk strings, nils, arrays, maps and sets of these, and for
the status replies that redis-py turns into True; it is close for doubles. See https://redis.io/docs/latest/develop/reference/protocol-spec/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from common.histogram import Ints

Measure = Callable[[Any], int]

QUEUED_BYTES = len(b"+QUEUED\r\n")
MULTI_EXEC_REQUEST_BYTES = len(b"*1\r\n$5\r\nMULTI\r\n*1\r\n$4\r\nEXEC\r\n")

_OK_BYTES = len(b"+OK\r\n")
_FLAG_BYTES = len(b":1\r\n")
_NIL_BYTES = {2: len(b"$-1\r\n"), 3: len(b"_\r\n")}
_TABLED = 1025
"""Lengths below it are looked up rather than reckoned: this is done for every reply."""
_TENS = 10 ** np.arange(1, 19, dtype=np.int64)

_TRUE_BYTES = {"PING": len(b"+PONG\r\n")}
"""Status replies that redis-py turns into True, other than OK."""

_STATUS_TEXT = frozenset({"TYPE"})
"""Commands whose text is a status reply (`+string`), not a bulk string."""


def decimal_digits(numbers: Ints) -> Ints:
    """How many digits each of these numbers >= 0 has."""
    return np.searchsorted(_TENS, numbers, side="right") + 1


def bulk_bytes(lengths: Ints) -> Ints:
    """Size on the wire of bulk strings of these lengths: `$<length>\\r\\n<content>\\r\\n`."""
    return lengths + decimal_digits(lengths) + 5


def array_header_bytes(count: int) -> int:
    """Size of `*<count>\\r\\n`."""
    return len(str(count)) + 3


def request_bytes(arguments: Sequence[str | bytes]) -> int:
    """Size of one request: an array of bulk strings. Text counts as its UTF-8."""
    size = array_header_bytes(len(arguments))
    for argument in arguments:
        length = len(argument if isinstance(argument, bytes) else argument.encode())
        size += length + len(str(length)) + 5
    return size


def transaction_reply_bytes(count: int) -> int:
    """What the replies to a transaction of `count` commands take beside QUEUED and the replies themselves."""
    return _OK_BYTES + array_header_bytes(count)


def reply_measure(name: str, protocol: int, callbacks: Mapping[str, Any]) -> Measure:
    """The function that tells the size on the wire of this command's replies, as redis-py returns them.

    callbacks: redis-py's own response callbacks; they tell which commands' True was a 1 and which one's an OK.
    """
    nil_bytes = _NIL_BYTES[protocol]
    flag_bytes = _FLAG_BYTES if callbacks.get(name) is bool else _TRUE_BYTES.get(name, _OK_BYTES)
    text_bytes = 3 if name in _STATUS_TEXT else None
    sizes = [length + (text_bytes or len(str(length)) + 5) for length in range(_TABLED)]

    def measure(reply: Any) -> int:
        kind = type(reply)
        if kind is bytes:
            length = len(reply)
            return sizes[length] if length < _TABLED else length + (text_bytes or len(str(length)) + 5)
        if kind is bool:
            return flag_bytes
        if reply is None:
            return nil_bytes
        if kind is int:
            return len(str(reply)) + 3
        if kind is dict:
            size = array_header_bytes(len(reply) * (1 if protocol == 3 else 2))
            return size + sum(measure(key) + measure(value) for key, value in reply.items())
        if kind in _COLLECTIONS:
            return array_header_bytes(len(reply)) + sum(map(measure, reply))
        if kind is str:
            return measure(reply.encode())
        # A double: ",<text>\r\n", or a bulk string of its text before RESP3.
        return len(str(reply)) + 3 if protocol == 3 else measure(str(reply).encode())

    return measure


_COLLECTIONS = frozenset({list, tuple, set, frozenset})
