"""Short forms: texts of the command line and the environment that contain several values of a plan.

Each function converts a text to the value that a plan file would have in the same place, and raises ValueError for a
text in another form. The schema's types check the values.
"""

from __future__ import annotations

from typing import Any

from common.units import show

TRUE = ("true", "yes", "on", "1")
FALSE = ("false", "no", "off", "0")


class FallbackList(list[Any]):
    """A list that applies only if no layer below has a list at the same path."""


def number_or_text(text: str) -> float | str:
    """The number in a text; any other text unchanged, so that the schema refuses it."""
    try:
        return float(text)
    except ValueError:
        return text


def both_ends(text: str) -> dict[str, str]:
    """`"1KiB"` -> a range with only this value."""
    return {"minimum": text, "maximum": text}


def size_range(text: str) -> dict[str, str]:
    """`"32-1KiB"` -> the range."""
    return _range(text, "32-1KiB")


def time_range(text: str) -> dict[str, str]:
    """`"10s-60s"` -> the range."""
    return _range(text, "10s-60s")


def weighted_sizes(text: str) -> list[dict[str, Any]]:
    """`"32:70,1KiB:30"` -> sizes with their weights."""
    entries = []
    for part in text.split(","):
        size, colon, weight = part.strip().rpartition(":")
        if not colon:
            raise ValueError(f'expected SIZE:WEIGHT,... such as "32:70,1KiB:30", got {show(text)}')
        entries.append({"size": size, "weight": number_or_text(weight)})
    return entries


def set_get_ratio(text: str) -> list[dict[str, Any]]:
    """`"1:10"` -> a mix of SET and GET with these weights, as in memtier_benchmark."""
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise ValueError(f'expected SET:GET such as "1:10", got {show(text)}')
    return [{"command": name, "weight": float(part)} for name, part in zip(("SET", "GET"), parts, strict=True)]


def preload_switch(text: str) -> list[Any]:
    """`"on"` -> SET for each key, unless the plan or its profile has a preload of its own; `"off"` -> no preload."""
    word = text.strip().lower()
    if word not in TRUE + FALSE:
        raise ValueError(f"expected true or false, got {show(text)}")
    return FallbackList([{"command": "SET"}]) if word in TRUE else []


def listed(text: str) -> list[str]:
    """`"a, b"` -> ["a", "b"]."""
    return [part.strip() for part in text.split(",")]


def stage(text: str) -> dict[str, Any]:
    """`"peak=30s@10k/s:linear"` -> a stage; name, rate and ramp are optional."""
    name, equals, rest = text.rpartition("=")
    duration, at, load = rest.partition("@")
    rate, colon, ramp = load.partition(":")
    given = {"duration": duration}
    if equals:
        given["name"] = name
    if at:
        given["rate"] = rate
    if colon:
        given["ramp"] = ramp
    return given


def _range(text: str, example: str) -> dict[str, str]:
    low, dash, high = text.partition("-")
    if not dash:
        raise ValueError(f'expected MIN-MAX such as "{example}", got {show(text)}')
    return {"minimum": low, "maximum": high}
