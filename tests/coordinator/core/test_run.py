from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

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
    Preloaded,
    Prepare,
    Prepared,
    Preparing,
    Start,
    Step,
    Stop,
    Welcome,
    WorkerLost,
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
    AgentEnd,
    AgentFacts,
    AgentNoted,
    CleanedUp,
    FrameAccepted,
    Outcome,
    Reading,
    RunClosed,
    RunOpened,
    RunStarted,
    ServerCounted,
    StopDecided,
    Stopping,
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


def ended(actions: list[object]) -> End:
    [end] = of_kind(actions, End)
    return end


CLEANS = msgspec.structs.replace(
    fleet_plan(), workload=msgspec.structs.replace(fleet_plan().workload, clean_up=CleanUp.KEYS)
)
DELETED = CleanedUp(deleted=5, left=0, took_ns=1)


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
def test_every_row_of_the_table_leads_where_it_says(phase: Phase, trigger: Trigger) -> None:
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
    assert [type(record) for record in written(actions)] == [ServerCounted, RunStarted]
    assert said(actions, Start) == [Start(t0_ns=bench.now_ns + START_AHEAD_NS)] * 2
    bench.passes(1.7)
    assert [type(record) for record in written(bench.frame("web1", 0))] == [FrameAccepted]
    bench.frame("web2", 0)
    actions = bench.says("web1", final(1))
    assert [type(record) for record in written(actions)] == [AgentNoted]
    assert acknowledged(actions)
    assert of_kind(bench.says("web2", final(1)), ReadServer) == [ReadServer(Reading.AFTER)]
    actions = bench.do(counted(Reading.AFTER))
    assert written(actions)[-1] == RunClosed(outcome=Outcome.COMPLETED, reason="", duration_s=3.0)
    assert ended(actions) == End(0, "", Outcome.COMPLETED)
    assert said(actions, Dismiss) == [Dismiss(exit_code=0)] * 2


def test_an_agent_whose_results_are_safe_hears_so_again_before_it_is_dismissed() -> None:
    """Its link may have broken just before the acknowledgement, and it may be back with its hello alone."""
    bench = RunBench(expected=2)
    bench.running(*BOTH)
    bench.passes(1.7)
    for name in BOTH:
        bench.frame(name, 0)
        bench.says(name, final(1))
    for name in BOTH:
        bench.says(name, hello(name, state=AgentState.DONE, run_id=RUN_ID), routing_id=b"anew " + name.encode())
    actions = bench.do(counted(Reading.AFTER))
    sent = [(send.routing_id, type(send.envelope.message)) for send in of_kind(actions, Send)]
    assert sent == [
        (b"anew web1", FinalAck), (b"anew web1", Dismiss), (b"anew web2", FinalAck), (b"anew web2", Dismiss)
    ]  # fmt: skip


# -- gathering


def test_waiting_for_agents_is_shown_when_it_changes() -> None:
    bench = RunBench(expected=2)
    assert of_kind(bench.do(Tick()), Progress) == [Progress("waiting for agents", 0, 2)]
    assert bench.do(Tick()) == []
    assert of_kind(bench.hello("web1"), Progress) == [Progress("waiting for agents", 1, 2)]


def test_agents_that_do_not_come_in_time_end_the_run_with_names_and_a_remedy() -> None:
    bench = RunBench(expected=2)
    bench.hello("web1")
    end = ended(bench.passes(60.2, "web1"))
    assert (end.exit_code, end.outcome) == (5, None)
    assert "expected 2 agents within 1m, got 1 (web1)" in end.text
    assert "agent join 127.0.0.1:5555" in end.text


def test_agents_that_cannot_take_part_are_not_counted_among_those_that_came() -> None:
    bench = RunBench(expected=3)
    bench.hello("web1")
    bench.hello("web2", state=AgentState.DONE, run_id="another")
    bench.hello("web3")
    end = ended(bench.passes(60.2, "web1", "web2"))
    assert "got 1 (web1); web2, web3 cannot take part" in end.text


def test_an_agent_that_fell_silent_is_not_dealt_a_share() -> None:
    bench = RunBench(expected=2)
    bench.hello("web1")
    bench.passes(4.0)
    assert not said(bench.hello("web2"), Prepare)
    assert said(bench.hello("web3"), Prepare)
    assert not bench.member("web1").takes_part


def test_an_agent_that_is_heard_again_is_dealt_a_share() -> None:
    bench = RunBench(expected=2)
    bench.hello("web1")
    bench.passes(10.0)
    bench.hello("web2")
    assert len(said(bench.beat("web1"), Prepare)) == 2


def test_what_agents_send_each_second_costs_no_look_at_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_an_agent_that_holds_another_run_is_not_dealt_a_share_until_it_is_free() -> None:
    bench = RunBench()
    actions = bench.hello("web1", state=AgentState.DONE, run_id="another")
    assert not said(actions, Prepare)
    assert any("keeps results of run another" in note.text for note in of_kind(actions, Note))
    assert said(bench.beat("web1", AgentState.IDLE), Prepare)


def test_more_agents_than_expected_wait_and_are_dismissed_with_the_others() -> None:
    bench = RunBench(expected=1)
    bench.running("web1")
    assert not said(bench.hello("web2"), Prepare)
    assert not bench.member("web2").takes_part
    bench.says("web1", final())
    actions = bench.do(counted(Reading.AFTER))
    assert {send.routing_id for send in actions if getattr(send, "routing_id", None)} == {b"web1", b"web2"}


def test_an_agent_that_leaves_while_others_are_waited_for_is_forgotten() -> None:
    bench = RunBench(expected=2)
    bench.hello("web1")
    bench.says("web1", Bye(reason="terminated"), run_id="")
    assert not said(bench.hello("web2"), Prepare)


def test_a_local_agent_that_cannot_join_ends_the_run() -> None:
    bench = RunBench(expected=2)
    end = ended(bench.do(LocalAgentExited(4711, "here", 3, "no such plan")))
    assert (end.exit_code, end.outcome) == (5, None)
    assert end.text == "a local agent could not join: its process ended with exit code 3 (no such plan)"


def test_a_local_agent_is_not_taken_for_one_of_another_host_with_the_same_pid() -> None:
    bench = RunBench(expected=2)
    bench.hello("web1", pid=77, host="elsewhere")
    bench.hello("web2", pid=77, host="here")
    for name in BOTH:
        bench.says(name, ready())
    bench.do(counted(Reading.BEFORE))
    bench.do(LocalAgentExited(77, "here", -9))
    assert bench.member("web1").is_at_work
    assert bench.member("web2").is_lost


