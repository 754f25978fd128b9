"""An agent as the coordinator sees it: its states, the events that change them, and all known facts. Pure.

Theory of operation. The run deals shares of the plan to agents. An agent without a share stands by. An agent with a
share prepares, works, and reports its results (`Final`). Only `coordinator.core.registry` changes a member.

    state            trigger      next             what happened
    STANDING_BY      DEAL         PREPARING        it was dealt a share
    STANDING_BY      OFFER        OFFERED          it was offered a share that another agent lost
    OFFERED          READY        OFFER_READY      it has prepared the share
    OFFER_READY      UNREADY      OFFERED          it gave up what it had prepared, and prepares again
    OFFERED, OFFER_READY DECLINE  STANDING_BY      it cannot take the share over
    OFFER_READY      START        WORKING          it took the share over
    PREPARING        READY        PREPARED         it is ready to start
    PREPARED         UNREADY      PREPARING        it gave up what it had prepared, and prepares again
    PREPARED         START        WORKING          it received the start instant
    PREPARING, PREPARED  SILENCE  MISSING          no message for too long: the run ends, or its share moves
    MISSING          SHARE_MOVED  STANDING_BY      another agent has its share
    WORKING          SILENCE      SILENT           no message for too long; it may come back
    SILENT           HEARD        WORKING          it is back
    SILENT           FORFEIT      FORFEITED        it is fenced: its share is free for another agent
    FORFEITED        HEARD        RETURNED         it is back without a share: it may only report
    RETURNED         SILENCE      FORFEITED        no message for too long
    WORKING, RETURNED    REVOKE   REVOKED          it is heard, but does not end: without answers, its lease runs out
    WORKING, RETURNED, REVOKED, LEFT  EXCLUDE  EXCLUDED   it sent invalid data: nothing counts that it sends
    any with a share     LEAVE    LEFT             its process ended, or it has forgotten the run
    WORKING, RETURNED, REVOKED, LEFT  FINAL  FINISHED     its results are in the journal, and it knows
    REPORTED         FINAL        FINISHED         the same; a coordinator before us wrote the results down
    REPORTED         LEAVE        FINISHED         it left, so nothing is sent to it

`LEFT` is not the end: the exit of a process may be noticed before its last messages are read. A run that is resumed
begins with members that are WORKING (heard or not), RETURNED (another agent has their share), REPORTED or LEFT.

A member is *fenced* from the instant at which it certainly writes nothing to the target any more. The rules are in
`coordinator.core.transitions`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from common.lifecycle import Lifecycle
from common.protocol.messages import (
    AgentState,
    Assignment,
    Final,
    PoolShare,
    Preloaded,
    PreparationStep,
    Preparing,
    TakeOver,
)
from common.units import NS_PER_S
from coordinator.journal.records import AgentEnded, AgentFacts, AgentOutcome

LOST_AFTER_NS = 4 * NS_PER_S
"""An agent sends a heartbeat every second or two. After this silence, it or its connection is gone."""
FRESH_NS = 5 * NS_PER_S // 2
"""An agent that missed two heartbeats gets no share: waiting for the next one costs less than a failed run."""
OVERTIME_NS = 15 * NS_PER_S
"""After the drain, an agent kills worker processes that have not ended within 10 s; the rest is reserve."""
COME_BACK_NS = 5 * NS_PER_S
"""An agent whose load has ended has this long to report before its results are lost: a reconnect takes a second."""


class MemberState(enum.Enum):
    """The state of an agent in the run. `AgentState` is the state that the agent reports."""

    STANDING_BY = "standing by"
    OFFERED = "offered"
    OFFER_READY = "offer ready"
    PREPARING = "preparing"
    PREPARED = "prepared"
    MISSING = "missing"
    WORKING = "working"
    SILENT = "silent"
    FORFEITED = "forfeited"
    RETURNED = "returned"
    REVOKED = "revoked"
    EXCLUDED = "excluded"
    LEFT = "left"
    REPORTED = "reported"
    FINISHED = "finished"


class MemberTrigger(enum.Enum):
    """Events that change the state of a member."""

    DEAL = "deal"
    OFFER = "offer"
    READY = "ready"
    UNREADY = "unready"
    DECLINE = "decline"
    START = "start"
    SILENCE = "silence"
    HEARD = "heard"
    SHARE_MOVED = "share moved"
    FORFEIT = "forfeit"
    REVOKE = "revoke"
    EXCLUDE = "exclude"
    LEAVE = "leave"
    FINAL = "final"


_S, _T = MemberState, MemberTrigger
_REPORTS = (_S.WORKING, _S.RETURNED, _S.REVOKED, _S.LEFT)
MEMBER_TRANSITIONS: dict[tuple[MemberState, MemberTrigger], MemberState] = {
    (_S.STANDING_BY, _T.DEAL): _S.PREPARING,
    (_S.STANDING_BY, _T.OFFER): _S.OFFERED,
    (_S.OFFERED, _T.READY): _S.OFFER_READY,
    (_S.OFFER_READY, _T.UNREADY): _S.OFFERED,
    (_S.OFFERED, _T.DECLINE): _S.STANDING_BY,
    (_S.OFFER_READY, _T.DECLINE): _S.STANDING_BY,
    (_S.OFFER_READY, _T.START): _S.WORKING,
    (_S.PREPARING, _T.READY): _S.PREPARED,
    (_S.PREPARED, _T.UNREADY): _S.PREPARING,
    (_S.PREPARED, _T.START): _S.WORKING,
    (_S.PREPARING, _T.SILENCE): _S.MISSING,
    (_S.PREPARED, _T.SILENCE): _S.MISSING,
    (_S.MISSING, _T.SHARE_MOVED): _S.STANDING_BY,
    (_S.WORKING, _T.SILENCE): _S.SILENT,
    (_S.SILENT, _T.HEARD): _S.WORKING,
    (_S.SILENT, _T.FORFEIT): _S.FORFEITED,
    (_S.FORFEITED, _T.HEARD): _S.RETURNED,
    (_S.RETURNED, _T.SILENCE): _S.FORFEITED,
    (_S.WORKING, _T.REVOKE): _S.REVOKED,
    (_S.RETURNED, _T.REVOKE): _S.REVOKED,
    **{(state, _T.EXCLUDE): _S.EXCLUDED for state in _REPORTS},
    **{
        (state, _T.LEAVE): _S.LEFT
        for state in (_S.PREPARING, _S.PREPARED, _S.WORKING, _S.SILENT, _S.FORFEITED, _S.RETURNED, _S.REVOKED)
    },
    **{(state, _T.FINAL): _S.FINISHED for state in _REPORTS},
    (_S.REPORTED, _T.FINAL): _S.FINISHED,
    (_S.REPORTED, _T.LEAVE): _S.FINISHED,
}
MEMBER_REPEATS: frozenset[tuple[MemberState, MemberTrigger]] = frozenset(
    [
        # An agent repeats `Prepared` when it receives the same order again, and a late one may come at any time.
        *((state, _T.READY) for state in (_S.PREPARED, _S.OFFER_READY, *_REPORTS, _S.REPORTED, _S.FINISHED)),
        # Its heartbeats say so until it prepares again.
        *((state, _T.UNREADY) for state in (_S.PREPARING, _S.OFFERED)),
        # It says goodbye and then its process ends; or its heartbeats go on without the run.
        *((state, _T.LEAVE) for state in (_S.LEFT, _S.EXCLUDED, _S.FINISHED)),
        # These stay fenced; takeovers look at each event.
        *((state, _T.FORFEIT) for state in (*_REPORTS[1:], _S.EXCLUDED, _S.FORFEITED, _S.REPORTED, _S.FINISHED)),
        # It repeats `Final` until it is acknowledged.
        (_S.FINISHED, _T.FINAL),
    ]
)
WITHOUT_SHARE = frozenset({_S.STANDING_BY, _S.OFFERED, _S.OFFER_READY})
OFFERS = frozenset({_S.OFFERED, _S.OFFER_READY})
IS_READY = frozenset({_S.PREPARED, _S.OFFER_READY})
UNHEARD = frozenset({_S.SILENT, _S.FORFEITED})
"""States from which a message brings a member back."""
AT_WORK = frozenset({_S.WORKING, _S.RETURNED})
"""States of a member that is heard and has not reported."""
GONE = frozenset({_S.REVOKED, _S.EXCLUDED, _S.LEFT})
"""States in which nothing more is expected from a member; `Member.gone` says why."""
LOST = UNHEARD | GONE | {_S.MISSING}
"""States in which a member cannot be relied on."""


@dataclass(frozen=True, slots=True)
class Fence:
    """When agents stop their load without any message. end_ns: the planned end on our clock, None for a load without
    one. closing_ns: time for operations in flight after that, until stuck worker processes are killed."""

    lease_ns: int
    closing_ns: int
    end_ns: int | None

    def passed_ns(self, renewed_ns: int) -> int:
        """When an agent whose lease was last renewed at this instant has certainly stopped."""
        stops_ns = renewed_ns + self.lease_ns
        return (stops_ns if self.end_ns is None else min(stops_ns, self.end_ns)) + self.closing_ns


@dataclass(slots=True)
class HostFigures:
    """Figures of an agent's heartbeats: the last CPU use, and the worst figures of the run."""

    cpu_percent: float = 0.0
    cpu_percent_max: float = 0.0
    cpu_percent_busiest: float = 0.0
    host_cpu_percent_sum: float = 0.0
    host_cpu_percents: int = 0
    lag_ms_max: float = 0.0


