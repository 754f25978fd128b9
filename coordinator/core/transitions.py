"""The phases of a run, and which agents may still write to the target.

Theory of operation. The run moves through the phases below, and only `RunState.move` changes the phase. At each
heartbeat, the state that the agent reports is compared with the phase. An agent that missed an order, because its link
was down, receives it again, so the loss of one message changes nothing. A frame is written to the journal before it is
acknowledged.

    phase       trigger     next        what happens
    GATHERING   QUORUM      PREPARING   the plan is dealt, prepare is sent
    PREPARING   READY       COUNTING    the run is written down, the server's counters are read
    COUNTING    COUNTED     RUNNING     start is sent to all
    RUNNING     STOP        DRAINING    stop is sent to all
    RUNNING     ALL_OVER    SETTLING    the server's counters are read again     (also from DRAINING)
    SETTLING    COUNTED     DISMISSING  the end is written, dismiss is sent to all
    SETTLING    CLEAN       CLEANING    the plan's keys are deleted, if it says so
    CLEANING    CLEANED     DISMISSING  as from SETTLING
    COLLECTING  ALL_OVER    DISMISSING  as from SETTLING; an ended run that is resumed begins here
    COLLECTING  CLEAN       CLEANING    the plan's keys are deleted, if the run ended with keys left
    any of the first three   GIVE_UP    DISMISSING   dismiss is sent to all; nothing was written, or an aborted run
    RUNNING     GIVE_UP     DISMISSING  the same, when the start cannot be written down
    DISMISSING  ANSWERED    CLOSED      every agent has answered, or had three seconds: the sockets are closed

When a run is over. Counters are read and keys are deleted only when no agent can write to the target any more. The end
is written only when every agent has reported, or had the time to. For an agent that takes part:

    what was heard               may write until                            its results are awaited until
    a heartbeat at work          lease + drain + reserve after our answer   the same, and COME_BACK_NS longer
    (a load with a planned end)  planned end + drain + reserve, if earlier  as above
    a heartbeat DONE, a Final    then                                       its Final; DONE: as above
    goodbye, its process exited  then                                       then
    nothing, ever (resumed)      as if heard when the run was resumed       as above

The lease makes the first row a proof. An agent counts its lease from when it sent a heartbeat, and renews it only when
the answer comes. We have received that heartbeat, so it was sent before; an answer that a bad network delivers late
extends nothing. Worker processes enforce the lease by their own clocks, even while the agent's own process is stopped
(`agent.worker.pipe`). No clock limits a worker process that is stopped itself: when it continues, it may finish the
operations that it had begun. If a local agent dies, its process group is killed.

An agent that is heard but does not end is given up: it gets no more answers, so the first row applies (`revoke`).

The wait ends early if the user interrupts twice. Then agents may still write: the record of the second reading names
them, the ledger does not compare the server's counters, and keys stay. The run also waits for an agent that still works
for another run, for as long as for its own agents, and then names it in the same way.

Why DISMISSING takes time: a dismissal that is on its way when a link goes down is lost, and the agent would wait for a
coordinator that has left. So agents that do not answer receive it again.

Results that come in SETTLING, CLEANING or DISMISSING still enter the journal. In DISMISSING, the end of the run is then
written again with the new outcome: the last RunClosed of a journal counts. When the coordinator has left, agents keep
the results that they could not report; `--resume` on the ended run collects them (COLLECTING).
"""

from __future__ import annotations

import enum


class Phase(enum.Enum):
    """Where a run is."""

    GATHERING = "gathering"
    PREPARING = "preparing"
    COUNTING = "counting"
    RUNNING = "running"
    DRAINING = "draining"
    SETTLING = "settling"
    CLEANING = "cleaning"
    COLLECTING = "collecting"
    DISMISSING = "dismissing"
    CLOSED = "closed"


class Trigger(enum.Enum):
    """What can move a run from one phase to the next."""

    QUORUM = "quorum"
    READY = "ready"
    COUNTED = "counted"
    STOP = "stop"
    ALL_OVER = "all over"
    CLEAN = "clean"
    CLEANED = "cleaned"
    GIVE_UP = "give up"
    ANSWERED = "answered"


TRANSITIONS: dict[tuple[Phase, Trigger], Phase] = {
    (Phase.GATHERING, Trigger.QUORUM): Phase.PREPARING,
    (Phase.PREPARING, Trigger.READY): Phase.COUNTING,
    (Phase.COUNTING, Trigger.COUNTED): Phase.RUNNING,
    (Phase.RUNNING, Trigger.STOP): Phase.DRAINING,
    (Phase.RUNNING, Trigger.ALL_OVER): Phase.SETTLING,
    (Phase.DRAINING, Trigger.ALL_OVER): Phase.SETTLING,
    (Phase.SETTLING, Trigger.COUNTED): Phase.DISMISSING,
    (Phase.SETTLING, Trigger.CLEAN): Phase.CLEANING,
    (Phase.CLEANING, Trigger.CLEANED): Phase.DISMISSING,
    (Phase.COLLECTING, Trigger.ALL_OVER): Phase.DISMISSING,
    (Phase.COLLECTING, Trigger.CLEAN): Phase.CLEANING,
    (Phase.GATHERING, Trigger.GIVE_UP): Phase.DISMISSING,
    (Phase.PREPARING, Trigger.GIVE_UP): Phase.DISMISSING,
    (Phase.COUNTING, Trigger.GIVE_UP): Phase.DISMISSING,
    (Phase.RUNNING, Trigger.GIVE_UP): Phase.DISMISSING,
    (Phase.DISMISSING, Trigger.ANSWERED): Phase.CLOSED,
}
REPEATS = frozenset(
    {
        # The load ends or has ended, and the user interrupts the run.
        (Phase.DRAINING, Trigger.STOP),
        (Phase.SETTLING, Trigger.STOP),
    }
)
"""Pairs that are expected and change nothing."""
UNDER_WAY = (Phase.RUNNING, Phase.DRAINING)
"""Phases in which load may be running."""
OVER_BUT_OPEN = (Phase.SETTLING, Phase.CLEANING)
"""Phases after the load. A lost agent may still come back with its load running."""
TAKES_RESULTS = (*UNDER_WAY, *OVER_BUT_OPEN, Phase.COLLECTING, Phase.DISMISSING)
"""Phases in which frames and `Final` enter the journal."""
