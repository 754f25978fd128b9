"""The built-in workloads, the command table and the placeholders, as text for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from common.commands import COMMANDS, PLACEHOLDERS, CommandSpec, template_text
from common.plan.loading import profiles

_WIDEST = 60


def profiles_text() -> str:
    """A line for each built-in profile."""
    return _aligned((name, profiles.load(name).description) for name in profiles.names())


def commands_text() -> str:
    """A line for each command of the table, group by group, and below them the placeholders."""
    lines: list[str] = []
    for group, rows in _by_group():
        lines += [f"{group}:", _indented(_aligned((template_text(row.template), row.summary) for row in rows)), ""]
    return "\n".join([*lines, "placeholders:", _indented(_aligned(PLACEHOLDERS.items()))])


def page() -> str:
    """Profiles, placeholders and commands as one page of Markdown."""
    rows = ((f"`{name}`", profiles.load(name).description) for name in profiles.names())
    lines = ["# Workloads", "", "## Profiles", "", *markdown_table(("profile", "what it does"), rows), ""]
    lines += ["## Placeholders", "", *placeholder_table(), "", "## Commands", "", *command_tables(), ""]
    return "\n".join(lines)


def placeholder_table() -> list[str]:
    """The placeholders of templates, as lines of Markdown."""
    rows = ((f"`{placeholder}`", text) for placeholder, text in PLACEHOLDERS.items())
    return markdown_table(("placeholder", "what it stands for"), rows)


def command_tables() -> list[str]:
    """The command table, group by group, as lines of Markdown."""
    lines: list[str] = []
    for group, rows in _by_group():
        cells = (
            (f"`{template_text(row.template)}`", "yes" * row.writes, row.summary, row.key_type.value, row.needs)
            for row in rows
        )
        head = ("template", "writes", "what it does", "key type", "needs")
        lines += [f"### {group}", "", *markdown_table(head, cells), ""]
    return lines[:-1]


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table as lines of Markdown; a `|` in a cell is escaped."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *lines]


def _by_group() -> Iterator[tuple[str, list[CommandSpec]]]:
    groups: dict[str, list[CommandSpec]] = {}
    for row in COMMANDS.values():
        groups.setdefault(row.group, []).append(row)
    yield from groups.items()


def _aligned(rows: Iterable[tuple[str, str]]) -> str:
    pairs = list(rows)
    width = max(len(left) for left, _ in pairs if len(left) <= _WIDEST)
    return "\n".join(f"{left:{width}}  {right}" for left, right in pairs)


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
