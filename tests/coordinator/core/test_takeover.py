from __future__ import annotations

import msgspec
import pytest

from common.plan.schema import OnAgentLoss, Plan, Preload, Workload
from common.protocol.messages import (
    AgentState,
    Bye,
    Dismiss,
    Failed,
    FailureKind,
    FrameAck,
    PoolRemainder,
    Prepare,
    Start,
    Stop,
    TakeOver,
    incarnation_of,
)
from common.units import NS_PER_S
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.core.actions import Action, End, LocalAgentExited, Note, Send, Tick, Write
from coordinator.core.member import MemberState
from coordinator.core.registry import UNFIT_NS
from coordinator.core.run import Run
from coordinator.core.takeover import TAKE_AHEAD_NS
from coordinator.core.transitions import Phase
from coordinator.journal.records import Outcome, Reading, ShareTakenOver
from coordinator.loop import journaled_agents
from tests.support.protocol import RunBench, counted, final, fleet_plan, of_kind, ready, said

LEASE_S, DRAIN_S = 5.0, 1.0
FENCED_S = LEASE_S + DRAIN_S + 15.0 + 0.5
"""After its last heartbeat an agent that is silent has stopped for certain."""


def plan_of(**load: float) -> Plan:
    given: dict[str, float | None] = {"duration_s": 300.0, "lease_s": LEASE_S, "drain_s": DRAIN_S, **load}
    plan = fleet_plan(**given)  # type: ignore[arg-type]
    fleet = msgspec.structs.replace(plan.fleet, on_agent_loss=OnAgentLoss.REPLACE)
    return msgspec.structs.replace(plan, fleet=fleet)


def bench_with_standby(plan: Plan | None = None) -> RunBench:
    """Two agents run; a third one stands by."""
    bench = RunBench(plan or plan_of(), expected=2)
    bench.running("web1", "web2")
    bench.hello("web3")
    return bench


def killed(bench: RunBench, name: str) -> list[Action]:
    return bench.do(LocalAgentExited(bench.member(name).pid, f"{name}.example", -9))


def to(actions: list[Action], name: str, kind: type) -> list[object]:
    """Messages of one type to an agent."""
    sends = [
        action.envelope for action in of_kind(actions, Send) if action.envelope.incarnation == incarnation_of(name)
    ]
    return [envelope.message for envelope in sends if isinstance(envelope.message, kind)]


def takeovers(actions: list[Action]) -> list[ShareTakenOver]:
    return [action.record for action in of_kind(actions, Write) if isinstance(action.record, ShareTakenOver)]


def prepares(bench: RunBench, name: str) -> list[Action]:
    """It is ready, and says so."""
    bench.beat(name, AgentState.PREPARED)
    return bench.says(name, ready())


def taken_over(bench: RunBench, name: str = "web3") -> list[Action]:
    actions = prepares(bench, name)
    bench.beat(name, AgentState.RUNNING)
    return actions


def test_a_standby_takes_over_the_share_of_an_agent_whose_process_is_gone() -> None:
    bench = bench_with_standby()
    [order] = to(killed(bench, "web2"), "web3", Prepare)
    assert isinstance(order, Prepare)
    shares = bench.run.state.dealt_plan
    assert shares is not None
    assert order.assignments == tuple(
        msgspec.structs.replace(each, preloads=False) for each in shares.assignments["web2"]
    )
    actions = taken_over(bench)
    t0_ns = bench.run.state.t0_ns
    assert t0_ns is not None
    from_ns = bench.now_ns + TAKE_AHEAD_NS - t0_ns
    assert to(actions, "web3", Start) == [Start(t0_ns=t0_ns, takeover=TakeOver(from_ns=from_ns))]
    [record] = takeovers(actions)
    assert (record.agent.agent_id, record.replaces, record.from_ns, record.at_ns) == (
        "web3",
        "web2",
        from_ns,
        bench.now_ns,
    )
    assert record.agent.pools == order.assignments[0].pools
    kinds = [type(action) for action in actions]
    assert kinds.index(Write) < kinds.index(Send)  # first the record, then the start
    assert [member.agent_id for member in bench.run.state.registry.taking_part()] == ["web1", "web2", "web3"]
    bench.says("web1", final())
    bench.says("web3", final())
    [end] = of_kind(bench.do(counted(Reading.AFTER)), End)
    assert end == End(5, "lost web2 (replaced by web3)", Outcome.DEGRADED)


