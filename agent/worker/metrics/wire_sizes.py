"""The sizes of requests and replies on the wire, computed from arguments and parsed replies.

A request is a RESP array of bulk strings, so its size follows from the lengths of its arguments. The size of a reply
follows from what redis-py returned; for the commands of `_MEASURES` redis-py changes the shape of the reply. Sizes are
exact for every command of the table with the table's arguments (`test_wire_sizes_on_servers.py` checks this), and for
every reply of integers, strings, nils, arrays, maps and sets. They are approximate where redis-py or RESP itself loses
information:

- sums of INCRBYFLOAT and HINCRBYFLOAT beyond the precision of a double;
- doubles: the server (Grisu2) sometimes writes one digit more than the shortest form; Redis before 7.2 always writes
  17;
- fractional scores in replies to ZSCAN: their form depends on the encoding of the set in the server;
- a status returned by a script or a module: it counts as a bulk string, which is longer;
- SET with GET, ZADD with INCR, GEOSEARCH with WITHCOORD or WITHDIST, INFO, and other options for which redis-py
  changes the reply; stream entries with repeated fields.

See https://redis.io/docs/latest/develop/reference/protocol-spec/.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np

from common.commands import COMMANDS, ReplyKind, Template
from common.metrics.histogram import Ints

Measure = Callable[[Any], int]

QUEUED_BYTES = len(b"+QUEUED\r\n")
MULTI_EXEC_REQUEST_BYTES = len(b"*1\r\n$5\r\nMULTI\r\n*1\r\n$4\r\nEXEC\r\n")

_OK_BYTES = len(b"+OK\r\n")
_FLAG_BYTES = len(b":1\r\n")
_RAW_BOOL_BYTES = len(b"#t\r\n")
NIL_BYTES = {2: len(b"$-1\r\n"), 3: len(b"_\r\n")}
_TABLE_SIZE = 1025
"""Sizes of shorter replies are in a table, for speed: every reply is measured."""
_WHOLE = 1 << 62
"""The server writes whole numbers below this limit without an exponent."""
_TENS = 10 ** np.arange(1, 19, dtype=np.int64)


def decimal_digits(numbers: Ints) -> Ints:
    """How many digits each number >= 0 has."""
    return np.searchsorted(_TENS, numbers, side="right") + 1


def bulk_bytes(lengths: Ints) -> Ints:
    """Sizes of bulk strings of these lengths: `$<length>\\r\\n<content>\\r\\n`."""
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
    """Bytes of the replies to a transaction of `count` commands, except for each QUEUED and each command's reply."""
    return _OK_BYTES + array_header_bytes(count)


def double_text(number: float) -> str:
    """A double as the server writes it: the shortest form, whole numbers without a point."""
    if not math.isfinite(number):
        return str(number)
    if abs(number) < _WHOLE and number.is_integer():
        return str(int(number))
    sign, digits, exponent = Decimal(repr(number)).normalize().as_tuple()
    assert isinstance(exponent, int)
    text, size = "".join(map(str, digits)), len(digits)
    power = exponent + size - 1
    minus = "-" if sign else ""
    if exponent >= 0 and abs(power) < size + 7:
        return minus + text + "0" * exponent
    if exponent < 0 and (exponent > -7 or abs(power) < 4):
        places = size + exponent
        return minus + (f"{text[:places]}.{text[places:]}" if places > 0 else f"0.{'0' * -places}{text}")
    point = f".{text[1:]}" if size > 1 else ""
    return f"{minus}{text[0]}{point}e{'-' if power < 0 else '+'}{abs(power)}"


def reply_measure(name: str, protocol: int, callbacks: Mapping[str, Any]) -> Measure:
    """The function that measures this command's replies, as redis-py returns them.

    callbacks: redis-py's response callbacks, which show whether a True was a 1 or an OK.
    """
    row = COMMANDS.get(name)
    is_status = row is not None and row.reply is ReplyKind.STATUS
    if is_status:
        true_bytes = len(b"+PONG\r\n") if name == "PING" else _OK_BYTES
    else:
        true_bytes = _FLAG_BYTES if callbacks.get(name) is bool else _OK_BYTES
    plain = _plain_measure(protocol, true_bytes, is_status)
    special = _MEASURES.get(name)
    return partial(special, plain, protocol) if special else plain


def raw_measure(name: str, protocol: int) -> Measure:
    """The function that measures this command's raw replies, before redis-py changes them."""
    row = COMMANDS.get(name)
    return _plain_measure(protocol, _RAW_BOOL_BYTES, row is not None and row.reply is ReplyKind.STATUS)


def fixed_reply_bytes(template: Template) -> int | None:
    """The size of this command's replies if every successful reply is the same status; otherwise None."""
    row = COMMANDS.get(template.name)
    if row is None or row.reply is not ReplyKind.STATUS or template not in (row.template, row.expiring):
        return None
    if template.name == "TYPE":
        return None
    return len(b"+PONG\r\n") if template.name == "PING" else _OK_BYTES


def _plain_measure(protocol: int, true_bytes: int, is_status: bool) -> Measure:
    """Measures replies that redis-py returns unchanged. is_status: text is a status, not a bulk string."""
    nil_bytes = NIL_BYTES[protocol]
    text_bytes = 3 if is_status else None
    sizes = [length + (text_bytes or len(str(length)) + 5) for length in range(_TABLE_SIZE)]

    def measure(reply: Any) -> int:
        kind = type(reply)
        if kind is bytes:
            length = len(reply)
            return sizes[length] if length < _TABLE_SIZE else length + (text_bytes or len(str(length)) + 5)
        if kind is bool:
            return true_bytes
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
        text = double_text(reply) if kind is float else str(reply)
        return len(text) + 3 if protocol == 3 else _bulk(text)

    return measure


