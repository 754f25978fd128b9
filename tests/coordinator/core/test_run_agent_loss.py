from __future__ import annotations

import msgspec
import pytest

from common.errors import FleetError
from common.plan.schema import OnAgentLoss, Plan
from common.protocol.messages import AgentState, Dismiss, Prepare, StandBy, Stop
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.core.actions import Action, End, LocalAgentExited, Note, Write
from coordinator.core.run import Run
from coordinator.core.transitions import Phase
from coordinator.journal.records import Outcome, Reading, StopDecided, StopKind
from coordinator.loop import journaled_agents
from tests.support.protocol import RunBench, counted, final, fleet_plan, of_kind, said

WAIT_S = 20.0
LEASE_S = 30.0


def plan_of(on_agent_loss: OnAgentLoss = OnAgentLoss.CONTINUE, **fleet: float) -> Plan:
    plan = fleet_plan(**({"wait_s": WAIT_S, "lease_s": LEASE_S, "duration_s": 60.0} | fleet))  # type: ignore[arg-type]
    return msgspec.structs.replace(plan, fleet=msgspec.structs.replace(plan.fleet, on_agent_loss=on_agent_loss))


def prepared_by(actions: list[Action]) -> set[str]:
    """Agents that got a share, by the routing ids of their control connections."""
    return {
        send.routing_id.decode()
        for send in actions
        if hasattr(send, "envelope") and isinstance(send.envelope.message, Prepare)
    }


def killed(bench: RunBench, name: str) -> list[Action]:
    """Its process is gone, and the coordinator knows at once."""
    return bench.do(LocalAgentExited(bench.member(name).pid, f"{name}.example", -9))


def test_a_run_starts_with_at_least_agents_when_the_wait_is_over() -> None:
    bench = RunBench(plan_of(at_least=2), expected=3)
    bench.preparing("web1", "web2")
    assert not said(bench.passes(WAIT_S - 1.0, "web1", "web2"), Prepare)
    actions = bench.passes(2.0, "web1", "web2")
    assert prepared_by(actions) == {"web1", "web2"}
    notes = [note.text for note in of_kind(actions, Note)]
    assert "starting with 2 of 3 agents after 20s, as --at-least 2 allows" in notes
    shares = bench.run.state.dealt_plan
    assert shares is not None
    assert [len(shares.pools_of(agent_id)) for agent_id in shares.assignments] == [2, 2]


def test_a_run_starts_early_only_if_all_agents_have_joined() -> None:
    bench = RunBench(plan_of(at_least=2), expected=3)
    assert not said(bench.preparing("web1", "web2"), Prepare)
    assert prepared_by(bench.hello("web3")) == {"web1", "web2", "web3"}


def test_a_run_with_fewer_agents_than_at_least_never_starts() -> None:
    bench = RunBench(plan_of(at_least=2), expected=3)
    bench.hello("web1")
    [end] = of_kind(bench.passes(WAIT_S + 1.0, "web1"), End)
    assert end.exit_code == FleetError.exit_code
    assert end.text.startswith("expected 3 agents, or at least 2, within 20s, got 1 (web1); ")


def test_an_agent_that_joins_too_late_or_is_one_too_many_stands_by_and_is_dismissed_with_the_others() -> None:
    bench = RunBench(plan_of(at_least=1), expected=2)
    bench.hello("web1")
    bench.passes(WAIT_S + 1.0, "web1")
    assert bench.run.state.phase is Phase.PREPARING
    actions = bench.hello("web2")
    assert said(actions, StandBy)
    assert not said(actions, Prepare)
    assert any(note.text.endswith("and stands by") for note in of_kind(actions, Note))
    assert [member.agent_id for member in bench.run.state.registry.standing_by(bench.now_ns)] == ["web2"]
    bench.beat("web1", AgentState.PREPARED)
    bench.running("web1")
    bench.passes(1.0, "web1", "web2")
    assert [member.agent_id for member in bench.run.state.registry.taking_part()] == ["web1"]
    bench.says("web1", final())
    ended = bench.do(counted(Reading.AFTER))
    assert len(said(ended, Dismiss)) == 2
    assert of_kind(ended, End) == [End(0, "", Outcome.COMPLETED)]


