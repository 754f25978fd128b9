"""Where a run can go, and who may still write to the target.

Theory of operation. The run moves through the phases below, and nothing but `Run._moves` changes the phase. Agents are
kept in step by comparing, at each of their heartbeats, the state they report with the phase: one that missed an order
(its link was down) receives the order again, so no single message matters. A frame is written to the journal before it
is acknowledged.

    phase       trigger     next        what happens
    GATHERING   QUORUM      PREPARING   shares are dealt, prepare is sent
    PREPARING   READY       COUNTING    the run is written down, the server's counters are read
    COUNTING    COUNTED     RUNNING     start is sent to all
    RUNNING     STOP        DRAINING    stop is sent to all
    RUNNING     ALL_OVER    SETTLING    the server's counters are read again     (also from DRAINING)
    SETTLING    COUNTED     CLOSED      the end is written down, agents are dismissed
    SETTLING    CLEAN       CLEANING    the plan's keys are deleted, where it says so
    CLEANING    CLEANED     CLOSED      as from SETTLING
    COLLECTING  ALL_OVER    CLOSED      as from SETTLING; an ended run that is resumed begins here
    COLLECTING  CLEAN       CLEANING    the plan's keys are deleted, if the run ended with keys left
    any of the first three   GIVE_UP    CLOSED   agents are dismissed; nothing was written, or an aborted run

When a run is over. Counters are read and keys are deleted only when no agent may write any more, and the end is written
down only when every agent has reported, or had the time to. What is known of an agent that takes part:

    what was heard               may write until                            its results are awaited until
    a heartbeat at work          lease + drain + reserve after our answer   the same, and COME_BACK_NS longer
    (a load with a planned end)  planned end + drain + reserve, if earlier  as above
    a heartbeat DONE, a Final    then                                       its Final; DONE: as above
    goodbye, its process exited  then                                       then
    nothing, ever (resumed)      as if heard when the run was resumed       as above

The lease makes the first row a proof. An agent counts its lease from when it sent a heartbeat, and renews it only when
the answer comes. We have received that heartbeat, so it was sent before; an answer that a bad network delivers late
extends nothing. Worker processes enforce the lease by their own clocks, also while the agent's own process is stopped
(`agent.worker.pipe`). What no clock can bound is a worker process that is itself stopped: it may finish the operations
it had begun once it goes on. If its agent is a local one that died, its process group is killed.

An agent that is heard but does not end is given up: it gets no more answers, so the first row applies (`revoke`).

The wait ends early if the person interrupts twice. Then agents may still write: the record of the second reading names
them, the ledger does not compare what the server counted, and keys are left. An agent of another run that is at work is
waited for too, no longer than one of ours would be, and then named in the same way.

Results that come in SETTLING, CLEANING or CLOSED still enter the journal. In CLOSED, each is followed by the end of the
run again, as it now is: in a journal the last RunClosed counts. When the coordinator has left, agents keep what they
could not report; `--resume` on the ended run collects it (COLLECTING).
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


TRANSITIONS: dict[tuple[Phase, Trigger], Phase] = {
    (Phase.GATHERING, Trigger.QUORUM): Phase.PREPARING,
    (Phase.PREPARING, Trigger.READY): Phase.COUNTING,
    (Phase.COUNTING, Trigger.COUNTED): Phase.RUNNING,
    (Phase.RUNNING, Trigger.STOP): Phase.DRAINING,
    (Phase.RUNNING, Trigger.ALL_OVER): Phase.SETTLING,
    (Phase.DRAINING, Trigger.ALL_OVER): Phase.SETTLING,
    (Phase.SETTLING, Trigger.COUNTED): Phase.CLOSED,
    (Phase.SETTLING, Trigger.CLEAN): Phase.CLEANING,
    (Phase.CLEANING, Trigger.CLEANED): Phase.CLOSED,
    (Phase.COLLECTING, Trigger.ALL_OVER): Phase.CLOSED,
    (Phase.COLLECTING, Trigger.CLEAN): Phase.CLEANING,
    (Phase.GATHERING, Trigger.GIVE_UP): Phase.CLOSED,
    (Phase.PREPARING, Trigger.GIVE_UP): Phase.CLOSED,
    (Phase.COUNTING, Trigger.GIVE_UP): Phase.CLOSED,
}
UNDER_WAY = (Phase.RUNNING, Phase.DRAINING)
"""Phases in which load may be running."""
OVER_BUT_OPEN = (Phase.SETTLING, Phase.CLEANING)
"""Phases in which no load is expected any more; an agent that was taken for lost may come back at work all the same."""
TAKES_RESULTS = (*UNDER_WAY, *OVER_BUT_OPEN, Phase.COLLECTING, Phase.CLOSED)
"""Phases in which frames and last words of agents enter the journal."""
