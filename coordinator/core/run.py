"""What a coordinator does about everything that happens to a run. Pure: events and the time in, actions out. Where a
run can go, and why, stands in `coordinator.core.transitions`; what agents are answered, in
`coordinator.core.conversation`; whom it waits for at the end, in `coordinator.core.waiting`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from common.errors import EXIT_INTERRUPTED, EXIT_OK, FleetError, TargetError
from common.plan.schema import CleanUp
from common.plan.timeline import timeline
from common.protocol.messages import AgentState, Envelope, Heartbeat, MetricsFrame, Stop
from common.units import NS_PER_S, listed
from coordinator.analysis.aggregate import Aggregate
from coordinator.analysis.target_loss import target_loss
from coordinator.core.actions import (
    Action,
    Cleaned,
    Counted,
    DeleteKeys,
    End,
    Event,
    FromAgent,
    Interrupted,
    LocalAgentExited,
    Note,
    Progress,
    ReadServer,
    StopDeleting,
    Tick,
    Write,
)
from coordinator.core.agent_loss import is_quorum, reason_to_abort
from coordinator.core.conversation import Conversation, RunState
from coordinator.core.outcome import duration_s
from coordinator.core.records import (
    AgentEnd,
    CleanedUp,
    Outcome,
    RunClosed,
    RunStarted,
    ServerCounted,
    StopDecided,
    Stopping,
    When,
)
from coordinator.core.registry import COME_BACK_NS, LARGE_FLEET, LOST_AFTER_NS, Standing, capacities
from coordinator.core.setup import Setup, agents_missing, dealt_lines, opened, preparing
from coordinator.core.shares import assign, oversized
from coordinator.core.takeover import TakeOvers
from coordinator.core.transitions import TRANSITIONS, Phase, Trigger
from coordinator.core.waiting import AT_ONCE_NS, Waiting

START_AHEAD_NS = 600_000_000
"""How far ahead the start instant lies: time for the message and for each agent to wake its workers."""
PRELOAD_SILENCE_NS = 10 * NS_PER_S
"""Silence after which an agent that preloads is not waited for any more."""
DEAD_TARGET_NS = 30 * NS_PER_S
"""A run by number of requests that has had no success for so long would never end."""
DEAD_TARGET_INTERVALS = 10
"""At a low rate: so many operations that were due and did not succeed are no accident."""
COUNT_WAIT_NS = 60 * NS_PER_S
"""How long the server's counters are waited for; the report can do without them."""
CLOCK_RTT_NS = NS_PER_S // 5
CLOCK_WAIT_NS = 3 * NS_PER_S
"""Clocks are known to half of a round trip. One that was measured while either side was held up is bettered by the next
heartbeats, and waited for so long; a network that is slow is not."""
DEAF_NS = NS_PER_S
"""Ticks further apart than this: we were held up, and did not hear our agents in the meantime."""
AfterLoad = ServerCounted | CleanedUp
"""What is written down once the load is over: the second reading of the server's counters, and what was deleted."""
_COUNTS = {Phase.COUNTING: When.BEFORE, Phase.SETTLING: When.AFTER}


