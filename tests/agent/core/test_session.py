from __future__ import annotations

import itertools

import msgspec
import pytest

from agent.core.actions import (
    Action,
    AgentEvent,
    ConnectMetrics,
    Examined,
    Exit,
    KillWorkers,
    LinkDown,
    LinkRefused,
    LinkUp,
    MetricsLinkDown,
    MetricsLinkUp,
    RenewLease,
    Say,
    Spawn,
    SpawnFailed,
    Terminated,
    Tick,
    WorkerExited,
)
from agent.core.kept_results import MOST_RUNS
from agent.core.link import PROVE_WITHIN_NS
from agent.core.session import GOODBYE_NS, OVERTIME_NS
from agent.core.transitions import TRANSITIONS, Trigger
from common.lifecycle import InvalidTransitionError
from common.plan.schema import Pools, Preload
from common.protocol.messages import (
    KEEP_LEASES,
    PROTOCOL_MAX,
    AgentState,
    Assignment,
    Attach,
    Attached,
    Bye,
    CoordinatorMessage,
    Dismiss,
    Failed,
    FailureKind,
    Final,
    FinalAck,
    FrameAck,
    Heartbeat,
    HeartbeatReply,
    Hello,
    MetricsFrame,
    Pace,
    PreparationStep,
    Prepare,
    Prepared,
    Preparing,
    Refused,
    StandBy,
    Start,
    Stop,
    Welcome,
    WorkerLost,
    WorkerStart,
    WorkerStop,
)
from common.units import NS_PER_S, Count
from tests.support.protocol import (
    OTHER_RUN_ID,
    RUN_ID,
    AgentBench,
    assignment,
    dealt,
    exits,
    fleet_plan,
    of_kind,
    orders,
    ready,
    said,
    welcome,
    worker_final,
    worker_metrics,
)

LEASE_S = 30.0
LEASE_NS = round(LEASE_S * NS_PER_S)
KEPT_S = KEEP_LEASES * LEASE_S
DRAIN_S = 10.0
HOUR_NS = 3600 * NS_PER_S
KEEPS = "keeping the results of run run-1 for 300 s: `coordinator start --resume run-1` collects them"

PREPARE = Prepare(assignments=(assignment(pools=2),), plan_hash="hash")
FAILED = Failed(kind=FailureKind.TARGET, reason="the target refused us")


def connecting(done: int, total: int) -> Preparing:
    return Preparing(step=PreparationStep.CONNECTIONS, done=done, total=total)


def preloading(done: int, total: int) -> Preparing:
    return Preparing(step=PreparationStep.PRELOAD, done=done, total=total)


def texts(actions: list[object]) -> list[str]:
    """Lines for the user."""
    return [action.text for action in of_kind(actions, Say)]


def both(bench: AgentBench, message: object) -> list[Action]:
    """Both worker processes send this message."""
    return [action for number in range(2) for action in bench.worker(number, message)]


def start_other_run(bench: AgentBench, run_id: str = OTHER_RUN_ID) -> None:
    """Another run's coordinator has the agent prepare and start."""
    bench.welcomed(run_id)
    bench.hears(PREPARE, run_id=run_id)
    both(bench, ready())
    bench.hears(Start(t0_ns=bench.now_ns), run_id)


def bench_in(state: AgentState, **identity: object) -> AgentBench:
    """An agent in this state."""
    bench = AgentBench(**identity)  # type: ignore[arg-type]
    match state:
        case AgentState.IDLE:
            bench.welcomed()
        case AgentState.PREPARING:
            bench.preparing()
        case AgentState.PREPARED:
            bench.prepared()
        case AgentState.RUNNING:
            bench.running()
        case AgentState.DRAINING:
            bench.draining()
        case AgentState.DONE:
            bench.done()
    assert bench.state is state
    return bench


def running(**plan: float | None) -> AgentBench:
    """An agent that runs a load without an end in time."""
    bench = AgentBench()
    bench.running(plan=fleet_plan(duration_s=None, requests=100, **plan))  # type: ignore[arg-type]
    return bench


# -- the table


def trigger_by_message(bench: AgentBench, trigger: Trigger) -> None:
    """Send what leads to this trigger, whether or not it fits the state."""
    match trigger:
        case Trigger.PREPARE:
            bench.hears(PREPARE)
        case Trigger.READY:
            both(bench, ready())
        case Trigger.BREAK:
            bench.worker(0, FAILED)
        case Trigger.ABANDON | Trigger.STOP:
            bench.hears(Stop(drain=True, reason="enough"))
        case Trigger.START:
            bench.hears(Start(t0_ns=bench.now_ns))
        case Trigger.WORKERS_OVER:
            both(bench, worker_final())
        case Trigger.RELEASE:
            bench.hears(FinalAck())
        case Trigger.SET_ASIDE:
            bench.welcomed(OTHER_RUN_ID)
        case Trigger.TAKE_UP:
            if bench.state is AgentState.IDLE:
                bench.done()
                bench.welcomed(OTHER_RUN_ID)
            bench.welcomed()


@pytest.mark.parametrize(("state", "trigger"), TRANSITIONS, ids=lambda value: value.name)
def test_every_row_of_the_table_leads_to_its_next_state(state: AgentState, trigger: Trigger) -> None:
    bench = bench_in(state)
    trigger_by_message(bench, trigger)
    assert bench.state is TRANSITIONS[state, trigger]


ENDS = (Trigger.ABANDON, Trigger.STOP)
"""Stop means one of these, depending on the state."""
UNLISTED = [
    (state, trigger)
    for state, trigger in itertools.product(AgentState, Trigger)
    if (state, trigger) not in TRANSITIONS
    and not (trigger in ENDS and any((state, end) in TRANSITIONS for end in ENDS))
]


@pytest.mark.parametrize(("state", "trigger"), UNLISTED, ids=lambda value: value.name)
def test_a_message_that_does_not_fit_the_state_changes_nothing(state: AgentState, trigger: Trigger) -> None:
    bench = bench_in(state)
    trigger_by_message(bench, trigger)
    assert bench.state is state