def test_a_local_agent_that_was_not_needed_may_leave_once_the_fleet_is_complete() -> None:
    bench = RunBench(expected=1)
    bench.hello("web1", host="elsewhere")
    bench.hello("local-1", pid=77, host="here")
    assert not of_kind(bench.do(LocalAgentExited(77, "here", -9)), End)
    assert bench.run.state.phase is Phase.PREPARING


# -- preparing


def test_connections_that_are_being_opened_are_shown() -> None:
    bench = bench_in(Phase.PREPARING)
    bench.says("web1", Preparing(step=Step.CONNECTIONS, done=3, total=50))
    actions = bench.says("web2", Preparing(step=Step.CONNECTIONS, done=4, total=50))
    assert of_kind(actions, Progress) == [Progress("opening connections", 7, 100)]


def test_a_prepare_that_was_lost_is_repeated_at_the_next_heartbeat() -> None:
    bench = bench_in(Phase.PREPARING)
    assert not said(bench.beat("web1"), Prepare)
    assert len(said(bench.passes(1.0, "web1"), Prepare)) == 1


def test_a_prepared_that_was_lost_is_asked_for_again() -> None:
    bench = bench_in(Phase.PREPARING)
    bench.says("web2", ready())
    bench.states = dict.fromkeys(BOTH, AgentState.PREPARED)
    assert len(said(bench.passes(1.0, *BOTH), Prepare)) == 1
    bench.says("web1", ready())
    assert bench.run.state.phase is Phase.COUNTING


def test_an_agent_that_gave_its_share_up_is_dealt_it_again_before_the_start() -> None:
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
def test_an_agent_that_falls_silent_before_the_start_ends_the_run(phase: Phase) -> None:
    bench = bench_in(phase)
    end = ended(bench.passes(LOST_AFTER_NS / NS_PER_S + 0.2, "web1"))
    assert end.exit_code == 5
    assert "web2 was lost before the start: it is silent" in end.text


@pytest.mark.parametrize("phase", [Phase.PREPARING, Phase.COUNTING])
def test_an_agent_that_leaves_before_the_start_ends_the_run(phase: Phase) -> None:
    bench = bench_in(phase)
    end = ended(bench.says("web1", Bye(reason="terminated"), run_id=""))
    assert end.exit_code == 5
    assert "web1 was lost before the start: it said goodbye: terminated" in end.text


def test_agents_that_never_get_ready_end_the_run_with_their_names() -> None:
    bench = bench_in(Phase.PREPARING)
    bench.says("web2", ready())
    bench.states = {"web1": AgentState.PREPARING, "web2": AgentState.PREPARED}
    end = ended(bench.passes(120.3, *BOTH))
    assert (end.exit_code, end.text) == (5, "not prepared, and without progress for 2m: web1")


def test_agents_that_preload_are_waited_for_as_long_as_they_get_on() -> None:
    bench = bench_in(Phase.PREPARING)
    bench.says("web2", ready())
    bench.states = {"web1": AgentState.PREPARING, "web2": AgentState.PREPARED}
    for done in range(4):
        bench.says("web1", Preparing(step=Step.PRELOAD, done=done, total=1_000))
        assert not of_kind(bench.passes(100.0, *BOTH), End)
        # That it says the same again is no progress.
        bench.says("web1", Preparing(step=Step.PRELOAD, done=done, total=1_000))
    end = ended(bench.passes(21.0, *BOTH))
    assert (end.exit_code, end.text) == (5, "not prepared, and without progress for 2m: web1")


def test_a_link_that_is_down_for_a_moment_does_not_cost_a_preload() -> None:
    workload = msgspec.structs.replace(fleet_plan().workload, preload=(Preload(),))
    bench = RunBench(msgspec.structs.replace(fleet_plan(), workload=workload), expected=2)
    bench.preparing(*BOTH)
    bench.states = dict.fromkeys(BOTH, AgentState.PREPARING)
    assert not of_kind(bench.passes(PRELOAD_SILENCE_NS / NS_PER_S - 2.0, "web2"), End)
    assert not of_kind(bench.passes(5.0, *BOTH), End)
    end = ended(bench.passes(PRELOAD_SILENCE_NS / NS_PER_S + 1.0, "web2"))
    assert (end.exit_code, end.text) == (5, "agent web1 was lost before the start: it is silent")


def test_an_agent_that_does_not_get_on_is_not_excused_by_one_that_does() -> None:
    bench = bench_in(Phase.PREPARING)
    bench.states = dict.fromkeys(BOTH, AgentState.PREPARING)
    actions = []
    for done in range(2):
        bench.says("web2", Preparing(step=Step.PRELOAD, done=done, total=1_000))
        actions += bench.passes(61.0, *BOTH)
    assert ended(actions).text.endswith(": web1")


def test_what_agents_preloaded_is_written_down() -> None:
    bench = bench_in(Phase.PREPARING)
    done = Preloaded(keys=5, commands=10, bytes_out=300, took_ns=NS_PER_S)
    bench.says("web1", Prepared(processes=2, connections_open=0, preloaded=done))
    [opened] = [r for r in written(bench.says("web2", ready())) if isinstance(r, RunOpened)]
    assert [facts.preloaded for facts in opened.agents] == [done, None]


def test_a_start_waits_for_the_clocks_to_be_compared() -> None:
    bench = bench_in(Phase.PREPARING)
    bench.member("web1").offset_ns = None
    for name in BOTH:
        bench.says(name, ready())
    assert bench.run.state.phase is Phase.PREPARING
    bench.beat("web1", AgentState.PREPARED)
    assert bench.run.state.phase is Phase.COUNTING


def test_a_start_waits_a_little_for_clocks_that_were_compared_in_a_bad_moment() -> None:
    bench = bench_in(Phase.PREPARING)
    bench.member("web1").rtt_ns = 10 * NS_PER_S
    for name in BOTH:
        bench.says(name, ready())
    assert bench.run.state.phase is Phase.PREPARING
    bench.beat("web1", AgentState.PREPARED)
    assert bench.run.state.phase is Phase.COUNTING


def test_a_start_does_not_wait_for_ever_for_a_network_that_is_slow() -> None:
    bench = bench_in(Phase.PREPARING)
    for name in BOTH:
        bench.member(name).rtt_ns = NS_PER_S
        bench.says(name, ready())
    bench.passes(CLOCK_WAIT_NS / NS_PER_S - 0.1)
    assert bench.run.state.phase is Phase.PREPARING
    bench.passes(0.2)
    assert bench.run.state.phase is Phase.COUNTING