class Run:
    """One run. `state` is there to be shown; `handle` is the one way in."""

    def __init__(self, setup: Setup, now_ns: int, written: Aggregate | None = None) -> None:
        """written: the records in the run's journal. The caller updates it when it performs `Write`; this class reads
        it."""
        self.state = RunState(setup, now_ns)
        self._written = written or Aggregate()
        self._counted_after: ServerCounted | None = None
        self._line = timeline(setup.plan.load)
        self._talk = Conversation(self.state)
        self._waiting = Waiting(self.state)
        self._takeovers = TakeOvers(self.state, self._talk, self._written)
        self._phase_since_ns = self._ticked_ns = now_ns
        self._interrupts = 0
        self._is_at_once = self._leaves_keys = False
        self._at_once_due_ns: int | None = None
        self._writers: tuple[str, ...] = ()
        self._exit_code = EXIT_OK
        self._prepared_ns: int | None = None
        self._last_progress: Progress | None = None
        self._after: frozenset[type[AfterLoad]] = frozenset()

    def handle(self, event: Event, now_ns: int) -> list[Action]:
        """What to do about it, in order. now_ns: this host's monotonic clock."""
        if self.state.phase is Phase.CLOSED:
            return []
        match event:
            case FromAgent(routing_id, envelope):
                before = self._stands(envelope, now_ns)
                actions = self._talk.received(routing_id, envelope, now_ns)
                if before is not None and before == self._stands(envelope, now_ns):
                    return actions  # a look at every agent for each of their messages would cost a large fleet dearly
            case LocalAgentExited():
                actions = self._local_agent_exited(event, now_ns)
            case Counted(record):
                actions = self._counted(record, now_ns)
            case Cleaned(done):
                actions = [Write(done), *self._closed()] if self._moves(Trigger.CLEANED, now_ns) else []
            case Interrupted():
                actions = self._interrupted(now_ns)
            case Tick():
                actions = self._tick(now_ns)
        return [*actions, *self._advance(now_ns)]

    def _stands(self, envelope: Envelope, now_ns: int) -> tuple[object, ...] | None:
        """How its sender stands, as far as a heartbeat or a frame can change what the phase depends on; ticks see to
        what time changes, and to everything in a large fleet. None for other messages, and for strangers."""
        if len(self.state.registry) > LARGE_FLEET:
            return ()
        member = self.state.registry.find(envelope.incarnation)
        if member is None or not isinstance(envelope.message, Heartbeat | MetricsFrame):
            return None
        may_be_dealt = member.state is AgentState.IDLE and member.is_fresh(now_ns)
        rtt_ns = member.rtt_ns if self.state.phase is Phase.PREPARING else None  # a heartbeat may change it at any time
        return (member.state, member.end, member.lost, member.gone, rtt_ns, may_be_dealt)

    @classmethod
    def resumed(
        cls,
        setup: Setup,
        t0_ns: int,
        agents: Sequence[Standing],
        now_ns: int,
        *,
        after: Sequence[AfterLoad] = (),
        written: Aggregate | None = None,
        ended: bool = False,
    ) -> Run:
        """A run that goes on where a killed coordinator stopped, as its journal says. Agents that are not heard of
        within the usual time are lost. after: what the journal has already of what follows the load. ended: the run has
        its end, and only results that agents kept are collected."""
        run = cls(setup, now_ns, written)
        run._after = frozenset(type(record) for record in after)
        for stop in run._written.stops:
            run._take_up(stop)
        if run._is_at_once and not ended:
            run._at_once_due_ns = now_ns + COME_BACK_NS
        stopped = run.state.stopped_ns is not None
        for standing in agents:
            member = run.state.registry.readmit(standing, now_ns)
            if standing.left or standing.final is not None:
                run._talk.has_lost(member)
            if standing.final is not None:
                member.released = ended
                run.state.ending.noted(standing.facts.agent_id, standing.final, stopped=stopped)
        run.state.phase, run.state.t0_ns = Phase.DRAINING if stopped else Phase.RUNNING, t0_ns
        if ended:
            run.state.phase = Phase.COLLECTING
            run._leaves_keys = run._is_at_once = False
            run.state.deletes_again = setup.plan.workload.clean_up is not CleanUp.NONE and CleanedUp not in run._after
        return run

    def after_end(self, event: Event, exit_code: int, now_ns: int) -> list[Action]:
        """What to do about an event while agents are seen off. Results that still come are written: the run has to end
        again (`end_again`). exit_code: sent to the agents."""
        return self._talk.after_end(event, exit_code, now_ns) if isinstance(event, FromAgent) else []

    @property
    def is_answered(self) -> bool:
        """Whether every agent that is there has heard of the end."""
        return all(member.seen_off or member.gone or member.lost for member in self.state.registry)

    def _take_up(self, stop: StopDecided) -> None:
        """What a coordinator before us decided stands."""
        self._leaves_keys = self._leaves_keys or stop.what is not Stopping.LOAD
        if stop.what is Stopping.CLEAN_UP:
            return
        self._is_at_once = self._is_at_once or stop.what is Stopping.AT_ONCE
        self.state.stopped_ns = self.state.stopped_ns or stop.at_ns
        if stop.exit_code == EXIT_INTERRUPTED:
            self._interrupts += 1
            self.state.ending.interrupted = True
        else:
            self.state.ending.aborted, self.state.ending.exit_code = stop.reason, stop.exit_code

    def _local_agent_exited(self, event: LocalAgentExited, now_ns: int) -> list[Action]:
        how = f"its process ended with exit code {event.exit_code}"
        how += f" ({event.last_words})" if event.exit_code and event.last_words else ""
        here = (event.pid, event.host)
        member = next((member for member in self.state.registry if (member.pid, member.host) == here), None)
        if member is None or not member.takes_part:
            if self.state.phase is not Phase.GATHERING:
                if member is not None:
                    self.state.registry.leave(member.incarnation)
                return []  # others came first, and it was not needed
            return self._give_up(f"a local agent could not join: {how}", FleetError.exit_code)
        member.leaves(how, now_ns)  # its worker processes were killed with it
        return self._talk.lose(member, how) if member.end is None else []

    # -- phases

    def _advance(self, now_ns: int) -> list[Action]:
        """Move on as far as the agents' states allow."""
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
        if not is_quorum(self.state.setup.plan.fleet, expected, len(ready), now_ns - self._phase_since_ns):
            return self._progress(Progress("waiting for agents", len(ready), expected))
        chosen, others = ready[:expected], ready[expected:]
        self.state.shares = assign(self.state.setup.plan, capacities(chosen))
        if found := oversized(self.state.shares):
            return self._give_up(found, FleetError.exit_code)
        self._moves(Trigger.QUORUM, now_ns)
        actions: list[Action] = [Note(line) for line in dealt_lines(self.state.setup, self.state.shares, chosen)]
        for member in chosen:
            member.takes_part = True
            actions += self._talk.order(member, self._talk.prepare_order(member), now_ns)
        return [*actions, *(self._talk.stand_by(member) for member in others)]

    def _given_up_by_agents(self, now_ns: int) -> list[Action]:
        """Before the start, an agent that fails ends the run, and so does one that is lost without a standby: nothing
        has been done yet."""
        if self.state.failed is not None:
            return self._give_up(*self.state.failed)
        members = self.state.registry.taking_part()
        gone = next((member for member in members if member.lost or member.gone), None)
        if gone is None:
            return []
        if actions := self._takeovers.before_start(gone, now_ns):
            return actions
        why = gone.gone or "it is silent"
        return self._give_up(f"agent {gone.agent_id} was lost before the start: {why}", FleetError.exit_code)

    def _watch_preparing(self, now_ns: int) -> list[Action]:
        members = self.state.registry.taking_part()
        if not all(member.prepared for member in members):
            self._prepared_ns = None
            return self._progress(preparing(members))
        self._prepared_ns = self._prepared_ns or now_ns
        rtt_ns = CLOCK_RTT_NS if now_ns - self._prepared_ns < CLOCK_WAIT_NS else float("inf")
        if not all(member.knows_clock(rtt_ns) for member in members):
            return []
        self._moves(Trigger.READY, now_ns)
        assert self.state.shares is not None
        return [Write(opened(self.state.setup, self.state.shares, members)), ReadServer(When.BEFORE)]

    def _counted(self, record: ServerCounted, now_ns: int) -> list[Action]:
        if record.when is not _COUNTS.get(self.state.phase):
            return []
        if self.state.phase is Phase.COUNTING and self._moves(Trigger.COUNTED, now_ns):
            self.state.t0_ns = now_ns + START_AHEAD_NS
            self.state.success_ns = self.state.t0_ns
            actions: list[Action] = [Write(record), Write(RunStarted(t0_ns=self.state.t0_ns))]
            for member in self.state.registry.taking_part():
                actions += self._talk.order(member, self._talk.start_order(member), now_ns)
            return actions
        writers = dict.fromkeys((*self._writers, *self._waiting.writers(now_ns, self._phase_since_ns)))
        self._writers = tuple(writers)
        self._counted_after = record = msgspec.structs.replace(record, writers=self._writers)
        return [Write(record), *self._settled(now_ns)]

    def _settled(self, now_ns: int) -> list[Action]:
        if self.state.setup.plan.workload.clean_up is CleanUp.NONE:
            return self._closed() if self._moves(Trigger.COUNTED, now_ns) else []
        self._moves(Trigger.CLEAN, now_ns)
        if CleanedUp in self._after:
            self._moves(Trigger.CLEANED, now_ns)
            return self._closed()
        if not self._leaves_keys and not self._writers:
            return [Note("deleting the plan's keys; interrupt to leave the rest"), DeleteKeys()]
        self._moves(Trigger.CLEANED, now_ns)
        why = "the run was stopped at once" if self._is_at_once else "interrupted"
        if not self._leaves_keys:
            why = f"{', '.join(self._writers)} might still write to the target"
        before = self._written.cleaned.deleted if self._written.cleaned else 0
        skipped = CleanedUp(deleted=before, earlier=before, left=None, took_ns=0, error=why)
        return [Write(skipped), *self._closed()]

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
        self._moves(Trigger.ALL_OVER, now_ns)
        if collected:
            return [*actions, *self._closed()]
        # What deleted keys before us is in the server's counters by now: the earlier reading is the right one.
        cleans = self.state.setup.plan.workload.clean_up is not CleanUp.NONE
        if cleans and ServerCounted in self._after:
            return [*actions, *self._settled(now_ns)]
        return [*actions, ReadServer(When.AFTER)]

    def _ends_at_once(self, now_ns: int) -> bool:
        """Whether a run that is stopped at once has waited long enough for agents that are heard."""
        if self._at_once_due_ns is None:
            return False
        heard = any(member.end is None and not member.lost for member in self.state.registry.taking_part())
        return now_ns >= self._at_once_due_ns or not heard

    def _abort_if_lost(self, now_ns: int) -> list[Action]:
        """Stop the load for agents that were lost, if the plan wants that and there is still load to stop."""
        end_ns, text = self._waiting.planned_end_ns, reason_to_abort(self.state.setup.plan.fleet, self.state.lost)
        if not text or self.state.phase is not Phase.RUNNING or (end_ns is not None and now_ns >= end_ns):
            return []
        if all(member.end is not None for member in self.state.registry.taking_part()):
            return []
        self.state.ending.aborted, self.state.ending.exit_code = text, FleetError.exit_code
        return self._stop(text, FleetError.exit_code, now_ns)

    def _notice_lost(self, now_ns: int) -> list[Action]:
        """At ticks only: a tick follows what has come in the meantime, so that a coordinator which was itself held up
        does not take its agents for silent."""
        actions: list[Action] = []
        for member in self.state.registry.newly_lost(now_ns):
            silent_s = (now_ns - member.heard_ns) / NS_PER_S
            actions += self._talk.lose(member, f"no message from it for {silent_s:.1f} s")
        return actions

    @property
    def _preparing_patience_ns(self) -> int:
        """A link that was down for a moment must not cost a preload that took an hour."""
        preloads = bool(self.state.setup.plan.workload.preload)
        lease_ns = self.state.setup.plan.fleet.lease_s.ns
        return max(LOST_AFTER_NS, min(PRELOAD_SILENCE_NS, lease_ns)) if preloads else LOST_AFTER_NS

    @property
    def _dead_target_ns(self) -> int:
        rate_per_s = self._line.legs[-1].to_per_s
        return max(DEAD_TARGET_NS, round(DEAD_TARGET_INTERVALS * NS_PER_S / rate_per_s) if rate_per_s else 0)

    def _tick(self, now_ns: int) -> list[Action]:
        """Every wait has a bound; these are the bounds."""
        fleet = self.state.setup.plan.fleet
        deaf_ns, self._ticked_ns = now_ns - self._ticked_ns, now_ns
        if deaf_ns > DEAF_NS:
            self._excuse(deaf_ns, now_ns)
        in_phase_ns = now_ns - self._phase_since_ns
        match self.state.phase:
            case Phase.GATHERING if in_phase_ns > fleet.wait_s.ns:
                registry, ready = self.state.registry, self.state.registry.idle(now_ns)
                if is_quorum(fleet, self.state.setup.expected, len(ready), in_phase_ns):
                    return []
                return self._give_up(agents_missing(self.state.setup, ready, list(registry)), FleetError.exit_code)
            case Phase.PREPARING if late := self._late(now_ns):
                text = f"not prepared, and without progress for {fleet.prepare_s}: {listed(late)}"
                return self._give_up(text, FleetError.exit_code)
            case Phase.COUNTING | Phase.SETTLING if in_phase_ns > COUNT_WAIT_NS:
                text = f"the server did not tell its counters within {COUNT_WAIT_NS // NS_PER_S} s"
                record = ServerCounted(when=_COUNTS[self.state.phase], error=text, unreachable=True)
                return self._counted(record, now_ns)
            case Phase.PREPARING | Phase.COUNTING:
                self.state.registry.newly_lost(now_ns, self._preparing_patience_ns)
            case Phase.RUNNING:
                return [*self._notice_lost(now_ns), *self._overdue_run(now_ns)]
            case Phase.DRAINING | Phase.COLLECTING:
                overdue = self._give_up_overdue("it did not end within the drain", self._phase_since_ns, now_ns)
                return [*overdue, *self._notice_lost(now_ns)]
        return []

    def _late(self, now_ns: int) -> list[str]:
        """Agents that are not ready, and have not come any further for too long."""
        since_ns = now_ns - self.state.setup.plan.fleet.prepare_s.ns
        return [
            member.agent_id
            for member in self.state.registry.taking_part()
            if not member.prepared and max(member.stirred_ns, self._phase_since_ns) < since_ns
        ]

    def _excuse(self, deaf_ns: int, now_ns: int) -> None:
        """Nobody is late for so long: what they said meanwhile is yet to be read."""
        self.state.registry.excuse(deaf_ns, now_ns)
        self._phase_since_ns += deaf_ns
        self.state.success_ns += deaf_ns

    def _overdue_run(self, now_ns: int) -> list[Action]:
        if not any(member.end is None for member in self.state.registry.taking_part()):
            self.state.success_ns = now_ns  # nobody is heard who could report an operation
        planned_end_ns = self._waiting.planned_end_ns
        if planned_end_ns is not None:
            # A run that is resumed late, or one whose coordinator was held up, has its agents come back first.
            return self._give_up_overdue("it did not end in time", max(planned_end_ns, self._phase_since_ns), now_ns)
        if now_ns - self.state.success_ns > self._dead_target_ns:
            text = f"no operation succeeded for {self._dead_target_ns // NS_PER_S} s, and the plan has no end in time"
            self.state.ending.aborted, self.state.ending.exit_code = text, TargetError.exit_code
            return self._stop(text, TargetError.exit_code, now_ns)
        return []

    def _give_up_overdue(self, why: str, due_ns: int, now_ns: int) -> list[Action]:
        late = self._waiting.overdue(due_ns, now_ns)
        return [action for member in late for action in self._talk.revoke(member, why)]

    def _lose_all(self, why: str) -> list[Action]:
        actions: list[Action] = []
        for member in self.state.registry.taking_part():
            if member.end is None:
                member.gone = why
                actions += self._talk.lose(member, why)
        return actions

    def _interrupted(self, now_ns: int) -> list[Action]:
        self._interrupts += 1
        if self.state.phase is Phase.CLEANING:
            self._leaves_keys = True
            return [self._decided(Stopping.CLEAN_UP, "interrupted", EXIT_OK, now_ns), StopDeleting()]
        if self.state.phase is Phase.COLLECTING:
            self._at_once_due_ns, self._leaves_keys = now_ns, True
            return []
        self.state.ending.interrupted = True
        if self.state.phase in (Phase.GATHERING, Phase.PREPARING, Phase.COUNTING):
            return self._give_up("interrupted before the start", EXIT_INTERRUPTED)
        if self._interrupts == 1:
            note = Note("draining; interrupt again to stop at once", trouble=True)
            return [*self._stop("interrupted", EXIT_INTERRUPTED, now_ns), note]
        self._is_at_once = self._leaves_keys = True
        self._at_once_due_ns = now_ns + (AT_ONCE_NS if self._at_once_due_ns is None else 0)
        decided = self._decided(Stopping.AT_ONCE, "interrupted twice", EXIT_INTERRUPTED, now_ns)
        return [decided, *self._talk.to_all(Stop(drain=False, reason="interrupted twice"))]

    def _stop(self, reason: str, exit_code: int, now_ns: int) -> list[Action]:
        decided = self._decided(Stopping.LOAD, reason, exit_code, now_ns)
        if not self._moves(Trigger.STOP, now_ns):
            return [decided]  # the load is over, but not the run
        self.state.stopped_ns = now_ns
        return [decided, *self._talk.to_all(Stop(drain=True, reason=reason))]

    def _decided(self, what: Stopping, reason: str, exit_code: int, now_ns: int) -> Write:
        return Write(StopDecided(what=what, reason=reason, exit_code=exit_code, at_ns=now_ns))

    def _give_up(self, text: str, exit_code: int) -> list[Action]:
        written = self.state.phase is Phase.COUNTING
        if not self._moves(Trigger.GIVE_UP, self._phase_since_ns):
            return []
        closed: list[Action] = []
        if written:
            closed = [Write(RunClosed(outcome=Outcome.ABORTED, reason=text, duration_s=0.0))]
        outcome = Outcome.ABORTED if written else None
        return [*closed, *self._talk.dismiss_all(exit_code), End(exit_code, text, outcome)]

    def _closed(self) -> list[Action]:
        actions = [*self._waiting.ended_with_us(self._written), *self.end_again()]
        dismissed = self._talk.dismiss_all(self._exit_code)
        return [*actions[:-1], *self._waiting.kept_elsewhere(), *dismissed, actions[-1]]

    def end_again(self) -> list[Action]:
        """The end of the run as it is now: the records of it, and `End`."""
        members = self.state.registry.taking_part()
        load_s = duration_s(members, self.state.t0_ns)
        after = self._counted_after or self._written.readings.get(When.AFTER)
        loss = target_loss(self._written, load_s, after)
        tolerate_lost = self.state.setup.plan.fleet.tolerate_lost
        outcome, text, code = self.state.ending.outcome(members, tolerate_lost, loss.sentence if loss else "")
        self._exit_code = code
        tallies = self._written.agents
        silent = [member for member in members if member.final is None and member.agent_id in tallies]
        again = [
            Write(member.noted(AgentEnd.LOST, "its last results did not come"))
            for member in silent
            if tallies[member.agent_id].end is None
        ]
        return [*again, Write(RunClosed(outcome=outcome, reason=text, duration_s=load_s)), End(code, text, outcome)]

    # -- small change

    def _progress(self, progress: Progress) -> list[Action]:
        if progress == self._last_progress:
            return []
        self._last_progress = progress
        return [progress]

    def _moves(self, trigger: Trigger, now_ns: int) -> bool:
        """Go where the table says; whether there is such a row. The one place that changes `phase`."""
        following = TRANSITIONS.get((self.state.phase, trigger))
        if following is not None:
            self.state.phase, self._phase_since_ns = following, now_ns
        return following is not None
