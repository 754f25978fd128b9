"""Watch the servers of one target during a run: what they are before and after the load, and how they do meanwhile.

Each server has a thread and a connection of its own, so a server that hangs delays neither the coordinator's loop nor
the samples of other servers. Every wait has a bound, and `close` ends all of them at once.

    describe   before the load: every server is described; then the connections close
    start      with the load: a thread for each server takes a sample at T0, T0 + interval, ...
    finish     after the load: each thread describes its server once more, and ends

`describe` and `finish` take `DESCRIBE_S` and a moment at most. One more thread follows the topology: it looks for
servers again when one does not answer, changes its role, or knows another cluster than before. A server that joins is
described and sampled from then on; a server that left is still asked, because it may come back.

All that is found out becomes records, which the coordinator's loop takes and writes to the journal. What cannot be
found out is a record too (`NodeSilent`, `NodeDescribed.unread`), never an error.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Self

import msgspec

from common.cancellation import Cancellation, CutShort
from common.clock import monotonic_ns
from common.errors import StampedeError
from common.plan.schema import Maintenance, Target
from common.program.standard_streams import explained
from common.redis_client import BAD_REPLY_ERRORS, TARGET_ERRORS, Node, nodes_of
from common.units import NS_PER_S, Seconds
from coordinator.journal.records import NodeSilent
from coordinator.servers.node_watch import Explain, NodeWatch, ServerRecord, Surroundings

DESCRIBE_S = 5.0
"""Longest that the descriptions before the load, or those after it, delay a run."""
GRACE_S = 1.0
"""Cancelled threads end within this time."""
CONNECT_S, REPLY_S = 2.0, 5.0
"""Longest waits for one server; shorter if the plan's own limits are."""
LOOK_PAUSE_S = 1.0
"""Shortest time between two looks at the topology."""
MOST_NODES = 200
LONGEST_S = 86_400
"""How long a load may last that has no planned end."""


class ServerSampler:
    """Watches one target; see the module. `describe`, `start` and `finish` are called once each, in this order; a
    resumed run leaves out the first. A target without `server_stats` is not watched at all."""

    def __init__(
        self, target: Target, *, name: str = "", longest_s: int = LONGEST_S, explain: Explain = explained
    ) -> None:
        """name: of the target in the plan. longest_s: how long the load may last. explain: returns the exit code and
        the message for an unexpected error."""
        self.name = name
        self._records: deque[ServerRecord] = deque()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._cancellation = Cancellation()
        self._stopping, self._look = threading.Event(), threading.Event()
        self._watches: dict[str, NodeWatch] = {}
        self._running: set[str] = set()
        self._described: frozenset[str] = frozenset()
        self._has_most = False
        self._t0_ns = 0
        self._around = Surroundings(
            target=_impatient(target),
            name=name,
            interval_ns=target.server_stats_s.ns,
            longest_s=longest_s,
            record=self._records.append,
            look=self._look.set,
            explain=explain,
        )

    def take(self) -> list[ServerRecord]:
        """Return the records since the last time, oldest first."""
        return [self._records.popleft() for _ in range(len(self._records))]

    def describe(self) -> None:
        """Describe all servers before the load."""
        if self._is_wanted:
            self._spawn("server descriptions", self._describe_all)
            self._join(DESCRIBE_S)
            if self._cancellation.is_cancelled:  # for good
                self._cancellation = Cancellation()

    def start(self, t0_ns: int, described: Iterable[str] = ()) -> None:
        """Begin to take samples. t0_ns: the start instant. described: servers that a journal describes."""
        if self._is_wanted:
            self._t0_ns = t0_ns
            # Those of this sampler know it themselves.
            self._described = frozenset(described) - self._watches.keys()
            self._spawn("server topology", self._follow)

    def finish(self) -> None:
        """Describe all servers after the load, and end all threads."""
        self._stop()
        self._join(DESCRIBE_S)

    def close(self) -> None:
        """End all threads at once. Idempotent."""
        self._stop()
        self._join(0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _is_wanted(self) -> bool:
        return self._around.interval_ns > 0 and not self._stopping.is_set()

    def _describe_all(self) -> None:
        self._discover()
        for name, watch in self._watches.items():
            self._spawn(f"server {name}", watch.describe, self._cancellation)

    def _follow(self) -> None:
        """Watch the servers that are known, and look for others when there is a reason: always, if none is known."""
        if not self._watches:
            self._discover()
        while not self._stopping.is_set():
            for name in self._watches.keys() - self._running:
                self._running.add(name)
                watch, is_described = self._watches[name], name in self._described
                self._spawn(f"server {name}", watch.run, self._cancellation, self._stopping, self._t0_ns, is_described)
            if self._watches:
                self._look.wait()
            self._look.clear()
            if not self._stopping.wait(LOOK_PAUSE_S):
                self._discover()

    def _discover(self) -> None:
        """Add the servers of the target that are not known yet; none if the target cannot be asked."""
        nodes: tuple[Node, ...] = ()
        with suppress(*TARGET_ERRORS, *BAD_REPLY_ERRORS, CutShort, StampedeError):
            nodes = nodes_of(self._around.target, self._cancellation)
        for node in nodes:
            if node.name in self._watches:
                continue
            if len(self._watches) == MOST_NODES:
                self._note_most()
                return
            self._watches[node.name] = NodeWatch(node, self._around)

    def _note_most(self) -> None:
        reason = f"the target has more than {MOST_NODES} servers: the others are not watched"
        record = NodeSilent(target=self._around.name, node="", at_ns=monotonic_ns(), reason=reason, for_good=True)
        if not self._has_most:
            self._has_most = True
            self._records.append(record)

    def _spawn(self, name: str, work: Callable[..., None], *arguments: object) -> None:
        """Start a thread that does not keep the process alive."""
        thread = threading.Thread(target=work, args=arguments, name=name, daemon=True)
        with self._lock:
            self._threads.append(thread)
            thread.start()

    def _stop(self) -> None:
        self._stopping.set()
        self._look.set()

    def _join(self, within_s: float) -> None:
        """Wait for all threads; those that are not done in time are cancelled, which ends their waits."""
        for wait_s in (within_s, GRACE_S):
            deadline_ns = monotonic_ns() + round(wait_s * NS_PER_S)
            while alive := self._alive():
                left_s = (deadline_ns - monotonic_ns()) / NS_PER_S
                if left_s <= 0:
                    self._cancellation.cancel()
                    break
                alive[0].join(left_s)

    def _alive(self) -> list[threading.Thread]:
        with self._lock:
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            return list(self._threads)


def _impatient(target: Target) -> Target:
    """Return the target with short waits, and without calls that its connections would make by themselves."""
    return msgspec.structs.replace(
        target,
        connect_timeout_s=Seconds(min(target.connect_timeout_s or CONNECT_S, CONNECT_S)),
        socket_timeout_s=Seconds(min(target.socket_timeout_s or REPLY_S, REPLY_S)),
        health_check_interval_s=Seconds(0.0),
        maintenance=Maintenance.OFF,
    )