def test_a_server_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    bench = bench_in(Phase.COUNTING)
    bench.states = dict.fromkeys(BOTH, AgentState.PREPARED)
    actions = bench.passes(COUNT_WAIT_NS / NS_PER_S + 0.2, *BOTH)
    assert bench.run.state.phase is Phase.RUNNING
    [record] = [record for record in written(actions) if isinstance(record, ServerCounted)]
    assert record.when is Reading.BEFORE
    assert record.error
    assert bench.do(counted(Reading.BEFORE)) == []


def test_a_server_that_does_not_answer_after_the_run_does_not_keep_it_open() -> None:
    bench = bench_in(Phase.SETTLING)
    actions = bench.passes(COUNT_WAIT_NS / NS_PER_S + 0.2, *BOTH)
    assert ended(actions).outcome is Outcome.COMPLETED


def test_a_late_count_of_before_the_run_is_none_of_after_it() -> None:
    bench = bench_in(Phase.SETTLING)
    assert bench.do(counted(Reading.BEFORE)) == []
    assert bench.run.state.phase is Phase.SETTLING


# -- running


def test_a_start_that_was_lost_is_repeated() -> None:
    bench = bench_in(Phase.RUNNING)
    bench.states["web1"] = AgentState.PREPARED
    t0_ns = bench.run.state.t0_ns
    assert t0_ns is not None
    assert said(bench.passes(2.0, "web1"), Start) == [Start(t0_ns=t0_ns)] * 2


def test_an_agent_that_joins_in_the_middle_of_a_run_waits_for_the_next() -> None:
    bench = bench_in(Phase.RUNNING)
    bench.hello("web3")
    actions = bench.passes(1.0, "web1", "web2", "web3")
    assert not said(actions, Prepare)
    assert not said(actions, Start)
    assert not bench.member("web3").takes_part


def test_an_agent_that_restarts_in_the_middle_of_a_run_is_another_and_the_one_before_is_lost() -> None:
    bench = bench_in(Phase.RUNNING)
    bench.states["again"] = AgentState.IDLE
    bench.says("again", hello("web1"))
    actions = bench.passes(5.0, "web2", "again")
    assert bench.member("web1").is_lost
    assert bench.member("again").agent_id == "web1-2"
    [noted] = written(actions)
    assert noted.agent_id == "web1"


def test_a_silent_agent_is_noticed_within_five_seconds_and_written_down() -> None:
    bench = bench_in(Phase.RUNNING)
    actions = bench.passes(5.0, "web1")
    [noted] = written(actions)
    assert (noted.agent_id, noted.state) == ("web2", AgentEnd.LOST)
    assert any("web2" in note.text and "is lost" in note.text for note in of_kind(actions, Note))


def test_a_lost_agent_that_comes_back_goes_on() -> None:
    bench = bench_in(Phase.RUNNING)
    bench.passes(5.0, "web1")
    actions = bench.beat("web2")
    assert any("is back" in note.text for note in of_kind(actions, Note))
    assert bench.member("web2").is_at_work
    assert written(bench.frame("web2", 0))
    bench.says("web1", final())
    assert bench.run.state.phase is Phase.RUNNING
    bench.says("web2", final(1))
    assert ended(bench.do(counted(Reading.AFTER))).outcome is Outcome.COMPLETED


def test_a_coordinator_that_was_held_up_does_not_take_its_agents_for_silent() -> None:
    bench = bench_in(Phase.RUNNING)
    bench.passes(2.0, *BOTH)
    bench.now_ns += 60 * NS_PER_S
    bench.beat("web1")
    bench.do(Tick())
    assert [bench.member(name).is_lost for name in BOTH] == [False, False]
    bench.passes(5.0, "web1")
    assert [bench.member(name).is_lost for name in BOTH] == [False, True]


def test_a_target_does_not_die_while_its_coordinator_is_held_up() -> None:
    bench = RunBench(fleet_plan(duration_s=None, requests=100), expected=1)
    bench.running("web1")
    bench.now_ns += 60 * NS_PER_S
    bench.passes(20.0, "web1")
    assert bench.run.state.phase is Phase.RUNNING


def test_a_run_goes_on_without_a_lost_agent_and_ends_degraded() -> None:
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


def test_a_tolerated_loss_is_no_failure() -> None:
    bench = RunBench(fleet_plan(tolerate_lost=1), expected=2)
    bench.running(*BOTH)
    bench.do(LocalAgentExited(4711, "web2.example", -9))
    bench.says("web1", final())
    end = ended(bench.do(counted(Reading.AFTER)))
    assert end == End(0, "lost web2", Outcome.DEGRADED)


def test_an_agent_that_gave_its_share_up_is_lost_once_and_not_waited_for() -> None:
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


def test_a_run_whose_agents_never_end_is_ended() -> None:
    bench = bench_in(Phase.RUNNING)
    overdue_s = 3.0 + DRAIN_S + START_AHEAD_NS / NS_PER_S + RESERVE_S
    bench.passes(overdue_s - 0.2, *BOTH)
    assert bench.run.state.phase is Phase.RUNNING
    # By the plan, their load is over by then in any case.
    bench.passes(0.4, *BOTH)
    assert bench.run.state.phase is Phase.SETTLING
    assert ended(bench.do(counted(Reading.AFTER))).outcome is Outcome.DEGRADED


def test_the_planned_end_is_that_of_the_warmup_and_all_stages() -> None:
    load = Load(stages=(stage(1), stage(2, 5)), warmup_s=Seconds(4))
    bench = RunBench(msgspec.structs.replace(fleet_plan(), load=load), expected=2)
    bench.running(*BOTH)
    overdue_s = 7.0 + 10.0 + (START_AHEAD_NS + OVERTIME_NS) / NS_PER_S
    bench.passes(overdue_s - 0.2, *BOTH)
    assert bench.run.state.phase is Phase.RUNNING
    bench.passes(0.4, *BOTH)
    assert bench.run.state.phase is Phase.SETTLING


def test_a_run_by_requests_against_a_dead_target_is_given_up_with_the_targets_exit_code() -> None:
    bench = RunBench(fleet_plan(duration_s=None, requests=10**6), expected=1)
    bench.running("web1")
    failing = MetricsFrame(seq=0, through=0, intervals=(interval(0, 0, failed=5),))
    bench.passes(2.0, "web1")
    bench.says("web1", failing)
    actions = bench.passes(DEAD_TARGET_NS / NS_PER_S, "web1")
    assert len(said(actions, Stop)) >= 1
    assert bench.run.state.phase is Phase.DRAINING
    bench.says("web1", final(1, reason="stopped"))
    end = ended(bench.do(counted(Reading.AFTER)))
    assert (end.exit_code, end.outcome) == (4, Outcome.ABORTED)
    assert "no operation succeeded" in end.text


