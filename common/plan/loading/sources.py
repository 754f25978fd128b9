"""Loads a plan from all its sources. Later sources override earlier ones: defaults, profile, environment, file, flags.

Each source is checked separately and becomes a layer, so an error names the file, flag or variable with the fault. The
merged layers become a typed plan.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from msgspec.structs import replace as replace_fields

from common.errors import PlanError
from common.plan.key_path import DescribeSource, KeyPath, in_plan, render
from common.plan.loading import profiles
from common.plan.loading.command_lists import join_lists_of_plan
from common.plan.loading.layers import (
    PROFILE,
    Layer,
    MergedLayers,
    merge,
    merge_below,
    overlaid,
    raw_plan_layer,
    settings_layer,
)
from common.plan.loading.parsing import parse_plan_text, read_small_file
from common.plan.loading.profiles import Profile
from common.plan.loading.secrets import resolve_secrets
from common.plan.rules.checks import Purpose, check_plan, check_plan_limits
from common.plan.rules.scenario_rules import added_problem, check_order, check_scenarios
from common.plan.scenarios import MAIN, with_probe, with_scenarios
from common.plan.schema import Plan, Scenario, Visibility
from common.plan.schema.load import DEFAULT_DURATION
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
from common.plan.visibility import READS, visibility_faults, visibility_scenarios
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
        return _load(_Sources.read(file, data, flags, environ), environ, purpose)
    except PlanError as error:
        raise PlanError(hide_userinfo(hide_values(str(error), passwords))) from error


@dataclass(frozen=True, slots=True)
class _Sources:
    """All sources, as layers. file: the sections at the top of the plan file. targets: by name. scenarios: their names
    and starts, each with the layer of its other keys; place: where they stand. profile: the base of the scenarios of a
    profile, None if they are the file's or if there are none."""

    environment: Layer
    file: Layer | None
    flags: Layer
    targets: Mapping[str, Layer]
    scenarios: Sequence[tuple[Scenario, Layer]]
    place: DescribeSource
    profile: Layer | None = None

    @classmethod
    def read(cls, file: Path | None, data: bytes, flags: Mapping[Setting, Any], environ: Mapping[str, str]) -> Self:
        """Raises PlanError for a fault in one of the sources."""
        environment, of_flags = environment_layer(environ), flags_layer(flags)
        if file is None:
            read = cls(environment, None, of_flags, {}, (), in_plan)
        else:
            where = _in_file(str(file))
            raw = parse_plan_file(data, str(file))
            top = {key: value for key, value in raw.items() if key not in ("targets", "scenarios")}
            targets = {
                name: raw_plan_layer({"target": target or {}}, _below(where, ("targets", name), "target"))
                for name, target in (raw.get("targets") or {}).items()
            }
            scenarios = [
                (scenario, _with_files_beside(layer, file.parent))
                for scenario, layer in _scenario_layers(raw.get("scenarios") or (), where)
            ]
            of_file = _with_files_beside(raw_plan_layer(top, where), file.parent)
            read = cls(environment, of_file, of_flags, targets, scenarios, where)
        return read if read.scenarios else read._with_scenarios_of_profile()

    def _with_scenarios_of_profile(self) -> Self:
        merged = self.merged()
        name = merged.values.get(PROFILE)
        if name is None or not (profile := profiles.load(name, merged.where(PROFILE))).scenarios:
            return self
        place = _in_file(f"profile {name}")
        base, scenarios = _profile_layer(profile), _scenario_layers(profile.scenarios, place)
        if profiles.is_file(name):
            base = _with_files_beside(base, Path(name).parent)
            scenarios = [(scenario, _with_files_beside(layer, Path(name).parent)) for scenario, layer in scenarios]
        return replace(
            self,
            environment=_without(self.environment, PROFILE),
            file=None if self.file is None else _without(self.file, PROFILE),
            flags=_without(self.flags, PROFILE),
            scenarios=scenarios,
            place=place,
            profile=base,
        )

    def merged(self, scenario: Scenario | None = None, layer: Layer | None = None) -> MergedLayers:
        """The layers of a scenario; of the plan without scenarios by default."""
        file = self.file
        if file is not None and scenario is not None and scenario.target:
            file = overlaid(file, self.targets[scenario.target], frozenset({"target"}))
        if layer is None:
            return merge([each for each in (self.environment, file, self.flags) if each is not None])
        if self.profile is not None:
            base = overlaid(self.profile, layer, _SCENARIO_SECTIONS)
            return merge([each for each in (base, self.environment, file, self.flags) if each is not None])
        assert file is not None
        return merge([self.environment, overlaid(file, layer, _SCENARIO_SECTIONS), self.flags])


