"""The parts that the schema is made of: sections, constrained types, and declarations of fields.

A field of the plan is declared once:

    threads_per_pool: Annotated[AtLeastOne, setting("--threads-per-pool", help="worker threads of each pool")] = 1

The flag, its environment variable, help texts, error messages and the reference pages all come from that line. A field
without a flag of its own has `described("...")` instead. `common.plan.settings` finds the settings in the schema.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import msgspec
import msgspec.inspect
from msgspec import Meta

AtLeastOne = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Weight = Annotated[float, Meta(ge=0)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
NameOrNone = Annotated[str, Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,63})?$")]

TARGET = "Target"
CLIENT = "Client"
POOLS = "Pools (each flag applies to every pool group of the plan)"
WORKLOAD = "Workload"
DATA = "Keys and values"
LOAD = "Load"
FLEET = "Fleet"
HEADINGS = (TARGET, POOLS, CLIENT, WORKLOAD, DATA, LOAD, FLEET)
"""The headings under which `--help` lists the plan's flags, in that order."""

_KEY = "declaration"


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the plan. It is immutable, and unknown keys are refused. heading: the heading of its flags in
    `--help`."""

    heading: ClassVar[str] = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Option:
    """A flag of the command line that sets a field, and the environment variable of the same name.

    flag: "" if only a variable sets the field. variable: "" derives the name from the flag. help: "" takes the field's
    help. default: describes a default that the schema does not have. metavar: "" derives it from the field's type.
    implied_value: the value if the flag is given without one. is_switch: the flag never takes a value. repeatable: the
    flag may be given several times. allows_empty: an empty variable is a value; for other options it counts as not set.
    parse: converts text to a value as in a plan file; None: by the field's type.
    """

    flag: str = ""
    aliases: tuple[str, ...] = ()
    variable: str = ""
    help: str = ""
    default: str = ""
    metavar: str = ""
    heading: str = ""
    implied_value: str | None = None
    is_switch: bool = False
    repeatable: bool = False
    allows_empty: bool = False
    parse: Callable[[str], Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """What a field of the schema means, and the options that set it. repeats_top: its keys are those of a section at
    the top of the plan, where they are described and have their options."""

    help: str
    options: tuple[Option, ...] = ()
    repeats_top: bool = False


def described(help: str, *options: Option, repeats_top: bool = False) -> Meta:
    """Declare a field that has no option, or several options."""
    return Meta(extra={_KEY: Declaration(help=help, options=options, repeats_top=repeats_top)})


def setting(*flags: str, help: str, **option: Any) -> Meta:
    """Declare a field with one option. flags: the flag, then its aliases; option: see `Option`."""
    flag, *aliases = flags or ("",)
    return described(help, Option(flag=flag, aliases=tuple(aliases), help=help, **option))


def declaration_of(kind: msgspec.inspect.Type) -> Declaration | None:
    """The declaration of a field, from its type in the inspected schema; None for a field without declaration."""
    return (kind.extra or {}).get(_KEY) if isinstance(kind, msgspec.inspect.Metadata) else None
