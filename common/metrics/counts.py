"""Counts by name. Servers choose the names of errors and causes, so names have limits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

from msgspec import Meta

Tally = Annotated[int, Meta(ge=0, le=1 << 53)]
"""A count, or a duration in ns. Decoding refuses larger numbers from peers. Every whole number up to the limit is exact
as a float; 1e15 bytes and a hundred days in ns are below the limit."""

MAX_NAMES, MAX_NAME_LENGTH = 64, 64
"""Limits for the names of errors and causes: how many one count has, and their length. Servers choose these names."""
OTHER = "other"
"""The name under which all names beyond `MAX_NAMES` are counted."""


def merge_counts(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum for each key, in the order in which keys first appear. At most `MAX_NAMES` keys, see `add_named`."""
    total: dict[str, int] = {}
    for part in filter(None, parts):  # most are empty
        for name, count in part.items():
            add_named(total, name, count)
    return total


def add_named(counts: dict[str, int], name: str, count: int) -> None:
    """Count something under its name, or under `OTHER` when there are `MAX_NAMES` already."""
    name = name[:MAX_NAME_LENGTH]
    if name not in counts and len(counts) >= MAX_NAMES - 1:
        name = OTHER
    counts[name] = counts.get(name, 0) + count
