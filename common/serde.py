"""Converts our types to plain lists, maps, numbers, text and bytes, and back. Used for plan files and for messages."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from common.units import Bytes, Count, Percentile, PerSecond, Seconds, SecondsOrOff

T = TypeVar("T")

_QUANTITIES = (Seconds, SecondsOrOff, PerSecond, Percentile, Bytes, Count)


def to_builtins(value: Any) -> Any:
    """Any of our types as plain lists, maps, numbers, text and bytes. Quantities become numbers."""
    return msgspec.to_builtins(value, builtin_types=(bytes,), enc_hook=_plain_quantity)


def from_builtins(plain: Any, kind: type[T]) -> T:
    """Inverse of `to_builtins`. Raises msgspec.ValidationError, whose text ends with the path of the wrong value."""
    return msgspec.convert(plain, kind, builtin_types=(bytes,), dec_hook=parse_quantity)


def _plain_quantity(value: Any) -> Any:
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return int(value)
    raise NotImplementedError(f"cannot encode {type(value).__name__}")


def parse_quantity(kind: type, value: Any) -> Any:
    """The quantity in a value, for msgspec. Raises ValueError if the value is not a quantity of this type."""
    if kind in _QUANTITIES:
        return kind.parse(value)
    raise NotImplementedError(f"cannot decode {kind.__name__}")
