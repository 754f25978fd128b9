"""Forms of a plan for output: without passwords, as YAML, and as a hash for comparison."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import yaml

from common.plan.schema import Plan, Sentinel
from common.redaction import REDACTED
from common.serde import to_builtins
from common.units import Bytes, PerSecond, Seconds

_UNSET: tuple[Any, ...] = (None, (), {}, Sentinel())


def redacted(plan: Plan) -> Plan:
    """The plan with `***` for each of its passwords, so that it may be shown and stored."""
    target = plan.target
    sentinel = msgspec.structs.replace(target.sentinel, password=_hidden(target.sentinel.password))
    hidden = msgspec.structs.replace(target, password=_hidden(target.password), sentinel=sentinel)
    return msgspec.structs.replace(plan, target=hidden)


def plan_hash(plan: Plan) -> str:
    """SHA-256, in hexadecimal, of the redacted plan as JSON without spaces and with sorted keys."""
    canonical = json.dumps(to_builtins(redacted(plan)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def plan_yaml(plan: Plan) -> str:
    """The whole plan as a plan file: redacted, with units. Loading it gives the same plan."""
    shown = redacted(plan)
    if shown.target.password_env is not None or shown.target.password_file is not None:
        # Loading finds the password by the name of the variable or file. Two sources would be an error.
        shown = msgspec.structs.replace(shown, target=msgspec.structs.replace(shown.target, password=None))
    if shown.target.embedded is not None:
        # The URL belongs to a server that ends with the run.
        shown = msgspec.structs.replace(shown, target=msgspec.structs.replace(shown.target, url=""))
    # Without allow_unicode, which would not escape U+0085: YAML reads it as the end of a line.
    return yaml.safe_dump(_as_people_write(shown), sort_keys=False, width=120)


def _hidden(password: str | None) -> str | None:
    return None if password is None else REDACTED


def _as_people_write(value: Any) -> Any:
    """Sections as mappings, without keys that are unset or empty by default; quantities with their units."""
    if isinstance(value, msgspec.Struct):
        return {
            field.encode_name: _as_people_write(getattr(value, field.name))
            for field in msgspec.structs.fields(value)
            if getattr(value, field.name) not in _UNSET or field.default not in (*_UNSET, msgspec.NODEFAULT)
        }
    if isinstance(value, tuple):
        return [_as_people_write(item) for item in value]
    if isinstance(value, Seconds | PerSecond | Bytes):
        text = str(value)
        return text if type(value).parse(text) == value else to_builtins(value)
    return to_builtins(value)
