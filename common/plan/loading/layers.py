"""Merges the settings of several sources into one raw plan, and records the source of each value.

A layer maps key paths to values. A list of commands is one value. Each pool group has its own paths, so a flag can
change one key of all groups. A value in a later layer replaces the value in an earlier layer. It also replaces its
alternatives: `requests` on the command line replaces `duration` in the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.plan.key_path import EVERY, DescribeSource, KeyPath, in_plan, render
from common.plan.schema.short_forms import FallbackList
from common.plan.settings import COMMANDS

PROFILE: KeyPath = ("workload", "profile")
STAGES: KeyPath = ("load", "stages")
RATE: KeyPath = ("load", "rate")

_ALTERNATIVES: tuple[frozenset[KeyPath], ...] = (
    frozenset({("target", "url"), ("target", "embedded")}),
    frozenset(("target", source) for source in ("password", "password_env", "password_file")),
    frozenset(("target", "sentinel", source) for source in ("password", "password_env", "password_file")),
    frozenset({("load", "duration"), ("load", "requests"), ("load", "stages")}),
    *(frozenset(("workload", "values", key) for key in (end, "sizes", "sizes_file")) for end in ("minimum", "maximum")),
)
"""Sets of keys that exclude each other. A layer that sets one key unsets the others of its set in the layers below."""

_GROUP_PATH_LENGTH = len(("pools", EVERY))


@dataclass(frozen=True, slots=True)
class Layer:
    """The values of one source. where: returns the place of a path in the source, for error messages. pool_groups: how
    many pool groups the source lists; None for flags and variables, whose paths have `*` for all groups."""

    values: Mapping[KeyPath, Any]
    where: DescribeSource
    pool_groups: int | None = None


@dataclass(frozen=True, slots=True)
class MergedLayers:
    """The values of all layers. sources: for each value, the `where` of its layer. default_source: the `where` of paths
    that no layer sets."""

    values: Mapping[KeyPath, Any]
    sources: Mapping[KeyPath, DescribeSource]
    pool_groups: int
    default_source: DescribeSource

    def where(self, path: KeyPath) -> str:
        """The source that set the value at a path, or a section that contains it; its place in the plan if no layer set
        it."""
        for end in range(len(path), 0, -1):
            source = self.sources.get(path[:end])
            if source is not None:
                return source(path)
        return self.default_source(path)

    def raw_plan(self) -> dict[str, Any]:
        """The values as nested mappings, pool groups as a list."""
        nested: dict[str | int, Any] = {}
        for path, value in self.values.items():
            section = nested
            for part in path[:-1]:
                section = section.setdefault(part, {})
            section[path[-1]] = value
        groups = nested.get("pools", {})
        nested["pools"] = [groups.get(number, {}) for number in range(self.pool_groups)]
        return {str(key): value for key, value in nested.items()}


def raw_plan_layer(raw: Mapping[str, Any], where: DescribeSource) -> Layer:
    """The layer of a raw plan that has no faults."""
    groups = raw.get("pools", ())
    values = _by_path({key: value for key, value in raw.items() if key != "pools"}, ())
    for number, group in enumerate(groups):
        values |= _by_path(group, ("pools", number))
    return Layer(values, where, pool_groups=len(groups))


def overlaid(below: Layer, above: Layer, own: frozenset[str]) -> Layer:
    """Two layers of one file as one: a scenario's over those at the top. own: the sections whose faults belong to the
    scenario even where it sets nothing. A scenario's list of pool groups replaces the list below."""
    values = dict(below.values)
    if above.pool_groups:
        values = {path: value for path, value in values.items() if path[0] != "pools"}
    for path in _overridden(above.values):
        values.pop(path, None)
    if above.values.get(STAGES):
        values.pop(RATE, None)  # each stage has its own
    values |= above.values

    def where(path: KeyPath) -> str:
        is_below = any(path[:end] in below.values and path[:end] not in above.values for end in range(1, len(path) + 1))
        return (below if is_below or path[0] not in own else above).where(path)

    return Layer(values, where, above.pool_groups or below.pool_groups)


