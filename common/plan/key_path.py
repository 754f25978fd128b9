"""Where something stands in a plan: paths of keys and list positions, and how an error message names them."""

from __future__ import annotations

from collections.abc import Callable

KeyPath = tuple[str | int, ...]
"""Keys and list positions: `("pools", 1, "name")`."""

EVERY = "*"
"""Stands in a path for every position of a list."""

Where = Callable[[KeyPath], str]
"""Names the source of what is at a path, as an error message begins with it: a flag, a variable, a place in a file."""


def render(path: KeyPath) -> str:
    """`("pools", 1, "name")` -> `$.pools[1].name`."""
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def in_plan(path: KeyPath) -> str:
    """The place of a value that came from no file and no flag."""
    return f"plan: {render(path)}"
