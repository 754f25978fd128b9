"""What a coordinator does about everything that happens to a run. Pure: events and the time in, actions out.

Theory of operation. The run moves through the phases below, and nothing but `_moves` changes the phase. Agents are
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
    any of the first three   GIVE_UP    CLOSED   agents are dismissed; nothing was written, or an aborted run
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from common.errors import EXIT_INTERRUPTED, FleetError, TargetError
from common.messages import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    AgentState,
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
    Prepare,
    Prepared,
    Preparing,
    Refused,
    Start,
    Stop,
    Welcome,
    WorkerLost,
)
from common.plan.describe import plan_hash
from common.plan.schema import Plan
from common.plan.secret import redacted
from common.units import NS_PER_S
from coordinator.records import (
    AgentEnd,
    FrameAccepted,
    Outcome,
    RunClosed,
    RunOpened,
    RunStarted,
    ServerCounted,
    TargetFacts,
    When,
    WorkerNoted,
)
from coordinator.registry import Member, Registry, capacities
from coordinator.shares import Shares, assign
from coordinator.steps import (
    Action,
    Counted,
    End,
    Event,
    FromAgent,
    Interrupted,
    LocalAgentExited,
    Note,
    Progress,
    ReadServer,
    Send,
    Tick,
    Write,
)

HEARTBEAT_S = 1.0
START_AHEAD_NS = 600_000_000
"""How far ahead the start instant lies: time for the message and for each agent to wake its workers."""
REPEAT_AFTER_NS = NS_PER_S
WRITE_OFF_NS = 10 * NS_PER_S
"""Silence after which an agent is not waited for any more once the run should be over."""
OVERTIME_NS = 15 * NS_PER_S
"""How long after the drain should have ended an agent is still waited for: it kills stuck workers before that."""
DEAD_TARGET_NS = 30 * NS_PER_S
"""A run by number of requests that has had no success for so long would never end."""


class Phase(enum.Enum):
    """Where a run is."""

    GATHERING = "gathering"
    PREPARING = "preparing"
    COUNTING = "counting"
    RUNNING = "running"
    DRAINING = "draining"
    SETTLING = "settling"
    CLOSED = "closed"


class Trigger(enum.Enum):
    """What can move a run from one phase to the next."""

    QUORUM = "quorum"
    READY = "ready"
    COUNTED = "counted"
    STOP = "stop"
    ALL_OVER = "all over"
    GIVE_UP = "give up"


TRANSITIONS: dict[tuple[Phase, Trigger], Phase] = {
    (Phase.GATHERING, Trigger.QUORUM): Phase.PREPARING,
    (Phase.PREPARING, Trigger.READY): Phase.COUNTING,
    (Phase.COUNTING, Trigger.COUNTED): Phase.RUNNING,
    (Phase.RUNNING, Trigger.STOP): Phase.DRAINING,
    (Phase.RUNNING, Trigger.ALL_OVER): Phase.SETTLING,
    (Phase.DRAINING, Trigger.ALL_OVER): Phase.SETTLING,
    (Phase.SETTLING, Trigger.COUNTED): Phase.CLOSED,
    (Phase.GATHERING, Trigger.GIVE_UP): Phase.CLOSED,
    (Phase.PREPARING, Trigger.GIVE_UP): Phase.CLOSED,
    (Phase.COUNTING, Trigger.GIVE_UP): Phase.CLOSED,
}
_UNDER_WAY = (Phase.RUNNING, Phase.DRAINING)


@dataclass(frozen=True, slots=True)
class Setup:
    """What a run is begun with. plan: with secrets, which never reach a record. expected: agents to wait for."""

    plan: Plan
    run_id: str
    started_at: str
    target: TargetFacts
    expected: int
    endpoint: str
    metrics_port: int


@dataclass(slots=True)
class Counters:
    """Traffic that was set aside, for people who look for trouble."""

    stale: int = 0
    duplicates: int = 0
    gaps: int = 0


@dataclass(slots=True)
class _Ending:
    """Why the run ends, once that is known to be other than as planned."""

    interrupted: bool = False
    aborted: str = ""
    exit_code: int = 0
    troubles: list[str] = field(default_factory=list)


class Run:
    """The state of one run. `registry`, `phase` and `t0_ns` are there to be shown; `handle` is the one way in."""

    def __init__(self, setup: Setup, now_ns: int) -> None:
        self.setup = setup
        self.phase = Phase.GATHERING
        self.registry = Registry()
        self.counters = Counters()
        self.t0_ns: int | None = None
        self._hash = plan_hash(setup.plan)
        self._shares: Shares | None = None
        self._phase_since_ns = now_ns
        self._began_ns = now_ns
        self._success_ns = now_ns
        self._interrupts = 0
        self._last_progress: Progress | None = None
        self._ending = _Ending()

    def handle(self, event: Event, now_ns: int) -> list[Action]:
        """What to do about it, in order. now_ns: this host's monotonic clock."""
        if self.phase is Phase.CLOSED:
            return []
        match event:
            case FromAgent(routing_id, envelope, metrics):
                actions = self._from_agent(routing_id, envelope, metrics, now_ns)
            case LocalAgentExited():
                actions = self._local_agent_exited(event)
            case Counted(record):
                actions = self._counted(record, now_ns)
            case Interrupted():
                actions = self._interrupted(now_ns)
            case Tick():
                actions = self._tick(now_ns)
        return [*actions, *self._advance(now_ns)]

    @property
    def fleet_plan(self) -> Plan:
        """The plan with fleet-wide numbers once shares are dealt; as given before that."""
        return self._shares.plan if self._shares else self.setup.plan

    @classmethod
    def resumed(
        cls, setup: Setup, opened: RunOpened, t0_ns: int, next_seqs: dict[str, int], over: set[str], now_ns: int
    ) -> Run:
        """A run that goes on where a killed coordinator stopped. next_seqs: of the frame wanted next, by agent id.
        over: ids of agents whose part had ended. Agents that are not heard of within the usual time are lost."""
        run = cls(setup, now_ns)
        for facts in opened.agents:
            member = run.registry.readmit(facts, next_seqs.get(facts.agent_id, 0), now_ns)
            if facts.agent_id in over:
                member.end = AgentEnd.FINISHED
        run.phase, run.t0_ns = Phase.RUNNING, t0_ns
        return run

    # -- agents come and speak

    def _from_agent(self, routing_id: bytes, envelope: Envelope, metrics: bool, now_ns: int) -> list[Action]:
        message = envelope.message
        if isinstance(message, Hello):
            return self._hello(routing_id, envelope.incarnation, message, now_ns)
        member = self.registry.find(envelope.incarnation)
        if member is None:
            # It was welcomed by a coordinator before us; its hello comes when its link tells it to.
            self.counters.stale += 1
            return []
        actions = self._heard(member, now_ns)
        if isinstance(message, Heartbeat):
            member.heartbeat(message, running=self.phase in _UNDER_WAY)
            reply = HeartbeatReply(sent_ns=message.sent_ns, received_ns=now_ns, replied_ns=now_ns)
            return [*actions, self._to(member, reply), *self._keep_in_step(member, now_ns)]
        if isinstance(message, Bye):
            return [*actions, *self._said_bye(member, message.reason)]
        if envelope.run_id != self.setup.run_id or not member.takes_part:
            self.counters.stale += 1
            return actions
        match message:
            case Preparing():
                member.connections = message
            case Prepared():
                member.prepared = True
            case Failed():
                actions += self._failed(member, message)
            case MetricsFrame():
                actions += self._frame(member, message, routing_id if metrics else member.routing_id, now_ns)
            case WorkerLost():
                actions += self._worker_lost(member, message)
            case Final():
                actions += self._final(member, message)
        return actions

    def _heard(self, member: Member, now_ns: int) -> list[Action]:
        member.heard_ns = now_ns
        if not member.lost or member.gone:
            return []
        member.lost = False
        if member.end is AgentEnd.LOST:
            member.end = None
        return [Note(f"agent {member.agent_id} is back")]

    def _hello(self, routing_id: bytes, incarnation: str, hello: Hello, now_ns: int) -> list[Action]:
        protocol = min(hello.protocol_max, PROTOCOL_MAX)
        if protocol < max(hello.protocol_min, PROTOCOL_MIN):
            reason = (
                f"it speaks protocol {hello.protocol_min} to {hello.protocol_max} (version {hello.version}), "
                f"this coordinator {PROTOCOL_MIN} to {PROTOCOL_MAX}; install the same release on both"
            )
            refused = Envelope(run_id="", incarnation=incarnation, message=Refused(reason=reason))
            return [Note(f"refused an agent from {hello.host}: {reason}"), Send(routing_id, refused)]
        known = self.registry.find(incarnation) is not None
        member = self.registry.admit(hello, incarnation, routing_id, now_ns)
        actions = self._heard(member, now_ns)
        welcome = Welcome(
            protocol=protocol,
            agent_id=member.agent_id,
            metrics_port=self.setup.metrics_port,
            heartbeat_s=HEARTBEAT_S,
            lease_s=float(self.setup.plan.fleet.lease_s),
        )
        actions.append(self._to(member, welcome))
        if not known:
            actions.append(Note(f"agent {member.agent_id} joined from {member.host} with {member.processes} processes"))
            if hello.run_id not in (None, self.setup.run_id):
                actions.append(Note(f"agent {member.agent_id} still holds run {hello.run_id}, and cannot take part"))
        return [*actions, *self._keep_in_step(member, now_ns)]

    def _keep_in_step(self, member: Member, now_ns: int) -> list[Action]:
        """Tell an agent again what it seems to have missed, at most once a second."""
        if not member.takes_part or member.end is not None or now_ns - member.order_sent_ns < REPEAT_AFTER_NS:
            return []
        match self.phase, member.state:
            case Phase.PREPARING, AgentState.IDLE if not member.prepared:
                return self._order(member, self._prepare_order(member), now_ns)
            case Phase.RUNNING, AgentState.PREPARED:
                return self._order(member, self._start_order(), now_ns)
            case Phase.DRAINING, AgentState.PREPARED | AgentState.RUNNING:
                return self._order(member, Stop(drain=True, reason="the run is stopped"), now_ns)
            case ((Phase.RUNNING | Phase.DRAINING), AgentState.IDLE):
                return self._lose(member, "it gave its share up")
        return []

    def _said_bye(self, member: Member, reason: str) -> list[Action]:
        member.gone = f"it said goodbye: {reason}"
        if member.end is None and member.takes_part:
            return self._lose(member, member.gone)
        if not member.takes_part:
            self.registry.leave(member.incarnation)
            return [Note(f"agent {member.agent_id} left: {reason}")]
        return []

    def _failed(self, member: Member, failed: Failed) -> list[Action]:
        text = f"agent {member.agent_id} on {member.host}: {failed.reason}"
        if self.phase in _UNDER_WAY:
            return self._lose(member, failed.reason)
        code = TargetError.exit_code if failed.kind is FailureKind.TARGET else FleetError.exit_code
        return self._give_up(text, code)

    def _frame(self, member: Member, frame: MetricsFrame, routing_id: bytes, now_ns: int) -> list[Action]:
        """Accept it if it is the one wanted next. Answer with what is wanted next in any case: that is how an agent
        learns of an acknowledgement that was lost, and of a gap."""
        actions: list[Action] = []
        if frame.seq == member.next_seq and self.phase in _UNDER_WAY and member.final is None:
            member.next_seq += 1
            actions.append(Write(FrameAccepted(agent_id=member.agent_id, frame=frame)))
            if any(c.ok for part in frame.intervals for pool in part.pools.values() for c in pool.commands.values()):
                self._success_ns = now_ns
        elif frame.seq < member.next_seq:
            self.counters.duplicates += 1
        else:
            self.counters.gaps += 1
        ack = Envelope(
            run_id=self.setup.run_id, incarnation=member.incarnation, message=FrameAck(next_seq=member.next_seq)
        )
        return [*actions, Send(routing_id, ack, metrics=True)]

    def _worker_lost(self, member: Member, lost: WorkerLost) -> list[Action]:
        member.processes_lost += 1
        self._trouble(f"agent {member.agent_id}: {lost.reason}")
        noted = WorkerNoted(
            agent_id=member.agent_id, process=lost.process, exit_code=lost.exit_code, reason=lost.reason
        )
        return [Write(noted), Note(f"agent {member.agent_id}: {lost.reason}")]

    def _final(self, member: Member, final: Final) -> list[Action]:
        """Final counts once all its frames are in the journal; until then the agent repeats it."""
        if member.final is None:
            if final.next_seq != member.next_seq:
                return []
            member.final, member.end = final, AgentEnd.FINISHED
            if final.processes_lost > member.processes_lost:
                self._trouble(f"agent {member.agent_id} lost {final.processes_lost} worker processes")
            if final.reason and self.phase is Phase.RUNNING:
                self._trouble(f"agent {member.agent_id} ended early: {final.reason}")
            return [Write(member.noted(AgentEnd.FINISHED, final.reason)), self._to(member, FinalAck())]
        return [self._to(member, FinalAck())]

    # -- agents go

    def _lose(self, member: Member, why: str) -> list[Action]:
        member.lost = True
        if not member.takes_part or self.phase not in _UNDER_WAY:
            return []
        if member.end is not None:
            return []
        member.end = AgentEnd.LOST
        return [
            Write(member.noted(AgentEnd.LOST, why)),
            Note(f"agent {member.agent_id} on {member.host} is lost: {why}"),
        ]

    def _local_agent_exited(self, event: LocalAgentExited) -> list[Action]:
        how = f"its process ended with exit code {event.exit_code}"
        how += f" ({event.last_words})" if event.exit_code and event.last_words else ""
        member = next((member for member in self.registry if member.pid == event.pid), None)
        if member is None or not member.takes_part:
            return self._give_up(f"a local agent could not join: {how}", FleetError.exit_code)
        member.gone = how
        return self._lose(member, how) if member.end is None else []

    # -- phases

    def _advance(self, now_ns: int) -> list[Action]:
        """Move on as far as the agents' states allow."""
        match self.phase:
            case Phase.GATHERING:
                return self._gather(now_ns)
            case Phase.PREPARING:
                return self._watch_preparing(now_ns)
            case Phase.RUNNING | Phase.DRAINING:
                return self._watch_running(now_ns)
        return []

    def _gather(self, now_ns: int) -> list[Action]:
        ready = self.registry.idle()
        expected = self.setup.expected
        if len(ready) < expected:
            return self._progress(Progress("waiting for agents", len(ready), expected))
        chosen = ready[:expected]
        self._shares = assign(self.setup.plan, capacities(chosen))
        self._moves(Trigger.QUORUM, now_ns)
        actions: list[Action] = []
        for member in chosen:
            member.takes_part = True
            actions += self._order(member, self._prepare_order(member), now_ns)
        return actions

    def _watch_preparing(self, now_ns: int) -> list[Action]:
        members = self.registry.taking_part()
        gone = next((member for member in members if member.lost or member.gone), None)
        if gone is not None:
            why = gone.gone or "it is silent"
            return self._give_up(f"agent {gone.agent_id} was lost before the start: {why}", FleetError.exit_code)
        if not all(member.prepared and member.offset_ns is not None for member in members):
            total = sum(member.connections.total for member in members)
            if total:
                return self._progress(
                    Progress("opening connections", sum(member.connections.done for member in members), total)
                )
            return self._progress(
                Progress("preparing agents", sum(member.prepared for member in members), len(members))
            )
        self._moves(Trigger.READY, now_ns)
        return [Write(self._opened(members)), ReadServer(When.BEFORE)]

    def _opened(self, members: list[Member]) -> RunOpened:
        assert self._shares is not None
        shares, setup = self._shares, self.setup
        return RunOpened(
            run_id=setup.run_id,
            started_at=setup.started_at,
            plan=redacted(shares.plan),
            plan_hash=self._hash,
            target=setup.target,
            connection_ceiling=shares.connection_ceiling,
            agents=tuple(member.facts(shares.assignments[member.agent_id].pools) for member in members),
            threads_total=shares.threads_total,
            endpoint=setup.endpoint,
            metrics_port=setup.metrics_port,
        )

    def _counted(self, record: ServerCounted, now_ns: int) -> list[Action]:
        if self.phase is Phase.COUNTING and self._moves(Trigger.COUNTED, now_ns):
            self.t0_ns = now_ns + START_AHEAD_NS
            self._success_ns = self.t0_ns
            actions: list[Action] = [Write(record), Write(RunStarted(t0_ns=self.t0_ns))]
            for member in self.registry.taking_part():
                actions += self._order(member, self._start_order(), now_ns)
            return actions
        if self.phase is Phase.SETTLING and self._moves(Trigger.COUNTED, now_ns):
            return [Write(record), *self._closed()]
        return []

    def _watch_running(self, now_ns: int) -> list[Action]:
        actions: list[Action] = []
        for member in self.registry.newly_lost(now_ns):
            silent_s = (now_ns - member.heard_ns) / NS_PER_S
            actions += self._lose(member, f"nothing was heard of it for {silent_s:.1f} s")
        if any(not self._written_off(member, now_ns) for member in self.registry.taking_part()):
            return actions
        self._moves(Trigger.ALL_OVER, now_ns)
        return [*actions, ReadServer(When.AFTER)]

    def _written_off(self, member: Member, now_ns: int) -> bool:
        """Whether nothing more is to be waited for from this agent."""
        if member.end is AgentEnd.FINISHED or member.gone:
            return True
        if not member.lost:
            return False
        silent_ns = now_ns - member.heard_ns
        if self.phase is Phase.DRAINING or silent_ns > self.setup.plan.fleet.lease_s.ns:
            return True
        planned_end_ns = self._planned_end_ns()
        others_over = all(other.end is not None for other in self.registry.taking_part())
        due = planned_end_ns is None or now_ns > planned_end_ns
        return silent_ns > WRITE_OFF_NS and due and others_over

    def _planned_end_ns(self) -> int | None:
        duration_s = self.setup.plan.load.duration_s
        return None if duration_s is None or self.t0_ns is None else self.t0_ns + duration_s.ns

    def _tick(self, now_ns: int) -> list[Action]:
        """Every wait has a bound; these are the bounds."""
        fleet = self.setup.plan.fleet
        in_phase_ns = now_ns - self._phase_since_ns
        match self.phase:
            case Phase.GATHERING if in_phase_ns > fleet.wait_s.ns:
                joined = ", ".join(member.agent_id for member in self.registry) or "none"
                text = (
                    f"expected {self.setup.expected} agents within {fleet.wait_s}, "
                    f"got {len(self.registry)} ({joined}); "
                    f"start them with `agent join {self.setup.endpoint}`, or wait longer with --wait"
                )
                return self._give_up(text, FleetError.exit_code)
            case Phase.PREPARING if in_phase_ns > fleet.prepare_s.ns:
                late = ", ".join(member.agent_id for member in self.registry.taking_part() if not member.prepared)
                return self._give_up(f"not prepared within {fleet.prepare_s}: {late}", FleetError.exit_code)
            case Phase.PREPARING:
                self.registry.newly_lost(now_ns)
            case Phase.RUNNING:
                return self._overdue_run(now_ns)
            case Phase.DRAINING if in_phase_ns > fleet.drain_s.ns + OVERTIME_NS:
                return self._lose_all("it did not end within the drain")
        return []

    def _overdue_run(self, now_ns: int) -> list[Action]:
        planned_end_ns = self._planned_end_ns()
        overtime_ns = self.setup.plan.fleet.drain_s.ns + OVERTIME_NS
        if planned_end_ns is not None and now_ns > planned_end_ns + overtime_ns:
            return self._lose_all("it did not end in time")
        if planned_end_ns is None and now_ns - self._success_ns > DEAD_TARGET_NS:
            text = f"no operation succeeded for {DEAD_TARGET_NS // NS_PER_S} s, and the plan has no end in time"
            self._ending.aborted, self._ending.exit_code = text, TargetError.exit_code
            return self._stop(text, now_ns)
        return []

    def _lose_all(self, why: str) -> list[Action]:
        actions: list[Action] = []
        for member in self.registry.taking_part():
            if member.end is None:
                member.gone = why
                actions += self._lose(member, why)
        return actions

    def _interrupted(self, now_ns: int) -> list[Action]:
        self._interrupts += 1
        self._ending.interrupted = True
        if self.phase in (Phase.GATHERING, Phase.PREPARING, Phase.COUNTING):
            return self._give_up("interrupted before the start", EXIT_INTERRUPTED)
        if self._interrupts == 1:
            return [Note("draining; interrupt again to stop at once"), *self._stop("interrupted", now_ns)]
        actions = self._to_all(Stop(drain=False, reason="interrupted twice"))
        return [*actions, *self._lose_all("the run was stopped at once")]

    def _stop(self, reason: str, now_ns: int) -> list[Action]:
        if not self._moves(Trigger.STOP, now_ns):
            return []
        return self._to_all(Stop(drain=True, reason=reason))

    def _give_up(self, text: str, exit_code: int) -> list[Action]:
        written = self.phase is Phase.COUNTING
        if not self._moves(Trigger.GIVE_UP, self._phase_since_ns):
            return []
        closed: list[Action] = []
        if written:
            closed = [Write(RunClosed(outcome=Outcome.ABORTED, reason=text, duration_s=0.0))]
        outcome = Outcome.ABORTED if written else None
        return [*closed, *self._to_all(Dismiss(exit_code=exit_code)), End(exit_code, text, outcome)]

    def _closed(self) -> list[Action]:
        outcome, text, code = self._outcome()
        closed = RunClosed(outcome=outcome, reason=text, duration_s=self._duration_s())
        return [Write(closed), *self._to_all(Dismiss(exit_code=code)), End(code, text, outcome)]

    def _outcome(self) -> tuple[Outcome, str, int]:
        lost = [member.agent_id for member in self.registry.taking_part() if member.end is AgentEnd.LOST]
        troubles = [f"lost {', '.join(lost)}"] if lost else []
        troubles += self._ending.troubles
        text = "; ".join(troubles)
        if self._ending.interrupted:
            return Outcome.INTERRUPTED, text, EXIT_INTERRUPTED
        if self._ending.aborted:
            return Outcome.ABORTED, self._ending.aborted, self._ending.exit_code
        if troubles:
            tolerated = not self._ending.troubles and len(lost) <= self.setup.plan.fleet.tolerate_lost
            return Outcome.DEGRADED, text, 0 if tolerated else FleetError.exit_code
        return Outcome.COMPLETED, "", 0

    def _duration_s(self) -> float:
        """To the end of the last worker thread; where no agent could say, as far as anything was heard."""
        finals = [member.final for member in self.registry.taking_part() if member.final is not None]
        if finals and max(final.ran_ns for final in finals) > 0:
            return max(final.ran_ns for final in finals) / NS_PER_S
        heard_ns = max((member.heard_ns for member in self.registry.taking_part()), default=0)
        return max(0, heard_ns - (self.t0_ns or heard_ns)) / NS_PER_S

    # -- small change

    def _trouble(self, text: str) -> None:
        if text not in self._ending.troubles:
            self._ending.troubles.append(text)

    def _progress(self, progress: Progress) -> list[Action]:
        if progress == self._last_progress:
            return []
        self._last_progress = progress
        return [progress]

    def _prepare_order(self, member: Member) -> Prepare:
        assert self._shares is not None
        return Prepare(assignment=self._shares.assignments[member.agent_id], plan_hash=self._hash)

    def _start_order(self) -> Start:
        assert self.t0_ns is not None
        return Start(t0_ns=self.t0_ns)

    def _order(self, member: Member, order: CoordinatorMessage, now_ns: int) -> list[Action]:
        member.order_sent_ns = now_ns
        return [self._to(member, order)]

    def _to(self, member: Member, message: CoordinatorMessage) -> Send:
        envelope = Envelope(run_id=self.setup.run_id, incarnation=member.incarnation, message=message)
        return Send(member.routing_id, envelope)

    def _to_all(self, message: CoordinatorMessage) -> list[Action]:
        return [self._to(member, message) for member in self.registry if not member.gone]

    def _moves(self, trigger: Trigger, now_ns: int) -> bool:
        """Go where the table says; whether there is such a row. The one place that changes `phase`."""
        following = TRANSITIONS.get((self.phase, trigger))
        if following is not None:
            self.phase, self._phase_since_ns = following, now_ns
        return following is not None