def test_a_trigger_that_is_not_in_the_table_raises_with_the_whole_story() -> None:
    lifecycle = bench_in(AgentState.RUNNING).session._lifecycle
    story = "agent web1: IDLE -PREPARE-> PREPARING -READY-> PREPARED -START-> RUNNING has no transition for RELEASE"
    with pytest.raises(InvalidTransitionError, match=story):
        lifecycle.move(Trigger.RELEASE)


def test_every_state_leads_back_to_idle() -> None:
    for state in AgentState:
        reached, seen = {state}, set[AgentState]()
        while reached - seen:
            seen |= reached
            reached = {after for (before, _), after in TRANSITIONS.items() if before in seen} | seen
        assert AgentState.IDLE in reached


# -- joining


def test_an_agent_says_hello_when_its_link_comes_up_and_once_a_second_until_it_is_welcome() -> None:
    bench = AgentBench()
    assert bench.passes(3.0) == []
    assert said(bench.do(LinkUp()), Hello)
    assert len(said(bench.passes(3.0), Hello)) in (2, 3)
    assert of_kind(bench.hears(welcome()), ConnectMetrics) == [ConnectMetrics()]
    assert not said(bench.passes(1.0, hearing=RUN_ID), Hello)


def test_an_agent_says_hello_again_when_the_coordinator_stops_answering() -> None:
    bench = bench_in(AgentState.IDLE)
    assert not said(bench.passes(20.0, hearing=RUN_ID), Hello)
    assert said(bench.passes(10.0), Hello)


def test_a_refused_agent_exits_with_the_exit_code_of_the_fleet() -> None:
    bench = AgentBench()
    bench.do(LinkUp())
    [leaving] = of_kind(bench.hears(Refused(reason="protocol 9 to 9"), run_id=""), Exit)
    assert leaving == Exit(5, "the coordinator refused this agent: protocol 9 to 9")


def test_an_idle_agent_exits_when_its_handshakes_keep_failing_but_a_running_one_continues() -> None:
    for bench, expected in ((AgentBench(), [5]), (bench_in(AgentState.RUNNING), [])):
        bench.do(LinkDown())
        bench.do(Examined())
        actions = []
        for _ in range(10):
            bench.do(LinkRefused())
            actions += bench.passes(0.5)
        assert exits(actions)[:1] == expected
    assert bench.state is AgentState.RUNNING


def test_an_obstacle_is_shown_once_and_again_when_the_agent_stops_waiting() -> None:
    bench = AgentBench(wait_ns=10 * NS_PER_S)
    obstacles = ("nothing listens at h:1", "nothing listens at h:1", "", "h is slow")
    assert [texts(bench.do(Examined(text))) for text in obstacles] == [
        ["nothing listens at h:1; trying again"],
        [],
        [],
        ["h is slow; trying again"],
    ]
    assert not exits(bench.passes(9.9))
    leaving = of_kind(bench.passes(0.3), Exit)[0]
    assert leaving == Exit(5, "no coordinator answered for 10 s: h is slow")


def test_an_agent_without_a_run_exits_when_waiting_cannot_help() -> None:
    bench = AgentBench()
    for _ in range(2):
        assert not bench.do(Examined("an HTTP server listens at h:1", lasting=True))
    assert of_kind(bench.passes(0.1), Exit)[0] == Exit(5, "an HTTP server listens at h:1")


def test_an_agent_between_two_runs_reports_the_lost_coordinator_once() -> None:
    bench = bench_in(AgentState.IDLE)
    assert texts(bench.do(LinkDown())) == ["the coordinator is gone; waiting for the next one"]
    assert bench.do(LinkDown()) == []
    assert not bench.do(Examined("nothing listens at h:1"))


def test_an_agent_with_a_coordinator_that_answers_waits_without_limit() -> None:
    bench = bench_in(AgentState.IDLE, wait_ns=5 * NS_PER_S)
    assert exits(bench.passes(20.0, hearing=RUN_ID)) == []


# -- messages for others


def test_a_message_for_another_incarnation_is_ignored() -> None:
    bench = bench_in(AgentState.PREPARED)
    assert bench.hears(Start(t0_ns=bench.now_ns), incarnation="another") == []
    assert (bench.state, bench.session.ignored) == (AgentState.PREPARED, 1)


@pytest.mark.parametrize("message", [Start(t0_ns=0), Stop(drain=True, reason=""), FrameAck(next_seq=1), FinalAck()])
@pytest.mark.parametrize("run_id", [OTHER_RUN_ID, ""])
@pytest.mark.parametrize("state", list(AgentState))
def test_an_order_of_another_run_is_ignored(state: AgentState, message: Start, run_id: str) -> None:
    bench = bench_in(state)
    frames = len(bench.session.outbox)
    assert bench.hears(message, run_id=run_id) == []
    assert (bench.state, len(bench.session.outbox), bench.session.ignored) == (state, frames, 1)


def test_an_acknowledgement_of_results_that_were_never_sent_is_ignored_and_counted() -> None:
    bench = bench_in(AgentState.RUNNING)
    assert bench.hears(FinalAck()) == []
    assert (bench.state, bench.session.ignored) == (AgentState.RUNNING, 1)


@pytest.mark.parametrize("state", [AgentState.RUNNING, AgentState.DRAINING, AgentState.DONE])
def test_the_end_of_another_run_changes_nothing(state: AgentState) -> None:
    bench = bench_in(state)
    assert bench.hears(Dismiss(exit_code=0), run_id=OTHER_RUN_ID) == []
    assert bench.state is state


@pytest.mark.parametrize("state", [state for state in AgentState if state is not AgentState.IDLE])
def test_an_agent_with_a_run_refuses_another(state: AgentState) -> None:
    bench = bench_in(state)
    actions = bench.hears(PREPARE, run_id=OTHER_RUN_ID)
    [failed] = said(actions, Failed)
    assert RUN_ID in failed.reason
    assert failed.kind is FailureKind.AGENT
    assert actions[0].envelope.run_id == OTHER_RUN_ID  # type: ignore[union-attr]
    assert bench.state is state


