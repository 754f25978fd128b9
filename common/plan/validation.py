"""The schema, read as data: what is wrong with a raw document, where, and what would be right.

msgspec checks the same types when the plan is made; this walk exists because its messages do not show what was found.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from msgspec import NODEFAULT, inspect

from common.plan.key_path import KeyPath, render
from common.plan.schema import Plan
from common.redaction import REDACTED, SECRET_KEYS
from common.units import show

# What travels as msgpack has at most 64 bits, and one of them is the sign.
LARGEST = 2**63 - 1

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")
_WHOLE = re.compile(r"[+-]?\d{1,30}")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong at `path`; `problem` is the end of a line, such as `expected a list, got 3`."""

    path: KeyPath
    problem: str


def parse_path(text: str) -> KeyPath:
    """`"pools.*.name"` -> `("pools", "*", "name")`."""
    return tuple(text.split("."))


def find_fault(raw: Any, path: KeyPath = ()) -> Fault | None:
    """The first thing wrong with the raw part of a plan that stands at `path`, or None."""
    return _fault(raw, node_at(path), path)


def node_at(path: KeyPath) -> inspect.Type:
    """The schema's type at a path, `X | None` stripped to X. Raises KeyError for a path that the schema lacks."""
    node = _schema()
    for part in path:
        if isinstance(node, inspect.StructType):
            node = {field.encode_name: field.type for field in node.fields}[str(part)]
        elif isinstance(node, inspect.VarTupleType):
            node = node.item_type
        elif isinstance(node, inspect.DictType):
            node = node.value_type
        else:
            raise KeyError(render(path))
        node = _without_none(node)
    return node


@cache
def _schema() -> inspect.Type:
    # Cached: the table of settings alone calls this some hundred times, and each call takes milliseconds.
    return inspect.type_info(Plan)


def default_at(path: KeyPath) -> Any:
    """The schema's default at a path, as the typed value; None where there is none."""
    node = node_at(path[:-1])
    if not isinstance(node, inspect.StructType):
        return None
    default = next(field.default for field in node.fields if field.encode_name == path[-1])
    return None if default is NODEFAULT else default


def parse_text(text: str, path: KeyPath) -> Any:
    """A flag's or a variable's text as the raw value that a plan file would hold at `path`. Raises ValueError."""
    node = node_at(path)
    value: Any = text
    word = text.strip().lower()
    if isinstance(node, inspect.IntType) and _WHOLE.fullmatch(word):
        value = int(word)
    elif isinstance(node, inspect.FloatType):
        value = _number(word)
    elif isinstance(node, inspect.BoolType) and word in TRUE + FALSE:
        value = word in TRUE
    elif isinstance(node, inspect.EnumType):
        value = word
    problem = _leaf_problem(value, node)
    if problem is not None and path[-1] in SECRET_KEYS:
        raise ValueError(_secret_problem(value, node))
    if problem is not None:
        raise ValueError(problem if value is not word else f"expected {expected(node)}, got {show(text)}")
    return value


