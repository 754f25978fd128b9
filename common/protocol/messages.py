"""Every message that crosses the wire, one frozen type each. The order in which they may come is for the two state
machines to say: `agent.core.session` and `coordinator.core.run`.

    agent -> coordinator (control)    coordinator -> agent (control)    agent -> coordinator (metrics)    and back
    Hello                             Welcome | Refused, StandBy        Attach                            Attached
    Prepared | Failed | Preparing     Prepare
                                      Start
    Heartbeat                         HeartbeatReply                    MetricsFrame                      FrameAck
    WorkerLost                        Stop
    Final                             FinalAck
    Bye                               Dismiss

Both connections of an agent go to the same port. An agent makes up a secret when it starts; its incarnation is the hash
of the secret. The first message on each connection (`Hello`, `Attach`) carries the secret. From then on the coordinator
accepts messages of this incarnation from that connection only, so who knows an incarnation cannot speak in its name.

Instants named `t0_ns` and the stamps of heartbeats are monotonic nanoseconds of the side that the docstring names.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from common.metrics.intervals import IntervalMetrics, Tally
from common.plan.schema import Plan

PROTOCOL_MIN = 5
PROTOCOL_MAX = 5

LONGEST_SECRET = 128


def incarnation_of(secret: str) -> str:
    """The incarnation of the agent process that made up this secret. It may be known to everybody: 128 bits of a hash
    do not give the secret away."""
    return hashlib.sha256(secret.encode()).hexdigest()[:32]


MAX_MESSAGE_BYTES = 1 << 20
"""Most bytes of a message between coordinator and agent. An agent splits frames that would be larger."""

MAX_INTERVALS = 512
"""Most intervals of a frame. An agent that was stopped for minutes reports several for each second."""

HOLD_LEASES = 10
"""How many leases an agent keeps results that it could not report, for a coordinator that comes back for them."""

Figure = Annotated[float, Meta(ge=0, le=1e12)]
"""A measured figure: no infinity, and not NaN, which would poison every maximum that it meets."""

Stamp = Annotated[int, Meta(ge=-(1 << 62), le=1 << 62)]
"""An instant of a monotonic clock in ns, or the difference between two clocks: sums of two fit into 64 bits."""

Identifier = Annotated[str, Meta(max_length=128)]
"""A run id, or the incarnation of an agent."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """Root of all messages; the tag on the wire is the class name."""


class AgentState(enum.Enum):
    """What an agent says of itself in hello and heartbeats."""

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


class Step(enum.Enum):
    """What an agent is at while it prepares; the value is for people to read."""

    PRELOAD = "preloading"
    CONNECTIONS = "opening connections"


class Preloaded(msgspec.Struct, frozen=True, kw_only=True):
    """What was written before the start. keys: each counts once for each entry of the preload. took_ns: of the process,
    or the agent, that took longest."""

    keys: Tally
    commands: Tally
    bytes_out: Tally
    took_ns: Tally

    @classmethod
    def merge(cls, parts: Iterable[Preloaded | None]) -> Preloaded | None:
        """What all of them wrote together, side by side; None where nobody was to write anything."""
        told = [part for part in parts if part is not None]
        if not told:
            return None
        return cls(
            keys=sum(part.keys for part in told),
            commands=sum(part.commands for part in told),
            bytes_out=sum(part.bytes_out for part in told),
            took_ns=max(part.took_ns for part in told),
        )


class PoolShare(msgspec.Struct, frozen=True):
    """One client instance pool of the fleet, dealt to one agent.

    group: index into `plan.pools`. number: 0-based among all pools of the run. first_thread: 0-based number, among
    all worker threads of the run, of the pool's first thread; its threads are consecutive.
    """

    group: Tally
    number: Tally
    first_thread: Tally


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """One agent's share of the plan; all that it needs to run to the end alone.

    threads_total: worker threads of the whole fleet, by which rate and request count are divided. preloads: whether its
    part of the preload is still to be written. It holds the target's password, so it is never logged and travels
    encrypted.
    """

    plan: Plan
    pools: tuple[PoolShare, ...]
    threads_total: Tally
    preloads: bool = True

    @property
    def threads(self) -> list[int]:
        """The numbers of its worker threads among those of the fleet."""
        return [
            thread
            for share in self.pools
            for thread in range(share.first_thread, share.first_thread + self.plan.pools[share.group].workers_per_pool)
        ]

    def __repr__(self) -> str:
        return f"Assignment(pools={[share.number for share in self.pools]}, threads_total={self.threads_total})"


class Proof(Message, frozen=True, kw_only=True):
    """The first message on a connection. secret: its hash is the incarnation; it is in no log, journal or `repr`.
    connection: counts the control or the metrics connections of this agent process, so that a message which waited on
    an older one is not taken for the newest."""

    secret: Annotated[str, Meta(max_length=LONGEST_SECRET)] = ""
    connection: Tally = 0

    def proves(self, incarnation: str) -> bool:
        """Whether its sender is the agent process of this incarnation."""
        return incarnation_of(self.secret) == incarnation

    def __repr__(self) -> str:
        fields = (name for name in self.__struct_fields__ if name != "secret")
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in fields)})"


class Hello(Proof, frozen=True, kw_only=True):
    """An agent introduces itself, or comes back; `run_id` and `state` say what it still holds of a run. secret: "" from
    agents that speak protocol 3 or less."""

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
    """How often an agent that runs reports. frame_s: seconds in a frame; with 1, each second is sent as soon as it is
    complete. heartbeat_s: seconds from one heartbeat to the next."""

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
    """The metrics connection works in both directions, and frames are accepted on it."""


class Refused(Message, frozen=True, kw_only=True):
    """The agent is not admitted, and why. It exits."""

    reason: str


class StandBy(Message, frozen=True, kw_only=True):
    """The run has all the agents that it needs. This one stays, in case one of them is lost."""


class Prepare(Message, frozen=True, kw_only=True):
    """Preload keys if there are any to preload, build pools, open connections if they are to be prewarmed, and say when
    ready."""

    assignment: Assignment
    plan_hash: str


class Preparing(Message, frozen=True, kw_only=True):
    """Progress of a step: commands of the preload answered, or connections opened, so far, of how many. Commands, and
    not keys: a single list may take millions of them."""

    step: Step
    done: Tally
    total: Tally


class Prepared(Message, frozen=True, kw_only=True):
    """Everything is ready; the next thing wanted is a start instant. preloaded: None where nothing was to be."""

    processes: Tally
    connections_open: Tally
    preloaded: Preloaded | None = None


class Failed(Message, frozen=True, kw_only=True):
    """The agent cannot prepare or go on; one line for people to read."""

    kind: FailureKind
    reason: str


class PoolLeft(NamedTuple):
    """How many operations a pool may still issue. number: as in `PoolShare`."""

    number: Tally
    operations: Tally


class TakeOver(msgspec.Struct, frozen=True, kw_only=True):
    """Where a share goes on that another agent had before. from_ns: how long after the start instant; what was due
    earlier is not sent. left: of each pool of the share, None where the plan has no number of requests."""

    from_ns: Tally
    left: tuple[PoolLeft, ...] | None = None


class Start(Message, frozen=True, kw_only=True):
    """Begin at `t0_ns`, an instant of the coordinator's clock that still lies ahead; in a share that is taken over, at
    the instant that `takeover` says, counted from `t0_ns`, which has passed."""

    t0_ns: Stamp
    takeover: TakeOver | None = None


class Heartbeat(Message, frozen=True, kw_only=True):
    """The agent is alive. sent_ns: agent's clock. offset_ns and rtt_ns: its best estimate so far of the coordinator's
    clock less its own, and the round trip that bounds the error; None before the first reply. lag_ms: how late the
    agent's own loop ran at worst since the last heartbeat. cpu_percent: of one core, agent and workers together;
    cpu_percent_busiest: the busiest of these. host_cpu_percent: of all the machine's cores, whoever used them."""

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
    """Answer to a heartbeat: the agent's stamp returned, with the coordinator's own two."""

    sent_ns: Stamp
    received_ns: Stamp
    replied_ns: Stamp


