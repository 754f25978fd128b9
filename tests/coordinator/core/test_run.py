from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from common.plan.schema import CleanUp, Load, Plan, Preload
from common.protocol.messages import (
    AgentMessage,
    AgentState,
    Attach,
    Attached,
    Bye,
    Dismiss,
    Failed,
    FailureKind,
    FinalAck,
    FrameAck,
    HeartbeatReply,
    MetricsFrame,
    PreparationStep,
    Prepare,
    Preparing,
    Start,
    Stop,
    Welcome,
    incarnation_of,
)
from common.units import NS_PER_S, Seconds
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.core.actions import (
    Action,
    CalledOff,
    Cleaned,
    Counted,
    DeleteKeys,
    End,
    Interrupted,
    LocalAgentExited,
    Note,
    Progress,
    ReadServer,
    Send,
    StopDeleting,
    Tick,
    Write,
)
from coordinator.core.member import COME_BACK_NS, LOST_AFTER_NS, OVERTIME_NS, MemberState
from coordinator.core.registry import JournaledAgent, Registry
from coordinator.core.run import (
    CLOCK_WAIT_NS,
    COUNT_WAIT_NS,
    DISMISS_NS,
    START_AHEAD_NS,
    AfterLoad,
    Run,
)
from coordinator.core.transitions import TRANSITIONS, Phase, Trigger
from coordinator.core.waiting import AT_ONCE_NS, DEAD_TARGET_NS, PRELOAD_SILENCE_NS
from coordinator.journal.records import (
    AgentEnded,
    AgentFacts,
    AgentOutcome,
    CleanedUp,
    CountersRead,
    FrameAccepted,
    Outcome,
    Reading,
    RunClosed,
    RunOpened,
    RunStarted,
    StopDecided,
    StopKind,
)
from coordinator.loop import after_load, journaled_agents
from tests.support.protocol import (
    RUN_ID,
    RunBench,
    acknowledged,
    counted,
    dealt,
    final,
    fleet_plan,
    heartbeat,
    hello,
    interval,
    of_kind,
    ready,
    said,
    setup_for,
)
from tests.support.stages import stage

LEASE_S = 30.0
DRAIN_S = 10.0
RESERVE_S = OVERTIME_NS / NS_PER_S
COME_BACK_S = COME_BACK_NS / NS_PER_S
BOTH = ("web1", "web2")


def written(actions: list[object]) -> list[object]:
    return [write.record for write in of_kind(actions, Write)]


def first_of(actions: list[object], *kinds: type) -> object:
    return next(action for action in actions if isinstance(action, kinds))


def ended(actions: list[object]) -> End:
    [end] = of_kind(actions, End)
    return end


CLEANS = msgspec.structs.replace(
    fleet_plan(), workload=msgspec.structs.replace(fleet_plan().workload, clean_up=CleanUp.KEYS)
)
DELETED = CleanedUp(deleted=5, left=0, took_ns=1)
READ = CountersRead(when=Reading.AFTER)
INTERRUPT = StopDecided(what=StopKind.LOAD, reason="interrupted", exit_code=130, at_ns=7)
AT_ONCE = StopDecided(what=StopKind.AT_ONCE, reason="interrupted twice", exit_code=130, at_ns=8)
LEFT_KEYS = StopDecided(what=StopKind.CLEAN_UP, reason="interrupted", exit_code=0, at_ns=9)


def bench_in(phase: Phase, *, cleans: bool = False) -> RunBench:
    """A run of two agents that has come to this phase. cleans: its plan's keys are to be deleted at the end."""
    if phase is Phase.COLLECTING:
        bench = resumed(None, None, is_ended=True, plan=CLEANS if cleans else None)
        for name in BOTH:
            bench.hello(name, state=AgentState.DONE, run_id=RUN_ID)
        return bench
    bench = RunBench(CLEANS if cleans or phase is Phase.CLEANING else None, expected=2)
    match phase:
        case Phase.GATHERING:
            bench.hello("web1")
        case Phase.PREPARING:
            bench.preparing(*BOTH)
        case Phase.COUNTING:
            bench.counting(*BOTH)
        case Phase.RUNNING:
            bench.running(*BOTH)
        case Phase.DRAINING:
            bench.running(*BOTH)
            bench.do(Interrupted())
        case Phase.SETTLING:
            bench.running(*BOTH)
            for name in BOTH:
                bench.says(name, final())
        case Phase.CLEANING:
            bench.running(*BOTH)
            for name in BOTH:
                bench.says(name, final())
            bench.do(counted(Reading.AFTER))
        case Phase.DISMISSING:
            bench.do(Interrupted())
        case Phase.CLOSED:
            bench.do(Interrupted())
            bench.passes(DISMISS_NS / NS_PER_S)
    assert bench.run.state.phase is phase
    return bench


def pull(bench: RunBench, trigger: Trigger) -> list[object]:
    """Have happen what this trigger stands for, as far as it can in this phase."""
    actions: list[object] = []
    match trigger:
        case Trigger.QUORUM:
            for name in BOTH:
                actions += bench.hello(name)
        case Trigger.READY:
            for name in BOTH:
                actions += bench.says(name, ready())
        case Trigger.COUNTED:
            when = Reading.AFTER if bench.run.state.phase is Phase.SETTLING else Reading.BEFORE
            actions += bench.do(counted(when))
        case Trigger.CLEAN:
            actions += bench.do(counted(Reading.AFTER))
            if bench.run.state.phase is Phase.COLLECTING and bench.run.state.deletes_again:
                actions += pull(bench, Trigger.ALL_OVER)
        case Trigger.CLEANED:
            actions += bench.do(Cleaned(DELETED))
        case Trigger.ANSWERED:
            bench.passes(DISMISS_NS / NS_PER_S)
        case Trigger.GIVE_UP if bench.run.state.phase is Phase.RUNNING:
            actions += bench.do(CalledOff(1))
        case Trigger.STOP | Trigger.GIVE_UP:
            actions += bench.do(Interrupted())
        case Trigger.ALL_OVER:
            for name in BOTH:
                actions += bench.says(name, final())
    return actions


@pytest.mark.parametrize(("phase", "trigger"), TRANSITIONS, ids=lambda value: value.name)
def test_every_row_of_the_table_leads_to_its_next_phase(phase: Phase, trigger: Trigger) -> None:
    bench = bench_in(phase, cleans=trigger is Trigger.CLEAN)
    pull(bench, trigger)
    assert bench.run.state.phase is TRANSITIONS[phase, trigger]


def test_every_phase_leads_to_the_end() -> None:
    for phase in Phase:
        reached, seen = {phase}, set[Phase]()
        while reached - seen:
            seen |= reached
            reached = {after for (before, _), after in TRANSITIONS.items() if before in seen} | seen
        assert Phase.CLOSED in reached