def expected(node: inspect.Type) -> str:
    """What a value of this type looks like, in words."""
    match node:
        case inspect.IntType(ge=low, le=high):
            return "a whole number" + _bounds(low, high)
        case inspect.FloatType(ge=low, le=high):
            return "a number" + _bounds(low, high)
        case inspect.BoolType():
            return "true or false"
        case inspect.EnumType(cls=kind):
            return _one_of(member.value for member in kind)
        case inspect.StrType(pattern=pattern):
            return "text" if pattern is None else 'a name of letters, digits, "_", "." and "-"'
        case inspect.StructType(fields=fields):
            return f"a mapping with keys such as {', '.join(field.encode_name for field in fields[:3])}"
        case inspect.DictType():
            return "a mapping of text to text"
        case _:
            return "a list"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was most likely meant, or None."""
    near = difflib.get_close_matches(name.replace("-", "_"), list(known), n=1, cutoff=0.6)
    return near[0] if near else None


def _fault(raw: Any, node: inspect.Type, path: KeyPath) -> Fault | None:
    if isinstance(node, inspect.UnionType):
        if raw is None:
            return None
        node = _without_none(node)
    if isinstance(node, inspect.StructType):
        return _struct_fault(raw, node, path)
    if isinstance(node, inspect.VarTupleType):
        return _list_fault(raw, node, path)
    if isinstance(node, inspect.DictType):
        return _mapping_fault(raw, node, path)
    problem = _leaf_problem(raw, node)
    if problem is not None and path[-1:] and path[-1] in SECRET_KEYS:
        problem = _secret_problem(raw, node)
    return None if problem is None else Fault(path, problem)


def _struct_fault(raw: Any, node: inspect.StructType, path: KeyPath) -> Fault | None:
    if not isinstance(raw, dict):
        # What stands in the place of a target may be a password, or a pair without its colon.
        may_be_secret = path[:1] in ((), ("target",))
        return Fault(path, f"expected {expected(node)}, got {_kind(raw) if may_be_secret else show(raw)}")
    fields = {field.encode_name: field for field in node.fields}
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
    # What is more than a word may be a pair without its colon, and so a password.
    shown = key if re.fullmatch(r"[\w.-]{1,60}", key) else REDACTED
    return Fault((*path, shown), f"unknown key; {remedy}")


def _list_fault(raw: Any, node: inspect.VarTupleType, path: KeyPath) -> Fault | None:
    if not isinstance(raw, list | tuple) or (node.min_length and len(raw) < node.min_length):
        wanted = "a list with at least one entry" if node.min_length else "a list"
        return Fault(path, f"expected {wanted}, got {show(raw)}")
    faults = (_fault(item, node.item_type, (*path, position)) for position, item in enumerate(raw))
    return next((fault for fault in faults if fault is not None), None)


def _mapping_fault(raw: Any, node: inspect.DictType, path: KeyPath) -> Fault | None:
    if not isinstance(raw, dict):
        return Fault(path, f"expected {expected(node)}, got {show(raw)}")
    for key, value in raw.items():
        if (problem := _leaf_problem(key, node.key_type)) is not None:
            return Fault(path, problem)
        if (problem := _leaf_problem(value, node.value_type)) is not None:
            return Fault((*path, key), problem)
    return None


def _leaf_problem(value: Any, node: inspect.Type) -> str | None:
    """Why a value is not of this type, or None."""
    if isinstance(node, inspect.CustomType):
        return _quantity_problem(value, node.cls)
    return None if _accepts(value, node) else f"expected {expected(node)}, got {show(value)}"


def _secret_problem(value: Any, node: inspect.Type) -> str:
    """What is wrong with the value of a secret key, without the value."""
    found = "text that is not UTF-8" if isinstance(value, str) else _kind(value)
    remedy = "; put it in quotes" if isinstance(value, int | float) else ""
    return f"expected {expected(node)}, got {found}{remedy}"


def _kind(value: Any) -> str:
    """What a value is, without the value."""
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


def _quantity_problem(value: Any, kind: Any) -> str | None:
    try:
        quantity = kind.parse(value)
    except ValueError as error:
        return str(error)
    return f"expected a number of at most 63 bits, got {show(value)}" if quantity > LARGEST else None


def _accepts(value: Any, node: inspect.Type) -> bool:
    match node:
        case inspect.IntType(ge=low, le=high):
            return _is_number(value, int) and (low or 0) <= value <= (LARGEST if high is None else high)
        case inspect.FloatType(ge=low, le=high):
            most = LARGEST if high is None else high
            return _is_number(value, int, float) and (low or 0) <= value <= most and math.isfinite(value)
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.EnumType(cls=kind):
            return isinstance(value, str) and value in {member.value for member in kind}
        case inspect.StrType(pattern=pattern):
            return isinstance(value, str) and is_utf8(value) and re.fullmatch(pattern or ".*", value, re.S) is not None
        case _:
            return False


def _number(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def _is_number(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


def is_utf8(text: str) -> bool:
    """Whether text is no more than UTF-8 can write."""
    # The command line and the environment smuggle undecodable bytes in as lone surrogates.
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _without_none(node: inspect.Type) -> inspect.Type:
    if isinstance(node, inspect.UnionType):
        return next(member for member in node.types if not isinstance(member, inspect.NoneType))
    return node


def _bounds(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low} to {high}"
    return "" if low is None else f" >= {low}"


def _one_of(names: Iterable[str]) -> str:
    listed = list(names)
    return listed[0] if len(listed) == 1 else f"one of {', '.join(listed)}"
