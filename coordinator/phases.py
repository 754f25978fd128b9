"""Where a run can go.

Theory of operation. The run moves through the phases below, and nothing but `Run._moves` changes the phase. Agents are
kept in step by comparing, at each of their heartbeats, the state they report with the phase: one that missed an order
(its link was down) is told again, so no single message matters. A frame is written to the journal before it is
acknowledged.

    phase       trigger     next        what happens
    GATHERING   QUORUM      PREPARING   shares are dealt, prepare is sent
    PREPARING   READY       COUNTING    the run is written down, the server's counters are read
    COUNTING    COUNTED     RUNNING     start is sent to all
    RUNNING     STOP        DRAINING    stop is sent to all
    RUNNING     ALL_OVER    SETTLING    the server's counters are read again     (also from DRAINING)
    SETTLING    COUNTED     CLOSED      the end is written down, agents are dismissed
    SETTLING    CLEAN       CLEANING    the plan's keys are deleted, where it says so
    CLEANING    CLEANED     CLOSED      as from SETTLING
    any of the first three   GIVE_UP    CLOSED   agents are dismissed; nothing was written, or an aborted run
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
    (Phase.GATHERING, Trigger.GIVE_UP): Phase.CLOSED,
    (Phase.PREPARING, Trigger.GIVE_UP): Phase.CLOSED,
    (Phase.COUNTING, Trigger.GIVE_UP): Phase.CLOSED,
}
UNDER_WAY = (Phase.RUNNING, Phase.DRAINING)
"""Phases in which load may be running."""
OVER_BUT_OPEN = (Phase.SETTLING, Phase.CLEANING)
"""Phases in which nobody's load is waited for any more; whoever was taken for lost may still be at it."""
