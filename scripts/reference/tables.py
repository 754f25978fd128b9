"""The generated tables of the documentation, as lines of Markdown.

A page of docs/ has a table between `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
from msgspec import inspect

from agent.cli import cli as agent_cli
from common import errors
from common.plan.key_path import EVERY
from common.plan.loading import profiles
from common.plan.settings import SETTINGS, PlanField, plan_fields
from common.plan.validation import expected
from coordinator.catalogue import command_tables, markdown_table, placeholder_table
from coordinator.cli import PlanOption
from coordinator.cli import cli as coordinator_cli
from coordinator.foreign_options import MEMTIER, OTHER_OPTIONS, REDIS, SAME_NAMES, VALKEY
from coordinator.report.summary_types import Summary
from scripts.reference.meanings import SUMMARY, VARIABLES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_TABLE = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_DEFAULT = re.compile(r"\s*\[(?:env var: [^;\]]*; )?default: (.*)\]$")


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _phrase(help: str) -> str:
    """A help text as a table cell: no full stop, no capital of a sentence, placeholders as code."""
    text = re.sub(r"(?<!`)(__\w+?__)(?!`)", r"`\1`", help.removesuffix("."))
    is_sentence = text[1:2].islower() and not text.startswith(("Lua ", "Redis ", "Valkey "))
    return text[:1].lower() + text[1:] if is_sentence else text


# Flags, environment, plan


def _options(command: click.Command) -> Iterator[tuple[str, click.Option]]:
    """(heading, option) of each flag. The heading is empty for flags that are not part of the plan."""
    for option in command.get_params(click.Context(command)):
        if isinstance(option, click.Option) and "--help" not in option.opts:
            yield option.setting.heading if isinstance(option, PlanOption) else "", option


def _flag_rows(options: Iterable[click.Option]) -> list[str]:
    rows = []
    for option in options:
        flag, *aliases = sorted(option.opts, key=lambda name: not name.startswith("--"))
        metavar = "" if option.is_flag else option.make_metavar(click.Context(click.Command("")))
        name = _code(f"{flag} {metavar}".strip()) + (f" ({', '.join(map(_code, aliases))})" if aliases else "")
        default = _DEFAULT.search(_help(option))
        rows.append((name, _phrase(_DEFAULT.sub("", _help(option))), default[1] if default else ""))
    return markdown_table(("flag", "meaning", "default"), rows)


def _help(option: click.Option) -> str:
    """The help text of an option, with its default at the end."""
    record = option.get_help_record(click.Context(click.Command("")))
    return record[1] if record else ""


def plan_flags() -> list[str]:
    """All flags of the plan, by heading."""
    options = list(_options(coordinator_cli.commands["start"]))
    lines: list[str] = []
    for heading in dict.fromkeys(heading for heading, _ in options if heading):
        title, _, note = heading.partition(" (")
        lines += [f"### {title}", "", *([f"{note[:1].upper()}{note[1:-1]}.", ""] if note else [])]
        lines += [*_flag_rows(option for found, option in options if found == heading), ""]
    return lines[:-1]


def own_flags(group: click.Group, name: str) -> list[str]:
    """The flags of a command that are not part of the plan."""
    return _flag_rows(option for heading, option in _options(group.commands[name]) if not heading)


def variables() -> list[str]:
    """All environment variables that the programs read."""
    rows = [(_code(name), text) for name, text in VARIABLES.items()]
    rows += [(_code(setting.variable), _code(setting.flag)) for setting in SETTINGS if setting.flag]
    return markdown_table(("variable", "stands for"), rows)


def plan_keys() -> list[str]:
    """All keys of a plan file, section by section."""
    sections: dict[str, list[PlanField]] = {}
    for field in plan_fields():
        sections.setdefault(_path(field.path[:-1]), []).append(field)
    lines: list[str] = []
    for section, fields in sections.items():
        rows = []
        for field in fields:
            path = _path(field.path)
            below = next((found for found in (path, f"{path}[]") if found in sections), "")
            value = f"[{'list' if below.endswith('[]') else 'section'}](#{_anchor(below)})" if below else _value(field)
            flags = ", ".join(_code(setting.flag) for setting in field.settings if setting.flag)
            rows.append((_code(str(field.path[-1])), value, _default(field), _phrase(field.help), flags))
        lines += [f"### {section or 'The whole file'}", ""]
        lines += [*markdown_table(("key", "value", "default", "meaning", "flag"), rows), ""]
    return lines[:-1]


def _path(path: Iterable[str | int]) -> str:
    """`("pools", "*", "driver")` -> `pools[].driver`."""
    return ".".join(map(str, path)).replace(f".{EVERY}", "[]")


def _anchor(section: str) -> str:
    return re.sub(r"[^\w-]", "", section).lower()


_QUANTITIES = {"duration ": "time", "rate ": "rate", "size ": "size", "whole number such ": "count", "name ": "name"}


def _value(field: PlanField) -> str:
    """The kind of a key's value; the page explains the names of quantities."""
    text = expected(field.type).removeprefix("one of ").removeprefix("a ").removeprefix("an ")
    return next((short for start, short in _QUANTITIES.items() if text.startswith(start)), text)


def _default(field: PlanField) -> str:
    """A default as in a plan file, or in words if the schema has no default."""
    if field.is_required:
        return "required"
    if field.default in (None, "", ()) or isinstance(field.type, inspect.StructType) or field.path == ("pools",):
        return next((setting.option.default for setting in field.settings if setting.option.default), "")
    return _code(_in_plan(field.default)) if field.default != {} else ""


def _in_plan(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_in_plan, value))}]"
    return f"{value:g}" if type(value) is float else str(getattr(value, "value", value))


