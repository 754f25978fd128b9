"""Watch one server, on one connection: describe it before the load, take samples of its INFO, describe it again.

Everything becomes a record. A server that does not answer is asked again at the next sample; one that refuses INFO is
not asked any more.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from common.cancellation import Cancellation, CutShort
from common.clock import monotonic_ns
from common.plan.schema import Target
from common.redis_client import TARGET_ERRORS, Node, open_node_client, translate
from common.units import NS_PER_S, clipped
from coordinator.journal.records import NodeDescribed, NodeSampled, NodeSilent, Reading
from coordinator.servers.descriptions import Description
from coordinator.servers.node_queries import NodeQueries, RefusedError
from coordinator.servers.samples import Fields, fields_of, is_replica, sample_of

TOPOLOGY_EVERY = 5
"""Samples between two looks at what a node knows of its cluster."""
LOOK_AGAIN_NS = 5 * NS_PER_S
"""While a server does not answer, its successor is looked for this often."""
_LONGEST_REASON = 300
_NO_REPLY: tuple[type[Exception], ...] = (*TARGET_ERRORS, CutShort)

_RESUMED = "was watched by a coordinator that was killed"
_MAYBE_CALLED = dict.fromkeys(
    ("cluster|info", "config|get", "latency|histogram", "latency|latest", "hotkeys|get", "cluster|slot-stats"), 1
) | {"info": 4, "slowlog|get": 3, "commandlog|get": 3}
"""Calls that a killed coordinator may have made after its last record: a sample and a description."""

ServerRecord = NodeDescribed | NodeSampled | NodeSilent
Explain = Callable[[Exception], tuple[int, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the watches of one target share. target: its waits are short. name: of the target in the plan. longest_s:
    how long the load may last. record: takes a record, from any thread. look: says that the topology may have changed.
    explain: returns the exit code and the message for an unexpected error."""

    target: Target
    name: str
    interval_ns: int
    longest_s: int
    record: Callable[[ServerRecord], None]
    look: Callable[[], None]
    explain: Explain


class NodeWatch:
    """Watches one server; see the module. Its methods do not raise, and one thread at a time calls them."""

    def __init__(self, node: Node, around: Surroundings) -> None:
        self._node, self._around = node, around
        self._description = Description(node, around.name)
        self._is_described = False
        self._is_silent = False
        self._looked_ns = 0
        self._replica = node.role != "primary"
        self._cluster: tuple[str | None, ...] = ()

    def describe(self, cancellation: Cancellation) -> None:
        """Describe the server before the load."""
        with self._connected(cancellation) as queries, self._asking(queries, cancellation):
            self._describe(queries)

    def run(self, cancellation: Cancellation, stopping: threading.Event, t0_ns: int, is_described: bool) -> None:
        """Take samples until `stopping`, then describe the server after the load. t0_ns: when the first sample is due.
        is_described: a journal describes the server before the load."""
        with self._connected(cancellation) as queries:
            if not is_described and not self._is_described:
                with self._asking(queries, cancellation):
                    self._describe(queries)
            if self._around.target.track_hot_keys and not is_described:
                with self._asking(queries, cancellation):
                    self._description.track_hot_keys(queries, self._around.longest_s)
            if is_described:
                self._silent(monotonic_ns(), _RESUMED, for_good=False, own=_MAYBE_CALLED)
            number, goes_on = 0, True
            while goes_on and not stopping.wait(self._until_next_s(t0_ns)):
                with self._asking(queries, cancellation):
                    goes_on = self._sample(queries, number)
                number += 1
            stopping.wait()
            with self._asking(queries, cancellation):
                self._around.record(self._description.read(queries, Reading.AFTER))

    def _describe(self, queries: NodeQueries) -> None:
        self._around.record(self._description.read(queries, Reading.BEFORE))
        self._is_described = True

    def _until_next_s(self, t0_ns: int) -> float:
        now_ns, interval_ns = monotonic_ns(), self._around.interval_ns
        past = max(0, now_ns - t0_ns) // interval_ns + 1 if now_ns >= t0_ns else 0
        return (t0_ns + past * interval_ns - now_ns) / NS_PER_S

    def _sample(self, queries: NodeQueries, number: int) -> bool:
        """Take a sample. Returns whether there may be another one. Raises TARGET_ERRORS."""
        queries.connect()
        at_ns = monotonic_ns()
        try:
            reply, took_us = queries.timed("INFO")
        except RefusedError as error:
            self._silent(at_ns, f"answered INFO with {error}", for_good=not error.is_transient, own=queries.take_lost())
            return error.is_transient
        info = fields_of(reply)
        self._watch_topology(queries, info, number)
        own = queries.take_own()
        own["info"] -= 1
        self._around.record(
            NodeSampled(
                target=self._around.name,
                node=self._node.name,
                at_ns=at_ns,
                sample=sample_of(info, took_us),
                own={row: calls for row, calls in own.items() if calls},
            )
        )
        self._is_silent = False
        return True

    def _watch_topology(self, queries: NodeQueries, info: Fields, number: int) -> None:
        replica = bool(is_replica(info))
        has_changed = replica != self._replica
        self._replica = replica
        if info.get("cluster_enabled") == "1" and number % TOPOLOGY_EVERY == 0:
            with suppress(RefusedError):
                known = fields_of(queries.ask("CLUSTER INFO"))
                cluster = tuple(map(known.get, ("cluster_known_nodes", "cluster_size", "cluster_current_epoch")))
                has_changed = has_changed or self._cluster not in ((), cluster)
                self._cluster = cluster
        if has_changed:
            self._around.look()

    @contextmanager
    def _connected(self, cancellation: Cancellation) -> Iterator[NodeQueries]:
        """Open a client. An unexpected error in the block ends the watch, and nothing else."""
        began_ns = monotonic_ns()
        try:
            with open_node_client(self._around.target, self._node, cancellation) as client:
                yield NodeQueries(client)
        except Exception as error:  # noqa: BLE001 - the report names it
            self._silent(began_ns, self._around.explain(error)[1], for_good=True, own={})

    @contextmanager
    def _asking(self, queries: NodeQueries, cancellation: Cancellation) -> Iterator[None]:
        """Turn a missing reply in the block into a record."""
        began_ns = monotonic_ns()
        try:
            yield
        except _NO_REPLY as error:
            reason = str(translate(error, self._around.target, self._node.name))
            if cancellation.is_cancelled:
                reason = "gave no answer in time"
            self._silent(began_ns, reason, for_good=False, own=queries.take_lost())

    def _silent(self, since_ns: int, reason: str, *, for_good: bool, own: dict[str, int]) -> None:
        now_ns = monotonic_ns()
        is_first, self._is_silent = not self._is_silent, True
        if is_first or own or for_good:
            self._around.record(
                NodeSilent(
                    target=self._around.name,
                    node=self._node.name,
                    at_ns=since_ns,
                    reason=clipped(reason, _LONGEST_REASON),
                    for_good=for_good,
                    own=own,
                )
            )
        if is_first or now_ns - self._looked_ns >= LOOK_AGAIN_NS:
            self._looked_ns = now_ns
            self._around.look()
