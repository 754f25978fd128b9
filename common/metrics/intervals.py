"""The metrics in a frame, and their merging.

All metrics are deltas, except the gauges `open_peak` and `wanted` of `ConnectionMetrics`, and the busiest process and
the delays in `GeneratorMetrics`. Only these exceptions differ between the two merges:

- `PARALLEL` merges the same seconds of different processes or agents: gauges add up, and the busiest process counts.
- `CONSECUTIVE` merges consecutive seconds of the same process: the larger gauge counts, and times add up.

Counts and histograms add up exactly in both.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

import msgspec
from msgspec import Meta

from common.metrics.counts import MAX_NAME_LENGTH as MAX_NAME_LENGTH
from common.metrics.counts import MAX_NAMES as MAX_NAMES
from common.metrics.counts import OTHER as OTHER
from common.metrics.counts import Tally as Tally
from common.metrics.counts import add_named as add_named
from common.metrics.counts import merge_counts as merge_counts
from common.metrics.error_samples import ErrorSample, Samples, merge_samples
from common.metrics.histogram import EMPTY, Histogram

T = TypeVar("T")
M = TypeVar("M", bound="Metrics")

MAX_ENDPOINTS, MAX_ENDPOINT_LENGTH = 256, 262
"""Limits for the names of servers: how many a pool has, and their length. A DNS name has at most 253 characters."""

Share = Annotated[float, Meta(ge=0, le=1e6)]
"""A fraction, which may exceed 1. Infinity and NaN are refused, because a maximum with NaN is wrong."""

LATE_SEND_NS = 1_000_000
"""An operation of an open loop is late if it is sent more than this long after its intended time."""

STALL_NS = 250_000_000
"""A worker process stalled if it had work, but did not run for this long at a stretch."""


class Merge(enum.Enum):
    """How merged metrics relate: the same seconds (PARALLEL), or consecutive seconds (CONSECUTIVE)."""

    PARALLEL = "parallel"
    CONSECUTIVE = "consecutive"


class Metrics(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Base of all metrics in a frame. Fields with their default, usually most of them, are not sent."""


class CommandMetrics(Metrics, frozen=True, kw_only=True):
    """One command of one pool over some interval.

    ok: operations done. errors: error replies by code ("WRONGTYPE", "READONLY", ...). failures: operations that ended
    without a reply, by class ("ConnectionError", "TimeoutError", "CheckoutTimeout", ...). Bytes are RESP bytes of
    requests issued and replies read. hits, misses: keys and items that operations done found and did not find; 0 if
    replies do not show it (see `common.commands.lookups`). One reply may have several. service, response: ns of
    operations done, from actual and from intended send; response is empty in a closed loop. failed: ns of operations
    that ended in an error or a failure.
    """

    ok: Tally = 0
    errors: dict[str, Tally] = {}
    failures: dict[str, Tally] = {}
    bytes_out: Tally = 0
    bytes_in: Tally = 0
    hits: Tally = 0
    misses: Tally = 0
    service: Histogram = EMPTY
    response: Histogram = EMPTY
    failed: Histogram = EMPTY

    @property
    def error_count(self) -> int:
        """Operations that were not done: error replies and failures."""
        if not self.errors and not self.failures:  # nearly always
            return 0
        return sum(self.errors.values()) + sum(self.failures.values())

    @property
    def operations(self) -> int:
        """Operations that ended, done or not."""
        return self.ok + self.error_count


MAXCLIENTS = "maxclients"
OPEN_FILES = "ulimit -n"
SYSTEM_FILES = "fs.file-max"
LOCAL_PORTS = "local ports"
CLOSED_BY_SERVER = "closed by server"
RESET = "reset"
PENDING = "pending"
"""Names of causes in frames and reports for connections that do not open; only the names that code refers to. PENDING:
no attempt had ended when the run was over."""