def test_a_run_from_its_first_agent_to_its_end() -> None:
    bench = RunBench(expected=2)
    bench.hello("web1")
    actions = bench.hello("web2")
    assert len(said(actions, Prepare)) == 2
    actions = [action for name in BOTH for action in bench.says(name, ready())]
    assert [type(record) for record in written(actions)] == [RunOpened]
    assert of_kind(actions, ReadServer) == [ReadServer(Reading.BEFORE)]
    actions = bench.do(counted(Reading.BEFORE))
    assert [type(record) for record in written(actions)] == [CountersRead, RunStarted]
    assert said(actions, Start) == [Start(t0_ns=bench.now_ns + START_AHEAD_NS)] * 2
    bench.passes(1.7)
    assert [type(record) for record in written(bench.frame("web1", 0))] == [FrameAccepted]
    bench.frame("web2", 0)
    actions = bench.says("web1", final(1))
    assert [type(record) for record in written(actions)] == [AgentEnded]
    assert acknowledged(actions)
    assert of_kind(bench.says("web2", final(1)), ReadServer) == [ReadServer(Reading.AFTER)]
    actions = bench.do(counted(Reading.AFTER))
    assert written(actions)[-1] == RunClosed(outcome=Outcome.COMPLETED, reason="", duration_s=3.0)
    assert ended(actions) == End(0, "", Outcome.COMPLETED)
    assert said(actions, Dismiss) == [Dismiss(exit_code=0)] * 2


def test_an_agent_that_reconnects_learns_again_that_its_results_are_safe_before_it_is_dismissed() -> None:
    bench = RunBench(expected=2)
    bench.running(*BOTH)
    for name in BOTH:
        bench.says(name, final())
    for name in BOTH:
        bench.says(name, hello(name, state=AgentState.DONE, run_id=RUN_ID), routing_id=b"new " + name.encode())
    actions = bench.do(counted(Reading.AFTER))
    sent = [(send.routing_id, type(send.envelope.message)) for send in of_kind(actions, Send)]
    assert sent == [(b"new web1", FinalAck), (b"new web1", Dismiss), (b"new web2", FinalAck), (b"new web2", Dismiss)]


# -- gathering


def test_progress_is_shown_when_it_changes() -> None:
    bench = RunBench(expected=2)
    assert of_kind(bench.do(Tick()), Progress) == [Progress("waiting for agents", 0, 2)]
    assert bench.do(Tick()) == []
    assert of_kind(bench.hello("web1"), Progress) == [Progress("waiting for agents", 1, 2)]


def test_a_run_that_waits_in_vain_names_the_agents_and_a_remedy() -> None:
    bench = RunBench(expected=3)
    bench.hello("web1")
    bench.hello("web2", state=AgentState.DONE, run_id="another")
    bench.hello("web3")
    end = ended(bench.passes(60.2, "web1", "web2"))
    assert (end.exit_code, end.outcome) == (5, None)
    assert "expected 3 agents within 1m, got 1 (web1); web2, web3 cannot take part" in end.text
    assert "agent join 127.0.0.1:5555" in end.text


def test_a_silent_agent_gets_an_assignment_when_it_is_back() -> None:
    bench = RunBench(expected=2)
    bench.hello("web1")
    bench.passes(4.0)
    assert not said(bench.hello("web2"), Prepare)
    assert not bench.member("web1").takes_part
    assert len(said(bench.beat("web1"), Prepare)) == 2


def test_usual_messages_of_an_agent_cause_no_walk_over_all_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = bench_in(Phase.RUNNING)
    bench.beat("web1")
    looks: list[Registry] = []
    monkeypatch.setattr(Registry, "__iter__", lambda registry: iter(looks.append(registry) or ()))
    assert said(bench.beat("web1"), HeartbeatReply)
    closer = msgspec.structs.replace(heartbeat(AgentState.RUNNING), rtt_ns=99)  # a better estimate of its clock
    assert said(bench.says("web1", closer), HeartbeatReply)
    assert said(bench.frame("web1", 0), FrameAck)
    assert not looks
    bench.do(Tick())
    assert looks


def test_a_large_fleet_moves_on_at_ticks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.core.run.LARGE_FLEET", 0)
    bench = RunBench(expected=2)
    bench.hello("web1")
    assert not said(bench.hello("web2"), Prepare)
    assert len(said(bench.do(Tick()), Prepare)) == 2


def test_an_agent_with_results_of_another_run_gets_no_assignment_before_it_is_free() -> None:
    bench = RunBench()
    actions = bench.hello("web1", state=AgentState.DONE, run_id="another")
    assert not said(actions, Prepare)
    assert any("keeps results of run another" in note.text for note in of_kind(actions, Note))
    assert said(bench.beat("web1", AgentState.IDLE), Prepare)


def test_a_local_agent_that_cannot_join_ends_the_run() -> None:
    bench = RunBench(expected=2)
    end = ended(bench.do(LocalAgentExited(4711, "here", 3, "no such plan")))
    assert (end.exit_code, end.outcome) == (5, None)
    assert end.text == "a local agent could not join: its process ended with exit code 3 (no such plan)"


def test_a_local_agent_is_identified_by_its_host_and_pid() -> None:
    bench = RunBench(expected=2)
    bench.hello("web1", pid=77, host="elsewhere")
    bench.hello("web2", pid=77, host="here")
    for name in BOTH:
        bench.says(name, ready())
    bench.do(counted(Reading.BEFORE))
    bench.do(LocalAgentExited(77, "here", -9))
    assert bench.member("web1").is_at_work
    assert bench.member("web2").is_lost


# -- preparing


def test_an_agent_that_gave_its_assignment_up_gets_it_again_before_the_start() -> None:
    bench = bench_in(Phase.PREPARING)
    bench.says("web1", ready())
    bench.states["web1"] = AgentState.IDLE
    assert len(said(bench.passes(1.0, "web1"), Prepare)) == 1
    bench.says("web2", ready())
    assert bench.run.state.phase is Phase.PREPARING
    bench.says("web1", ready())
    assert bench.run.state.phase is Phase.COUNTING


@pytest.mark.parametrize(("kind", "exit_code"), [(FailureKind.TARGET, 4), (FailureKind.AGENT, 5)])
@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.COUNTING])
def test_an_agent_that_fails_before_the_start_ends_the_run(phase: Phase, kind: FailureKind, exit_code: int) -> None:
    bench = bench_in(phase)
    actions = bench.says("web2", Failed(kind=kind, reason="connection refused"))
    end = ended(actions)
    assert end.exit_code == exit_code
    assert "web2" in end.text
    assert "connection refused" in end.text
    assert len(said(actions, Dismiss)) == 2
    assert (end.outcome is None) == (phase is Phase.PREPARING)


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.COUNTING])
@pytest.mark.parametrize("says_goodbye", [True, False])
def test_an_agent_that_is_lost_before_the_start_ends_the_run(phase: Phase, says_goodbye: bool) -> None:
    bench = bench_in(phase)
    if says_goodbye:
        why, actions = "it said goodbye: terminated", bench.says("web2", Bye(reason="terminated"), run_id="")
    else:
        why, actions = "it is silent", bench.passes(LOST_AFTER_NS / NS_PER_S + 0.2, "web1")
    end = ended(actions)
    assert end.exit_code == 5
    assert f"web2 was lost before the start: {why}" in end.text


def test_a_run_waits_for_agents_that_preload_while_each_makes_progress() -> None:
    bench = bench_in(Phase.PREPARING)
    bench.states = dict.fromkeys(BOTH, AgentState.PREPARING)
    for done in range(4):
        for name in BOTH:
            bench.says(name, Preparing(step=PreparationStep.PRELOAD, done=done, total=1_000))
        assert not of_kind(bench.passes(100.0, *BOTH), End)
        bench.says(
            "web1", Preparing(step=PreparationStep.PRELOAD, done=done, total=1_000)
        )  # the same again is no progress
    bench.says("web2", Preparing(step=PreparationStep.PRELOAD, done=4, total=1_000))
    end = ended(bench.passes(21.0, *BOTH))
    assert (end.exit_code, end.text) == (5, "not prepared, and without progress for 2m: web1")