class WorkerLost(Message, frozen=True, kw_only=True):
    """A worker process of the agent ended before its time; its unreported operations are lost."""

    process: Tally
    exit_code: int | None
    reason: str = ""


class Stop(Message, frozen=True, kw_only=True):
    """End the run now: drain (let operations in flight come to an end), or at once."""

    drain: bool
    reason: str


class MetricsFrame(Message, frozen=True, kw_only=True):
    """One agent's metrics since the frame before. seq counts from 0 per incarnation and run, without gaps. Mostly one
    interval, of as many seconds as `Pace.frame_s` says; a second one when an operation was recorded late; a merged one
    when frames piled up unacknowledged.
    through: the last second of the run that this agent has now reported completely (-1: none yet)."""

    seq: Tally
    through: Annotated[int, Meta(ge=-1)]
    intervals: tuple[IntervalMetrics, ...]


class FrameAck(Message, frozen=True, kw_only=True):
    """Every frame with seq < `next_seq` is in the journal and can be forgotten."""

    next_seq: Tally


class Final(Message, frozen=True, kw_only=True):
    """The agent's share is over, all its frames are sent (`next_seq` of them), and this is what its workers say
    they did.

    issued: operations begun, as counted where they are issued. counted: operations in its frames. start_skew_ns:
    delay of the first operation after its intended time, in a closed loop after the start instant. ran_ns: from the
    start instant to the end of the load: as planned, as cut short, or when the last requested operation was over.
    drained: every worker thread came to its own end.
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


class FinalAck(Message, frozen=True, kw_only=True):
    """Final is in the journal and every frame of it too: the agent may forget the run."""


class Bye(Message, frozen=True, kw_only=True):
    """The agent leaves, on purpose."""

    reason: str


class Dismiss(Message, frozen=True, kw_only=True):
    """The coordinator ends; agents wait for the next one, or exit if told to serve once. exit_code: the run's."""

    exit_code: int


