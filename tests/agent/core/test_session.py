from __future__ import annotations

import itertools

import msgspec
import pytest

from agent.core.actions import (
    Action,
    ConnectMetrics,
    Event,
    Examined,
    Exit,
    KillWorkers,
    LinkDown,
    LinkRefused,
    LinkUp,
    MetricsLinkDown,
    MetricsLinkUp,
    OrderWorkers,
    RenewLease,
    Say,
    Spawn,
    SpawnFailed,
    Terminated,
    Tick,
    WorkerExited,
)
from agent.core.assignment_checks import Capacity
from agent.core.kept_results import MOST_RUNS
from agent.core.link import PROVE_WITHIN_NS
from agent.core.outbox import CAPACITY, WINDOW
from agent.core.session import GOODBYE_NS, OVERTIME_NS
from agent.core.transitions import TRANSITIONS, Trigger
from common.plan.schema import Pools, Preload
from common.protocol.messages import (
    HOLD_LEASES,
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
    PoolLeft,
    Preloaded,
    Prepare,
    Prepared,
    Preparing,
    Refused,
    StandBy,
    Start,
    Step,
    Stop,
    TakeOver,
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
DRAIN_S = 10.0
HOUR_NS = 3600 * NS_PER_S

PREPARE = Prepare(assignment=assignment(pools=2), plan_hash="hash")
BROKEN = Failed(kind=FailureKind.TARGET, reason="the target refused us")


def opening(done: int, total: int) -> Preparing:
    return Preparing(step=Step.CONNECTIONS, done=done, total=total)


def preloading(done: int, total: int) -> Preparing:
    return Preparing(step=Step.PRELOAD, done=done, total=total)


def texts(actions: list[object]) -> list[str]:
    """What the person at the terminal is told."""
    return [action.text for action in of_kind(actions, Say)]


def bench_in(state: AgentState) -> AgentBench:
    """An agent that has come to this state."""
    bench = AgentBench()
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


def pull(bench: AgentBench, trigger: Trigger) -> None:
    """Have happen what this trigger stands for, as far as it can in this state."""
    match trigger:
        case Trigger.PREPARE:
            bench.hears(PREPARE)
        case Trigger.READY:
            for number in range(2):
                bench.worker(number, ready())
        case Trigger.BROKEN:
            bench.worker(0, BROKEN)
        case Trigger.ABANDON | Trigger.STOP:
            bench.hears(Stop(drain=True, reason="enough"))
        case Trigger.START:
            bench.hears(Start(t0_ns=bench.now_ns))
        case Trigger.WORKERS_OVER:
            for number in range(2):
                bench.worker(number, worker_final())
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
def test_every_row_of_the_table_leads_where_it_says(state: AgentState, trigger: Trigger) -> None:
    bench = bench_in(state)
    pull(bench, trigger)
    assert bench.state is TRANSITIONS[state, trigger]


ENDS = (Trigger.ABANDON, Trigger.STOP)
"""Which of these a stop means is for the state to say; a state without any of them shows nothing."""
NO_ROW = [
    (state, trigger)
    for state, trigger in itertools.product(AgentState, Trigger)
    if (state, trigger) not in TRANSITIONS
    and not (trigger in ENDS and any((state, end) in TRANSITIONS for end in ENDS))
]


@pytest.mark.parametrize(("state", "trigger"), NO_ROW, ids=lambda value: value.name)
def test_what_has_no_row_in_the_table_changes_no_state(state: AgentState, trigger: Trigger) -> None:
    bench = bench_in(state)
    pull(bench, trigger)
    assert bench.state is state


def test_every_state_can_be_left_and_leads_back_to_idle() -> None:
    for state in AgentState:
        reached, seen = {state}, set[AgentState]()
        while reached - seen:
            seen |= reached
            reached = {after for (before, _), after in TRANSITIONS.items() if before in seen} | seen
        assert AgentState.IDLE in reached


# -- joining


def test_an_agent_says_hello_when_its_link_comes_up_and_once_a_second_until_it_is_welcome() -> None:
    bench = AgentBench()
    assert said(bench.do(LinkUp()), Hello)
    assert len(said(bench.passes(3.0), Hello)) in (2, 3)
    assert of_kind(bench.hears(welcome()), ConnectMetrics) == [ConnectMetrics()]
    assert not said(bench.passes(1.0, hearing=RUN_ID), Hello)


def test_an_agent_without_a_link_says_nothing() -> None:
    bench = AgentBench()
    assert bench.passes(3.0) == []


def test_a_second_welcome_is_no_news() -> None:
    bench = AgentBench()
    bench.welcomed()
    assert of_kind(bench.hears(welcome()), Say) == []


def test_an_agent_that_is_answered_no_more_says_hello_again_although_its_link_is_up() -> None:
    bench = AgentBench()
    bench.welcomed()
    assert not said(bench.passes(20.0, hearing=RUN_ID), Hello)
    assert said(bench.passes(10.0), Hello)


def test_a_link_that_comes_up_again_is_a_new_one_even_if_nobody_said_that_it_was_lost() -> None:
    bench = AgentBench()
    bench.welcomed()
    assert said(bench.do(LinkUp()), Hello)


def test_a_lost_link_is_told_once() -> None:
    bench = AgentBench()
    bench.welcomed()
    assert len(of_kind(bench.do(LinkDown()), Say)) == 1
    assert bench.do(LinkDown()) == []


def test_a_refused_agent_leaves_with_the_exit_code_of_the_fleet() -> None:
    bench = AgentBench()
    bench.do(LinkUp())
    actions = bench.hears(Refused(reason="protocol 9 to 9"), run_id="")
    [leaving] = of_kind(actions, Exit)
    assert leaving.code == 5
    assert "protocol 9 to 9" in leaving.text


def test_an_agent_whose_handshake_keeps_failing_leaves() -> None:
    bench = AgentBench()
    actions = []
    bench.do(Examined())
    for _ in range(10):
        bench.do(LinkRefused())
        actions += bench.passes(0.5)
    assert exits(actions)[0] == 5


def test_what_is_in_the_way_is_said_once_and_again_when_waiting_was_in_vain() -> None:
    bench = AgentBench(wait_ns=10 * NS_PER_S)
    said = [bench.do(Examined(text)) for text in ("nothing listens at h:1", "nothing listens at h:1", "", "h is slow")]
    assert [[say.text for say in of_kind(actions, Say)] for actions in said] == [
        ["nothing listens at h:1; trying again"],
        [],
        [],
        ["h is slow; trying again"],
    ]
    leaving = of_kind(bench.passes(11.0), Exit)[0]
    assert (leaving.code, leaving.text) == (5, "no coordinator answered for 10 s: h is slow")


def test_what_no_waiting_helps_against_ends_an_agent_that_has_no_run() -> None:
    bench = AgentBench()
    for _ in range(2):
        assert not bench.do(Examined("an HTTP server listens at h:1", lasting=True))
    [leaving, *_] = of_kind(bench.passes(0.1), Exit)
    assert (leaving.code, leaving.text) == (5, "an HTTP server listens at h:1")


def test_an_agent_between_two_runs_says_once_that_its_coordinator_is_gone() -> None:
    bench = AgentBench()
    bench.do(LinkUp())
    bench.hears(welcome())
    [say] = of_kind(bench.do(LinkDown()), Say)
    assert say.text == "the coordinator is gone; waiting for the next one"
    assert not bench.do(Examined("nothing listens at h:1"))


def test_one_failed_handshake_is_no_refusal() -> None:
    bench = AgentBench()
    bench.do(LinkRefused())
    assert exits(bench.passes(60.0)) == []
    bench.do(LinkRefused())
    assert exits(bench.passes(60.0)) == []


def test_a_stranger_on_the_port_of_a_dead_coordinator_does_not_cost_the_run() -> None:
    bench = AgentBench()
    bench.running()
    bench.do(LinkDown())
    actions = []
    for _ in range(10):
        bench.do(LinkRefused())
        actions += bench.passes(0.5)
    assert bench.state is AgentState.RUNNING
    assert exits(actions) == []
    assert not of_kind(actions, KillWorkers)


def test_an_agent_that_waits_for_so_long_only_leaves_when_nobody_answers() -> None:
    bench = AgentBench(wait_ns=5 * NS_PER_S)
    assert exits(bench.passes(4.9)) == []
    assert exits(bench.passes(0.3))[:1] == [5]


def test_an_agent_that_is_answered_does_not_run_out_of_patience() -> None:
    bench = AgentBench(wait_ns=5 * NS_PER_S)
    bench.welcomed()
    assert exits(bench.passes(20.0, hearing=RUN_ID)) == []


# -- what is not for us


def test_a_message_for_another_incarnation_is_passed_over() -> None:
    bench = bench_in(AgentState.PREPARED)
    assert bench.hears(Start(t0_ns=bench.now_ns), incarnation="another") == []
    assert bench.state is AgentState.PREPARED
    assert bench.session.ignored == 1


@pytest.mark.parametrize("message", [Start(t0_ns=0), Stop(drain=True, reason=""), FrameAck(next_seq=1), FinalAck()])
@pytest.mark.parametrize("run_id", [OTHER_RUN_ID, ""])
@pytest.mark.parametrize("state", list(AgentState))
def test_an_order_of_another_run_is_passed_over(state: AgentState, message: Start, run_id: str) -> None:
    bench = bench_in(state)
    held = len(bench.session.outbox)
    assert bench.hears(message, run_id=run_id) == []
    assert bench.state is state
    assert len(bench.session.outbox) == held


@pytest.mark.parametrize("state", [AgentState.RUNNING, AgentState.DRAINING, AgentState.DONE])
def test_the_end_of_another_run_does_not_touch_the_one_that_is_held(state: AgentState) -> None:
    bench = bench_in(state)
    assert bench.hears(Dismiss(exit_code=0), run_id=OTHER_RUN_ID) == []
    assert bench.state is state


def test_an_agent_that_stands_by_says_so_and_waits_for_its_share_or_the_end() -> None:
    bench = AgentBench()
    bench.welcomed()
    [say] = bench.hears(StandBy())
    assert say == Say("standing by: the run has its agents, and may need this one later")
    assert bench.state is AgentState.IDLE
    assert bench.hears(Prepare(assignment=assignment(), plan_hash="hash"))
    assert bench.state is AgentState.PREPARING


@pytest.mark.parametrize("state", [state for state in AgentState if state is not AgentState.IDLE])
def test_an_agent_that_holds_a_run_cannot_take_another(state: AgentState) -> None:
    bench = bench_in(state)
    actions = bench.hears(PREPARE, run_id=OTHER_RUN_ID)
    [failed] = said(actions, Failed)
    assert RUN_ID in failed.reason
    assert failed.kind is FailureKind.AGENT
    assert actions[0].envelope.run_id == OTHER_RUN_ID  # type: ignore[union-attr]
    assert bench.state is state


def test_a_report_of_a_worker_that_is_not_ours_any_more_is_passed_over() -> None:
    bench = AgentBench()
    bench.welcomed()
    progress = Preparing(step=Step.CONNECTIONS, done=1, total=2)
    for message in (progress, ready(), BROKEN, worker_metrics(0, 1), worker_final()):
        assert bench.worker(0, message) == []
    assert bench.do(WorkerExited(0, 1)) == []


# -- preparing


def test_processes_that_may_open_fewer_files_than_calls_may_need_are_noted() -> None:
    bench = AgentBench(processes=2, capacity=Capacity(open_files=64))
    bench.welcomed()
    said_first, noted = texts(bench.hears(PREPARE))
    assert said_first == "preparing 2 client pools in 2 worker processes"
    assert noted.startswith("note: a worker process may open 64 files (`ulimit -n`), but needs 65: 1 connection and ")
    assert texts(AgentBench(capacity=Capacity(open_files=65)).preparing()) == [said_first]


def test_pools_are_dealt_over_worker_processes() -> None:
    bench = AgentBench(processes=2)
    bench.welcomed()
    [spawn] = of_kind(bench.hears(Prepare(assignment=assignment(pools=5), plan_hash="")), Spawn)
    assert [[pool.number for pool in part.pools] for part in spawn.assignments] == [[0, 2, 4], [1, 3]]


def test_prepared_is_said_when_the_last_worker_is_ready() -> None:
    bench = AgentBench()
    bench.preparing()
    assert not said(bench.worker(0, ready(3)), Prepared)
    assert said(bench.worker(1, ready(4)), Prepared) == [Prepared(processes=2, connections_open=7)]


def test_progress_of_all_workers_is_told_together() -> None:
    bench = AgentBench()
    bench.preparing()
    bench.worker(0, opening(1, 10))
    assert said(bench.worker(1, opening(3, 10)), Preparing) == [opening(4, 20)]


def test_a_preload_is_told_until_every_worker_is_through_and_to_the_terminal_now_and_then() -> None:
    bench = AgentBench()
    workload = msgspec.structs.replace(bench.plan.workload, preload=(Preload(key_maximum=Count(10), times=2),))
    bench.preparing(plan=msgspec.structs.replace(bench.plan, workload=workload))
    # How much there is in all is known before the last worker has spoken.
    assert texts(bench.worker(0, preloading(1, 10))) == ["preloading 1 of 20"]
    actions = bench.worker(1, preloading(10, 10))
    assert (said(actions, Preparing), texts(actions)) == ([preloading(11, 20)], [])
    assert said(bench.worker(1, opening(0, 0)), Preparing) == [preloading(11, 20)]
    bench.passes(5.0, hearing=RUN_ID)
    assert texts(bench.worker(0, preloading(2, 10))) == ["preloading 12 of 20"]
    assert texts(bench.worker(0, preloading(10, 10))) == ["preloading 20 of 20"]
    # There may be no connections to open.
    assert said(bench.worker(0, opening(0, 0)), Preparing) == [preloading(20, 20)]
    assert said(bench.worker(0, opening(1, 2)), Preparing) == [opening(1, 2)]


def test_a_worker_without_a_preload_has_nothing_said_of_it() -> None:
    bench = AgentBench()
    bench.preparing()
    assert texts(bench.worker(0, preloading(0, 0))) == []


def test_what_all_workers_preloaded_is_told_together() -> None:
    bench = AgentBench()
    bench.preparing()
    for number, took_ns in enumerate((5, 9)):
        part = Preloaded(keys=3, commands=6, bytes_out=100, took_ns=took_ns)
        actions = bench.worker(number, Prepared(processes=1, connections_open=0, preloaded=part))
    [prepared] = said(actions, Prepared)
    assert prepared.preloaded == Preloaded(keys=6, commands=12, bytes_out=200, took_ns=9)


def test_a_prepare_that_is_repeated_spawns_nothing_and_is_answered_again_when_ready() -> None:
    bench = AgentBench()
    bench.preparing()
    assert bench.hears(PREPARE) == []
    for number in range(2):
        bench.worker(number, ready())
    assert said(bench.hears(PREPARE), Prepared) == [Prepared(processes=2, connections_open=2)]


def test_an_agent_that_was_dealt_no_pool_is_ready_and_over_at_once() -> None:
    bench = AgentBench()
    actions = bench.preparing(pools=0)
    assert said(actions, Prepared) == [Prepared(processes=0, connections_open=0)]
    actions = bench.hears(Start(t0_ns=bench.now_ns))
    [final] = said(actions, Final)
    assert (final.next_seq, final.issued, final.drained, final.processes_lost) == (0, 0, True, 0)
    bench.hears(FinalAck())
    assert bench.state is AgentState.IDLE


@pytest.mark.parametrize(("kind", "exit_code"), [(FailureKind.TARGET, 4), (FailureKind.AGENT, 5)])
def test_a_worker_that_cannot_prepare_ends_the_share_and_tells_the_exit_code(kind: FailureKind, exit_code: int) -> None:
    bench = AgentBench(once=True)
    bench.preparing()
    actions = bench.worker(1, Failed(kind=kind, reason="no"))
    assert of_kind(actions, KillWorkers)
    assert said(actions, Failed) == [Failed(kind=kind, reason="no")]
    assert actions[1].envelope.run_id == RUN_ID  # type: ignore[union-attr]
    assert exits(bench.hears(Dismiss(exit_code=exit_code))) == [exit_code]


def test_a_worker_that_dies_before_the_start_ends_the_share() -> None:
    bench = AgentBench()
    bench.prepared()
    actions = bench.do(WorkerExited(0, -9))
    [failed] = said(actions, Failed)
    assert failed.reason == "worker process 0 ended with exit code -9"
    assert bench.state is AgentState.IDLE


def test_an_agent_whose_share_failed_can_be_dealt_another() -> None:
    bench = AgentBench()
    bench.preparing()
    bench.worker(0, BROKEN)
    assert of_kind(bench.hears(PREPARE, run_id=OTHER_RUN_ID), Spawn)


# -- the start instant


@pytest.mark.parametrize("offset_ns", [0, HOUR_NS, -HOUR_NS, 10**18])
def test_the_start_instant_is_converted_to_the_agents_own_clock(offset_ns: int) -> None:
    bench = AgentBench(offset_ns=offset_ns)
    bench.prepared()
    t0_ns = bench.now_ns + NS_PER_S
    assert orders(bench.hears(Start(t0_ns=t0_ns + offset_ns))) == [WorkerStart(t0_ns=t0_ns)]


def test_a_start_that_comes_before_the_clocks_were_compared_is_left_to_be_repeated() -> None:
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


def test_a_late_answer_of_the_coordinator_before_does_not_set_the_clock() -> None:
    bench = AgentBench()
    bench.welcomed(OTHER_RUN_ID)
    bench.do(LinkDown())
    bench.do(LinkUp())
    bench.hears(welcome(), RUN_ID)
    bench.hears(Attached(), RUN_ID)
    wrong_ns = bench.now_ns + HOUR_NS
    bench.hears(HeartbeatReply(sent_ns=bench.now_ns, received_ns=wrong_ns, replied_ns=wrong_ns), OTHER_RUN_ID)
    bench.passes(0.1, hearing=RUN_ID)
    bench.hears(PREPARE)
    for number in range(2):
        bench.worker(number, ready())
    t0_ns = bench.now_ns + NS_PER_S
    assert orders(bench.hears(Start(t0_ns=t0_ns))) == [WorkerStart(t0_ns=t0_ns)]


def test_a_start_that_comes_when_the_run_should_be_over_leaves_the_workers_time_to_say_so() -> None:
    bench = AgentBench()
    bench.prepared()
    actions = bench.hears(Start(t0_ns=bench.now_ns - HOUR_NS))
    assert orders(actions) == [WorkerStart(t0_ns=bench.now_ns - HOUR_NS)]
    assert not of_kind(bench.passes(5.0, hearing=RUN_ID), KillWorkers)


def test_workers_learn_where_a_share_goes_on_that_is_taken_over() -> None:
    bench = AgentBench()
    bench.prepared()
    takeover = TakeOver(from_ns=7 * NS_PER_S, left=(PoolLeft(0, 5), PoolLeft(1, 6)))
    t0_ns = bench.now_ns - 6 * NS_PER_S
    assert orders(bench.hears(Start(t0_ns=t0_ns, takeover=takeover))) == [WorkerStart(t0_ns=t0_ns, takeover=takeover)]


def test_a_second_start_does_not_start_again() -> None:
    bench = bench_in(AgentState.RUNNING)
    assert bench.hears(Start(t0_ns=bench.now_ns)) == []


# -- running, and the end


def test_frames_are_sent_second_by_second_and_final_follows_the_last() -> None:
    bench = AgentBench()
    bench.running()
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


def test_frames_that_are_not_acknowledged_are_sent_again_as_they_were() -> None:
    bench = AgentBench()
    bench.running()
    for number in range(2):
        bench.worker(number, worker_metrics(1, 5, 6))
    sent = bench.frames()
    assert bench.frames() == []
    assert not said(bench.passes(1.9, hearing=RUN_ID), Attach)
    assert bench.frames() == []
    assert said(bench.passes(0.3, hearing=RUN_ID), Attach)
    assert bench.frames() == []
    bench.hears(Attached())
    assert bench.frames() == sent


def test_a_coordinator_that_answers_nothing_for_long_is_sent_no_frame_twice() -> None:
    bench = AgentBench()
    bench.running()
    for number in range(2):
        bench.worker(number, worker_metrics(1, 5, 6))
    sent = bench.frames()
    for _ in range(10):
        bench.passes(2.0)
        assert bench.frames() == []
    bench.hears(FrameAck(next_seq=1))
    bench.hears(Attached())
    assert bench.frames() == sent[1:]


def test_a_new_frame_is_not_sent_twice_because_there_was_none_for_a_while() -> None:
    bench = AgentBench()
    bench.running()
    bench.passes(10.0, hearing=RUN_ID)
    for number in range(2):
        bench.worker(number, worker_metrics(0, 5))
    assert bench.frames()
    bench.passes(1.0, hearing=RUN_ID)
    assert bench.frames() == []


def test_frames_are_sent_again_on_a_new_metrics_link() -> None:
    bench = bench_in(AgentState.DONE)
    bench.do(MetricsLinkDown("reset"))
    assert said(bench.do(MetricsLinkUp()), Attach)
    assert bench.frames() == []
    bench.hears(Attached())
    assert [frame.seq for frame in bench.frames()] == [0]


def test_the_outbox_stays_bounded_without_a_coordinator_and_loses_nothing() -> None:
    bench = AgentBench()
    bench.running()
    seconds = 2 * (WINDOW + CAPACITY)
    frames = []
    for second in range(seconds):
        for number in range(2):
            bench.worker(number, worker_metrics(second, 1))
        frames += bench.frames()
    assert len(bench.session.outbox) == WINDOW + CAPACITY
    while len(bench.session.outbox):
        bench.hears(FrameAck(next_seq=len(frames)))
        frames += bench.frames()
    assert [frame.seq for frame in frames] == list(range(len(frames)))
    assert sum(part.operations for frame in frames for part in frame.intervals) == 2 * seconds


def test_a_worker_that_dies_is_told_and_what_it_reported_still_counts() -> None:
    bench = AgentBench()
    bench.running()
    bench.worker(0, worker_metrics(0, 5))
    actions = bench.do(WorkerExited(0, -9))
    assert said(actions, WorkerLost) == [
        WorkerLost(process=0, exit_code=-9, reason="worker process 0 ended with exit code -9")
    ]
    bench.worker(1, worker_metrics(0, 7))
    bench.worker(1, worker_final(7))
    bench.frames()
    final = said(bench.passes(1.1, hearing=RUN_ID), Final)[-1]
    assert (final.issued, final.counted, final.processes_lost, final.drained) == (12, 12, 1, True)


def test_an_exit_after_the_last_word_is_no_loss() -> None:
    bench = AgentBench()
    bench.running()
    bench.worker(0, worker_final())
    assert bench.do(WorkerExited(0, 0)) == []
    assert bench.do(WorkerExited(0, 0)) == []


def test_what_a_worker_said_before_it_died_is_told_with_its_death() -> None:
    bench = bench_in(AgentState.RUNNING)
    bench.worker(0, Failed(kind=FailureKind.AGENT, reason="out of memory"))
    [lost] = said(bench.do(WorkerExited(0, 1)), WorkerLost)
    assert lost.reason.endswith("exit code 1: out of memory")


def test_a_stop_that_is_sharpened_is_passed_on() -> None:
    bench = bench_in(AgentState.DRAINING)
    assert bench.hears(Stop(drain=True, reason="again")) == []
    assert orders(bench.hears(Stop(drain=False, reason="at once"))) == [WorkerStop(drain=False)]


def test_workers_that_do_not_end_are_killed_and_the_share_is_over() -> None:
    bench = AgentBench()
    bench.running()
    bench.worker(0, worker_metrics(0, 5))
    bench.worker(0, worker_final(5))
    overdue_s = 0.6 + 3.0 + DRAIN_S + OVERTIME_NS / NS_PER_S
    assert not of_kind(bench.passes(overdue_s - 0.1, hearing=RUN_ID), KillWorkers)
    actions = bench.passes(0.3, hearing=RUN_ID)
    assert of_kind(actions, KillWorkers)
    assert [lost.process for lost in said(actions, WorkerLost)] == [1]
    assert bench.state is AgentState.DONE


def test_a_run_without_an_end_in_time_is_not_cut_short() -> None:
    bench = AgentBench()
    bench.running(plan=fleet_plan(duration_s=None, requests=100))
    assert not of_kind(bench.passes(120.0, hearing=RUN_ID), KillWorkers)
    assert bench.state is AgentState.RUNNING


# -- the lease


@pytest.mark.parametrize("state", [AgentState.PREPARING, AgentState.PREPARED])
def test_a_share_that_never_starts_is_given_up_when_the_lease_is_over(state: AgentState) -> None:
    bench = bench_in(state)
    bench.do(LinkDown())
    assert not of_kind(bench.passes(LEASE_S - 0.2), KillWorkers)
    assert of_kind(bench.passes(0.4), KillWorkers)
    assert bench.state is AgentState.IDLE


@pytest.mark.parametrize("is_ready", [False, True])
def test_a_share_that_was_given_up_in_its_preload_is_not_begun_again(is_ready: bool) -> None:
    bench = AgentBench()
    bench.preparing()
    bench.worker(0, preloading(0, 10))
    for number in range(2 if is_ready else 0):
        bench.worker(number, ready())
    bench.passes(LEASE_S + 1.5)
    assert bench.state is AgentState.IDLE
    order = Prepare(assignment=assignment(bench.plan, 2), plan_hash="hash")
    # As often as it is asked: the answer may be lost on its way.
    for _ in range(2):
        actions = bench.hears(order)
        assert not of_kind(actions, Spawn)
        [failed] = said(actions, Failed)
        assert failed.reason == "it gave its share up in the preload: no word from its coordinator for 30 s"
    assert of_kind(bench.hears(order, run_id=OTHER_RUN_ID), Spawn)


def test_a_share_that_failed_in_its_preload_says_so_again() -> None:
    bench = AgentBench()
    bench.preparing()
    bench.worker(0, preloading(0, 10))
    [failed] = said(bench.worker(0, Failed(kind=FailureKind.TARGET, reason="it is not there")), Failed)
    assert said(bench.hears(Prepare(assignment=assignment(bench.plan, 2), plan_hash="hash")), Failed) == [failed]


def test_a_share_that_was_given_up_before_anything_was_written_may_be_begun_again() -> None:
    bench = AgentBench()
    bench.preparing()
    bench.worker(0, opening(1, 10))
    bench.passes(LEASE_S + 1.5)
    assert of_kind(bench.hears(Prepare(assignment=assignment(bench.plan, 2), plan_hash="hash")), Spawn)


def test_a_running_agent_drains_when_the_lease_is_over_and_keeps_its_frames() -> None:
    bench = AgentBench()
    bench.running(plan=fleet_plan(duration_s=None, requests=100))
    for number in range(2):
        bench.worker(number, worker_metrics(0, 5))
    bench.do(LinkDown())
    assert orders(bench.passes(LEASE_S - 0.2)) == []
    assert orders(bench.passes(0.4)) == [WorkerStop(drain=True)]
    assert bench.state is AgentState.DRAINING
    assert len(bench.session.outbox) == 1


def test_the_lease_is_the_plans() -> None:
    bench = AgentBench()
    bench.running(plan=fleet_plan(duration_s=None, requests=100, lease_s=4.0))
    bench.do(LinkDown())
    assert orders(bench.passes(4.2)) == [WorkerStop(drain=True)]


def test_heartbeats_keep_the_lease() -> None:
    bench = AgentBench()
    bench.running(plan=fleet_plan(duration_s=None, requests=100))
    assert orders(bench.passes(3 * LEASE_S, hearing=RUN_ID)) == []


def renewals(actions: list[Action]) -> list[int]:
    return [action.until_ns for action in of_kind(actions, RenewLease)]


def test_worker_processes_have_a_lease_from_the_beginning() -> None:
    bench = AgentBench()
    actions = bench.preparing()
    assert renewals(actions) == [bench.now_ns + round(LEASE_S * NS_PER_S)]
    assert [type(action) for action in actions if isinstance(action, Spawn | RenewLease)] == [Spawn, RenewLease]


@pytest.mark.parametrize("state", [AgentState.PREPARING, AgentState.PREPARED, AgentState.RUNNING])
def test_worker_processes_are_renewed_about_as_often_as_the_coordinator_is_heard(state: AgentState) -> None:
    bench = bench_in(state)
    told = renewals(bench.passes(10.0, hearing=RUN_ID))
    assert 10 <= len(told) <= 20
    assert told == sorted(set(told))
    assert bench.now_ns + (LEASE_S - 1.5) * NS_PER_S < told[-1] <= bench.now_ns + LEASE_S * NS_PER_S


def test_worker_processes_get_no_more_time_than_the_agent_has_itself() -> None:
    bench = bench_in(AgentState.RUNNING)
    bench.passes(3.0, hearing=RUN_ID)
    bench.do(LinkDown())
    # What was heard last is passed on, and nothing after it.
    [last, *more] = renewals(bench.passes(1.0)) or [0]
    assert not more
    assert last <= bench.now_ns + (LEASE_S - 1.0) * NS_PER_S
    assert renewals(bench.passes(LEASE_S + 5.0)) == []


@pytest.mark.parametrize("state", [AgentState.IDLE, AgentState.DRAINING, AgentState.DONE])
def test_nobody_is_renewed_without_a_load(state: AgentState) -> None:
    assert renewals(bench_in(state).passes(5.0, hearing=RUN_ID)) == []


def test_time_in_which_the_machine_was_suspended_counts_towards_the_lease() -> None:
    bench = AgentBench()
    bench.running(plan=fleet_plan(duration_s=None, requests=100))
    actions = bench.do(Tick(suspended_ns=round(LEASE_S * NS_PER_S) - NS_PER_S))
    assert orders(actions) == []
    actions = bench.do(Tick(suspended_ns=2 * NS_PER_S))
    assert orders(actions) == [WorkerStop(drain=True)]
    assert renewals(actions) == []


def fenced_reason(bench: AgentBench) -> str:
    """Both worker processes end by themselves, because they were not renewed; what the coordinator is told of it."""
    fenced = msgspec.structs.replace(worker_final(), fenced=True)
    actions = [action for number in range(2) for action in bench.worker(number, fenced)]
    assert bench.state is AgentState.DONE
    assert len(of_kind(actions, Say)) == 1
    bench.frames()
    [final] = said([*actions, *bench.passes(1.2)], Final)[:1]
    return final.reason


def test_an_agent_that_was_stopped_says_so_when_its_workers_have_fenced_themselves() -> None:
    bench = AgentBench()
    bench.running()
    bench.now_ns += 40 * NS_PER_S
    # What the coordinator had sent before is read first.
    bench.hears(HeartbeatReply(sent_ns=1, received_ns=1, replied_ns=1))
    assert fenced_reason(bench) == "its own process did not run for 40.0 s"


def test_an_agent_that_was_stopped_says_so_also_when_its_workers_end_later() -> None:
    bench = AgentBench()
    bench.running()
    bench.now_ns += 40 * NS_PER_S
    bench.hears(HeartbeatReply(sent_ns=1, received_ns=1, replied_ns=1))
    bench.passes(3.0, hearing=RUN_ID)
    assert fenced_reason(bench) == "its own process did not run for 40.0 s"


def test_workers_that_are_quicker_than_their_agent_to_end_with_the_lease_blame_the_coordinators_silence() -> None:
    bench = AgentBench()
    bench.running()
    bench.passes(LEASE_S - 0.2)
    assert fenced_reason(bench) == "no word from its coordinator for 30 s"


def test_a_worker_that_did_not_run_itself_is_named() -> None:
    bench = AgentBench()
    bench.running()
    bench.passes(5.0, hearing=RUN_ID)
    assert fenced_reason(bench) == "worker process 0 did not run for longer than the lease of 30 s"


def test_an_answer_that_comes_late_renews_the_lease_only_from_when_it_was_asked_for() -> None:
    bench = AgentBench()
    bench.running(plan=fleet_plan(duration_s=None, requests=100))
    asked_ns = bench.now_ns
    bench.passes(20.0)
    bench.hears(HeartbeatReply(sent_ns=asked_ns, received_ns=asked_ns, replied_ns=asked_ns))
    assert orders(bench.passes(LEASE_S - 20.2)) == []
    assert orders(bench.passes(0.4)) == [WorkerStop(drain=True)]


@pytest.mark.parametrize("message", [FrameAck(next_seq=0), welcome(), Start(t0_ns=0)])
def test_only_the_answer_to_a_heartbeat_renews_the_lease(message: CoordinatorMessage) -> None:
    bench = AgentBench()
    bench.running(plan=fleet_plan(duration_s=None, requests=100))
    bench.passes(LEASE_S - 1.0)
    bench.hears(message)
    assert WorkerStop(drain=True) in orders(bench.passes(1.2))


@pytest.mark.parametrize("ahead_s", [0.1, 10**9])
def test_an_answer_to_a_heartbeat_that_was_not_sent_yet_renews_nothing(ahead_s: float) -> None:
    bench = AgentBench()
    bench.running(plan=fleet_plan(duration_s=None, requests=100))
    bench.passes(LEASE_S - 1.0)
    sent_ns = bench.now_ns + round(ahead_s * NS_PER_S)
    bench.hears(HeartbeatReply(sent_ns=sent_ns, received_ns=1, replied_ns=1))
    assert orders(bench.passes(1.2)) == [WorkerStop(drain=True)]


def test_an_answer_to_a_heartbeat_from_before_the_machine_was_suspended_renews_nothing() -> None:
    bench = AgentBench()
    bench.running(plan=fleet_plan(duration_s=None, requests=100))
    asked_ns = bench.now_ns
    bench.now_ns += NS_PER_S
    bench.do(Tick(suspended_ns=round((LEASE_S - 2.0) * NS_PER_S)))
    bench.hears(HeartbeatReply(sent_ns=asked_ns, received_ns=asked_ns, replied_ns=asked_ns))
    assert orders(bench.passes(1.2)) == [WorkerStop(drain=True)]


@pytest.mark.parametrize("state", [AgentState.PREPARING, AgentState.PREPARED, AgentState.RUNNING])
def test_the_coordinator_of_another_run_does_not_keep_the_lease(state: AgentState) -> None:
    bench = bench_in(state)
    bench.do(LinkDown())
    bench.welcomed(OTHER_RUN_ID)
    bench.passes(LEASE_S + 0.2, hearing=OTHER_RUN_ID)
    assert bench.state is not state


def test_results_that_are_set_aside_are_given_up_when_nobody_comes_back_for_them() -> None:
    bench = bench_in(AgentState.DONE)
    bench.do(LinkDown())
    bench.welcomed(OTHER_RUN_ID)
    assert bench.state is AgentState.IDLE
    bench.passes(HOLD_LEASES * LEASE_S - 1.0, hearing=OTHER_RUN_ID, every_s=0.5)
    assert len(bench.session.kept) == 1
    assert texts(bench.passes(3.0, hearing=OTHER_RUN_ID)) == [
        "nobody came back for the results of run run-1: they are lost"
    ]
    assert not bench.session.kept


def test_an_agent_whose_coordinator_was_killed_serves_another_run_and_then_delivers_what_it_kept() -> None:
    bench = AgentBench()
    bench.done()
    [lost] = texts(bench.do(LinkDown()))
    assert lost.endswith("keeping the results of run run-1 for 300 s: `coordinator start --resume run-1` collects them")
    actions = bench.welcomed(OTHER_RUN_ID)
    assert {hello.run_id for hello in said(actions, Hello)} == {RUN_ID}
    assert any(text.startswith("another run's coordinator answers; keeping") for text in texts(actions))
    assert not bench.frames()  # they are none of its business
    actions = bench.hears(PREPARE, run_id=OTHER_RUN_ID)
    assert of_kind(actions, Spawn)
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


def test_results_of_several_runs_are_kept_each_for_its_own_coordinator() -> None:
    bench = bench_in(AgentState.DONE)
    bench.welcomed(OTHER_RUN_ID)
    bench.hears(PREPARE, run_id=OTHER_RUN_ID)
    for number in range(2):
        bench.worker(number, ready())
    bench.hears(Start(t0_ns=bench.now_ns), OTHER_RUN_ID)
    for number in range(2):
        bench.worker(number, worker_final(7))
    bench.welcomed("run-3")
    assert str(bench.session.kept) == f"{RUN_ID}, {OTHER_RUN_ID}"
    bench.welcomed()
    assert (bench.session.run_id, str(bench.session.kept)) == (RUN_ID, OTHER_RUN_ID)
    bench.welcomed(OTHER_RUN_ID)  # before the first one has taken everything
    assert (bench.session.run_id, str(bench.session.kept)) == (OTHER_RUN_ID, RUN_ID)


def test_the_results_of_so_many_runs_are_kept_and_no_more() -> None:
    bench = AgentBench()
    for number in range(MOST_RUNS + 2):
        run_id = f"run-{number}"
        bench.welcomed(run_id)
        bench.hears(PREPARE, run_id=run_id)
        for process in range(2):
            bench.worker(process, ready())
        bench.hears(Start(t0_ns=bench.now_ns), run_id)
        for process in range(2):
            bench.worker(process, worker_final())
    bench.welcomed("run-last")
    assert str(bench.session.kept) == ", ".join(f"run-{number}" for number in range(2, MOST_RUNS + 2))


def test_an_agent_for_one_run_keeps_its_results_and_serves_no_other_run() -> None:
    bench = AgentBench(once=True)
    bench.done()
    bench.welcomed(OTHER_RUN_ID)
    assert bench.state is AgentState.DONE
    [failed] = said(bench.hears(PREPARE, run_id=OTHER_RUN_ID), Failed)
    assert "resume that run" in failed.reason


def test_an_agent_that_keeps_results_does_not_leave_because_no_coordinator_answers() -> None:
    bench = AgentBench(wait_ns=5 * NS_PER_S)
    bench.done()
    bench.welcomed(OTHER_RUN_ID)
    bench.do(LinkDown())
    assert not exits(bench.passes(20.0, every_s=0.5))
    assert exits(bench.passes(HOLD_LEASES * LEASE_S, every_s=0.5))[:1] == [5]


@pytest.mark.parametrize("works", [False, True])
def test_an_agent_that_leaves_with_kept_results_names_their_run(works: bool) -> None:
    bench = bench_in(AgentState.DONE)
    bench.welcomed(OTHER_RUN_ID)
    if works:
        bench.hears(PREPARE, run_id=OTHER_RUN_ID)
        for number in range(2):
            bench.worker(number, ready())
        bench.hears(Start(t0_ns=bench.now_ns), OTHER_RUN_ID)
    actions = bench.do(Terminated())
    if works:
        for number in range(2):
            bench.worker(number, worker_final())
        actions = bench.hears(FinalAck(), OTHER_RUN_ID)
    [leaving] = of_kind(actions, Exit)
    assert (leaving.code, leaving.text) == (5, "left with results that no coordinator took, of run run-1")


def test_an_agent_that_ends_its_load_without_a_coordinator_says_how_long_it_keeps_the_results() -> None:
    bench = bench_in(AgentState.RUNNING)
    bench.do(LinkDown())
    for number in range(2):
        bench.worker(number, worker_metrics(0))
    said_now = [text for number in range(2) for text in texts(bench.worker(number, worker_final()))]
    assert said_now == ["keeping the results of run run-1 for 300 s: `coordinator start --resume run-1` collects them"]


def test_a_finished_run_is_given_up_when_nobody_comes_back_for_it() -> None:
    bench = AgentBench(once=True)
    bench.done()
    bench.do(LinkDown())
    assert exits(bench.passes(HOLD_LEASES * LEASE_S + 1.0, every_s=0.5)) == [5]


# -- the end of the coordinator


@pytest.mark.parametrize("state", [AgentState.PREPARING, AgentState.PREPARED])
def test_an_agent_lets_go_of_a_run_that_its_coordinator_called_off(state: AgentState) -> None:
    bench = bench_in(state)
    actions = bench.hears(Dismiss(exit_code=5))
    assert of_kind(actions, KillWorkers)
    assert bench.state is AgentState.IDLE
    assert len(bench.session.outbox) == 0


@pytest.mark.parametrize("state", [AgentState.RUNNING, AgentState.DRAINING])
def test_the_load_of_a_run_that_its_coordinator_has_closed_stops_at_once(state: AgentState) -> None:
    bench = bench_in(state)
    actions = bench.hears(Dismiss(exit_code=5))
    assert orders(actions) == [WorkerStop(drain=False)]
    assert bench.state is AgentState.DRAINING
    assert orders(bench.hears(Dismiss(exit_code=5))) == []


def closed(**identity: object) -> AgentBench:
    """An agent with results that its coordinator closed the run without; that coordinator is gone."""
    bench = AgentBench(**identity)  # type: ignore[arg-type]
    bench.done()
    [text] = texts(bench.hears(Dismiss(exit_code=5)))
    kept = "keeping the results of run run-1 for 300 s: `coordinator start --resume run-1` collects them"
    assert text == f"its coordinator closed the run without them; {kept}"
    bench.do(LinkDown())
    return bench


@pytest.mark.parametrize("once", [False, True])
def test_results_of_a_closed_run_are_kept_and_go_to_a_coordinator_that_resumes_it(once: bool) -> None:
    bench = closed(once=once)
    bench.passes(100.0, every_s=0.5)
    [hello] = said(bench.do(LinkUp()), Hello)
    assert (hello.state, hello.run_id, hello.frames_held) == (AgentState.DONE, RUN_ID, 1)
    bench.hears(welcome())
    bench.do(MetricsLinkUp())
    bench.hears(Attached())
    assert [frame.seq for frame in bench.frames()] == [0]
    assert said(bench.passes(1.2, hearing=RUN_ID), Final)
    assert exits(bench.hears(FinalAck())) == ([0] if once else [])
    assert bench.state is AgentState.IDLE


def test_results_of_a_closed_run_do_not_keep_an_agent_from_the_next_run() -> None:
    bench = closed()
    bench.welcomed(OTHER_RUN_ID)
    beats = said(bench.passes(2.0, hearing=OTHER_RUN_ID), Heartbeat)
    assert {beat.state for beat in beats} == {AgentState.IDLE}
    actions = bench.hears(PREPARE, run_id=OTHER_RUN_ID)
    assert of_kind(actions, Spawn)
    assert (bench.session.run_id, len(bench.session.kept)) == (OTHER_RUN_ID, 1)


def test_results_of_a_closed_run_are_kept_no_longer_than_it_is_useful() -> None:
    bench = closed(once=True)
    assert exits(bench.passes(HOLD_LEASES * LEASE_S + 1.0, every_s=0.5)) == [5]


def test_results_are_kept_as_long_after_the_agent_itself_was_stopped() -> None:
    bench = bench_in(AgentState.RUNNING)
    bench.now_ns += round(HOLD_LEASES * LEASE_S * NS_PER_S) + NS_PER_S
    for number in range(2):
        bench.worker(number, worker_final())
    bench.passes(1.0)
    assert bench.state is AgentState.DONE


def test_an_agent_that_is_terminated_with_results_of_a_closed_run_leaves_at_once_and_says_so() -> None:
    bench = closed()
    actions = bench.do(Terminated())
    assert [(action.code, "run-1" in action.text) for action in of_kind(actions, Exit)] == [(5, True)]


def test_a_terminated_agent_whose_run_is_closed_leaves_at_once() -> None:
    bench = bench_in(AgentState.RUNNING)
    bench.do(Terminated())
    actions = bench.hears(Dismiss(exit_code=5))
    assert of_kind(actions, KillWorkers)
    assert exits(actions) == [5]


def test_an_agent_that_stays_waits_for_the_next_run() -> None:
    bench = AgentBench()
    bench.welcomed()
    assert of_kind(bench.hears(Dismiss(exit_code=0)), Say)
    assert of_kind(bench.hears(PREPARE, run_id=OTHER_RUN_ID), Spawn)


def test_an_agent_for_one_run_leaves_after_it() -> None:
    bench = AgentBench(once=True)
    bench.done()
    actions = bench.hears(FinalAck())
    assert said(actions, Bye)
    assert exits(actions) == [0]


def test_an_agent_for_one_run_that_was_not_needed_leaves_with_that_run_and_says_so() -> None:
    bench = AgentBench(once=True)
    bench.welcomed()
    bench.hears(StandBy())
    [leaving] = of_kind(bench.hears(Dismiss(exit_code=5)), Exit)
    assert leaving == Exit(0, "run run-1 is over (exit code 5), and this agent had no share of it")


def test_an_agent_for_one_run_whose_share_was_called_off_says_that_once() -> None:
    bench = AgentBench(once=True)
    bench.prepared()
    actions = bench.hears(Dismiss(exit_code=5))
    assert texts(actions) == ["run run-1 is over for this agent: the coordinator called the run off"]
    assert of_kind(actions, Exit) == [Exit(0)]


# -- SIGTERM


@pytest.mark.parametrize("state", [AgentState.IDLE, AgentState.PREPARING, AgentState.PREPARED])
def test_an_agent_without_load_leaves_at_once_when_it_is_terminated(state: AgentState) -> None:
    bench = bench_in(state)
    actions = bench.do(Terminated())
    assert said(actions, Bye) == [Bye(reason="terminated")]
    assert exits(actions) == [0]
    assert bool(of_kind(actions, KillWorkers)) == (state is not AgentState.IDLE)


def test_an_agent_under_load_drains_and_leaves_when_its_results_are_safe() -> None:
    bench = bench_in(AgentState.RUNNING)
    assert orders(bench.do(Terminated())) == [WorkerStop(drain=True)]
    actions = [action for number in range(2) for action in bench.worker(number, worker_final())]
    assert [final.reason for final in said(actions, Final)] == ["this agent was terminated"]
    actions = bench.hears(FinalAck())
    assert said(actions, Bye) == [Bye(reason="terminated")]
    assert exits(actions) == [0]


def test_a_terminated_agent_kills_stuck_workers_and_delivers_what_there_is_before_it_leaves() -> None:
    bench = bench_in(AgentState.RUNNING)
    bench.do(Terminated())
    bench.worker(0, worker_metrics(0, 5))
    actions = bench.passes(DRAIN_S + OVERTIME_NS / NS_PER_S + 0.2, hearing=RUN_ID)
    assert of_kind(actions, KillWorkers)
    assert exits(actions) == []
    assert bench.state is AgentState.DONE
    assert bench.frames()
    assert said(bench.passes(1.1, hearing=RUN_ID), Final)
    assert exits(bench.hears(FinalAck())) == [0]


def test_a_terminated_agent_leaves_even_if_nobody_takes_its_results() -> None:
    bench = bench_in(AgentState.DONE)
    bench.do(Terminated())
    bench.do(LinkDown())
    assert exits(bench.passes(DRAIN_S + (OVERTIME_NS + GOODBYE_NS) / NS_PER_S + 1.0))[:1] == [5]


def test_an_agent_that_is_terminated_with_results_says_how_long_it_keeps_them_and_that_they_are_lost() -> None:
    bench = bench_in(AgentState.DONE)
    [waiting] = [say.text for say in of_kind(bench.do(Terminated()), Say)]
    seconds = DRAIN_S + (OVERTIME_NS + GOODBYE_NS) / NS_PER_S
    assert waiting == (
        f"waiting {seconds:.0f} s at most for a coordinator to take the results of run {RUN_ID}; "
        "interrupt again to leave without them"
    )
    [left] = of_kind(bench.do(Terminated()), Exit)
    assert (left.code, left.text) == (143, f"left at once: what no coordinator has of run {RUN_ID} is lost")


def test_a_terminated_agent_whose_run_is_called_off_leaves() -> None:
    bench = bench_in(AgentState.RUNNING)
    bench.do(Terminated())
    assert exits(bench.hears(Dismiss(exit_code=5))) == [5]


def test_a_second_signal_ends_an_agent_at_once() -> None:
    bench = bench_in(AgentState.RUNNING)
    bench.do(Terminated())
    actions = bench.do(Terminated())
    assert of_kind(actions, KillWorkers)
    assert exits(actions) == [143]


# -- heartbeats


def test_heartbeats_come_quickly_until_the_clocks_are_compared_and_then_each_second() -> None:
    bench = AgentBench()
    bench.do(LinkUp())
    bench.hears(welcome())
    assert len(said(bench.passes(1.0, hearing=RUN_ID), Heartbeat)) > 5
    assert len(said(bench.passes(10.0, hearing=RUN_ID), Heartbeat)) in (9, 10, 11)


def test_a_heartbeat_tells_state_clock_and_health() -> None:
    bench = AgentBench(offset_ns=HOUR_NS)
    bench.done()
    bench.now_ns += NS_PER_S
    [beat] = said(bench.do(Tick(cpu_percent=50.0, cpu_percent_busiest=40.0, lag_ms=3.0)), Heartbeat)
    assert beat.state is AgentState.DONE
    assert beat.offset_ns == HOUR_NS
    assert beat.rtt_ns == 0
    assert (beat.cpu_percent, beat.cpu_percent_busiest, beat.lag_ms) == (50.0, 40.0, 3.0)
    assert (beat.frames_held, beat.processes_alive) == (1, 0)


def test_hello_tells_what_is_held_of_a_run() -> None:
    bench = bench_in(AgentState.DONE)
    bench.do(LinkDown())
    [hello] = said(bench.do(LinkUp()), Hello)
    assert (hello.state, hello.run_id, hello.next_seq, hello.frames_held) == (AgentState.DONE, RUN_ID, 0, 1)


def test_no_order_reaches_workers_but_start_and_stop() -> None:
    bench = AgentBench()
    assert orders(bench.prepared()) == []
    assert of_kind(bench.hears(Start(t0_ns=bench.now_ns)), OrderWorkers)


# -- the metrics link


def test_an_agent_is_prepared_once_its_metrics_connection_has_been_answered() -> None:
    bench = AgentBench()
    bench.welcomed(attached=False)
    bench.hears(PREPARE)
    assert [said(bench.worker(number, ready()), Prepared) for number in range(2)] == [[], []]
    assert said(bench.do(MetricsLinkUp()), Attach) == [Attach(secret=bench.identity.secret, connection=1)]
    assert bench.state is AgentState.PREPARING
    assert said(bench.hears(Attached()), Prepared)
    assert bench.state is AgentState.PREPARED


@pytest.mark.parametrize(
    ("event", "cause"),
    [
        (MetricsLinkDown("its handshake is refused"), "its handshake is refused"),
        (MetricsLinkUp(), "connected, but the coordinator does not answer"),
        (Tick(), "no TCP connection"),
    ],
)
def test_an_agent_whose_metrics_connection_does_not_get_through_fails_before_the_start(
    event: Event, cause: str
) -> None:
    bench = AgentBench()
    bench.welcomed(attached=False)
    bench.hears(PREPARE)
    bench.do(event)
    actions = bench.passes(PROVE_WITHIN_NS / NS_PER_S + 1, hearing=RUN_ID)
    [failed] = said(actions, Failed)
    assert failed.reason == (
        f"its metrics connection to tcp://127.0.0.1:5555 does not get through ({cause}), "
        "although its control connection does"
    )
    assert bench.state is AgentState.IDLE


def test_a_metrics_connection_that_got_through_once_may_be_lost_while_keys_are_preloaded() -> None:
    bench = AgentBench()
    bench.welcomed()
    bench.hears(PREPARE)
    bench.do(MetricsLinkDown("no TCP connection"))
    assert not said(bench.passes(60.0, hearing=RUN_ID), Failed)
    assert [said(bench.worker(number, ready()), Prepared) != [] for number in range(2)] == [False, True]


def test_an_agent_that_both_links_fail_waits_for_the_coordinator() -> None:
    bench = AgentBench()
    bench.welcomed(attached=False)
    bench.hears(PREPARE)
    bench.do(LinkDown())
    assert not said(bench.passes(PROVE_WITHIN_NS / NS_PER_S + 1), Failed)


def test_an_attached_of_the_coordinator_before_proves_nothing() -> None:
    bench = AgentBench()
    bench.welcomed(attached=False)
    bench.do(MetricsLinkUp())
    bench.hears(Attached(), OTHER_RUN_ID)
    assert said(bench.passes(2.0), Attach)


# -- orders that make no sense


def impossible() -> Prepare:
    plan = msgspec.structs.replace(fleet_plan(), pools=(Pools(threads_per_pool=10**9),))
    return Prepare(assignment=Assignment(plan=plan, pools=dealt(1), threads_total=10**9), plan_hash="")


def test_an_impossible_share_is_refused_in_one_line_and_the_agent_waits_for_the_next_coordinator() -> None:
    bench = AgentBench()
    bench.welcomed()
    actions = bench.hears(impossible())
    [failed] = said(actions, Failed)
    [line] = texts(actions)
    assert "expected at most 1000000 worker threads" in failed.reason
    assert line == f"cannot take part in run {RUN_ID}: {failed.reason}"
    assert (bench.state, of_kind(actions, Spawn)) == (AgentState.IDLE, [])
    bench.running()
    assert bench.state is AgentState.RUNNING


@pytest.mark.parametrize("t0_ns", [2**62, -(2**62), 0])
def test_a_start_in_another_age_ends_the_share_and_not_the_agent(t0_ns: int) -> None:
    bench = AgentBench()
    bench.now_ns = 10**6 * NS_PER_S
    bench.prepared()
    actions = bench.hears(Start(t0_ns=t0_ns))
    [failed] = said(actions, Failed)
    assert "expected a start instant" in failed.reason
    assert len(of_kind(actions, KillWorkers)) == 1
    assert bench.state is AgentState.IDLE


def test_a_system_that_starts_no_process_fails_the_share_and_not_the_agent() -> None:
    bench = AgentBench()
    bench.preparing()
    actions = bench.do(SpawnFailed("cannot start 2 worker processes: no memory"))
    assert [failed.reason for failed in said(actions, Failed)] == ["cannot start 2 worker processes: no memory"]
    assert bench.state is AgentState.IDLE


@pytest.mark.parametrize(
    "reply",
    [
        HeartbeatReply(sent_ns=0, received_ns=2**62, replied_ns=2**62),
        HeartbeatReply(sent_ns=0, received_ns=-(2**62), replied_ns=-(2**62)),
        HeartbeatReply(sent_ns=-(2**62), received_ns=0, replied_ns=0),
        HeartbeatReply(sent_ns=0, received_ns=2**62, replied_ns=0),
        HeartbeatReply(sent_ns=2**62, received_ns=0, replied_ns=0),
    ],
)
def test_stamps_that_no_clock_has_do_not_change_what_is_known_of_the_clock(reply: HeartbeatReply) -> None:
    bench = AgentBench(offset_ns=5 * NS_PER_S)
    bench.welcomed()
    bench.now_ns += 100 * NS_PER_S
    for _ in range(20):
        bench.hears(reply)
    [heartbeat] = said(bench.do(Tick()), Heartbeat)
    assert heartbeat.offset_ns == 5 * NS_PER_S


def test_what_a_coordinator_says_is_said_in_one_printable_line_of_bounded_length() -> None:
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


def test_an_agent_of_many_worker_processes_reports_its_progress_in_bounded_numbers() -> None:
    bench = AgentBench(processes=64)
    bench.preparing(64)
    told = []
    for step in range(100):
        bench.now_ns += NS_PER_S // 10
        told += [said(bench.worker(number, opening(step, 100)), Preparing) for number in range(64)]
    assert sum(map(len, told)) < 300
    last = [said(bench.worker(number, opening(100, 100)), Preparing) for number in range(64)]
    assert last[-1] == [opening(6_400, 6_400)]


# -- the pace of a large fleet


def in_a_large_fleet() -> AgentBench:
    """Running, and told to report every four seconds, with a heartbeat every two."""
    bench = AgentBench()
    bench.welcomed()
    pace = Pace(frame_s=4, heartbeat_s=2)
    bench.hears(Welcome(protocol=PROTOCOL_MAX, agent_id="web1", pace=pace))
    bench.hears(Attached())
    bench.passes(1.0, hearing=RUN_ID)
    bench.hears(Prepare(assignment=assignment(fleet_plan(duration_s=3600.0), 1), plan_hash="hash"))
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
    wholes = [whole for frame in frames for whole in frame.intervals]
    told = [number for whole in wholes for number in range(whole.first, whole.last + 1)]
    assert told == list(range(frames[-1].through + 1))
    assert sum(whole.operations for whole in wholes) == 3 * len(told)
    assert all(second.ok == 3 for whole in wholes for second in whole.seconds)
    assert len(wholes[-1].seconds) == 4


def test_a_frame_leaves_when_its_period_is_over_and_not_with_the_next_second() -> None:
    bench = in_a_large_fleet()
    bench.worker(0, worker_metrics(0, 3))
    for _ in range(50):
        bench.passes(0.1, hearing=RUN_ID)
        if frames := bench.frames():
            break
    assert [frame.through for frame in frames] == [0]


def test_an_agent_of_a_large_fleet_sends_fewer_heartbeats_while_it_runs_and_keeps_its_lease() -> None:
    bench = in_a_large_fleet()
    bench.passes(2.0, hearing=RUN_ID)
    assert len(said(bench.passes(40.0, hearing=RUN_ID), Heartbeat)) in (19, 20, 21)
    assert bench.state is AgentState.RUNNING


def test_the_last_frames_of_a_large_fleet_are_spread_over_a_second() -> None:
    bench = in_a_large_fleet()
    bench.worker(0, worker_metrics(0, 3))
    actions = bench.worker(0, worker_final(3))
    assert bench.state is AgentState.DONE
    assert not bench.frames()
    assert not said(actions, Final)
    bench.passes(1.0, hearing=RUN_ID)
    assert [frame.through for frame in bench.frames()] == [0]
    assert said(bench.passes(1.0, hearing=RUN_ID), Final)