def test_a_short_network_failure_does_not_end_a_preload() -> None:
    workload = msgspec.structs.replace(fleet_plan().workload, preload=(Preload(),))
    bench = RunBench(msgspec.structs.replace(fleet_plan(), workload=workload), expected=2)
    bench.preparing(*BOTH)
    bench.states = dict.fromkeys(BOTH, AgentState.PREPARING)
    assert not of_kind(bench.passes(PRELOAD_SILENCE_NS / NS_PER_S - 2.0, "web2"), End)
    assert not of_kind(bench.passes(5.0, *BOTH), End)
    end = ended(bench.passes(PRELOAD_SILENCE_NS / NS_PER_S + 1.0, "web2"))
    assert (end.exit_code, end.text) == (5, "agent web1 was lost before the start: it is silent")


@pytest.mark.parametrize("estimate", [{"offset_ns": None}, {"rtt_ns": 10 * NS_PER_S}])
def test_a_start_waits_for_a_good_estimate_of_each_clock(estimate: dict[str, int | None]) -> None:
    bench = bench_in(Phase.PREPARING)
    for field, value in estimate.items():
        setattr(bench.member("web1"), field, value)
    for name in BOTH:
        bench.says(name, ready())
    assert bench.run.state.phase is Phase.PREPARING
    bench.beat("web1", AgentState.PREPARED)
    assert bench.run.state.phase is Phase.COUNTING


def test_a_start_waits_for_a_slow_network_for_a_limited_time() -> None:
    bench = bench_in(Phase.PREPARING)
    for name in BOTH:
        bench.member(name).rtt_ns = NS_PER_S
        bench.says(name, ready())
    bench.passes(CLOCK_WAIT_NS / NS_PER_S - 0.1)
    assert bench.run.state.phase is Phase.PREPARING
    bench.passes(0.2)
    assert bench.run.state.phase is Phase.COUNTING


@pytest.mark.parametrize(("phase", "when"), [(Phase.COUNTING, Reading.BEFORE), (Phase.SETTLING, Reading.AFTER)])
def test_a_run_waits_for_the_counters_of_the_server_for_a_limited_time(phase: Phase, when: Reading) -> None:
    bench = bench_in(phase)
    bench.states = dict.fromkeys(BOTH, AgentState.PREPARED)
    actions = bench.passes(COUNT_WAIT_NS / NS_PER_S + 0.2, *BOTH)
    [record] = [record for record in written(actions) if isinstance(record, CountersRead)]
    assert (record.when, bool(record.error)) == (when, True)
    assert bench.run.state.phase is (Phase.RUNNING if phase is Phase.COUNTING else Phase.DISMISSING)
    assert bench.do(counted(when)) == []


def test_a_late_reading_from_before_the_run_is_ignored() -> None:
    bench = bench_in(Phase.SETTLING)
    assert bench.do(counted(Reading.BEFORE)) == []
    assert bench.run.state.phase is Phase.SETTLING


# -- running


def test_a_silent_agent_is_lost_within_five_seconds_and_continues_when_it_is_back() -> None:
    bench = bench_in(Phase.RUNNING)
    actions = bench.passes(5.0, "web1")
    [noted] = written(actions)
    assert (noted.agent_id, noted.state) == ("web2", AgentOutcome.LOST)
    assert any("web2" in note.text and "is lost" in note.text for note in of_kind(actions, Note))
    assert any("is back" in note.text for note in of_kind(bench.beat("web2"), Note))
    assert bench.member("web2").is_at_work
    assert written(bench.frame("web2", 0))
    bench.says("web1", final())
    assert bench.run.state.phase is Phase.RUNNING
    bench.says("web2", final(1))
    assert ended(bench.do(counted(Reading.AFTER))).outcome is Outcome.COMPLETED


def test_agents_are_not_silent_when_the_coordinator_itself_stalled() -> None:
    bench = bench_in(Phase.RUNNING)
    bench.passes(2.0, *BOTH)
    bench.now_ns += 60 * NS_PER_S
    bench.beat("web1")
    bench.do(Tick())
    assert [bench.member(name).is_lost for name in BOTH] == [False, False]
    bench.passes(5.0, "web1")
    assert [bench.member(name).is_lost for name in BOTH] == [False, True]


def test_a_target_is_not_dead_when_the_coordinator_itself_stalled() -> None:
    bench = RunBench(fleet_plan(duration_s=None, requests=100), expected=1)
    bench.running("web1")
    bench.now_ns += 60 * NS_PER_S
    bench.passes(20.0, "web1")
    assert bench.run.state.phase is Phase.RUNNING


def test_a_run_continues_without_a_lost_agent_and_ends_degraded() -> None:
    bench = bench_in(Phase.RUNNING)
    bench.frame("web2", 0)
    bench.passes(2.0, "web1")
    bench.says("web1", final())
    assert bench.run.state.phase is Phase.RUNNING
    bench.passes(START_AHEAD_NS / NS_PER_S + 1.0 + DRAIN_S + RESERVE_S + COME_BACK_S - 0.1)
    assert bench.run.state.phase is Phase.RUNNING
    bench.passes(0.3)
    assert bench.run.state.phase is Phase.SETTLING
    end = ended(bench.do(counted(Reading.AFTER)))
    assert end == End(5, "lost web2", Outcome.DEGRADED)


def test_an_agent_that_gave_its_assignment_up_is_lost_once_and_not_awaited() -> None:
    bench = RunBench(fleet_plan(duration_s=None, requests=10), expected=2)
    bench.running(*BOTH)
    bench.says("web1", final())
    bench.states["web2"] = AgentState.IDLE
    actions = bench.passes(3.0, *BOTH)
    assert [record.agent_id for record in written(actions)] == ["web2"]
    assert len([note for note in of_kind(actions, Note) if "web2" in note.text]) == 1
    assert bench.run.state.phase is Phase.SETTLING
    actions = bench.do(counted(Reading.AFTER))
    assert ended(actions).outcome is Outcome.DEGRADED
    assert len(said(actions, Dismiss)) == 2


STAGED = Load(stages=(stage(1), stage(2, 5)), warmup_s=Seconds(4))


@pytest.mark.parametrize(("load", "load_s"), [(fleet_plan().load, 3.0), (STAGED, 7.0)])
def test_a_run_ends_without_agents_that_continue_after_the_planned_end_and_the_drain(load: Load, load_s: float) -> None:
    bench = RunBench(msgspec.structs.replace(fleet_plan(), load=load), expected=2)
    bench.running(*BOTH)
    bench.passes(load_s + DRAIN_S + START_AHEAD_NS / NS_PER_S + RESERVE_S - 0.2, *BOTH)
    assert bench.run.state.phase is Phase.RUNNING
    bench.passes(0.4, *BOTH)
    assert bench.run.state.phase is Phase.SETTLING
    assert ended(bench.do(counted(Reading.AFTER))).outcome is Outcome.DEGRADED