class ConnectionMetrics(Metrics, frozen=True, kw_only=True):
    """Events of the TCP connections of one pool over some interval.

    opened: connects that succeeded, handshake included. failed_attempts: connects that failed; failed_by_cause: the
    same by cause ("maxclients", "refused", ...), empty if an agent's release does not report it. never_opened: wanted
    connections that were not open at any time, by cause of the last failed attempt; reported once, when the run is
    over. drops: unexpected disconnects, by cause. reconnects: connections opened again after a drop; reconnect: how
    long each took in ns, from the drop to the end of the handshake. retries: commands and connects that the retry
    policy repeated. connect: how long each successful connect took in ns, handshake included; connect_tcp,
    connect_tls, connect_handshake: its parts, as far as redis-py shows them (see `ConnectTimes`). tls_handshakes: TLS
    handshakes that succeeded. maintenance: notifications received, by kind ("MOVING", "SMIGRATED", ...). redirects:
    commands that a cluster node did not execute, by its error reply ("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN").
    topology_refreshes: how often a cluster client changed its slot map. open_peak: most
    connections open at one time during the interval. wanted: connections that were open or being opened at any moment
    of the interval, with the wire driver all its connections; 0 if an agent's release does not report it.
    """

    opened: Tally = 0
    failed_attempts: Tally = 0
    failed_by_cause: dict[str, Tally] = {}
    never_opened: dict[str, Tally] = {}
    drops: dict[str, Tally] = {}
    reconnects: Tally = 0
    reconnect: Histogram = EMPTY
    connect: Histogram = EMPTY
    connect_tcp: Histogram = EMPTY
    connect_tls: Histogram = EMPTY
    connect_handshake: Histogram = EMPTY
    tls_handshakes: Tally = 0
    maintenance: dict[str, Tally] = {}
    retries: Tally = 0
    redirects: dict[str, Tally] = {}
    topology_refreshes: Tally = 0
    open_peak: Tally = 0
    wanted: Tally = 0


class DeliveryMetrics(Metrics, frozen=True, kw_only=True):
    """Deliveries of pub/sub messages over some interval.

    expected: deliveries that the replies to PUBLISH promise, by the time of sending. delivered: messages of this run
    that its subscribers received, by the time of arrival. foreign: messages of other senders. repeated: messages that a
    retry sent twice. resubscribed: SUBSCRIBE calls that reconnects repeated. latency: ns from sending to arrival, of
    delivered messages whose sender has the same clock.
    """

    expected: Tally = 0
    delivered: Tally = 0
    foreign: Tally = 0
    repeated: Tally = 0
    resubscribed: Tally = 0
    latency: Histogram = EMPTY

    @property
    def lost(self) -> int:
        """Expected messages that did not arrive. A PUBLISH without a reply expects nothing, so its deliveries can
        conceal the same number of losses."""
        return max(0, self.expected - self.delivered)


class PoolMetrics(Metrics, frozen=True, kw_only=True):
    """One pool over some interval. checkout_wait: ns that each checkout waited for a client instance (0 when one was
    free at once). send_lag: ns from intended to actual send, open loop only. late_sends: how many of these were more
    than `LATE_SEND_NS`. primaries, replicas: all commands by the server that they were sent to, `host:port`, and by the
    role of the server; empty for a target that is one server. Operations that were sent to no server are not counted
    there. `OTHER` is the sum of servers beyond `MAX_ENDPOINTS`. error_samples: see
    `common.metrics.error_samples`."""

    commands: dict[str, CommandMetrics] = {}
    primaries: dict[str, CommandMetrics] = {}
    replicas: dict[str, CommandMetrics] = {}
    checkout_wait: Histogram = EMPTY
    send_lag: Histogram = EMPTY
    late_sends: Tally = 0
    connections: ConnectionMetrics = ConnectionMetrics()
    deliveries: DeliveryMetrics = DeliveryMetrics()
    error_samples: Samples = ()


class GeneratorDelays(Metrics, frozen=True, kw_only=True):
    """What kept worker processes from running during an interval.

    allowed_ns: CPU time that the CPU quota allowed, 0 without a quota. quota_used_ns: CPU time of all processes under
    the quota, 0 if the system does not report it. quota_periods: periods in which these processes had something to run.
    throttled_periods: periods in which the quota was used up. throttled_ns: how long they were throttled, summed over
    cores. An agent's processes share all of these.
    stalled_ns: time in stalls of `STALL_NS` and more. stall_max_ns: the longest stall that overlaps the interval.
    stall_at_ns: when that stall began, after the start instant. For several processes, these three are of the process
    that stalled most.
    """

    allowed_ns: Tally = 0
    quota_used_ns: Tally = 0
    quota_periods: Tally = 0
    throttled_periods: Tally = 0
    throttled_ns: Tally = 0
    stalled_ns: Tally = 0
    stall_max_ns: Tally = 0
    stall_at_ns: Tally = 0


