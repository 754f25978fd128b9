"""How long a blocking command waits: where each says so."""

from __future__ import annotations

import msgspec

from common.commands.template import Template


class Timeout(msgspec.Struct, frozen=True):
    """Where a command's timeout stands: at an index of its arguments, its name at 0, or after a word; and its unit."""

    place: int | str
    in_ms: bool = False

    def of(self, template: Template) -> float | None:
        """Seconds that a call waits at most, 0 for ever; None when it does not wait, or the template draws it."""
        parts = template.parts
        index = self.place if isinstance(self.place, int) else _after(self.place, template)
        if index is None or not -len(parts) <= index < len(parts):
            return None
        part = parts[index]
        try:
            number = float(part) if isinstance(part, bytes) else None
        except ValueError:
            return None  # the server will say so
        return number / 1000 if number is not None and self.in_ms else number


def _after(word: str, template: Template) -> int | None:
    """The index behind the first argument that is this word, in any case."""
    for index, part in enumerate(template.parts):
        if isinstance(part, bytes) and part.upper() == word.encode():
            return index + 1
    return None


_WAITS = {"WAIT": Timeout(-1, in_ms=True), "WAITAOF": Timeout(-1, in_ms=True)}
"""Those that wait and are no row of the table."""


def blocking_timeout_s(template: Template, timeout: Timeout | None) -> float | None:
    """Seconds that a call of this template waits at most. timeout: that of its command's row, if it has one."""
    found = timeout or _WAITS.get(template.name)
    return found.of(template) if found else None