@pytest.mark.parametrize("load", [{"duration_s": None, "requests": 10**6}, {"duration_s": 0.0}])
def test_a_run_without_an_end_in_time_is_given_up_when_its_target_is_dead(load: dict[str, Any]) -> None:
    bench = RunBench(fleet_plan(**load), expected=1)
    bench.running("web1")
    failing = MetricsFrame(seq=0, through=0, intervals=(interval(0, 0, failed=5),))
    bench.passes(2.0, "web1")
    bench.says("web1", failing)
    actions = bench.passes(DEAD_TARGET_NS / NS_PER_S, "web1")
    [decided] = [record for record in written(actions) if isinstance(record, StopDecided)]
    assert (decided.what, decided.exit_code) == (StopKind.LOAD, 4)
    assert said(actions, Stop)
    assert bench.run.state.phase is Phase.DRAINING
    bench.says("web1", final(1, reason="stopped"))
    end = ended(bench.do(counted(Reading.AFTER)))
    assert (end.exit_code, end.outcome) == (4, Outcome.ABORTED)
    assert end.text.startswith("no operation succeeded for 30 s")


def dies_in_second(bench: RunBench, second: int, seconds: int = 3) -> None:
    """The agent reports operations done up to this second, failed ones after it, and its end."""
    for at in range(seconds):
        bench.passes(1.0, "web1")
        counts = (5, 0) if at <= second else (0, 5)
        bench.says("web1", MetricsFrame(seq=at, through=at, intervals=(interval(at, counts[0], failed=counts[1]),)))
    bench.passes(1.0, "web1")
    bench.says("web1", final(seconds))


GONE = Counted(CountersRead(when=Reading.AFTER, error="it refused the connection", unreachable=True))


def test_a_target_that_dies_during_the_run_and_stays_away_sets_the_exit_code() -> None:
    bench = RunBench()
    bench.running("web1")
    dies_in_second(bench, 1)
    actions = bench.do(GONE)
    text = "the target was lost in second 1 of 3 and did not come back: ConnectionError 5"
    assert ended(actions) == End(4, text, Outcome.DEGRADED)
    assert [record.reason for record in written(actions) if isinstance(record, RunClosed)] == [text]
    assert [dismiss.exit_code for dismiss in said(actions, Dismiss)] == [4]


@pytest.mark.parametrize(("answers", "end"), [(True, (0, Outcome.COMPLETED)), (False, (4, Outcome.DEGRADED))])
def test_a_target_that_answers_again_after_the_load_was_not_lost(answers: bool, end: tuple[int, Outcome]) -> None:
    bench = RunBench()
    bench.running("web1")
    dies_in_second(bench, 1)
    actions = bench.do(counted(Reading.AFTER)) if answers else bench.passes(COUNT_WAIT_NS / NS_PER_S + 1, "web1")
    assert (ended(actions).exit_code, ended(actions).outcome) == end


def test_an_interrupt_sets_the_exit_code_even_if_the_target_is_lost() -> None:
    bench = RunBench()
    bench.running("web1")
    bench.passes(1.0, "web1")
    bench.do(Interrupted())
    dies_in_second(bench, 0)
    end = ended(bench.do(GONE))
    assert (end.exit_code, end.outcome) == (130, Outcome.INTERRUPTED)
    assert end.text.startswith("the target was lost in second 0")


def test_a_resumed_run_comes_to_the_same_verdict_on_its_target() -> None:
    bench = RunBench()
    bench.running("web1")
    dies_in_second(bench, 1)
    journal = bench.written
    assert journal is not None
    assert journal.started is not None
    run = Run.resumed(bench.setup, journal.started.t0_ns, journaled_agents(journal), bench.now_ns, written=journal)
    again = RunBench(run=run, written=journal)
    again.hello("web1", state=AgentState.DONE, run_id=RUN_ID)
    again.says("web1", final(3))
    assert ended(again.do(GONE)) == ended(bench.do(GONE))


@pytest.mark.parametrize(("rate_per_s", "reports"), [(None, True), (1 / 60, False)])
def test_a_target_is_not_dead_while_operations_succeed_or_when_the_rate_is_low(
    rate_per_s: float | None, reports: bool
) -> None:
    bench = RunBench(fleet_plan(duration_s=None, requests=10**6, rate_per_s=rate_per_s), expected=1)
    bench.running("web1")
    for seq in range(50):
        bench.passes(2.0, "web1")
        if reports:
            bench.frame("web1", seq)
    assert bench.run.state.phase is Phase.RUNNING


# -- the end


@pytest.mark.parametrize("phase", [Phase.GATHERING, Phase.PREPARING, Phase.COUNTING])
def test_an_interrupt_before_the_start_ends_the_run(phase: Phase) -> None:
    bench = bench_in(phase, cleans=True)
    actions = bench.do(Interrupted())
    end = ended(actions)
    assert end.exit_code == 130
    assert end.outcome is (Outcome.ABORTED if phase is Phase.COUNTING else None)
    assert [type(record) for record in bench.records] == ([RunOpened, RunClosed] if phase is Phase.COUNTING else [])
    assert said(actions, Dismiss)
    assert not of_kind(actions, DeleteKeys)


def test_an_interrupt_is_recorded_before_the_load_is_stopped_and_the_run_is_reported() -> None:
    bench = bench_in(Phase.RUNNING, cleans=True)
    actions = bench.do(Interrupted())
    decided = StopDecided(what=StopKind.LOAD, reason="interrupted", exit_code=130, at_ns=bench.now_ns)
    assert first_of(actions, Write, Send) == Write(decided)
    assert written(actions) == [decided]
    assert len(said(actions, Stop)) == 2
    for name in BOTH:
        bench.says(name, final(reason="interrupted"))
    assert of_kind(bench.do(counted(Reading.AFTER)), DeleteKeys)
    assert ended(bench.do(Cleaned(DELETED))) == End(130, "", Outcome.INTERRUPTED)


def test_a_stop_by_the_user_completes_a_run_without_an_end() -> None:
    bench = RunBench(fleet_plan(duration_s=0), expected=2)
    bench.running(*BOTH)
    bench.passes(5.0, *BOTH)
    assert bench.run.state.phase is Phase.RUNNING
    actions = bench.do(Interrupted())
    assert written(actions) == [
        StopDecided(what=StopKind.LOAD, reason="stopped by the user", exit_code=0, at_ns=bench.now_ns)
    ]
    assert said(actions, Stop) == [Stop(drain=True, reason="stopped by the user")] * 2
    for name in BOTH:
        bench.says(name, final(reason="stopped by the user"))
    assert ended(bench.do(counted(Reading.AFTER))) == End(0, "", Outcome.COMPLETED)


def test_a_second_interrupt_cuts_a_run_without_an_end_short() -> None:
    bench = RunBench(fleet_plan(duration_s=0))
    bench.running("web1")
    bench.do(Interrupted())
    assert said(bench.do(Interrupted()), Stop) == [Stop(drain=False, reason="interrupted twice")]
    bench.says("web1", final(reason="interrupted twice"))
    assert ended(bench.do(counted(Reading.AFTER))) == End(130, "", Outcome.INTERRUPTED)


