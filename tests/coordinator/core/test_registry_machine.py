"""Whoever joins, leaves, falls silent and comes back: each process is one member, and no share is forgotten."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.protocol.messages import AgentState, Prepared
from common.units import NS_PER_S
from coordinator.core.member import LOST_AFTER_NS, Member
from coordinator.core.registry import JournaledAgent, Registry
from coordinator.journal.records import AgentFacts
from tests.support.examples import tried
from tests.support.protocol import heartbeat, hello

NAMES = ("web", "web-2")


class RegistryOverTime(RuleBasedStateMachine):
    """A registry, and agents known by their incarnations."""

    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry()
        self.now_ns = 50 * NS_PER_S
        self.joined = 0
        self.with_shares: dict[str, Member] = {}
        self.reported_lost: set[str] = set()

    @rule(name=st.sampled_from(NAMES))
    def joins(self, name: str) -> None:
        incarnation = f"incarnation-{self.joined}"
        self.joined += 1
        member = self.registry.admit(hello(name), incarnation, incarnation.encode(), self.now_ns)
        assert member.next_seq == 0
        assert not member.takes_part

    @precondition(lambda self: len(self.registry))
    @rule(data=st.data(), state=st.sampled_from(AgentState), link=st.booleans())
    def is_heard(self, data: st.DataObject, state: AgentState, link: bool) -> None:
        """By a heartbeat, or with a hello on another connection."""
        member = data.draw(st.sampled_from(list(self.registry)))
        if link:
            assert self.registry.admit(hello("another name"), member.incarnation, b"link-2", self.now_ns) is member
        else:
            self.registry.heartbeat(member, heartbeat(state), self.now_ns, running=True, rests=False)
        self.registry.heard(member, self.now_ns)
        self.reported_lost.discard(member.incarnation)

    @rule()
    def shares_are_dealt(self) -> None:
        for member in self.registry.standing_by(self.now_ns)[:2]:
            self.registry.deal(member, self.now_ns)
            self.registry.ready(member, Prepared(processes=1, connections_open=1), self.now_ns)
            self.registry.start(member)
            self.with_shares[member.incarnation] = member

    @precondition(lambda self: len(self.registry))
    @rule(data=st.data())
    def leaves(self, data: st.DataObject) -> None:
        idle = [member for member in self.registry if not member.takes_part]
        if idle:
            self.registry.forget(data.draw(st.sampled_from(idle)))

    @rule()
    def resumed(self) -> None:
        """A coordinator after us knows what the journal says: those with a share."""
        known = list(self.with_shares.values())
        self.registry, self.with_shares = Registry(), {}
        self.reported_lost.clear()
        for member in known:
            facts = AgentFacts(
                agent_id=member.agent_id, incarnation=member.incarnation, host=member.host, processes=2, pools=()
            )
            again = self.registry.readmit(JournaledAgent(facts, member.next_seq, None), self.now_ns)
            assert (again.agent_id, again.next_seq, again.takes_part) == (member.agent_id, member.next_seq, True)
            self.with_shares[again.incarnation] = again

    @rule(seconds=st.floats(0.1, 6.0), stalled=st.booleans())
    def passes(self, seconds: float, stalled: bool) -> None:
        """stalled: the coordinator itself did not run, so agents were not silent."""
        elapsed_ns = round(seconds * NS_PER_S)
        self.now_ns += elapsed_ns
        if stalled:
            before = {member.incarnation for member in self.registry.newly_silent(self.now_ns - elapsed_ns)}
            self.registry.extend_deadlines(elapsed_ns, self.now_ns)
            self.reported_lost |= before
            assert not self.registry.newly_silent(self.now_ns)

    @rule()
    def silent_agents_are_noticed(self) -> None:
        lost = {member.incarnation for member in self.registry.newly_silent(self.now_ns)}
        assert not lost & self.reported_lost, "reported twice"
        for incarnation in lost:
            assert self.now_ns - self.with_shares[incarnation].heard_ns > LOST_AFTER_NS
        self.reported_lost |= lost

    @invariant()
    def names_are_unique(self) -> None:
        names = [member.agent_id for member in self.registry]
        assert len(set(names)) == len(names)
        assert all(names)

    @invariant()
    def no_share_is_forgotten(self) -> None:
        assert {member.incarnation for member in self.registry.taking_part()} == set(self.with_shares)
        for incarnation, member in self.with_shares.items():
            assert self.registry.find(incarnation) is member

    @invariant()
    def no_message_is_from_the_future(self) -> None:
        assert all(member.heard_ns <= self.now_ns for member in self.registry)


TestRegistryOverTime = RegistryOverTime.TestCase
TestRegistryOverTime.settings = tried(50, steps=30)
