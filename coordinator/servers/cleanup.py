"""Delete the keys that the plan may have written, after the run: SCAN each primary, and UNLINK in batches.

The deletion runs in its own thread, so that the coordinator's loop can serve its agents and a Ctrl-C meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from common.clock import monotonic_ns
from common.errors import TargetError
from common.plan.schema import Plan
from common.program.standard_streams import explained
from common.redis_client import error_reply, failure_of
from common.units import NS_PER_S, show
from coordinator.journal.records import CleanedUp
from coordinator.servers.key_patterns import IsWrite, KeyPattern, key_patterns
from coordinator.servers.queries import CommandClient, PipelineClient, key_count, open_primaries, query, write_commands

Explain = Callable[[Exception], tuple[int, str]]

BATCH = 1_000
STOP_NS = NS_PER_S
"""A stopped deletion ends after its batch. If the target hangs, we wait no longer than this."""
HANG_NS = 60 * NS_PER_S
"""Give up after this long without a reply, because the plan's own timeouts may be unlimited."""


@dataclass(slots=True)
class DeletionProgress:
    """Progress of a deletion; another thread reads it. earlier: keys that an earlier coordinator of the same run
    deleted. refused: keys that the target refused to delete; refusal: its reason for the first one. replied_ns: when
    the target last replied. stopped: set to end the deletion."""

    deleted: int = 0
    earlier: int = 0
    replied_ns: int = field(default_factory=monotonic_ns)
    refused: int = 0
    refusal: str = ""
    stopped: threading.Event = field(default_factory=threading.Event)


class CleanUpThread:
    """A running deletion. Its thread is a daemon: it does not keep the process alive."""

    def __init__(self, delete: Callable[[DeletionProgress], None], explain: Explain = explained) -> None:
        """explain: returns the exit code and the message for an unexpected error."""
        self._delete, self._explain = delete, explain
        self._progress = DeletionProgress()
        self._error = ""
        self._began_ns = monotonic_ns()
        self._stopped_ns: int | None = None
        self._thread = threading.Thread(target=self._work, name="clean-up", daemon=True)
        self._thread.start()

    @property
    def deleted(self) -> int:
        """Keys deleted so far, including those that an earlier coordinator deleted."""
        return self._progress.deleted + self._progress.earlier

    def stop(self) -> None:
        """Stop after the current batch. Idempotent."""
        self._stopped_ns = self._stopped_ns or monotonic_ns()
        self._progress.stopped.set()

    def result(self) -> CleanedUp | None:
        """Return the result; None while the deletion runs."""
        now_ns, progress = monotonic_ns(), self._progress
        hangs = self._thread.is_alive() and now_ns > progress.replied_ns + HANG_NS
        if hangs:
            self.stop()
        elif self._thread.is_alive() and (self._stopped_ns is None or now_ns < self._stopped_ns + STOP_NS):
            return None
        error = f"the target did not answer for {HANG_NS // NS_PER_S} s" if hangs else self._error
        if not error and self._stopped_ns is not None:
            error = "interrupted"
        return CleanedUp(
            deleted=self.deleted,
            earlier=progress.earlier,
            left=None if error else progress.refused,
            took_ns=now_ns - self._began_ns,
            error=error or progress.refusal,
        )

    def _work(self) -> None:
        try:
            self._delete(self._progress)
        except Exception as error:  # noqa: BLE001 - the report names the error
            _, self._error = self._explain(error)


def delete_plan_keys(plan: Plan, progress: DeletionProgress, keys_before: int | None = None) -> None:
    """Delete every key that the plan may have written. Raises TargetError.

    keys_before: how many keys the database had when an earlier coordinator of this run began to delete. Keys that are
    gone since then count as deleted earlier, even if they expired.
    """
    with open_primaries(plan.target) as primaries:
        if keys_before is not None:
            counts = [key_count(server) for server in primaries.each]
            progress.earlier += 0 if None in counts else max(0, keys_before - sum(filter(None, counts)))
        first = primaries.each[0]
        found = key_patterns(plan, partial(_find_keys, first, _has_getkeys(first)), _is_write(first))
        delete_matching(primaries.each, found.patterns, progress, one_by_one=len(primaries.each) > 1)
    if found.unrecognizable and not progress.stopped.is_set():
        raise TargetError(
            f"keys that {', '.join(found.unrecognizable)} wrote contain a value, so they cannot be distinguished from "
            "other keys"
        )


def _has_getkeys(server: CommandClient) -> bool:
    return query(server, "COMMAND GETKEYS", "SET", "key", "value") is not None


def _find_keys(server: CommandClient, has_getkeys: bool, arguments: tuple[bytes, ...]) -> frozenset[bytes] | None:
    """Return which arguments are keys, according to the server; None if it has no COMMAND GETKEYS."""
    if not has_getkeys:
        return None
    # An error reply means a command without keys, or an unknown command, which cannot have written anything.
    return frozenset(query(server, "COMMAND GETKEYS", *arguments) or ())


def _is_write(server: CommandClient) -> IsWrite:
    """Return a function that returns whether a command may change data; always True if the server lists no commands."""
    listed = write_commands(server)
    return lambda name: listed is None or name.lower() in listed


def delete_matching(
    servers: Iterable[PipelineClient], patterns: Sequence[KeyPattern], progress: DeletionProgress, *, one_by_one: bool
) -> None:
    """Delete every key that matches a pattern on every server. Returns early when `progress.stopped` is set; raises the
    errors of the clients. one_by_one: send a command for each key, because a cluster refuses keys of several slots."""
    for server in servers:
        for glob in dict.fromkeys(pattern.glob for pattern in patterns):
            same_glob = [pattern for pattern in patterns if pattern.glob == glob]
            _delete_on(server, glob, same_glob, progress, one_by_one=one_by_one)


def _delete_on(
    server: PipelineClient,
    glob: bytes,
    patterns: Sequence[KeyPattern],
    progress: DeletionProgress,
    *,
    one_by_one: bool,
) -> None:
    cursor = 0
    while not progress.stopped.is_set():
        cursor, found = server.execute_command("SCAN", cursor, "MATCH", glob, "COUNT", BATCH)
        progress.replied_ns = monotonic_ns()
        keys = [key for key in found if any(pattern.matches(key) for pattern in patterns)]
        if keys:
            _unlink(server, keys, progress, one_by_one=one_by_one)
        if int(cursor) == 0:
            return


def _unlink(server: PipelineClient, keys: Sequence[bytes], progress: DeletionProgress, *, one_by_one: bool) -> None:
    pipeline = server.pipeline(transaction=False)
    for batch in [[key] for key in keys] if one_by_one else [keys]:
        pipeline.execute_command("UNLINK", *batch)
    for reply in pipeline.execute(raise_on_error=False):
        if isinstance(reply, int):
            progress.deleted += reply
        elif not isinstance(reply, Exception):
            raise TargetError(f"UNLINK was answered with {show(reply)}, expected a number of keys")
        elif failure_of(reply).replied:
            progress.refused += 1 if one_by_one else len(keys)
            progress.refusal = progress.refusal or f"UNLINK was answered with {error_reply(reply)}"
        else:
            raise reply