class GeneratorMetrics(Metrics, frozen=True, kw_only=True):
    """The cost of generating the load over some interval, in worker processes.

    cpu_ns: CPU time of all processes, for the load and for anything else. watched_ns: how long the processes were
    watched while the load was on. busiest_cpu_ns: CPU time in `watched_ns` of the process that used most; divided by
    `watched_ns`, it is a share of one core. busiest_loop_ns: busy time in `watched_ns` of the busiest event loop.
    core_share_max: the largest share of one core that any process used over a whole second. loop_lag: how long event
    loops were busy at a stretch, in ns. delays: "hold_ups" on the wire; None if the agent's release does not report
    them.
    """

    cpu_ns: Tally = 0
    watched_ns: Tally = 0
    busiest_cpu_ns: Tally = 0
    busiest_loop_ns: Tally = 0
    core_share_max: Share = 0.0
    loop_lag: Histogram = EMPTY
    delays: GeneratorDelays | None = msgspec.field(default=None, name="hold_ups")


class SecondMetrics(Metrics, frozen=True, kw_only=True):
    """One second of an interval of several seconds, with all pools and commands added up. The fields are explained at
    `CommandMetrics`, `ConnectionMetrics` (gauges are sums over pools) and `GeneratorMetrics`. hits, misses: by
    command."""

    number: Tally
    issued: Tally = 0
    ok: Tally = 0
    errors: dict[str, Tally] = {}
    failures: dict[str, Tally] = {}
    hits: dict[str, Tally] = {}
    misses: dict[str, Tally] = {}
    service: Histogram = EMPTY
    response: Histogram = EMPTY
    open_peak: Tally = 0
    wanted: Tally = 0
    watched_ns: Tally = 0
    busiest_cpu_ns: Tally = 0
    busiest_loop_ns: Tally = 0
    loop_lag: Histogram = EMPTY

    @property
    def error_count(self) -> int:
        """Operations that were not done."""
        return sum(self.errors.values()) + sum(self.failures.values())

    @classmethod
    def from_interval(cls, interval: IntervalMetrics) -> SecondMetrics:
        """The metrics of an interval of one second, without its commands."""
        pools, generator = interval.pools.values(), interval.generator
        commands = [command for pool in pools for command in pool.commands.values()]
        hits, misses = hits_by_command(interval)
        return cls(
            number=interval.first,
            issued=interval.issued,
            ok=sum(command.ok for command in commands),
            errors=merge_counts(command.errors for command in commands),
            failures=merge_counts(command.failures for command in commands),
            hits=hits,
            misses=misses,
            service=Histogram.merge(command.service for command in commands),
            response=Histogram.merge(command.response for command in commands),
            open_peak=sum(pool.connections.open_peak for pool in pools),
            wanted=sum(pool.connections.wanted for pool in pools),
            watched_ns=generator.watched_ns,
            busiest_cpu_ns=generator.busiest_cpu_ns,
            busiest_loop_ns=generator.busiest_loop_ns,
            loop_lag=generator.loop_lag,
        )


class IntervalMetrics(Metrics, frozen=True, kw_only=True):
    """Metrics of the run's seconds `first`..`last`, both counted from the start instant and both included, for the
    operations of one stage. stage: its number among the legs of the load's timeline.

    An operation counts for the stage in which it was due (in a closed loop: in which it began), and for the second in
    which it ended. `issued` and `transactions` have no times: they are increases of the threads' own counters, in the
    interval in which the counters were read. So only their sums over a whole run are exact. To count the operations
    of a stage, count those that ended.

    issued: operations begun. They are counted separately from ended operations, so that the ledger can compare both.
    transactions: MULTI/EXEC pairs sent. unsent: operations that were due, but never sent. late: operations of an open
    stage that began only after the stage's end. generator: covers the time that the stage has in these seconds; in the
    last interval also the time until its operations ended. seconds: each of several seconds; empty if the agent could
    not send for a long time and kept only the sum.
    """

    first: Tally
    last: Tally
    stage: Tally = 0
    issued: Tally = 0
    transactions: Tally = 0
    unsent: Tally = 0
    late: Tally = 0
    generator: GeneratorMetrics = GeneratorMetrics()
    pools: dict[str, PoolMetrics] = {}
    seconds: tuple[SecondMetrics, ...] = ()

    @property
    def operations(self) -> int:
        """Operations that ended in these seconds."""
        return sum(command.operations for pool in self.pools.values() for command in pool.commands.values())


