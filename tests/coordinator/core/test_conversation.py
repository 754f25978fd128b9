from __future__ import annotations

import msgspec
import pytest

from common.protocol.messages import (
    PROTOCOL_MAX,
    AgentState,
    Attach,
    Attached,
    Bye,
    Failed,
    FailureKind,
    FrameAck,
    HeartbeatReply,
    MetricsFrame,
    Refused,
    Stop,
    Welcome,
    WorkerLost,
)
from common.units import NS_PER_S
from coordinator.core.actions import Note, Send, Write
from coordinator.core.member import MemberState
from coordinator.journal.frame_checks import AHEAD_S
from coordinator.journal.records import AgentEnded, AgentOutcome, FrameAccepted, WorkerDied
from tests.support.protocol import (
    OTHER_RUN_ID,
    RUN_ID,
    RunBench,
    acknowledged,
    final,
    heartbeat,
    hello,
    interval,
    metrics_id,
    of_kind,
    ready,
    said,
)


def written(actions: list[object]) -> list[object]:
    return [write.record for write in of_kind(actions, Write)]


def running() -> RunBench:
    bench = RunBench()
    bench.running("web1")
    bench.passes(5.0, "web1")
    return bench


# -- hello


def test_a_welcome_has_the_name_of_the_agent() -> None:
    bench = RunBench(expected=2)
    assert said(bench.says("a", hello("web1")), Welcome) == [Welcome(protocol=PROTOCOL_MAX, agent_id="web1")]


def test_two_agents_with_one_name_get_different_ids() -> None:
    bench = RunBench(expected=3)
    names = [said(bench.says(key, hello("web1")), Welcome)[0].agent_id for key in ("a", "b", "c")]
    assert names == ["web1", "web1-2", "web1-3"]


def test_agents_without_a_name_are_named_after_their_host() -> None:
    bench = RunBench(expected=3)
    hosts = {"a": "load-7.example", "b": "load-7.example", "c": ""}
    names = [said(bench.says(key, hello("", host=host)), Welcome)[0].agent_id for key, host in hosts.items()]
    assert names == ["load-7.example", "load-7.example-2", "agent"]


def test_a_repeated_hello_is_the_same_agent_on_a_new_link() -> None:
    bench = RunBench(expected=2)
    bench.says("a", hello("web1"), routing_id=b"old")
    actions = bench.says("a", hello("web1"), routing_id=b"new")
    [send] = of_kind(actions, Send)
    assert send.routing_id == b"new"
    assert said(actions, Welcome)[0].agent_id == "web1"
    assert len(bench.run.state.registry) == 1


def test_a_restarted_agent_gets_its_name_back_when_the_old_process_is_silent() -> None:
    bench = RunBench(expected=2)
    bench.says("before", hello("web1"))
    bench.passes(10.0)
    assert said(bench.says("after", hello("web1")), Welcome)[0].agent_id == "web1"
    assert bench.run.state.registry.find("before") is None


def test_an_agent_whose_name_was_given_away_gets_another_name() -> None:
    bench = RunBench(expected=3)
    bench.says("before", hello("web1"))
    bench.passes(10.0)
    bench.says("after", hello("web1"))
    assert said(bench.says("before", hello("web1")), Welcome)[0].agent_id == "web1-2"


@pytest.mark.parametrize(("lowest", "highest"), [(1, 1), (PROTOCOL_MAX + 1, 9), (-3, 0), (5, 1)])
def test_an_agent_without_a_common_protocol_version_is_refused_with_the_reason(lowest: int, highest: int) -> None:
    bench = RunBench()
    actions = bench.says("a", hello("web1", protocol_min=lowest, protocol_max=highest))
    [refused] = said(actions, Refused)
    assert f"protocol {lowest} to {highest}" in refused.reason
    assert "install the same release" in refused.reason
    assert len(bench.run.state.registry) == 0


def test_an_agent_with_an_overlapping_range_of_versions_is_welcome() -> None:
    bench = RunBench()
    [welcome] = said(bench.says("a", hello("web1", protocol_min=0, protocol_max=9)), Welcome)
    assert welcome.protocol == PROTOCOL_MAX


def test_an_agent_with_an_impossible_number_of_processes_is_refused() -> None:
    bench = RunBench()
    [refused] = said(bench.says("a", hello("web1", processes=10**9)), Refused)
    assert "processes" in refused.reason
    assert len(bench.run.state.registry) == 0


def test_a_name_can_neither_move_the_cursor_nor_fill_the_screen() -> None:
    bench = RunBench(expected=2)
    actions = bench.says("a", hello("\x1b[2J" + "x" * 1000, host="h\nost" * 10))
    agent_id = said(actions, Welcome)[0].agent_id
    assert agent_id.isprintable()
    assert len(agent_id) <= 64
    assert all(note.text.isprintable() and len(note.text) < 300 for note in of_kind(actions, Note))