_SCENARIO_SECTIONS = frozenset({"pools", "workload", "load"})
_OWN_TARGET = (("target", "url"), ("target", "embedded"))


def _load(sources: _Sources, environ: Mapping[str, str], purpose: Purpose) -> Plan:
    merged = sources.merged()
    wanted = _visibility(merged, list(sources.targets))
    names = [scenario for scenario, _ in sources.scenarios]
    used = [wanted.write, wanted.read] if wanted is not None else []
    check_scenarios(names, list(sources.targets), sources.place, used)
    if not sources.scenarios and wanted is None:
        return _with_probe(_one_plan(merged, environ, purpose), merged)
    parts = []
    if not sources.scenarios and any(merged.values.get(path) for path in _OWN_TARGET):
        parts.append((Scenario(name=MAIN), _one_plan(merged, environ, purpose)))
    for scenario, layer in sources.scenarios:
        for path in _OWN_TARGET:
            if scenario.target and path in sources.flags.values:
                raise PlanError(
                    f"{sources.flags.where(path)}: expected no target, because the scenario {scenario.name} has its "
                    f"own, {scenario.target}"
                )
        parts.append((scenario, _one_plan(sources.merged(scenario, layer), environ, purpose)))
    if wanted is not None:
        parts += _visibility_parts(sources, merged, wanted, environ, purpose)
        if problem := added_problem([scenario.name for scenario, _ in parts]):
            raise PlanError(f"{merged.where(('visibility',))}: {problem}")
    plan = replace_fields(with_scenarios(parts[0][1], parts), visibility=None)
    check_order(plan.scenarios, sources.place)
    check_plan_limits(plan, sources.place)
    return _with_probe(plan, merged)


def _visibility(merged: MergedLayers, targets: Sequence[str]) -> Visibility | None:
    """What the plan says on visibility, checked; None if it says nothing."""
    raw = {str(path[1]): value for path, value in merged.values.items() if path[0] == "visibility" and len(path) > 1}
    if not raw:
        return None
    wanted = from_builtins(raw, Visibility)
    per_agent = bool(merged.values.get(("fleet", "per_agent")))
    for key, problem in visibility_faults(wanted, targets, per_agent=per_agent):
        raise PlanError(f"{merged.where(('visibility', key))}: {problem}")
    return wanted


def _visibility_parts(
    sources: _Sources, merged: MergedLayers, wanted: Visibility, environ: Mapping[str, str], purpose: Purpose
) -> list[tuple[Scenario, Plan]]:
    """The scenarios of visibility, with plans that have their targets. Flags of pools and workload do not apply."""
    parts = []
    for target in (wanted.write, wanted.read):
        scenario = Scenario(name=READS, target=target)
        parts.append(_one_plan(sources.merged(scenario), environ, purpose))
    try:
        scenarios = visibility_scenarios(wanted, parts[0].load)
    except PlanError as error:
        raise PlanError(f"{merged.where(('visibility',))}: {error}") from error
    made = []
    for each, plan in zip(scenarios, parts, strict=True):
        part = replace_fields(plan, pools=each.pools, workload=each.workload, load=each.load)
        check_plan(part, merged.where, purpose)
        made.append((each, part))
    return made