# Options of other tools

_VALUE = (
    r""""[^"]*"|[a-z+]+://\S+|[a-z0-9]+(?:\|[a-z0-9]+)+|\d[\w:/]*|[A-Z@:]+\b|"""
    r"(?:wire|prewarm|none|sequential|ycsb_a)\b"
)
_CODE_IN_TEXT = re.compile(
    rf"`[^`]*`|--[a-z][\w-]*(?: (?:{_VALUE}))?|summary\.json|timeseries\.csv|[a-z]+_[a-z]+|STAMPEDE_\w+"
)
"""Flags with their values, files, keys and variables in a row of other tools' options."""


def other_options(*tools: str) -> list[str]:
    """The options of these tools that have another name or meaning here."""
    rows = [
        (
            ", ".join(_code(name) for name in row.names),
            *(_CODE_IN_TEXT.sub(lambda found: _code(found[0].strip("`")), text) for text in (row.here, row.difference)),
        )
        for row in (*OTHER_OPTIONS, *SAME_NAMES)
        if row.tool in tools
    ]
    return markdown_table((" or ".join(tools), "here", "what differs"), rows)


# Profiles


def profile_files() -> list[str]:
    """All built-in profiles, each with its file."""
    pages = [profiles.load(name) for name in profiles.names()]
    lines = markdown_table(
        ("profile", "what it does"), ((f"[`{each.name}`](#{each.name})", each.description) for each in pages)
    )
    for each in pages:
        lines += ["", f"### {each.name}", "", "```yaml", *each.text.rstrip().split("\n"), "```"]
    return lines


# Results


def exit_codes() -> list[str]:
    """The exit codes of both programs."""
    texts = {errors.EXIT_OK: "The run is done.", errors.EXIT_INTERRUPTED: "Interrupted."}
    kinds: list[type[errors.StampedeError]] = [errors.StampedeError]
    for kind in kinds:
        texts.setdefault(kind.exit_code, (kind.__doc__ or "").split("\n\n")[0])
        kinds += kind.__subclasses__()
    return markdown_table(("code", "meaning"), ((str(code), text) for code, text in sorted(texts.items())))


def summary_keys() -> list[str]:
    """All parts of summary.json with their keys."""
    lines: list[str] = []
    for kind, node in _structs(inspect.type_info(Summary), {}).items():
        title = _title(kind)
        meanings = SUMMARY[title]
        rows = [(_code(field.encode_name), _json(field.type), meanings[field.encode_name]) for field in node.fields]
        lines += [f"### {title}", "", *markdown_table(("key", "value", "meaning"), rows), ""]
    return lines[:-1]


def _title(kind: type) -> str:
    """The heading of a part of summary.json: `RunSummary` is "Run", the whole is "Summary"."""
    return kind.__name__.removesuffix("Summary") or "Summary"


def _structs(node: inspect.Type, found: dict[type, inspect.StructType]) -> dict[type, inspect.StructType]:
    """The structs of a type, in order of first use."""
    match node:
        case inspect.StructType(cls, fields) if cls not in found:
            found[cls] = node
            for field in fields:
                _structs(field.type, found)
        case inspect.UnionType(types):
            for part in types:
                _structs(part, found)
        case inspect.VarTupleType(item_type):
            _structs(item_type, found)
        case inspect.DictType(value_type=value_type):
            _structs(value_type, found)
    return found


def _json(node: inspect.Type) -> str:
    """The JSON type of a value, in words."""
    match node:
        case inspect.UnionType(types):
            return " or ".join(map(_json, types))
        case inspect.StructType(cls):
            return f"[{_title(cls)}](#{_title(cls).lower()})"
        case inspect.EnumType(cls):
            return ", ".join(_code(member.value) for member in cls)
        case inspect.VarTupleType(item_type):
            return f"list of {_json(item_type)}"
        case inspect.DictType(value_type=inspect.AnyType()):
            return "mapping"
        case inspect.DictType(value_type=value_type):
            return f"mapping to {_json(value_type)}"
        case _:
            return _JSON[type(node)]


_JSON: dict[type, str] = {
    inspect.NoneType: "null",
    inspect.BoolType: "true or false",
    inspect.IntType: "integer",
    inspect.FloatType: "number",
    inspect.StrType: "text",
    inspect.RawType: "list of lists",
}

TABLES: dict[str, Callable[[], list[str]]] = {
    "plan-flags": plan_flags,
    "start-flags": lambda: own_flags(coordinator_cli, "start"),
    "report-flags": lambda: own_flags(coordinator_cli, "report"),
    "join-flags": lambda: own_flags(agent_cli, "join"),
    "variables": variables,
    "plan-keys": plan_keys,
    "profiles": profile_files,
    "placeholders": placeholder_table,
    "commands": command_tables,
    "exit-codes": exit_codes,
    "memtier-options": lambda: other_options(MEMTIER),
    "redis-options": lambda: other_options(REDIS, VALKEY),
    "summary-keys": summary_keys,
}
"""All tables, by their name in the pages."""


def filled(text: str) -> str:
    """The text of a page with current tables. Raises KeyError for an unknown table name."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{chr(10).join(TABLES[found[2]]())}\n\n{found[3]}", text)


def stale() -> dict[Path, str]:
    """Pages whose tables are outdated, with the text that they should have."""
    texts = {page: page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}
    return {page: filled(text) for page, text in texts.items() if filled(text) != text}


def refresh() -> list[Path]:
    """Write all outdated pages. Returns their paths, relative to the repository."""
    pages = stale()
    for page, text in pages.items():
        page.write_text(text, encoding="utf-8")
    return [page.relative_to(ROOT) for page in pages]