def histograms_of(interval: IntervalMetrics) -> list[Histogram]:
    """Every histogram of an interval that is not `EMPTY`."""
    found = [interval.generator.loop_lag]
    for pool in interval.pools.values():
        events = pool.connections
        found += (pool.checkout_wait, pool.send_lag, events.reconnect, pool.deliveries.latency)
        found += (events.connect, events.connect_tcp, events.connect_tls, events.connect_handshake)
        for by_name in (pool.commands, pool.primaries, pool.replicas):
            for command in by_name.values():
                found += (command.service, command.response, command.failed)
    for second in interval.seconds:
        found += (second.service, second.response, second.loop_lag)
    return [histogram for histogram in found if histogram is not EMPTY]


def hits_by_command(interval: IntervalMetrics) -> tuple[dict[str, int], dict[str, int]]:
    """(hits, misses) of all pools by command, without zeros."""
    hits: dict[str, int] = {}
    misses: dict[str, int] = {}
    for pool in interval.pools.values():
        for name, command in pool.commands.items():
            if command.hits:
                hits[name] = hits.get(name, 0) + command.hits
            if command.misses:
                misses[name] = misses.get(name, 0) + command.misses
    return hits, misses


def merge_named(parts: Iterable[Mapping[str, T]], merge: Callable[[list[T]], T]) -> dict[str, T]:
    """Merge values with the same name; names in the order in which they first appear."""
    groups: dict[str, list[T]] = {}
    for part in parts:
        for name, value in part.items():
            groups.setdefault(name, []).append(value)
    return {name: group[0] if len(group) == 1 else merge(group) for name, group in groups.items()}


class _FieldMerge(Generic[M]):
    """Merges metrics of one type field by field: numbers add up, counts by name add up name by name, and histograms
    merge. others: fields that the caller merges."""

    def __init__(self, kind: type[M], *others: str) -> None:
        types = get_type_hints(kind)
        self._kind = kind
        self._names = [name for name in kind.__struct_fields__ if name not in others]
        self._merges = [_MERGE_BY_TYPE[types[name]] for name in self._names]
        self._values = attrgetter(*self._names)

    def __call__(self, parts: Iterable[M], **merged: Any) -> M:
        """merged: the other fields."""
        columns = zip(*map(self._values, parts), strict=True)  # none without parts: the fields keep their defaults
        for name, merge, column in zip(self._names, self._merges, columns, strict=False):
            merged[name] = merge(column)
        return self._kind(**merged)


_MERGE_BY_TYPE: dict[object, Callable[[Iterable[Any]], Any]] = {
    int: sum,
    dict[str, int]: merge_counts,
    tuple[ErrorSample, ...]: merge_samples,
    Histogram: Histogram.merge,
}
_merge_command_fields = _FieldMerge(CommandMetrics)
_merge_connection_fields = _FieldMerge(ConnectionMetrics, "open_peak", "wanted")
_merge_delivery_fields = _FieldMerge(DeliveryMetrics)
_merge_pool_fields = _FieldMerge(PoolMetrics, "commands", "primaries", "replicas", "connections", "deliveries")


def merge_commands(parts: Iterable[CommandMetrics]) -> CommandMetrics:
    """All operations of all parts."""
    return _merge_command_fields(list(parts))


def merge_endpoints(parts: Iterable[Mapping[str, CommandMetrics]]) -> dict[str, CommandMetrics]:
    """The sum for each server, in the order in which they first appear; those beyond `MAX_ENDPOINTS` under `OTHER`."""
    merged = merge_named(filter(None, parts), merge_commands)
    if len(merged) <= MAX_ENDPOINTS:
        return merged
    others = [name for name in merged if name != OTHER][MAX_ENDPOINTS - 1 :]
    rest = merge_commands([merged.pop(name) for name in others] + [merged.pop(OTHER, CommandMetrics())])
    return {**merged, OTHER: rest}