def test_messages_of_a_worker_of_an_earlier_run_are_ignored() -> None:
    bench = bench_in(AgentState.IDLE)
    for message in (connecting(1, 2), ready(), FAILED, worker_metrics(0, 1), worker_final()):
        assert bench.worker(0, message) == []
    assert bench.do(WorkerExited(0, 1)) == []


# -- preparing


def test_a_preload_is_reported_until_all_workers_have_finished_it() -> None:
    bench = AgentBench()
    workload = msgspec.structs.replace(bench.plan.workload, preload=(Preload(key_maximum=Count(10), times=2),))
    bench.preparing(plan=msgspec.structs.replace(bench.plan, workload=workload))
    # The total is known before the last worker reports.
    assert texts(bench.worker(0, preloading(1, 10))) == ["preloading 1 of 20"]
    actions = bench.worker(1, preloading(10, 10))
    assert (said(actions, Preparing), texts(actions)) == ([preloading(11, 20)], [])
    assert said(bench.worker(1, connecting(0, 0)), Preparing) == [preloading(11, 20)]
    bench.passes(5.0, hearing=RUN_ID)
    assert texts(bench.worker(0, preloading(2, 10))) == ["preloading 12 of 20"]
    assert texts(bench.worker(0, preloading(10, 10))) == ["preloading 20 of 20"]
    assert said(bench.worker(0, connecting(1, 2)), Preparing) == [connecting(1, 2)]


def test_an_agent_with_many_worker_processes_limits_its_progress_reports() -> None:
    bench = AgentBench(processes=64)
    bench.preparing(64)
    reports = []
    for step in range(100):
        bench.now_ns += NS_PER_S // 10
        reports += [said(bench.worker(number, connecting(step, 100)), Preparing) for number in range(64)]
    assert sum(map(len, reports)) < 300
    last = [said(bench.worker(number, connecting(100, 100)), Preparing) for number in range(64)]
    assert last[-1] == [connecting(6_400, 6_400)]


def test_a_repeated_prepare_spawns_nothing_and_is_answered_again_when_all_are_ready() -> None:
    bench = bench_in(AgentState.PREPARING)
    assert bench.hears(PREPARE) == []
    both(bench, ready())
    assert said(bench.hears(PREPARE), Prepared) == [Prepared(processes=2, connections_open=2)]


def test_an_agent_without_pools_is_ready_and_over_at_once() -> None:
    bench = AgentBench()
    assert said(bench.preparing(pools=0), Prepared) == [Prepared(processes=0, connections_open=0)]
    [final] = said(bench.hears(Start(t0_ns=bench.now_ns)), Final)
    assert (final.next_seq, final.issued, final.drained, final.processes_lost) == (0, 0, True, 0)
    bench.hears(FinalAck())
    assert bench.state is AgentState.IDLE


@pytest.mark.parametrize(("kind", "exit_code"), [(FailureKind.TARGET, 4), (FailureKind.AGENT, 5)])
def test_a_worker_that_cannot_prepare_ends_the_assignment_and_sets_the_exit_code(
    kind: FailureKind, exit_code: int
) -> None:
    bench = bench_in(AgentState.PREPARING, once=True)
    actions = bench.worker(1, Failed(kind=kind, reason="no"))
    assert of_kind(actions, KillWorkers)
    assert said(actions, Failed) == [Failed(kind=kind, reason="no")]
    assert actions[1].envelope.run_id == RUN_ID  # type: ignore[union-attr]
    assert exits(bench.hears(Dismiss(exit_code=exit_code))) == [exit_code]


def test_a_worker_that_dies_before_the_start_ends_the_assignment_and_the_agent_can_take_another() -> None:
    bench = bench_in(AgentState.PREPARED)
    [failed] = said(bench.do(WorkerExited(0, -9)), Failed)
    assert failed.reason == "worker process 0 ended with exit code -9"
    assert of_kind(bench.hears(PREPARE, run_id=OTHER_RUN_ID), Spawn)


def test_a_system_that_starts_no_process_fails_the_assignment_and_not_the_agent() -> None:
    bench = bench_in(AgentState.PREPARING)
    actions = bench.do(SpawnFailed("cannot start 2 worker processes: no memory"))
    assert [failed.reason for failed in said(actions, Failed)] == ["cannot start 2 worker processes: no memory"]
    assert bench.state is AgentState.IDLE


@pytest.mark.parametrize(
    ("progress", "ends_by", "reason"),
    [
        (preloading(0, 10), None, "it gave its assignment up in the preload: no word from its coordinator for 30 s"),
        (preloading(0, 10), FAILED, FAILED.reason),
        (connecting(1, 10), None, ""),
    ],
)
def test_an_assignment_whose_preload_has_begun_is_not_prepared_again(
    progress: Preparing, ends_by: Failed | None, reason: str
) -> None:
    bench = bench_in(AgentState.PREPARING)
    bench.worker(0, progress)
    bench.worker(0, ends_by) if ends_by else bench.passes(LEASE_S + 1.5)
    assert bench.state is AgentState.IDLE
    if not reason:
        assert of_kind(bench.hears(PREPARE), Spawn)
        return
    for _ in range(2):  # the answer may be lost
        actions = bench.hears(PREPARE)
        assert not of_kind(actions, Spawn)
        assert [failed.reason for failed in said(actions, Failed)] == [reason]
    assert of_kind(bench.hears(PREPARE, run_id=OTHER_RUN_ID), Spawn)


# -- the start instant


@pytest.mark.parametrize("offset_ns", [0, HOUR_NS, -HOUR_NS, 10**18])
def test_the_start_instant_is_converted_to_the_agents_clock(offset_ns: int) -> None:
    bench = AgentBench(offset_ns=offset_ns)
    bench.prepared()
    t0_ns = bench.now_ns + NS_PER_S
    assert orders(bench.hears(Start(t0_ns=t0_ns + offset_ns))) == [WorkerStart(t0_ns=t0_ns)]


def test_a_start_before_the_clocks_are_compared_must_be_repeated() -> None:
    bench = AgentBench(offset_ns=HOUR_NS)
    bench.prepared()
    bench.do(LinkDown())
    bench.do(LinkUp())
    bench.hears(welcome())
    t0_ns = bench.now_ns + NS_PER_S
    start = Start(t0_ns=t0_ns + HOUR_NS)
    assert bench.hears(start) == []
    assert bench.state is AgentState.PREPARED
    bench.passes(0.1, hearing=RUN_ID)
    assert orders(bench.hears(start)) == [WorkerStart(t0_ns=t0_ns)]


