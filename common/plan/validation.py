"""Checks a raw plan against the schema. A fault reports what was found, where, and what would be right.

msgspec checks the same types when the plan is made, but its messages do not quote the found value.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from msgspec import inspect

from common.plan.key_path import KeyPath, render
from common.plan.schema import Plan
from common.plan.schema.short_forms import FALSE, TRUE, number_or_text
from common.redaction import REDACTED, SECRET_KEYS
from common.units import Bytes, Count, Percentile, PerSecond, Seconds, SecondsOrOff, show

LARGEST = 2**63 - 1
"""The largest number in a plan: the largest signed 64-bit integer, as plans are sent as msgpack."""

_FORMS: dict[type, str] = {
    quantity: quantity.form for quantity in (Seconds, SecondsOrOff, PerSecond, Percentile, Bytes, Count)
}
_WHOLE = re.compile(r"[+-]?\d{1,30}")


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault at `path`. problem: the end of an error message, such as `expected a list, got 3`."""

    path: KeyPath
    problem: str


def find_fault(raw: Any, path: KeyPath = ()) -> Fault | None:
    """The first fault in a raw plan, or None. path: of `raw`, if it is only a part of the plan."""
    return _fault(raw, type_at(path), path)


def type_at(path: KeyPath) -> inspect.Type:
    """The schema's type at a path, without `| None`. Raises KeyError for a path that the schema does not have."""
    field_type: inspect.Type = plan_type()
    for part in path:
        if isinstance(field_type, inspect.StructType):
            field_type = {field.encode_name: field.type for field in field_type.fields}[str(part)]
        elif isinstance(field_type, inspect.VarTupleType):
            field_type = field_type.item_type
        elif isinstance(field_type, inspect.DictType):
            field_type = field_type.value_type
        else:
            raise KeyError(render(path))
        field_type = value_type(field_type)
    return field_type


@cache
def plan_type() -> inspect.StructType:
    """The whole schema as data. Cached: inspecting takes milliseconds."""
    field_type = inspect.type_info(Plan)
    assert isinstance(field_type, inspect.StructType)
    return field_type


def value_type(field_type: inspect.Type) -> inspect.Type:
    """A type without its metadata and without `| None`."""
    if isinstance(field_type, inspect.Metadata):
        field_type = field_type.type
    if isinstance(field_type, inspect.UnionType):
        field_type = next(member for member in field_type.types if not isinstance(member, inspect.NoneType))
    return field_type


def choices(field_type: inspect.Type) -> list[str]:
    """The values of an enum; empty for any other type."""
    return [member.value for member in field_type.cls] if isinstance(field_type, inspect.EnumType) else []


def raw_value(text: str, field_type: inspect.Type) -> Any:
    """The text of a flag or variable as the value that a plan file would have; the text itself if it is not of the
    type."""
    word = text.strip().lower()
    match field_type:
        case inspect.IntType() if _WHOLE.fullmatch(word):
            return int(word)
        case inspect.FloatType():
            return number_or_text(text)
        case inspect.BoolType() if word in TRUE + FALSE:
            return word in TRUE
        case inspect.EnumType() if word in choices(field_type):
            return word
        case _:
            return text


