"""The states of an agent, and what moves it between them.

Theory of operation. An agent works on one run at a time. Its state and its links are independent: links come and go
(`agent.core.link`). On a new link the agent says hello once a second until it is welcome; then it sends a heartbeat
every second or two. `agent.core.session` moves the state by this table:

    state       trigger       next        what happens
    IDLE        PREPARE       PREPARING   worker processes are forked
    PREPARING   READY         PREPARED    prepared is sent
    PREPARING, PREPARED  BREAK    IDLE    the preparation failed: failed is sent, workers are killed
    PREPARING, PREPARED  ABANDON  IDLE    the run is called off, or the lease is over: workers are killed
    PREPARED    START         RUNNING     workers get the start instant
    RUNNING     STOP          DRAINING    workers get the order to drain
    RUNNING     WORKERS_OVER  DONE        final is sent                           (also from DRAINING)
    DONE        RELEASE       IDLE        the coordinator has the results, or their time is over
    DONE        SET_ASIDE     IDLE        another run's coordinator answers; the results are kept
    IDLE        TAKE_UP       DONE        the coordinator of a run with kept results answers; final is sent

From RUNNING to DONE no message is needed: workers end by themselves. Final is repeated until it is acknowledged. If the
coordinator closes the run before it has acknowledged all results, the load stops (STOP) and the results are kept until
a coordinator resumes the run, or a fixed time has passed (RELEASE). If another run's coordinator answers meanwhile, the
results are set aside (`agent.core.kept_results`), and the agent is free for that run.

The table guards the agent's own logic: a pair that neither the table nor `REPEATS` lists raises. A coordinator cannot
reach it with a wrong message. The session compares each message with the state first: it answers or ignores a repeated
message, because a coordinator repeats orders after a lost link, and ignores and counts one that never fits.
"""

from __future__ import annotations

import enum

from common.lifecycle import Lifecycle
from common.protocol.messages import AgentState


class Trigger(enum.Enum):
    """What can move an agent from one state to the next."""

    PREPARE = "prepare"
    READY = "ready"
    BREAK = "break"
    ABANDON = "abandon"
    START = "start"
    STOP = "stop"
    WORKERS_OVER = "workers over"
    RELEASE = "release"
    SET_ASIDE = "set aside"
    TAKE_UP = "take up"


_S, _T = AgentState, Trigger
TRANSITIONS: dict[tuple[AgentState, Trigger], AgentState] = {
    (_S.IDLE, _T.PREPARE): _S.PREPARING,
    (_S.PREPARING, _T.READY): _S.PREPARED,
    (_S.PREPARING, _T.BREAK): _S.IDLE,
    (_S.PREPARED, _T.BREAK): _S.IDLE,
    (_S.PREPARING, _T.ABANDON): _S.IDLE,
    (_S.PREPARED, _T.ABANDON): _S.IDLE,
    (_S.PREPARED, _T.START): _S.RUNNING,
    (_S.RUNNING, _T.STOP): _S.DRAINING,
    (_S.RUNNING, _T.WORKERS_OVER): _S.DONE,
    (_S.DRAINING, _T.WORKERS_OVER): _S.DONE,
    (_S.DONE, _T.RELEASE): _S.IDLE,
    (_S.DONE, _T.SET_ASIDE): _S.IDLE,
    (_S.IDLE, _T.TAKE_UP): _S.DONE,
}
REPEATS = frozenset(
    [
        # The coordinator answers each new metrics connection, also long after the preparation.
        *((state, _T.READY) for state in (_S.PREPARED, _S.RUNNING, _S.DRAINING, _S.DONE)),
        # The load already ends or has ended, and a coordinator, a signal or the lease stops it again.
        *((state, _T.STOP) for state in (_S.DRAINING, _S.DONE)),
        # All workers end before the start, when their lease runs out; START then leads to DONE.
        *((state, _T.WORKERS_OVER) for state in (_S.PREPARING, _S.PREPARED)),
        # Last messages of workers that were given up.
        (_S.DONE, _T.WORKERS_OVER),
    ]
)
"""What may happen in a state without changing it."""
BEFORE_START = (AgentState.PREPARING, AgentState.PREPARED)
"""States in which the failure of one worker ends the assignment: the load has not begun."""
FENCED = (*BEFORE_START, AgentState.RUNNING)
"""States that an agent without a coordinator leaves when its lease is over."""


def agent_lifecycle(name: str) -> Lifecycle[AgentState, Trigger]:
    """The lifecycle of an agent that has just started. name: of the agent, for errors."""
    return Lifecycle(f"agent {name}", AgentState.IDLE, TRANSITIONS, REPEATS)