def test_a_late_answer_of_another_coordinator_does_not_set_the_clock() -> None:
    bench = AgentBench()
    bench.welcomed(OTHER_RUN_ID)
    bench.do(LinkDown())
    bench.do(LinkUp())
    bench.hears(welcome())
    wrong_ns = bench.now_ns + HOUR_NS
    bench.hears(HeartbeatReply(sent_ns=bench.now_ns, received_ns=wrong_ns, replied_ns=wrong_ns), OTHER_RUN_ID)
    bench.prepared()
    t0_ns = bench.now_ns + NS_PER_S
    assert orders(bench.hears(Start(t0_ns=t0_ns))) == [WorkerStart(t0_ns=t0_ns)]


def test_workers_that_start_after_the_planned_end_have_time_to_report() -> None:
    bench = bench_in(AgentState.PREPARED)
    actions = bench.hears(Start(t0_ns=bench.now_ns - HOUR_NS))
    assert orders(actions) == [WorkerStart(t0_ns=bench.now_ns - HOUR_NS)]
    assert not of_kind(bench.passes(5.0, hearing=RUN_ID), KillWorkers)


@pytest.mark.parametrize("t0_ns", [2**62, -(2**62), 0])
def test_an_impossible_start_instant_ends_the_assignment_and_not_the_agent(t0_ns: int) -> None:
    bench = AgentBench()
    bench.now_ns = 10**6 * NS_PER_S
    bench.prepared()
    actions = bench.hears(Start(t0_ns=t0_ns))
    [failed] = said(actions, Failed)
    assert "expected a start instant" in failed.reason
    assert len(of_kind(actions, KillWorkers)) == 1
    assert bench.state is AgentState.IDLE


# -- frames and Final


def test_frames_are_sent_second_by_second_and_final_follows_the_last() -> None:
    bench = bench_in(AgentState.RUNNING)
    bench.worker(0, worker_metrics(0, 3))
    assert bench.frames() == []
    bench.worker(1, worker_metrics(0, 4))
    [frame] = bench.frames()
    assert (frame.seq, frame.through, [part.operations for part in frame.intervals]) == (0, 0, [7])
    bench.worker(0, worker_metrics(1, 2))
    bench.worker(0, worker_final(5))
    assert not said(bench.worker(1, worker_final(4)), Final)
    assert bench.state is AgentState.DONE
    [last] = bench.frames()
    assert last.seq == 1
    final = said(bench.passes(1.1, hearing=RUN_ID), Final)[-1]
    assert (final.next_seq, final.issued, final.counted, final.ran_ns) == (2, 9, 9, 3 * NS_PER_S)


def test_final_is_repeated_until_it_is_acknowledged() -> None:
    bench = bench_in(AgentState.DONE)
    assert len(said(bench.passes(5.0, hearing=RUN_ID), Final)) >= 4
    bench.hears(FrameAck(next_seq=1))
    assert said(bench.passes(1.1, hearing=RUN_ID), Final)
    bench.hears(FinalAck())
    assert bench.state is AgentState.IDLE
    assert not said(bench.passes(5.0, hearing=RUN_ID), Final)


def test_frames_without_an_acknowledgement_are_sent_again_unchanged() -> None:
    bench = bench_in(AgentState.RUNNING)
    bench.passes(10.0, hearing=RUN_ID)
    both(bench, worker_metrics(1, 5, 6))
    sent = bench.frames()
    assert not said(bench.passes(1.9, hearing=RUN_ID), Attach)
    assert bench.frames() == []
    assert said(bench.passes(0.3, hearing=RUN_ID), Attach)
    assert bench.frames() == []
    bench.hears(Attached())
    assert bench.frames() == sent


def test_a_silent_coordinator_receives_no_frame_twice() -> None:
    bench = bench_in(AgentState.RUNNING)
    both(bench, worker_metrics(1, 5, 6))
    sent = bench.frames()
    bench.passes(20.0)
    assert bench.frames() == []
    bench.hears(FrameAck(next_seq=1))
    bench.hears(Attached())
    assert bench.frames() == sent[1:]


def test_a_dead_worker_is_reported_with_its_last_message_and_its_results_still_count() -> None:
    bench = bench_in(AgentState.RUNNING)
    bench.worker(0, worker_metrics(0, 5))
    bench.worker(0, Failed(kind=FailureKind.AGENT, reason="out of memory"))
    reason = "worker process 0 ended with exit code -9: out of memory"
    assert said(bench.do(WorkerExited(0, -9)), WorkerLost) == [WorkerLost(process=0, exit_code=-9, reason=reason)]
    bench.worker(1, worker_metrics(0, 7))
    bench.worker(1, worker_final(7))
    assert bench.do(WorkerExited(1, 0)) == []  # it has finished
    bench.frames()
    final = said(bench.passes(1.1, hearing=RUN_ID), Final)[-1]
    assert (final.issued, final.counted, final.processes_lost, final.drained) == (12, 12, 1, True)


def test_a_second_stop_that_does_not_drain_reaches_the_workers() -> None:
    bench = bench_in(AgentState.DRAINING)
    assert bench.hears(Stop(drain=True, reason="again")) == []
    assert orders(bench.hears(Stop(drain=False, reason="at once"))) == [WorkerStop(drain=False)]


def test_workers_that_do_not_end_are_killed() -> None:
    bench = bench_in(AgentState.RUNNING)
    bench.worker(0, worker_metrics(0, 5))
    bench.worker(0, worker_final(5))
    overdue_s = 0.6 + 3.0 + DRAIN_S + OVERTIME_NS / NS_PER_S
    assert not of_kind(bench.passes(overdue_s - 0.1, hearing=RUN_ID), KillWorkers)
    actions = bench.passes(0.3, hearing=RUN_ID)
    assert of_kind(actions, KillWorkers)
    assert [lost.process for lost in said(actions, WorkerLost)] == [1]
    assert bench.state is AgentState.DONE


