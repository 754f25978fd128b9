"""Answers the agents of a run. Pure: a message and the time in, actions out. Nothing here changes the phase.

At each heartbeat, the state that the agent reports is compared with the phase: an agent that missed an order receives
it again. Only the next frame is accepted, and it is written to the journal before it is acknowledged. Each answer names
the next frame, which repairs lost acknowledgements and gaps.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from common.errors import FleetError, TargetError
from common.protocol.messages import (
    AgentState,
    Assignment,
    Attach,
    Attached,
    Bye,
    CoordinatorMessage,
    Dismiss,
    Envelope,
    Failed,
    FailureKind,
    Final,
    FinalAck,
    FrameAck,
    Heartbeat,
    HeartbeatReply,
    Hello,
    MetricsFrame,
    PoolShare,
    Prepare,
    Prepared,
    Preparing,
    Refused,
    StandBy,
    Start,
    Stop,
    Welcome,
    WorkerLost,
)
from common.units import NS_PER_S, clipped, counted
from coordinator.core.actions import Action, FromAgent, Introduce, Note, Send, Write
from coordinator.core.dealt_plan import pools_of
from coordinator.core.member import OFFERS, Member, MemberState
from coordinator.core.registry import LONGEST_HOST, LONGEST_NAME
from coordinator.core.run_state import RunState
from coordinator.core.setup import negotiated, refusal
from coordinator.core.transitions import OVER_BUT_OPEN, TAKES_RESULTS, UNDER_WAY, Phase
from coordinator.journal.frame_checks import AHEAD_S, FrameLimits
from coordinator.journal.records import AgentOutcome, FrameAccepted, WorkerDied

REPEAT_AFTER_NS = NS_PER_S
LOADS = (AgentState.PREPARED, AgentState.RUNNING, AgentState.DRAINING)
"""States that an agent reports while its workers load the target, or are about to."""
RESTS = (AgentState.DONE, AgentState.IDLE)
"""States that an agent reports when all its worker processes have ended, once its run has started."""


class Conversation:
    """Answers the agents of one run. DealtPlan the state with `coordinator.core.run`."""

    def __init__(self, state: RunState) -> None:
        self._state, self._registry = state, state.registry
        self._dismissed: set[str] = set()
        self._limits: dict[str, tuple[Sequence[Assignment] | Sequence[PoolShare], FrameLimits]] = {}

    def received(self, routing_id: bytes, envelope: Envelope, now_ns: int) -> list[Action]:
        """Handle a message, and return the answers."""
        message = envelope.message
        if isinstance(message, Hello):
            return self._hello(routing_id, envelope, message, now_ns)
        member = self._registry.sender(routing_id, envelope)
        if member is None:
            # A stale agent was welcomed by an earlier coordinator; it will say hello.
            known = self._registry.find(envelope.incarnation) is not None
            self._state.set_aside["unproven" if known else "stale"] += 1
            return []
        if member.state is MemberState.EXCLUDED:
            self._state.set_aside["nonsense"] += 1
            return []
        if isinstance(message, Attach):
            self._registry.attach(member, message, routing_id)
            introduced = Introduce(routing_id, member.agent_id, metrics=True)
            return [introduced, self.to(member, Attached(), metrics=True)]
        actions = self._heard(member, now_ns)
        if isinstance(message, Heartbeat):
            return [*actions, *self._heartbeat(member, message, now_ns), *self._keep_in_step(member, now_ns)]
        if isinstance(message, Bye):
            return [*actions, *self._said_bye(member, clipped(message.reason), now_ns)]
        if member.state in OFFERS and envelope.run_id == self._state.setup.run_id:
            return [*actions, *self._offered(member, message, now_ns)]
        if envelope.run_id != self._state.setup.run_id or not member.takes_part:
            self._state.set_aside["stale"] += 1
            return actions
        match message:
            case Preparing():
                self._registry.progress(member, message, now_ns)
            case Prepared():
                self._registry.ready(member, message, now_ns)
            case Failed():
                actions += self._failed(member, message, now_ns)
            case MetricsFrame():
                actions += self._frame(member, message, now_ns)
            case WorkerLost() if self._state.phase in TAKES_RESULTS:
                actions += self._worker_lost(member, message)
            case Final() if self._state.phase in TAKES_RESULTS:
                actions += self._final(member, message, now_ns)
            case WorkerLost() | Final():
                self._state.set_aside["stale"] += 1
        return actions

    @property
    def all_know_the_end(self) -> bool:
        """Whether every agent that is not lost has answered its dismissal."""
        return all(member.is_lost or member.incarnation in self._dismissed for member in self._registry)

    def while_dismissing(self, event: FromAgent, exit_code: int, now_ns: int) -> list[Action]:
        """Answer after the end of the run: dismiss an agent again that does not seem to know, and take results that
        still come."""
        message = event.envelope.message
        member = self._registry.sender(event.routing_id, event.envelope)
        if member is None:
            return []
        has_reported = self._state.t0_ns is None or not member.takes_part or member.final is not None
        if isinstance(message, Attach | MetricsFrame):
            return [] if has_reported else self.received(event.routing_id, event.envelope, now_ns)
        self._registry.answer_on(member, event.routing_id)  # an agent that comes back uses another connection
        if isinstance(message, Bye) or (isinstance(message, Heartbeat) and message.state is AgentState.IDLE):
            self._dismissed.add(member.incarnation)
            return []
        actions = [] if has_reported else self.received(event.routing_id, event.envelope, now_ns)
        has_results = not has_reported and member.final is None and member.reported not in LOADS
        return actions if has_results else [*actions, *self._dismiss(member, exit_code)]

    def _heard(self, member: Member, now_ns: int) -> list[Action]:
        is_back = self._registry.heard(member, now_ns)
        return [Note(f"agent {member.agent_id} is back", trouble=True, of_agent=True)] if is_back else []

    def _heartbeat(self, member: Member, heartbeat: Heartbeat, now_ns: int) -> list[Action]:
        """Each answer renews the agent's lease, which counts from when the agent sent the heartbeat."""
        rests = self._state.t0_ns is not None and member.takes_part and heartbeat.state in RESTS
        self._registry.heartbeat(member, heartbeat, now_ns, running=self._state.phase in UNDER_WAY, rests=rests)
        if member.state is MemberState.REVOKED:
            return []
        self._registry.renew(member, now_ns)
        return [self.to(member, HeartbeatReply(sent_ns=heartbeat.sent_ns, received_ns=now_ns, replied_ns=now_ns))]

    def _hello(self, routing_id: bytes, envelope: Envelope, hello: Hello, now_ns: int) -> list[Action]:
        incarnation = envelope.incarnation
        reason, protocol = refusal(hello), negotiated(hello)
        known = self._registry.find(incarnation) is not None
        speaks = self._registry.sender(routing_id, envelope) is not None if known else hello.proves(incarnation)
        if reason is None and not speaks:
            self._state.set_aside["unproven"] += 1
            return []
        if reason is None and not self._may_join(incarnation, now_ns):
            reason = f"{counted(len(self._registry), 'agent')} have joined this run already"
        if (
            known_member := self._registry.find(incarnation)
        ) is not None and known_member.state is MemberState.EXCLUDED:
            refused = Envelope(run_id="", incarnation=incarnation, message=Refused(reason=known_member.gone))
            return [Send(routing_id, refused)]
        if reason is not None or protocol is None:
            refused = Envelope(run_id="", incarnation=incarnation, message=Refused(reason=reason or ""))
            note = f"refused an agent from {clipped(hello.host, LONGEST_HOST)}: {clipped(reason or '')}"
            return [Note(note, trouble=True, of_agent=True), Send(routing_id, refused)]
        member = self._registry.admit(hello, incarnation, routing_id, now_ns)
        actions = [*self._heard(member, now_ns), Introduce(routing_id, member.agent_id)]
        welcome = Welcome(protocol=protocol, agent_id=member.agent_id, pace=self._state.setup.pace)
        actions.append(self.to(member, welcome))
        if not known:
            stands_by = self._state.phase is not Phase.GATHERING and hello.state is AgentState.IDLE
            text = f"agent {member.agent_id} joined from {member.host} with {counted(member.processes, 'process')}"
            actions.append(Note(text + ", and stands by" * stands_by, of_agent=True))
            actions += [self.stand_by(member)] if stands_by else []
            if hello.run_id not in (None, self._state.setup.run_id):
                held = clipped(hello.run_id or "", LONGEST_NAME)
                text = f"agent {member.agent_id} still works for run {held}, and can take part when that has ended"
                if hello.state is AgentState.DONE:
                    text = f"agent {member.agent_id} keeps results of run {held}: "
                    text += f"`coordinator start --resume {held}` collects them"
                actions.append(Note(text, trouble=True, of_agent=True))
        return [*actions, *self._keep_in_step(member, now_ns)]

    def _may_join(self, incarnation: str, now_ns: int) -> bool:
        registry = self._registry
        return registry.find(incarnation) is not None or registry.has_room(self._state.setup.expected, now_ns)

    def _keep_in_step(self, member: Member, now_ns: int) -> list[Action]:
        """Repeat an order that an agent seems to have missed, at most once a second."""
        if now_ns - member.order_sent_ns < REPEAT_AFTER_NS:
            return []
        if not member.takes_part:
            return self._keep_standby_in_step(member, now_ns)
        is_returned = member.state is MemberState.RETURNED
        is_over = self._state.phase in OVER_BUT_OPEN or is_returned or member.state is MemberState.REVOKED
        if is_over and member.reported in LOADS and member.final is None:
            # A lost agent is back: its load must not continue while counters are read, keys are deleted, or another
            # agent has its share.
            reason = member.gone or ("its share is lost" if is_returned else "the run is over")
            return self.order(member, Stop(drain=False, reason=reason), now_ns)
        if member.is_lost or member.final is not None:
            return []
        match self._state.phase, member.reported:
            case Phase.PREPARING, AgentState.IDLE:
                self._registry.unready(member)
                return self.order(member, self.prepare_order(member), now_ns)
            case Phase.PREPARING, AgentState.PREPARED if not member.is_ready:
                return self.order(member, self.prepare_order(member), now_ns)  # so it repeats `Prepared`
            case Phase.RUNNING, AgentState.PREPARED:
                return self.order(member, self.start_order(member), now_ns)
            case (
                (Phase.DRAINING | Phase.COLLECTING),
                (AgentState.PREPARING | AgentState.PREPARED | AgentState.RUNNING),
            ):
                return self.order(member, Stop(drain=True, reason="the run is stopped"), now_ns)
            case ((Phase.RUNNING | Phase.DRAINING | Phase.COLLECTING), AgentState.IDLE):
                return self.leave(member, "it gave its share up", now_ns)
        return []

    def _keep_standby_in_step(self, member: Member, now_ns: int) -> list[Action]:
        """The same for an agent without a share that may prepare one."""
        if member.state not in OFFERS or self._state.phase is not Phase.RUNNING:
            if (
                member.reported in (AgentState.PREPARING, AgentState.PREPARED)
                and self._state.phase is not Phase.GATHERING
            ):
                return self.order(member, Stop(drain=False, reason="the share goes to another agent"), now_ns)
            return []
        if member.reported is AgentState.IDLE or (member.reported is AgentState.PREPARED and not member.is_ready):
            self._registry.unready(member)
            return self.order(member, self.prepare_order(member), now_ns)
        return []

    def _offered(self, member: Member, message: object, now_ns: int) -> list[Action]:
        """Handle a message of an agent that prepares to take a share over."""
        match message:
            case Preparing():
                self._registry.progress(member, message, now_ns)
            case Prepared():
                self._registry.ready(member, message, now_ns)
            case Failed():
                lost, reason = member.offered_by, clipped(message.reason)
                self._registry.decline(member, now_ns)
                text = f"agent {member.agent_id} cannot take over the share of {lost}: {reason}"
                return [Note(text, trouble=True, of_agent=True)]
        return []

    def _said_bye(self, member: Member, reason: str, now_ns: int) -> list[Action]:
        if member.takes_part:
            return self.leave(member, f"it said goodbye: {reason}", now_ns)  # it has ended its worker processes
        self._registry.forget(member)
        return [Note(f"agent {member.agent_id} left: {reason}", of_agent=True)]

    def _failed(self, member: Member, failed: Failed, now_ns: int) -> list[Action]:
        reason = clipped(failed.reason)
        text = f"agent {member.agent_id} on {member.host}: {reason}"
        if self._state.phase in UNDER_WAY:
            return self.leave(member, reason, now_ns)  # it ends its worker processes before it says so
        code = TargetError.exit_code if failed.kind is FailureKind.TARGET else FleetError.exit_code
        self._state.fail(text, code)
        return []

    def _frame(self, member: Member, frame: MetricsFrame, now_ns: int) -> list[Action]:
        """Accept the next frame. Always answer with the number of the next one: so an agent learns of a lost
        acknowledgement or a gap."""
        actions: list[Action] = []
        if frame.seq == member.next_seq and self._state.phase in TAKES_RESULTS and member.final is None:
            if problem := self._limits_of(member).objection(frame, self._elapsed_ns(now_ns)):
                return self._exclude(member, problem)
            self._registry.accept_frame(member)
            actions.append(Write(FrameAccepted(agent_id=member.agent_id, frame=frame)))
            if any(c.ok for part in frame.intervals for pool in part.pools.values() for c in pool.commands.values()):
                self._state.succeeded(now_ns)
        else:
            self._state.set_aside["duplicates" if frame.seq < member.next_seq else "gaps"] += 1
        return [*actions, self.to(member, FrameAck(next_seq=member.next_seq), metrics=True)]

    def _limits_of(self, member: Member) -> FrameLimits:
        is_dealt = self._state.dealt_plan is not None and member.takeover is None
        share: Sequence[Assignment] | Sequence[PoolShare] = self._share_of(member) if is_dealt else member.dealt
        known = self._limits.get(member.incarnation)
        if known is None or known[0] is not share:
            pools = pools_of(self._share_of(member)) if is_dealt else member.dealt
            known = self._limits[member.incarnation] = share, FrameLimits.from_plan(self._state.setup.plan, pools)
        return known[1]

    def _elapsed_ns(self, now_ns: int) -> int | None:
        """Since the start instant; None before it, and in a run that is resumed after a reboot of this host."""
        elapsed_ns = now_ns - self._state.t0_ns if self._state.t0_ns is not None else -1
        return elapsed_ns if elapsed_ns >= 0 else None

    def _exclude(self, member: Member, problem: str) -> list[Action]:
        """Ignore an agent from now on, because it sent data that no agent of this run can send. Its load stops at once,
        or when its lease is over, because it gets no answers."""
        is_news = not member.is_lost
        self._registry.exclude(member, f"it sent invalid data: {problem}")
        self._state.set_aside["nonsense"] += 1
        stop = self.to(member, Stop(drain=False, reason=member.gone))
        return [*(self.lose(member, member.gone) if is_news else ()), stop]

    def _worker_lost(self, member: Member, lost: WorkerLost) -> list[Action]:
        if lost.process in member.workers_lost or lost.process >= member.processes:
            self._state.set_aside["nonsense"] += lost.process >= member.processes
            return []
        self._registry.lose_worker(member, lost.process)
        reason = clipped(lost.reason) or f"worker process {lost.process} ended"
        self._state.outcome_tracker.add_problem(member.agent_id, f"agent {member.agent_id}: {reason}")
        noted = WorkerDied(agent_id=member.agent_id, process=lost.process, exit_code=lost.exit_code, reason=reason)
        return [Write(noted), Note(f"agent {member.agent_id}: {reason}", trouble=True, of_agent=True)]

    def _final(self, member: Member, final: Final, now_ns: int) -> list[Action]:
        """Accept Final once all its frames are in the journal; until then the agent repeats it."""
        self._registry.rest(member, now_ns)
        if member.final is None:
            if final.next_seq != member.next_seq:
                return []
            elapsed_ns = self._elapsed_ns(now_ns)
            if elapsed_ns is not None and final.ran_ns > elapsed_ns + AHEAD_S * NS_PER_S:
                ran_s, elapsed_s = final.ran_ns / NS_PER_S, elapsed_ns / NS_PER_S
                return self._exclude(member, f"it ran for {ran_s:,.0f} s, but the run began {elapsed_s:,.0f} s ago")
            if final.processes_lost > member.processes:
                lost = counted(final.processes_lost, "worker process")
                return self._exclude(member, f"it lost {lost}, but has {member.processes}")
            final = msgspec.structs.replace(final, reason=clipped(final.reason))
            self._registry.finish(member, final, now_ns)
            stopped = self._state.stopped_ns is not None
            if final.reason:
                self._state.note_lost(member)
            lost_before = len(member.workers_lost)
            self._state.outcome_tracker.add_final(member.agent_id, final, lost_before=lost_before, stopped=stopped)
            return [Write(member.noted(AgentOutcome.FINISHED, final.reason)), self.to(member, FinalAck())]
        self._registry.finish(member, final, now_ns)
        return [self.to(member, FinalAck())]

    def leave(self, member: Member, why: str, now_ns: int) -> list[Action]:
        """An agent with a share has left, or has forgotten the run."""
        is_news = not member.is_lost and member.final is None
        self._registry.leave(member, why, now_ns)
        return self.lose(member, why) if is_news else []

    def revoke(self, member: Member, why: str) -> list[Action]:
        """Give up on an agent that is heard: without answers its lease runs out, and it is fenced."""
        self._registry.revoke(member, why)
        return self.lose(member, why)

    def lose(self, member: Member, why: str) -> list[Action]:
        """A member has just been lost: record that while load may be running. It may come back."""
        if self._state.phase not in UNDER_WAY:
            return []
        self._state.note_lost(member)
        return [
            Write(member.noted(AgentOutcome.LOST, why)),
            Note(f"agent {member.agent_id} on {member.host} is lost: {why}", trouble=True, of_agent=True),
        ]

    # -- orders

    def prepare_order(self, member: Member) -> Prepare:
        """The agent's share, or the one that it is offered."""
        assignments = member.offered or self._share_of(member)
        return Prepare(assignments=assignments, plan_hash=self._state.setup.plan_hash)

    def _share_of(self, member: Member) -> tuple[Assignment, ...]:
        assert self._state.dealt_plan is not None
        return self._state.dealt_plan.assignments[member.agent_id]

    def start_order(self, member: Member) -> Start:
        """The start instant, and from where an agent continues another agent's share."""
        assert self._state.t0_ns is not None
        return Start(t0_ns=self._state.t0_ns, takeover=member.takeover)

    def stand_by(self, member: Member) -> Send:
        """Say that the run does not need this agent for now."""
        return self.to(member, StandBy())

    def order(self, member: Member, order: CoordinatorMessage, now_ns: int) -> list[Action]:
        """Send an order; it is repeated when a heartbeat shows that the agent missed it."""
        self._registry.ordered(member, now_ns)
        return [self.to(member, order)]

    def to(self, member: Member, message: CoordinatorMessage, *, metrics: bool = False) -> Send:
        """A message to an agent, on its control connection or on its metrics connection."""
        envelope = Envelope(run_id=self._state.setup.run_id, incarnation=member.incarnation, message=message)
        return Send(member.metrics_id if metrics else member.routing_id, envelope)

    def dismiss_all(self, exit_code: int) -> list[Action]:
        """The run has ended: every agent may leave, also one that is written off."""
        return [action for member in self._registry for action in self._dismiss(member, exit_code)]

    def _dismiss(self, member: Member, exit_code: int) -> list[Action]:
        # Repeat the acknowledgement: if it was lost with an earlier connection, the agent would keep its results.
        acknowledged = [self.to(member, FinalAck())] if member.final is not None else []
        return [*acknowledged, self.to(member, Dismiss(exit_code=exit_code))]

    def to_all(self, message: CoordinatorMessage) -> list[Action]:
        """A message to every agent, also to those that are written off: they may hear it all the same."""
        return [self.to(member, message) for member in self._registry]
