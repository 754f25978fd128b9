"""Profiles: named workloads, from the YAML files in `common.plan.profiles` or from a user's file."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from common.errors import PlanError
from common.plan.key_path import render
from common.plan.loading.command_lists import join_command_lists, join_lists_of_scenarios
from common.plan.loading.parsing import parse_plan_text, read_small_file
from common.plan.validation import find_fault
from common.units import show

_FOLDER = "common.plan.profiles"
_OWN_KEYS = ("description", "driver", "scenarios")
_SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True, slots=True)
class Profile:
    """A workload by name, or several scenarios. workload: the raw `workload` section of a plan; with scenarios, what
    they have in common. driver: the driver that the profile is for, None for any. scenarios: as in a plan. text: the
    file as written."""

    name: str
    description: str
    workload: dict[str, Any]
    driver: str | None
    text: str
    scenarios: tuple[dict[str, Any], ...] = ()


def names() -> list[str]:
    """The built-in profiles, in alphabetical order."""
    return sorted(
        file.name.removesuffix(".yaml") for file in resources.files(_FOLDER).iterdir() if file.name.endswith(".yaml")
    )


def is_file(name: str) -> bool:
    """Whether a profile's name is the name of a file: it has a slash or a suffix of plan files."""
    return "/" in name or name.endswith(_SUFFIXES)


def load(name: str, where: str = "") -> Profile:
    """A built-in profile, or a profile file.

    Raises PlanError for an unknown name, with `where`, the place of the name in the plan; and for a fault in a file,
    with the place in the file.
    """
    if is_file(name):
        data = read_small_file(Path(name), f"{where}: {name}" if where else name, "a profile that can be read")
        return parse(data, name)
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        remedy = f"; did you mean {near[0]}?" if near else ""
        raise PlanError(
            f"{f'{where}: ' if where else ''}expected one of {', '.join(names())}, or the name of a .yaml file, "
            f"got {show(name)}{remedy}"
        )
    return parse((resources.files(_FOLDER) / f"{name}.yaml").read_bytes(), name)


def parse(data: bytes, name: str) -> Profile:
    """A profile from the bytes of a file. Raises PlanError with the place in the file."""
    raw = parse_plan_text(data, name)
    own = {key: raw.get(key) for key in _OWN_KEYS} if isinstance(raw, dict) else {}
    workload = {key: value for key, value in raw.items() if key not in own} if isinstance(raw, dict) else raw
    workload, fault = join_command_lists(workload)
    fault = fault or find_fault(workload, ("workload",))
    if fault is not None:
        raise PlanError(f"{name}: {render(fault.path[1:])}: {fault.problem}")
    driver = own["driver"]
    fault = None if driver is None else find_fault(driver, ("pools", 0, "driver"))
    if fault is not None:
        raise PlanError(f"{name}: $.driver: {fault.problem}")
    if "profile" in workload:
        raise PlanError(f"{name}: $.profile: expected commands and their keys, got a profile within a profile")
    scenarios = _scenarios(own["scenarios"], name)
    if not workload.get("commands") and not scenarios:
        raise PlanError(f"{name}: $.commands: expected a list with at least one entry, got none")
    description = own["description"] or ""
    if not isinstance(description, str):
        raise PlanError(f"{name}: $.description: expected text, got {show(description)}")
    return Profile(name, description, workload, driver, data.decode(), scenarios)


def _scenarios(raw: Any, name: str) -> tuple[dict[str, Any], ...]:
    joined, fault = join_lists_of_scenarios(raw) if isinstance(raw, list) else (raw, None)
    fault = fault or (None if raw is None else find_fault(joined, ("scenarios",)))
    if fault is not None:
        raise PlanError(f"{name}: {render(fault.path)}: {fault.problem}")
    return tuple(joined or ())