# -- the lease


@pytest.mark.parametrize("state", [AgentState.PREPARING, AgentState.PREPARED])
def test_an_assignment_that_never_starts_is_given_up_with_the_lease(state: AgentState) -> None:
    bench = bench_in(state)
    bench.do(LinkDown())
    assert not of_kind(bench.passes(LEASE_S - 0.2), KillWorkers)
    assert of_kind(bench.passes(0.4), KillWorkers)
    assert bench.state is AgentState.IDLE


def test_an_agent_that_loses_the_coordinator_for_a_lease_drains_and_keeps_its_frames() -> None:
    bench = running()
    assert orders(bench.passes(3 * LEASE_S, hearing=RUN_ID)) == []
    both(bench, worker_metrics(0, 5))
    bench.do(LinkDown())
    assert orders(bench.passes(LEASE_S - 1.5)) == []
    assert orders(bench.passes(1.7)) == [WorkerStop(drain=True)]
    assert (bench.state, len(bench.session.outbox)) == (AgentState.DRAINING, 1)


def renewals(actions: list[Action]) -> list[int]:
    return [action.until_ns for action in of_kind(actions, RenewLease)]


@pytest.mark.parametrize("state", [AgentState.PREPARING, AgentState.PREPARED, AgentState.RUNNING])
def test_the_leases_of_workers_are_renewed_while_the_coordinator_answers(state: AgentState) -> None:
    bench = bench_in(state)
    renewed_ns = renewals(bench.passes(10.0, hearing=RUN_ID))
    assert 10 <= len(renewed_ns) <= 20
    assert renewed_ns == sorted(set(renewed_ns))
    assert bench.now_ns + LEASE_NS - 1.5 * NS_PER_S < renewed_ns[-1] <= bench.now_ns + LEASE_NS
    bench.do(LinkDown())
    assert len(renewals(bench.passes(LEASE_S + 5.0))) <= 1  # the last answer may still be passed on


@pytest.mark.parametrize("state", [AgentState.IDLE, AgentState.DRAINING, AgentState.DONE])
def test_no_lease_is_renewed_without_a_load(state: AgentState) -> None:
    assert renewals(bench_in(state).passes(5.0, hearing=RUN_ID)) == []


def test_time_in_which_the_machine_was_suspended_counts_towards_the_lease() -> None:
    bench = running()
    assert orders(bench.do(Tick(suspended_ns=LEASE_NS - NS_PER_S))) == []
    actions = bench.do(Tick(suspended_ns=2 * NS_PER_S))
    assert orders(actions) == [WorkerStop(drain=True)]
    assert renewals(actions) == []


@pytest.mark.parametrize(
    ("stopped_s", "silent_s", "heard_s", "reason"),
    [
        (40, 0.0, 0.0, "its own process did not run for 40.0 s"),
        (40, 0.0, 3.0, "its own process did not run for 40.0 s"),
        (0, LEASE_S - 0.2, 0.0, "no word from its coordinator for 30 s"),
        (0, 0.0, 5.0, "worker process 0 did not run for longer than the lease of 30 s"),
    ],
)
def test_an_agent_reports_why_the_leases_of_its_workers_ran_out(
    stopped_s: int, silent_s: float, heard_s: float, reason: str
) -> None:
    bench = bench_in(AgentState.RUNNING)
    bench.now_ns += stopped_s * NS_PER_S
    if stopped_s:  # messages that came before are read first
        bench.hears(HeartbeatReply(sent_ns=1, received_ns=1, replied_ns=1))
    bench.passes(silent_s)
    bench.passes(heard_s, hearing=RUN_ID)
    actions = both(bench, msgspec.structs.replace(worker_final(), fenced=True))
    assert bench.state is AgentState.DONE
    assert len(texts(actions)) == 1
    bench.frames()
    assert said([*actions, *bench.passes(1.2)], Final)[0].reason == reason


@pytest.mark.parametrize("message", [FrameAck(next_seq=0), welcome(), Start(t0_ns=0)])
def test_only_the_answer_to_a_heartbeat_renews_the_lease(message: CoordinatorMessage) -> None:
    bench = running()
    bench.passes(LEASE_S - 1.0)
    bench.hears(message)
    assert WorkerStop(drain=True) in orders(bench.passes(1.2))


@pytest.mark.parametrize("ahead_s", [0.1, 10**9])
def test_an_answer_to_a_heartbeat_of_the_future_renews_nothing(ahead_s: float) -> None:
    bench = running()
    bench.passes(LEASE_S - 1.0)
    sent_ns = bench.now_ns + round(ahead_s * NS_PER_S)
    bench.hears(HeartbeatReply(sent_ns=sent_ns, received_ns=1, replied_ns=1))
    assert orders(bench.passes(1.2)) == [WorkerStop(drain=True)]


def test_a_late_answer_renews_the_lease_from_when_the_heartbeat_was_sent() -> None:
    bench = running()
    asked_ns = bench.now_ns
    bench.passes(20.0)
    bench.hears(HeartbeatReply(sent_ns=asked_ns, received_ns=asked_ns, replied_ns=asked_ns))
    assert orders(bench.passes(LEASE_S - 20.2)) == []
    assert orders(bench.passes(0.4)) == [WorkerStop(drain=True)]


def test_an_answer_to_a_heartbeat_from_before_a_suspension_renews_nothing() -> None:
    bench = running()
    asked_ns = bench.now_ns
    bench.now_ns += NS_PER_S
    bench.do(Tick(suspended_ns=LEASE_NS - 2 * NS_PER_S))
    bench.hears(HeartbeatReply(sent_ns=asked_ns, received_ns=asked_ns, replied_ns=asked_ns))
    assert orders(bench.passes(1.2)) == [WorkerStop(drain=True)]


@pytest.mark.parametrize("state", [AgentState.PREPARING, AgentState.PREPARED, AgentState.RUNNING])
def test_the_coordinator_of_another_run_does_not_renew_the_lease(state: AgentState) -> None:
    bench = bench_in(state)
    bench.do(LinkDown())
    bench.welcomed(OTHER_RUN_ID)
    bench.passes(LEASE_S + 0.2, hearing=OTHER_RUN_ID)
    assert bench.state is not state


