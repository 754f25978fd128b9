"""The types of `summary.json`, for other programs. Keys keep their name and meaning; new keys may be added.

Latencies are in microseconds (reconnects in milliseconds), sizes in bytes, rates per second of the measured time.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from common.units import printable_json
from coordinator.analysis.key_space import CleanUpSummary, PreloadSummary
from coordinator.analysis.ledger import Ledger
from coordinator.analysis.server_summary import ServerSummary
from coordinator.analysis.verdict import Verdict
from coordinator.journal.records import AgentOutcome, Outcome

SUMMARY_FORMAT = 1
ASKED = "pN"
"""The key of `Quantiles.asked` before `Summary.to_json` puts its percentiles beside the others."""

_ROWS = msgspec.Raw(b'"rows"')
_SERIES = re.compile(r'("series": )"rows"')
"""No text of a server is at this place: the key is ours."""
_ROW_INDENT = " " * 10


class SummaryPart(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all parts of summary.json and comparison.json."""


class Quantiles(SummaryPart, frozen=True, kw_only=True):
    """Quantiles of a histogram, in the unit that the key names; zeros if count is 0. asked: latencies only: further
    percentiles that the plan asks for, by name; in summary.json, they are keys beside the others."""

    count: int
    min: float
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    p99_9: float = msgspec.field(name="p99.9")
    p99_99: float = msgspec.field(name="p99.99")
    max: float
    asked: dict[str, float] = msgspec.field(default_factory=dict, name=ASKED)


class Latency(SummaryPart, frozen=True, kw_only=True):
    """service: from send to reply, of successful operations. response: from intended send to reply; None in a closed
    loop. failed: duration of failed operations."""

    service: Quantiles
    response: Quantiles | None
    failed: Quantiles


class Stats(SummaryPart, frozen=True, kw_only=True):
    """Operations that ended; ops_per_s counts the successful ones. hits, misses: keys, fields, members and values that
    successful reads and pops found and did not find; MGET looks up several. None without a reply that shows it."""

    operations: int
    ok: int
    errors: int
    ops_per_s: float
    bytes_out: int
    bytes_in: int
    latency_us: Latency
    hits: int | None = None
    misses: int | None = None


class EndpointStats(Stats, frozen=True, kw_only=True):
    """One server of the target. role: "primary", "replica", or "primary and replica" if it was both during the run, as
    the clients knew it."""

    role: str


class RunSummary(SummaryPart, frozen=True, kw_only=True):
    """Which run, and how it ended. started_at: when the coordinator began to wait for agents. load_started_at,
    load_ended_at: of the load, by the coordinator's wall clock at its start; None if the load has not started or ended,
    and for journals of earlier releases. reason: one line for people. stop_reason: why the load was stopped early; ""
    if it was not. stopped_at_s: when, in seconds from the start."""

    id: str
    started_at: str
    duration_s: float
    outcome: Outcome
    reason: str
    plan_hash: str
    stop_reason: str = ""
    stopped_at_s: float | None = None
    load_started_at: str | None = None
    load_ended_at: str | None = None


class TargetSummary(SummaryPart, frozen=True, kw_only=True):
    """The target. url: without password."""

    url: str
    topology: str
    server: str
    max_clients: int | None
    ping_us: float | None


class AgentSummary(SummaryPart, frozen=True, kw_only=True):
    """One agent. None: the agent did not report it.

    cpu_percent_busiest: share of one core that its busiest worker process used. host_cpu_percent_mean: CPU of all
    programs on its machine, as a share of all cores, over the run. quota_cores: cores that the CPU quota of its control
    group allows; None without one. quota_percent_mean: used share of the quota over the run. began_at_s: when it took
    over its share; 0.0 if it had the share from the start. replaced_by, replaced_at_s: which agent took its share over,
    and when; "" and None for no agent.
    """

    id: str
    host: str
    processes: int
    state: AgentOutcome
    reason: str
    operations: int
    clock_offset_us: float | None
    clock_rtt_us: float | None
    start_skew_us: float | None
    cpu_percent_max: float | None
    cpu_percent_busiest: float | None
    host_cpu_percent_mean: float | None
    quota_cores: float | None
    quota_percent_mean: float | None
    began_at_s: float = 0.0
    replaced_by: str = ""
    replaced_at_s: float | None = None


class LoadSummary(SummaryPart, frozen=True, kw_only=True):
    """How operations were timed, over the measured stages.

    model: "closed" (send when the last reply came), "open" (send at a rate), or "mixed" for stages of both.
    target_rate_per_s: for a ramp, the rate at its end; None in a closed loop and with several stages.
    wanted_rate_per_s: mean rate that the plan wants over the measured time, to compare with achieved_rate_per_s; None
    if any stage is a closed loop. achieved_rate_per_s: operations begun per second. unsent: operations that were due,
    but never begun. uncarried: operations due in a share without an agent, and never reported. measured_s: duration
    without the warmup, the divisor of all rates.
    """

    model: str
    arrivals: str | None
    target_rate_per_s: float | None
    wanted_rate_per_s: float | None
    achieved_rate_per_s: float
    unsent: int
    send_lag_us: Quantiles | None
    measured_s: float
    uncarried: int = 0