def dies_in_second(bench: RunBench, second: int, seconds: int = 3) -> None:
    """The agent reports operations done up to this second, failed ones after it, and its end."""
    for at in range(seconds):
        bench.passes(1.0, "web1")
        counts = (5, 0) if at <= second else (0, 5)
        bench.says("web1", MetricsFrame(seq=at, through=at, intervals=(interval(at, counts[0], failed=counts[1]),)))
    bench.passes(1.0, "web1")
    bench.says("web1", final(seconds))


GONE = Counted(ServerCounted(when=Reading.AFTER, error="it refused the connection", unreachable=True))


def test_a_target_that_dies_during_the_run_and_stays_away_is_the_exit_code_of_the_target() -> None:
    bench = RunBench()
    bench.running("web1")
    dies_in_second(bench, 1)
    actions = bench.do(GONE)
    text = "the target was lost in second 1 of 3 and did not come back: ConnectionError 5"
    assert ended(actions) == End(4, text, Outcome.DEGRADED)
    assert [record.reason for record in written(actions) if isinstance(record, RunClosed)] == [text]
    assert [dismiss.exit_code for dismiss in said(actions, Dismiss)] == [4]


def test_a_target_that_answers_after_a_short_outage_ends_a_run_as_planned() -> None:
    bench = RunBench()
    bench.running("web1")
    dies_in_second(bench, 1)
    assert ended(bench.do(counted(Reading.AFTER))) == End(0, "", Outcome.COMPLETED)


def test_a_target_that_does_not_let_its_counters_be_read_in_time_is_gone() -> None:
    bench = RunBench()
    bench.running("web1")
    dies_in_second(bench, 1)
    assert ended(bench.passes(COUNT_WAIT_NS / NS_PER_S + 1, "web1")).exit_code == 4


def test_an_interrupt_is_the_exit_code_also_against_a_lost_target() -> None:
    bench = RunBench()
    bench.running("web1")
    bench.passes(1.0, "web1")
    bench.do(Interrupted())
    dies_in_second(bench, 0)
    end = ended(bench.do(GONE))
    assert (end.exit_code, end.outcome) == (130, Outcome.INTERRUPTED)
    assert end.text.startswith("the target was lost in second 0")


def test_a_resumed_run_decides_on_its_target_by_the_same_journal() -> None:
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


def test_a_run_by_requests_goes_on_for_as_long_as_any_succeeds() -> None:
    bench = RunBench(fleet_plan(duration_s=None, requests=10**6), expected=1)
    bench.running("web1")
    for seq in range(60):
        bench.passes(2.0, "web1")
        bench.frame("web1", seq)
    assert bench.run.state.phase is Phase.RUNNING


def test_a_target_is_not_taken_for_dead_because_the_rate_is_low() -> None:
    bench = RunBench(fleet_plan(duration_s=None, requests=10, rate_per_s=1 / 60), expected=1)
    bench.running("web1")
    bench.passes(100.0, "web1")
    assert bench.run.state.phase is Phase.RUNNING


# -- the end


@pytest.mark.parametrize("phase", [Phase.GATHERING, Phase.PREPARING, Phase.COUNTING])
def test_an_interrupt_before_the_start_ends_the_run(phase: Phase) -> None:
    bench = bench_in(phase)
    actions = bench.do(Interrupted())
    end = ended(actions)
    assert end.exit_code == 130
    assert end.outcome is (Outcome.ABORTED if phase is Phase.COUNTING else None)
    assert bool(written(actions)) == (phase is Phase.COUNTING)
    assert said(actions, Dismiss)


def test_an_interrupt_drains_and_the_report_is_written() -> None:
    bench = bench_in(Phase.RUNNING)
    assert len(said(bench.do(Interrupted()), Stop)) == 2
    for name in BOTH:
        bench.says(name, final(reason="interrupted"))
    end = ended(bench.do(counted(Reading.AFTER)))
    assert end == End(130, "", Outcome.INTERRUPTED)


def test_a_stop_that_was_lost_is_repeated() -> None:
    bench = bench_in(Phase.DRAINING)
    assert len(said(bench.passes(2.0, "web1"), Stop)) in (1, 2)
    bench.states["web1"] = AgentState.DRAINING
    assert not said(bench.passes(2.0, "web1"), Stop)


def test_a_second_interrupt_stops_at_once() -> None:
    bench = bench_in(Phase.DRAINING)
    actions = bench.do(Interrupted())
    assert said(actions, Stop) == [Stop(drain=False, reason="interrupted twice")] * 2
    assert bench.run.state.phase is Phase.DRAINING
    bench.passes(AT_ONCE_NS / NS_PER_S + 0.1)
    assert bench.run.state.phase is Phase.SETTLING
    assert ended(bench.do(counted(Reading.AFTER))).exit_code == 130


def test_a_third_interrupt_waits_for_nobody() -> None:
    bench = bench_in(Phase.DRAINING)
    bench.do(Interrupted())
    bench.do(Interrupted())
    assert bench.run.state.phase is Phase.SETTLING


def test_a_run_that_is_stopped_at_once_takes_what_agents_report_at_once() -> None:
    bench = bench_in(Phase.DRAINING)
    bench.do(Interrupted())
    for name in BOTH:
        bench.frame(name, 0)
        bench.says(name, final(1, reason="interrupted twice"))
    assert bench.run.state.phase is Phase.SETTLING
    actions = bench.do(counted(Reading.AFTER))
    assert ended(actions) == End(130, "", Outcome.INTERRUPTED)
    assert [record.writers for record in written(actions) if isinstance(record, ServerCounted)] == [()]


def test_an_agent_that_does_not_end_its_drain_gets_no_more_answers_and_is_waited_for_until_it_is_fenced() -> None:
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
    [record] = [each for each in written(bench.do(counted(Reading.AFTER))) if isinstance(each, ServerCounted)]
    assert record.writers == ()


def test_an_agent_that_was_given_up_may_report_all_the_same() -> None:
    bench = bench_in(Phase.DRAINING)
    bench.says("web1", final(reason="interrupted"))
    bench.states["web2"] = AgentState.DRAINING
    bench.passes(DRAIN_S + RESERVE_S + 1.0, "web2")
    assert bench.member("web2").state is MemberState.REVOKED
    bench.says("web2", final(reason="interrupted"))
    assert ended(bench.do(counted(Reading.AFTER))) == End(130, "", Outcome.INTERRUPTED)


