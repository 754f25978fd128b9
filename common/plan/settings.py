"""The settings of the plan: every flag and environment variable that the schema declares.

The options of the command line and the `STAMPEDE_...` variables of the environment come from `SETTINGS`.
`values_by_path` converts given settings into values of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import NODEFAULT, inspect

from common.errors import PlanError
from common.plan.key_path import EVERY, KeyPath, render
from common.plan.schema.base import HEADINGS, Option, Section, declaration_of
from common.plan.validation import choices, find_fault, plan_type, raw_value, value_type
from common.units import Bytes, PerSecond, Seconds, SecondsOrOff

ENVIRONMENT_PREFIX = "STAMPEDE_"
COMMANDS: KeyPath = ("workload", "commands")

_METAVARS: dict[type, str] = {
    inspect.BoolType: "on|off",
    inspect.IntType: "N",
    inspect.FloatType: "X",
    inspect.StrType: "TEXT",
}
_QUANTITY_METAVARS: dict[type, str] = {Seconds: "TIME", SecondsOrOff: "TIME|off", PerSecond: "RATE", Bytes: "SIZE"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Setting:
    """An option of the plan, and the key that it sets. path, type, default: of the key; see `PlanField`."""

    option: Option
    path: KeyPath
    type: inspect.Type
    default: Any
    heading: str
    help: str

    @property
    def flag(self) -> str:
        """Its flag; "" if only a variable sets the key."""
        return self.option.flag

    @property
    def flags(self) -> tuple[str, ...]:
        """Its flag and the flag's aliases; empty if only a variable sets the key."""
        return (self.flag, *self.option.aliases) if self.flag else ()

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return self.option.variable or ENVIRONMENT_PREFIX + self.flag.removeprefix("--").replace("-", "_").upper()

    @property
    def default_text(self) -> str:
        """Its default as help texts name it; "" for a setting without one."""
        is_unset = self.default in (None, "") or self.option.is_switch or isinstance(self.type, inspect.StructType)
        return self.option.default or ("" if is_unset else _text(self.default))

    @property
    def metavar(self) -> str:
        """The placeholder of its value in help texts."""
        if self.option.metavar:
            return self.option.metavar
        if isinstance(self.type, inspect.CustomType):
            return _QUANTITY_METAVARS.get(self.type.cls, "N")
        metavar = _METAVARS.get(type(self.type)) or "|".join(choices(self.type))
        return metavar if self.option.implied_value is None else f"[{metavar}]"

    def parse(self, text: str) -> Any:
        """The value that a plan file would have in place of this text. Raises ValueError, which says what was found and
        what was expected."""
        raw = self.option.parse(text) if self.option.parse else raw_value(text, self.type)
        is_entry = self.option.repeatable and isinstance(self.type, inspect.VarTupleType)
        fault = find_fault(raw, (*self.path, EVERY) if is_entry else self.path)
        if fault is not None:
            raise ValueError(fault.problem)
        return raw


@dataclass(frozen=True, kw_only=True, eq=False)
class PlanField:
    """One key of the plan. path: `*` stands for every position of a list. type: without None. default: the typed value;
    None if there is none. is_required: an entry without the key is refused."""

    path: KeyPath
    help: str
    type: inspect.Type
    default: Any
    is_required: bool
    settings: tuple[Setting, ...]


def plan_fields() -> Iterator[PlanField]:
    """Every key of the plan and of the entries of its lists, in the order of the schema."""
    return _fields(plan_type(), ())


