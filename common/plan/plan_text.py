"""Forms of a plan for output: without passwords, as YAML, and as a hash for comparison."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import yaml

from common.plan.scenarios import map_targets
from common.plan.schema import Plan, Sentinel, Target
from common.redaction import REDACTED
from common.serde import to_builtins
from common.units import Bytes, PerSecond, Seconds

_UNSET: tuple[Any, ...] = (None, (), {}, Sentinel())


def redacted(plan: Plan) -> Plan:
    """The plan as it may be shown and stored: `***` for each of its passwords."""
    return map_targets(plan, lambda _, target: _without_passwords(target))


def plan_hash(plan: Plan) -> str:
    """SHA-256, in hexadecimal, of the redacted plan as JSON without spaces and with sorted keys."""
    canonical = json.dumps(to_builtins(redacted(plan)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def plan_yaml(plan: Plan) -> str:
    """The whole plan as a plan file: redacted, with quantities as people write them. Loading it gives the same plan."""
    shown = _as_people_write(map_targets(redacted(plan), lambda _, target: _as_in_a_file(target)))
    if plan.scenarios:
        # Every scenario is complete; these would only have the defaults.
        shown = {key: value for key, value in shown.items() if key not in ("pools", "workload", "load")}
    # Not allow_unicode: it would write U+0085 as it is, which YAML reads as the end of a line.
    return yaml.safe_dump(shown, sort_keys=False, width=120)


def _without_passwords(target: Target) -> Target:
    sentinel = msgspec.structs.replace(target.sentinel, password=_hidden(target.sentinel.password))
    return msgspec.structs.replace(target, password=_hidden(target.password), sentinel=sentinel)


def _as_in_a_file(target: Target) -> Target:
    if target.password_env is not None or target.password_file is not None:
        # The name of the variable or file is enough to find the password again, and two sources would be an error.
        target = msgspec.structs.replace(target, password=None)
    if target.embedded is not None:
        # The URL is that of a server which ends with the run.
        target = msgspec.structs.replace(target, url="")
    return target


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
    if isinstance(value, dict) and any(isinstance(item, msgspec.Struct) for item in value.values()):
        return {key: _as_people_write(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_as_people_write(item) for item in value]
    if isinstance(value, Seconds | PerSecond | Bytes):
        text = str(value)
        return text if type(value).parse(text) == value else to_builtins(value)
    return to_builtins(value)