def test_a_silent_agent_is_waited_for_in_a_drain_until_it_is_fenced_and_had_time_to_come_back() -> None:
    bench = RunBench(fleet_plan(duration_s=None, requests=100), expected=2)
    bench.running(*BOTH)
    bench.do(Interrupted())
    bench.says("web1", final(reason="interrupted"))
    actions = bench.passes(LEASE_S + DRAIN_S + RESERVE_S + COME_BACK_S - 0.1, "web1")
    assert bench.run.state.phase is Phase.DRAINING
    [note] = [note.text for note in of_kind(actions, Note) if "waiting for" in note.text]
    assert note == (
        "waiting for web2 (silent, may still load the target, and has results to report): 56 s at most; "
        "interrupt again to end at once"
    )
    bench.passes(0.2, "web1")
    assert bench.run.state.phase is Phase.SETTLING


def test_a_drain_of_a_load_with_a_planned_end_waits_no_longer_than_that_lasts() -> None:
    bench = bench_in(Phase.DRAINING)
    bench.says("web1", final(reason="interrupted"))
    bench.passes(3.0 + START_AHEAD_NS / NS_PER_S + DRAIN_S + RESERVE_S + COME_BACK_S + 0.1, "web1")
    assert bench.run.state.phase is Phase.SETTLING


@pytest.mark.parametrize("away_s", [6.0, 25.0, 50.0])
def test_what_an_agent_brings_that_was_cut_off_while_the_run_drained_counts(away_s: float) -> None:
    bench = RunBench(fleet_plan(duration_s=None, requests=100))
    bench.running("web1")
    bench.passes(2.0, "web1")
    bench.do(Interrupted())
    bench.passes(away_s)
    assert len(said(bench.beat("web1"), Stop)) == 1
    bench.states["web1"] = AgentState.DRAINING
    bench.passes(2.0, "web1")
    assert written(bench.frame("web1", 0, second=1))
    bench.says("web1", final(1, reason="interrupted"))
    assert ended(bench.do(counted(Reading.AFTER))) == End(130, "", Outcome.INTERRUPTED)


def test_the_only_agent_of_a_run_by_requests_may_be_cut_off_for_most_of_its_lease() -> None:
    bench = RunBench(fleet_plan(duration_s=None, requests=100))
    bench.running("web1")
    bench.passes(2.0, "web1")
    actions = bench.passes(DEAD_TARGET_NS / NS_PER_S + 5.0)
    assert bench.run.state.phase is Phase.RUNNING
    assert any("interrupt twice" in note.text for note in of_kind(actions, Note))
    bench.passes(5.0, "web1")
    assert written(bench.frame("web1", 0))
    bench.says("web1", final(1))
    assert ended(bench.do(counted(Reading.AFTER))) == End(0, "", Outcome.COMPLETED)


def test_an_agent_that_is_cut_off_over_the_planned_end_is_waited_for() -> None:
    bench = bench_in(Phase.RUNNING)
    bench.passes(3.0, *BOTH)
    bench.says("web1", final())
    bench.passes(14.0, "web1")
    bench.beat("web2", AgentState.DONE)
    bench.frame("web2", 0)
    bench.says("web2", final(1))
    assert ended(bench.do(counted(Reading.AFTER))) == End(0, "", Outcome.COMPLETED)


def test_an_agent_of_another_run_that_is_at_work_is_waited_for_before_the_counters_are_read() -> None:
    bench = RunBench()
    bench.running("web1")
    bench.hello("web2", state=AgentState.RUNNING, run_id="another")
    actions = bench.says("web1", final())
    assert not of_kind(actions, ReadServer)
    assert any("web2" in note.text and "another run" in note.text for note in of_kind(actions, Note))
    bench.passes(3.0, "web2")
    assert of_kind(bench.beat("web2", AgentState.DONE), ReadServer)


def test_an_agent_of_another_run_that_never_rests_is_named_in_the_reading_and_keys_are_left() -> None:
    bench = RunBench(CLEANS)
    bench.running("web1")
    bench.hello("web2", state=AgentState.RUNNING, run_id="another")
    bench.says("web1", final())
    bench.passes(LEASE_S + DRAIN_S + RESERVE_S + 1.0, "web2")
    actions = bench.do(counted(Reading.AFTER))
    assert not of_kind(actions, DeleteKeys)
    reading, cleaned, _ = written(actions)
    assert isinstance(reading, ServerCounted)
    assert reading.writers == ("web2",)
    assert isinstance(cleaned, CleanedUp)
    assert (cleaned.left, cleaned.error) == (None, "web2 might still write to the target")


def test_who_might_still_write_when_a_run_is_stopped_at_once_is_in_the_record_of_the_reading() -> None:
    bench = bench_in(Phase.DRAINING)
    bench.do(Interrupted())
    bench.says("web1", final(reason="interrupted twice"))
    bench.passes(AT_ONCE_NS / NS_PER_S + 0.1)
    actions = bench.do(counted(Reading.AFTER))
    assert [record.writers for record in written(actions) if isinstance(record, ServerCounted)] == [("web2",)]
    assert any("start --resume run-1" in note.text for note in of_kind(actions, Note))


def test_an_agent_that_comes_back_at_work_while_the_counters_are_read_is_in_the_record() -> None:
    bench = RunBench(fleet_plan(duration_s=None, requests=100), expected=2)
    bench.running(*BOTH)
    bench.says("web1", final())
    bench.passes(LEASE_S + DRAIN_S + RESERVE_S + COME_BACK_S + 0.1, "web1")
    assert bench.run.state.phase is Phase.SETTLING
    bench.passes(0.1)
    bench.beat("web2")
    actions = bench.do(counted(Reading.AFTER))
    assert [record.writers for record in written(actions) if isinstance(record, ServerCounted)] == [("web2",)]


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
def test_results_that_come_after_the_load_enter_the_journal(phase: Phase) -> None:
    bench = lost_in(phase)
    bench.beat("web2", AgentState.DONE)
    assert [type(record) for record in written(bench.frame("web2", 0))] == [FrameAccepted]
    actions = bench.says("web2", final(1))
    assert [type(record) for record in written(actions)] == [AgentNoted]
    assert acknowledged(actions)
    if phase is Phase.SETTLING:
        bench.do(counted(Reading.AFTER))
    assert ended(bench.do(Cleaned(DELETED))) == End(0, "", Outcome.COMPLETED)


