"""What a run's journal holds, one frozen type a record. A report is a fold over these and nothing else.

Order in a journal: RunOpened, ServerCounted(before), RunStarted, then FrameAccepted, AgentNoted, WorkerNoted,
ShareTakenOver in any order, ServerCounted(after), perhaps CleanedUp, RunClosed. A StopDecided may stand anywhere after
RunStarted. In a journal without RunClosed, the coordinator still runs, has failed (CoordinatorFailed says why, if it
could be written), or was killed.
"""

from __future__ import annotations

import enum

import msgspec

from common.plan.schema import Plan
from common.protocol.messages import Final, MetricsFrame, PoolLeft, PoolShare, Preloaded

JOURNAL_FORMAT = 2


class Record(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Root of all records; the tag on disk is the class name."""


class Outcome(enum.Enum):
    """How a run ended: as planned; stopped by the user; given up; or to its end, but not with everybody. RUNNING is in
    no record: reports use it for a run that has not ended."""

    COMPLETED = "completed"
    INTERRUPTED = "interrupted"
    ABORTED = "aborted"
    DEGRADED = "degraded"
    RUNNING = "running"


class TargetFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the target said of itself before the run. topology: "standalone", "replica", "sentinel" or "cluster".
    server: for people, such as "valkey 9.1.2". max_clients: of the node that takes the fewest. ping_us: of the primary
    that is slowest. keys: all that there are, in the plan's database. None where it may not be read."""

    url: str
    topology: str
    server: str
    max_clients: int | None = None
    ping_us: float | None = None
    primaries: int = 1
    replicas: int = 0
    keys: int | None = None

    @property
    def nodes(self) -> int:
        """How many servers the target's clients may have to do with: all of a cluster, one otherwise."""
        return self.primaries + self.replicas if self.topology == "cluster" else 1


class AgentFacts(msgspec.Struct, frozen=True, kw_only=True):
    """An agent that takes part, and the pools it was dealt. preloaded: what it wrote before the start."""

    agent_id: str
    incarnation: str
    host: str
    processes: int
    pools: tuple[PoolShare, ...]
    preloaded: Preloaded | None = None


class RunOpened(Record, frozen=True, kw_only=True):
    """Who runs what. `plan` is redacted. started_at: ISO 8601 UTC, a label only. endpoint: where agents reach the
    coordinator; one that resumes this run listens there again. keys: fingerprint of the keys that secure connections
    (`Credentials.fingerprint`), "" for --insecure, None in journals of earlier releases. metrics_port: only in journals
    of releases that used a second port for metrics."""

    format: int = JOURNAL_FORMAT
    run_id: str
    started_at: str
    plan: Plan
    plan_hash: str
    target: TargetFacts
    connection_ceiling: int
    agents: tuple[AgentFacts, ...]
    threads_total: int
    endpoint: str = ""
    keys: str | None = None
    metrics_port: int = 0


class RunStarted(Record, frozen=True, kw_only=True):
    """The common start instant, on the coordinator host's monotonic clock."""

    t0_ns: int


class FrameAccepted(Record, frozen=True, kw_only=True):
    """A frame, taken in order and once."""

    agent_id: str
    frame: MetricsFrame


class ShareTakenOver(Record, frozen=True, kw_only=True):
    """An agent that stood by goes on with the share of one that was lost; recorded before it receives its start. agent:
    who, with the pools of that share. replaces: id of the lost agent. from_ns: since when, after the start instant;
    at_ns: when that was decided, on the clock of `RunStarted`. left: how many operations each pool may still issue,
    None where the plan sets no number."""

    agent: AgentFacts
    replaces: str
    from_ns: int
    at_ns: int
    left: tuple[PoolLeft, ...] | None = None


class AgentEnd(enum.Enum):
    """How an agent's part ended. OPEN is in no record: reports use it if the journal has no end."""

    FINISHED = "finished"
    LOST = "lost"
    OPEN = "open"


class AgentNoted(Record, frozen=True, kw_only=True):
    """An agent's part is over. final is None for one that was lost. left: its process has ended or forgotten the
    run, so that no results will come. The rest is from its heartbeats."""

    agent_id: str
    state: AgentEnd
    reason: str
    final: Final | None
    clock_offset_us: float | None
    clock_rtt_us: float | None
    cpu_percent_max: float
    cpu_percent_busiest: float
    host_cpu_percent_mean: float | None = None
    lag_ms_max: float
    left: bool = False


class WorkerNoted(Record, frozen=True, kw_only=True):
    """A worker process of an agent died mid-run."""

    agent_id: str
    process: int
    exit_code: int | None
    reason: str = ""


class Reading(enum.Enum):
    """Which of the two readings of the server's own counters this is."""

    BEFORE = "before"
    AFTER = "after"


class NodeCounted(msgspec.Struct, frozen=True, kw_only=True):
    """`INFO commandstats` of one server: calls and rejected calls by lower-case command name, since its start or its
    last CONFIG RESETSTAT; of a replica without what it only repeats after its primary. run_id tells whether it is still
    the same process."""

    name: str
    role: str
    run_id: str
    calls: dict[str, int]


class ServerCounted(Record, frozen=True, kw_only=True):
    """What the target counted: `calls` and connected_clients are sums over its nodes, `keys` over its primaries.
    server_run_id is that of a target of one node. `nodes` is empty in journals of earlier releases, and without a
    reading. error: why there is none. unreachable: because the target, or one node of a cluster, did not answer.
    writers: agents that might still write to the target at that time."""

    when: Reading
    server_run_id: str = ""
    connected_clients: int = 0
    calls: dict[str, int] = {}
    nodes: tuple[NodeCounted, ...] = ()
    keys: int | None = None
    error: str = ""
    unreachable: bool = False
    writers: tuple[str, ...] = ()


class CleanedUp(Record, frozen=True, kw_only=True):
    """The keys of the plan were deleted. earlier: how many of `deleted` a coordinator before had deleted when it was
    killed, by the number of keys that were missing. left: those that could not be deleted; None where it is not known
    how many, and `error` says why."""

    deleted: int
    left: int | None
    took_ns: int
    error: str = ""
    earlier: int = 0


class Stopping(enum.Enum):
    """What is stopped before its time: the load, whose operations in flight come to an end; the load at once; or the
    deletion of the plan's keys, which leaves the rest of them."""

    LOAD = "load"
    AT_ONCE = "at once"
    CLEAN_UP = "clean-up"


class StopDecided(Record, frozen=True, kw_only=True):
    """The coordinator decided to stop something before its time; recorded before anybody is told, so that a coordinator
    that resumes the run goes on stopping. at_ns: on the clock of `RunStarted`. exit_code: what
    the run ends with for it; 0 where it changes none."""

    what: Stopping
    reason: str
    exit_code: int
    at_ns: int


class RunClosed(Record, frozen=True, kw_only=True):
    """The end. duration_s: from the start instant to the last agent's end of load, as planned or as cut short."""

    outcome: Outcome
    reason: str
    duration_s: float


class CoordinatorFailed(Record, frozen=True, kw_only=True):
    """The coordinator failed before the run ended, such as from a full disk or a bug. The run can be resumed."""

    reason: str


AnyRecord = (
    RunOpened
    | RunStarted
    | FrameAccepted
    | AgentNoted
    | WorkerNoted
    | ShareTakenOver
    | ServerCounted
    | CleanedUp
    | StopDecided
    | RunClosed
    | CoordinatorFailed
)