AgentMessage = Hello | Attach | Preparing | Prepared | Failed | Heartbeat | WorkerLost | Final | Bye | MetricsFrame
CoordinatorMessage = (
    Welcome | Refused | Attached | StandBy | Prepare | Start | HeartbeatReply | Stop | FrameAck | FinalAck | Dismiss
)


class WorkerPrepare(Message, frozen=True, kw_only=True):
    """Agent to worker process: build these pools and open what is to be open."""

    run_id: str
    assignment: Assignment
    process: Tally


class WorkerStart(Message, frozen=True, kw_only=True):
    """Agent to worker process: begin at `t0_ns` of this host's clock, or as `takeover` says."""

    t0_ns: Stamp
    takeover: TakeOver | None = None


class WorkerStop(Message, frozen=True, kw_only=True):
    """Agent to worker process: end now; drain, or at once."""

    drain: bool


class WorkerRenew(Message, frozen=True, kw_only=True):
    """Agent to worker process: the load may go on until `until_ns` of this host's `boottime_ns`."""

    until_ns: Stamp


class WorkerMetrics(Message, frozen=True, kw_only=True):
    """Worker process to agent: seconds up to `through` are complete; what was added since the last report."""

    through: Annotated[int, Meta(ge=-1)]
    intervals: tuple[IntervalMetrics, ...]


class WorkerFinal(Message, frozen=True, kw_only=True):
    """Worker process to agent: all threads are done and all metrics reported. Fields as in `Final`. fenced: it ended
    its load by itself, because its lease was not renewed."""

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
    """What every message travels in. run_id: "" outside a run. incarnation: names one agent process, see
    `incarnation_of`; both identify stale messages."""

    run_id: str
    incarnation: str
    message: AgentMessage | CoordinatorMessage