def comes(bench: RunBench, name: str, message: AgentMessage) -> list[object]:
    """A message while agents are dismissed, and what follows."""
    return [*bench.says(name, message), *bench.do(Tick())]


def test_results_that_come_after_the_end_enter_the_journal_and_the_end_is_written_down_again() -> None:
    bench = lost_in(Phase.DISMISSING)
    assert said(comes(bench, "web2", hello("web2", state=AgentState.DONE, run_id=RUN_ID)), Welcome)
    assert said(comes(bench, "web2", Attach()), Attached)
    frame = MetricsFrame(seq=0, through=0, intervals=(interval(0),))
    actions = comes(bench, "web2", frame)
    assert [type(record) for record in written(actions)] == [FrameAccepted, AgentNoted, RunClosed]
    assert ended(actions) == End(5, "lost web2", Outcome.DEGRADED)
    actions = comes(bench, "web2", final(1))
    assert acknowledged(actions)
    assert [type(record) for record in written(actions)] == [AgentNoted, RunClosed]
    assert ended(actions) == End(0, "", Outcome.COMPLETED)
    assert said(actions, Dismiss)
    comes(bench, "web2", heartbeat(AgentState.IDLE))
    comes(bench, "web1", heartbeat(AgentState.IDLE))
    assert bench.run.state.phase is Phase.CLOSED
    assert bench.written is not None
    assert bench.written.closed == RunClosed(outcome=Outcome.COMPLETED, reason="", duration_s=3.0)


def test_a_last_word_whose_acknowledgement_was_lost_is_acknowledged_after_the_end_too() -> None:
    bench = lost_in(Phase.DISMISSING)
    actions = comes(bench, "web1", final())
    assert acknowledged(actions)
    assert written(actions) == []


def test_an_agent_that_comes_back_after_the_end_hears_that_its_results_are_safe() -> None:
    actions = comes(lost_in(Phase.DISMISSING), "web1", hello("web1", state=AgentState.DONE, run_id=RUN_ID))
    assert [type(send.envelope.message) for send in of_kind(actions, Send)] == [FinalAck, Dismiss]


def test_an_agent_that_comes_back_at_work_after_the_end_is_dismissed() -> None:
    bench = lost_in(Phase.DISMISSING)
    assert said(comes(bench, "web2", heartbeat(AgentState.RUNNING)), Dismiss)


def test_an_ended_run_collects_what_its_agents_kept_and_ends_again() -> None:
    bench = resumed(final(), None, is_ended=True, plan=CLEANS, after=[READ, DELETED])
    bench.hello("web2", state=AgentState.DONE, run_id=RUN_ID)
    bench.hello("web1")
    assert written(bench.frame("web2", 0))
    actions = bench.says("web2", final(1))
    assert (of_kind(actions, ReadServer), of_kind(actions, DeleteKeys)) == ([], [])
    assert [type(record) for record in written(actions)] == [AgentNoted, RunClosed]
    assert ended(actions) == End(0, "", Outcome.COMPLETED)


def test_an_ended_run_waits_some_seconds_for_its_agents() -> None:
    bench = resumed(None, is_ended=True, plan=fleet_plan(duration_s=None, requests=10))
    bench.passes(2 * COME_BACK_S - 0.1)
    assert bench.run.state.phase is Phase.COLLECTING
    assert ended(bench.passes(0.3)).outcome is Outcome.DEGRADED


def test_an_ended_run_that_is_interrupted_while_it_collects_ends_as_it_had() -> None:
    bench = resumed(None, is_ended=True)
    [note] = [note.text for note in of_kind(bench.passes(COME_BACK_S), Note) if "waiting for" in note.text]
    assert note.endswith("; interrupt to end at once")
    assert ended(bench.do(Interrupted())) == End(5, "lost web1", Outcome.DEGRADED)


def test_an_agent_that_has_nothing_of_an_ended_run_is_not_waited_for() -> None:
    assert of_kind(resumed(None, is_ended=True).hello("web1"), End)


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


def test_what_a_silent_local_agent_has_not_reported_is_lost_and_that_is_said() -> None:
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
    assert {name: agent.left for name, agent in journal.agents.items()} == {"web1": True, "web2": False}
    assert journal.may_go_on
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
    assert not journal.may_go_on


def test_a_run_whose_coordinator_was_killed_does_not_wait_for_an_agent_whose_process_had_ended() -> None:
    bench = RunBench()
    bench.running("web1")
    bench.do(LocalAgentExited(4711, "web1.example", -9))
    journal = bench.written
    assert journal is not None
    assert journal.started is not None
    run = Run.resumed(bench.setup, journal.started.t0_ns, journaled_agents(journal), bench.now_ns, written=journal)
    again = RunBench(run=run, written=journal)
    assert of_kind(again.do(Tick()), ReadServer) == [ReadServer(Reading.AFTER)]


def test_an_agent_that_is_done_when_a_run_is_stopped_at_once_may_still_have_results() -> None:
    bench = RunBench()
    bench.running("web1")
    for _ in range(2):
        bench.do(Interrupted())
    bench.beat("web1", AgentState.DONE)
    actions = [*bench.passes(2.0, "web1"), *bench.do(counted(Reading.AFTER))]
    assert any(note.text.startswith("no results of web1: while it runs,") for note in of_kind(actions, Note))
    assert bench.written is not None
    assert bench.written.may_go_on


def test_an_agent_that_still_works_for_an_ended_run_is_stopped() -> None:
    bench = resumed(None, is_ended=True)
    actions = bench.hello("web1", state=AgentState.RUNNING, run_id=RUN_ID)
    assert said(actions, Stop) == [Stop(drain=True, reason="the run is stopped")]


def test_nothing_happens_after_the_end() -> None:
    bench = bench_in(Phase.CLOSED)
    assert bench.hello("web9") == []
    assert bench.do(Tick()) == []
    assert bench.do(Interrupted()) == []


@pytest.mark.parametrize("phase", [Phase.GATHERING, Phase.PREPARING, Phase.COUNTING, Phase.DISMISSING])
def test_nothing_of_a_load_is_written_down_before_there_is_one(phase: Phase) -> None:
    bench = bench_in(phase)
    actions = [
        *bench.frame("web1", 0),
        *bench.says("web1", WorkerLost(process=0, exit_code=1)),
        *bench.says("web1", final()),
    ]
    assert written(actions) == []


def test_the_journal_of_an_aborted_run_begins_and_ends_as_any_other() -> None:
    bench = RunBench(expected=1)
    actions = [*bench.counting("web1"), *bench.do(Interrupted())]
    assert [type(record) for record in written(actions)] == [RunOpened, RunClosed]


