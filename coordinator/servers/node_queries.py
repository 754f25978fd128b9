"""Queries to one server that count themselves, and remember what the server did not answer.

The ledger compares the server's counts of calls with the plan's operations. A plan may issue INFO or CONFIG GET too, so
every call of ours counts, by the name of its row in commandstats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from common.clock import monotonic_ns
from common.redis_client import BAD_REPLY_ERRORS, TARGET_ERRORS, error_reply, failure_of
from common.units import clipped
from coordinator.journal.records import Unread

T = TypeVar("T")

LONGEST_TEXT = 200

_TRANSIENT = frozenset({"BUSY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN"})
"""Error replies that a server gives for a while: during a long script, or while it loads its data."""


class RefusedError(Exception):
    """The server answered with an error. code: the first word of the error, "" for an answer without sense."""

    def __init__(self, reason: str, code: str = "") -> None:
        super().__init__(reason)
        self.code = code

    @property
    def is_transient(self) -> bool:
        """Whether the next call may be answered."""
        return self.code in _TRANSIENT


class NodeQueries:
    """Asks one server. own: calls that it answered; lost: calls without an answer, which it may have executed all the
    same. Both by the name of the row in commandstats, and emptied by `take_own` and `take_lost`."""

    def __init__(self, client: Any) -> None:
        """client: a `redis.Redis`; its replies are not converted, because that depends on the version of redis-py."""
        client.response_callbacks.clear()
        self._client = client
        self._own: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._unread: dict[str, str] = {}

    @property
    def unread(self) -> tuple[Unread, ...]:
        """What the server did not report so far."""
        return tuple(Unread(what=what, reason=reason) for what, reason in self._unread.items())

    def connect(self) -> None:
        """Open the connection if it is not open. Raises TARGET_ERRORS."""
        pool = self._client.connection_pool
        pool.release(pool.get_connection())

    def ask(self, *command: str) -> object:
        """Return the reply. Raises RefusedError for an error reply, TARGET_ERRORS if there is no reply."""
        row = command[0].lower().replace(" ", "|")
        self._lost[row] += 1
        try:
            reply: object = self._client.execute_command(*command)
        except TARGET_ERRORS as error:
            failure = failure_of(error)
            if not failure.replied:
                raise
            self._answered(row)
            raise RefusedError(error_reply(error), failure.name) from error
        except BAD_REPLY_ERRORS as error:
            self._answered(row)
            raise RefusedError("gave an answer that makes no sense") from error
        self._answered(row)
        return reply

    def timed(self, *command: str) -> tuple[object, int]:
        """Return (reply, microseconds until it came); see `ask`."""
        sent_ns = monotonic_ns()
        reply = self.ask(*command)
        return reply, (monotonic_ns() - sent_ns) // 1000

    def read(self, what: str, read: Callable[[], T], otherwise: T) -> T:
        """Return what `read` returns; `otherwise` if the server refuses its queries or gives answers without sense,
        which `unread` then names. Raises TARGET_ERRORS if there is no reply."""
        try:
            return read()
        except RefusedError as error:
            self.note(what, str(error))
        except BAD_REPLY_ERRORS:
            self.note(what, "gave an answer that makes no sense")
        return otherwise

    def note(self, what: str, reason: str) -> None:
        """Note something as unread; the first reason counts."""
        self._unread.setdefault(what, clipped(reason, LONGEST_TEXT))

    def take_own(self) -> dict[str, int]:
        """Return the answered calls since the last time."""
        own, self._own = self._own, Counter()
        return dict(own)

    def take_lost(self) -> dict[str, int]:
        """Return the calls without an answer since the last time."""
        lost, self._lost = self._lost, Counter()
        return dict(lost)

    def _answered(self, row: str) -> None:
        self._own[row] += 1
        self._lost[row] -= 1
        if not self._lost[row]:
            del self._lost[row]