# -- heartbeats


def test_the_answer_to_a_heartbeat_has_the_timestamps_of_both_sides() -> None:
    bench = RunBench(expected=2)
    bench.hello("web1")
    reply = HeartbeatReply(sent_ns=77, received_ns=bench.now_ns, replied_ns=bench.now_ns)
    assert said(bench.says("web1", heartbeat(AgentState.IDLE, 77)), HeartbeatReply) == [reply]


def test_an_unknown_agent_is_not_answered() -> None:
    bench = RunBench()
    assert not of_kind(bench.says("stranger", heartbeat(AgentState.IDLE)), Send)
    assert bench.run.state.set_aside["stale"] == 1


def test_the_worst_figures_of_the_run_are_kept() -> None:
    bench = running()
    member = bench.member("web1")
    figures = member.figures
    assert (figures.cpu_percent_max, figures.cpu_percent_busiest, figures.lag_ms_max) == (10.0, 5.0, 0.1)


# -- who says it


def test_a_hello_without_the_secret_of_its_incarnation_is_ignored() -> None:
    bench = running()
    assert bench.says("web1", hello("web1", secret="guessed"), routing_id=b"liar") == []
    assert bench.member("web1").routing_id == b"web1"
    assert bench.run.state.set_aside["unproven"] == 1


def test_a_peer_that_knows_only_an_incarnation_cannot_send_in_its_name() -> None:
    bench = running()
    for message in (heartbeat(AgentState.DONE), final(0), Bye(reason="gone"), Attach(secret="guessed")):
        assert bench.says("web1", message, routing_id=b"liar") == []
    assert bench.says("web1", MetricsFrame(seq=0, through=0, intervals=()), routing_id=b"liar") == []
    assert bench.run.state.set_aside["unproven"] == 5
    assert acknowledged(bench.says("web1", final(0)))


def test_frames_count_only_on_the_metrics_connection_and_other_messages_only_on_the_control_connection() -> None:
    bench = running()
    assert bench.says("web1", MetricsFrame(seq=0, through=0, intervals=()), routing_id=b"web1") == []
    assert bench.says("web1", final(0), routing_id=metrics_id("web1")) == []
    assert bench.run.state.set_aside["unproven"] == 2


def test_messages_on_old_connections_are_ignored_after_a_reconnect() -> None:
    bench = running()
    bench.says("web1", hello("web1", state=AgentState.RUNNING, run_id=RUN_ID), routing_id=b"new")
    [attached] = of_kind(bench.says("web1", Attach(), routing_id=b"new/metrics"), Send)
    assert (attached.routing_id, attached.envelope.message) == (b"new/metrics", Attached())
    frame = MetricsFrame(seq=0, through=0, intervals=())
    assert bench.says("web1", heartbeat(AgentState.RUNNING)) == bench.says("web1", frame) == []
    assert said(bench.says("web1", heartbeat(AgentState.RUNNING), routing_id=b"new"), HeartbeatReply)
    assert said(bench.says("web1", frame, routing_id=b"new/metrics"), FrameAck) == [FrameAck(next_seq=1)]


def test_a_delayed_hello_of_an_old_connection_does_not_replace_the_newest() -> None:
    bench = running()
    back = hello("web1", state=AgentState.RUNNING, run_id=RUN_ID, connection=2)
    bench.says("web1", back, routing_id=b"new")
    bench.says("web1", Attach(connection=2), routing_id=b"new/metrics")
    assert bench.says("web1", msgspec.structs.replace(back, connection=1)) == []
    assert bench.says("web1", Attach(connection=1)) == []
    member = bench.member("web1")
    assert (member.routing_id, member.metrics_id) == (b"new", b"new/metrics")


def test_a_metrics_connection_of_an_agent_that_has_not_said_hello_is_not_attached() -> None:
    bench = RunBench()
    assert of_kind(bench.says("web1", Attach()), Send) == []
    assert bench.run.state.set_aside["stale"] == 1


# -- frames


def test_frames_are_recorded_in_order_and_acknowledged_on_the_metrics_link() -> None:
    bench = running()
    actions = bench.frame("web1", 0)
    assert [type(record) for record in written(actions)] == [FrameAccepted]
    [send] = of_kind(actions, Send)
    assert (send.routing_id, send.envelope.message) == (metrics_id("web1"), FrameAck(next_seq=1))
    assert isinstance(actions[0], Write)  # before it is acknowledged


