"""All messages, as frozen types. Two state machines decide the order in which messages may come: `agent.core.session`
and `coordinator.core.run`.

    agent -> coordinator (control)    coordinator -> agent (control)    agent -> coordinator (metrics)    and back
    Hello                             Welcome | Refused, StandBy        Attach                            Attached
    Prepared | Failed | Preparing     Prepare
                                      Start
    Heartbeat                         HeartbeatReply                    MetricsFrame                      FrameAck
    WorkerLost                        Stop
    Final                             FinalAck
    Bye                               Dismiss

Both connections of an agent go to the same port. An agent draws a random secret when it starts; its incarnation is the
hash of the secret. The first message on each connection (`Hello`, `Attach`) contains the secret. From then on, the
coordinator accepts messages of this incarnation from that connection only. So a peer that knows only an incarnation
cannot use it.

`t0_ns` and the timestamps of heartbeats are monotonic nanoseconds of the side that the docstring names.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from common.metrics.intervals import IntervalMetrics, Tally
from common.plan.scenarios import MAX_SCENARIOS
from common.plan.schema import Plan
from common.plan.timeline import Timeline
from common.plan.timeline import timeline as timeline_of

PROTOCOL_MIN = 6
PROTOCOL_MAX = 6

LONGEST_SECRET = 128


def incarnation_of(secret: str) -> str:
    """The incarnation of the agent process with this secret. An incarnation is public: 128 bits of a hash do not reveal
    the secret."""
    return hashlib.sha256(secret.encode()).hexdigest()[:32]


MAX_MESSAGE_BYTES = 1 << 20
"""Maximum size of a message between coordinator and agent. An agent splits frames that would be larger."""

MAX_INTERVALS = 512
"""Maximum number of intervals in a frame. An agent that was stopped for minutes reports several per second."""

KEEP_LEASES = 10
"""An agent keeps unreported results for this many leases. A coordinator that resumes the run can collect them."""

Figure = Annotated[float, Meta(ge=0, le=1e12)]
"""A measured number. Infinity and NaN are refused, because a maximum with NaN is wrong."""

Stamp = Annotated[int, Meta(ge=-(1 << 62), le=1 << 62)]
"""An instant of a monotonic clock in ns, or the difference between two clocks. A sum of two fits into 64 bits."""

Identifier = Annotated[str, Meta(max_length=128)]
"""A run id, or the incarnation of an agent."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Base of all messages. The class name is sent as the tag."""


class AgentState(enum.Enum):
    """The state that an agent reports in hello and heartbeats."""

    IDLE = "idle"
    PREPARING = "preparing"
    PREPARED = "prepared"
    RUNNING = "running"
    DRAINING = "draining"
    DONE = "done"


class FailureKind(enum.Enum):
    """Why an agent could not prepare: the target's fault, or something else (see `Failed.reason`)."""

    TARGET = "target"
    AGENT = "agent"


class PreparationStep(enum.Enum):
    """What a preparing agent is doing. Values are shown to people."""

    PRELOAD = "preloading"
    CONNECTIONS = "opening connections"


