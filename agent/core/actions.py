"""Events and actions of `agent.core.session`, one frozen type each."""

from __future__ import annotations

from dataclasses import dataclass, field

from agent.core.assignment_checks import NO_LIMITS, Capacity
from common.protocol.messages import Assignment, Envelope, WorkerMessage, WorkerOrder, incarnation_of


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The control link's handshake succeeded."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The control link was lost."""


@dataclass(frozen=True, slots=True)
class MetricsLinkUp:
    """The metrics link's handshake succeeded; messages on an earlier link may be lost."""


@dataclass(frozen=True, slots=True)
class MetricsLinkDown:
    """There is no metrics link: it was lost, or there never was one. cause: for the user."""

    cause: str


@dataclass(frozen=True, slots=True)
class LinkRefused:
    """The control link's handshake failed."""


@dataclass(frozen=True, slots=True)
class Examined:
    """The coordinator's address was examined, because there is no link. obstacle: why, "" if none was found. lasting:
    waiting does not help."""

    obstacle: str = ""
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class Received:
    """A message of the coordinator, from either link."""

    envelope: Envelope


@dataclass(frozen=True, slots=True)
class FromWorker:
    """A worker process reports."""

    process: int
    message: WorkerMessage


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """A worker process has ended. exit_code as in subprocess: negative for a signal."""

    process: int
    exit_code: int | None


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The system did not start a worker process. reason: why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Terminated:
    """SIGTERM or SIGINT."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes; what the loop measured since the tick before. suspended_ns: how long the machine was suspended,
    which the time that comes with events does not count."""

    cpu_percent: float = 0.0
    cpu_percent_busiest: float = 0.0
    host_cpu_percent: float = 0.0
    lag_ms: float = 0.0
    suspended_ns: int = 0


AgentEvent = (
    LinkUp
    | LinkDown
    | LinkRefused
    | Examined
    | MetricsLinkUp
    | MetricsLinkDown
    | Received
    | FromWorker
    | WorkerExited
    | SpawnFailed
    | Terminated
    | Tick
)


@dataclass(frozen=True, slots=True)
class Send:
    """Send on the control link, or on the metrics link."""

    envelope: Envelope
    metrics: bool = False


@dataclass(frozen=True, slots=True)
class ConnectMetrics:
    """Open the metrics link, if it is not open."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Spawn one worker process for each assignment; process numbers are positions."""

    run_id: str
    assignments: tuple[Assignment, ...]


@dataclass(frozen=True, slots=True)
class OrderWorkers:
    """Send an order to all living worker processes."""

    order: WorkerOrder


@dataclass(frozen=True, slots=True)
class RenewLease:
    """Let all living worker processes continue their load until this instant of the monotonic clock."""

    until_ns: int


@dataclass(frozen=True, slots=True)
class KillWorkers:
    """Kill all worker processes. Their exits are not reported."""


@dataclass(frozen=True, slots=True)
class Say:
    """Show a line to the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Exit:
    """Leave, with this exit code."""

    code: int
    text: str = ""


Action = Send | ConnectMetrics | Spawn | OrderWorkers | RenewLease | KillWorkers | Say | Exit


@dataclass(frozen=True, slots=True)
class Identity:
    """This agent. name "": the coordinator chooses one. secret: random, from this process; proves its incarnation.
    endpoint: where it joins. once: exit after one run. wait_ns: give up when no coordinator has answered for this long;
    None for never. capacity: of this machine."""

    name: str
    host: str
    pid: int
    processes: int
    secret: str = field(repr=False)
    version: str
    endpoint: str = ""
    once: bool = False
    wait_ns: int | None = None
    capacity: Capacity = NO_LIMITS

    @property
    def incarnation(self) -> str:
        """Names this agent process towards the coordinator and in journals."""
        return incarnation_of(self.secret)