def _fields(struct: inspect.StructType, parent: KeyPath) -> Iterator[PlanField]:
    for each in struct.fields:
        path = (*parent, each.encode_name)
        declaration = declaration_of(each.type)
        if declaration is None:
            raise TypeError(
                f"{render(path)}: expected a field of the schema to be declared, see common.plan.schema.base"
            )
        kind = value_type(each.type)
        default = None if each.default is NODEFAULT else each.default
        own_choices = " or ".join(filter(None, [", ".join(choices(kind)[:-1]), *choices(kind)[-1:]]))
        settings = tuple(
            Setting(
                option=option,
                path=path,
                type=kind,
                default=default,
                heading=option.heading or _heading(struct),
                help=option.help.replace("{choices}", own_choices),
            )
            for option in declaration.options
        )
        yield PlanField(
            path=path,
            help=declaration.help.replace("{choices}", own_choices),
            type=kind,
            default=default,
            is_required=each.required,
            settings=settings,
        )
        if declaration.repeats_top:
            continue
        inner = value_type(kind.item_type) if isinstance(kind, inspect.VarTupleType) else kind
        if isinstance(inner, inspect.StructType):
            yield from _fields(inner, path if inner is kind else (*path, EVERY))


def _heading(struct: inspect.StructType) -> str:
    return struct.cls.heading if issubclass(struct.cls, Section) else ""


SETTINGS: tuple[Setting, ...] = tuple(
    sorted(
        (setting for field in plan_fields() for setting in field.settings),
        key=lambda setting: HEADINGS.index(setting.heading),
    )
)
"""Sorted by heading, then in the order of the schema."""


def _setting_of(*path: str | int) -> Setting:
    return next(setting for setting in SETTINGS if setting.path == path)


URL = _setting_of("target", "url")
PASSWORD = _setting_of("target", "password")
SENTINEL_PASSWORD = _setting_of("target", "sentinel", "password")
_COMMAND = _setting_of(*COMMANDS, EVERY, "command")
_OF_COMMANDS = tuple(_setting_of(*COMMANDS, EVERY, key) for key in ("weight", "name"))
"""Settings whose values belong to the --command at the same position."""


def values_by_path(
    given: Mapping[Setting, Any], name: Callable[[Setting], str]
) -> tuple[dict[KeyPath, Any], dict[KeyPath, str]]:
    """(the value of each path, the name of the setting that sets it).

    given: parsed values, a sequence of them for a repeatable setting. Raises PlanError for a contradiction.
    """
    values: dict[KeyPath, Any] = {}
    names: dict[KeyPath, str] = {}
    for setting, given_value in given.items():
        for path, value in _values_of(setting, given_value).items():
            if path in values:
                raise PlanError(f"{name(setting)}: expected one of {names[path]} and {name(setting)}, got both")
            values[path] = value
            names[path] = name(setting)
    for setting in _OF_COMMANDS:
        if setting in given:
            commands = values[COMMANDS] if _COMMAND in given else []
            values[COMMANDS] = _with_each(commands, setting, given[setting], name)
    return values, names


def _values_of(setting: Setting, value: Any) -> dict[KeyPath, Any]:
    """The value of each path that a setting sets; none for `_OF_COMMANDS`, which `_with_each` adds to the commands."""
    if setting in _OF_COMMANDS:
        return {}
    if setting is _COMMAND:
        return {COMMANDS: [{"command": template} for template in value]}
    if setting.option.repeatable and isinstance(setting.type, inspect.DictType):
        value = {key: item for entry in value for key, item in entry.items()}
    elif setting.option.repeatable:
        value = list(value)
    return (
        {(*setting.path, key): item for key, item in value.items()}
        if isinstance(value, dict)
        else {setting.path: value}
    )


def _with_each(
    commands: Sequence[dict[str, Any]], setting: Setting, values: Sequence[Any], name: Callable[[Setting], str]
) -> list[dict[str, Any]]:
    if len(values) != len(commands):
        raise PlanError(
            f"{name(setting)}: expected one for each {name(_COMMAND)} or none, got {len(values)} for {len(commands)}"
        )
    key = str(setting.path[-1])
    return [{**command, key: value} for command, value in zip(commands, values, strict=True)]


def _text(default: Any) -> str:
    """A default as the command line accepts it."""
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        return ",".join(map(_text, default))
    return f"{default:g}" if type(default) is float else str(getattr(default, "value", default))