def _bulk(text: object) -> int:
    """Size of a bulk string with this value as text."""
    length = len(str(text).encode())
    return length + len(str(length)) + 5


_COLLECTIONS = frozenset({list, tuple, set, frozenset})


def _sum(plain: Measure, _protocol: int, reply: Any) -> int:
    """A sum: a bulk string without an exponent, not a double."""
    return _bulk(f"{Decimal(repr(reply)).normalize():f}") if type(reply) is float else plain(reply)


def _distance(plain: Measure, _protocol: int, reply: Any) -> int:
    return _bulk(f"{reply:.4f}") if type(reply) is float else plain(reply)


def _positions(plain: Measure, protocol: int, reply: Any) -> int:
    """Longitude and latitude with all digits of a double, 17 after the point."""
    size = array_header_bytes(len(reply))
    for place in reply:
        if place is None:
            size += plain(None)
            continue
        texts = [f"{number:.17f}".rstrip("0").rstrip(".") for number in place]
        size += array_header_bytes(2) + sum(len(text) + 3 if protocol == 3 else _bulk(text) for text in texts)
    return size


def _scanned(plain: Measure, _protocol: int, reply: Any) -> int:
    """[cursor, a flat list]; redis-py has paired fields with values, and members with scores."""
    cursor, found = reply
    if isinstance(found, dict):
        flat = [part for pair in found.items() for part in pair]
    else:
        flat = [part for item in found for part in (item if isinstance(item, tuple) else (item,))]
    parts = sum(_bulk(double_text(part)) if type(part) is float else plain(part) for part in flat)
    return array_header_bytes(2) + _bulk(cursor) + array_header_bytes(len(flat)) + parts


def _popped(plain: Measure, protocol: int, reply: Any) -> int:
    """Members with scores; in RESP2 a flat list that redis-py has paired."""
    if protocol == 3:
        return plain(reply)
    return array_header_bytes(2 * len(reply)) + sum(plain(member) + plain(score) for member, score in reply)


def _entries(plain: Measure, _protocol: int, reply: Any) -> int:
    """Stream entries, each [id, a flat list of fields and values]; redis-py has made a mapping of the list."""
    if not isinstance(reply, list | tuple):
        return plain(reply)
    size = array_header_bytes(len(reply))
    for entry in reply:
        if isinstance(entry, tuple) and isinstance(entry[1], dict):
            fields = [part for pair in entry[1].items() for part in pair]
            size += array_header_bytes(2) + plain(entry[0]) + plain(fields)
        else:
            size += plain(entry)
    return size


def _streams(plain: Measure, protocol: int, reply: Any) -> int:
    """Entries by stream: a map in RESP3, a list of pairs in RESP2; redis-py has replaced nil by something empty."""
    if not reply:
        return plain(None)
    if isinstance(reply, dict):
        pairs = [(name, entries) for name, lists in reply.items() for entries in lists]
        return array_header_bytes(len(pairs)) + sum(plain(name) + _entries(plain, protocol, e) for name, e in pairs)
    each = sum(plain(name) + _entries(plain, protocol, entries) for name, entries in reply)
    return array_header_bytes(len(reply)) + len(reply) * array_header_bytes(2) + each


def _claimed(plain: Measure, protocol: int, reply: Any) -> int:
    """[next id, entries, ids of deleted entries]."""
    entries = _entries(plain, protocol, reply[1])
    return array_header_bytes(len(reply)) + entries + sum(plain(part) for part in (reply[0], *reply[2:]))


def _pending(plain: Measure, _protocol: int, reply: Any) -> int:
    """[count, first id, last id, [consumer, count as text] for each]. Without entries, all except the count are nil."""
    if not isinstance(reply, dict):
        return plain(reply)
    size = array_header_bytes(4) + plain(reply["pending"]) + plain(reply["min"]) + plain(reply["max"])
    if not reply["consumers"]:
        return size + plain(None)
    size += array_header_bytes(len(reply["consumers"]))
    return size + sum(
        array_header_bytes(2) + plain(consumer["name"]) + _bulk(consumer["pending"]) for consumer in reply["consumers"]
    )


def _clock(_plain: Measure, _protocol: int, reply: Any) -> int:
    return array_header_bytes(2) + sum(map(_bulk, reply))


def _saved(plain: Measure, _protocol: int, reply: Any) -> int:
    """A time, in seconds."""
    return plain(int(reply.timestamp()))


def _verbatim(plain: Measure, protocol: int, reply: Any) -> int:
    """Text. In RESP3 its format precedes it."""
    return plain(b"txt:" + reply if protocol == 3 else reply)


_SpecialMeasure = Callable[[Measure, int, Any], int]
_MEASURES: dict[str, _SpecialMeasure] = {
    **dict.fromkeys(("INCRBYFLOAT", "HINCRBYFLOAT"), _sum),
    **dict.fromkeys(("SCAN", "HSCAN", "SSCAN", "ZSCAN"), _scanned),
    **dict.fromkeys(("XRANGE", "XREVRANGE", "XCLAIM"), _entries),
    **dict.fromkeys(("XREAD", "XREADGROUP"), _streams),
    **dict.fromkeys(("ZPOPMAX", "ZPOPMIN"), _popped),
    "XAUTOCLAIM": _claimed,
    "XPENDING": _pending,
    "GEODIST": _distance,
    "GEOPOS": _positions,
    "TIME": _clock,
    "LASTSAVE": _saved,
    "LOLWUT": _verbatim,
}
"""Measures for the commands whose replies redis-py changes."""
