"""The plan's keys, deleted after the run: found by SCAN on every primary, a batch at a time, and nothing beside them.

It goes on in a thread of its own: the coordinator's loop must hear its agents and a Ctrl-C meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

from common.clock import monotonic_ns
from common.errors import TargetError
from common.plan.schema import Plan
from common.program import explained
from common.redis_client import error_reply, failure_of
from common.units import NS_PER_S, show
from coordinator.core.records import CleanedUp
from coordinator.servers.facts import ask, keys_in, write_commands
from coordinator.servers.primaries import Server, open_primaries
from coordinator.servers.written_keys import Family, Writes, written

Explain = Callable[[Exception], tuple[int, str]]

BATCH = 1_000
STOP_NS = NS_PER_S
"""A deletion that is stopped comes to an end after its batch; one whose target hangs is not waited for any longer."""
HANG_NS = 60 * NS_PER_S
"""The deletion is given up after this long without a reply, because the plan's own timeouts may be unlimited."""


@dataclass(slots=True)
class Tally:
    """How far it has come; read by another thread. earlier: keys that a coordinator before us deleted. refused: keys
    that are still there, and why the first of them is. replied_ns: when the target last answered."""

    deleted: int = 0
    earlier: int = 0
    replied_ns: int = field(default_factory=monotonic_ns)
    refused: int = 0
    refusal: str = ""
    stopped: threading.Event = field(default_factory=threading.Event)


class Cleaning:
    """A deletion under way, in a thread that ends with the process, if it must."""

    def __init__(self, delete: Callable[[Tally], None], explain: Explain = explained) -> None:
        """explain: the exit code and the message of an unexpected error."""
        self._delete, self._explain = delete, explain
        self._tally = Tally()
        self._error = ""
        self._began_ns = monotonic_ns()
        self._stopped_ns: int | None = None
        self._thread = threading.Thread(target=self._work, name="clean-up", daemon=True)
        self._thread.start()

    @property
    def deleted(self) -> int:
        """Keys so far, also by a coordinator before us."""
        return self._tally.deleted + self._tally.earlier

    def stop(self) -> None:
        """Leave the rest. Idempotent."""
        self._stopped_ns = self._stopped_ns or monotonic_ns()
        self._tally.stopped.set()

    def result(self) -> CleanedUp | None:
        """How it went; None as long as it goes on."""
        now_ns, tally = monotonic_ns(), self._tally
        hangs = self._thread.is_alive() and now_ns > tally.replied_ns + HANG_NS
        if hangs:
            self.stop()
        elif self._thread.is_alive() and (self._stopped_ns is None or now_ns < self._stopped_ns + STOP_NS):
            return None
        error = f"the target did not answer for {HANG_NS // NS_PER_S} s" if hangs else self._error
        if not error and self._stopped_ns is not None:
            error = "interrupted"
        return CleanedUp(
            deleted=self.deleted,
            earlier=tally.earlier,
            left=None if error else tally.refused,
            took_ns=now_ns - self._began_ns,
            error=error or tally.refusal,
        )

    def _work(self) -> None:
        try:
            self._delete(self._tally)
        except Exception as error:  # noqa: BLE001 - the report names it, and must not be lost
            _, self._error = self._explain(error)


def delete_written(plan: Plan, tally: Tally, keys_before: int | None = None) -> None:
    """Delete every key that the plan may have written. keys_before: how many keys the database had when a coordinator
    before us began to delete them; what is missing now has been deleted already (or has expired). Raises TargetError.
    """
    with open_primaries(plan.target) as primaries:
        if keys_before is not None:
            held = [keys_in(server) for server in primaries.each]
            tally.earlier = 0 if None in held else max(0, keys_before - sum(filter(None, held)))
        first = primaries.each[0]
        found = written(plan, partial(_key_places, first, _tells_keys(first)), _writes(first))
        delete_families(primaries.each, found.families, tally, alone=len(primaries.each) > 1)
    if found.untold and not tally.stopped.is_set():
        raise TargetError(
            f"keys that {', '.join(found.untold)} wrote hold a value, so nobody can tell them from others'"
        )


def _tells_keys(server: Server) -> bool:
    return ask(server, "COMMAND GETKEYS", "SET", "key", "value") is not None


def _key_places(server: Server, tells_keys: bool, arguments: tuple[bytes, ...]) -> frozenset[bytes] | None:
    """Those of the arguments that are keys, as the server sees it; None where it does not tell."""
    if not tells_keys:
        return None
    # A command without keys is an error to it, and so is one that it does not know, which cannot have written anything.
    return frozenset(ask(server, "COMMAND GETKEYS", *arguments) or ())


def _writes(server: Server) -> Writes:
    """Tells whether a command may change data; True for every command if the server does not say."""
    listed = write_commands(server)
    return lambda name: listed is None or name.lower() in listed


def delete_families(servers: Iterable[Server], families: Sequence[Family], tally: Tally, *, alone: bool) -> None:
    """Delete every key of these families on every server. alone: each key in a command of its own, as a cluster wants
    it. Returns early once the tally says so; raises what the clients do."""
    for server in servers:
        for match in dict.fromkeys(family.glob for family in families):
            ours = [family for family in families if family.glob == match]
            _delete_matching(server, match, ours, tally, alone=alone)


def _delete_matching(server: Server, match: bytes, families: Sequence[Family], tally: Tally, *, alone: bool) -> None:
    cursor = 0
    while not tally.stopped.is_set():
        cursor, found = server.execute_command("SCAN", cursor, "MATCH", match, "COUNT", BATCH)
        tally.replied_ns = monotonic_ns()
        keys = [key for key in found if any(family.holds(key) for family in families)]
        if keys:
            _unlink(server, keys, tally, alone=alone)
        if int(cursor) == 0:
            return


def _unlink(server: Server, keys: Sequence[bytes], tally: Tally, *, alone: bool) -> None:
    pipeline = server.pipeline(transaction=False)
    for one in [[key] for key in keys] if alone else [keys]:
        pipeline.execute_command("UNLINK", *one)
    for reply in pipeline.execute(raise_on_error=False):
        if isinstance(reply, int):
            tally.deleted += reply
        elif not isinstance(reply, Exception):
            raise TargetError(f"UNLINK was answered with {show(reply)}, expected a number of keys")
        elif failure_of(reply).replied:
            tally.refused += 1 if alone else len(keys)
            tally.refusal = tally.refusal or f"UNLINK was answered with {error_reply(reply)}"
        else:
            raise reply