class GeneratorSummary(SummaryPart, frozen=True, kw_only=True):
    """The cost of generating the load, over the measured stages: was this program, and not the server, the limit?

    cpu_s: CPU time of all worker processes, including drain and binning of rows; cpu_us_per_operation: the same per
    ended operation. core_share_max, core_share_mean: share of ONE core that the busiest worker process of any agent
    used, in its busiest second and on average. loop_share_mean: share of the time that the busiest event loop was busy;
    loop_lag_us: how long event loops were busy without a pause; both None without event loops. late_sends: operations
    of an open loop that were sent more than 1 ms late. quota_periods, throttled_periods, throttled_s: of the agent that
    its CPU quota throttled most; throttled_s sums all cores. stall_max_s, stall_at_s: length and begin of the longest
    stall of any worker process, of 0.25 s or more; stall_at_s is None without a stall. limit: the verdict says that the
    generator was the limit, or was delayed. cpu_..., core_..., quota_..., throttled_... and stall_... are None if no
    agent's release reports them.
    """

    cpu_s: float | None
    cpu_us_per_operation: float | None
    core_share_max: float | None
    core_share_mean: float | None
    loop_share_mean: float | None
    loop_lag_us: Quantiles | None
    late_sends: int
    quota_periods: int | None
    throttled_periods: int | None
    throttled_s: float | None
    stall_max_s: float | None
    stall_at_s: float | None
    limit: bool


class StageSummary(SummaryPart, frozen=True, kw_only=True):
    """One leg of the load: the warmup, the whole load, or a stage.

    duration_s: how long it lasted. ramp, arrivals and rates: None in a closed loop. from_rate_per_s, target_rate_per_s:
    wanted at its begin and at its end; wanted_rate_per_s: mean of the wanted rate while the leg lasted. late:
    operations sent after its end. achieved_rate_per_s: operations begun within the leg, including one batch of each
    thread. measured: the totals include this leg. Its operations are those that were due or begun in the leg, even if
    they were sent or ended after its end.
    """

    name: str
    begin_s: float
    duration_s: float
    model: str
    arrivals: str | None
    ramp: str | None
    target_rate_per_s: float | None
    from_rate_per_s: float | None
    wanted_rate_per_s: float | None
    achieved_rate_per_s: float
    unsent: int
    late: int
    measured: bool
    stats: Stats
    errors: dict[str, int]


class ConnectTimesSummary(SummaryPart, frozen=True, kw_only=True):
    """How long successful connects took, and their parts; a part that was never seen has no values. tcp: with the
    lookup of the name. tls: with the reading of certificates. handshake: the commands that prepare a connection.
    redis.asyncio opens TCP and TLS in one call, so its TLS connections have neither part."""

    total: Quantiles
    tcp: Quantiles
    tls: Quantiles
    handshake: Quantiles


class ConnectionsSummary(SummaryPart, frozen=True, kw_only=True):
    """TCP connections of the whole fleet, over the whole run.

    wanted: most connections that were open or being opened in any second, with the wire driver all its connections;
    None if an agent's release does not report it. failed_by_cause: failed attempts by cause. never_opened: wanted
    connections that were not open at any time, by cause of the last failed attempt.
    tls_handshakes: succeeded. maintenance: notifications received, by kind.
    redirects, topology_refreshes: of a cluster, by kind of redirection. server_clients_...: the server's own count,
    None where it was not read.
    """

    ceiling: int
    peak_open: int
    opened: int
    failed_attempts: int
    drops: dict[str, int]
    reconnects: int
    reconnect_ms: Quantiles
    retries: int
    redirects: dict[str, int]
    topology_refreshes: int
    server_clients_before: int | None
    server_clients_after: int | None
    wanted: int | None
    failed_by_cause: dict[str, int]
    never_opened: dict[str, int]
    connect_ms: ConnectTimesSummary
    tls_handshakes: int
    maintenance: dict[str, int]


class PubSubSummary(SummaryPart, frozen=True, kw_only=True):
    """Pub/sub messages of the run. expected: deliveries that the server announced in its replies to PUBLISH. delivered:
    deliveries until `grace` after the load. lost: the difference, at least 0. repeated: copies from a retry. foreign:
    messages from other publishers on our channels. latency_us: from before PUBLISH to the arrival, only for senders on
    the same host and without the warmup; all counts include the warmup."""

    expected: int
    delivered: int
    lost: int
    repeated: int
    foreign: int
    latency_us: Quantiles


