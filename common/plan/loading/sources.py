"""Loads a plan from all its sources. Later sources override earlier ones: defaults, profile, environment, file, flags.

Each source is checked separately and becomes a layer, so an error names the file, flag or variable with the fault. The
merged layers become a typed plan.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import PlanError
from common.plan.key_path import DescribeSource, KeyPath, render
from common.plan.loading import profiles
from common.plan.loading.command_lists import join_command_lists
from common.plan.loading.layers import PROFILE, Layer, MergedLayers, merge, merge_below, raw_plan_layer, settings_layer
from common.plan.loading.parsing import parse_plan_text, read_small_file
from common.plan.loading.secrets import resolve_secrets
from common.plan.rules.checks import Purpose, check_plan
from common.plan.schema import Plan
from common.plan.schema.target_url import redact_url
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
from common.plan.validation import find_fault
from common.plan.value_sizes import parse_size_file
from common.redaction import hide_userinfo, hide_values, password_candidates
from common.serde import from_builtins
from common.units import show

SIZES: KeyPath = ("workload", "values", "sizes")
SIZES_FILE: KeyPath = ("workload", "values", "sizes_file")

_BY_VARIABLE = {setting.variable: setting for setting in SETTINGS}
_TYPO_SIMILARITY = 0.85
"""An unknown variable counts as a typo if its name is at least this similar (0 to 1) to one of ours. A lower value
would also refuse variables of other programs with the same prefix."""


def load_plan(
    file: Path | None,
    flags: Mapping[Setting, Any],
    environ: Mapping[str, str],
    purpose: Purpose = Purpose.RUN,
) -> Plan:
    """The checked plan, with its passwords. flags: the parsed value of each setting on the command line.

    Raises PlanError, one line that names the place of the fault.
    """
    data = b"" if file is None else _read_plan(file)
    passwords = [environ.get(setting.variable, "") for setting in (PASSWORD, SENTINEL_PASSWORD)]
    passwords += password_candidates(data.decode(errors="replace"))
    try:
        layers = [environment_layer(environ)]
        if file is not None:
            layers.append(_with_files_beside(plan_text_layer(data, str(file)), file.parent))
        layers.append(flags_layer(flags))
        merged = _with_size_file(_with_profile(merge(layers)))
        plan = from_builtins(merged.raw_plan(), Plan)
        check_plan(plan, merged.where, purpose)
        return resolve_secrets(plan, environ, merged.where)
    except PlanError as error:
        raise PlanError(hide_userinfo(hide_values(str(error), passwords))) from error


def _read_plan(file: Path) -> bytes:
    url = re.sub(r"\A(\w+(?:\+\w+)?):/+", r"\1://", str(file))  # Path reduces "//" to "/"
    if "://" in url and not file.exists():
        raise PlanError(f"{redact_url(url)}: expected a plan file, got a URL; use --url for a target")
    return read_small_file(file, str(file), "a plan that can be read")


def plan_text_layer(data: bytes, name: str) -> Layer:
    """The layer of a plan file called `name`. Raises PlanError."""
    raw = parse_plan_text(data, name)
    fault = None
    if isinstance(raw, dict) and "workload" in raw:
        workload, fault = join_command_lists(raw["workload"])
        raw = {**raw, "workload": workload}
    fault = fault or find_fault(raw)
    where = _in_file(name)
    if fault is not None:
        raise PlanError(f"{where(fault.path)}: {fault.problem}")
    return raw_plan_layer(raw, where)


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """The layer of `STAMPEDE_...` variables. An empty variable counts as not set, except STAMPEDE_CLIENT_NAME.

    Raises PlanError for a value that is wrong, and for a variable that is similar to one of ours.
    """
    given: dict[Setting, Any] = {}
    for variable, text in sorted(environ.items()):
        setting = _BY_VARIABLE.get(variable)
        if setting is None:
            _refuse_typo(variable, environ)
        if setting is None or not (text or setting.option.allows_empty):
            continue
        try:
            value = setting.parse(text)
        except ValueError as error:
            raise PlanError(f"{variable}: {error}") from error
        given[setting] = (value,) if setting.option.repeatable else value
    return settings_layer(*values_by_path(given, lambda setting: setting.variable))


def flags_layer(flags: Mapping[Setting, Any]) -> Layer:
    """The layer of the command line. Raises PlanError for flags that contradict each other."""
    return settings_layer(*values_by_path(flags, lambda setting: setting.flag))


def _in_file(name: str) -> DescribeSource:
    return lambda path: f"{name}: {render(path)}"


def _in_profile(name: str) -> DescribeSource:
    return lambda path: f"profile {name}: {render(path[1:])}"


def _with_files_beside(layer: Layer, directory: Path) -> Layer:
    """The layer of a file in `directory`, with the names of other files resolved relative to this directory."""
    named = {path: layer.values[path] for path in (PROFILE, SIZES_FILE) if layer.values.get(path) is not None}
    if PROFILE in named and not profiles.is_file(named[PROFILE]):
        del named[PROFILE]
    return replace(layer, values={**layer.values, **{path: str(directory / name) for path, name in named.items()}})


def _refuse_typo(variable: str, environ: Mapping[str, str]) -> None:
    if not variable.startswith(ENVIRONMENT_PREFIX) or variable == environ.get(f"{ENVIRONMENT_PREFIX}PASSWORD_ENV"):
        return
    names = [known.removeprefix(ENVIRONMENT_PREFIX) for known in _BY_VARIABLE]
    similar = difflib.get_close_matches(variable.removeprefix(ENVIRONMENT_PREFIX), names, n=1, cutoff=_TYPO_SIMILARITY)
    if similar:
        raise PlanError(f"{show(variable)[1:-1]}: unknown variable; did you mean {ENVIRONMENT_PREFIX}{similar[0]}?")


def _with_profile(merged: MergedLayers) -> MergedLayers:
    """The layers with the workload of their profile below them; of the default profile if they name neither a profile
    nor commands."""
    name = merged.values.get(PROFILE)
    if name is None:
        if merged.values.get(COMMANDS) is not None:
            return merged
        name = DEFAULT_PROFILE
    profile = profiles.load(name, merged.where(PROFILE))
    layer = raw_plan_layer({"workload": profile.workload}, _in_profile(name))
    if profiles.is_file(name):
        layer = _with_files_beside(layer, Path(name).parent)
    if profile.driver is not None:
        drivers: dict[KeyPath, str] = {("pools", n, "driver"): profile.driver for n in range(merged.pool_groups)}
        layer = replace(layer, values={**layer.values, **drivers})
    complete = merge_below(merged, layer)
    # Remove the name of a profile file: the plan has its whole content, and the file may not exist at the next load.
    label = None if profiles.is_file(name) else name
    return replace(complete, values={**complete.values, PROFILE: label})


def _with_size_file(merged: MergedLayers) -> MergedLayers:
    """The layers with the content of the size file in place of its name, because agents do not have the file."""
    name = merged.values.get(SIZES_FILE)
    if name is None:
        return merged
    data = read_small_file(Path(name), f"{merged.where(SIZES_FILE)}: {name}", "a file of sizes that can be read")
    return replace(
        merged,
        values={**merged.values, SIZES_FILE: None, SIZES: parse_size_file(data, name)},
        sources={**merged.sources, SIZES: lambda _: name},
    )