# -- results that no coordinator has taken


def test_an_agent_whose_coordinator_was_killed_serves_another_run_and_then_delivers_what_it_kept() -> None:
    bench = bench_in(AgentState.DONE)
    [lost] = texts(bench.do(LinkDown()))
    assert lost.endswith(KEEPS)
    actions = bench.welcomed(OTHER_RUN_ID)
    assert {hello.run_id for hello in said(actions, Hello)} == {RUN_ID}
    assert any(text.startswith("another run's coordinator answers; keeping") for text in texts(actions))
    assert not bench.frames()
    assert {beat.state for beat in said(bench.passes(2.0, hearing=OTHER_RUN_ID), Heartbeat)} == {AgentState.IDLE}
    assert of_kind(bench.hears(PREPARE, run_id=OTHER_RUN_ID), Spawn)
    assert not said(bench.hears(Stop(drain=True, reason="enough"), OTHER_RUN_ID), Final)
    assert (bench.state, len(bench.session.kept)) == (AgentState.IDLE, 1)
    bench.do(LinkDown())
    bench.passes(100.0, every_s=0.5)
    [hello] = said(bench.do(LinkUp()), Hello)
    assert (hello.state, hello.run_id, hello.frames_held) == (AgentState.DONE, RUN_ID, 1)
    bench.welcomed()
    assert (bench.state, bench.session.run_id) == (AgentState.DONE, RUN_ID)
    bench.hears(Attached())
    assert [frame.seq for frame in bench.frames()] == [0]
    [final] = {each.issued: each for each in said(bench.passes(1.2, hearing=RUN_ID), Final)}.values()
    assert (final.issued, final.next_seq) == (10, 1)
    bench.hears(FinalAck())
    assert (bench.state, len(bench.session.kept)) == (AgentState.IDLE, 0)


def test_the_results_of_several_runs_are_kept_up_to_a_limit_and_each_goes_to_its_own_coordinator() -> None:
    bench = AgentBench()
    for number in range(MOST_RUNS + 2):
        start_other_run(bench, f"run-{number}")
        both(bench, worker_final())
    bench.welcomed("run-last")
    kept = [f"run-{number}" for number in range(2, MOST_RUNS + 2)]
    assert str(bench.session.kept) == ", ".join(kept)
    bench.welcomed("run-3")
    assert bench.session.run_id == "run-3"
    bench.welcomed("run-2")  # before the first coordinator has taken everything
    assert bench.session.run_id == "run-2"
    assert str(bench.session.kept) == ", ".join([*kept[2:], "run-3"])


def test_results_that_were_set_aside_are_given_up_after_a_fixed_time() -> None:
    bench = bench_in(AgentState.DONE)
    bench.do(LinkDown())
    bench.welcomed(OTHER_RUN_ID)
    bench.passes(KEPT_S - 1.0, hearing=OTHER_RUN_ID, every_s=0.5)
    assert len(bench.session.kept) == 1
    [line] = texts(bench.passes(3.0, hearing=OTHER_RUN_ID))
    assert "the results of run run-1" in line
    assert not bench.session.kept


def test_an_agent_for_one_run_keeps_its_results_refuses_another_run_and_gives_them_up_in_the_end() -> None:
    bench = bench_in(AgentState.DONE, once=True)
    bench.welcomed(OTHER_RUN_ID)
    [failed] = said(bench.hears(PREPARE, run_id=OTHER_RUN_ID), Failed)
    assert "resume that run" in failed.reason
    bench.do(LinkDown())
    assert exits(bench.passes(KEPT_S + 1.0, every_s=0.5)) == [5]


def test_an_agent_with_kept_results_waits_longer_for_a_coordinator() -> None:
    bench = bench_in(AgentState.DONE, wait_ns=5 * NS_PER_S)
    bench.welcomed(OTHER_RUN_ID)
    bench.do(LinkDown())
    assert not exits(bench.passes(20.0, every_s=0.5))
    assert exits(bench.passes(KEPT_S, every_s=0.5))[:1] == [5]


@pytest.mark.parametrize("works", [False, True])
def test_an_agent_that_exits_with_kept_results_names_their_run(works: bool) -> None:
    bench = bench_in(AgentState.DONE)
    bench.welcomed(OTHER_RUN_ID)
    if works:
        start_other_run(bench)
    actions = bench.do(Terminated())
    if works:
        both(bench, worker_final())
        actions = bench.hears(FinalAck(), OTHER_RUN_ID)
    assert of_kind(actions, Exit) == [Exit(5, "left with results that no coordinator took, of run run-1")]


def test_an_agent_that_ends_its_load_without_a_coordinator_says_how_long_it_keeps_the_results() -> None:
    bench = bench_in(AgentState.RUNNING)
    bench.do(LinkDown())
    both(bench, worker_metrics(0))
    assert texts(both(bench, worker_final())) == [KEEPS]


def test_results_are_kept_as_long_after_the_agent_itself_was_stopped() -> None:
    bench = bench_in(AgentState.RUNNING)
    bench.now_ns += round(KEPT_S * NS_PER_S) + NS_PER_S
    both(bench, worker_final())
    bench.passes(1.0)
    assert bench.state is AgentState.DONE


# -- a coordinator that ends the run


@pytest.mark.parametrize("state", [AgentState.PREPARING, AgentState.PREPARED])
def test_an_agent_gives_up_a_run_that_its_coordinator_called_off(state: AgentState) -> None:
    bench = bench_in(state, once=True)
    actions = bench.hears(Dismiss(exit_code=5))
    assert of_kind(actions, KillWorkers)
    assert texts(actions) == ["run run-1 is over for this agent: the coordinator called the run off"]
    assert of_kind(actions, Exit) == [Exit(0)]
    assert (bench.state, len(bench.session.outbox)) == (AgentState.IDLE, 0)


