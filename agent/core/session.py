"""Decides what an agent does about each event. Pure: events and the time in, actions out. `agent.core.transitions` has
the states of an agent, and `agent.core.lease` how long its load continues without a coordinator."""

from __future__ import annotations

from agent.core.actions import (
    Action,
    AgentEvent,
    ConnectMetrics,
    Examined,
    Exit,
    FromWorker,
    Identity,
    KillWorkers,
    LinkDown,
    LinkRefused,
    LinkUp,
    MetricsLinkDown,
    MetricsLinkUp,
    OrderWorkers,
    Received,
    Say,
    Send,
    Spawn,
    SpawnFailed,
    Terminated,
    Tick,
    WorkerExited,
)
from agent.core.assignment_checks import misfit, odd_start
from agent.core.assignment_tracker import AssignmentTracker, PreparationReports
from agent.core.kept_results import KeptResults, KeptRun
from agent.core.lease import Lease
from agent.core.link import Link, MetricsLink, introduction
from agent.core.outbox import Outbox
from agent.core.transitions import BEFORE_START, FENCED, Trigger, agent_lifecycle
from common.errors import FleetError, TargetError
from common.protocol.messages import (
    KEEP_LEASES,
    AgentMessage,
    AgentState,
    Attach,
    Attached,
    Bye,
    Dismiss,
    Envelope,
    Failed,
    FailureKind,
    FinalAck,
    FrameAck,
    HeartbeatReply,
    Prepare,
    Prepared,
    Preparing,
    Refused,
    StandBy,
    Start,
    Stop,
    Welcome,
    WorkerFinal,
    WorkerMessage,
    WorkerMetrics,
    WorkerStart,
    WorkerStop,
)
from common.units import NS_PER_S, clipped, counted

RESEND_AFTER_NS = 2 * NS_PER_S
GOODBYE_NS = 10 * NS_PER_S
OVERTIME_NS = 10 * NS_PER_S
"""A worker process that has not ended this long after its drain deadline is killed."""
TERMINATED_EXIT_CODE = 143