def test_agents_beyond_those_expected_stand_by_when_they_are_there_at_the_start() -> None:
    bench = RunBench(plan_of(), expected=2)
    bench.hello("web1")
    bench.now_ns += 10_000_000_000  # it is silent, and not to be counted on
    bench.preparing("web2", "web3")
    actions = bench.beat("web1")
    assert prepared_by(actions) == set()
    assert [member.agent_id for member in bench.run.state.registry.standing_by(bench.now_ns)] == ["web1"]


def test_a_local_agent_that_stands_by_may_end_without_harm() -> None:
    bench = RunBench(plan_of(), expected=1)
    bench.running("web1")
    bench.hello("web2")
    killed(bench, "web2")
    assert bench.run.state.phase is Phase.RUNNING
    assert not bench.run.state.registry.standing_by(bench.now_ns)


def test_with_abort_the_first_lost_agent_stops_the_load_of_all_and_its_reason_is_recorded() -> None:
    bench = RunBench(plan_of(OnAgentLoss.ABORT), expected=2)
    bench.running("web1", "web2")
    actions = killed(bench, "web2")
    text = "lost 1 agent (web2), with --on-agent-loss abort"
    stop = StopDecided(what=StopKind.LOAD, reason=text, exit_code=5, at_ns=bench.now_ns)
    kinds = [action.record if isinstance(action, Write) else type(action) for action in actions]
    assert stop in kinds
    [order] = {message.reason for message in said(actions, Stop)}
    assert order == text
    bench.says("web1", final())
    [end] = of_kind(bench.do(counted(Reading.AFTER)), End)
    assert end == End(5, text, Outcome.ABORTED)


def test_an_agent_that_ends_early_aborts_the_run_as_a_lost_one_does() -> None:
    bench = RunBench(plan_of(OnAgentLoss.ABORT), expected=2)
    bench.running("web1", "web2")
    bench.says("web2", final(reason="this agent was terminated"))
    assert bench.run.state.phase is Phase.DRAINING


@pytest.mark.parametrize("policy", [OnAgentLoss.CONTINUE, OnAgentLoss.ABORT])
def test_agents_that_are_lost_within_the_tolerance_stop_nothing(policy: OnAgentLoss) -> None:
    bench = RunBench(plan_of(policy, tolerate_lost=1), expected=3)
    bench.running("web1", "web2", "web3")
    killed(bench, "web2")
    assert bench.run.state.phase is Phase.RUNNING
    killed(bench, "web3")
    assert (bench.run.state.phase is Phase.RUNNING) is (policy is OnAgentLoss.CONTINUE)


def test_an_agent_that_is_lost_when_the_load_is_over_aborts_nothing() -> None:
    bench = RunBench(plan_of(OnAgentLoss.ABORT, duration_s=2.0), expected=2)
    bench.running("web1", "web2")
    bench.passes(3.0, "web1", "web2")
    killed(bench, "web2")
    assert bench.run.state.phase is Phase.RUNNING
    bench.says("web1", final())
    [end] = of_kind(bench.do(counted(Reading.AFTER)), End)
    assert end == End(5, "lost web2", Outcome.DEGRADED)


def test_an_aborted_run_stays_aborted_when_it_is_resumed() -> None:
    bench = RunBench(plan_of(OnAgentLoss.ABORT), expected=2)
    bench.running("web1", "web2")
    killed(bench, "web2")
    written = bench.written
    assert isinstance(written, Aggregate)
    assert written.started is not None
    run = Run.resumed(bench.setup, written.started.t0_ns, journaled_agents(written), bench.now_ns, written=written)
    resumed = RunBench(run=run, written=written)
    resumed.states["web1"] = AgentState.RUNNING
    assert run.state.phase is Phase.DRAINING
    resumed.says("web1", final())
    resumed.passes(LEASE_S + 30.0)
    [end] = of_kind(resumed.do(counted(Reading.AFTER)), End)
    assert (end.exit_code, end.outcome) == (5, Outcome.ABORTED)
    assert end.text == "lost 1 agent (web2), with --on-agent-loss abort"
