"""Hostile messages: any value of a type, values just outside of it, and damaged bytes.

Everything is drawn from one `random.Random`, so that a seed repeats a whole attack, from hypothesis as from the fuzz.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import msgpack
import msgspec
import numpy as np

from common.metrics.histogram import MAX_VALUE, Histogram
from common.protocol.messages import MAX_MESSAGE_BYTES
from common.serde import to_builtins

NUMBERS = (0, 1, 2, 3, 63, 512, 10**6, 2**31, 2**53, 2**62, 2**63 - 1, 2**64 - 1, -1, -(2**63), 8_639_999)
FLOATS = (0.0, 1.5, -1.0, 1e300, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "", "main", "GET", "SET", "other", "run-1", "web1", "\x1b[2J\x1b[31mred", "[red]markup[/]", "a\nb\r\x00",
    "\u202eevil", "\x9b31m", "../../etc/passwd", "x" * 300, "é" * 5000,
)  # fmt: skip
BOMBS: tuple[Callable[[], bytes], ...] = (
    lambda: b"\x90" * MAX_MESSAGE_BYTES,
    lambda: b"\x91" * MAX_MESSAGE_BYTES,
    lambda: b"\xdd\x00\x0f\xff\x00" + b"\x90" * 0xFFF00,
    lambda: b"\x94\x03\xa0\xa0\xdd\x7f\xff\xff\xff" + b"\x80" * 0xFFF00,
    lambda: b"\xdf\xff\xff\xff\xff" * 20,
    lambda: b"\xdb\xff\xff\xff\xffabc",
    lambda: b"\xc9\xff\xff\xff\xff\x05abc",
    lambda: b"",
)


class Mutator:
    """Draws messages. texts: further texts to use, such as names of pools and the run id."""

    def __init__(self, draw: random.Random, texts: tuple[str, ...] = ()) -> None:
        self._draw = draw
        self._texts = (*texts * 3, *TEXTS)

    def message(self, kinds: Any) -> Any:
        """Draw a message of one of the union's types as plain data. Most messages fit their type."""
        return self._value(_described(kinds))

    def mutated(self, plain: Any) -> Any:
        """The message with a value replaced, removed, added or swapped."""
        places = list(_places(plain))
        if not places:
            return self._anything()
        holder, key = self._draw.choice(places)
        how = self._draw.randrange(4)
        if how == 0:
            holder[key] = self._anything()
        elif how == 1 and isinstance(holder, dict):
            del holder[key]
        elif how == 2 and isinstance(holder, dict):
            holder[self._draw.choice(self._texts)] = self._anything()
        else:
            other, other_key = self._draw.choice(places)
            holder[key] = other[other_key]
        return plain

    def damaged(self, data: bytes) -> bytes:
        """The bytes with some of them flipped, cut off or repeated."""
        if not data:
            return data
        if self._draw.random() < 0.3:
            return data[: self._draw.randrange(len(data))]
        found = bytearray(data)
        for _ in range(self._draw.randint(1, 8)):
            found[self._draw.randrange(len(found))] = self._draw.randrange(256)
        return bytes(found) * self._draw.choice((1, 1, 1, 2))

    def bomb(self) -> bytes:
        """A message that is small on the wire and large in memory."""
        return self._draw.choice(BOMBS)()

    def _anything(self, depth: int = 0) -> Any:
        kind = self._draw.randrange(7 if depth < 3 else 5)
        if kind == 0:
            return self._draw.choice(NUMBERS)
        if kind == 1:
            return self._draw.choice(FLOATS)
        if kind == 2:
            return self._draw.choice(self._texts)
        if kind == 3:
            return self._draw.choice((None, True, False))
        if kind == 4:
            return self._draw.randbytes(self._draw.randrange(20))
        if kind == 5:
            return [self._anything(depth + 1) for _ in range(self._draw.randrange(4))]
        return {self._draw.choice(self._texts): self._anything(depth + 1) for _ in range(self._draw.randrange(4))}

    def _value(self, kind: Any) -> Any:
        draw = self._draw
        match kind:
            case msgspec.inspect.UnionType(types):
                return self._value(draw.choice(types))
            case msgspec.inspect.StructType(cls) if cls is Histogram:
                return to_builtins(self._histogram())
            case msgspec.inspect.StructType(_, fields, tag=tag, tag_field=tag_field):
                given = {field.encode_name: self._value(field.type) for field in fields if self._is_given(field)}
                return {tag_field: tag, **given} if tag_field else given
            case msgspec.inspect.IntType():
                low = 0 if kind.ge is None else kind.ge
                high = 2**62 if kind.le is None else kind.le
                numbers = [number for number in NUMBERS if low <= number <= high]
                return draw.choice([draw.randint(max(low, 0), min(high, 20)), *numbers])
            case msgspec.inspect.FloatType():
                return draw.choice([0.0, 1.0, 50.0, draw.random()])
            case msgspec.inspect.StrType():
                return draw.choice(self._texts)
            case msgspec.inspect.BoolType():
                return draw.random() < 0.5
            case msgspec.inspect.BytesType():
                return draw.randbytes(draw.randrange(8))
            case msgspec.inspect.EnumType(cls):
                return draw.choice(list(cls)).value
            case msgspec.inspect.VarTupleType(item):
                return [self._value(item) for _ in range(draw.choice((0, 1, 1, 2, 5)))]
            case msgspec.inspect.TupleType(items):
                return [self._value(item) for item in items]
            case msgspec.inspect.DictType(_, value):
                return {draw.choice(self._texts): self._value(value) for _ in range(draw.choice((0, 1, 1, 2)))}
            case msgspec.inspect.NoneType():
                return None
            case msgspec.inspect.CustomType():
                return draw.choice((1, 3, 10, 0.5, 2**40, -1))
            case msgspec.inspect.LiteralType(values):
                return draw.choice(list(values))
        return None

    def _is_given(self, field: msgspec.inspect.Field) -> bool:
        return field.required or self._draw.random() < 0.3

    def _histogram(self) -> Histogram:
        values = [self._draw.randrange(MAX_VALUE) for _ in range(self._draw.choice((0, 1, 3)))]
        return Histogram.from_values(np.array(values, dtype=np.int64))


def enveloped(plain: Any, run_id: str, incarnation: str, protocol: int) -> bytes:
    """Pack plain data in an envelope. Returns empty bytes for data that msgpack cannot pack."""
    try:
        return msgpack.packb([protocol, run_id, incarnation, plain])  # type: ignore[no-any-return]
    except (OverflowError, ValueError, TypeError):
        return b""


@cache
def _described(kinds: Any) -> Any:
    return msgspec.inspect.type_info(kinds)


def _places(plain: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """Every (container, key) in the data."""
    found: list[tuple[Any, Any]] = []
    items = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for key, value in items:
        found.append((plain, key))
        if depth < 8:
            found += _places(value, depth + 1)
    return found
