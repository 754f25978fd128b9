from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import coordinator
from common.lifecycle import InvalidTransitionError
from common.protocol.messages import AgentState, Prepared
from common.units import NS_PER_S
from coordinator.core.member import COME_BACK_NS, Fence, Member, MemberState
from coordinator.core.registry import JournaledAgent, Registry, capacities
from coordinator.journal.records import AgentFacts
from tests.support.protocol import final, heartbeat, hello

NOW_NS = 50 * NS_PER_S
READY = Prepared(processes=1, connections_open=1)


def admitted(registry: Registry, name: str = "a") -> Member:
    return registry.admit(hello(name), name, name.encode(), NOW_NS)


def working(registry: Registry, name: str = "a", *, answered_ns: int = NOW_NS) -> Member:
    """An agent at work, whose heartbeat was answered last at this instant."""
    member = admitted(registry, name)
    registry.deal(member, NOW_NS)
    registry.ready(member, READY, NOW_NS)
    registry.start(member)
    registry.renew(member, answered_ns)
    return member


def test_an_incarnation_is_admitted_once() -> None:
    registry = Registry()
    first = admitted(registry)
    again = registry.admit(hello("renamed", state=AgentState.RUNNING), "a", b"elsewhere", NOW_NS + 1)
    assert again is first
    assert (again.agent_id, again.routing_id, again.reported) == ("a", b"elsewhere", AgentState.RUNNING)


@given(st.lists(st.sampled_from(["", "web", "web-2", "agent-1", "\x1b", "x" * 70]), max_size=8))
def test_every_member_has_a_printable_name_of_its_own(names: list[str]) -> None:
    registry = Registry()
    for number, name in enumerate(names):
        registry.admit(hello(name), f"incarnation-{number}", b"", NOW_NS)
    given_names = [member.agent_id for member in registry]
    assert len(set(given_names)) == len(names)
    assert all(name and name.isprintable() for name in given_names)


def test_a_long_host_name_is_cut() -> None:
    registry = Registry()
    host = "h" * 255
    assert registry.admit(hello("a", host=host), "a", b"", NOW_NS).host == host
    assert registry.admit(hello("b", host=host + "h" * 1000), "b", b"", NOW_NS).host == host


def test_an_idle_member_was_heard_recently() -> None:
    registry = Registry()
    for name in ("a", "b", "c"):
        admitted(registry, name)
    registry.admit(hello("b", state=AgentState.DONE), "b", b"b", NOW_NS)
    registry.admit(hello("c"), "c", b"c", NOW_NS - 3 * NS_PER_S)
    assert [member.agent_id for member in registry.idle(NOW_NS)] == ["a"]


@pytest.mark.parametrize(
    ("agent", "state"),
    [
        ({}, MemberState.WORKING),
        ({"final": final(7)}, MemberState.REPORTED),
        ({"replaced_by": "b"}, MemberState.RETURNED),
        ({"left": "it said goodbye"}, MemberState.LEFT),
    ],
)
def test_a_readmitted_member_begins_as_its_journal_says(agent: dict[str, object], state: MemberState) -> None:
    facts = AgentFacts(agent_id="web1", incarnation="inc", host="host", processes=3, pools=())
    journaled = JournaledAgent(**({"facts": facts, "next_seq": 7, "final": None} | agent))  # type: ignore[arg-type]
    member = Registry().readmit(journaled, NOW_NS)
    assert (member.agent_id, member.next_seq, member.state, member.takes_part) == ("web1", 7, state, True)


def test_a_member_whose_results_are_safe_is_awaited_until_it_knows() -> None:
    facts = AgentFacts(agent_id="web1", incarnation="inc", host="host", processes=3, pools=())
    registry = Registry()
    member = registry.readmit(JournaledAgent(facts, next_seq=7, final=final(7)), NOW_NS)
    assert not member.is_over(NOW_NS + COME_BACK_NS, FENCE)
    assert member.is_over(NOW_NS + 2 * COME_BACK_NS, FENCE)
    registry.finish(member, final(7), NOW_NS)
    assert member.is_over(NOW_NS, FENCE)


def test_a_transition_that_the_table_does_not_list_raises_with_the_story() -> None:
    registry = Registry()
    member = working(registry)
    with pytest.raises(InvalidTransitionError) as caught:
        registry.deal(member, NOW_NS)
    assert str(caught.value) == (
        "agent a: STANDING_BY -DEAL-> PREPARING -READY-> PREPARED -START-> WORKING has no transition for DEAL"
    )
    registry.ready(member, READY, NOW_NS)  # an expected repeat
    assert member.state is MemberState.WORKING


