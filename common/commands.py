"""The command table: which commands the drivers know by name, and how their arguments are built.

One table of data serves the drivers, the profiles, the check of permissions and the documentation. A command of the
plan is either a name of this table ("SET") or a template of its own ("SET __key__ __data__"), so the table holds
nothing that a user could not write in a plan.

Placeholders stand for a whole argument: `__key__` is a key drawn from the plan's key range, `__data__` a value of the
plan's size. Everything else is literal.
"""

from __future__ import annotations

import enum
import shlex

import msgspec

from common.plan.schema import Workload
from common.units import show


class Placeholder(enum.Enum):
    """An argument that is drawn anew for every operation."""

    KEY = "__key__"
    DATA = "__data__"
    MESSAGE = "__message__"


Part = bytes | Placeholder
_PLACEHOLDERS = {placeholder.value: placeholder for placeholder in Placeholder}


class Template(msgspec.Struct, frozen=True):
    """One command's arguments in order, its own name first. `name` is its row in reports and in commandstats."""

    name: str
    parts: tuple[Part, ...]


class CommandSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the table. group is that of Redis' own documentation; writes: it may change the data."""

    template: Template
    group: str
    writes: bool
    summary: str


def parse_template(text: str) -> Template:
    """A template from text, split as a shell splits words.

    Raises ValueError when it is empty, a quote is not closed, the first word is a placeholder, or a word contains a
    placeholder that is not known.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f'expected a command such as "SET __key__ __data__", got {show(text)}: {error}') from error
    if not words or words[0] in _PLACEHOLDERS:
        raise ValueError(f'expected a command such as "SET __key__ __data__", got {show(text)}')
    for word in words:
        if "__" in word and word not in _PLACEHOLDERS:
            known = " or ".join(_PLACEHOLDERS)
            raise ValueError(f"expected {known} as a whole argument, got {show(word)} in {show(text)}")
    name = words[0].upper()
    arguments = tuple(_PLACEHOLDERS.get(word) or word.encode() for word in words[1:])
    return Template(name, (name.encode(), *arguments))


def _row(template: str, group: str, summary: str, *, writes: bool = False) -> CommandSpec:
    return CommandSpec(template=parse_template(template), group=group, writes=writes, summary=summary)


COMMANDS: dict[str, CommandSpec] = {
    row.template.name: row
    for row in (
        _row("SET __key__ __data__", "string", "set a key to a value", writes=True),
        _row("GET __key__", "string", "read a key"),
        _row("INCR __key__", "string", "add one to a counter", writes=True),
        _row("DEL __key__", "generic", "delete a key", writes=True),
        _row("LPUSH __key__ __data__", "list", "push a value to the head of a list", writes=True),
        _row("LPOP __key__", "list", "pop the head of a list", writes=True),
        _row("LRANGE __key__ 0 9", "list", "read the first ten values of a list"),
        _row("PING", "connection", "ask for a sign of life"),
    )
}


def find_command(text: str) -> Template:
    """The template that a plan's `command` means: a name of the table, or a template of its own.

    Raises ValueError for a single word that is not in the table, and whatever `parse_template` raises.
    """
    template = parse_template(text)
    if len(template.parts) > 1:
        return template
    row = COMMANDS.get(template.name)
    if row is None:
        raise ValueError(
            f'expected one of {", ".join(COMMANDS)}, or a template such as "SET __key__ __data__", got {show(text)}'
        )
    return row.template


SUBSCRIBING = frozenset({"SUBSCRIBE", "SSUBSCRIBE"})
"""Commands that a worker issues on connections of its own, on which messages come."""

PUBLISHING = frozenset({"PUBLISH", "SPUBLISH"})
"""Commands that answer to how many subscribers their message went."""


def subscribes(workload: Workload) -> bool:
    """Whether its mix has subscribers. Raises what `find_command` does."""
    return any(entry.weight > 0 and find_command(entry.command).name in SUBSCRIBING for entry in workload.commands)
