"""One raw plan out of several, the later over the earlier, and for each leaf of it who said so.

A layer is flattened into leaves: path -> value. A list of commands is one leaf; pool groups are walked, so that a flag
can change one key of all of them. A later layer's leaf replaces an earlier one's, and so does a later layer's choice
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
    frozenset({("target", "password"), ("target", "password_env"), ("target", "password_file")}),
    frozenset(("target", "sentinel", way) for way in ("password", "password_env", "password_file")),
    frozenset({("load", "duration"), ("load", "requests"), ("load", "stages")}),
    *(frozenset(("workload", "values", key) for key in (end, "sizes", "sizes_file")) for end in ("minimum", "maximum")),
)
_POOL_GROUP = 2


@dataclass(frozen=True, slots=True)
class Layer:
    """What one source says. A document lists pool groups (0: none); others speak of every group, as `*`."""

    leaves: Mapping[KeyPath, Any]
    place: Where
    is_document: bool = False
    pool_groups: int = 0


@dataclass(frozen=True, slots=True)
class Overlay:
    """Leaves of all layers as one, and the place of each. whole: the place of what nobody said."""

    leaves: Mapping[KeyPath, Any]
    places: Mapping[KeyPath, Where]
    pool_groups: int
    whole: Where

    def where(self, path: KeyPath) -> str:
        """The place that said what is at a path, or said what it lies in; else the path in the plan as a whole."""
        for end in range(len(path), 0, -1):
            place = self.places.get(path[:end])
            if place is not None:
                return place(path)
        return self.whole(path)

    def raw(self) -> dict[str, Any]:
        """The leaves as nested mappings, pool groups as a list."""
        nested: dict[str | int, Any] = {}
        for path, value in self.leaves.items():
            section = nested
            for part in path[:-1]:
                section = section.setdefault(part, {})
            section[path[-1]] = value
        groups = nested.get("pools", {})
        nested["pools"] = [groups.get(number, {}) for number in range(self.pool_groups)]
        return {str(key): value for key, value in nested.items()}


def document_layer(raw: Mapping[str, Any], place: Where) -> Layer:
    """A layer of a whole document that has the plan's shape."""
    groups = raw.get("pools", ())
    leaves = _flatten({key: value for key, value in raw.items() if key != "pools"}, ())
    for number, group in enumerate(groups):
        leaves |= _flatten(group, ("pools", number))
    return Layer(leaves, place, is_document=True, pool_groups=len(groups))


def named_layer(leaves: Mapping[KeyPath, Any], names: Mapping[KeyPath, str]) -> Layer:
    """A layer of single settings, each known by a name of its own: flags, or variables of the environment."""

    def place(path: KeyPath) -> str:
        return next((names[found] for found in _own_paths(path) if found in names), render(path))

    return Layer(leaves, place)


def overlay(layers: Sequence[Layer]) -> Overlay:
    """All layers as one, later over earlier."""
    document = next((layer for layer in layers if layer.is_document), None)
    groups = (document and document.pool_groups) or 1
    merged: dict[KeyPath, Any] = {}
    places: dict[KeyPath, Where] = {}
    for layer in layers:
        leaves = _for_each_group(layer.leaves, groups)
        for path in _replaced(leaves):
            merged.pop(path, None)
        leaves = _without_fallbacks(leaves, merged)
        merged |= leaves
        places |= dict.fromkeys(leaves, layer.place)
    return Overlay(merged, places, groups, document.place if document else in_plan)


def beneath(upper: Overlay, lower: Layer) -> Overlay:
    """A layer under all others, without taking anything from them: a profile."""
    leaves = {path: value for path, value in lower.leaves.items() if path not in _replaced(upper.leaves) - {COMMANDS}}
    above = _without_fallbacks(upper.leaves, leaves)
    places = {path: place for path, place in upper.places.items() if path in above or path not in leaves}
    return Overlay(
        {**leaves, **above},
        {**dict.fromkeys(leaves, lower.place), **places},
        upper.pool_groups,
        upper.whole,
    )


def _without_fallbacks(leaves: Mapping[KeyPath, Any], below: Mapping[KeyPath, Any]) -> dict[KeyPath, Any]:
    return {path: value for path, value in leaves.items() if not (isinstance(value, FallbackList) and below.get(path))}


def _flatten(raw: Mapping[str, Any], path: KeyPath) -> dict[KeyPath, Any]:
    leaves: dict[KeyPath, Any] = {}
    for key, value in raw.items():
        if isinstance(value, dict):
            leaves |= _flatten(value, (*path, key))
        else:
            leaves[(*path, key)] = value
    return leaves


def _for_each_group(leaves: Mapping[KeyPath, Any], groups: int) -> dict[KeyPath, Any]:
    spread: dict[KeyPath, Any] = {}
    for path, value in leaves.items():
        if path[:_POOL_GROUP] == ("pools", EVERY):
            spread |= {("pools", number, *path[_POOL_GROUP:]): value for number in range(groups)}
        else:
            spread[path] = value
    return spread


def _replaced(leaves: Mapping[KeyPath, Any]) -> set[KeyPath]:
    """What of the layers below these leaves stand for."""
    said = {path for path, value in leaves.items() if value is not None}
    replaced: set[KeyPath] = set().union(*(group for group in _ALTERNATIVES if group & said))
    return replaced | {COMMANDS} if PROFILE in said else replaced


def _own_paths(path: KeyPath) -> list[KeyPath]:
    """The paths under which a named layer may know what is at `path`: itself, what it lies in, the same of `*`."""
    every = ("pools", EVERY, *path[_POOL_GROUP:]) if path[:1] == ("pools",) else path
    return [candidate[:end] for candidate in (path, every) for end in range(len(candidate), 0, -1)]
