"""The place of a value in a plan: a path of keys and list positions, and its form in error messages."""

from __future__ import annotations

from collections.abc import Callable

KeyPath = tuple[str | int, ...]
"""Keys and list positions: `("pools", 1, "name")`."""

EVERY = "*"
"""In a path: every position of a list."""

DescribeSource = Callable[[KeyPath], str]
"""Returns the source of the value at a path, for the beginning of an error message: a flag, a variable, or a place in a
file."""


def render(path: KeyPath) -> str:
    """`("pools", 1, "name")` -> `$.pools[1].name`."""
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def in_plan(path: KeyPath) -> str:
    """The place of a value that came from neither a file nor a flag."""
    return f"plan: {render(path)}"