class Session:
    """The state of one agent: its links, its run, its clock. kept: results of earlier runs. ignored: messages that
    were for another process or run, or did not fit the state."""

    def __init__(self, identity: Identity, now_ns: int) -> None:
        self.identity = identity
        self._lifecycle = agent_lifecycle(identity.name or identity.host)
        self.run_id = ""
        self.outbox = Outbox()
        self.ignored = 0
        self._assignment = AssignmentTracker()
        self.kept = KeptResults()
        self._link = Link(now_ns)
        self._metrics = MetricsLink()
        self._lease = Lease(now_ns)
        self._done_ns = now_ns
        self._is_closed = False
        self._frames_moved_ns = now_ns
        self._kill_due_ns: int | None = None
        self._leave_due_ns: int | None = None
        self._reports = PreparationReports(now_ns)
        self._spoiled: tuple[str, Failed] | None = None
        self._reason = ""
        self._exit_code = 0
        self._terminations = 0

    @property
    def state(self) -> AgentState:
        """The state that heartbeats report."""
        return self._lifecycle.state

    def handle(self, event: AgentEvent, now_ns: int) -> list[Action]:
        """Return what to do about an event, in order. now_ns: this host's monotonic clock."""
        return [*self._handle(event, now_ns), *self._frames(now_ns)]

    def _handle(self, event: AgentEvent, now_ns: int) -> list[Action]:
        match event:
            case LinkUp():
                self._link.came_up(now_ns)
                return self._hello(now_ns)
            case MetricsLinkUp():
                self._metrics.came_up(now_ns)
                return self._attach(now_ns)
            case MetricsLinkDown(cause):
                self._metrics.went_down(cause)
                return []
            case LinkDown():
                text = "lost the coordinator; trying to reach it again"
                if self.state is AgentState.IDLE:
                    text = "the coordinator is gone; waiting for the next one"
                elif self.state is AgentState.DONE:
                    text += f", and {self._as_kept().described(now_ns)}"
                return [Say(text)] if self._link.went_down() else []
            case LinkRefused():
                self._link.refused(now_ns)
                return []
            case Examined(obstacle, lasting):
                is_news = self._link.examined(obstacle, lasting=lasting)
                # An agent between two runs has already reported that the coordinator is gone.
                waits = self.state is AgentState.IDLE and self._link.coordinator
                return [Say(f"{obstacle}; trying again")] if is_news and not lasting and not waits else []
            case Received(envelope):
                return self._received(envelope, now_ns)
            case FromWorker(process, message):
                return self._from_worker(process, message, now_ns)
            case WorkerExited(process, exit_code):
                return self._worker_exited(process, exit_code, now_ns)
            case SpawnFailed(reason):
                return self._break(_at_fault(reason))
            case Terminated():
                return self._terminated(now_ns)
            case Tick():
                return self._tick(event, now_ns)

    def _frames(self, now_ns: int) -> list[Action]:
        """Frames to send now. The coordinator of this run must know our metrics connection; after the load, agents of
        a large fleet take turns. A frame that the link does not take is sent again later."""
        waits = self.state is AgentState.DONE and now_ns < self._done_ns + self._link.turn_ns
        may_send = self._metrics.attached and self._link.coordinator == self.run_id and not waits
        frames = iter(self.outbox.next_frame, None) if may_send else ()
        return [action for frame in frames for action in self._send(frame, metrics=True)]

    # -- the links

    def _hello(self, now_ns: int) -> list[Action]:
        if not self._link.hello_is_due(now_ns):
            return []
        kept = self.kept.newest if self.state is AgentState.IDLE else None  # perhaps its coordinator is back
        known = (AgentState.DONE, kept.run_id, kept.outbox) if kept else (self.state, self.run_id, self.outbox)
        return self._send(introduction(self.identity, self._link.connection, *known))

    def _attach(self, now_ns: int) -> list[Action]:
        if not self._metrics.attach_is_due(now_ns):
            return []
        return self._send(Attach(secret=self.identity.secret, connection=self._metrics.connection), metrics=True)

    def _attached(self, run_id: str, now_ns: int) -> list[Action]:
        if run_id == self._link.coordinator and self._metrics.was_attached():
            self._frames_moved_ns = now_ns
            self.outbox.rewind()
        return self._maybe_ready()

    def _send(self, message: AgentMessage, run_id: str | None = None, *, metrics: bool = False) -> list[Action]:
        run_id = self.run_id if run_id is None else run_id
        return [Send(Envelope(run_id=run_id, incarnation=self.identity.incarnation, message=message), metrics)]

    # -- what the coordinator says

    def _received(self, envelope: Envelope, now_ns: int) -> list[Action]:
        if envelope.incarnation != self.identity.incarnation:
            self.ignored += 1
            return []
        self._link.heard(now_ns)
        is_of_our_run = envelope.run_id == self.run_id != ""
        if is_of_our_run:
            self._lease.heard_ns = now_ns
        message = envelope.message
        match message:
            case Welcome():
                return self._welcomed(message, envelope.run_id, now_ns)
            case Refused():
                text = f"the coordinator refused this agent: {clipped(message.reason)}"
                return [KillWorkers(), Exit(FleetError.exit_code, text)]
            case Attached():
                return self._attached(envelope.run_id, now_ns)
            case HeartbeatReply():
                self._link.replied(message, envelope.run_id, now_ns)
                if is_of_our_run:
                    self._lease.answered(message.sent_ns, now_ns)
                return []
            case StandBy():
                return [Say("standing by: the run has its agents, and may need this one later")]
            case Dismiss():
                return self._dismissed(message, envelope.run_id, now_ns)
            case Prepare():
                return self._prepare(envelope.run_id, message, now_ns)
        match message:
            case _ if not is_of_our_run:
                pass
            case Start():
                return self._start(message, now_ns)
            case Stop():
                return self._stop(drain=message.drain, reason=clipped(message.reason), now_ns=now_ns)
            case FrameAck():
                if self.outbox.acknowledge(message.next_seq):
                    self._frames_moved_ns = now_ns
                return []
            case FinalAck():
                return self._released()
        self.ignored += 1
        return []

    def _welcomed(self, welcome: Welcome, run_id: str, now_ns: int) -> list[Action]:
        is_news = self._link.welcomed(welcome, run_id, now_ns)
        self._metrics.welcomed(now_ns, is_news=is_news)
        said = [Say(f"joined as {clipped(welcome.agent_id)}")] if is_news else []
        return [ConnectMetrics(), *self._attach(now_ns), *said]

    def _dismissed(self, dismiss: Dismiss, run_id: str, now_ns: int) -> list[Action]:
        actions: list[Action] = []
        over = f"run {clipped(run_id)} is over (exit code {dismiss.exit_code}), and this agent took no part"
        if self.state in BEFORE_START:
            actions = self._abandon("the coordinator called the run off")
        elif run_id == self.run_id and self.state is not AgentState.IDLE:
            actions = self._closed(now_ns)
        if self.state is AgentState.IDLE and (self.identity.once or self._terminations):
            return [*actions, *self._send(Bye(reason="dismissed")), Exit(self._exit_code, "" if actions else over)]
        # The coordinator keeps its sockets open until a heartbeat shows that this agent is idle.
        self._link.hasten_heartbeat(now_ns)
        return [*actions, Say("waiting for the next run")] if self.state is AgentState.IDLE else actions

    def _closed(self, now_ns: int) -> list[Action]:
        """The coordinator ended the run without our last results. Stop the load at once, because the coordinator may
        have read counters and deleted keys. Keep the results for a coordinator that resumes the run."""
        if self._is_closed:
            return []
        self._is_closed = True
        if self._terminations:
            return self._leave_kept(self.run_id)
        text = f"its coordinator closed the run without them; {self._as_kept().described(now_ns)}"
        return [Say(text), *self._stop(drain=False, reason="its coordinator has closed the run", now_ns=now_ns)]

    def _leave_kept(self, run_ids: str) -> list[Action]:
        text = f"left with results that no coordinator took, of run {run_ids}"
        return [KillWorkers(), *self._send(Bye(reason="terminated")), Exit(FleetError.exit_code, text)]

    def _as_kept(self) -> KeptRun:
        """The current run as kept results. Their time begins when the coordinator was last heard, or the load ended."""
        until_ns = max(self._lease.heard_ns, self._done_ns) + KEEP_LEASES * self._assignment.lease_ns
        return KeptRun(self.run_id, self.outbox, self._assignment, self._reason, until_ns)

    def _change_run(self, now_ns: int) -> list[Action]:
        """Set results aside for another run's coordinator, or take up those of the coordinator that answers."""
        actions: list[Action] = [Say(text) for text in self.kept.given_up(now_ns)]
        is_other = self._link.welcome is not None and self._link.coordinator != self.run_id
        if not is_other or self.identity.once or self._terminations:
            return actions
        if self.state is AgentState.DONE:
            self._lifecycle.move(Trigger.SET_ASIDE)
            kept = self._as_kept()
            self.kept.set_aside(kept)
            self._clear()
            return [*actions, Say(f"another run's coordinator answers; {kept.described(now_ns)}")]
        if self.state is AgentState.IDLE and (found := self.kept.take_up(self._link.coordinator)) is not None:
            self._lifecycle.move(Trigger.TAKE_UP)
            self.run_id, self.outbox = found.run_id, found.outbox
            self._assignment, self._reason = found.assignment, found.reason
            self._lease.heard_ns = self._done_ns = now_ns
            self._metrics.is_doubtful(now_ns)  # send frames when the coordinator has answered
            return [*actions, Say(f"the coordinator of run {self.run_id} is back: delivering its results")]
        return actions

    def _prepare(self, run_id: str, message: Prepare, now_ns: int) -> list[Action]:
        if run_id == self.run_id:
            return self._prepared() if self.state is AgentState.PREPARED else []
        if self._spoiled is not None and self._spoiled[0] == run_id:
            return self._send(self._spoiled[1], run_id)
        # Checked in every state: a share that is impossible does not become possible by waiting.
        if found := misfit(message.assignments, self.identity.processes, self.identity.capacity):
            refused = _at_fault(found := clipped(found))
            return [Say(f"cannot take part in run {clipped(run_id)}: {found}"), *self._send(refused, run_id)]
        if self.state is not AgentState.IDLE:
            text = f"it still has {counted(len(self.outbox), 'frame')} of run {self.run_id}"
            return self._send(_at_fault(f"{text}; resume that run, or restart the agent"), run_id)
        self._lifecycle.move(Trigger.PREPARE)
        self.run_id, self.outbox, self._reason, self._exit_code = run_id, Outbox(), "", 0
        self._metrics.is_needed(now_ns)
        self._assignment = AssignmentTracker.of(message.assignments, self.identity.processes)
        self._lease.begins(self._assignment.lease_ns, now_ns)
        spawned = (Spawn(run_id, self._assignment.assignments), self._lease.pass_on(now_ns))
        said = self._assignment.described(self.identity.capacity.open_files)
        return [*map(Say, said), *spawned, *self._maybe_ready()]

    def _start(self, message: Start, now_ns: int) -> list[Action]:
        t0_ns = self._link.clock.to_local_ns(message.t0_ns)
        # After a reconnect, Start can come before the clocks are compared; the coordinator repeats it.
        if t0_ns is None or self.state is not AgentState.PREPARED:
            return []
        if found := odd_start(t0_ns, message.takeover, now_ns):
            return self._break(_at_fault(found))
        self._lifecycle.move(Trigger.START)
        self._kill_due_ns = self._assignment.overdue_ns(t0_ns, now_ns, OVERTIME_NS)
        order = OrderWorkers(WorkerStart(t0_ns=t0_ns, takeover=message.takeover))
        return [order, Say("running"), *self._maybe_over(now_ns)]

    def _stop(self, *, drain: bool, reason: str, now_ns: int) -> list[Action]:
        if self.state in BEFORE_START:
            self._spoil(_at_fault(f"it gave its assignment up in the preload: {reason}"))
            return self._abandon(reason)
        if self._lifecycle.move(Trigger.STOP):
            self._reason = reason
            self._kill_due_ns = now_ns + self._assignment.drain_ns + OVERTIME_NS
            return [OrderWorkers(WorkerStop(drain=drain)), Say(f"draining: {reason}")]
        if self.state is AgentState.DRAINING and not drain:
            return [OrderWorkers(WorkerStop(drain=False))]
        return []

    def _abandon(self, why: str) -> list[Action]:
        self._lifecycle.move(Trigger.ABANDON)
        return [KillWorkers(), *self._forget(why)]

    def _released(self) -> list[Action]:
        if self.state is not AgentState.DONE:
            self.ignored += 1
            return []
        self._lifecycle.move(Trigger.RELEASE)
        return [*self._forget("its results are safe with the coordinator"), *self._maybe_leave()]

    def _forget(self, why: str) -> list[Action]:
        text = f"run {self.run_id} is over for this agent: {why}"
        self._clear()
        return [Say(text)]

    def _clear(self) -> None:
        self.run_id, self.outbox, self._assignment = "", Outbox(), AssignmentTracker()
        self._kill_due_ns, self._is_closed = None, False

    def _maybe_leave(self) -> list[Action]:
        if self._terminations and self.kept:
            return self._leave_kept(str(self.kept))
        why = "terminated" if self._terminations else "served" if self.identity.once else ""
        return [*self._send(Bye(reason=why)), Exit(self._exit_code)] if why else []

    # -- what the workers say

    def _from_worker(self, process: int, message: WorkerMessage, now_ns: int) -> list[Action]:
        if process not in self._assignment:
            return []
        said: list[Action] = []
        match message:
            case Preparing():
                self._assignment.preparing(process, message)
                return self._progress(now_ns) if self.state is AgentState.PREPARING else []
            case Prepared():
                self._assignment.prepared(process, message)
                return self._maybe_ready()
            case Failed():
                message = Failed(kind=message.kind, reason=clipped(message.reason))
                if self.state in BEFORE_START:
                    return self._break(message)
                self._assignment.failed(process, message.reason)
                return [Say(f"worker process {process}: {message.reason}")]
            case WorkerMetrics():
                self._assignment.reported(process, message)
            case WorkerFinal():
                self._assignment.finished(process, message)
                if message.fenced and not self._reason:
                    self._reason = self._lease.why_fenced(process, now_ns)
                    said = [Say(f"worker process {process} stopped its load: {self._reason}")]
        self._collect(now_ns)
        return [*said, *self._maybe_over(now_ns)]

    def _worker_exited(self, process: int, exit_code: int | None, now_ns: int) -> list[Action]:
        lost = self._assignment.exited(process, exit_code)
        if lost is None:
            return []
        if self.state in BEFORE_START:
            return self._break(_at_fault(lost.reason))
        self._collect(now_ns)
        return [Say(lost.reason), *self._send(lost), *self._maybe_over(now_ns)]

    def _break(self, failed: Failed) -> list[Action]:
        """The preparation failed: give the assignment up, and report why."""
        self._lifecycle.move(Trigger.BREAK)
        at_fault = TargetError if failed.kind is FailureKind.TARGET else FleetError
        self._exit_code = at_fault.exit_code
        self._spoil(failed)
        return [KillWorkers(), *self._send(failed), *self._forget(failed.reason)]

    def _spoil(self, failed: Failed) -> None:
        """Refuse this assignment from now on if its preload has begun: a second preload would fill lists twice."""
        if self._assignment.has_preloaded:
            self._spoiled = (self.run_id, failed)

    def _maybe_ready(self) -> list[Action]:
        is_ready = self.state is not AgentState.IDLE and self._assignment.all_prepared and self._metrics.proved
        return self._prepared() if is_ready and self._lifecycle.move(Trigger.READY) else []

    def _progress(self, now_ns: int) -> list[Action]:
        progress = self._assignment.progress()
        is_due, line = self._reports.take(progress, now_ns)
        return [*(self._send(progress) if is_due else []), *([Say(line)] if line else [])]

    def _prepared(self) -> list[Action]:
        return self._send(self._assignment.as_prepared())

    def _collect(self, now_ns: int) -> None:
        if (report := self._assignment.take_report(self._link.reporting_period(now_ns))) is not None:
            if not len(self.outbox):
                self._frames_moved_ns = now_ns  # until now no acknowledgement was due
            self.outbox.add(report.through, report.intervals)

    def _maybe_over(self, now_ns: int) -> list[Action]:
        if not self._assignment.all_over or not self._lifecycle.move(Trigger.WORKERS_OVER):
            return []
        self._kill_due_ns, self._done_ns = None, now_ns
        return [*self._final(), *([Say(self._as_kept().described(now_ns))] if self._link.welcome is None else [])]

    def _final(self) -> list[Action]:
        """Final, once every frame has a number; repeated with heartbeats until it is acknowledged."""
        return self._send(self._assignment.final(self.outbox.next_seq, self._reason)) if self.outbox.all_sealed else []

    # -- time, and signals

    def _terminated(self, now_ns: int) -> list[Action]:
        self._terminations += 1
        if self._is_closed or (self.kept and self.state is AgentState.IDLE):
            return self._leave_kept(self.run_id or str(self.kept))
        if self._terminations > 1:
            text = f"left at once: what no coordinator has of run {self.run_id} is lost"
            return [KillWorkers(), *self._send(Bye(reason="terminated at once")), Exit(TERMINATED_EXIT_CODE, text)]
        self._leave_due_ns = now_ns + self._assignment.drain_ns + OVERTIME_NS + GOODBYE_NS
        is_idle = self.state is AgentState.IDLE
        actions = [] if is_idle else self._stop(drain=True, reason="this agent was terminated", now_ns=now_ns)
        if self.state is AgentState.IDLE:
            return [*actions, *self._send(Bye(reason="terminated")), Exit(0)]
        if self.state is AgentState.DONE:
            text = f"waiting {(self._leave_due_ns - now_ns) / NS_PER_S:.0f} s at most for a coordinator to take"
            actions = [Say(f"{text} the results of run {self.run_id}; interrupt again to leave without them")]
        return actions

    def _tick(self, tick: Tick, now_ns: int) -> list[Action]:
        self._lease.ticks(tick.suspended_ns, now_ns)
        actions = [*self._change_run(now_ns), *self._hello(now_ns), *self._attach(now_ns), *self._overdue(now_ns)]
        actions += self._lease.pass_on_news(now_ns) if self.state in FENCED else []
        self._collect(now_ns)
        if not self._link.heartbeat_is_due(now_ns, runs=self.state is AgentState.RUNNING):
            return actions
        frames, alive = len(self.outbox), self._assignment.alive
        actions += self._send(self._link.heartbeat(tick, self.state, frames, alive, now_ns))
        return [*actions, *self._final()] if self.state is AgentState.DONE else actions

    def _overdue(self, now_ns: int) -> list[Action]:
        """What follows when a wait exceeds its limit."""
        if self.state is AgentState.IDLE:
            # Kept results have a time limit of their own.
            why = "" if self.kept else self._link.hopeless or self._link.waited_in_vain(self.identity.wait_ns, now_ns)
            return [Exit(FleetError.exit_code, why)] if why else []
        if self._leave_due_ns is not None and now_ns > self._leave_due_ns:
            text = "left without word from the coordinator: its last results may be missing"
            return [KillWorkers(), Exit(FleetError.exit_code, text)]
        if self._kill_due_ns is not None and now_ns > self._kill_due_ns:
            self._kill_due_ns = None
            return self._give_up(now_ns)
        prepares = self.state is AgentState.PREPARING and self._link.welcome is not None
        if prepares and (cause := self._metrics.unreachable(self.identity.endpoint, now_ns)):
            return self._break(_at_fault(cause))
        if self.state in FENCED and (reason := self._lease.expired(now_ns)):
            return self._stop(drain=True, reason=reason, now_ns=now_ns)
        if self.state is AgentState.DONE and now_ns > self._as_kept().until_ns:
            self._lifecycle.move(Trigger.RELEASE)
            self._exit_code = FleetError.exit_code
            return [*self._forget("no coordinator collected its results"), *self._maybe_leave()]
        if self._metrics.attached and len(self.outbox) and now_ns - self._frames_moved_ns > RESEND_AFTER_NS:
            self._metrics.is_doubtful(now_ns)
            return self._attach(now_ns)
        return []

    def _give_up(self, now_ns: int) -> list[Action]:
        reports = [action for lost in self._assignment.give_up() for action in (Say(lost.reason), *self._send(lost))]
        self._collect(now_ns)
        return [KillWorkers(), *reports, *self._maybe_over(now_ns)]


def _at_fault(reason: str) -> Failed:
    return Failed(kind=FailureKind.AGENT, reason=reason)
