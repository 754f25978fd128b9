"""The agents of the fleet. Every change of a member is made here. Pure.

An agent is known by its incarnation: the hash of a secret that its process made up when it started. The incarnation is
in journals, so it proves nothing. A connection is an agent's once the secret was sent on it (`Registry.sender`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from common.lifecycle import Lifecycle
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
    PreparationStep,
    Prepared,
    Preparing,
    Proof,
    TakeOver,
)
from common.units import NS_PER_S, clipped
from coordinator.core.dealt_plan import AgentCapacity
from coordinator.core.member import (
    LOST_AFTER_NS,
    MEMBER_REPEATS,
    MEMBER_TRANSITIONS,
    UNHEARD,
    Member,
    MemberState,
    MemberTrigger,
)
from coordinator.journal.records import AgentFacts

LONGEST_NAME, LONGEST_HOST = 64, 255
LARGE_FLEET = 64
"""With more agents than this, the run moves on at ticks only: walking over all agents for each message would keep a
large fleet from starting."""
SPARE_MEMBERS = 1000
"""How many agents may join beyond twice the number that a run expects."""
UNFIT_NS = 10 * NS_PER_S
"""An agent that could not take a share over gets no offer for this long."""
_NAMELESS = "agent"
"""Name of an agent that gives neither its name nor its host."""
_SILENCEABLE = frozenset({MemberState.PREPARING, MemberState.PREPARED, MemberState.WORKING, MemberState.RETURNED})


@dataclass(frozen=True, slots=True)
class JournaledAgent:
    """An agent of a run that is resumed, as the journal has it. final: None unless its part had ended. takeover: where
    the share that it took over goes on. replaced_by: id of the agent that took its share over, "" for none. left: why
    no results will come, "" if they may."""

    facts: AgentFacts
    next_seq: int
    final: Final | None
    takeover: TakeOver | None = None
    replaced_by: str = ""
    left: str = ""

    def state(self, *, ended: bool) -> MemberState:
        """Its first state in the resumed run. ended: the run has ended, so agents know that their results are safe."""
        if self.final is not None:
            return MemberState.FINISHED if ended else MemberState.REPORTED
        if self.left:
            return MemberState.LEFT
        return MemberState.RETURNED if self.replaced_by else MemberState.WORKING


class Registry:
    """Members by incarnation, in the order in which they joined."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    # -- lookups

    def find(self, incarnation: str) -> Member | None:
        """The member of this incarnation."""
        return self._members.get(incarnation)

    def sender(self, routing_id: bytes, envelope: Envelope) -> Member | None:
        """The member that sent this; None unless its connection, or the secret in the message, proves it."""
        member, message = self.find(envelope.incarnation), envelope.message
        if member is None:
            return None
        if isinstance(message, Proof):
            newest = member.metrics_connection if isinstance(message, Attach) else member.connection
            return member if message.proves(member.incarnation) and message.connection >= newest else None
        proven = member.metrics_id if isinstance(message, MetricsFrame) else member.routing_id
        return member if routing_id == proven else None

    def taking_part(self) -> list[Member]:
        """Members with a share."""
        return [member for member in self if member.takes_part]

    def idle(self, now_ns: int) -> list[Member]:
        """Members that could get a share now."""
        return [
            member
            for member in self
            if member.reported is AgentState.IDLE and not member.gone and member.is_fresh(now_ns)
        ]

    def standing_by(self, now_ns: int) -> list[Member]:
        """Members without a share that could get one now."""
        return [member for member in self.idle(now_ns) if member.state is MemberState.STANDING_BY]

    def has_room(self, expected: int, now_ns: int) -> bool:
        """Whether one more agent may join. Silent ones without a share make room."""
        most = 2 * expected + SPARE_MEMBERS
        if len(self) >= most:
            self._forget_silent(list(self), now_ns)
        return len(self) < most

    # -- joining and connections

    def admit(self, hello: Hello, incarnation: str, routing_id: bytes, now_ns: int) -> Member:
        """Take an agent in, or take one back that comes on another connection."""
        member = self._members.get(incarnation)
        if member is None:
            name = clipped(hello.name or hello.host, LONGEST_NAME) or _NAMELESS
            # A silent agent with this name was most likely restarted: the new process gets the name.
            self._forget_silent([member for member in self if member.agent_id == name], now_ns)
            agent_id = self._free_name(name)
            member = Member(
                agent_id=agent_id,
                incarnation=incarnation,
                routing_id=routing_id,
                host=clipped(hello.host, LONGEST_HOST),
                pid=hello.pid,
                processes=hello.processes,
                heard_ns=now_ns,
                lifecycle=_lifecycle(agent_id, MemberState.STANDING_BY),
            )
            self._members[incarnation] = member
        member.routing_id, member.connection = routing_id, hello.connection
        member.heard_ns, member.reported = now_ns, hello.state
        return member

    def attach(self, member: Member, attach: Attach, routing_id: bytes) -> None:
        """From now on the member's frames come on this connection."""
        member.metrics_id, member.metrics_connection = routing_id, attach.connection

    def answer_on(self, member: Member, routing_id: bytes) -> None:
        """From now on the member is answered on this control connection."""
        member.routing_id = routing_id

    def readmit(self, agent: JournaledAgent, now_ns: int, *, ended: bool = False) -> Member:
        """A member of a run that is resumed: known from its journal, not heard yet. ended: as in `JournaledAgent`."""
        facts, state = agent.facts, agent.state(ended=ended)
        member = Member(
            agent_id=facts.agent_id,
            incarnation=facts.incarnation,
            routing_id=b"",
            host=facts.host,
            pid=0,
            processes=facts.processes,
            heard_ns=now_ns,
            lifecycle=_lifecycle(facts.agent_id, state),
            reported=AgentState.RUNNING,
            gone=agent.left,
            next_seq=agent.next_seq,
            final=agent.final,
            dealt=facts.pools,
            renewed_ns=now_ns,
            at_rest_ns=None if state is MemberState.WORKING else now_ns,
            takeover=agent.takeover,
            replaced_by=agent.replaced_by,
        )
        self._members[facts.incarnation] = member
        return member

    def forget(self, member: Member) -> None:
        """Remove one that left without a share."""
        self._members.pop(member.incarnation, None)

    # -- messages

    def heard(self, member: Member, now_ns: int) -> bool:
        """A message came. Returns whether the member is back after a silence."""
        member.heard_ns = now_ns
        if member.state not in UNHEARD:
            return False
        member.returned_ns = now_ns
        return member.lifecycle.move(MemberTrigger.HEARD)

    def heartbeat(self, member: Member, message: Heartbeat, now_ns: int, *, running: bool, rests: bool) -> None:
        """The agent reports its state. running: its load may run, so the worst figures count. rests: its worker
        processes have ended."""
        member.reported = message.state
        if message.offset_ns is not None:
            member.offset_ns, member.rtt_ns = message.offset_ns, message.rtt_ns
        figures = member.figures
        figures.cpu_percent = message.cpu_percent
        if running:
            figures.cpu_percent_max = max(figures.cpu_percent_max, message.cpu_percent)
            figures.cpu_percent_busiest = max(figures.cpu_percent_busiest, message.cpu_percent_busiest)
            figures.host_cpu_percent_sum += message.host_cpu_percent
            figures.host_cpu_percents += 1
            figures.lag_ms_max = max(figures.lag_ms_max, message.lag_ms)
        if rests:
            _rest(member, now_ns)

    def renew(self, member: Member, now_ns: int) -> None:
        """Its heartbeat is answered, so its lease begins again."""
        member.renewed_ns = now_ns

    def progress(self, member: Member, message: Preparing, now_ns: int) -> None:
        """It reports progress, and has completed all earlier steps."""
        for step in list(PreparationStep)[: list(PreparationStep).index(message.step)]:
            if step in member.steps:
                member.steps[step] = msgspec.structs.replace(member.steps[step], done=member.steps[step].total)
        if member.steps.get(message.step) != message:
            member.steps[message.step], member.progressed_ns = message, now_ns

    def ready(self, member: Member, message: Prepared, now_ns: int) -> None:
        """It has prepared its share, or the one that it was offered."""
        if member.lifecycle.move(MemberTrigger.READY):
            member.preloaded, member.renewed_ns = message.preloaded, now_ns

    def unready(self, member: Member) -> None:
        """It has given up what it had prepared, perhaps without a message that reached us."""
        member.lifecycle.move(MemberTrigger.UNREADY)

    def accept_frame(self, member: Member) -> None:
        """The frame wanted next is accepted."""
        member.next_seq += 1

    def lose_worker(self, member: Member, process: int) -> None:
        """One of its worker processes died."""
        member.workers_lost.add(process)

    def finish(self, member: Member, final: Final, now_ns: int) -> None:
        """Its results are in the journal, and it knows that they are safe."""
        _rest(member, now_ns)
        if member.lifecycle.move(MemberTrigger.FINAL) and member.final is None:
            member.final = final

    def rest(self, member: Member, now_ns: int) -> None:
        """Its worker processes have ended."""
        _rest(member, now_ns)

    def ordered(self, member: Member, now_ns: int) -> None:
        """It was sent an order."""
        member.order_sent_ns = now_ns

    # -- shares

    def deal(self, member: Member, now_ns: int) -> None:
        """It gets a share before the start."""
        member.lifecycle.move(MemberTrigger.DEAL)
        member.progressed_ns = now_ns

    def start(self, member: Member) -> None:
        """It is sent the start instant."""
        member.lifecycle.move(MemberTrigger.START)

    def move_share(self, lost: Member, successor: Member, now_ns: int) -> None:
        """Before the start, the share of a lost agent goes to one that stands by."""
        if lost.state is MemberState.LEFT:
            self.forget(lost)
        else:
            lost.lifecycle.move(MemberTrigger.SHARE_MOVED)
        self.deal(successor, now_ns)

    def offer(self, member: Member, assignments: tuple[Assignment, ...], lost: Member, now_ns: int) -> None:
        """It is asked to prepare the share of a lost agent."""
        member.lifecycle.move(MemberTrigger.OFFER)
        member.offered, member.offered_by, member.progressed_ns = assignments, lost.agent_id, now_ns
        member.steps.clear()

    def decline(self, member: Member, now_ns: int) -> None:
        """It cannot take over what it was offered."""
        member.lifecycle.move(MemberTrigger.DECLINE)
        member.offered, member.offered_by = (), ""
        member.unfit_until_ns = now_ns + UNFIT_NS

    def take_over(
        self, member: Member, lost: Member, takeover: TakeOver, pools: tuple[PoolShare, ...], now_ns: int
    ) -> None:
        """It has prepared the share of a lost agent, and has it from now on."""
        member.lifecycle.move(MemberTrigger.START)
        member.takeover, member.dealt, member.renewed_ns = takeover, pools, now_ns
        member.offered, member.offered_by = (), ""
        lost.replaced_by = member.agent_id

    def forfeit(self, member: Member) -> None:
        """It is fenced, so its share is free for another agent."""
        member.lifecycle.move(MemberTrigger.FORFEIT)

    # -- losing members

    def newly_silent(self, now_ns: int, patience_ns: int = LOST_AFTER_NS) -> list[Member]:
        """Members with a share that have been silent for longer than this. Each is returned once for each silence."""
        silent = [member for member in self if member.state in _SILENCEABLE and now_ns - member.heard_ns > patience_ns]
        for member in silent:
            member.lifecycle.move(MemberTrigger.SILENCE)
        return silent

    def revoke(self, member: Member, why: str) -> None:
        """Its heartbeats are not answered any more, so its lease runs out."""
        member.gone = why
        member.lifecycle.move(MemberTrigger.REVOKE)

    def exclude(self, member: Member, why: str) -> None:
        """Its messages do not count any more."""
        member.gone = why
        member.lifecycle.move(MemberTrigger.EXCLUDE)

    def leave(self, member: Member, why: str, now_ns: int) -> None:
        """No more results will come, and its worker processes have ended or end now."""
        _rest(member, now_ns)
        if member.lifecycle.move(MemberTrigger.LEAVE):
            member.gone = why

    def extend_deadlines(self, stalled_ns: int, now_ns: int) -> None:
        """Extend all deadlines by our own stall: the messages of agents are still queued."""
        for member in self:
            member.heard_ns = min(now_ns, member.heard_ns + stalled_ns)
            member.progressed_ns = min(now_ns, member.progressed_ns + stalled_ns)

    def _forget_silent(self, members: list[Member], now_ns: int) -> None:
        for member in members:
            if not member.takes_part and now_ns - member.heard_ns > LOST_AFTER_NS:
                self.forget(member)

    def _free_name(self, wished: str) -> str:
        taken = {member.agent_id for member in self}
        numbered = (f"{wished}-{number}" for number in range(2, len(taken) + 3))
        return next(name for name in (wished, *numbered) if name not in taken)


def capacities(members: list[Member]) -> list[AgentCapacity]:
    """What dealing the plan needs to know of these members."""
    return [AgentCapacity(member.agent_id, member.processes) for member in members]


def _lifecycle(agent_id: str, state: MemberState) -> Lifecycle[MemberState, MemberTrigger]:
    return Lifecycle(f"agent {agent_id}", state, MEMBER_TRANSITIONS, MEMBER_REPEATS)


def _rest(member: Member, now_ns: int) -> None:
    if member.at_rest_ns is None:
        member.at_rest_ns = now_ns