@pytest.mark.parametrize("state", [AgentState.RUNNING, AgentState.DRAINING])
def test_the_load_of_a_closed_run_stops_at_once(state: AgentState) -> None:
    bench = bench_in(state)
    assert orders(bench.hears(Dismiss(exit_code=5))) == [WorkerStop(drain=False)]
    assert bench.state is AgentState.DRAINING
    assert orders(bench.hears(Dismiss(exit_code=5))) == []


def closed(**identity: object) -> AgentBench:
    """An agent with results, whose coordinator closed the run without them and left."""
    bench = bench_in(AgentState.DONE, **identity)
    assert texts(bench.hears(Dismiss(exit_code=5))) == [f"its coordinator closed the run without them; {KEEPS}"]
    bench.do(LinkDown())
    return bench


@pytest.mark.parametrize("once", [False, True])
def test_results_of_a_closed_run_go_to_a_coordinator_that_resumes_it(once: bool) -> None:
    bench = closed(once=once)
    bench.passes(100.0, every_s=0.5)
    [hello] = said(bench.do(LinkUp()), Hello)
    assert (hello.state, hello.run_id, hello.next_seq, hello.frames_held) == (AgentState.DONE, RUN_ID, 0, 1)
    bench.hears(welcome())
    bench.do(MetricsLinkUp())
    bench.hears(Attached())
    assert [frame.seq for frame in bench.frames()] == [0]
    assert said(bench.passes(1.2, hearing=RUN_ID), Final)
    actions = bench.hears(FinalAck())
    assert bool(said(actions, Bye)) == once
    assert exits(actions) == [0] * once
    assert bench.state is AgentState.IDLE


def test_a_standby_for_one_run_exits_with_that_run() -> None:
    bench = bench_in(AgentState.IDLE, once=True)
    assert texts(bench.hears(StandBy())) == ["standing by: the run has its agents, and may need this one later"]
    [leaving] = of_kind(bench.hears(Dismiss(exit_code=5)), Exit)
    assert (leaving.code, leaving.text.startswith("run run-1 is over (exit code 5)")) == (0, True)


# -- SIGTERM


@pytest.mark.parametrize("state", [AgentState.IDLE, AgentState.PREPARING, AgentState.PREPARED])
def test_a_terminated_agent_without_load_exits_at_once(state: AgentState) -> None:
    bench = bench_in(state)
    actions = bench.do(Terminated())
    assert said(actions, Bye) == [Bye(reason="terminated")]
    assert exits(actions) == [0]
    assert bool(of_kind(actions, KillWorkers)) == (state is not AgentState.IDLE)


def test_a_terminated_agent_under_load_drains_and_exits_when_its_results_are_safe() -> None:
    bench = bench_in(AgentState.RUNNING)
    assert orders(bench.do(Terminated())) == [WorkerStop(drain=True)]
    assert [final.reason for final in said(both(bench, worker_final()), Final)] == ["this agent was terminated"]
    actions = bench.hears(FinalAck())
    assert said(actions, Bye) == [Bye(reason="terminated")]
    assert exits(actions) == [0]


def test_a_terminated_agent_exits_at_once_when_its_run_is_closed() -> None:
    bench = bench_in(AgentState.RUNNING)
    bench.do(Terminated())
    actions = bench.hears(Dismiss(exit_code=5))
    assert of_kind(actions, KillWorkers)
    assert exits(actions) == exits(closed().do(Terminated())) == [5]


def test_a_terminated_agent_waits_for_a_coordinator_for_a_limited_time() -> None:
    bench = bench_in(AgentState.DONE)
    seconds = DRAIN_S + (OVERTIME_NS + GOODBYE_NS) / NS_PER_S
    assert texts(bench.do(Terminated())) == [
        f"waiting {seconds:.0f} s at most for a coordinator to take the results of run run-1; "
        "interrupt again to leave without them"
    ]
    bench.do(LinkDown())
    assert exits(bench.passes(seconds + 1.0))[:1] == [5]


@pytest.mark.parametrize("state", [AgentState.RUNNING, AgentState.DONE])
def test_a_second_signal_ends_an_agent_at_once(state: AgentState) -> None:
    bench = bench_in(state)
    bench.do(Terminated())
    actions = bench.do(Terminated())
    assert of_kind(actions, KillWorkers)
    assert of_kind(actions, Exit) == [Exit(143, "left at once: what no coordinator has of run run-1 is lost")]


# -- heartbeats


def test_heartbeats_come_quickly_until_the_clocks_are_compared_and_then_each_second() -> None:
    bench = AgentBench()
    bench.do(LinkUp())
    bench.hears(welcome())
    assert len(said(bench.passes(1.0, hearing=RUN_ID), Heartbeat)) > 5
    assert len(said(bench.passes(10.0, hearing=RUN_ID), Heartbeat)) in (9, 10, 11)


def test_a_heartbeat_reports_state_clock_and_health() -> None:
    bench = AgentBench(offset_ns=HOUR_NS)
    bench.done()
    bench.now_ns += NS_PER_S
    [beat] = said(bench.do(Tick(cpu_percent=50.0, cpu_percent_busiest=40.0, lag_ms=3.0)), Heartbeat)
    assert (beat.state, beat.offset_ns, beat.rtt_ns) == (AgentState.DONE, HOUR_NS, 0)
    assert (beat.cpu_percent, beat.cpu_percent_busiest, beat.lag_ms) == (50.0, 40.0, 3.0)
    assert (beat.frames_held, beat.processes_alive) == (1, 0)


@pytest.mark.parametrize(
    ("sent_ns", "received_ns", "replied_ns"),
    [(0, 2**62, 2**62), (0, -(2**62), -(2**62)), (-(2**62), 0, 0), (0, 2**62, 0), (2**62, 0, 0)],
)
def test_impossible_timestamps_do_not_change_the_clock_estimate(
    sent_ns: int, received_ns: int, replied_ns: int
) -> None:
    bench = AgentBench(offset_ns=5 * NS_PER_S)
    bench.welcomed()
    bench.now_ns += 100 * NS_PER_S
    for _ in range(20):
        bench.hears(HeartbeatReply(sent_ns=sent_ns, received_ns=received_ns, replied_ns=replied_ns))
    [heartbeat] = said(bench.do(Tick()), Heartbeat)
    assert heartbeat.offset_ns == 5 * NS_PER_S