def settings_layer(values: Mapping[KeyPath, Any], names: Mapping[KeyPath, str]) -> Layer:
    """A layer of flags, or of variables. names: the flag or the variable that set each value."""

    def where(path: KeyPath) -> str:
        return next((names[candidate] for candidate in _paths_around(path) if candidate in names), render(path))

    return Layer(values, where)


def merge(layers: Sequence[Layer]) -> MergedLayers:
    """All layers as one, later over earlier."""
    files = [layer for layer in reversed(layers) if layer.pool_groups is not None]
    plan_file = files[0] if files else None
    groups = next((layer.pool_groups for layer in files if layer.pool_groups), 1)
    merged: dict[KeyPath, Any] = {}
    sources: dict[KeyPath, DescribeSource] = {}
    for layer in layers:
        values = _for_each_group(layer.values, groups)
        for path in _overridden(values):
            merged.pop(path, None)
        values = _without_fallbacks(values, merged)
        merged |= values
        sources |= dict.fromkeys(values, layer.where)
    return MergedLayers(merged, sources, groups, plan_file.where if plan_file else in_plan)


def merge_below(upper: MergedLayers, lower: Layer) -> MergedLayers:
    """The layers with a profile's layer below all others, so the profile sets only values that no other layer sets."""
    overridden = _overridden(upper.values) - {COMMANDS}
    filled_in = {path: value for path, value in lower.values.items() if path not in overridden}
    above = _without_fallbacks(upper.values, filled_in)
    sources = {path: source for path, source in upper.sources.items() if path in above or path not in filled_in}
    return MergedLayers(
        {**filled_in, **above},
        {**dict.fromkeys(filled_in, lower.where), **sources},
        upper.pool_groups,
        upper.default_source,
    )


def _without_fallbacks(values: Mapping[KeyPath, Any], below: Mapping[KeyPath, Any]) -> dict[KeyPath, Any]:
    """The values, without each fallback list that has a value in the layers below."""
    return {path: value for path, value in values.items() if not (isinstance(value, FallbackList) and below.get(path))}


def _by_path(raw: Mapping[str, Any], parent: KeyPath) -> dict[KeyPath, Any]:
    values: dict[KeyPath, Any] = {}
    for key, value in raw.items():
        if isinstance(value, dict):
            values |= _by_path(value, (*parent, key))
        else:
            values[(*parent, key)] = value
    return values


def _for_each_group(values: Mapping[KeyPath, Any], groups: int) -> dict[KeyPath, Any]:
    """The values with each `*` replaced by the number of every pool group."""
    numbered: dict[KeyPath, Any] = {}
    for path, value in values.items():
        if path[:_GROUP_PATH_LENGTH] == ("pools", EVERY):
            numbered |= {("pools", number, *path[_GROUP_PATH_LENGTH:]): value for number in range(groups)}
        else:
            numbered[path] = value
    return numbered


def _overridden(values: Mapping[KeyPath, Any]) -> set[KeyPath]:
    """The paths that these values unset in the layers below: their alternatives, and the commands if they name a
    profile."""
    given = {path for path, value in values.items() if value is not None}
    overridden: set[KeyPath] = set().union(*(group for group in _ALTERNATIVES if group & given))
    return overridden | {COMMANDS} if PROFILE in given else overridden


def _paths_around(path: KeyPath) -> list[KeyPath]:
    """The paths at which settings can set the value at `path`: the path and each section around it, first as they are
    and then with `*` for the pool group."""
    every = ("pools", EVERY, *path[_GROUP_PATH_LENGTH:]) if path[:1] == ("pools",) else path
    return [candidate[:end] for candidate in (path, every) for end in range(len(candidate), 0, -1)]
