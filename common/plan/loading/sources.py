"""The plan out of its sources: defaults under the profile, under the environment, under the file, under flags.

Each source is checked by itself and becomes a layer; layers are overlaid as raw leaves and become a typed plan once.
So an error names the file, the flag or the variable that said what is wrong.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import PlanError
from common.plan.key_path import KeyPath, Where, render
from common.plan.loading import profiles
from common.plan.loading.command_lists import with_lines
from common.plan.loading.files import read_small_file
from common.plan.loading.layers import PROFILE, Layer, Overlay, beneath, document_layer, named_layer, overlay
from common.plan.loading.parsing import parse_document
from common.plan.loading.secrets import resolve_secrets
from common.plan.rules.checks import Purpose, check_plan
from common.plan.schema import Plan
from common.plan.schema.workload import DEFAULT_PROFILE
from common.plan.settings import (
    COMMANDS,
    ENVIRONMENT_PREFIX,
    PASSWORD,
    SENTINEL_PASSWORD,
    SETTINGS,
    Setting,
    values_by_path,
)
from common.plan.target_url import redact_url
from common.plan.validation import find_fault
from common.plan.value_sizes import parse_sizes
from common.redaction import hide_userinfo, hide_values, password_candidates
from common.serde import from_builtins
from common.units import show

SIZES: KeyPath = ("workload", "values", "sizes")
SIZES_FILE: KeyPath = ("workload", "values", "sizes_file")

_VARIABLES = {setting.variable: setting for setting in SETTINGS}
# Alike enough to be a slip. Lower would catch what others put into the environment under the same prefix.
_SLIP = 0.85


def load_plan(
    file: Path | None,
    flags: Mapping[Setting, Any],
    environ: Mapping[str, str],
    purpose: Purpose = Purpose.RUN,
) -> Plan:
    """The checked plan with its secrets resolved. flags: parsed values by row of the settings.

    Raises PlanError, one line that names the place.
    """
    data = b"" if file is None else _read_plan(file)
    passwords = [environ.get(setting.variable, "") for setting in (PASSWORD, SENTINEL_PASSWORD)]
    passwords += password_candidates(data.decode(errors="replace"))
    try:
        layers = [environment_layer(environ)]
        if file is not None:
            layers.append(_beside(text_layer(data, str(file)), file.parent))
        layers.append(flags_layer(flags))
        whole = _with_sizes(_with_profile(overlay(layers)))
        plan = from_builtins(whole.raw(), Plan)
        check_plan(plan, whole.where, purpose)
        return resolve_secrets(plan, environ, whole.where)
    except PlanError as error:
        raise PlanError(hide_userinfo(hide_values(str(error), passwords))) from error


def _read_plan(file: Path) -> bytes:
    url = re.sub(r"\A(\w+(?:\+\w+)?):/+", r"\1://", str(file))
    if "://" in url and not file.exists():
        raise PlanError(f"{redact_url(url)}: expected a plan file, got a URL; use --url for a target")
    return read_small_file(file, str(file), "a plan that can be read")


def text_layer(data: bytes, name: str) -> Layer:
    """The layer of a plan file called `name`. Raises PlanError."""
    raw = parse_document(data, name)
    place = _in_document(name)
    fault = None
    if isinstance(raw, dict) and "workload" in raw:
        workload, fault = with_lines(raw["workload"])
        raw = {**raw, "workload": workload}
    fault = fault or find_fault(raw)
    if fault is not None:
        raise PlanError(f"{place(fault.path)}: {fault.problem}")
    return document_layer(raw, place)


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """The layer of `STAMPEDE_...` variables; an empty one is as good as none, except STAMPEDE_CLIENT_NAME.

    Raises PlanError for a value that is wrong, or a name that is nearly one of ours.
    """
    said: dict[Setting, Any] = {}
    for variable, text in sorted(environ.items()):
        setting = _VARIABLES.get(variable)
        if setting is None:
            _refuse_slip(variable, environ)
        if setting is None or not (text or setting.option.takes_empty):
            continue
        try:
            value = setting.parse(text)
        except ValueError as error:
            raise PlanError(f"{variable}: {error}") from error
        said[setting] = (value,) if setting.option.repeatable else value
    return named_layer(*values_by_path(said, lambda setting: setting.variable))


def flags_layer(flags: Mapping[Setting, Any]) -> Layer:
    """The layer of the command line. Raises PlanError for flags that contradict each other."""
    return named_layer(*values_by_path(flags, lambda setting: setting.flag))


def _in_document(name: str) -> Where:
    return lambda path: f"{name}: {render(path)}"


def _beside(layer: Layer, directory: Path) -> Layer:
    """A file's layer; the files that it names are found beside it."""
    named = {path: layer.leaves[path] for path in (PROFILE, SIZES_FILE) if layer.leaves.get(path) is not None}
    if PROFILE in named and not profiles.is_file(named[PROFILE]):
        del named[PROFILE]
    return replace(layer, leaves={**layer.leaves, **{path: str(directory / name) for path, name in named.items()}})


def _refuse_slip(variable: str, environ: Mapping[str, str]) -> None:
    if not variable.startswith(ENVIRONMENT_PREFIX) or variable == environ.get(f"{ENVIRONMENT_PREFIX}PASSWORD_ENV"):
        return
    names = [known.removeprefix(ENVIRONMENT_PREFIX) for known in _VARIABLES]
    near = difflib.get_close_matches(variable.removeprefix(ENVIRONMENT_PREFIX), names, n=1, cutoff=_SLIP)
    if near:
        raise PlanError(f"{show(variable)[1:-1]}: unknown variable; did you mean {ENVIRONMENT_PREFIX}{near[0]}?")


def _with_profile(said: Overlay) -> Overlay:
    """The overlay over its profile's workload; over the default profile's where it names no commands either."""
    name = said.leaves.get(PROFILE)
    if name is None:
        if said.leaves.get(COMMANDS) is not None:
            return said
        name = DEFAULT_PROFILE
    profile = profiles.load(name, said.where(PROFILE))
    layer = document_layer({"workload": profile.workload}, _in_profile(name))
    if profiles.is_file(name):
        layer = _beside(layer, Path(name).parent)
    if profile.driver is not None:
        drivers: dict[KeyPath, Any] = {
            ("pools", number, "driver"): profile.driver for number in range(said.pool_groups)
        }
        layer = replace(layer, leaves={**layer.leaves, **drivers})
    # A profile out of a file is not named in the plan: all that it says is, and the file need not be there next time.
    label = None if profiles.is_file(name) else name
    expanded = beneath(said, layer)
    return Overlay({**expanded.leaves, PROFILE: label}, expanded.places, expanded.pool_groups, expanded.whole)


def _in_profile(name: str) -> Where:
    return lambda path: f"profile {name}: {render(path[1:])}"


def _with_sizes(said: Overlay) -> Overlay:
    """The overlay with the sizes that a file holds in its place, so that whoever gets the plan need not have it."""
    name = said.leaves.get(SIZES_FILE)
    if name is None:
        return said
    data = read_small_file(Path(name), f"{said.where(SIZES_FILE)}: {name}", "a file of sizes that can be read")
    leaves = {**said.leaves, SIZES_FILE: None, SIZES: parse_sizes(data, name)}
    return Overlay(leaves, {**said.places, SIZES: lambda _: name}, said.pool_groups, said.whole)