# -- the metrics link


def test_an_agent_is_prepared_once_its_metrics_connection_is_answered() -> None:
    bench = AgentBench()
    bench.welcomed(attached=False)
    bench.hears(PREPARE)
    assert not said(both(bench, ready()), Prepared)
    assert said(bench.do(MetricsLinkUp()), Attach) == [Attach(secret=bench.identity.secret, connection=1)]
    bench.hears(Attached(), OTHER_RUN_ID)
    assert bench.state is AgentState.PREPARING
    assert said(bench.hears(Attached()), Prepared)


@pytest.mark.parametrize(
    ("event", "cause"),
    [
        (MetricsLinkDown("its handshake is refused"), "its handshake is refused"),
        (MetricsLinkUp(), "connected, but the coordinator does not answer"),
        (Tick(), "no TCP connection"),
        (LinkDown(), ""),
    ],
)
def test_an_agent_whose_metrics_connection_alone_is_blocked_fails_before_the_start(
    event: AgentEvent, cause: str
) -> None:
    bench = AgentBench()
    bench.welcomed(attached=False)
    bench.hears(PREPARE)
    bench.do(event)
    reasons = [failed.reason for failed in said(bench.passes(PROVE_WITHIN_NS / NS_PER_S + 1, hearing=RUN_ID), Failed)]
    blocked = f"its metrics connection to tcp://127.0.0.1:5555 does not get through ({cause}), "
    assert reasons == ([f"{blocked}although its control connection does"] if cause else [])


def test_a_metrics_connection_that_once_worked_may_be_lost_during_a_preload() -> None:
    bench = bench_in(AgentState.PREPARING)
    bench.do(MetricsLinkDown("no TCP connection"))
    assert not said(bench.passes(60.0, hearing=RUN_ID), Failed)
    assert said(both(bench, ready()), Prepared)


# -- hostile coordinators


def impossible() -> Prepare:
    plan = msgspec.structs.replace(fleet_plan(), pools=(Pools(threads_per_pool=10**9),))
    return Prepare(assignments=(Assignment(plan=plan, pools=dealt(1), threads_total=10**9),), plan_hash="")


def test_an_impossible_assignment_is_refused_and_the_agent_can_take_another() -> None:
    bench = bench_in(AgentState.IDLE)
    actions = bench.hears(impossible())
    [failed] = said(actions, Failed)
    assert "expected at most 1000000 worker threads" in failed.reason
    assert texts(actions) == [f"cannot take part in run {RUN_ID}: {failed.reason}"]
    assert (bench.state, of_kind(actions, Spawn)) == (AgentState.IDLE, [])
    bench.running()


def test_text_of_a_coordinator_is_shown_in_one_printable_line_of_limited_length() -> None:
    evil = "\x1b[2J\n\u202e\x9b" + "x" * 100_000
    bench = AgentBench()
    bench.do(LinkUp())
    actions = bench.hears(msgspec.structs.replace(welcome(), agent_id=evil))
    actions += bench.hears(impossible(), run_id=evil)
    bench.running()
    actions += bench.hears(Stop(drain=True, reason=evil))
    actions += bench.hears(Refused(reason=evil))
    lines = [*texts(actions), *(left.text for left in of_kind(actions, Exit))]
    assert len(lines) == 4
    for line in lines:
        assert line.isprintable()
        assert len(line) < 2500


# -- the pace of a large fleet


def in_a_large_fleet() -> AgentBench:
    """A running agent that reports every four seconds, with a heartbeat every two."""
    bench = bench_in(AgentState.IDLE)
    bench.hears(Welcome(protocol=PROTOCOL_MAX, agent_id="web1", pace=Pace(frame_s=4, heartbeat_s=2)))
    bench.hears(Attached())
    bench.passes(1.0, hearing=RUN_ID)
    bench.hears(Prepare(assignments=(assignment(fleet_plan(duration_s=3600.0), 1),), plan_hash="hash"))
    bench.worker(0, ready())
    bench.hears(Start(t0_ns=bench.now_ns))
    return bench


def test_an_agent_of_a_large_fleet_sends_several_seconds_in_one_frame() -> None:
    bench = in_a_large_fleet()
    frames: list[MetricsFrame] = []
    for second in range(20):
        bench.passes(1.0, hearing=RUN_ID)
        bench.worker(0, worker_metrics(second, 3))
        frames += bench.frames()
        bench.hears(FrameAck(next_seq=len(frames)))
    assert len(frames) in (4, 5)
    intervals = [interval for frame in frames for interval in frame.intervals]
    numbers = [number for interval in intervals for number in range(interval.first, interval.last + 1)]
    assert numbers == list(range(frames[-1].through + 1))
    assert sum(interval.operations for interval in intervals) == 3 * len(numbers)
    assert all(second.ok == 3 for interval in intervals for second in interval.seconds)
    assert len(intervals[-1].seconds) == 4


def test_a_frame_is_sent_when_its_period_is_over_and_the_last_one_within_a_second() -> None:
    bench = in_a_large_fleet()
    bench.worker(0, worker_metrics(0, 3))
    frames: list[MetricsFrame] = []
    while not frames and bench.now_ns < 1_010 * NS_PER_S:
        bench.passes(0.1, hearing=RUN_ID)
        frames = bench.frames()
    assert [frame.through for frame in frames] == [0]
    bench.worker(0, worker_metrics(1, 3))
    assert not said(bench.worker(0, worker_final(6)), Final)
    assert (bench.state, bench.frames()) == (AgentState.DONE, [])
    bench.passes(1.0, hearing=RUN_ID)
    assert [frame.through for frame in bench.frames()] == [1]
    assert said(bench.passes(1.0, hearing=RUN_ID), Final)


def test_an_agent_of_a_large_fleet_sends_fewer_heartbeats_while_it_runs_and_keeps_its_lease() -> None:
    bench = in_a_large_fleet()
    bench.passes(2.0, hearing=RUN_ID)
    assert len(said(bench.passes(40.0, hearing=RUN_ID), Heartbeat)) in (19, 20, 21)
    assert bench.state is AgentState.RUNNING
