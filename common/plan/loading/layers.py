"""Merges what several sources say into one raw plan, and keeps which source said each value.

A layer maps key paths to values. A list of commands is one value; pool groups are separate paths, so that a flag can
change one key of all groups. A value of a later layer replaces that of an earlier one, and so does a later choice
between alternatives: `requests` on the command line replaces the file's `duration`, a profile the file's commands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.plan.key_path import EVERY, KeyPath, Where, in_plan, render
from common.plan.schema.short_forms import FallbackList
from common.plan.settings import COMMANDS

PROFILE: KeyPath = ("workload", "profile")

_ALTERNATIVES: tuple[frozenset[KeyPath], ...] = (
    frozenset({("target", "url"), ("target", "embedded")}),
    frozenset(("target", source) for source in ("password", "password_env", "password_file")),
    frozenset(("target", "sentinel", source) for source in ("password", "password_env", "password_file")),
    frozenset({("load", "duration"), ("load", "requests"), ("load", "stages")}),
    *(frozenset(("workload", "values", key) for key in (end, "sizes", "sizes_file")) for end in ("minimum", "maximum")),
)
"""A layer that sets one key of a group unsets the others in the layers below."""

_GROUP_PATH_LENGTH = len(("pools", EVERY))


@dataclass(frozen=True, slots=True)
class Layer:
    """What one source says. where: names the place of a path in it. pool_groups: how many the source lists; None for
    flags and variables, which set keys of every group as `*`."""

    values: Mapping[KeyPath, Any]
    where: Where
    pool_groups: int | None = None


@dataclass(frozen=True, slots=True)
class MergedLayers:
    """The values of all layers. sources: for each value the layer that said it, as the naming of its places.
    default_source: names the place of what no layer said."""

    values: Mapping[KeyPath, Any]
    sources: Mapping[KeyPath, Where]
    pool_groups: int
    default_source: Where

    def where(self, path: KeyPath) -> str:
        """The place that said what is at a path, or what contains it; for what nobody said, the path itself."""
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


def raw_plan_layer(raw: Mapping[str, Any], where: Where) -> Layer:
    """A layer of a raw plan without faults."""
    groups = raw.get("pools", ())
    values = _by_path({key: value for key, value in raw.items() if key != "pools"}, ())
    for number, group in enumerate(groups):
        values |= _by_path(group, ("pools", number))
    return Layer(values, where, pool_groups=len(groups))


def settings_layer(values: Mapping[KeyPath, Any], names: Mapping[KeyPath, str]) -> Layer:
    """A layer of flags, or of variables; names: of the one that said each value."""

    def where(path: KeyPath) -> str:
        return next((names[said] for said in _paths_around(path) if said in names), render(path))

    return Layer(values, where)


def merge(layers: Sequence[Layer]) -> MergedLayers:
    """All layers as one, later over earlier."""
    plan_file = next((layer for layer in layers if layer.pool_groups is not None), None)
    groups = (plan_file and plan_file.pool_groups) or 1
    merged: dict[KeyPath, Any] = {}
    sources: dict[KeyPath, Where] = {}
    for layer in layers:
        values = _for_each_group(layer.values, groups)
        for path in _overridden(values):
            merged.pop(path, None)
        values = _without_fallbacks(values, merged)
        merged |= values
        sources |= dict.fromkeys(values, layer.where)
    return MergedLayers(merged, sources, groups, plan_file.where if plan_file else in_plan)


def merge_below(upper: MergedLayers, lower: Layer) -> MergedLayers:
    """The same with one more layer, a profile, below all others: it fills in what they do not say."""
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
    """The values without fallback lists that the layers below make unnecessary."""
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
    """Every path of the layers below that these values replace, themselves or as an alternative."""
    given = {path for path, value in values.items() if value is not None}
    overridden: set[KeyPath] = set().union(*(group for group in _ALTERNATIVES if group & given))
    return overridden | {COMMANDS} if PROFILE in given else overridden


def _paths_around(path: KeyPath) -> list[KeyPath]:
    """The paths under which a layer of settings may name what is at `path`: the path, what contains it, and both with
    `*` for the pool group."""
    every = ("pools", EVERY, *path[_GROUP_PATH_LENGTH:]) if path[:1] == ("pools",) else path
    return [candidate[:end] for candidate in (path, every) for end in range(len(candidate), 0, -1)]