@pytest.mark.parametrize("resumes", ["running", "stopped"])
def test_a_resumed_run_without_an_end_is_completed_by_a_stop(resumes: str) -> None:
    bench = RunBench(fleet_plan(duration_s=0))
    bench.running("web1")
    if resumes == "stopped":
        bench.do(Interrupted())
    journal = bench.written
    assert journal is not None
    assert journal.started is not None
    run = Run.resumed(bench.setup, journal.started.t0_ns, journaled_agents(journal), bench.now_ns, written=journal)
    again = RunBench(run=run, written=journal)
    again.hello("web1", state=AgentState.RUNNING, run_id=RUN_ID)
    if resumes == "running":
        again.do(Interrupted())
    assert again.run.state.phase is Phase.DRAINING
    again.says("web1", final(reason="stopped by the user"))
    assert ended(again.do(counted(Reading.AFTER))) == End(0, "", Outcome.COMPLETED)


def test_an_interrupt_while_an_endless_run_is_given_up_counts_as_an_interrupt() -> None:
    bench = RunBench(fleet_plan(duration_s=0))
    bench.running("web1")
    bench.passes(DEAD_TARGET_NS / NS_PER_S + 1.0, "web1")
    assert bench.run.state.phase is Phase.DRAINING
    bench.do(Interrupted())
    bench.says("web1", final(reason="stopped"))
    assert ended(bench.do(counted(Reading.AFTER))).exit_code == 130


@pytest.mark.parametrize("third", [False, True])
def test_a_second_interrupt_stops_the_load_at_once_and_a_third_one_ends_the_wait(third: bool) -> None:
    bench = bench_in(Phase.DRAINING)
    actions = bench.do(Interrupted())
    decided = StopDecided(what=StopKind.AT_ONCE, reason="interrupted twice", exit_code=130, at_ns=bench.now_ns)
    assert first_of(actions, Write, Send) == Write(decided)
    assert said(actions, Stop) == [Stop(drain=False, reason="interrupted twice")] * 2
    assert bench.run.state.phase is Phase.DRAINING
    if third:
        bench.do(Interrupted())
    else:
        bench.passes(AT_ONCE_NS / NS_PER_S + 0.1)
    assert bench.run.state.phase is Phase.SETTLING
    assert ended(bench.do(counted(Reading.AFTER))).exit_code == 130


def test_an_agent_that_exceeds_its_drain_gets_no_answers_and_is_awaited_until_it_is_fenced() -> None:
    bench = RunBench(fleet_plan(duration_s=None, requests=100))
    bench.running("web1")
    bench.do(Interrupted())
    bench.states["web1"] = AgentState.DRAINING
    assert not said(bench.passes(DRAIN_S + RESERVE_S - 0.5, "web1"), Stop)
    actions = bench.passes(2.0, "web1")
    assert [record.reason for record in written(actions)] == ["it did not end within the drain"]
    assert said(actions, Stop)[0] == Stop(drain=False, reason="it did not end within the drain")
    assert not said(bench.beat("web1"), HeartbeatReply)
    bench.passes(LEASE_S + DRAIN_S + RESERVE_S - 3.0, "web1")
    assert bench.run.state.phase is Phase.DRAINING
    actions = bench.passes(3.0, "web1")
    assert of_kind(actions, ReadServer)
    [record] = [each for each in written(bench.do(counted(Reading.AFTER))) if isinstance(each, CountersRead)]
    assert record.writers == ()


def test_an_agent_that_was_given_up_may_still_report() -> None:
    bench = bench_in(Phase.DRAINING)
    bench.says("web1", final(reason="interrupted"))
    bench.states["web2"] = AgentState.DRAINING
    bench.passes(DRAIN_S + RESERVE_S + 1.0, "web2")
    assert bench.member("web2").state is MemberState.REVOKED
    bench.says("web2", final(reason="interrupted"))
    assert ended(bench.do(counted(Reading.AFTER))) == End(130, "", Outcome.INTERRUPTED)


@pytest.mark.parametrize(
    ("plan", "wait_s"),
    [
        (fleet_plan(duration_s=None, requests=100), LEASE_S + DRAIN_S + RESERVE_S + COME_BACK_S),
        (fleet_plan(), 3.0 + START_AHEAD_NS / NS_PER_S + DRAIN_S + RESERVE_S + COME_BACK_S),  # its planned end
    ],
)
def test_a_drain_waits_for_a_silent_agent_until_it_is_fenced_and_had_time_to_come_back(
    plan: Plan, wait_s: float
) -> None:
    bench = RunBench(plan, expected=2)
    bench.running(*BOTH)
    bench.do(Interrupted())
    bench.says("web1", final(reason="interrupted"))
    actions = bench.passes(wait_s - 0.1, "web1")
    assert bench.run.state.phase is Phase.DRAINING
    [note] = [note.text for note in of_kind(actions, Note) if "waiting for" in note.text]
    assert note.startswith("waiting for web2 (silent, may still load the target, and has results to report): ")
    assert note.endswith(" s at most; interrupt again to end at once")
    bench.passes(0.2, "web1")
    assert bench.run.state.phase is Phase.SETTLING


def test_counters_are_read_when_agents_of_another_run_have_stopped() -> None:
    bench = RunBench()
    bench.running("web1")
    bench.hello("web2", state=AgentState.RUNNING, run_id="another")
    actions = bench.says("web1", final())
    assert not of_kind(actions, ReadServer)
    assert any("web2" in note.text and "another run" in note.text for note in of_kind(actions, Note))
    bench.passes(3.0, "web2")
    assert of_kind(bench.beat("web2", AgentState.DONE), ReadServer)


def test_an_agent_of_another_run_that_never_stops_is_named_in_the_reading_and_keys_are_left() -> None:
    bench = RunBench(CLEANS)
    bench.running("web1")
    bench.hello("web2", state=AgentState.RUNNING, run_id="another")
    bench.says("web1", final())
    bench.passes(LEASE_S + DRAIN_S + RESERVE_S + 1.0, "web2")
    actions = bench.do(counted(Reading.AFTER))
    assert not of_kind(actions, DeleteKeys)
    reading, cleaned, _ = written(actions)
    assert isinstance(reading, CountersRead)
    assert reading.writers == ("web2",)
    assert isinstance(cleaned, CleanedUp)
    assert (cleaned.left, cleaned.error) == (None, "web2 might still write to the target")


def test_the_reading_after_an_immediate_stop_names_agents_that_may_still_write() -> None:
    bench = bench_in(Phase.DRAINING)
    bench.do(Interrupted())
    bench.says("web1", final(reason="interrupted twice"))
    bench.passes(AT_ONCE_NS / NS_PER_S + 0.1)
    actions = bench.do(counted(Reading.AFTER))
    assert [record.writers for record in written(actions) if isinstance(record, CountersRead)] == [("web2",)]
    assert any("start --resume run-1" in note.text for note in of_kind(actions, Note))


def test_the_reading_names_an_agent_that_comes_back_at_work_meanwhile() -> None:
    bench = RunBench(fleet_plan(duration_s=None, requests=100), expected=2)
    bench.running(*BOTH)
    bench.says("web1", final())
    bench.passes(LEASE_S + DRAIN_S + RESERVE_S + COME_BACK_S + 0.1, "web1")
    assert bench.run.state.phase is Phase.SETTLING
    bench.passes(0.1)
    bench.beat("web2")
    actions = bench.do(counted(Reading.AFTER))
    assert [record.writers for record in written(actions) if isinstance(record, CountersRead)] == [("web2",)]


