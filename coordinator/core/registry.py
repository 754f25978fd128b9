"""Who is in the fleet, when each was last heard, and until when it may still write to the target. Pure.

An agent is known by its incarnation, the hash of a secret that its process made up when it started. Who knows only the
incarnation, which is in journals, proves nothing: a connection is the agent's once the secret was sent on it
(`Registry.speaker`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from common.protocol.messages import (
    AgentState,
    Assignment,
    Attach,
    Envelope,
    Final,
    Heartbeat,
    Hello,
    MetricsFrame,
    PoolShare,
    Preloaded,
    Prepared,
    Preparing,
    Proof,
    Step,
    TakeOver,
)
from common.units import NS_PER_S, clipped
from coordinator.core.records import AgentEnd, AgentFacts, AgentNoted
from coordinator.core.shares import AgentCapacity

LOST_AFTER_NS = 4 * NS_PER_S
"""An agent sends a heartbeat every second or two; so much silence means that it, or the way to it, is gone."""
FRESH_NS = 5 * NS_PER_S // 2
"""One that has missed two heartbeats is dealt no share: to wait until it is heard again costs less than a run."""
LONGEST_NAME, LONGEST_HOST = 64, 255
LARGE_FLEET = 64
"""With more agents than this, the run moves on at ticks only: a look at every agent for each message of every agent
would keep a large fleet from starting."""
SPARE_MEMBERS = 1000
"""How many agents may be joined beside twice those that a run expects."""
OVERTIME_NS = 15 * NS_PER_S
"""After the drain, an agent that runs kills worker processes that have not ended within 10 s; the rest is reserve."""
COME_BACK_NS = 5 * NS_PER_S
"""An agent whose load has ended has this long to report before its results are lost: a reconnect takes a second."""
UNFIT_NS = 10 * NS_PER_S
"""An agent that could not take a share over is offered none for this long."""
_NAMELESS = "agent"
"""What an agent is called that has no name, on a host that has none."""


@dataclass(frozen=True, slots=True)
class Fence:
    """When agents stop their load by themselves, without any message. end_ns: the planned end on our clock, None for a
    load without one. closing_ns: what operations in flight get after that, until stuck worker processes are killed."""

    lease_ns: int
    closing_ns: int
    end_ns: int | None

    def passed_ns(self, renewed_ns: int) -> int:
        """When an agent whose lease was last renewed at this instant has stopped for certain."""
        stops_ns = renewed_ns + self.lease_ns
        return (stops_ns if self.end_ns is None else min(stops_ns, self.end_ns)) + self.closing_ns


@dataclass(frozen=True, slots=True)
class Standing:
    """An agent of a run that is resumed, as the journal left it. final: None unless its part had ended. takeover: where
    its share went on that another agent had before. replaced_by: which agent took its share over, "" for none.
    left: why no results will come from it, "" if they may."""

    facts: AgentFacts
    next_seq: int
    final: Final | None
    takeover: TakeOver | None = None
    replaced_by: str = ""
    left: str = ""


@dataclass(slots=True)
class Member:
    """One agent incarnation. A member takes part once a run has dealt it a share.

    routing_id, metrics_id: of the newest connections on which the agent proved itself, for control and for metrics; b""
    for none. connection, metrics_connection: what the agent counts them as. next_seq: of the frame wanted next. end:
    how its part of the run ended, None while it goes on. released: the coordinator has confirmed its results. gone:
    nothing more is expected from it, and why. has_left: its process has ended, or has forgotten the run. is_outcast: it
    sent what no agent of the run can, so that nothing counts that it says. dealt: its pools, as the journal of a run
    that is resumed has them. workers_lost: numbers of its worker processes that died. steps: how far its preparation
    is; stirred_ns: when that last changed. preloaded: what it wrote before the start.

    renewed_ns: no heartbeat that we answered left the agent later than this, so its lease counts from here at the
    latest. at_rest_ns: since when its worker processes are known to have ended, None while they may write. returned_ns:
    when it was last heard again after a silence. revoked: its heartbeats are not answered any more, so that its lease
    runs out. seen_off: it knows of the end of the run.

    share_lost: it was fenced before its share was done, so the share is not its own any more. replaced_by: id of the
    agent that took the share over. offered: while it stands by, the share that it prepares to take over, and
    offered_by: the id of the agent that lost it. unfit_until_ns: it could not, and is not asked before this. takeover:
    where its share goes on that another agent had before.
    """

    agent_id: str
    incarnation: str
    routing_id: bytes
    host: str
    pid: int
    processes: int
    heard_ns: int
    connection: int = 0
    metrics_id: bytes = b""
    metrics_connection: int = 0
    state: AgentState = AgentState.IDLE
    takes_part: bool = False
    prepared: bool = False
    steps: dict[Step, Preparing] = field(default_factory=dict)
    stirred_ns: int = 0
    preloaded: Preloaded | None = None
    next_seq: int = 0
    final: Final | None = None
    end: AgentEnd | None = None
    released: bool = False
    lost: bool = False
    gone: str = ""
    has_left: bool = False
    is_outcast: bool = False
    dealt: tuple[PoolShare, ...] = ()
    workers_lost: set[int] = field(default_factory=set)
    renewed_ns: int = 0
    at_rest_ns: int | None = None
    returned_ns: int = 0
    revoked: bool = False
    seen_off: bool = False
    share_lost: bool = False
    replaced_by: str = ""
    offered: Assignment | None = None
    offered_by: str = ""
    unfit_until_ns: int = 0
    takeover: TakeOver | None = None
    order_sent_ns: int = 0
    offset_ns: int | None = None
    rtt_ns: int | None = None
    cpu_percent: float = 0.0
    cpu_percent_max: float = 0.0
    cpu_percent_busiest: float = 0.0
    host_cpu_percent_sum: float = 0.0
    host_cpu_percents: int = 0
    lag_ms_max: float = 0.0

    def heartbeat(self, message: Heartbeat, *, running: bool) -> None:
        """What it says of itself; the worst figures of the run are kept."""
        self.state = message.state
        if message.offset_ns is not None:
            self.offset_ns, self.rtt_ns = message.offset_ns, message.rtt_ns
        self.cpu_percent = message.cpu_percent
        if running:
            self.cpu_percent_max = max(self.cpu_percent_max, message.cpu_percent)
            self.cpu_percent_busiest = max(self.cpu_percent_busiest, message.cpu_percent_busiest)
            self.host_cpu_percent_sum += message.host_cpu_percent
            self.host_cpu_percents += 1
            self.lag_ms_max = max(self.lag_ms_max, message.lag_ms)

    def prepares(self, progress: Preparing, now_ns: int) -> None:
        """It has come so far, and through all steps before."""
        earlier = list(Step)[: list(Step).index(progress.step)]
        for step in earlier:
            if step in self.steps:
                self.steps[step] = msgspec.structs.replace(self.steps[step], done=self.steps[step].total)
        if self.steps.get(progress.step) != progress:
            self.steps[progress.step], self.stirred_ns = progress, now_ns

    def is_prepared(self, message: Prepared, now_ns: int) -> None:
        """It is ready to start. Its lease began before, when it was dealt its share."""
        self.prepared, self.preloaded, self.renewed_ns = True, message.preloaded, now_ns

    def takes_over(self, takeover: TakeOver, pools: tuple[PoolShare, ...], now_ns: int) -> None:
        """It has prepared the share that was offered, and has it from now on."""
        self.takes_part, self.takeover, self.dealt, self.renewed_ns = True, takeover, pools, now_ns
        self.offered, self.offered_by = None, ""

    def declines(self, now_ns: int) -> None:
        """It cannot take over what was offered."""
        self.offered, self.offered_by, self.prepared = None, "", False
        self.unfit_until_ns = now_ns + UNFIT_NS

    def knows_clock(self, rtt_ns: float) -> bool:
        """Whether its clock has been compared with ours, in a round trip of no more than this."""
        return self.offset_ns is not None and self.rtt_ns is not None and self.rtt_ns <= rtt_ns

    def is_fresh(self, now_ns: int) -> bool:
        """Whether it was heard lately enough to be dealt a share."""
        return now_ns - self.heard_ns <= FRESH_NS

    def leaves(self, why: str, now_ns: int) -> None:
        """No more results will come, and its worker processes have ended or end now."""
        self.gone, self.has_left = why, True
        self.rests(now_ns)

    def rests(self, now_ns: int) -> None:
        """Its worker processes have ended: it writes nothing to the target any more."""
        if self.at_rest_ns is None:
            self.at_rest_ns = now_ns

    def may_write_until_ns(self, fence: Fence) -> int:
        """Until when it may still write to the target, as far as we know now. Moves on with every heartbeat that is
        answered. Past this instant the agent is fenced: its share can be given to another one."""
        return fence.passed_ns(self.renewed_ns) if self.at_rest_ns is None else self.at_rest_ns

    def is_fenced(self, now_ns: int, fence: Fence) -> bool:
        """Whether it writes nothing to the target any more, whatever it hears or does not hear from now on."""
        return now_ns >= self.may_write_until_ns(fence)

    def awaited_until_ns(self, fence: Fence) -> int:
        """Until when its results are waited for, as far as we know now."""
        if self.end is AgentEnd.FINISHED:
            return self.heard_ns if self.released or self.state is AgentState.IDLE else self.heard_ns + 2 * COME_BACK_NS
        if self.gone:
            return self.may_write_until_ns(fence)
        # One that was never heard by this coordinator has to find it first.
        return max(self.may_write_until_ns(fence), self.heard_ns + COME_BACK_NS) + COME_BACK_NS

    def is_over(self, now_ns: int, fence: Fence) -> bool:
        """Whether it is not waited for any more: it has reported everything; or it is fenced, and either gone for good
        or silent although it had the time to come back."""
        silent = self.lost or self.end is AgentEnd.FINISHED
        return (silent or bool(self.gone)) and now_ns >= self.awaited_until_ns(fence)

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

    def noted(self, state: AgentEnd, reason: str) -> AgentNoted:
        """The record of how its part ended."""
        return AgentNoted(
            agent_id=self.agent_id,
            state=state,
            reason=reason,
            final=self.final,
            clock_offset_us=None if self.offset_ns is None else self.offset_ns / 1e3,
            clock_rtt_us=None if self.rtt_ns is None else self.rtt_ns / 1e3,
            cpu_percent_max=self.cpu_percent_max,
            cpu_percent_busiest=self.cpu_percent_busiest,
            host_cpu_percent_mean=(
                self.host_cpu_percent_sum / self.host_cpu_percents if self.host_cpu_percents else None
            ),
            lag_ms_max=self.lag_ms_max,
            left=self.has_left,
        )


class Registry:
    """Members by incarnation, in the order in which they joined."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    def find(self, incarnation: str) -> Member | None:
        """The member of this incarnation."""
        return self._members.get(incarnation)

    def speaker(self, routing_id: bytes, envelope: Envelope) -> Member | None:
        """The member that has said this; None unless the connection, or the secret in the message, proves it."""
        member, message = self.find(envelope.incarnation), envelope.message
        if member is None:
            return None
        if isinstance(message, Proof):
            newest = member.metrics_connection if isinstance(message, Attach) else member.connection
            return member if message.proves(member.incarnation) and message.connection >= newest else None
        proven = member.metrics_id if isinstance(message, MetricsFrame) else member.routing_id
        return member if routing_id == proven else None

    def admit(self, hello: Hello, incarnation: str, routing_id: bytes, now_ns: int) -> Member:
        """Take an agent in, or take one back that comes again on another connection."""
        member = self._members.get(incarnation)
        if member is None:
            name = clipped(hello.name or hello.host, LONGEST_NAME) or _NAMELESS
            # A silent agent with this name was most likely restarted: the new process gets the name.
            self._forget_silent([member for member in self if member.agent_id == name], now_ns)
            member = Member(
                agent_id=self._free_name(name),
                incarnation=incarnation,
                routing_id=routing_id,
                host=clipped(hello.host, LONGEST_HOST),
                pid=hello.pid,
                processes=hello.processes,
                heard_ns=now_ns,
            )
            self._members[incarnation] = member
        member.routing_id, member.connection = routing_id, hello.connection
        member.heard_ns, member.state = now_ns, hello.state
        return member

    def attach(self, member: Member, attach: Attach, routing_id: bytes) -> None:
        """From now on the member's frames come on this connection."""
        member.metrics_id, member.metrics_connection = routing_id, attach.connection

    def readmit(self, standing: Standing, now_ns: int) -> Member:
        """A member of a run that is resumed: known from its journal, not heard yet."""
        facts = standing.facts
        member = Member(
            agent_id=facts.agent_id,
            incarnation=facts.incarnation,
            routing_id=b"",
            host=facts.host,
            pid=0,
            processes=facts.processes,
            heard_ns=now_ns,
            renewed_ns=now_ns,
            at_rest_ns=now_ns if standing.final is not None or standing.replaced_by or standing.left else None,
            gone=standing.left,
            has_left=bool(standing.left),
            lost=bool(standing.left),
            takeover=standing.takeover,
            replaced_by=standing.replaced_by,
            share_lost=bool(standing.replaced_by),
            state=AgentState.RUNNING,
            takes_part=True,
            dealt=facts.pools,
            prepared=True,
            next_seq=standing.next_seq,
            final=standing.final,
            end=AgentEnd.FINISHED if standing.final is not None else AgentEnd.LOST if standing.left else None,
        )
        self._members[facts.incarnation] = member
        return member

    def has_room(self, expected: int, now_ns: int) -> bool:
        """Whether one more agent may join. Those that take no part and are not heard any more make room."""
        most = 2 * expected + SPARE_MEMBERS
        if len(self) >= most:
            self._forget_silent(list(self), now_ns)
        return len(self) < most

    def leave(self, incarnation: str) -> None:
        """Forget one that left before it took part."""
        self._members.pop(incarnation, None)

    def taking_part(self) -> list[Member]:
        """Members that were dealt a share."""
        return [member for member in self if member.takes_part]

    def idle(self, now_ns: int) -> list[Member]:
        """Members that could be dealt a share now."""
        return [
            member for member in self if member.state is AgentState.IDLE and not member.gone and member.is_fresh(now_ns)
        ]

    def standing_by(self, now_ns: int) -> list[Member]:
        """Members without a share that could be dealt one now."""
        return [member for member in self.idle(now_ns) if not (member.takes_part or member.offered)]

    def newly_lost(self, now_ns: int, patience_ns: int = LOST_AFTER_NS) -> list[Member]:
        """Members that take part, are not over, and have been silent for longer than that since the last call."""
        silent = [
            member
            for member in self.taking_part()
            if member.end is None and not member.lost and now_ns - member.heard_ns > patience_ns
        ]
        for member in silent:
            member.lost = True
        return silent

    def excuse(self, deaf_ns: int, now_ns: int) -> None:
        """Nobody's silence counts for so long: it was we who did not listen."""
        for member in self:
            member.heard_ns = min(now_ns, member.heard_ns + deaf_ns)
            member.stirred_ns = min(now_ns, member.stirred_ns + deaf_ns)

    def _forget_silent(self, members: list[Member], now_ns: int) -> None:
        for member in members:
            if not member.takes_part and now_ns - member.heard_ns > LOST_AFTER_NS:
                self.leave(member.incarnation)

    def _free_name(self, wished: str) -> str:
        taken = {member.agent_id for member in self}
        numbered = (f"{wished}-{number}" for number in range(2, len(taken) + 3))
        return next(name for name in (wished, *numbered) if name not in taken)


def capacities(members: list[Member]) -> list[AgentCapacity]:
    """What `shares` needs to know of them."""
    return [AgentCapacity(member.agent_id, member.processes) for member in members]
