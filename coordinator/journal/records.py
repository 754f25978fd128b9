"""The records of a run's journal. A report is computed from these records only.

Their order: RunOpened, CountersRead(before), RunStarted; then FrameAccepted, AgentEnded, WorkerDied and ShareTakenOver
in any order; CountersRead(after), CleanedUp if the plan has a clean-up, RunClosed. StopDecided may be anywhere after
RunStarted, and records of servers (NodeDescribed, NodeSampled, NodeSilent) anywhere before CountersRead(after). If
RunClosed is missing, the coordinator still runs, was killed, or has failed. If it has failed, CoordinatorFailed gives
the reason, unless it could not be written.

Some types and fields have another name in the journal (`tag=`, `name=`), so that journals of earlier releases stay
readable.
"""

from __future__ import annotations

import enum
from typing import Annotated

import msgspec
from msgspec import Meta

from common.plan.schema import Plan
from common.protocol.messages import Final, MetricsFrame, PoolRemainder, PoolShare, Preloaded

JOURNAL_FORMAT = 2

WallNs = Annotated[int, Meta(ge=0, le=1 << 62)]
"""Nanoseconds since 1970, UTC: up to the year 2116."""


class Record(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all records. In the journal, a tag names the type of a record."""


class Outcome(enum.Enum):
    """How a run ended. COMPLETED: as planned. INTERRUPTED: stopped by the user. ABORTED: given up. DEGRADED: the load
    ended, but an agent, a worker process or the target was lost. RUNNING is in no record: reports use it for a run that
    has not ended."""

    COMPLETED = "completed"
    INTERRUPTED = "interrupted"
    ABORTED = "aborted"
    DEGRADED = "degraded"
    RUNNING = "running"


class TargetFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about the target before the run. None: the server did not report it.

    topology: "standalone", "replica", "sentinel" or "cluster". server: product and version, such as "valkey 9.1.2".
    max_clients: the lowest limit of all nodes. ping_us: round trip of the slowest primary. keys: keys in the plan's
    database, over all primaries. replica_pools: how many TCP pools for replicas each client has, besides its own; 0 for
    a cluster.
    """

    url: str
    topology: str
    server: str
    max_clients: int | None = None
    ping_us: float | None = None
    primaries: int = 1
    replicas: int = 0
    keys: int | None = None
    replica_pools: int = 0

    @property
    def nodes(self) -> int:
        """How many TCP pools a client has: one for each node of a cluster; otherwise one, and those for replicas."""
        return self.primaries + self.replicas if self.topology == "cluster" else 1 + self.replica_pools


class AgentFacts(msgspec.Struct, frozen=True, kw_only=True):
    """An agent of the run. pools: its share of the plan. preloaded: the keys that it wrote before the start."""

    agent_id: str
    incarnation: str
    host: str
    processes: int
    pools: tuple[PoolShare, ...]
    preloaded: Preloaded | None = None


class RunOpened(Record, frozen=True, kw_only=True):
    """The plan of the run (without passwords), its targets and its agents. Recorded when all agents are prepared.

    started_at: ISO 8601, UTC; only a label. target: of a plan with one target; targets: the named targets of scenarios.
    connection_ceiling: how many TCP connections the plan may open. threads, connection_ceilings: of each scenario;
    empty for a plan with one. endpoint: address of the coordinator; a coordinator that resumes the run listens there
    again. key_fingerprint: of the CURVE keys (`Credentials.fingerprint`); "" with --insecure, None in journals of
    earlier releases. metrics_port: only in journals of releases that used a second port for metrics.
    """

    format: int = JOURNAL_FORMAT
    run_id: str
    started_at: str
    plan: Plan
    plan_hash: str
    target: TargetFacts
    connection_ceiling: int
    agents: tuple[AgentFacts, ...]
    threads_total: int
    targets: dict[str, TargetFacts] = {}
    threads: tuple[int, ...] = ()
    connection_ceilings: tuple[int, ...] = ()
    endpoint: str = ""
    key_fingerprint: str | None = msgspec.field(default=None, name="keys")
    metrics_port: int = 0


class RunStarted(Record, frozen=True, kw_only=True):
    """The load starts. t0_ns: the common start instant, on the monotonic clock of the coordinator's machine. t0_utc_ns:
    the same instant by its wall clock, in ns since 1970; None in journals of earlier releases."""

    t0_ns: int
    t0_utc_ns: WallNs | None = None


class FrameAccepted(Record, frozen=True, kw_only=True):
    """The next frame of an agent: frames are accepted in order, and each only once."""

    agent_id: str
    frame: MetricsFrame


class ShareTakenOver(Record, frozen=True, kw_only=True):
    """A standby takes over the share of a lost agent. Recorded before the standby receives its start.

    agent: the standby, with the pools of the share. replaces: id of the lost agent. from_ns: when the standby begins,
    after the start instant. at_ns: when the coordinator decided it, on the clock of `RunStarted`. remaining: how many
    operations each pool still has to issue; None if the plan has no number of requests.
    """

    agent: AgentFacts
    replaces: str
    from_ns: int
    at_ns: int
    remaining: tuple[PoolRemainder, ...] | None = msgspec.field(default=None, name="left")


class AgentOutcome(enum.Enum):
    """How an agent's part of the run ended. OPEN is in no record: reports use it for an agent whose end the journal
    does not have."""

    FINISHED = "finished"
    LOST = "lost"
    OPEN = "open"


class AgentEnded(Record, frozen=True, kw_only=True, tag="AgentNoted"):
    """An agent's part of the run is over.

    final: its last report; None if the agent was lost. has_left: no more results will come, because its process has
    ended or has discarded the run. The other figures are from its heartbeats; cpu_percent_max: highest CPU use of the
    agent with its worker processes, cpu_percent_busiest: of its busiest worker process. lag_ms_max: the longest time
    that the agent's own loop was blocked.
    """

    agent_id: str
    state: AgentOutcome
    reason: str
    final: Final | None
    clock_offset_us: float | None
    clock_rtt_us: float | None
    cpu_percent_max: float
    cpu_percent_busiest: float
    host_cpu_percent_mean: float | None = None
    lag_ms_max: float
    has_left: bool = msgspec.field(default=False, name="left")


class WorkerDied(Record, frozen=True, kw_only=True, tag="WorkerNoted"):
    """A worker process of an agent died during the run. process: its number within the agent."""

    agent_id: str
    process: int
    exit_code: int | None
    reason: str = ""


class Reading(enum.Enum):
    """When the server's counters were read: before or after the load."""

    BEFORE = "before"
    AFTER = "after"


class NodeCounters(msgspec.Struct, frozen=True, kw_only=True):
    """The counters of one server, from `INFO commandstats`.

    calls: calls and rejected calls by lower-case command name, since the server's start or its last CONFIG RESETSTAT;
    on a replica, without the commands that it repeats after its primary. run_id: changes when the server restarts. own:
    queries of this reading that `calls` includes; its last query, an INFO, comes on top. Empty in journals of earlier
    releases.
    """

    name: str
    role: str
    run_id: str
    calls: dict[str, int]
    own: dict[str, int] = {}


class CountersRead(Record, frozen=True, kw_only=True, tag="ServerCounted"):
    """The target's own counters were read, or could not be read.

    calls, connected_clients: sums over all nodes. keys: sum over all primaries. server_run_id: of a target with one
    node. nodes: empty if the counters could not be read, and in journals of earlier releases. error: why they could not
    be read. unreachable: the target, or one node of a cluster, did not answer. writers: agents that might still write
    when the counters were read. targets: the counters of the plan's named targets; the rest is of the first one.
    """

    when: Reading
    server_run_id: str = ""
    connected_clients: int = 0
    calls: dict[str, int] = {}
    nodes: tuple[NodeCounters, ...] = ()
    keys: int | None = None
    error: str = ""
    unreachable: bool = False
    writers: tuple[str, ...] = ()
    targets: dict[str, CountersRead] = {}


class NodeSample(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """INFO of one server at one time; journals have it as an array, so new fields come last. Counts are since the
    server's start or its last CONFIG RESETSTAT. None: the server does not report it.

    reply_us: how long INFO took. replica: its role is replica. cpu_us: user and system time of the process;
    cpu_main_us: of its main thread. lag_s, lag_bytes: of a primary, how far its slowest replica is behind; of a
    replica, how long ago it heard from its primary.
    """

    reply_us: int
    replica: bool | None = None
    cpu_us: int | None = None
    cpu_main_us: int | None = None
    memory: int | None = None
    rss: int | None = None
    evicted: int | None = None
    expired: int | None = None
    hits: int | None = None
    misses: int | None = None
    clients: int | None = None
    blocked: int | None = None
    commands: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    lag_s: int | None = None
    lag_bytes: int | None = None


class CommandTime(msgspec.Struct, frozen=True, array_like=True):
    """A row of commandstats: calls and their time in the server. within: from LATENCY HISTOGRAM, how many calls took at
    most how many microseconds; empty if the server has none."""

    calls: int
    usec: int
    within: tuple[tuple[int, int], ...] = ()


class LoggedCommand(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the server's log of commands. log: "slow", "large-request" or "large-reply". value: microseconds, or
    bytes. at_s: Unix time by the server's clock. command: its first arguments, shortened. client: its address."""

    log: str
    id: int
    at_s: int
    value: int
    command: str
    client: str = ""
    client_name: str = ""


class LatencyEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event of LATENCY LATEST. at_s: Unix time of the latest one by the server's clock."""

    name: str
    at_s: int
    latest_ms: int
    max_ms: int


class HotKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key of HOTKEYS GET. by: "cpu_us" or "net_bytes", the unit of `value`."""

    key: str
    by: str
    value: int


class BusySlot(msgspec.Struct, frozen=True, kw_only=True):
    """A slot of CLUSTER SLOT-STATS; all but `keys` are gains since the first reading, None if the server does not count
    them."""

    slot: int
    keys: int
    cpu_us: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None


class Unread(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a server did not report, and why."""

    what: str
    reason: str


class NodeDescribed(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One server before or after the load. target: name of the target in the plan. at_ns: on the clock of `RunStarted`.
    server_time_s: the server's own clock. config: settings that matter. last_logged: id of the newest entry of each log
    of commands. own: how often this reading called which command, by its row in commandstats."""

    when: Reading
    target: str = ""
    node: str
    role: str
    at_ns: int
    version: str = ""
    run_id: str = ""
    server_time_s: int | None = None
    keys: int | None = None
    sample: NodeSample | None = None
    config: dict[str, str] = {}
    commands: dict[str, CommandTime] = {}
    last_logged: dict[str, int] = {}
    logged: tuple[LoggedCommand, ...] = ()
    events: tuple[LatencyEvent, ...] = ()
    hot_keys: tuple[HotKey, ...] = ()
    slots: tuple[BusySlot, ...] = ()
    unread: tuple[Unread, ...] = ()
    own: dict[str, int] = {}


class NodeSampled(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One server during the load. own: calls of ours since the last record of this server, without the one INFO of the
    sample."""

    target: str = ""
    node: str
    at_ns: int
    sample: NodeSample
    own: dict[str, int] = {}


class NodeSilent(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One server gave no answer, or gives none any more if `for_good`. own: calls of ours that it may have executed all
    the same."""

    target: str = ""
    node: str
    at_ns: int
    reason: str
    for_good: bool = False
    own: dict[str, int] = {}


class CleanedUp(Record, frozen=True, kw_only=True):
    """The plan's keys were deleted. earlier: how many of `deleted` an earlier coordinator of this run had deleted
    before it was killed, computed from DBSIZE. left: keys that could not be deleted; None if their number is not known.
    error: the reason."""

    deleted: int
    left: int | None
    took_ns: int
    error: str = ""
    earlier: int = 0


class StopKind(enum.Enum):
    """What the coordinator stops early. LOAD: the load, with a drain. AT_ONCE: the load, without a drain. CLEAN_UP:
    the deletion of the plan's keys; the remaining keys stay."""

    LOAD = "load"
    AT_ONCE = "at once"
    CLEAN_UP = "clean-up"


class StopDecided(Record, frozen=True, kw_only=True):
    """The coordinator decided to stop the load or the clean-up early. Recorded before it sends any order, so that a
    coordinator that resumes the run stops it too. at_ns: on the clock of `RunStarted`. exit_code: the run's exit code
    because of this; 0 if it does not change the exit code."""

    what: StopKind
    reason: str
    exit_code: int
    at_ns: int


class RunClosed(Record, frozen=True, kw_only=True):
    """The end of the run. duration_s: from the start instant until the load of the last agent ended."""

    outcome: Outcome
    reason: str
    duration_s: float


class CoordinatorFailed(Record, frozen=True, kw_only=True):
    """The coordinator failed before the run ended, for example because the disk was full. The run can be resumed."""

    reason: str


AnyRecord = (
    RunOpened
    | RunStarted
    | FrameAccepted
    | AgentEnded
    | WorkerDied
    | ShareTakenOver
    | CountersRead
    | NodeDescribed
    | NodeSampled
    | NodeSilent
    | CleanedUp
    | StopDecided
    | RunClosed
    | CoordinatorFailed
)