@pytest.mark.parametrize("state", [AgentState.PREPARED, AgentState.RUNNING, AgentState.DRAINING])
@pytest.mark.parametrize("cleans", [False, True])
def test_a_lost_agent_that_is_heard_again_after_the_end_is_stopped_at_once(state: AgentState, cleans: bool) -> None:
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


# -- what was decided is written down before anybody is told


def first_of(actions: list[object], *kinds: type) -> object:
    return next(action for action in actions if isinstance(action, kinds))


def test_an_interrupt_is_written_down_before_the_order_goes_out() -> None:
    bench = bench_in(Phase.RUNNING)
    actions = bench.do(Interrupted())
    decided = StopDecided(what=Stopping.LOAD, reason="interrupted", exit_code=130, at_ns=bench.now_ns)
    assert first_of(actions, Write, Send) == Write(decided)
    assert written(actions) == [decided]
    assert len(said(actions, Stop)) == 2


def test_a_second_interrupt_is_written_down_too() -> None:
    bench = bench_in(Phase.DRAINING)
    actions = bench.do(Interrupted())
    decided = StopDecided(what=Stopping.AT_ONCE, reason="interrupted twice", exit_code=130, at_ns=bench.now_ns)
    assert first_of(actions, Write, Send) == Write(decided)


def test_an_interrupt_after_the_load_is_written_down_as_it_is_the_runs_exit_code() -> None:
    actions = bench_in(Phase.SETTLING).do(Interrupted())
    [decided] = written(actions)
    assert isinstance(decided, StopDecided)
    assert (decided.what, decided.exit_code) == (Stopping.LOAD, 130)


def test_giving_up_on_a_dead_target_is_written_down_with_its_exit_code() -> None:
    bench = RunBench(fleet_plan(duration_s=None, requests=100), expected=1)
    bench.running("web1")
    actions = bench.passes(DEAD_TARGET_NS / NS_PER_S + 1.0, "web1")
    [decided] = [record for record in written(actions) if isinstance(record, StopDecided)]
    assert (decided.what, decided.exit_code) == (Stopping.LOAD, 4)
    assert decided.reason.startswith("no operation succeeded for 30 s")


# -- cleaning


def test_keys_are_deleted_after_the_last_count_and_before_the_end() -> None:
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
    decided = StopDecided(what=Stopping.CLEAN_UP, reason="interrupted", exit_code=0, at_ns=bench.now_ns)
    assert bench.do(Interrupted()) == [Write(decided), StopDeleting()]
    cut = CleanedUp(deleted=1, left=None, took_ns=1, error="interrupted")
    assert ended(bench.do(Cleaned(cut))).outcome is Outcome.COMPLETED


def test_an_interrupted_run_deletes_its_keys_too() -> None:
    bench = bench_in(Phase.DRAINING, cleans=True)
    for name in BOTH:
        bench.says(name, final())
    assert of_kind(bench.do(counted(Reading.AFTER)), DeleteKeys)
    assert ended(bench.do(Cleaned(DELETED))).exit_code == 130


def test_a_run_that_is_stopped_at_once_leaves_its_keys_and_says_so() -> None:
    bench = bench_in(Phase.DRAINING, cleans=True)
    bench.do(Interrupted())
    bench.passes(AT_ONCE_NS / NS_PER_S + 0.1)
    actions = bench.do(counted(Reading.AFTER))
    assert not of_kind(actions, DeleteKeys)
    [cleaned] = [record for record in written(actions) if isinstance(record, CleanedUp)]
    assert (cleaned.deleted, cleaned.left, cleaned.error) == (0, None, "the run was stopped at once")
    assert ended(actions).exit_code == 130


@pytest.mark.parametrize("phase", [Phase.GATHERING, Phase.PREPARING, Phase.COUNTING])
def test_a_run_that_never_began_deletes_nothing(phase: Phase) -> None:
    actions = bench_in(phase, cleans=True).do(Interrupted())
    assert not of_kind(actions, DeleteKeys)
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


def test_a_resumed_run_waits_for_its_agents_although_its_planned_end_is_long_past() -> None:
    bench = resumed(None)
    bench.passes(2.0)
    assert bench.run.state.phase is Phase.RUNNING
    assert bench.member("web1").is_at_work
    bench.hello("web1", state=AgentState.DONE, run_id=RUN_ID)
    assert written(bench.frame("web1", 0))
    assert acknowledged(bench.says("web1", final(1)))
    assert ended(bench.do(counted(Reading.AFTER))).outcome is Outcome.COMPLETED


def test_a_resumed_run_ends_without_the_agents_that_do_not_come_back() -> None:
    bench = resumed(None)
    actions = bench.passes(2 * COME_BACK_S + 0.2)
    assert bench.run.state.phase is Phase.SETTLING
    assert [record.state for record in written(actions)] == [AgentEnd.LOST]
    assert ended(bench.do(counted(Reading.AFTER))).outcome is Outcome.DEGRADED


def test_a_resumed_run_tells_agents_that_their_results_had_been_safe_before_it_ends() -> None:
    bench = resumed(final())
    bench.passes(1.0)
    assert bench.run.state.phase is Phase.RUNNING
    bench.hello("web1", state=AgentState.DONE, run_id=RUN_ID)
    actions = bench.says("web1", final())
    assert said(actions, FinalAck)
    assert written(actions) == []
    assert bench.run.state.phase is Phase.SETTLING


def test_a_resumed_run_does_not_wait_for_finished_agents_for_long() -> None:
    bench = resumed(final())
    bench.passes(2 * COME_BACK_S + 0.2)
    assert ended(bench.do(counted(Reading.AFTER))).outcome is Outcome.COMPLETED


def test_a_resumed_run_does_not_wait_for_agents_that_know_already() -> None:
    bench = resumed(final())
    bench.hello("web1")
    assert bench.run.state.phase is Phase.SETTLING


READ = ServerCounted(when=Reading.AFTER)


def test_a_run_resumed_from_its_deletion_deletes_on_and_keeps_the_count_from_before_it() -> None:
    bench = resumed(final(), plan=CLEANS, after=[READ])
    actions = bench.hello("web1")
    # The UNLINKs of the coordinator that was killed would be taken for the plan's.
    assert of_kind(actions, ReadServer) == []
    assert of_kind(actions, DeleteKeys) == [DeleteKeys()]
    actions = bench.do(Cleaned(DELETED))
    assert [type(record) for record in written(actions)] == [CleanedUp, RunClosed]
    assert ended(actions).outcome is Outcome.COMPLETED