@dataclass(slots=True)
class Member:
    """One agent incarnation. Read it anywhere; the registry alone changes it.

    routing_id, metrics_id: the newest connections on which the agent proved itself, for control and for metrics; b""
    for none. connection, metrics_connection: the agent's own numbers for them. heard_ns: when its last message came.

    reported: the state that the agent says it is in. gone: why nothing more is expected. next_seq: the frame wanted
    next. dealt: its pools, in a run that is resumed and in a takeover. workers_lost: numbers of dead worker processes.
    steps: how far its preparation is; progressed_ns: when that last changed. preloaded: what it wrote before the start.

    renewed_ns: its lease counts from here at the latest, because no heartbeat that we answered was sent later.
    at_rest_ns: since when its worker processes are known to have ended, None while they may write. returned_ns: when it
    came back after a silence. order_sent_ns: when it was last sent an order.

    offered: the share that it was offered; offered_by: id of the agent that lost it. unfit_until_ns: it gets no offer
    before. takeover: where the share that it took over goes on. replaced_by: id of the agent that took its share over.
    """

    agent_id: str
    incarnation: str
    routing_id: bytes
    host: str
    pid: int
    processes: int
    heard_ns: int
    lifecycle: Lifecycle[MemberState, MemberTrigger]
    connection: int = 0
    metrics_id: bytes = b""
    metrics_connection: int = 0
    reported: AgentState = AgentState.IDLE
    gone: str = ""
    next_seq: int = 0
    final: Final | None = None
    dealt: tuple[PoolShare, ...] = ()
    workers_lost: set[int] = field(default_factory=set)
    steps: dict[PreparationStep, Preparing] = field(default_factory=dict)
    progressed_ns: int = 0
    preloaded: Preloaded | None = None
    renewed_ns: int = 0
    at_rest_ns: int | None = None
    returned_ns: int = 0
    order_sent_ns: int = 0
    offered: tuple[Assignment, ...] = ()
    offered_by: str = ""
    unfit_until_ns: int = 0
    takeover: TakeOver | None = None
    replaced_by: str = ""
    offset_ns: int | None = None
    rtt_ns: int | None = None
    figures: HostFigures = field(default_factory=HostFigures)

    @property
    def state(self) -> MemberState:
        """Its state in the run."""
        return self.lifecycle.state

    @property
    def takes_part(self) -> bool:
        """Whether it has, or had, a share of the run."""
        return self.state not in WITHOUT_SHARE

    @property
    def is_ready(self) -> bool:
        """Whether it has prepared a share, and waits for its start."""
        return self.state in IS_READY

    @property
    def is_at_work(self) -> bool:
        """Whether it is heard, and has results to report."""
        return self.state in AT_WORK

    @property
    def is_lost(self) -> bool:
        """Whether it is silent or gone without its results."""
        return self.state in LOST

    @property
    def has_lost_share(self) -> bool:
        """Whether no agent works on its share any more, although the run was not stopped."""
        if self.final is not None:
            return bool(self.final.reason)
        return self.is_lost or self.state is MemberState.RETURNED

    def knows_clock(self, rtt_ns: float) -> bool:
        """Whether its clock has been compared with ours, in a round trip of no more than this."""
        return self.offset_ns is not None and self.rtt_ns is not None and self.rtt_ns <= rtt_ns

    def is_fresh(self, now_ns: int) -> bool:
        """Whether it was heard recently enough to get a share."""
        return now_ns - self.heard_ns <= FRESH_NS

    def may_write_until_ns(self, fence: Fence) -> int:
        """Until when it may still write to the target, as far as we know now. Each answered heartbeat moves this
        instant. After it, the agent is fenced: another agent can have its share."""
        return fence.passed_ns(self.renewed_ns) if self.at_rest_ns is None else self.at_rest_ns

    def is_fenced(self, now_ns: int, fence: Fence) -> bool:
        """Whether it certainly writes nothing to the target any more."""
        return now_ns >= self.may_write_until_ns(fence)

    def awaited_until_ns(self, fence: Fence) -> int:
        """Until when the run waits for its results, as far as we know now."""
        if self.final is not None:
            knows = self.state is MemberState.FINISHED or self.reported is AgentState.IDLE
            return self.heard_ns if knows else self.heard_ns + 2 * COME_BACK_NS
        if self.state in GONE:
            return self.may_write_until_ns(fence)
        # An agent that never reached this coordinator has to find it first.
        return max(self.may_write_until_ns(fence), self.heard_ns + COME_BACK_NS) + COME_BACK_NS

    def is_over(self, now_ns: int, fence: Fence) -> bool:
        """Whether the run does not wait for it any more: it has reported; or it is fenced, and gone or silent although
        it had the time to come back."""
        return (self.is_lost or self.final is not None) and now_ns >= self.awaited_until_ns(fence)

    def facts(self, pools: tuple[PoolShare, ...]) -> AgentFacts:
        """For the journal."""
        return AgentFacts(
            agent_id=self.agent_id,
            incarnation=self.incarnation,
            host=self.host,
            processes=self.processes,
            pools=pools,
            preloaded=self.preloaded,
        )

    def noted(self, end: AgentOutcome, reason: str) -> AgentEnded:
        """The record of how it ended."""
        figures = self.figures
        samples = figures.host_cpu_percents
        return AgentEnded(
            agent_id=self.agent_id,
            state=end,
            reason=reason,
            final=self.final,
            clock_offset_us=None if self.offset_ns is None else self.offset_ns / 1e3,
            clock_rtt_us=None if self.rtt_ns is None else self.rtt_ns / 1e3,
            cpu_percent_max=figures.cpu_percent_max,
            cpu_percent_busiest=figures.cpu_percent_busiest,
            host_cpu_percent_mean=figures.host_cpu_percent_sum / samples if samples else None,
            lag_ms_max=figures.lag_ms_max,
            has_left=self.state is MemberState.LEFT,
        )