def test_a_replaced_agent_is_tolerated_like_a_lost_one() -> None:
    bench = bench_with_standby(plan_of(tolerate_lost=1))
    killed(bench, "web2")
    taken_over(bench)
    bench.says("web1", final())
    bench.says("web3", final())
    [end] = of_kind(bench.do(counted(Reading.AFTER)), End)
    assert (end.exit_code, end.outcome) == (0, Outcome.DEGRADED)


def test_a_share_is_not_free_while_its_silent_agent_may_still_work() -> None:
    bench = bench_with_standby()
    actions = bench.passes(FENCED_S - 1.5, "web1", "web3")
    assert any("web2 may still be at work; its share is free in" in note.text for note in of_kind(actions, Note))
    assert not said(actions, Prepare)
    assert to(bench.passes(2.0, "web1", "web3"), "web3", Prepare)


def test_an_agent_that_comes_back_before_it_is_replaced_continues() -> None:
    bench = bench_with_standby()
    bench.passes(LEASE_S, "web1", "web3")
    assert bench.member("web2").state is MemberState.SILENT
    bench.beat("web2")
    actions = bench.passes(2 * FENCED_S, "web1", "web2", "web3")
    assert not said(actions, Prepare)
    assert not said(actions, Stop)
    assert bench.member("web2").is_at_work


def test_an_agent_that_comes_back_after_it_was_replaced_must_stop_and_its_late_frames_count() -> None:
    bench = bench_with_standby()
    bench.frame("web2", 0)
    bench.passes(FENCED_S, "web1", "web3")
    taken_over(bench)
    actions = bench.beat("web2", AgentState.RUNNING)
    assert to(actions, "web2", Stop) == [Stop(drain=False, reason="its share is lost")]
    [ack] = said(bench.frame("web2", 1), FrameAck)
    assert ack.next_seq == 2
    bench.says("web2", final(2, reason="no word from its coordinator for 5 s"))
    assert bench.member("web2").final is not None
    assert not said(bench.passes(5.0, "web1", "web2", "web3"), Prepare)


def test_an_agent_that_comes_back_between_the_fence_and_the_takeover_does_not_get_its_share_back() -> None:
    bench = bench_with_standby()
    assert to(bench.passes(FENCED_S, "web1", "web3"), "web3", Prepare)
    assert to(bench.beat("web2", AgentState.DRAINING), "web2", Stop)
    [record] = takeovers(taken_over(bench))
    assert record.replaces == "web2"


def test_an_agent_that_ends_early_is_replaced_at_once() -> None:
    bench = bench_with_standby()
    actions = bench.says("web2", final(reason="this agent was terminated"))
    assert to(actions, "web3", Prepare)


def test_a_share_waits_for_a_standby_until_the_load_ends_and_the_user_is_told_once() -> None:
    bench = RunBench(plan_of(duration_s=60.0), expected=2)
    bench.running("web1", "web2")
    actions = [*killed(bench, "web2"), *bench.passes(3.0, "web1")]
    texts = [note.text for note in of_kind(actions, Note)]
    assert texts.count("no agent stands by to take over the share of web2") == 1
    bench.hello("web3")
    assert to(bench.passes(0.2, "web1", "web3"), "web3", Prepare)


def test_without_a_standby_the_run_ends_when_the_others_are_done() -> None:
    bench = RunBench(plan_of(duration_s=None, requests=10), expected=2)  # type: ignore[arg-type]
    bench.running("web1", "web2")
    killed(bench, "web2")
    bench.says("web1", final())
    assert bench.run.state.phase is Phase.SETTLING


def test_a_run_by_requests_continues_until_its_standby_has_issued_the_rest() -> None:
    bench = bench_with_standby(plan_of(duration_s=None, requests=100))  # type: ignore[arg-type]
    bench.frame("web2", 0, operations=20)
    killed(bench, "web2")
    bench.says("web1", final())
    assert bench.run.state.phase is Phase.RUNNING
    [order] = to(taken_over(bench), "web3", Start)
    assert isinstance(order, Start)
    assert order.takeover is not None
    assert order.takeover.remaining is not None
    assert sum(pool.operations for pool in order.takeover.remaining) == 30
    assert all(isinstance(pool, PoolRemainder) for pool in order.takeover.remaining)
    bench.says("web3", final())
    assert bench.run.state.phase is Phase.SETTLING


