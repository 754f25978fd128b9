"""The generated tables, by name: each is a function that returns lines of Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import click
import msgspec
from msgspec import inspect

from agent.cli import cli as agent_cli
from common import errors
from common.commands import COMMANDS, PLACEHOLDERS, template_text
from common.plan.loading import profiles
from common.plan.schema import Plan
from common.plan.settings import SETTINGS, PlanField, plan_fields
from common.plan.validation import value_type
from common.units import Bytes, Count, PerSecond, Seconds
from coordinator.cli import PlanOption
from coordinator.cli import cli as coordinator_cli
from coordinator.report.summary_types import Summary
from scripts.reference.meanings import EXIT_CODES, SUMMARY, VARIABLES

_QUANTITIES = {Seconds: "time", Bytes: "size", Count: "count", PerSecond: "rate"}
_DEFAULT = re.compile(r"\s*\[default: (.*)\]$")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines]


# Flags


def _options(command: click.Command) -> Iterator[tuple[str, click.Option]]:
    """(heading, option) of each flag; no heading for the command's own."""
    for parameter in command.get_params(click.Context(command)):
        if isinstance(parameter, click.Option) and "--help" not in parameter.opts:
            yield parameter.setting.heading if isinstance(parameter, PlanOption) else "", parameter


def _option_row(option: click.Option, command: click.Command) -> tuple[str, str, str]:
    record = option.get_help_record(click.Context(command))
    assert record is not None
    names, text = record
    default = _DEFAULT.search(text)
    aliases = ", ".join(f"`{flag}`" for flag in option.opts[1:])
    shown = f"`{f'{option.opts[0]} {_metavar(names)}'.rstrip()}`" + (f" ({aliases})" if aliases else "")
    return shown, _sentence(_DEFAULT.sub("", text)), default[1] if default else ""


def _metavar(names: str) -> str:
    """`"-u, --url URL"` -> `"URL"`; "" for a switch."""
    return names.rpartition("--")[2].partition(" ")[2]


def _sentence(text: str) -> str:
    """A help text as a cell of a table: no full stop, and no capital that only begins a sentence."""
    text = text.removesuffix(".")
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _flags(command: click.Command, wanted: Callable[[str], bool]) -> list[str]:
    rows = [_option_row(option, command) for group, option in _options(command) if wanted(group)]
    return _table(("flag", "meaning", "default"), rows)


def plan_flags() -> list[str]:
    """Every flag of the plan, by what it concerns."""
    command = coordinator_cli.commands["start"]
    groups = list(dict.fromkeys(group for group, _ in _options(command) if group))
    lines: list[str] = []
    for group in groups:
        lines += [f"### {group}", "", *_flags(command, lambda found, wanted=group: found == wanted), ""]  # type: ignore[misc]
    return lines[:-1]


def own_flags(group: click.Group, name: str) -> list[str]:
    """The flags of a command that are not the plan's."""
    return _flags(group.commands[name], lambda found: not found)


# Environment


def variables() -> list[str]:
    """Every variable of the environment that either program reads."""
    rows = [(f"`{name}`", text) for name, text in VARIABLES.items()]
    for setting in SETTINGS:
        if setting.flag:
            rows.append((f"`{setting.variable}`", f"`{setting.flag}`"))
    return _table(("variable", "stands for"), rows)


# Plan


def _kind(node: inspect.Type) -> str:
    """What a plan file may say at a place, for people."""
    match value_type(node):
        case inspect.EnumType(cls):
            return ", ".join(f"`{member.value}`" for member in cls)
        case inspect.StructType(cls):
            return f"[{cls.__name__}](#{cls.__name__.lower()})"
        case inspect.VarTupleType(item_type):
            return f"list of {_kind(item_type)}"
        case inspect.DictType():
            return "mapping of text to text"
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType(ge=low, le=high):
            return "whole number" + _bounds(low, high)
        case inspect.FloatType(ge=low, le=high):
            return "number" + _bounds(low, high)
        case inspect.CustomType(cls):
            return _QUANTITIES[cls]
        case _:
            return "text"


def _bounds(low: float | None, high: float | None) -> str:
    if high is not None:
        return f", {low:g} to {high:g}"
    return "" if low is None else f" >= {low:g}"


def _structs(node: inspect.Type, seen: dict[type, inspect.StructType]) -> dict[type, inspect.StructType]:
    """The sections below a place, in the order in which they are first named."""
    match value_type(node):
        case inspect.StructType(cls, fields) as struct if cls not in seen:
            seen[cls] = struct
            for field in fields:
                _structs(field.type, seen)
        case inspect.VarTupleType(item_type):
            _structs(item_type, seen)
        case inspect.DictType(value_type=values):
            _structs(values, seen)
    return seen


def _paths(node: inspect.Type, path: str, found: dict[type, str]) -> dict[type, str]:
    """The key under which each section first stands, such as `pools[]`."""
    match value_type(node):
        case inspect.StructType(cls, fields) if cls not in found:
            found[cls] = path
            for field in fields:
                _paths(field.type, f"{path}.{field.encode_name}".lstrip("."), found)
        case inspect.VarTupleType(item_type):
            _paths(item_type, f"{path}[]", found)
    return found


