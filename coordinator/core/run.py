"""Decides what a coordinator does about each event of a run. Pure: events and the time in, actions out.

`coordinator.core.transitions` has the phases of a run and their reasons, `coordinator.core.conversation` the answers to
agents, and `coordinator.core.waiting` the agents that a run waits for at its end.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from common.errors import EXIT_INTERRUPTED, EXIT_OK, FleetError, TargetError
from common.plan.scenarios import cleans_up
from common.protocol.messages import AgentState, Envelope, Heartbeat, MetricsFrame, Stop
from common.units import NS_PER_S, listed
from coordinator.analysis.target_loss import target_losses
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.core.actions import (
    Action,
    CalledOff,
    Cleaned,
    Counted,
    DeleteKeys,
    End,
    FromAgent,
    Interrupted,
    Leave,
    LocalAgentExited,
    Note,
    Progress,
    ReadServer,
    RunEvent,
    StopDeleting,
    Tick,
    Write,
)
from coordinator.core.conversation import Conversation
from coordinator.core.dealt_plan import assign, oversized
from coordinator.core.member import COME_BACK_NS
from coordinator.core.outcome import duration_s, is_planned_stop
from coordinator.core.registry import LARGE_FLEET, JournaledAgent, capacities
from coordinator.core.run_state import RunState
from coordinator.core.setup import Setup, agents_missing, dealt_lines, is_quorum, opened, preparing
from coordinator.core.takeover import TakeOvers, reason_to_abort
from coordinator.core.transitions import Phase, Trigger
from coordinator.core.waiting import AT_ONCE_NS, Waiting
from coordinator.journal.records import (
    AgentOutcome,
    CleanedUp,
    CountersRead,
    Outcome,
    Reading,
    RunClosed,
    RunStarted,
    StopDecided,
    StopKind,
)

START_AHEAD_NS = 600_000_000
"""How far ahead the start instant lies: time for the message and for each agent to wake its workers."""
COUNT_WAIT_NS = 60 * NS_PER_S
"""How long a run waits for the server's counters; a report can do without them."""
CLOCK_RTT_NS = NS_PER_S // 5
CLOCK_WAIT_NS = 3 * NS_PER_S
"""A clock estimate is exact to half of a round trip. If either side stalled meanwhile, the next heartbeats improve it:
a start waits up to CLOCK_WAIT_NS for a round trip of at most CLOCK_RTT_NS, but not longer for a slow network."""
STALLED_NS = NS_PER_S
"""If ticks are further apart than this, our process was stopped, and has not read messages meanwhile."""
DISMISS_NS = 3 * NS_PER_S
"""How long agents have to answer their dismissal."""
AfterLoad = CountersRead | CleanedUp
"""Records after the load: the second reading of the server's counters, and the clean-up."""
_COUNTS = {Phase.COUNTING: Reading.BEFORE, Phase.SETTLING: Reading.AFTER}