class VisibilitySummary(SummaryPart, frozen=True, kw_only=True):
    """How long writes took until another target showed them. write, read: names of the targets; empty for the plan's
    own. written: confirmed writes. seen: writes that a read showed within the timeout. unseen: the difference, at least
    0. lag_us: from before the SET to the reply of the first GET with its value. lag_bins: the histogram of the lag.
    Counts include the warmup, the lag does not."""

    write: str
    read: str
    written: int
    seen: int
    unseen: int
    lag_us: Quantiles
    lag_bins: tuple[Bin, ...]


class Bin(SummaryPart, frozen=True, kw_only=True):
    """Operations that took longer than the previous bin's limit, up to `up_to_us`."""

    up_to_us: float
    count: int


class ErrorSampleSummary(SummaryPart, frozen=True, kw_only=True):
    """The errors of one class with the same command, endpoint and message.

    class_: as in `errors`. key, exception, cause: of the first of these errors: its key, the class of redis-py's
    exception, and the error of the socket or system behind it. endpoint: the server; "" if it is not known. count: how
    many. A class has at most twenty samples; further errors are counted in one without command and message. first_at,
    last_at: when the first and the last one ended, UTC; None without `load_started_at`. first_s, last_s: the same in
    seconds from the start.
    """

    class_: str = msgspec.field(name="class")
    message: str
    command: str
    key: str
    endpoint: str
    first_at: str | None
    last_at: str | None
    count: int
    first_s: float
    last_s: float
    exception: str
    cause: str


class ScenarioSummary(SummaryPart, frozen=True, kw_only=True):
    """One scenario; the fields are those of `Summary`. target: its name in the plan, or the URL of the plan's own
    target. begin_s: when it started, in seconds from the start of the run. ledger: server_calls is None for a scenario
    that shares its target with others, because a server does not distinguish them."""

    name: str
    target: str
    begin_s: float
    load: LoadSummary
    totals: Stats
    commands: dict[str, Stats]
    stages: tuple[StageSummary, ...]
    pools: dict[str, Stats]
    checkout_wait_us: Quantiles
    connections: ConnectionsSummary
    pubsub: PubSubSummary | None
    errors: dict[str, int]
    error_samples: tuple[ErrorSampleSummary, ...]
    ledger: Ledger
    latency_bins: tuple[Bin, ...]
    endpoints: dict[str, EndpointStats]


class Summary(SummaryPart, frozen=True, kw_only=True):
    """The whole of summary.json. Generator, totals, commands, pools, endpoints, checkout waits, errors and bins are
    those of the measured stages, without the warmup. pubsub: None without subscribers. preload, clean_up: None if the
    plan has none. latency_bins: of successful operations; response time if all stages are an open loop, else service
    time. endpoints: all commands by the server that they were sent to, `host:port`; "other" is the sum of servers
    beyond the first 255. Operations that were sent to no server are not counted there.

    With several scenarios, everything but `scenarios` is the sum over them: rates are per second of the time in which
    any scenario was measured; the names of stages and pools begin with that of their scenario. target: the first one of
    `targets`, which has all by name; "" is the name of the plan's own.
    """

    format: int
    run: RunSummary
    target: TargetSummary
    plan: dict[str, Any]
    load: LoadSummary
    generator: GeneratorSummary
    stages: tuple[StageSummary, ...]
    agents: tuple[AgentSummary, ...]
    totals: Stats
    commands: dict[str, Stats]
    pools: dict[str, Stats]
    checkout_wait_us: Quantiles
    connections: ConnectionsSummary
    server: ServerSummary
    pubsub: PubSubSummary | None
    errors: dict[str, int]
    error_samples: tuple[ErrorSampleSummary, ...]
    ledger: Ledger
    preload: PreloadSummary | None
    clean_up: CleanUpSummary | None
    verdict: Verdict
    latency_bins: tuple[Bin, ...]
    endpoints: dict[str, EndpointStats]
    visibility: VisibilitySummary | None
    scenarios: tuple[ScenarioSummary, ...]
    targets: dict[str, TargetSummary]

    def to_json(self) -> str:
        """The text of summary.json. A row of a server's series is one line, because there may be very many."""
        nodes = self.server.nodes
        without = {name: msgspec.structs.replace(node, series=_ROWS) for name, node in nodes.items()}
        short = msgspec.structs.replace(self, server=msgspec.structs.replace(self.server, nodes=without))
        with_asked = _with_asked(msgspec.json.decode(msgspec.json.encode(short)))
        text = printable_json(msgspec.json.format(msgspec.json.encode(with_asked), indent=2).decode()) + "\n"
        rows = (bytes(node.series).decode().replace("],[", f"],\n{_ROW_INDENT}[") for node in nodes.values())
        return _SERIES.sub(lambda found: found[1] + next(rows), text)


def _with_asked(value: Any) -> Any:
    """The same with the further percentiles of all `Quantiles` beside their other keys."""
    if isinstance(value, list):
        return [_with_asked(each) for each in value]
    if not isinstance(value, dict):
        return value
    further = value.get(ASKED)
    fixed = {key: _with_asked(each) for key, each in value.items() if key != ASKED}
    return fixed | further if isinstance(further, dict) else fixed
