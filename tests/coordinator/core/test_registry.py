from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from common.protocol.messages import AgentState
from common.units import NS_PER_S
from coordinator.core.records import AgentEnd, AgentFacts
from coordinator.core.registry import COME_BACK_NS, LOST_AFTER_NS, Fence, Member, Registry, Standing, capacities
from tests.support.protocol import final, heartbeat, hello

NOW_NS = 50 * NS_PER_S


def fleet(*names: str) -> Registry:
    registry = Registry()
    for name in names:
        registry.admit(hello(name), name, name.encode(), NOW_NS).takes_part = True
    return registry


def member_of(registry: Registry, incarnation: str) -> Member:
    found = registry.find(incarnation)
    assert found is not None
    return found


def test_members_are_kept_in_the_order_in_which_they_joined() -> None:
    registry = fleet("b", "a", "c")
    assert [member.agent_id for member in registry] == ["b", "a", "c"]
    assert len(registry) == 3


def test_an_incarnation_is_admitted_once() -> None:
    registry = fleet("a")
    first = member_of(registry, "a")
    again = registry.admit(hello("renamed", state=AgentState.RUNNING), "a", b"elsewhere", NOW_NS + 1)
    assert again is first
    assert (again.agent_id, again.routing_id, again.heard_ns, again.state) == (
        "a",
        b"elsewhere",
        NOW_NS + 1,
        AgentState.RUNNING,
    )


@given(st.lists(st.sampled_from(["", "web", "web-2", "agent-1", "\x1b", "x" * 70]), max_size=8))
def test_every_member_has_a_name_of_its_own(names: list[str]) -> None:
    registry = Registry()
    for number, name in enumerate(names):
        registry.admit(hello(name), f"incarnation-{number}", b"", NOW_NS)
    given_names = [member.agent_id for member in registry]
    assert len(set(given_names)) == len(names)
    assert all(name and name.isprintable() for name in given_names)


def test_a_host_is_known_by_its_whole_name_as_long_as_a_name_may_be() -> None:
    registry = Registry()
    host = "h" * 255
    assert registry.admit(hello("a", host=host), "a", b"", NOW_NS).host == host
    assert registry.admit(hello("b", host=host + "h" * 1000), "b", b"", NOW_NS).host == host


def test_an_idle_member_is_one_that_was_heard_of_late() -> None:
    registry = fleet("a", "b", "c", "d")
    member_of(registry, "b").state = AgentState.DONE
    member_of(registry, "c").gone = "it left"
    member_of(registry, "d").heard_ns = NOW_NS - 3 * NS_PER_S
    assert [member.agent_id for member in registry.idle(NOW_NS)] == ["a"]


def test_silence_is_reported_once() -> None:
    registry = fleet("a", "b")
    member_of(registry, "b").heard_ns += 1
    assert registry.newly_lost(NOW_NS + LOST_AFTER_NS) == []
    assert [member.agent_id for member in registry.newly_lost(NOW_NS + LOST_AFTER_NS + 1)] == ["a"]
    assert [member.agent_id for member in registry.newly_lost(NOW_NS + LOST_AFTER_NS + 2)] == ["b"]
    assert registry.newly_lost(NOW_NS + 10 * LOST_AFTER_NS) == []


def test_the_silence_of_those_who_finished_or_take_no_part_is_no_loss() -> None:
    registry = fleet("a", "b")
    member_of(registry, "a").end = AgentEnd.FINISHED
    member_of(registry, "b").takes_part = False
    assert registry.newly_lost(NOW_NS + 10 * LOST_AFTER_NS) == []


def test_time_in_which_nobody_listened_is_nobodys_silence() -> None:
    registry = fleet("a")
    registry.excuse(60 * NS_PER_S, NOW_NS + 61 * NS_PER_S)
    assert registry.newly_lost(NOW_NS + 61 * NS_PER_S) == []
    registry.excuse(10**6 * NS_PER_S, NOW_NS + 62 * NS_PER_S)
    assert member_of(registry, "a").heard_ns == NOW_NS + 62 * NS_PER_S


def test_a_member_that_left_is_forgotten() -> None:
    registry = fleet("a")
    registry.leave("a")
    registry.leave("a")
    assert registry.find("a") is None


