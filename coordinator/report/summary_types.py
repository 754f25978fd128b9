"""The shape of `summary.json`, for other programs. Keys keep name and meaning; more may be added.

Latencies are in microseconds (reconnects in milliseconds), sizes in bytes, rates per second of the time that was
measured.
"""

from __future__ import annotations

from typing import Any

import msgspec

from common.units import printable_json
from coordinator.analysis.key_space import CleanUpSummary, PreloadSummary
from coordinator.analysis.ledger import Ledger
from coordinator.analysis.verdict import Verdict
from coordinator.core.records import AgentEnd, Outcome

SUMMARY_FORMAT = 1


class SummaryPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the summary."""


class Quantiles(SummaryPart, frozen=True, kw_only=True):
    """What a histogram says, in the unit that the key names; zeros where count is 0."""

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


class Latency(SummaryPart, frozen=True, kw_only=True):
    """service: send to reply, of operations done. response: intended send to reply, None in a closed loop.
    failed: how long operations took that ended in an error."""

    service: Quantiles
    response: Quantiles | None
    failed: Quantiles


class Stats(SummaryPart, frozen=True, kw_only=True):
    """Operations that came to an end; ops_per_s counts those done."""

    operations: int
    ok: int
    errors: int
    ops_per_s: float
    bytes_out: int
    bytes_in: int
    latency_us: Latency


class RunSummary(SummaryPart, frozen=True, kw_only=True):
    """Which run, and how it ended. reason: one line for people. stop_reason: why the load was stopped before its time,
    "" if it was not; stopped_at_s: when, from the start."""

    id: str
    started_at: str
    duration_s: float
    outcome: Outcome
    reason: str
    plan_hash: str
    stop_reason: str = ""
    stopped_at_s: float | None = None


class TargetSummary(SummaryPart, frozen=True, kw_only=True):
    """What was loaded. url is redacted."""

    url: str
    topology: str
    server: str
    max_clients: int | None
    ping_us: float | None


class AgentSummary(SummaryPart, frozen=True, kw_only=True):
    """One agent. cpu_percent_busiest: of one core, its busiest worker process. host_cpu_percent_mean: of all cores of
    its machine, whoever used them, over the run. quota_cores: cores that the CPU quota of its control group
    allows, None without one; quota_percent_mean: the used share of the quota over the run. None: it never said.
    began_at_s: when it took over its share, 0.0 if it had the share from the start. replaced_by, replaced_at_s: which
    agent took its share over, and when; "" and None for none."""

    id: str
    host: str
    processes: int
    state: AgentEnd
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
    """How operations were timed, in all that was measured. model: "closed" (as soon as the last reply came), "open" (at
    a rate of its own), or "mixed" of stages of both. target_rate_per_s: None in a closed loop, and where several stages
    say each its own; of a ramp, that at its end. wanted_rate_per_s: the mean rate that the plan wants over the time
    that was measured, to compare with achieved_rate_per_s; None if any stage is a closed loop. achieved_rate_per_s:
    operations begun, per second. unsent: due, but never begun. uncarried: due in a share that no agent carried, and of
    which no report came. measured_s: the run without its warmup, by which all
    rates are divided."""

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
    """What the load itself cost, in all that was measured: whether this program, and not the server, was the limit.

    cpu_s: CPU time of all worker processes together, the drain and the binning of rows included;
    cpu_us_per_operation: that by the operations that came to an end. core_share_...: of ONE core, what the busiest
    worker process of any agent used, in the second in which that was most and in the mean over all; 1.0 is a full core.
    loop_share_mean: the part of the time in which the busiest event loop had something to do; loop_lag_us: how long
    event loops were busy at a stretch; both None without any. late_sends: operations of an open loop that were sent
    more than 1 ms after their time. Of the agent that its CPU quota throttled most: quota_periods: periods in which it
    ran, throttled_periods: periods in which it was throttled, throttled_s: throttled time, summed over cores.
    stall_max_s, stall_at_s: length and begin of the longest stall of any worker process, of 0.25 s or more; stall_at_s
    is None without any. limit: the verdict says that the generator was the limit, or held up. cpu_..., core_...,
    quota_..., throttled_... and stall_... are None if no agent's release reports them.
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
    """One part of the load: the warmup, the plain load, or a stage. duration_s: as long as it lasted. ramp, arrivals
    and rates: None in a closed loop. from_rate_per_s, target_rate_per_s: wanted at its begin and at its end;
    wanted_rate_per_s: the mean of that, over the time that the stage lasted. late: sent after its end.
    achieved_rate_per_s: of operations begun within it; a batch that each thread had in hand counts too.
    measured: it is in the totals. Its operations are those that were due or begun in it, also if they were sent or
    ended after its end.
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


class ConnectionsSummary(SummaryPart, frozen=True, kw_only=True):
    """TCP connections of the whole fleet, over the whole run.

    wanted: most connections that were open or being opened in any second, with the wire driver all its connections;
    None if an agent's release does not report it. failed_by_cause: failed attempts by cause. never_opened: wanted
    connections that were not open at any time, by cause of the last failed attempt.
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


class PubSubSummary(SummaryPart, frozen=True, kw_only=True):
    """What became of the run's pub/sub messages. expected: deliveries that the server announced in its replies to
    PUBLISH. delivered: those that arrived, until `grace` after the load. lost: the difference, 0 at least. repeated:
    copies that a retry sent. foreign: messages of others on our channels. latency_us: from before a message's PUBLISH
    to its arrival, of those whose sender is on the same host, and without the warmup, which is in all counts."""

    expected: int
    delivered: int
    lost: int
    repeated: int
    foreign: int
    latency_us: Quantiles


class Bin(SummaryPart, frozen=True, kw_only=True):
    """Operations of more than the bin before, up to `up_to_us`."""

    up_to_us: float
    count: int


class Summary(SummaryPart, frozen=True, kw_only=True):
    """The whole of summary.json. Generator, totals, commands, pools, checkout waits, errors and bins are of what was
    measured, and not of the warmup. pubsub: None in a mix without subscribers. preload, clean_up: None where the plan
    wants none. latency_bins: of all operations done; response time where all stages are an open loop."""

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
    pubsub: PubSubSummary | None
    errors: dict[str, int]
    ledger: Ledger
    preload: PreloadSummary | None
    clean_up: CleanUpSummary | None
    verdict: Verdict
    latency_bins: tuple[Bin, ...]

    def to_json(self) -> str:
        """The text of summary.json."""
        return printable_json(msgspec.json.format(msgspec.json.encode(self), indent=2).decode()) + "\n"