class Preloaded(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a preload. keys: a key counts once for each entry of the preload. took_ns: the time of the slowest
    process or agent."""

    keys: Tally
    commands: Tally
    bytes_out: Tally
    took_ns: Tally

    @classmethod
    def merge(cls, parts: Iterable[Preloaded | None]) -> Preloaded | None:
        """The sum of all parts, which were written at the same time; None if no part had anything to write."""
        written = [part for part in parts if part is not None]
        if not written:
            return None
        return cls(
            keys=sum(part.keys for part in written),
            commands=sum(part.commands for part in written),
            bytes_out=sum(part.bytes_out for part in written),
            took_ns=max(part.took_ns for part in written),
        )


class PoolShare(msgspec.Struct, frozen=True):
    """One client instance pool of the fleet, assigned to one agent.

    group: index into the `pools` of its scenario. number: 0-based among all pools of the run. first_thread: 0-based
    number, among all worker threads of the scenario, of the pool's first thread; its threads are consecutive. scenario:
    0-based number in the plan.
    """

    group: Tally
    number: Tally
    first_thread: Tally
    scenario: Tally = 0


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """One agent's share of one scenario, with everything that the agent needs to finish it alone.

    plan: of this scenario alone. threads_total: worker threads of the scenario in the whole fleet, by which rate and
    request count are divided. preloads: whether the agent has to write its part of the preload. scenario: its name.
    scenarios: how many the plan has. start_ns: when the scenario starts, after the common start. first_leg: the number
    of its first leg among those of all scenarios. The plan has the target's password, so an assignment is never logged
    and is sent encrypted.
    """

    plan: Plan
    pools: tuple[PoolShare, ...]
    threads_total: Tally
    preloads: bool = True
    scenario: str = "main"
    scenarios: Tally = 1
    start_ns: Tally = 0
    first_leg: Tally = 0

    @property
    def timeline(self) -> Timeline:
        """The timeline of its scenario; times count from the common start."""
        return timeline_of(self.plan.load, self.start_ns)

    @property
    def threads(self) -> list[int]:
        """The numbers of its worker threads among all worker threads of the fleet."""
        return [
            thread
            for share in self.pools
            for thread in range(share.first_thread, share.first_thread + self.plan.pools[share.group].workers_per_pool)
        ]

    def __repr__(self) -> str:
        return f"Assignment(pools={[share.number for share in self.pools]}, threads_total={self.threads_total})"


class Proof(Message, frozen=True, kw_only=True):
    """The first message on a connection. secret: its hash is the incarnation; no log, journal or `repr` shows it.
    connection: counts the control or the metrics connections of this agent process, so that a delayed message of an
    older connection does not replace a newer connection."""

    secret: Annotated[str, Meta(max_length=LONGEST_SECRET)] = ""
    connection: Tally = 0

    def proves(self, incarnation: str) -> bool:
        """Whether its sender is the agent process of this incarnation."""
        return incarnation_of(self.secret) == incarnation

    def __repr__(self) -> str:
        fields = (name for name in self.__struct_fields__ if name != "secret")
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in fields)})"


class Hello(Proof, frozen=True, kw_only=True):
    """An agent joins, or reconnects. run_id, state: the run of which the agent still has data, and its state in it.
    secret: "" from agents with protocol 3 or less."""

    protocol_min: int
    protocol_max: int
    name: str
    host: str
    pid: int
    processes: Annotated[int, Meta(ge=1)]
    version: str
    state: AgentState
    run_id: str | None = None
    next_seq: Tally = 0
    frames_held: Tally = 0


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How often a running agent reports. frame_s: seconds per frame; with 1, each second is sent when it is complete.
    heartbeat_s: seconds from one heartbeat to the next."""

    frame_s: Annotated[int, Meta(ge=1, le=10)] = 1
    heartbeat_s: Annotated[int, Meta(ge=1, le=2)] = 1


class Welcome(Message, frozen=True, kw_only=True):
    """The agent is admitted; it opens its metrics connection."""

    protocol: int
    agent_id: str
    pace: Pace = Pace()


class Attach(Proof, frozen=True, kw_only=True):
    """This is the metrics connection of the agent."""


class Attached(Message, frozen=True, kw_only=True):
    """The metrics connection works in both directions, and the coordinator accepts frames on it."""


class Refused(Message, frozen=True, kw_only=True):
    """The agent is not admitted, for this reason. It exits."""

    reason: str


class StandBy(Message, frozen=True, kw_only=True):
    """The run has enough agents. This agent stays as a standby, in case another agent is lost."""


class Prepare(Message, frozen=True, kw_only=True):
    """Write the preload if the plan has one, build pools, prewarm connections if the plan asks for it, and report
    `Prepared`. assignments: one for each scenario of which the agent has a share, at least one."""

    assignments: Annotated[tuple[Assignment, ...], Meta(min_length=1, max_length=MAX_SCENARIOS)]
    plan_hash: str


class Preparing(Message, frozen=True, kw_only=True):
    """Progress of a step: (done, total) of the preload's answered commands, or of opened connections. Counts commands
    instead of keys, because a single list may take millions of commands."""

    step: PreparationStep
    done: Tally
    total: Tally


class Prepared(Message, frozen=True, kw_only=True):
    """The agent is ready, and waits for `Start`. preloaded: None if the agent had nothing to preload."""

    processes: Tally
    connections_open: Tally
    preloaded: Preloaded | None = None


class Failed(Message, frozen=True, kw_only=True):
    """The agent cannot prepare or continue. reason: one line for people to read."""

    kind: FailureKind
    reason: str


class PoolRemainder(NamedTuple):
    """How many operations a pool still has to issue. number: as in `PoolShare`."""

    number: Tally
    operations: Tally


class TakeOver(msgspec.Struct, frozen=True, kw_only=True):
    """The point at which an agent continues the share of a lost agent. from_ns: how long after the start instant;
    operations that were due earlier are not sent. remaining: for each pool of the share, "left" on the wire; None if
    the plan has no number of requests."""

    from_ns: Tally
    remaining: tuple[PoolRemainder, ...] | None = msgspec.field(default=None, name="left")


class Start(Message, frozen=True, kw_only=True):
    """Begin at `t0_ns` of the coordinator's clock, which is in the future. When an agent takes over a share, `t0_ns` is
    in the past: begin `takeover.from_ns` after it."""

    t0_ns: Stamp
    takeover: TakeOver | None = None


class Heartbeat(Message, frozen=True, kw_only=True):
    """The agent is alive. sent_ns: of the agent's clock. offset_ns: the agent's best estimate of the coordinator's
    clock minus its own clock; rtt_ns: the round trip that limits the error; both None before the first reply. lag_ms:
    the longest delay of the agent's own loop since the last heartbeat. cpu_percent: of one core, agent and workers
    together; cpu_percent_busiest: the busiest of these processes. host_cpu_percent: of all cores of the machine, by
    all processes."""

    sent_ns: Stamp
    state: AgentState
    offset_ns: Stamp | None
    rtt_ns: Tally | None
    cpu_percent: Figure
    cpu_percent_busiest: Figure
    host_cpu_percent: Figure = 0.0
    lag_ms: Figure
    frames_held: Tally
    processes_alive: Tally


class HeartbeatReply(Message, frozen=True, kw_only=True):
    """Answer to a heartbeat, with the agent's timestamp and two of the coordinator."""

    sent_ns: Stamp
    received_ns: Stamp
    replied_ns: Stamp


class WorkerLost(Message, frozen=True, kw_only=True):
    """A worker process of the agent ended unexpectedly. Its unreported operations are lost."""

    process: Tally
    exit_code: int | None
    reason: str = ""


class Stop(Message, frozen=True, kw_only=True):
    """End the run now. drain: wait for operations in flight."""

    drain: bool
    reason: str


class MetricsFrame(Message, frozen=True, kw_only=True):
    """One agent's metrics since its previous frame. seq: counts from 0 for each incarnation and run, without gaps.
    intervals: usually one, of `Pace.frame_s` seconds; another one if an operation was recorded late; a merged one if
    many frames are not acknowledged yet.
    through: the last second of the run that this agent has reported completely (-1: none yet)."""

    seq: Tally
    through: Annotated[int, Meta(ge=-1)]
    intervals: tuple[IntervalMetrics, ...]


class FrameAck(Message, frozen=True, kw_only=True):
    """Every frame with seq < `next_seq` is in the journal. The agent can discard these frames."""

    next_seq: Tally


class ScenarioFinal(msgspec.Struct, frozen=True, kw_only=True):
    """The part of one scenario in `Final`, where the fields are explained. scenario: its number in the plan."""

    scenario: Tally
    issued: Tally = 0
    counted: Tally = 0
    transactions: Tally = 0
    start_skew_ns: Stamp = 0
    ran_ns: Tally = 0
    drained: bool
    processes_lost: Tally = 0


class Final(Message, frozen=True, kw_only=True):
    """The agent's share is over, and the agent has sent all its frames. These are the totals of its workers.

    next_seq: number of frames. issued: operations begun, as counted where they are issued. counted: operations in the
    frames. start_skew_ns: delay of the first operation after its intended time, in a closed loop after the start
    instant. ran_ns: from the start instant to the end of the load: as planned, as cut short, or when the last requested
    operation ended. drained: whether every worker thread ended by itself. scenarios: the same for each scenario of
    several; empty for a plan with one.
    """

    next_seq: Tally
    issued: Tally
    counted: Tally
    transactions: Tally
    start_skew_ns: Stamp
    ran_ns: Tally = 0
    drained: bool
    processes_lost: Tally
    reason: str
    scenarios: Annotated[tuple[ScenarioFinal, ...], Meta(max_length=MAX_SCENARIOS)] = ()


class FinalAck(Message, frozen=True, kw_only=True):
    """The journal has `Final` and all frames of the agent. The agent can discard the run."""


class Bye(Message, frozen=True, kw_only=True):
    """The agent leaves, on purpose."""

    reason: str


class Dismiss(Message, frozen=True, kw_only=True):
    """The coordinator ends. Agents wait for the next coordinator; an agent with --once exits. exit_code: of the run."""

    exit_code: int


AgentMessage = Hello | Attach | Preparing | Prepared | Failed | Heartbeat | WorkerLost | Final | Bye | MetricsFrame
CoordinatorMessage = (
    Welcome | Refused | Attached | StandBy | Prepare | Start | HeartbeatReply | Stop | FrameAck | FinalAck | Dismiss
)


class WorkerPrepare(Message, frozen=True, kw_only=True):
    """Agent to worker process: build these pools, and prewarm connections if the plan asks for it."""

    run_id: str
    assignment: Assignment
    process: Tally


class WorkerStart(Message, frozen=True, kw_only=True):
    """Agent to worker process: begin at `t0_ns` of this host's clock, or `takeover.from_ns` after it."""

    t0_ns: Stamp
    takeover: TakeOver | None = None


class WorkerStop(Message, frozen=True, kw_only=True):
    """Agent to worker process: end the load. drain: wait for operations in flight."""

    drain: bool


class WorkerRenew(Message, frozen=True, kw_only=True):
    """Agent to worker process: the load may continue until `until_ns` of this host's `boottime_ns`."""

    until_ns: Stamp


class WorkerMetrics(Message, frozen=True, kw_only=True):
    """Worker process to agent: the metrics since the last report. through: the last second that is complete."""

    through: Annotated[int, Meta(ge=-1)]
    intervals: tuple[IntervalMetrics, ...]


class WorkerFinal(Message, frozen=True, kw_only=True):
    """Worker process to agent: all threads have ended and all metrics are reported. See `Final` for the fields. fenced:
    whether the process ended its load by itself, because its lease was not renewed."""

    issued: Tally
    counted: Tally
    transactions: Tally
    start_skew_ns: Stamp
    ran_ns: Tally = 0
    drained: bool
    fenced: bool = False


WorkerMessage = Preparing | Prepared | Failed | WorkerMetrics | WorkerFinal
WorkerOrder = WorkerPrepare | WorkerStart | WorkerStop | WorkerRenew


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """The envelope of every message. run_id: "" outside a run. incarnation: of the agent process, see `incarnation_of`.
    Both identify stale messages."""

    run_id: str
    incarnation: str
    message: AgentMessage | CoordinatorMessage
