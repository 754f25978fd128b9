"""Limits how many lines other machines can make this program print. Pure."""

from __future__ import annotations

from common.units import NS_PER_S, counted

LINES_AT_ONCE = 200
"""About as many lines as the agents of a large fleet cause when they all join."""
LINES_PER_S = 5


class LineLimit:
    """Allows `LINES_AT_ONCE` lines, then `LINES_PER_S` lines per second. `missed` counts the lines beyond the limit."""

    def __init__(self, subject: str, now_ns: int) -> None:
        """subject: what the lines are about, for `summary`."""
        self._subject = subject
        self._left_ns = self._most_ns = LINES_AT_ONCE * NS_PER_S // LINES_PER_S
        self._asked_ns = now_ns
        self.missed = 0

    def take(self, now_ns: int) -> bool:
        """Whether one more line may be shown now. If so, it counts as shown."""
        self._left_ns = min(self._most_ns, self._left_ns + max(0, now_ns - self._asked_ns))
        self._asked_ns = now_ns
        cost_ns = NS_PER_S // LINES_PER_S
        if self._left_ns < cost_ns:
            self.missed += 1
            return False
        self._left_ns -= cost_ns
        return True

    def summary(self) -> str:
        """One line that counts the lines missed since the last call; "" if none."""
        missed, self.missed = self.missed, 0
        return f"{counted(missed, 'more line')} about {self._subject} left out" if missed else ""