def test_a_readmitted_member_stands_as_its_journal_says() -> None:
    facts = AgentFacts(agent_id="web1", incarnation="inc", host="host", processes=3, pools=())
    registry = Registry()
    running = registry.readmit(Standing(facts, next_seq=7, final=None), NOW_NS)
    assert (running.agent_id, running.next_seq, running.end, running.takes_part) == ("web1", 7, None, True)
    finished = registry.readmit(Standing(facts, next_seq=7, final=final(7)), NOW_NS)
    assert (finished.end, finished.final) == (AgentEnd.FINISHED, final(7))
    assert not finished.is_over(NOW_NS + COME_BACK_NS, FENCE)
    assert finished.is_over(NOW_NS + 2 * COME_BACK_NS, FENCE)


# -- who may still write


FENCE = Fence(lease_ns=30 * NS_PER_S, closing_ns=25 * NS_PER_S, end_ns=None)
FENCED_NS = NOW_NS + 55 * NS_PER_S


def loading(*, answered_ns: int = NOW_NS) -> Member:
    """An agent at work, whose heartbeat was answered last at this instant."""
    [member] = fleet("a")
    member.state, member.renewed_ns = AgentState.RUNNING, answered_ns
    return member


def test_a_silent_agent_may_write_until_its_lease_and_its_drain_are_over() -> None:
    member = loading()
    assert member.may_write_until_ns(FENCE) == FENCED_NS
    assert not member.is_fenced(FENCED_NS - 1, FENCE)
    assert member.is_fenced(FENCED_NS, FENCE)


def test_a_load_with_a_planned_end_is_over_after_it_whatever_the_lease_allows() -> None:
    short = replace(FENCE, end_ns=NOW_NS + 5 * NS_PER_S)
    assert loading().may_write_until_ns(short) == NOW_NS + 30 * NS_PER_S
    later = replace(FENCE, end_ns=NOW_NS + 500 * NS_PER_S)
    assert loading().may_write_until_ns(later) == FENCED_NS


def test_every_heartbeat_that_is_answered_puts_the_fence_off() -> None:
    member = loading(answered_ns=NOW_NS + 7)
    assert member.may_write_until_ns(FENCE) == FENCED_NS + 7


def test_an_agent_whose_worker_processes_have_ended_writes_nothing_whatever_it_says_later() -> None:
    member = loading()
    member.rests(NOW_NS + 3)
    member.rests(NOW_NS + 9)
    member.renewed_ns = NOW_NS + 9
    assert member.may_write_until_ns(FENCE) == NOW_NS + 3


def test_a_silent_agent_has_time_to_come_back_after_it_is_fenced() -> None:
    member = loading()
    member.lost = True
    assert not member.is_over(FENCED_NS + COME_BACK_NS - 1, FENCE)
    assert member.is_over(FENCED_NS + COME_BACK_NS, FENCE)


def test_an_agent_that_is_heard_is_waited_for_as_long_as_it_is_heard() -> None:
    assert not loading().is_over(FENCED_NS + 100 * NS_PER_S, FENCE)


def test_an_agent_that_is_gone_for_good_is_waited_for_until_it_is_fenced() -> None:
    member = loading()
    member.gone = "it said goodbye"
    assert not member.is_over(FENCED_NS - 1, FENCE)
    assert member.is_over(FENCED_NS, FENCE)
    member.rests(NOW_NS)
    assert member.is_over(NOW_NS, FENCE)


def test_the_worst_figures_of_a_run_are_kept_and_those_before_it_are_not() -> None:
    [member] = fleet("a")
    member.heartbeat(heartbeat(AgentState.PREPARED), running=False)
    assert member.cpu_percent_max == 0.0
    member.heartbeat(heartbeat(AgentState.RUNNING), running=True)
    assert (member.cpu_percent_max, member.cpu_percent_busiest, member.lag_ms_max) == (10.0, 5.0, 0.1)


def test_a_heartbeat_before_the_clocks_were_compared_again_does_not_forget_what_was_known() -> None:
    [member] = fleet("a")
    member.heartbeat(heartbeat(AgentState.IDLE), running=False)
    member.heartbeat(heartbeat(AgentState.IDLE, offset_ns=None), running=False)
    assert (member.offset_ns, member.rtt_ns) == (10, 100)


def test_what_shares_need_to_know_is_told() -> None:
    [capacity] = capacities(list(fleet("a")))
    assert (capacity.agent_id, capacity.processes) == ("a", 2)