def test_a_share_with_nothing_left_is_not_taken_over() -> None:
    bench = bench_with_standby(plan_of(duration_s=None, requests=100))  # type: ignore[arg-type]
    bench.frame("web2", 0, operations=50)
    assert not said(killed(bench, "web2"), Prepare)


def test_a_replacement_that_is_lost_is_replaced_like_any_other() -> None:
    bench = bench_with_standby()
    bench.hello("web4")
    killed(bench, "web2")
    taken_over(bench)
    assert to(killed(bench, "web3"), "web4", Prepare)
    [record] = takeovers(taken_over(bench, "web4"))
    assert (record.agent.agent_id, record.replaces) == ("web4", "web3")
    assert len(record.agent.pools) == 2


def test_one_standby_takes_one_share_and_the_next_share_waits() -> None:
    bench = bench_with_standby()
    assert to(killed(bench, "web1"), "web3", Prepare)
    actions = killed(bench, "web2")
    assert not said(actions, Prepare)
    assert any(note.text == "no agent stands by to take over the share of web2" for note in of_kind(actions, Note))


def test_an_order_to_prepare_that_was_lost_is_repeated() -> None:
    bench = bench_with_standby()
    killed(bench, "web2")
    assert to(bench.passes(1.5, "web1", "web3"), "web3", Prepare)


def test_a_start_that_was_lost_is_repeated_with_the_same_instant() -> None:
    bench = bench_with_standby()
    killed(bench, "web2")
    [first] = to(prepares(bench, "web3"), "web3", Start)
    [again] = to(bench.passes(1.5, "web1", "web3"), "web3", Start)
    assert first == again


def test_a_standby_that_cannot_prepare_is_replaced_by_the_next_one_and_may_be_asked_later() -> None:
    bench = bench_with_standby()
    bench.hello("web4")
    killed(bench, "web2")
    actions = bench.says("web3", Failed(kind=FailureKind.AGENT, reason="no room"))
    assert to(actions, "web4", Prepare)
    assert any("web3 cannot take over the share of web2: no room" in note.text for note in of_kind(actions, Note))
    bench.says("web4", Failed(kind=FailureKind.TARGET, reason="no answer"))
    assert not said(bench.passes(1.0, "web1", "web3", "web4"), Prepare)
    assert to(bench.passes(UNFIT_NS / NS_PER_S, "web1", "web3", "web4"), "web3", Prepare)


def test_a_standby_that_falls_silent_or_leaves_is_replaced_by_the_next_one() -> None:
    for leaves in (False, True):
        bench = bench_with_standby()
        bench.hello("web4")
        killed(bench, "web2")
        actions = bench.says("web3", Bye(reason="terminated")) if leaves else bench.passes(5.0, "web1", "web4")
        assert to(actions, "web4", Prepare)
        if not leaves:
            # It is back, with a share that is not wanted any more.
            assert to(bench.beat("web3", AgentState.PREPARED), "web3", Stop)


def test_a_standby_without_progress_is_replaced() -> None:
    bench = bench_with_standby(plan_of(prepare_s=10.0))
    bench.hello("web4")
    killed(bench, "web2")
    bench.beat("web3", AgentState.PREPARING)
    assert to(bench.passes(10.5, "web1", "web3", "web4"), "web4", Prepare)


def test_nothing_is_taken_over_when_the_load_is_about_to_end_or_was_stopped() -> None:
    bench = bench_with_standby(plan_of(duration_s=3.0))
    bench.passes(3.5, "web1", "web2", "web3")
    assert not said(killed(bench, "web2"), Prepare)
    bench = bench_with_standby()
    killed(bench, "web2")
    bench.run._stop("interrupted", 130, bench.now_ns)
    assert takeovers(prepares(bench, "web3")) == []
    assert to(bench.passes(1.5, "web1", "web3"), "web3", Stop)