# -- late results


def lost_in(phase: Phase) -> RunBench:
    """A run in this phase after its load, without the results of web2."""
    bench = RunBench(CLEANS, expected=2)
    bench.running(*BOTH)
    bench.says("web1", final())
    bench.passes(3.0 + START_AHEAD_NS / NS_PER_S + DRAIN_S + RESERVE_S + COME_BACK_S + 0.1, "web1")
    assert bench.run.state.phase is Phase.SETTLING
    if phase is not Phase.SETTLING:
        bench.do(counted(Reading.AFTER))
    if phase is Phase.DISMISSING:
        assert ended(bench.do(Cleaned(DELETED))) == End(5, "lost web2", Outcome.DEGRADED)
    assert bench.run.state.phase is phase
    return bench


@pytest.mark.parametrize("phase", [Phase.SETTLING, Phase.CLEANING])
def test_results_after_the_load_enter_the_journal(phase: Phase) -> None:
    bench = lost_in(phase)
    bench.beat("web2", AgentState.DONE)
    assert [type(record) for record in written(bench.frame("web2", 0))] == [FrameAccepted]
    actions = bench.says("web2", final(1))
    assert [type(record) for record in written(actions)] == [AgentEnded]
    assert acknowledged(actions)
    if phase is Phase.SETTLING:
        bench.do(counted(Reading.AFTER))
    assert ended(bench.do(Cleaned(DELETED))) == End(0, "", Outcome.COMPLETED)


def comes(bench: RunBench, name: str, message: AgentMessage) -> list[object]:
    """A message while agents are dismissed, and what follows."""
    return [*bench.says(name, message), *bench.do(Tick())]


def test_results_after_the_end_enter_the_journal_and_the_end_is_written_again() -> None:
    bench = lost_in(Phase.DISMISSING)
    assert said(comes(bench, "web2", hello("web2", state=AgentState.DONE, run_id=RUN_ID)), Welcome)
    assert said(comes(bench, "web2", Attach()), Attached)
    frame = MetricsFrame(seq=0, through=0, intervals=(interval(0),))
    actions = comes(bench, "web2", frame)
    assert [type(record) for record in written(actions)] == [FrameAccepted, AgentEnded, RunClosed]
    assert ended(actions) == End(5, "lost web2", Outcome.DEGRADED)
    actions = comes(bench, "web2", final(1))
    assert acknowledged(actions)
    assert [type(record) for record in written(actions)] == [AgentEnded, RunClosed]
    assert ended(actions) == End(0, "", Outcome.COMPLETED)
    assert said(actions, Dismiss)
    comes(bench, "web2", heartbeat(AgentState.IDLE))
    comes(bench, "web1", heartbeat(AgentState.IDLE))
    assert bench.run.state.phase is Phase.CLOSED
    assert bench.written is not None
    assert bench.written.closed == RunClosed(outcome=Outcome.COMPLETED, reason="", duration_s=3.0)


@pytest.mark.parametrize(
    ("name", "message", "answers"),
    [
        ("web1", final(), [FinalAck, Dismiss]),
        ("web1", hello("web1", state=AgentState.DONE, run_id=RUN_ID), [FinalAck, Dismiss]),
        ("web2", heartbeat(AgentState.RUNNING), [HeartbeatReply, Dismiss]),
    ],
)
def test_an_agent_that_comes_back_after_the_end_is_dismissed(
    name: str, message: AgentMessage, answers: list[type]
) -> None:
    actions = comes(lost_in(Phase.DISMISSING), name, message)
    assert [type(send.envelope.message) for send in of_kind(actions, Send)] == answers
    assert written(actions) == []


def test_an_ended_run_that_is_resumed_collects_kept_results_and_ends_again() -> None:
    bench = resumed(final(), None, is_ended=True, plan=CLEANS, after=[READ, DELETED])
    bench.hello("web2", state=AgentState.DONE, run_id=RUN_ID)
    bench.hello("web1")
    assert written(bench.frame("web2", 0))
    actions = bench.says("web2", final(1))
    assert (of_kind(actions, ReadServer), of_kind(actions, DeleteKeys)) == ([], [])
    assert [type(record) for record in written(actions)] == [AgentEnded, RunClosed]
    assert ended(actions) == End(0, "", Outcome.COMPLETED)


def test_an_ended_run_waits_some_seconds_for_its_agents() -> None:
    bench = resumed(None, is_ended=True, plan=fleet_plan(duration_s=None, requests=10))
    bench.passes(2 * COME_BACK_S - 0.1)
    assert bench.run.state.phase is Phase.COLLECTING
    assert ended(bench.passes(0.3)).outcome is Outcome.DEGRADED


def test_an_ended_run_that_is_interrupted_while_it_collects_ends_as_before() -> None:
    bench = resumed(None, is_ended=True)
    [note] = [note.text for note in of_kind(bench.passes(COME_BACK_S), Note) if "waiting for" in note.text]
    assert note.endswith("; interrupt to end at once")
    assert ended(bench.do(Interrupted())) == End(5, "lost web1", Outcome.DEGRADED)
    assert of_kind(resumed(None, is_ended=True).hello("web1"), End)  # an agent without results is not awaited


def stopped_at_once_with_a_silent_local_agent() -> tuple[RunBench, list[Action]]:
    """web1 is a local agent, web2 is not; both are silent since second 1."""
    written = Aggregate()
    setup = replace(setup_for(fleet_plan(), 2), host="web1.example", local_pids=frozenset({4711}))
    bench = RunBench(run=Run(setup, 5_000 * NS_PER_S, written), written=written)
    bench.running("web1", "web2")
    bench.passes(2.0, "web1", "web2")
    for name in ("web1", "web2"):
        for second in range(2):
            bench.frame(name, second)
    bench.passes(5.0)
    for _ in range(2):
        bench.do(Interrupted())
    actions = bench.passes(2.0)
    return bench, [*actions, *bench.do(counted(Reading.AFTER))]


def test_results_of_a_silent_local_agent_are_lost_and_the_user_is_told() -> None:
    _, actions = stopped_at_once_with_a_silent_local_agent()
    notes = [note.text for note in of_kind(actions, Note) if "results of" in note.text]
    assert notes == [
        "the results of web1 after second 1 are lost: a local agent ends with its coordinator",
        "no results of web2: while it runs, `coordinator start --resume run-1` collects them (for 300 s)",
    ]
    assert ended(actions) == End(130, "lost web1, web2", Outcome.INTERRUPTED)


def test_an_ended_run_does_not_wait_for_a_local_agent_that_ended_with_its_coordinator() -> None:
    bench, _ = stopped_at_once_with_a_silent_local_agent()
    journal = bench.written
    assert journal is not None
    assert journal.started is not None
    assert {name: agent.has_left for name, agent in journal.agents.items()} == {"web1": True, "web2": False}
    assert journal.can_resume
    later_ns = bench.now_ns + 60 * NS_PER_S
    run = Run.resumed(
        bench.setup, journal.started.t0_ns, journaled_agents(journal), later_ns, written=journal, ended=True
    )
    again = RunBench(run=run, written=journal)
    again.now_ns = later_ns
    again.hello("web2", state=AgentState.DONE, run_id=RUN_ID)
    again.frame("web2", 2)
    actions = again.says("web2", final(3))
    assert ended(actions).text == "lost web1"
    assert not any("results of" in note.text for note in of_kind(actions, Note))
    assert not journal.can_resume


