"""Events and actions of `coordinator.core.run`, one frozen type each."""

from __future__ import annotations

from dataclasses import dataclass

from common.protocol.messages import Envelope
from coordinator.journal.records import AnyRecord, CleanedUp, CountersRead, Outcome, Reading


@dataclass(frozen=True, slots=True)
class FromAgent:
    """A message of an agent. routing_id: of the connection on which it came."""

    routing_id: bytes
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class LocalAgentExited:
    """A local agent has ended. last_words: the last line that it wrote."""

    pid: int
    host: str
    exit_code: int
    last_words: str = ""


@dataclass(frozen=True, slots=True)
class Counted:
    """The server's counters were read, as `ReadServer` asked."""

    record: CountersRead


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The plan's keys, or some of them, were deleted, as `DeleteKeys` asked."""

    record: CleanedUp


@dataclass(frozen=True, slots=True)
class CalledOff:
    """The coordinator cannot go on with a run that has not begun."""

    exit_code: int


@dataclass(frozen=True, slots=True)
class Interrupted:
    """Ctrl-C or SIGTERM."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes."""


RunEvent = FromAgent | LocalAgentExited | Counted | Cleaned | CalledOff | Interrupted | Tick


@dataclass(frozen=True, slots=True)
class Send:
    """Send on the connection of this routing id."""

    routing_id: bytes
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Introduce:
    """The connection of this routing id is this agent's. metrics: it is the one for frames."""

    routing_id: bytes
    agent_id: str
    metrics: bool = False


@dataclass(frozen=True, slots=True)
class Write:
    """Append to the journal before performing later actions."""

    record: AnyRecord


@dataclass(frozen=True, slots=True)
class ReadServer:
    """Read the server's counters and come back with `Counted`."""

    when: Reading


@dataclass(frozen=True, slots=True)
class DeleteKeys:
    """Delete the keys that the plan may have written, and come back with `Cleaned`."""


@dataclass(frozen=True, slots=True)
class StopDeleting:
    """Delete no more keys; `Cleaned` says how far it came."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Show what the run waits for; total 0: nothing to count."""

    text: str
    done: int = 0
    total: int = 0


@dataclass(frozen=True, slots=True)
class Note:
    """Show an event to the user. trouble: also with --quiet. of_agent: an agent caused it, so their number is not
    limited."""

    text: str
    trouble: bool = False
    of_agent: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """The run is over. Results that still come may change its outcome: the last `End` counts. text: why it did not end
    as planned, or "". outcome None: it never began."""

    exit_code: int
    text: str
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class Leave:
    """Close the sockets: every agent knows of the end, or had the time to."""


Action = Send | Introduce | Write | ReadServer | DeleteKeys | StopDeleting | Progress | Note | End | Leave
