"""What a row of the table of settings is, and how the texts are read that stand for more than one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from common.plan.key_path import KeyPath
from common.plan.schema import Ramp, RetryError
from common.plan.validation import FALSE, TRUE, default_at, parse_path, parse_text
from common.units import Bytes, PerSecond, Seconds, show

ENVIRONMENT_PREFIX = "STAMPEDE_"

Leaves = dict[KeyPath, Any]


class Fallback(list[Any]):
    """A list that stands only where nothing below it says another one."""


Said = Mapping["Setting", Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """One row. path: the plan key that takes the value, "" where `parser` and `spread` say it instead.

    flag "": a variable only. alone: the value that the flag means when it stands without one. repeatable: may be given
    several times, in order. takes_empty: an empty variable is a value; for other settings it counts as not set.
    """

    group: str
    flag: str = ""
    aliases: tuple[str, ...] = ()
    path: str = ""
    metavar: str = "N"
    help: str
    alone: str | None = None
    is_switch: bool = False
    repeatable: bool = False
    takes_empty: bool = False
    parser: Callable[[str], Any] | None = None
    spread: Callable[[Any], Leaves] | None = None
    variable_name: str = ""

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return self.variable_name or ENVIRONMENT_PREFIX + self.flag.removeprefix("--").replace("-", "_").upper()

    def parse(self, text: str) -> Any:
        """The raw value that a plan file would hold. Raises ValueError that says what was found and expected."""
        return self.parser(text) if self.parser else parse_text(text, parse_path(self.path))

    def leaves(self, value: Any) -> Leaves:
        """A parsed value as leaves of the plan."""
        return self.spread(value) if self.spread else {parse_path(self.path): value}

    @property
    def default(self) -> Any:
        """The plan's own default, as the typed value; None where there is none."""
        return default_at(parse_path(self.path)) if self.path else None


def parse_ratio(text: str) -> tuple[float, float]:
    """`"1:10"` -> (1.0, 10.0): memtier's SET:GET. Raises ValueError."""
    parts = text.split(":")
    if len(parts) != 2 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise ValueError(f'expected SET:GET such as "1:10", got {show(text)}')
    return float(parts[0]), float(parts[1])


def parse_size_range(text: str) -> tuple[Bytes, Bytes]:
    """`"32-1KiB"` -> (32, 1024). Raises ValueError."""
    low, dash, high = text.partition("-")
    if not dash:
        raise ValueError(f'expected MIN-MAX such as "32-1KiB", got {show(text)}')
    return Bytes.parse(low), Bytes.parse(high)


def parse_weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = -1.0
    if not 0 <= weight < 1e18:
        raise ValueError(f"expected a weight >= 0, got {show(text)}")
    return weight


def parse_switch(text: str) -> bool:
    """`"true"`, `"on"` and the like -> True. Raises ValueError."""
    if text.strip().lower() not in TRUE + FALSE:
        raise ValueError(f"expected true or false, got {show(text)}")
    return text.strip().lower() in TRUE


def parse_size_list(text: str) -> list[dict[str, Any]]:
    """`"32:70,1KiB:30"` -> sizes with their weights. Raises ValueError."""
    entries = []
    for part in text.split(","):
        size, colon, weight = part.strip().rpartition(":")
        if not colon:
            raise ValueError(f'expected SIZE:WEIGHT,... such as "32:70,1KiB:30", got {show(text)}')
        entries.append({"size": Bytes.parse(size), "weight": parse_weight(weight)})
    return entries


def parse_time_range(text: str) -> tuple[Seconds, Seconds]:
    """`"10s-60s"` -> (10.0, 60.0). Raises ValueError."""
    low, dash, high = text.partition("-")
    if not dash:
        raise ValueError(f'expected MIN-MAX such as "10s-60s", got {show(text)}')
    return Seconds.parse(low), Seconds.parse(high)


def parse_errors(text: str) -> list[str]:
    """`"ConnectionError,ReadOnlyError"` -> names of errors. Raises ValueError."""
    known = [member.value for member in RetryError]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"expected names out of {', '.join(known)}, got {show(name)}")
    return names


def parse_stage(text: str) -> dict[str, Any]:
    """`"peak=30s@10k/s:linear"` -> a stage; name, rate and ramp may be left out. Raises ValueError."""
    name, equals, rest = text.rpartition("=")
    duration, at, load = rest.partition("@")
    rate, colon, ramp = load.partition(":")
    stage: dict[str, Any] = {"duration": Seconds.parse(duration)}
    if equals:
        stage["name"] = parse_text(name, ("load", "stages", 0, "name"))
    if at:
        stage["rate"] = PerSecond.parse(rate)
    if colon:
        if ramp not in {member.value for member in Ramp}:
            raise ValueError(f'expected [NAME=]TIME[@RATE[:linear]] such as "30s@10k/s:linear", got {show(text)}')
        stage["ramp"] = ramp
    return stage
