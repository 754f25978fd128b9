"""Our types to plain lists, maps, numbers, text and bytes, and back: the common ground of plan files and the wire."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from common.units import Bytes, Count, PerSecond, Seconds

T = TypeVar("T")

_QUANTITIES = (Seconds, PerSecond, Bytes, Count)


def to_builtins(value: Any) -> Any:
    """Any of our types as plain lists, maps, numbers, text and bytes; quantities as numbers."""
    return msgspec.to_builtins(value, builtin_types=(bytes,), enc_hook=_plain_quantity)


def from_builtins(plain: Any, kind: type[T]) -> T:
    """Inverse of `to_builtins`. Raises msgspec.ValidationError, whose text ends in the path of what is wrong."""
    return msgspec.convert(plain, kind, builtin_types=(bytes,), dec_hook=parse_quantity)


def _plain_quantity(value: Any) -> Any:
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return int(value)
    raise NotImplementedError(f"cannot encode {type(value).__name__}")


def parse_quantity(kind: type, value: Any) -> Any:
    """A quantity of this type, for msgspec. Raises ValueError for a value that is none."""
    if kind in _QUANTITIES:
        return kind.parse(value)
    raise NotImplementedError(f"cannot decode {kind.__name__}")