def test_a_run_resumed_after_its_deletion_does_not_delete_again() -> None:
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


def test_the_keys_of_an_ended_run_are_deleted_when_no_agent_may_write_any_more() -> None:
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
def test_only_an_ended_run_that_left_keys_is_to_delete_again(left: int | None) -> None:
    deleted = CleanedUp(deleted=5, left=left, took_ns=1, error="" if left == 0 else "interrupted")
    aggregate = Aggregate()
    aggregate.cleaned = deleted
    assert after_load(aggregate) == [deleted]
    aggregate.closed = RunClosed(outcome=Outcome.COMPLETED, reason="", duration_s=1.0)
    assert after_load(aggregate) == ([deleted] if left == 0 else [])
    assert aggregate.may_go_on is (left != 0)


def test_a_run_that_deletes_nothing_is_counted_again_when_it_is_resumed() -> None:
    assert of_kind(resumed(final(), after=[READ]).hello("web1"), ReadServer) == [ReadServer(Reading.AFTER)]


@pytest.mark.parametrize("end", [final(processes_lost=1), final(reason="this agent was terminated")])
def test_what_went_wrong_before_a_run_was_resumed_still_degrades_it(end: object) -> None:
    bench = resumed(end)
    bench.hello("web1")
    outcome = ended(bench.do(counted(Reading.AFTER)))
    assert outcome.outcome is Outcome.DEGRADED
    assert "web1" in outcome.text


INTERRUPT = StopDecided(what=Stopping.LOAD, reason="interrupted", exit_code=130, at_ns=7)
AT_ONCE = StopDecided(what=Stopping.AT_ONCE, reason="interrupted twice", exit_code=130, at_ns=8)
LEFT_KEYS = StopDecided(what=Stopping.CLEAN_UP, reason="interrupted", exit_code=0, at_ns=9)


def test_a_run_that_was_interrupted_before_it_is_resumed_goes_on_draining() -> None:
    bench = resumed(None, stops=[INTERRUPT])
    assert (bench.run.state.phase, bench.run.state.stopped_ns) == (Phase.DRAINING, 7)
    assert said(bench.hello("web1", state=AgentState.RUNNING, run_id=RUN_ID), Stop)[:1] == [
        Stop(drain=True, reason="the run is stopped")
    ]
    bench.says("web1", final(reason="interrupted"))
    assert ended(bench.do(counted(Reading.AFTER))) == End(130, "", Outcome.INTERRUPTED)


def test_a_run_that_was_interrupted_before_it_is_resumed_starts_nobody() -> None:
    bench = resumed(None, stops=[INTERRUPT])
    actions = bench.hello("web1", state=AgentState.PREPARED, run_id=RUN_ID)
    assert (said(actions, Start), len(said(actions, Stop))) == ([], 1)


def test_the_agents_of_a_run_that_is_resumed_in_its_drain_are_given_time_to_come_back() -> None:
    bench = resumed(None, stops=[INTERRUPT])
    bench.passes(2 * COME_BACK_S - 0.2)
    assert bench.run.state.phase is Phase.DRAINING
    bench.passes(0.4)
    assert bench.run.state.phase is Phase.SETTLING


def test_agents_that_had_drained_before_their_run_was_resumed_did_not_end_early_by_themselves() -> None:
    bench = resumed(final(reason="interrupted"), stops=[INTERRUPT])
    bench.hello("web1")
    assert ended(bench.do(counted(Reading.AFTER))) == End(130, "", Outcome.INTERRUPTED)


def test_an_interrupt_of_a_run_that_is_resumed_in_its_drain_stops_it_at_once() -> None:
    bench = resumed(None, stops=[INTERRUPT])
    actions = [*bench.do(Interrupted()), *bench.passes(AT_ONCE_NS / NS_PER_S + 0.1)]
    assert of_kind(actions, ReadServer)
    assert [record.what for record in written(actions) if isinstance(record, StopDecided)] == [Stopping.AT_ONCE]


def test_a_run_that_was_stopped_at_once_before_it_is_resumed_waits_a_little_and_deletes_nothing() -> None:
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


def test_a_run_whose_deletion_was_interrupted_before_it_is_resumed_leaves_the_rest() -> None:
    actions = resumed(final(), plan=CLEANS, after=[READ], stops=[LEFT_KEYS]).hello("web1")
    assert not of_kind(actions, DeleteKeys)
    [cleaned] = [record for record in written(actions) if isinstance(record, CleanedUp)]
    assert (cleaned.left, cleaned.error) == (None, "interrupted")
    assert ended(actions).outcome is Outcome.COMPLETED


def test_a_run_that_was_given_up_before_it_is_resumed_is_still_given_up() -> None:
    gave_up = StopDecided(what=Stopping.LOAD, reason="no operation succeeded for 30 s", exit_code=4, at_ns=7)
    bench = resumed(final(), stops=[gave_up])
    bench.hello("web1")
    end = ended(bench.do(counted(Reading.AFTER)))
    assert (end.exit_code, end.outcome) == (4, Outcome.ABORTED)
    assert end.text.startswith("no operation succeeded for 30 s")


def test_a_resumed_run_takes_frames_up_where_its_journal_ended() -> None:
    facts = AgentFacts(agent_id="web1", incarnation=incarnation_of("web1"), host="host", processes=1, pools=dealt(1))
    run = Run.resumed(setup_for(fleet_plan()), 1, [JournaledAgent(facts, next_seq=3, final=None)], 5_000 * NS_PER_S)
    bench = RunBench(run=run)
    bench.hello("web1", state=AgentState.DONE, run_id=RUN_ID)
    actions = bench.frame("web1", 2)
    assert written(actions) == []
    assert said(actions, FrameAck) == [FrameAck(next_seq=3)]
    assert written(bench.frame("web1", 3))


def test_a_resumed_run_starts_agents_that_missed_the_start() -> None:
    bench = resumed(None, t0_ns=77)
    actions = bench.hello("web1", state=AgentState.PREPARED, run_id=RUN_ID)
    assert said(actions, Start)[:1] == [Start(t0_ns=77)]


def test_a_share_that_no_message_can_carry_ends_the_run_before_the_start_and_says_why() -> None:
    bench = RunBench(fleet_plan(pools=60_000))
    actions = bench.hello("web1")
    [end] = of_kind(actions, End)
    assert end.exit_code == 5
    assert "the share of agent web1 takes 2," in end.text
    assert "bytes, expected at most 1,048,576; use fewer than its 60,000 client pools" in end.text
    assert said(RunBench(fleet_plan(pools=20_000)).hello("web1"), Prepare)