def expected(field_type: inspect.Type) -> str:
    """A phrase for error messages that describes the values of a type, such as `a whole number >= 1`."""
    match field_type:
        case inspect.IntType(ge=low, le=high):
            return "a whole number" + _bounds(low, high)
        case inspect.FloatType(ge=low, le=high):
            return "a number" + _bounds(low, high)
        case inspect.BoolType():
            return "true or false"
        case inspect.EnumType():
            return _one_of(choices(field_type))
        case inspect.StrType(pattern=pattern):
            return "text" if pattern is None else 'a name of letters, digits, "_", "." and "-"'
        case inspect.StructType(fields=fields):
            return f"a mapping with keys such as {', '.join(field.encode_name for field in fields[:3])}"
        case inspect.DictType(value_type=value):
            is_section = isinstance(value_type(value), inspect.StructType)
            return "a mapping of names to mappings" if is_section else "a mapping of text to text"
        case inspect.CustomType(cls=quantity):
            return _FORMS[quantity]
        case _:
            return "a list"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was most likely meant, or None."""
    near = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1, cutoff=0.6)
    return near[0] if near else None


def _fault(raw: Any, field_type: inspect.Type, path: KeyPath) -> Fault | None:
    if raw is None and _allows_none(field_type):
        return None
    field_type = value_type(field_type)
    if isinstance(field_type, inspect.StructType):
        return _struct_fault(raw, field_type, path)
    if isinstance(field_type, inspect.VarTupleType):
        return _list_fault(raw, field_type, path)
    if isinstance(field_type, inspect.DictType):
        return _mapping_fault(raw, field_type, path)
    problem = _value_problem(raw, field_type)
    if problem is not None and path[-1:] and path[-1] in SECRET_KEYS:
        problem = _secret_problem(raw, field_type)
    return None if problem is None else Fault(path, problem)


def _struct_fault(raw: Any, field_type: inspect.StructType, path: KeyPath) -> Fault | None:
    if not isinstance(raw, dict):
        # Text in place of a target may be a password, or `password: secret` with the colon missing.
        may_be_secret = path[:1] in ((), ("target",), ("targets",))
        return Fault(path, f"expected {expected(field_type)}, got {_kind_text(raw) if may_be_secret else show(raw)}")
    fields = {field.encode_name: field for field in field_type.fields}
    for key, value in raw.items():
        if key not in fields:
            return _unknown_key(key, fields, path)
        fault = _fault(value, fields[key].type, (*path, key))
        if fault is not None:
            return fault
    missing = next((name for name, field in fields.items() if field.required and name not in raw), None)
    return None if missing is None else Fault(path, f'expected a key "{missing}", got none')


def _unknown_key(key: Any, known: Iterable[str], path: KeyPath) -> Fault:
    if not isinstance(key, str):
        return Fault(path, f"unknown key {show(key)}; expected {_one_of(known)}")
    near = closest(key, known)
    remedy = f'did you mean "{near}"?' if near else f"expected {_one_of(known)}"
    # A key of several words may be `password secret`, with the colon missing.
    shown = key if re.fullmatch(r"[\w.-]{1,60}", key) else REDACTED
    return Fault((*path, shown), f"unknown key; {remedy}")


def _list_fault(raw: Any, field_type: inspect.VarTupleType, path: KeyPath) -> Fault | None:
    if not isinstance(raw, list | tuple) or (field_type.min_length and len(raw) < field_type.min_length):
        wanted = "a list with at least one entry" if field_type.min_length else "a list"
        return Fault(path, f"expected {wanted}, got {show(raw)}")
    faults = (_fault(item, field_type.item_type, (*path, position)) for position, item in enumerate(raw))
    return next((fault for fault in faults if fault is not None), None)


def _mapping_fault(raw: Any, field_type: inspect.DictType, path: KeyPath) -> Fault | None:
    if not isinstance(raw, dict):
        return Fault(path, f"expected {expected(field_type)}, got {show(raw)}")
    for key, value in raw.items():
        if (problem := _value_problem(key, value_type(field_type.key_type))) is not None:
            return Fault(path, problem)
        if (fault := _fault(value, field_type.value_type, (*path, key))) is not None:
            return fault
    return None


def _value_problem(value: Any, field_type: inspect.Type) -> str | None:
    """Why a value is not of this type, or None."""
    if isinstance(field_type, inspect.CustomType):
        return _quantity_problem(value, field_type.cls)
    return None if _accepts(value, field_type) else f"expected {expected(field_type)}, got {show(value)}"


def _secret_problem(value: Any, field_type: inspect.Type) -> str:
    """The fault of a secret value, without the value."""
    found = "text that is not UTF-8" if isinstance(value, str) else _kind_text(value)
    remedy = "; put it in quotes" if isinstance(value, int | float) else ""
    return f"expected {expected(field_type)}, got {found}{remedy}"


def _kind_text(value: Any) -> str:
    """The kind of a value, without the value."""
    match value:
        case str():
            return "text"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case list() | tuple() | dict() | None:
            return show(value)
        case _:
            return f"a value of type {type(value).__name__}"


def _quantity_problem(value: Any, field_type: Any) -> str | None:
    try:
        quantity = field_type.parse(value)
    except ValueError as error:
        return str(error)
    return f"expected a number of at most 63 bits, got {show(value)}" if quantity > LARGEST else None


def _accepts(value: Any, field_type: inspect.Type) -> bool:
    match field_type:
        case inspect.IntType(ge=low, le=high):
            return _is_number(value, int) and (low or 0) <= value <= (LARGEST if high is None else high)
        case inspect.FloatType(ge=low, le=high):
            most = LARGEST if high is None else high
            return _is_number(value, int, float) and (low or 0) <= value <= most and math.isfinite(value)
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.EnumType():
            return isinstance(value, str) and value in choices(field_type)
        case inspect.StrType(pattern=pattern):
            return isinstance(value, str) and is_utf8(value) and re.fullmatch(pattern or ".*", value, re.S) is not None
        case _:
            return False


def _is_number(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def is_utf8(text: str) -> bool:
    """Whether text can be encoded as UTF-8."""
    # Python decodes other bytes of the command line and the environment as lone surrogates.
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _allows_none(field_type: inspect.Type) -> bool:
    if isinstance(field_type, inspect.Metadata):
        field_type = field_type.type
    return isinstance(field_type, inspect.UnionType) and field_type.includes_none


def _bounds(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low} to {high}"
    return "" if low is None else f" >= {low}"


def _one_of(names: Iterable[str]) -> str:
    listed = list(names)
    return listed[0] if len(listed) == 1 else f"one of {', '.join(listed)}"