def merge_connections(parts: Iterable[ConnectionMetrics], how: Merge) -> ConnectionMetrics:
    """All connection events of all parts; `how` decides how gauges merge."""
    parts = list(parts)
    along: Callable[[list[int]], int] = sum if how is Merge.PARALLEL else max
    return _merge_connection_fields(
        parts,
        open_peak=along([0, *(part.open_peak for part in parts)]),
        wanted=along([0, *(part.wanted for part in parts)]),
    )


def merge_deliveries(parts: Iterable[DeliveryMetrics]) -> DeliveryMetrics:
    """All messages of all parts."""
    return _merge_delivery_fields(list(parts))


def merge_pools(parts: Iterable[PoolMetrics], how: Merge) -> PoolMetrics:
    """All commands, waits and connection events of all parts."""
    parts = list(parts)
    return _merge_pool_fields(
        parts,
        commands=merge_named((part.commands for part in parts), merge_commands),
        primaries=merge_endpoints(part.primaries for part in parts),
        replicas=merge_endpoints(part.replicas for part in parts),
        connections=merge_connections((part.connections for part in parts), how),
        deliveries=merge_deliveries(part.deliveries for part in parts),
    )


def merge_generators(parts: Iterable[GeneratorMetrics], how: Merge) -> GeneratorMetrics:
    """The cost of all parts together. With PARALLEL, the busiest process of each second counts."""
    parts = list(parts)
    along: Callable[[list[int]], int] = max if how is Merge.PARALLEL else sum
    return GeneratorMetrics(
        cpu_ns=sum(part.cpu_ns for part in parts),
        watched_ns=along([0, *(part.watched_ns for part in parts)]),
        busiest_cpu_ns=along([0, *(part.busiest_cpu_ns for part in parts)]),
        busiest_loop_ns=along([0, *(part.busiest_loop_ns for part in parts)]),
        core_share_max=max((part.core_share_max for part in parts), default=0.0),
        loop_lag=Histogram.merge(part.loop_lag for part in parts),
        delays=merge_delays((part.delays for part in parts), how),
    )


def merge_delays(parts: Iterable[GeneratorDelays | None], how: Merge) -> GeneratorDelays | None:
    """The delays of all parts that report them; None if no part does."""
    reported = [part for part in parts if part is not None]
    if not reported:
        return None
    along: Callable[[Iterable[int]], int] = max if how is Merge.PARALLEL else sum
    longest = max(reported, key=lambda part: (part.stall_max_ns, part.stall_at_ns))
    return GeneratorDelays(
        allowed_ns=along(part.allowed_ns for part in reported),
        quota_used_ns=along(part.quota_used_ns for part in reported),
        quota_periods=along(part.quota_periods for part in reported),
        throttled_periods=along(part.throttled_periods for part in reported),
        throttled_ns=along(part.throttled_ns for part in reported),
        stalled_ns=along(part.stalled_ns for part in reported),
        stall_max_ns=longest.stall_max_ns,
        stall_at_ns=longest.stall_at_ns,
    )


def merge_by_stage(parts: Iterable[IntervalMetrics], how: Merge) -> tuple[IntervalMetrics, ...]:
    """One interval for each stage, in order, that spans and sums all parts of the stage."""
    stages: dict[int, list[IntervalMetrics]] = {}
    for part in parts:
        stages.setdefault(part.stage, []).append(part)
    return tuple(merge_intervals(group, how) for _, group in sorted(stages.items()))


def merge_intervals(parts: Iterable[IntervalMetrics], how: Merge) -> IntervalMetrics:
    """One interval that spans and sums all parts, without `seconds`. Raises ValueError without parts, and for parts of
    several stages."""
    parts = list(parts)
    if not parts:
        raise ValueError("merge_intervals: expected at least one interval, got none")
    stages = {part.stage for part in parts}
    if len(stages) > 1:
        raise ValueError(f"merge_intervals: expected intervals of one stage, got stages {sorted(stages)}")
    return IntervalMetrics(
        stage=parts[0].stage,
        first=min(part.first for part in parts),
        last=max(part.last for part in parts),
        issued=sum(part.issued for part in parts),
        transactions=sum(part.transactions for part in parts),
        unsent=sum(part.unsent for part in parts),
        late=sum(part.late for part in parts),
        generator=merge_generators((part.generator for part in parts), how),
        pools=merge_named((part.pools for part in parts), lambda pools: merge_pools(pools, how)),
    )