def test_only_the_registry_changes_members_and_only_the_run_state_changes_itself() -> None:
    members = set(Member.__slots__)  # type: ignore[attr-defined]
    states = {
        "setup",
        "registry",
        "dealt_plan",
        "success_ns",
        "phase_since_ns",
        "t0_ns",
        "stopped_ns",
        "lost",
        "failure",
    }
    owners = {"registry.py": members, "run_state.py": states}
    for path in (Path(coordinator.__file__).parent / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for target in [
                each for whole in targets for each in (whole.elts if isinstance(whole, ast.Tuple) else [whole])
            ]:
                if isinstance(target, ast.Attribute) and ast.unparse(target.value) != "self":
                    assert target.attr in owners.get(path.name, set()) or ast.unparse(target.value) in (
                        "figures",
                        "run",
                    )


# -- who may still write


FENCE = Fence(lease_ns=30 * NS_PER_S, closing_ns=25 * NS_PER_S, end_ns=None)
FENCED_NS = NOW_NS + 55 * NS_PER_S


def test_a_silent_agent_may_write_until_its_lease_and_its_drain_are_over() -> None:
    member = working(Registry())
    assert member.may_write_until_ns(FENCE) == FENCED_NS
    assert not member.is_fenced(FENCED_NS - 1, FENCE)
    assert member.is_fenced(FENCED_NS, FENCE)


def test_a_planned_end_can_fence_an_agent_before_its_lease_does() -> None:
    member = working(Registry())
    assert member.may_write_until_ns(replace(FENCE, end_ns=NOW_NS + 5 * NS_PER_S)) == NOW_NS + 30 * NS_PER_S
    assert member.may_write_until_ns(replace(FENCE, end_ns=NOW_NS + 500 * NS_PER_S)) == FENCED_NS


def test_each_answered_heartbeat_moves_the_fence() -> None:
    assert working(Registry(), answered_ns=NOW_NS + 7).may_write_until_ns(FENCE) == FENCED_NS + 7


def test_an_agent_without_worker_processes_is_fenced() -> None:
    registry = Registry()
    member = working(registry)
    registry.rest(member, NOW_NS + 3)
    registry.rest(member, NOW_NS + 9)
    registry.renew(member, NOW_NS + 9)
    assert member.may_write_until_ns(FENCE) == NOW_NS + 3


def test_a_silent_agent_has_time_to_come_back_after_it_is_fenced() -> None:
    registry = Registry()
    member = working(registry)
    assert not member.is_over(FENCED_NS + 100 * NS_PER_S, FENCE)  # heard
    registry.newly_silent(FENCED_NS)
    assert not member.is_over(FENCED_NS + COME_BACK_NS - 1, FENCE)
    assert member.is_over(FENCED_NS + COME_BACK_NS, FENCE)


def test_a_revoked_agent_is_awaited_until_it_is_fenced_and_one_that_left_is_not_awaited() -> None:
    registry = Registry()
    member = working(registry)
    registry.revoke(member, "it did not end in time")
    assert not member.is_over(FENCED_NS - 1, FENCE)
    assert member.is_over(FENCED_NS, FENCE)
    registry.leave(member, "it said goodbye", NOW_NS)
    assert member.is_over(NOW_NS, FENCE)


# -- heartbeats


def test_the_worst_figures_of_a_run_are_kept_and_earlier_ones_are_not() -> None:
    registry = Registry()
    member = admitted(registry)
    registry.heartbeat(member, heartbeat(AgentState.PREPARED), NOW_NS, running=False, rests=False)
    assert member.figures.cpu_percent_max == 0.0
    registry.heartbeat(member, heartbeat(AgentState.RUNNING), NOW_NS, running=True, rests=False)
    figures = member.figures
    assert (figures.cpu_percent_max, figures.cpu_percent_busiest, figures.lag_ms_max) == (10.0, 5.0, 0.1)


def test_a_heartbeat_without_a_clock_estimate_keeps_the_last_one() -> None:
    registry = Registry()
    member = admitted(registry)
    for offset_ns in (10, None):
        beat = heartbeat(AgentState.IDLE, offset_ns=offset_ns)
        registry.heartbeat(member, beat, NOW_NS, running=False, rests=False)
    assert (member.offset_ns, member.rtt_ns) == (10, 100)


def test_capacities_name_agents_and_their_worker_processes() -> None:
    registry = Registry()
    [capacity] = capacities([admitted(registry)])
    assert (capacity.agent_id, capacity.processes) == ("a", 2)