def test_a_repeated_frame_counts_once_and_is_acknowledged_again() -> None:
    bench = running()
    bench.frame("web1", 0)
    actions = bench.frame("web1", 0)
    assert written(actions) == []
    assert said(actions, FrameAck) == [FrameAck(next_seq=1)]
    assert bench.run.state.set_aside["duplicates"] == 1


@pytest.mark.parametrize("seq", [1, 2, 2**63])
def test_a_frame_after_a_gap_is_refused_and_the_next_one_is_named(seq: int) -> None:
    bench = running()
    actions = bench.frame("web1", seq, second=0)
    assert written(actions) == []
    assert said(actions, FrameAck) == [FrameAck(next_seq=0)]
    assert bench.run.state.set_aside["gaps"] == 1


def test_a_frame_of_another_run_is_ignored() -> None:
    bench = running()
    frame = MetricsFrame(seq=0, through=0, intervals=(interval(0),))
    assert bench.says("web1", frame, run_id=OTHER_RUN_ID) == []
    assert bench.run.state.set_aside["stale"] == 1


def test_a_frame_of_an_agent_without_a_share_is_ignored() -> None:
    bench = running()
    bench.hello("web2")
    assert bench.frame("web2", 0) == []


def test_a_frame_after_final_does_not_count() -> None:
    bench = RunBench(expected=2)
    bench.running("web1", "web2")
    bench.passes(2.0, "web1", "web2")
    bench.says("web1", final())
    assert written(bench.frame("web1", 0)) == []


def test_an_agent_that_sends_a_frame_of_the_future_is_excluded() -> None:
    bench = running()
    last = 5 + AHEAD_S + 1
    frame = MetricsFrame(seq=0, through=0, intervals=(interval(0, last=last),))
    actions = bench.says("web1", frame)
    [noted] = written(actions)
    assert (type(noted), noted.state) == (AgentEnded, AgentOutcome.LOST)
    assert "seconds" in noted.reason


def test_a_frame_may_be_ahead_of_our_clock_within_the_tolerance() -> None:
    bench = running()
    assert isinstance(written(bench.frame("web1", 0, second=10))[0], FrameAccepted)


# -- ends


def test_final_is_accepted_when_all_frames_have_come() -> None:
    bench = running()
    bench.frame("web1", 0)
    assert bench.says("web1", final(2)) == []
    bench.frame("web1", 1)
    actions = bench.says("web1", final(2))
    assert acknowledged(actions)
    [noted] = written(actions)
    assert (noted.state, noted.final) == (AgentOutcome.FINISHED, final(2))


def test_a_repeated_final_is_acknowledged_again_and_recorded_once() -> None:
    bench = RunBench(expected=2)
    bench.running("web1", "web2")
    bench.says("web1", final())
    actions = bench.says("web1", final())
    assert acknowledged(actions)
    assert written(actions) == []


def test_a_dead_worker_process_is_recorded_and_degrades_the_run() -> None:
    bench = RunBench(expected=2)
    bench.running("web1", "web2")
    actions = bench.says("web1", WorkerLost(process=1, exit_code=-9, reason="worker process 1 died"))
    assert written(actions) == [WorkerDied(agent_id="web1", process=1, exit_code=-9, reason="worker process 1 died")]
    ending = bench.run.state.outcome_tracker.outcome([], 0)
    assert ending[1] == "agent web1: worker process 1 died"


def test_a_dead_worker_process_that_was_not_reported_is_known_from_final() -> None:
    bench = RunBench(expected=2)
    bench.running("web1", "web2")
    bench.says("web1", final(processes_lost=1))
    assert bench.run.state.outcome_tracker.outcome([], 0)[1] == "agent web1 lost 1 worker process"


def test_an_agent_that_says_goodbye_during_the_load_is_lost_at_once() -> None:
    bench = RunBench(expected=2)
    bench.running("web1", "web2")
    [noted] = written(bench.says("web1", Bye(reason="terminated at once")))
    assert (noted.agent_id, noted.state) == ("web1", AgentOutcome.LOST)


def test_an_agent_that_says_goodbye_when_it_is_done_is_not_lost() -> None:
    bench = RunBench(expected=2)
    bench.running("web1", "web2")
    bench.says("web1", final())
    assert written(bench.says("web1", Bye(reason="served"), run_id="")) == []
    assert bench.member("web1").state is MemberState.FINISHED


def test_prepared_of_another_run_does_not_count() -> None:
    bench = RunBench()
    bench.preparing("web1")
    bench.says("web1", ready(), run_id=OTHER_RUN_ID)
    assert not bench.member("web1").is_ready