def _default(field: PlanField) -> str:
    if field.is_required:
        return "required"
    if isinstance(field.default, tuple):
        return ", ".join(f"`{_value(item)}`" for item in field.default if not isinstance(item, msgspec.Struct))
    if field.default is None:
        return "".join(setting.option.default for setting in field.settings)
    return f"`{_value(field.default)}`" if field.default != "" and not isinstance(field.default, msgspec.Struct) else ""


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if type(value) is float else str(getattr(value, "value", value))


def plan_keys() -> list[str]:
    """Every section of a plan file with its keys."""
    root = inspect.type_info(Plan)
    paths = _paths(root, "", {})
    fields = {".".join(map(str, field.path)).replace(".*", "[]"): field for field in plan_fields()}
    lines: list[str] = []
    for kind, node in _structs(root, {}).items():
        path = paths[kind]
        rows = []
        for key in (each.encode_name for each in node.fields):
            field = fields[f"{path}.{key}".lstrip(".")]
            flags = ", ".join(f"`{setting.flag}`" for setting in field.settings if setting.flag)
            rows.append((f"`{key}`", _kind(field.type), _default(field), flags, field.help))
        lines += [f"### {kind.__name__}", ""]
        lines += [f"At `{path}`." if path else "The whole file.", ""]
        lines += [*_prose(kind), "", *_table(("key", "value", "default", "flag", "meaning"), rows), ""]
    return lines[:-1]


def _prose(kind: type) -> list[str]:
    """A docstring as paragraphs of Markdown."""
    paragraphs = re.split(r"\n\s*\n", (kind.__doc__ or "").strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs).split("\n")


# Profiles and commands


def profile_list() -> list[str]:
    """The built-in workloads, each with its file."""
    names = profiles.names()
    lines = _table(("profile", "what it does"), ((f"[`{n}`](#{n})", profiles.load(n).description) for n in names))
    for name in names:
        lines += ["", f"### {name}", "", "```yaml", *profiles.load(name).text.rstrip().split("\n"), "```"]
    return lines


def placeholders() -> list[str]:
    """The placeholders of templates."""
    return _table(("placeholder", "what it stands for"), ((f"`{mark}`", text) for mark, text in PLACEHOLDERS.items()))


def commands() -> list[str]:
    """The command table, group by group."""
    lines: list[str] = []
    for group in dict.fromkeys(row.group for row in COMMANDS.values()):
        rows = [
            (
                f"`{template_text(row.template)}`",
                "yes" if row.writes else "",
                row.summary,
                row.key_type.value,
                row.needs,
            )
            for row in COMMANDS.values()
            if row.group == group
        ]
        lines += [f"### {group}", "", *_table(("template", "writes", "what it does", "keys hold", "needs"), rows), ""]
    return lines[:-1]


# Results


def exit_codes() -> list[str]:
    """The exit codes of both programs."""
    codes = {errors.EXIT_OK, errors.EXIT_INTERRUPTED}
    kinds: list[type[errors.StampedeError]] = [errors.StampedeError]
    while kinds:
        kind = kinds.pop()
        codes.add(kind.exit_code)
        kinds += kind.__subclasses__()
    return _table(("code", "meaning"), ((str(code), EXIT_CODES[code]) for code in sorted(codes)))


def summary_keys() -> list[str]:
    """Every part of summary.json with its keys."""
    lines: list[str] = []
    for kind, node in _structs(inspect.type_info(Summary), {}).items():
        meanings = SUMMARY[kind.__name__]
        rows = [(f"`{f.encode_name}`", _json_kind(f.type), meanings[f.encode_name]) for f in node.fields]
        lines += [f"### {kind.__name__}", "", *_table(("key", "value", "meaning"), rows), ""]
    return lines[:-1]


def _json_kind(node: inspect.Type) -> str:
    match node:
        case inspect.UnionType(types):
            return " or ".join(_json_kind(part) for part in types)
        case inspect.NoneType():
            return "null"
        case inspect.IntType():
            return "integer"
        case inspect.DictType(value_type=inspect.StructType() as value_type):
            return f"mapping to {_json_kind(value_type)}"
        case inspect.DictType(value_type=inspect.IntType()):
            return "mapping to integers"
        case inspect.DictType():
            return "mapping"
        case inspect.VarTupleType(item_type):
            return f"list of {_json_kind(item_type)}"
        case _:
            return _kind(node)


TABLES: dict[str, Callable[[], list[str]]] = {
    "plan-flags": plan_flags,
    "start-flags": lambda: own_flags(coordinator_cli, "start"),
    "report-flags": lambda: own_flags(coordinator_cli, "report"),
    "join-flags": lambda: own_flags(agent_cli, "join"),
    "variables": variables,
    "plan-keys": plan_keys,
    "profiles": profile_list,
    "placeholders": placeholders,
    "commands": commands,
    "exit-codes": exit_codes,
    "summary-keys": summary_keys,
}
"""Every table by the name that pages use."""
