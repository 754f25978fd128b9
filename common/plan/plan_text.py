"""A plan for others: as YAML for people, and as a hash for comparison. Neither holds the password."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import yaml

from common.plan.loading.secrets import redacted
from common.plan.schema import Plan, Sentinel
from common.serde import to_builtins
from common.units import Bytes, PerSecond, Seconds


def plan_hash(plan: Plan) -> str:
    """SHA-256, in hexadecimal, of the redacted plan as JSON without spaces and with sorted keys."""
    canonical = json.dumps(to_builtins(redacted(plan)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def plan_yaml(plan: Plan) -> str:
    """The expanded plan, redacted, with its quantities as people write them; a plan file that says the same."""
    plan = redacted(plan)
    if plan.target.password_env is not None or plan.target.password_file is not None:
        # What names the password's place is enough to find it again, and two ways of saying it would be one too many.
        plan = msgspec.structs.replace(plan, target=msgspec.structs.replace(plan.target, password=None))
    if plan.target.embedded is not None:
        # Its URL is that of a server which ends with the run.
        plan = msgspec.structs.replace(plan, target=msgspec.structs.replace(plan.target, url=""))
    # Not allow_unicode: it would write U+0085 as it is, which YAML reads as the end of a line.
    return yaml.safe_dump(_sections(plan), sort_keys=False, width=120)


_UNSAID: tuple[Any, ...] = (None, (), {}, Sentinel())


def _sections(value: Any) -> Any:
    """A section as a mapping of what it says: keys that are unset or empty, as they are by default, are left out."""
    if isinstance(value, msgspec.Struct):
        return {
            field.encode_name: _sections(getattr(value, field.name))
            for field in msgspec.structs.fields(value)
            if getattr(value, field.name) not in _UNSAID or field.default not in (*_UNSAID, msgspec.NODEFAULT)
        }
    if isinstance(value, tuple):
        return [_sections(item) for item in value]
    if isinstance(value, Seconds | PerSecond | Bytes):
        text = str(value)
        return text if type(value).parse(text) == value else to_builtins(value)
    return to_builtins(value)