def test_nothing_happens_after_the_end() -> None:
    bench = bench_in(Phase.CLOSED)
    assert bench.hello("web9") == []
    assert bench.do(Tick()) == []
    assert bench.do(Interrupted()) == []


@pytest.mark.parametrize("state", [AgentState.PREPARED, AgentState.RUNNING, AgentState.DRAINING])
@pytest.mark.parametrize("cleans", [False, True])
def test_a_lost_agent_that_comes_back_after_the_load_is_stopped_at_once(state: AgentState, cleans: bool) -> None:
    bench = RunBench(CLEANS if cleans else None, expected=2)
    bench.running(*BOTH)
    bench.says("web1", final())
    bench.passes(3.0 + START_AHEAD_NS / NS_PER_S + DRAIN_S + RESERVE_S + COME_BACK_S + 0.1, "web1")
    bench.beat("web1", AgentState.IDLE)
    assert bench.run.state.phase is Phase.SETTLING
    if cleans:
        bench.do(counted(Reading.AFTER))
        assert bench.run.state.phase is Phase.CLEANING
    assert said(bench.beat("web2", state), Stop) == [Stop(drain=False, reason="the run is over")]
    assert said(bench.beat("web2", state), Stop) == []
    bench.passes(1.0)
    assert len(said(bench.beat("web2", state), Stop)) == 1
    assert said(bench.beat("web2", AgentState.DONE), Stop) == []
    bench.passes(1.0)
    assert said(bench.beat("web1", AgentState.RUNNING), Stop) == []


def test_an_interrupt_after_the_load_is_recorded_because_it_sets_the_exit_code() -> None:
    actions = bench_in(Phase.SETTLING).do(Interrupted())
    [decided] = written(actions)
    assert isinstance(decided, StopDecided)
    assert (decided.what, decided.exit_code) == (StopKind.LOAD, 130)


# -- cleaning


def test_keys_are_deleted_after_the_last_reading_and_before_the_end() -> None:
    bench = bench_in(Phase.SETTLING, cleans=True)
    actions = bench.do(counted(Reading.AFTER))
    assert of_kind(actions, DeleteKeys) == [DeleteKeys()]
    assert not said(actions, Dismiss)
    assert not of_kind(actions, End)
    # However long it takes, as long as agents are heard and also when they are not.
    assert not of_kind(bench.passes(600.0, "web1"), End)
    actions = bench.do(Cleaned(DELETED))
    assert [type(record) for record in written(actions)] == [CleanedUp, RunClosed]
    assert (ended(actions).outcome, ended(actions).exit_code) == (Outcome.COMPLETED, 0)
    assert len(said(actions, Dismiss)) == 2


def test_an_interrupt_ends_the_deletion_and_not_the_run() -> None:
    bench = bench_in(Phase.CLEANING)
    decided = StopDecided(what=StopKind.CLEAN_UP, reason="interrupted", exit_code=0, at_ns=bench.now_ns)
    assert bench.do(Interrupted()) == [Write(decided), StopDeleting()]
    cut = CleanedUp(deleted=1, left=None, took_ns=1, error="interrupted")
    assert ended(bench.do(Cleaned(cut))).outcome is Outcome.COMPLETED


def test_a_run_that_is_stopped_at_once_leaves_its_keys_and_records_why() -> None:
    bench = bench_in(Phase.DRAINING, cleans=True)
    bench.do(Interrupted())
    bench.passes(AT_ONCE_NS / NS_PER_S + 0.1)
    actions = bench.do(counted(Reading.AFTER))
    assert not of_kind(actions, DeleteKeys)
    [cleaned] = [record for record in written(actions) if isinstance(record, CleanedUp)]
    assert (cleaned.deleted, cleaned.left, cleaned.error) == (0, None, "the run was stopped at once")
    assert ended(actions).exit_code == 130


# -- resumed


def resumed(
    *ends: object,
    now_ns: int = 10**6 * NS_PER_S,
    t0_ns: int = 1,
    plan: Plan | None = None,
    after: Sequence[AfterLoad] = (),
    stops: Sequence[StopDecided] = (),
    is_ended: bool = False,
) -> RunBench:
    """A run of as many agents; each end is the Final of its agent, or None where it had not come. is_ended: the run has
    its end already."""
    standings = [
        JournaledAgent(
            AgentFacts(
                agent_id=f"web{n}", incarnation=incarnation_of(f"web{n}"), host="host", processes=1, pools=dealt(1)
            ),
            next_seq=0,
            final=end,  # type: ignore[arg-type]
        )
        for n, end in enumerate(ends, 1)
    ]
    written = Aggregate()
    written.stops = list(stops)
    setup = setup_for(plan or fleet_plan())
    run = Run.resumed(setup, t0_ns, standings, now_ns, after=after, written=written, ended=is_ended)
    bench = RunBench(run=run)
    bench.now_ns = now_ns
    return bench


def test_a_run_that_is_resumed_long_after_its_planned_end_still_waits_for_agents() -> None:
    bench = resumed(None)
    bench.passes(2.0)
    assert bench.run.state.phase is Phase.RUNNING
    assert bench.member("web1").is_at_work
    bench.hello("web1", state=AgentState.DONE, run_id=RUN_ID)
    assert written(bench.frame("web1", 0))
    assert acknowledged(bench.says("web1", final(1)))
    assert ended(bench.do(counted(Reading.AFTER))).outcome is Outcome.COMPLETED


@pytest.mark.parametrize("end", [None, final()])
@pytest.mark.parametrize("is_draining", [False, True])
def test_a_resumed_run_waits_for_agents_for_a_limited_time(end: object, is_draining: bool) -> None:
    bench = resumed(end, stops=[INTERRUPT] * is_draining)
    bench.passes(2 * COME_BACK_S - 0.2)
    assert bench.run.state.phase is (Phase.DRAINING if is_draining else Phase.RUNNING)
    bench.passes(0.4)
    assert bench.run.state.phase is Phase.SETTLING
    outcome = Outcome.INTERRUPTED if is_draining else Outcome.DEGRADED if end is None else Outcome.COMPLETED
    assert ended(bench.do(counted(Reading.AFTER))).outcome is outcome


@pytest.mark.parametrize("state", [AgentState.DONE, AgentState.IDLE])
def test_a_resumed_run_ends_when_agents_know_that_their_results_are_safe(state: AgentState) -> None:
    bench = resumed(final())
    bench.passes(1.0)
    assert bench.run.state.phase is Phase.RUNNING
    if state is AgentState.DONE:
        bench.hello("web1", state=state, run_id=RUN_ID)
        actions = bench.says("web1", final())
        assert (said(actions, FinalAck), written(actions)) == ([FinalAck()], [])
    else:
        bench.hello("web1")
    assert bench.run.state.phase is Phase.SETTLING


def test_a_run_that_is_resumed_during_its_clean_up_continues_it_and_keeps_the_earlier_reading() -> None:
    bench = resumed(final(), plan=CLEANS, after=[READ])
    actions = bench.hello("web1")
    # The UNLINKs of the coordinator that was killed would be taken for the plan's.
    assert of_kind(actions, ReadServer) == []
    assert of_kind(actions, DeleteKeys) == [DeleteKeys()]
    actions = bench.do(Cleaned(DELETED))
    assert [type(record) for record in written(actions)] == [CleanedUp, RunClosed]
    assert ended(actions).outcome is Outcome.COMPLETED