def test_an_agent_is_recorded_as_lost_once() -> None:
    bench = RunBench(expected=2)
    bench.running("web1", "web2")
    records = written(bench.passes(20.0, "web2"))
    assert [type(record) for record in records] == [AgentEnded]
    assert bench.now_ns > 20 * NS_PER_S


# -- what no agent of the run can say


def nonsense(seq: int = 0) -> MetricsFrame:
    return MetricsFrame(seq=seq, through=0, intervals=(interval(0, last=8_639_999),))


def test_an_agent_that_sends_invalid_data_is_reported_once_stopped_and_then_ignored() -> None:
    bench = running()
    bench.frame("web1", 0)
    actions = bench.says("web1", nonsense(1))
    [noted] = written(actions)
    assert (noted.state, noted.reason) == (
        AgentOutcome.LOST, "it sent invalid data: frame 1: expected seconds up to 64 by now, got 8,639,999"
    )  # fmt: skip
    named, waits = [note.text for note in of_kind(actions, Note)]
    assert "it sent invalid data" in named
    assert waits.startswith("waiting for web1 (may still load the target): ")
    assert said(actions, Stop) == [Stop(drain=False, reason=noted.reason)]
    for _ in range(100):
        assert bench.frame("web1", 1) == []
        assert bench.says("web1", nonsense(1)) == []
        assert bench.says("web1", final(1)) == []
        assert bench.says("web1", heartbeat(AgentState.RUNNING)) == []
    assert bench.run.state.set_aside["nonsense"] == 401
    assert said(bench.says("web1", hello("web1")), Refused) == [Refused(reason=noted.reason)]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"ran_ns": 100 * NS_PER_S}, "it ran for 100 s, but the run began 4 s ago"),
        ({"processes_lost": 3}, "it lost 3 worker processes, but has 2"),
    ],
)
def test_an_agent_that_sends_an_impossible_final_is_excluded(fields: dict[str, int], problem: str) -> None:
    bench = running()
    actions = bench.says("web1", final(**fields))
    assert [noted.reason for noted in written(actions)] == [f"it sent invalid data: {problem}"]
    assert not acknowledged(actions)


def test_a_worker_process_is_lost_once_and_only_if_it_exists() -> None:
    bench = running()
    actions = [
        action
        for process in (0, 1, 1, 0, 2, 10**6) * 50
        for action in bench.says("web1", WorkerLost(process=process, exit_code=1, reason=f"{len('x' * process)}"))
    ]
    assert [record.process for record in written(actions)] == [0, 1]
    assert len(of_kind(actions, Note)) == 2
    assert bench.run.state.set_aside["nonsense"] == 100


def test_an_agent_that_fails_repeatedly_is_lost_once() -> None:
    bench = running()
    actions = [
        action
        for _ in range(100)
        for message in (Failed(kind=FailureKind.AGENT, reason="broken"), heartbeat(AgentState.RUNNING))
        for action in bench.says("web1", message)
    ]
    assert [record.state for record in written(actions)] == [AgentOutcome.LOST]
    assert len(of_kind(actions, Note)) == 1


def test_the_number_of_agents_is_limited_and_silent_ones_make_room() -> None:
    bench = RunBench(expected=2)
    answers = [bench.says(f"inc{number}", hello("", state=AgentState.DONE)) for number in range(2000)]
    assert sum(bool(said(actions, Welcome)) for actions in answers) == 1004
    [refused] = said(answers[-1], Refused)
    assert refused.reason == "1,004 agents have joined this run already"
    bench.passes(5.0)
    assert said(bench.says("late", hello("", state=AgentState.DONE)), Welcome)
    assert len(bench.run.state.registry) < 10


def test_text_of_a_peer_is_shown_and_recorded_in_one_printable_line_of_limited_length() -> None:
    evil = "\x1b[2J\n\u202e\x9b" + "x" * 100_000
    bench = RunBench(expected=2)
    actions = bench.says("a", hello(evil, host=evil, run_id=evil))
    actions += bench.says("b", hello("b", protocol_max=1, host=evil, version=evil))
    actions += bench.says("a", Bye(reason=evil))
    bench = running()
    actions += bench.says("web1", WorkerLost(process=0, exit_code=1, reason=evil))
    actions += bench.says("web1", Failed(kind=FailureKind.AGENT, reason=evil))
    bench = running()
    actions += bench.says("web1", final(0, reason=evil))
    texts = [note.text for note in of_kind(actions, Note)]
    texts += [record.reason for record in written(actions)]
    texts += [record.final.reason for record in written(actions) if isinstance(record, AgentEnded) and record.final]
    assert len(texts) == 10
    for text in texts:
        assert text.isprintable()
        assert len(text) < 1500