class Run:
    """One run. `handle` is the only method that changes it; views read `state`."""

    def __init__(
        self, setup: Setup, now_ns: int, written: Aggregate | None = None, state: RunState | None = None
    ) -> None:
        """written: the records in the run's journal. The caller updates it when it performs `Write`; this class reads
        it. state: of a run that is resumed."""
        self.state = state or RunState(setup, now_ns)
        self._written = written or Aggregate()
        self._counted_after: CountersRead | None = None
        self._conversation = Conversation(self.state)
        self._waiting = Waiting(self.state)
        self._takeovers = TakeOvers(self.state, self._conversation, self._written)
        self._ticked_ns = now_ns
        self._interrupts = 0
        self._is_at_once = self._leaves_keys = False
        self._at_once_due_ns: int | None = None
        self._writers: tuple[str, ...] = ()
        self._exit_code = EXIT_OK
        self._prepared_ns: int | None = None
        self._last_progress: Progress | None = None
        self._after: frozenset[type[AfterLoad]] = frozenset()

    def handle(self, event: RunEvent, now_ns: int) -> list[Action]:
        """Return what to do about an event, in order. now_ns: this host's monotonic clock."""
        if self.state.phase is Phase.CLOSED:
            return []
        if self.state.phase is Phase.DISMISSING:
            return self._dismissing(event, now_ns)
        match event:
            case FromAgent(routing_id, envelope):
                before = self._stands(envelope, now_ns)
                actions = self._conversation.received(routing_id, envelope, now_ns)
                if before is not None and before == self._stands(envelope, now_ns):
                    return actions  # walking over all agents for each message would take a large fleet too much CPU
            case LocalAgentExited():
                actions = self._local_agent_exited(event, now_ns)
            case Counted(record):
                actions = self._counted(record, now_ns)
            case Cleaned(done):
                actions = self._cleaned(done, now_ns) if self.state.phase is Phase.CLEANING else []
            case CalledOff(exit_code):
                self._exit_code = exit_code
                self.state.move(Trigger.GIVE_UP, now_ns)
                return self._conversation.dismiss_all(exit_code)
            case Interrupted():
                actions = self._interrupted(now_ns)
            case Tick():
                actions = self._tick(now_ns)
        return [*actions, *self._advance(now_ns)]

    def _stands(self, envelope: Envelope, now_ns: int) -> tuple[object, ...] | None:
        """The facts about the sender that can move the phase, as far as a heartbeat or a frame can change them. Ticks
        handle what time changes, and everything in a large fleet. None for other messages and unknown senders."""
        if len(self.state.registry) > LARGE_FLEET:
            return ()
        member = self.state.registry.find(envelope.incarnation)
        if member is None or not isinstance(envelope.message, Heartbeat | MetricsFrame):
            return None
        may_be_dealt = member.reported is AgentState.IDLE and member.is_fresh(now_ns)
        rtt_ns = member.rtt_ns if self.state.phase is Phase.PREPARING else None  # a heartbeat may change it at any time
        return (member.reported, member.state, rtt_ns, may_be_dealt)

    @classmethod
    def resumed(
        cls,
        setup: Setup,
        t0_ns: int,
        agents: Sequence[JournaledAgent],
        now_ns: int,
        *,
        after: Sequence[AfterLoad] = (),
        written: Aggregate | None = None,
        ended: bool = False,
    ) -> Run:
        """A run that continues where a killed coordinator stopped, as its journal says. Agents that stay silent are
        lost. after: the journal's records after the load. ended: the run has ended, and only collects results that
        agents kept."""
        written = written or Aggregate()
        stopped = any(stop.what is not StopKind.CLEAN_UP for stop in written.stops)
        phase = Phase.COLLECTING if ended else Phase.DRAINING if stopped else Phase.RUNNING
        run = cls(setup, now_ns, written, RunState(setup, now_ns, phase, t0_ns))
        run._after = frozenset(type(record) for record in after)
        for stop in written.stops:
            run._take_up(stop)
        if run._is_at_once and not ended:
            run._at_once_due_ns = now_ns + COME_BACK_NS
        for agent in agents:
            member = run.state.registry.readmit(agent, now_ns, ended=ended)
            if agent.left or agent.final is not None:
                run.state.note_lost(member)
            if agent.final is not None:
                run.state.outcome_tracker.add_final(agent.facts.agent_id, agent.final, stopped=stopped)
        if ended:
            run._leaves_keys = run._is_at_once = False
            if cleans_up(setup.plan) and CleanedUp not in run._after:
                run.state.delete_again()
        return run

    def _take_up(self, stop: StopDecided) -> None:
        """Apply a decision of an earlier coordinator."""
        self._leaves_keys = self._leaves_keys or stop.what is not StopKind.LOAD
        if stop.what is StopKind.CLEAN_UP:
            return
        self._is_at_once = self._is_at_once or stop.what is StopKind.AT_ONCE
        self.state.stop(stop.at_ns)
        if stop.exit_code == EXIT_INTERRUPTED:
            self._interrupts += 1
            self.state.outcome_tracker.interrupt()
        elif stop.exit_code == EXIT_OK:
            self._interrupts += 1
        else:
            self.state.outcome_tracker.abort(stop.reason, stop.exit_code)

    def _local_agent_exited(self, event: LocalAgentExited, now_ns: int) -> list[Action]:
        how = f"its process ended with exit code {event.exit_code}"
        how += f" ({event.last_words})" if event.exit_code and event.last_words else ""
        here = (event.pid, event.host)
        member = next((member for member in self.state.registry if (member.pid, member.host) == here), None)
        if member is None or not member.takes_part:
            if self.state.phase is not Phase.GATHERING:
                if member is not None:
                    self.state.registry.forget(member)
                return []  # it stood by
            return self._give_up(f"a local agent could not join: {how}", FleetError.exit_code, now_ns)
        return self._conversation.leave(member, how, now_ns)  # its worker processes were killed too

    # -- phases

    def _advance(self, now_ns: int) -> list[Action]:
        """Move to the next phase if the agents' states allow it."""
        match self.state.phase:
            case Phase.GATHERING:
                return self._gather(now_ns)
            case Phase.PREPARING:
                return self._given_up_by_agents(now_ns) or self._watch_preparing(now_ns)
            case Phase.COUNTING:
                return self._given_up_by_agents(now_ns)
            case Phase.RUNNING | Phase.DRAINING | Phase.COLLECTING:
                actions = [*self._abort_if_lost(now_ns), *self._takeovers.advance(self._waiting.fence, now_ns)]
                return actions if self._takeovers.are_pending(now_ns) else [*actions, *self._watch_running(now_ns)]
        return []

    def _gather(self, now_ns: int) -> list[Action]:
        ready = self.state.registry.idle(now_ns)
        expected = self.state.setup.expected
        if not is_quorum(self.state.setup.plan.fleet, expected, len(ready), now_ns - self.state.phase_since_ns):
            return self._progress(Progress("waiting for agents", len(ready), expected))
        chosen, others = ready[:expected], ready[expected:]
        dealt = assign(self.state.setup.plan, capacities(chosen))
        if found := oversized(dealt):
            return self._give_up(found, FleetError.exit_code, now_ns)
        self.state.deal(dealt)
        self.state.move(Trigger.QUORUM, now_ns)
        actions: list[Action] = [Note(line) for line in dealt_lines(self.state.setup, dealt, chosen)]
        for member in chosen:
            self.state.registry.deal(member, now_ns)
            actions += self._conversation.order(member, self._conversation.prepare_order(member), now_ns)
        return [*actions, *(self._conversation.stand_by(member) for member in others)]

    def _given_up_by_agents(self, now_ns: int) -> list[Action]:
        """Before the start, an agent that fails ends the run, and so does one that is lost without a standby."""
        if self.state.failure is not None:
            return self._give_up(*self.state.failure, now_ns)
        actions: list[Action] = []
        for lost in [member for member in self.state.registry.taking_part() if member.is_lost]:
            if not (moved := self._takeovers.before_start(lost, now_ns)):
                why = lost.gone or "it is silent"
                text = f"agent {lost.agent_id} was lost before the start: {why}"
                return self._give_up(text, FleetError.exit_code, now_ns)
            actions += moved
        return actions

    def _watch_preparing(self, now_ns: int) -> list[Action]:
        members = self.state.registry.taking_part()
        if not all(member.is_ready for member in members):
            self._prepared_ns = None
            return self._progress(preparing(members))
        self._prepared_ns = self._prepared_ns or now_ns
        rtt_ns = CLOCK_RTT_NS if now_ns - self._prepared_ns < CLOCK_WAIT_NS else float("inf")
        if not all(member.knows_clock(rtt_ns) for member in members):
            return []
        self.state.move(Trigger.READY, now_ns)
        assert self.state.dealt_plan is not None
        return [Write(opened(self.state.setup, self.state.dealt_plan, members)), ReadServer(Reading.BEFORE)]

    def _counted(self, record: CountersRead, now_ns: int) -> list[Action]:
        if record.when is not _COUNTS.get(self.state.phase):
            return []
        if self.state.phase is Phase.COUNTING:
            return self._given_up_by_agents(now_ns) or self._start(record, now_ns)
        writers = dict.fromkeys((*self._writers, *self._waiting.writers(now_ns, self.state.phase_since_ns)))
        self._writers = tuple(writers)
        self._counted_after = record = msgspec.structs.replace(record, writers=self._writers)
        return [Write(record), *self._settled(now_ns)]

    def _start(self, record: CountersRead, now_ns: int) -> list[Action]:
        t0_ns = now_ns + START_AHEAD_NS
        self.state.move(Trigger.COUNTED, now_ns)
        self.state.start(t0_ns)
        actions: list[Action] = [Write(record), Write(RunStarted(t0_ns=t0_ns))]
        for member in self.state.registry.taking_part():
            self.state.registry.start(member)
            actions += self._conversation.order(member, self._conversation.start_order(member), now_ns)
        return actions

    def _settled(self, now_ns: int) -> list[Action]:
        if not cleans_up(self.state.setup.plan):
            return self._closed(Trigger.COUNTED, now_ns)
        self.state.move(Trigger.CLEAN, now_ns)
        if CleanedUp in self._after:
            return self._closed(Trigger.CLEANED, now_ns)
        if not self._leaves_keys and not self._writers:
            return [Note("deleting the plan's keys; interrupt to leave the rest"), DeleteKeys()]
        why = "the run was stopped at once" if self._is_at_once else "interrupted"
        if not self._leaves_keys:
            why = f"{', '.join(self._writers)} might still write to the target"
        before = self._written.cleaned.deleted if self._written.cleaned else 0
        skipped = CleanedUp(deleted=before, earlier=before, left=None, took_ns=0, error=why)
        return self._cleaned(skipped, now_ns)

    def _cleaned(self, record: CleanedUp, now_ns: int) -> list[Action]:
        return [Write(record), *self._closed(Trigger.CLEANED, now_ns)]

    def _watch_running(self, now_ns: int) -> list[Action]:
        actions: list[Action] = []
        if not self._waiting.is_over(now_ns):
            if not self._ends_at_once(now_ns):
                return self._waiting.said(now_ns, interrupts=self._interrupts)
            actions = self._lose_all("the run was stopped at once")
        self._writers = self._waiting.writers(now_ns)
        collected = self.state.phase is Phase.COLLECTING
        if collected and self.state.deletes_again:
            return [*actions, *self._settled(now_ns)]
        if collected:
            return [*actions, *self._closed(Trigger.ALL_OVER, now_ns)]
        self.state.move(Trigger.ALL_OVER, now_ns)
        # What deleted keys before us is in the server's counters by now: the earlier reading is the right one.
        cleans = cleans_up(self.state.setup.plan)
        if cleans and CountersRead in self._after:
            return [*actions, *self._settled(now_ns)]
        return [*actions, ReadServer(Reading.AFTER)]

    def _ends_at_once(self, now_ns: int) -> bool:
        """Whether a run that is stopped at once has waited long enough for agents that are heard."""
        if self._at_once_due_ns is None:
            return False
        heard = any(member.is_at_work for member in self.state.registry)
        return now_ns >= self._at_once_due_ns or not heard

    def _abort_if_lost(self, now_ns: int) -> list[Action]:
        """Stop the load for agents that were lost, if the plan wants that and there is still load to stop."""
        end_ns, text = self._waiting.planned_end_ns, reason_to_abort(self.state.setup.plan.fleet, self.state.lost)
        if not text or self.state.phase is not Phase.RUNNING or (end_ns is not None and now_ns >= end_ns):
            return []
        if not any(member.is_at_work for member in self.state.registry):
            return []
        self.state.outcome_tracker.abort(text, FleetError.exit_code)
        return self._stop(text, FleetError.exit_code, now_ns)

    def _notice_lost(self, now_ns: int) -> list[Action]:
        """At ticks only. A tick comes after all waiting messages, so agents are not silent if the coordinator itself
        stalled."""
        actions: list[Action] = []
        for member in self.state.registry.newly_silent(now_ns):
            silent_s = (now_ns - member.heard_ns) / NS_PER_S
            actions += self._conversation.lose(member, f"no message from it for {silent_s:.1f} s")
        return actions

    def _tick(self, now_ns: int) -> list[Action]:
        """What follows when a wait exceeds its limit."""
        fleet = self.state.setup.plan.fleet
        stalled_ns, self._ticked_ns = now_ns - self._ticked_ns, now_ns
        if stalled_ns > STALLED_NS:
            self.state.extend_deadlines(stalled_ns, now_ns)
        in_phase_ns = now_ns - self.state.phase_since_ns
        match self.state.phase:
            case Phase.GATHERING if in_phase_ns > fleet.wait_s.ns:
                registry, ready = self.state.registry, self.state.registry.idle(now_ns)
                if is_quorum(fleet, self.state.setup.expected, len(ready), in_phase_ns):
                    return []
                return self._give_up(
                    agents_missing(self.state.setup, ready, list(registry)), FleetError.exit_code, now_ns
                )
            case Phase.PREPARING if late := self._late(now_ns):
                text = f"not prepared, and without progress for {fleet.prepare_s}: {listed(late)}"
                return self._give_up(text, FleetError.exit_code, now_ns)
            case Phase.COUNTING | Phase.SETTLING if in_phase_ns > COUNT_WAIT_NS:
                text = f"the server did not report its counters within {COUNT_WAIT_NS // NS_PER_S} s"
                record = CountersRead(when=_COUNTS[self.state.phase], error=text, unreachable=True)
                return self._counted(record, now_ns)
            case Phase.PREPARING | Phase.COUNTING:
                self.state.registry.newly_silent(now_ns, self._waiting.preparing_patience_ns)
            case Phase.RUNNING:
                return [*self._notice_lost(now_ns), *self._overdue_run(now_ns)]
            case Phase.DRAINING | Phase.COLLECTING:
                overdue = self._give_up_overdue("it did not end within the drain", self.state.phase_since_ns, now_ns)
                return [*overdue, *self._notice_lost(now_ns)]
        return []

    def _late(self, now_ns: int) -> list[str]:
        """Agents that are not ready, and have made no progress for too long."""
        since_ns = now_ns - self.state.setup.plan.fleet.prepare_s.ns
        return [
            member.agent_id
            for member in self.state.registry.taking_part()
            if not member.is_ready and max(member.progressed_ns, self.state.phase_since_ns) < since_ns
        ]

    def _overdue_run(self, now_ns: int) -> list[Action]:
        if not any(member.is_at_work for member in self.state.registry):
            self.state.succeeded(now_ns)  # no agent is heard that could report an operation
        planned_end_ns = self._waiting.planned_end_ns
        if planned_end_ns is not None:
            # After a late resume, or a stall of the coordinator, agents first need time to come back.
            due_ns = max(planned_end_ns, self.state.phase_since_ns)
            return self._give_up_overdue("it did not end in time", due_ns, now_ns)
        if now_ns - self.state.success_ns > self._waiting.dead_target_ns:
            silent_s = self._waiting.dead_target_ns // NS_PER_S
            text = f"no operation succeeded for {silent_s} s, and the plan has no end in time"
            self.state.outcome_tracker.abort(text, TargetError.exit_code)
            return self._stop(text, TargetError.exit_code, now_ns)
        return []

    def _give_up_overdue(self, why: str, due_ns: int, now_ns: int) -> list[Action]:
        late = self._waiting.overdue(due_ns, now_ns)
        return [action for member in late for action in self._conversation.revoke(member, why)]

    def _lose_all(self, why: str) -> list[Action]:
        at_work = [member for member in self.state.registry if member.is_at_work]
        return [action for member in at_work for action in self._conversation.revoke(member, why)]

    def _interrupted(self, now_ns: int) -> list[Action]:
        self._interrupts += 1
        if self.state.phase is Phase.CLEANING:
            self._leaves_keys = True
            return [self._decided(StopKind.CLEAN_UP, "interrupted", EXIT_OK, now_ns), StopDeleting()]
        if self.state.phase is Phase.COLLECTING:
            self._at_once_due_ns, self._leaves_keys = now_ns, True
            return []
        note = Note("draining; interrupt again to stop at once", trouble=True)
        ran_ns = now_ns - (self.state.t0_ns or now_ns)
        if self.state.phase is Phase.RUNNING and is_planned_stop(self._written, ran_ns):
            return [*self._stop("stopped by the user", EXIT_OK, now_ns), note]
        self.state.outcome_tracker.interrupt()
        if self.state.phase in (Phase.GATHERING, Phase.PREPARING, Phase.COUNTING):
            return self._give_up("interrupted before the start", EXIT_INTERRUPTED, now_ns)
        if self._interrupts == 1:
            return [*self._stop("interrupted", EXIT_INTERRUPTED, now_ns), note]
        self._is_at_once = self._leaves_keys = True
        self._at_once_due_ns = now_ns + (AT_ONCE_NS if self._at_once_due_ns is None else 0)
        decided = self._decided(StopKind.AT_ONCE, "interrupted twice", EXIT_INTERRUPTED, now_ns)
        return [decided, *self._conversation.to_all(Stop(drain=False, reason="interrupted twice"))]

    def _stop(self, reason: str, exit_code: int, now_ns: int) -> list[Action]:
        decided = self._decided(StopKind.LOAD, reason, exit_code, now_ns)
        if not self.state.move(Trigger.STOP, now_ns):
            return [decided]  # the load is over, but not the run
        self.state.stop(now_ns)
        return [decided, *self._conversation.to_all(Stop(drain=True, reason=reason))]

    def _decided(self, what: StopKind, reason: str, exit_code: int, now_ns: int) -> Write:
        return Write(StopDecided(what=what, reason=reason, exit_code=exit_code, at_ns=now_ns))

    def _give_up(self, text: str, exit_code: int, now_ns: int) -> list[Action]:
        written = self.state.phase is Phase.COUNTING
        self.state.move(Trigger.GIVE_UP, now_ns)
        self._exit_code = exit_code
        closed: list[Action] = []
        if written:
            closed = [Write(RunClosed(outcome=Outcome.ABORTED, reason=text, duration_s=0.0))]
        outcome = Outcome.ABORTED if written else None
        return [*closed, *self._conversation.dismiss_all(exit_code), End(exit_code, text, outcome)]

    def _closed(self, trigger: Trigger, now_ns: int) -> list[Action]:
        self.state.move(trigger, now_ns)
        actions = [*self._waiting.ended_with_us(self._written), *self._end()]
        dismissed = self._conversation.dismiss_all(self._exit_code)
        return [*actions[:-1], *self._waiting.kept_elsewhere(), *dismissed, actions[-1]]

    def _dismissing(self, event: RunEvent, now_ns: int) -> list[Action]:
        """Wait until agents know of the end. Write results that still come, and then the end again."""
        actions: list[Action] = []
        if self._written.started is not None and self._written.closed is None:
            actions = self._end()
        if isinstance(event, FromAgent):
            actions += self._conversation.while_dismissing(event, self._exit_code, now_ns)
        has_news = any(isinstance(action, Write) for action in actions)
        is_due = isinstance(event, Tick) or len(self.state.registry) <= LARGE_FLEET
        if has_news or not is_due:
            return actions
        if self._conversation.all_know_the_end or now_ns - self.state.phase_since_ns >= DISMISS_NS:
            self.state.move(Trigger.ANSWERED, now_ns)
            actions.append(Leave())
        return actions

    def _end(self) -> list[Action]:
        """The current end of the run: its records, and `End` as the last action."""
        members = self.state.registry.taking_part()
        load_s = duration_s(members, self.state.t0_ns)
        after = self._counted_after or self._written.readings.get(Reading.AFTER)
        lost = "; ".join(loss.sentence for loss in target_losses(self._written, load_s, after))
        tolerate_lost = self.state.setup.plan.fleet.tolerate_lost
        outcome, text, code = self.state.outcome_tracker.outcome(members, tolerate_lost, lost)
        self._exit_code = code
        tallies = self._written.agents
        silent = [member for member in members if member.final is None and member.agent_id in tallies]
        again = [
            Write(member.noted(AgentOutcome.LOST, "its last results did not come"))
            for member in silent
            if tallies[member.agent_id].end is None
        ]
        return [*again, Write(RunClosed(outcome=outcome, reason=text, duration_s=load_s)), End(code, text, outcome)]

    def _progress(self, progress: Progress) -> list[Action]:
        if progress == self._last_progress:
            return []
        self._last_progress = progress
        return [progress]