def test_a_resumed_run_continues_with_a_share_that_was_taken_over() -> None:
    bench = bench_with_standby()
    killed(bench, "web2")
    [first] = to(prepares(bench, "web3"), "web3", Start)
    written = bench.written
    assert isinstance(written, Aggregate)
    assert written.started is not None
    run = Run.resumed(bench.setup, written.started.t0_ns, journaled_agents(written), bench.now_ns, written=written)
    resumed = RunBench(run=run, written=written)
    resumed.now_ns = bench.now_ns + NS_PER_S
    resumed.hello("web1", state=AgentState.RUNNING)
    assert to(resumed.hello("web3", state=AgentState.PREPARED), "web3", Start) == [first]
    resumed.beat("web3", AgentState.RUNNING)
    actions = resumed.passes(10.0, "web1", "web3")
    assert not takeovers(actions)
    resumed.says("web1", final())
    resumed.says("web3", final())
    resumed.passes(FENCED_S)
    [end] = of_kind(resumed.do(counted(Reading.AFTER)), End)
    assert end.text == "lost web2 (replaced by web3)"


def test_a_resumed_run_offers_a_share_again_that_was_only_offered() -> None:
    bench = bench_with_standby()
    killed(bench, "web2")
    bench.beat("web3", AgentState.PREPARED)
    written = bench.written
    assert isinstance(written, Aggregate)
    assert written.started is not None
    run = Run.resumed(bench.setup, written.started.t0_ns, journaled_agents(written), bench.now_ns, written=written)
    resumed = RunBench(run=run, written=written)
    resumed.now_ns = bench.now_ns + NS_PER_S
    resumed.hello("web1", state=AgentState.RUNNING)
    actions = resumed.hello("web3", state=AgentState.PREPARED)
    assert to(actions, "web3", Stop)
    resumed.beat("web3", AgentState.IDLE)
    actions = resumed.passes(FENCED_S + 1.0, "web1", "web3")
    [order] = to(actions, "web3", Prepare)[:1]
    assert isinstance(order, Prepare)
    assert not order.assignments[0].preloads
    assert order.assignments[0].threads_total == 4


def test_before_the_start_the_share_of_a_lost_agent_moves_unchanged_to_a_standby() -> None:
    bench = RunBench(plan_of(), expected=2)
    bench.preparing("web1", "web2")
    bench.hello("web3")
    dealt = bench.run.state.dealt_plan
    assert dealt is not None
    share = dealt.assignments["web2"]
    [order] = to(killed(bench, "web2"), "web3", Prepare)
    assert isinstance(order, Prepare)
    assert order.assignments == share
    for name in ("web1", "web3"):
        bench.beat(name, AgentState.PREPARED)
        bench.says(name, ready())
    actions = bench.do(counted(Reading.BEFORE))
    assert to(actions, "web3", Start)
    written = bench.written
    assert isinstance(written, Aggregate)
    assert list(written.agents) == ["web1", "web3"]


def test_an_agent_that_lost_its_share_before_the_start_must_stop_when_it_is_back() -> None:
    bench = RunBench(plan_of(), expected=2)
    bench.preparing("web1", "web2")
    bench.hello("web3")
    bench.passes(5.0, "web1", "web3")
    assert to(bench.beat("web2", AgentState.PREPARED), "web2", Stop)
    bench.beat("web2", AgentState.IDLE)
    assert [member.agent_id for member in bench.run.state.registry.standing_by(bench.now_ns)] == ["web2"]


@pytest.mark.parametrize("preloads", [False, True])
def test_before_the_start_a_run_gives_up_without_a_standby_or_where_keys_may_be_preloaded(preloads: bool) -> None:
    workload = Workload(preload=(Preload(),)) if preloads else Workload()
    bench = RunBench(msgspec.structs.replace(plan_of(), workload=workload), expected=2)
    bench.preparing("web1", "web2")
    if preloads:
        bench.hello("web3")
    actions = killed(bench, "web2")
    [end] = of_kind(actions, End)
    assert end.text.startswith("agent web2 was lost before the start: ")
    assert said(actions, Dismiss)


def test_other_policies_replace_no_agent() -> None:
    plan = plan_of()
    for policy in (OnAgentLoss.CONTINUE, OnAgentLoss.ABORT):
        fleet = msgspec.structs.replace(plan.fleet, on_agent_loss=policy)
        bench = bench_with_standby(msgspec.structs.replace(plan, fleet=fleet))
        assert not said([*killed(bench, "web2"), *bench.do(Tick())], Prepare)