def _with_probe(plan: Plan, merged: MergedLayers) -> Plan:
    try:
        return with_probe(plan)
    except PlanError as error:
        raise PlanError(f"{merged.where(('probe',))}: {error}") from error


def _one_plan(merged: MergedLayers, environ: Mapping[str, str], purpose: Purpose) -> Plan:
    complete = _with_length(_with_size_file(_with_profile(merged)))
    plan = from_builtins(complete.raw_plan(), Plan)
    check_plan(plan, complete.where, purpose)
    return resolve_secrets(plan, environ, complete.where)


def _scenario_layers(raw: Sequence[Mapping[str, Any]], where: DescribeSource) -> list[tuple[Scenario, Layer]]:
    """For each scenario of a file: what it says of itself, and the layer of its sections."""
    return [
        (
            from_builtins({key: value for key, value in each.items() if key not in _SCENARIO_SECTIONS}, Scenario),
            raw_plan_layer(
                {key: value for key, value in each.items() if key in _SCENARIO_SECTIONS and value is not None},
                _below(where, ("scenarios", number)),
            ),
        )
        for number, each in enumerate(raw)
    ]


def _below(where: DescribeSource, parent: KeyPath, replaced: str = "") -> DescribeSource:
    """The places in a part of a file. parent: where the part stands. replaced: the first key of a path that `parent`
    takes the place of."""
    return lambda path: where((*parent, *(path[1:] if replaced and path[:1] == (replaced,) else path)))


def _without(layer: Layer, path: KeyPath) -> Layer:
    return replace(layer, values={key: value for key, value in layer.values.items() if key != path})


def _read_plan(file: Path) -> bytes:
    url = re.sub(r"\A(\w+(?:\+\w+)?):/+", r"\1://", str(file))  # Path reduces "//" to "/"
    if "://" in url and not file.exists():
        raise PlanError(f"{redact_url(url)}: expected a plan file, got a URL; use --url for a target")
    return read_small_file(file, str(file), "a plan that can be read")


def parse_plan_file(data: bytes, name: str) -> dict[str, Any]:
    """The raw plan in a plan file called `name`, without faults. Raises PlanError."""
    raw, fault = join_lists_of_plan(parse_plan_text(data, name))
    fault = fault or find_fault(raw)
    if fault is not None:
        raise PlanError(f"{name}: {render(fault.path)}: {fault.problem}")
    assert isinstance(raw, dict)
    return raw


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
    if profile.scenarios:
        raise PlanError(
            f"{merged.where(PROFILE)}: expected a profile of one workload, got {show(name)}, which has scenarios"
        )
    layer = _profile_layer(profile, merged.pool_groups)
    if profiles.is_file(name):
        layer = _with_files_beside(layer, Path(name).parent)
    complete = merge_below(merged, layer)
    # Remove the name of a profile file: the plan has its whole content, and the file may not exist at the next load.
    label = None if profiles.is_file(name) else name
    return replace(complete, values={**complete.values, PROFILE: label})


def _profile_layer(profile: Profile, pool_groups: int = 0) -> Layer:
    """The layer of a profile's workload, and of its driver for this many pool groups."""
    layer = raw_plan_layer({"workload": profile.workload}, _in_profile(profile.name))
    drivers: dict[KeyPath, Any] = {("pools", n, "driver"): profile.driver for n in range(pool_groups)}
    return replace(layer, values={**layer.values, **drivers}) if profile.driver is not None else layer


def _with_length(merged: MergedLayers) -> MergedLayers:
    """The layers with the default duration, if they set neither a duration nor requests nor stages."""
    lengths = [merged.values.get(("load", key)) for key in ("duration", "requests", "stages")]
    if any(length not in (None, (), []) for length in lengths):
        return merged
    return replace(merged, values={**merged.values, ("load", "duration"): str(DEFAULT_DURATION)})


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
