"""State machines as tables: transitions, expected repeats that change nothing, and an error for all other triggers."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Collection, Mapping
from typing import Generic, TypeVar

S = TypeVar("S", bound=enum.Enum)
T = TypeVar("T", bound=enum.Enum)

_REMEMBERED = 8
"""Number of past transitions that an error lists."""


class InvalidTransitionError(Exception):
    """The table of a state machine has no transition for a trigger. This is a bug of ours."""


class Lifecycle(Generic[S, T]):
    """The state of one thing. `move` is the only way to change it."""

    __slots__ = ("_history", "_name", "_repeats", "_table", "state")

    def __init__(
        self, name: str, state: S, table: Mapping[tuple[S, T], S], repeats: Collection[tuple[S, T]] = ()
    ) -> None:
        """name: for errors. table: the next state for each pair of state and trigger. repeats: pairs that change
        nothing."""
        self.state = state
        self._name, self._table, self._repeats = name, table, repeats
        self._history: deque[tuple[S, T]] = deque(maxlen=_REMEMBERED)

    def move(self, trigger: T) -> bool:
        """Change to the next state by the table. Returns False for an expected repeat, which changes nothing.

        Raises InvalidTransitionError for any other trigger.
        """
        here = (self.state, trigger)
        if (following := self._table.get(here)) is not None:
            self._history.append(here)
            self.state = following
            return True
        if here in self._repeats:
            return False
        raise InvalidTransitionError(f"{self._name}: {self.story} has no transition for {trigger.name}")

    @property
    def story(self) -> str:
        """The last transitions, and the current state."""
        moves = "".join(f"{state.name} -{trigger.name}-> " for state, trigger in self._history)
        return moves + self.state.name
