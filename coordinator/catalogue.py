"""The built-in workloads, the command table and the placeholders, for people: as text, and as WORKLOADS.md. Pure but
for the profiles, which are files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from common.commands import (
    COMMANDS,
    PLACEHOLDERS,
    CommandSpec,
    Mixed,
    Part,
    Piece,
    Placeholder,
    Rand,
    SameAs,
    Sha,
    Template,
    origin,
)
from common.commands.splitting import bytes_word, quote_word
from common.plan import profiles

_FEWEST = 3
"""So many keys, or pairs of key and value, in a row are written as one."""
_WIDEST = 60


def template_text(template: Template) -> str:
    """A template as people write it: what `parse_template` reads back as the same."""
    repeated = sorted({piece.place for piece in template.pieces() if isinstance(piece, SameAs)})
    if repeated:
        return _named_text(template, {place: f"n{number}" for number, place in enumerate(repeated, 1)})
    words, parts = [template.name], template.parts[1:]
    while parts:
        keys = _repeats(parts, (Placeholder.KEY,))
        pairs = _repeats(parts, (Placeholder.KEY, Placeholder.DATA))
        if keys >= _FEWEST:
            words.append(f"__keys({keys})__")
            parts = parts[keys:]
        elif pairs >= _FEWEST:
            words.append(f"__pairs({pairs})__")
            parts = parts[2 * pairs :]
        else:
            words.append(quote_word("".join(map(_piece, _pieces(parts[0])))))
            parts = parts[1:]
    return " ".join(words)


def _named_text(template: Template, names: Mapping[int, str]) -> str:
    """The text of a template with named placeholders. names: by the place of a placeholder's first occurrence."""
    words, place = [template.name], 0
    for part in template.parts[1:]:
        word = ""
        for piece in _pieces(part):
            place += 1
            name = names.get(piece.place if isinstance(piece, SameAs) else place)
            text = _piece(piece)
            word += text if name is None else f"{text.removesuffix('__')}:{name}__"
        words.append(quote_word(word))
    return " ".join(words)


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
                row.holds.value,
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


def _repeats(parts: tuple[Part, ...], unit: tuple[Part, ...]) -> int:
    """How often the parts begin with this unit."""
    count = 0
    while parts[count * len(unit) : (count + 1) * len(unit)] == unit:
        count += 1
    return count


def _pieces(part: Part) -> tuple[Piece, ...]:
    return part.pieces if isinstance(part, Mixed) else (part,)


def _piece(piece: Piece) -> str:
    match origin(piece):
        case bytes() as literal:
            return bytes_word(literal)
        case Placeholder() as placeholder:
            return placeholder.value
        case Rand(low, high):
            return f"__rand({low},{high})__"
        case Sha(script):
            return f"__sha({script})__"


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
