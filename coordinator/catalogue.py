"""The built-in workloads, the command table and the placeholders, for people: as text, and as WORKLOADS.md. Pure but
for the profiles, which are files."""

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
    """WORKLOADS.md, whole."""
    return "\n".join(
        [
            "# Workloads",
            "",
            "Made by `coordinator profiles --markdown`; [README.md](README.md) says how a plan uses what stands here.",
            "",
            "## Profiles",
            "",
            "`--profile NAME` runs one, `coordinator profiles NAME` prints it; a copy of what that prints is a profile",
            "of one's own: `--profile mine.yaml`.",
            "",
            *_table(("profile", "what it does"), ((f"`{n}`", profiles.load(n).description) for n in profiles.names())),
            "",
            "## Placeholders",
            "",
            "They stand for a whole argument, or for a part of one: `field:__rand(1,100)__`. Templates are split into",
            "arguments as redis-cli splits a line: see *Quotes and bytes* in README.md.",
            "",
            *_table(
                ("placeholder", "what it stands for"), ((f"`{mark}`", text) for mark, text in PLACEHOLDERS.items())
            ),
            "",
            "## Commands",
            "",
            "A mix may name these by their first word, which means the template shown; or have templates of their own,",
            "of these or any other command. A command meets what others left at its keys: give those of other types a",
            "key prefix of their own.",
            "",
            *(line for group, rows in _by_group() for line in _group_lines(group, rows)),
        ]
    )


def _group_lines(group: str, rows: Sequence[CommandSpec]) -> Iterator[str]:
    yield f"### {group}"
    yield ""
    head = ("template", "", "what it does", "keys hold", "needs")
    yield from _table(
        head,
        (
            (
                f"`{template_text(row.template)}`",
                "writes" if row.writes else "",
                row.summary,
                row.key_type.value,
                row.needs,
            )
            for row in rows
        ),
    )
    yield ""


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


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
