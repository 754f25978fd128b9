"""Where an agent's part of a run can go.

Theory of operation. Two things go on side by side. The link comes and goes (`agent.core.link`): whenever it is up and
the agent is not welcome yet, the agent says hello once a second; once welcome, a heartbeat leaves every second or two.
The run moves through the states below (`agent.core.session`). Once `RUNNING`, no message is needed to get to `DONE`:
workers end by themselves. `Final` is repeated until it is acknowledged. A coordinator that closes the run before it has
acknowledged everything stops the load (STOP), and the results are kept: until a coordinator resumes the run and takes
them, or nobody has come for a long time (RELEASE). If the coordinator of another run answers in the meantime, the
results are set aside (`agent.core.kept_results`), and the agent is free for that run.

    state       trigger      next        what happens
    IDLE        PREPARE      PREPARING   worker processes are forked
    PREPARING   READY        PREPARED    prepared is sent
    PREPARING   BROKEN       IDLE        failed is sent, workers are killed      (also from PREPARED)
    PREPARING   ABANDON      IDLE        workers are killed                      (also from PREPARED)
    PREPARED    START        RUNNING     workers get the start instant
    RUNNING     STOP         DRAINING    workers are told to drain
    RUNNING     WORKERS_OVER DONE        final is sent                           (also from DRAINING)
    DONE        RELEASE      IDLE        the run is forgotten
    DONE        SET_ASIDE    IDLE        another coordinator answers; the results are kept
    IDLE        TAKE_UP      DONE        the coordinator of a run with kept results answers; final is sent

A message that repeats what is already so (a second prepare, a second start) finds no row here, and changes nothing: the
coordinator repeats itself after a lost link.
"""

from __future__ import annotations

import enum

from common.protocol.messages import AgentState


class Trigger(enum.Enum):
    """What can move the run from one state to the next."""

    PREPARE = "prepare"
    READY = "ready"
    BROKEN = "broken"
    ABANDON = "abandon"
    START = "start"
    STOP = "stop"
    WORKERS_OVER = "workers over"
    RELEASE = "release"
    SET_ASIDE = "set aside"
    TAKE_UP = "take up"


TRANSITIONS: dict[tuple[AgentState, Trigger], AgentState] = {
    (AgentState.IDLE, Trigger.PREPARE): AgentState.PREPARING,
    (AgentState.PREPARING, Trigger.READY): AgentState.PREPARED,
    (AgentState.PREPARING, Trigger.BROKEN): AgentState.IDLE,
    (AgentState.PREPARED, Trigger.BROKEN): AgentState.IDLE,
    (AgentState.PREPARING, Trigger.ABANDON): AgentState.IDLE,
    (AgentState.PREPARED, Trigger.ABANDON): AgentState.IDLE,
    (AgentState.PREPARED, Trigger.START): AgentState.RUNNING,
    (AgentState.RUNNING, Trigger.STOP): AgentState.DRAINING,
    (AgentState.RUNNING, Trigger.WORKERS_OVER): AgentState.DONE,
    (AgentState.DRAINING, Trigger.WORKERS_OVER): AgentState.DONE,
    (AgentState.DONE, Trigger.RELEASE): AgentState.IDLE,
    (AgentState.DONE, Trigger.SET_ASIDE): AgentState.IDLE,
    (AgentState.IDLE, Trigger.TAKE_UP): AgentState.DONE,
}