def test_a_run_that_is_resumed_after_its_clean_up_does_not_delete_again() -> None:
    actions = resumed(final(), plan=CLEANS, after=[READ, DELETED]).hello("web1")
    assert (of_kind(actions, ReadServer), of_kind(actions, DeleteKeys)) == ([], [])
    assert [type(record) for record in written(actions)] == [RunClosed]
    assert ended(actions).outcome is Outcome.COMPLETED


def test_an_ended_run_that_left_keys_deletes_them_when_it_is_resumed() -> None:
    bench = resumed(final(), is_ended=True, plan=CLEANS, after=[READ], stops=[INTERRUPT, LEFT_KEYS])
    actions = bench.do(Tick())
    assert (of_kind(actions, ReadServer), of_kind(actions, DeleteKeys)) == ([], [DeleteKeys()])
    actions = bench.do(Cleaned(DELETED))
    assert [type(record) for record in written(actions)] == [CleanedUp, RunClosed]
    assert ended(actions).outcome is Outcome.INTERRUPTED


def test_the_keys_of_an_ended_run_are_deleted_when_no_agent_can_write_any_more() -> None:
    bench = resumed(None, is_ended=True, plan=CLEANS, after=[READ], t0_ns=10**6 * NS_PER_S)
    assert not of_kind(bench.passes(DRAIN_S + RESERVE_S), DeleteKeys)
    assert of_kind(bench.passes(LEASE_S + 2 * COME_BACK_S), DeleteKeys)


def test_the_keys_of_an_ended_run_stay_when_the_wait_for_its_agents_is_interrupted() -> None:
    bench = resumed(None, is_ended=True, plan=CLEANS, after=[READ])
    assert bench.run._written is not None
    bench.run._written.cleaned = CleanedUp(deleted=7, left=None, took_ns=1, error="interrupted")
    [cleaned] = [record for record in written(bench.do(Interrupted())) if isinstance(record, CleanedUp)]
    assert (cleaned.deleted, cleaned.earlier, cleaned.left, cleaned.error) == (7, 7, None, "interrupted")


@pytest.mark.parametrize("left", [None, 0, 3])
def test_only_an_ended_run_that_left_keys_deletes_again(left: int | None) -> None:
    deleted = CleanedUp(deleted=5, left=left, took_ns=1, error="" if left == 0 else "interrupted")
    aggregate = Aggregate()
    aggregate.cleaned = deleted
    assert after_load(aggregate) == [deleted]
    aggregate.closed = RunClosed(outcome=Outcome.COMPLETED, reason="", duration_s=1.0)
    assert after_load(aggregate) == ([deleted] if left == 0 else [])
    assert aggregate.can_resume is (left != 0)


def test_a_resumed_run_without_clean_up_reads_the_counters_again() -> None:
    assert of_kind(resumed(final(), after=[READ]).hello("web1"), ReadServer) == [ReadServer(Reading.AFTER)]


@pytest.mark.parametrize("end", [final(processes_lost=1), final(reason="this agent was terminated")])
def test_problems_from_before_a_resume_still_degrade_the_run(end: object) -> None:
    bench = resumed(end)
    bench.hello("web1")
    outcome = ended(bench.do(counted(Reading.AFTER)))
    assert outcome.outcome is Outcome.DEGRADED
    assert "web1" in outcome.text


def test_a_run_that_was_interrupted_before_it_is_resumed_continues_to_drain() -> None:
    bench = resumed(None, stops=[INTERRUPT])
    assert (bench.run.state.phase, bench.run.state.stopped_ns) == (Phase.DRAINING, 7)
    actions = bench.hello("web1", state=AgentState.PREPARED, run_id=RUN_ID)
    assert (said(actions, Start), said(actions, Stop)) == ([], [Stop(drain=True, reason="the run is stopped")])
    bench.says("web1", final(reason="interrupted"))
    assert ended(bench.do(counted(Reading.AFTER))) == End(130, "", Outcome.INTERRUPTED)


def test_agents_that_drained_before_a_resume_did_not_end_early() -> None:
    bench = resumed(final(reason="interrupted"), stops=[INTERRUPT])
    bench.hello("web1")
    assert ended(bench.do(counted(Reading.AFTER))) == End(130, "", Outcome.INTERRUPTED)


def test_an_interrupt_of_a_run_that_is_resumed_in_its_drain_stops_the_load_at_once() -> None:
    bench = resumed(None, stops=[INTERRUPT])
    actions = [*bench.do(Interrupted()), *bench.passes(AT_ONCE_NS / NS_PER_S + 0.1)]
    assert of_kind(actions, ReadServer)
    assert [record.what for record in written(actions) if isinstance(record, StopDecided)] == [StopKind.AT_ONCE]


def test_a_run_that_was_stopped_at_once_waits_shortly_when_it_is_resumed_and_deletes_nothing() -> None:
    bench = resumed(None, plan=CLEANS, stops=[INTERRUPT, AT_ONCE])
    bench.passes(LOST_AFTER_NS / NS_PER_S - 0.1)
    assert bench.run.state.phase is Phase.DRAINING
    bench.passes(0.3)
    assert bench.run.state.phase is Phase.SETTLING
    assert said(bench.hello("web1", state=AgentState.RUNNING, run_id=RUN_ID), Stop) == [
        Stop(drain=False, reason="the run is over")
    ]
    actions = bench.do(counted(Reading.AFTER))
    assert not of_kind(actions, DeleteKeys)
    assert ended(actions).exit_code == 130


def test_a_run_whose_clean_up_was_interrupted_leaves_the_rest_when_it_is_resumed() -> None:
    actions = resumed(final(), plan=CLEANS, after=[READ], stops=[LEFT_KEYS]).hello("web1")
    assert not of_kind(actions, DeleteKeys)
    [cleaned] = [record for record in written(actions) if isinstance(record, CleanedUp)]
    assert (cleaned.left, cleaned.error) == (None, "interrupted")
    assert ended(actions).outcome is Outcome.COMPLETED


def test_a_run_that_was_given_up_stays_so_when_it_is_resumed() -> None:
    gave_up = StopDecided(what=StopKind.LOAD, reason="no operation succeeded for 30 s", exit_code=4, at_ns=7)
    bench = resumed(final(), stops=[gave_up])
    bench.hello("web1")
    end = ended(bench.do(counted(Reading.AFTER)))
    assert (end.exit_code, end.outcome) == (4, Outcome.ABORTED)
    assert end.text.startswith("no operation succeeded for 30 s")


def test_an_assignment_that_is_too_large_for_a_message_ends_the_run_before_the_start() -> None:
    bench = RunBench(fleet_plan(pools=60_000))
    actions = bench.hello("web1")
    [end] = of_kind(actions, End)
    assert end.exit_code == 5
    assert "the share of agent web1 takes 2," in end.text
    assert "bytes, expected at most 1,048,576; use fewer than its 60,000 client pools" in end.text
    assert said(RunBench(fleet_plan(pools=20_000)).hello("web1"), Prepare)
