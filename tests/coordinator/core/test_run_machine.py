"""After any messages of agents and any death of the coordinator, the journal of a run is right, and the run ends."""

from __future__ import annotations

from collections import Counter

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.plan.schema import CleanUp, Command, Plan, Workload
from common.protocol.messages import (
    AgentMessage,
    AgentState,
    Bye,
    Failed,
    FailureKind,
    FrameAck,
    PreparationStep,
    Preparing,
    Start,
    WorkerLost,
)
from common.units import NS_PER_S
from coordinator.analysis.totals.aggregate import fold
from coordinator.core import actions as steps
from coordinator.core.run import Run
from coordinator.core.transitions import Phase
from coordinator.journal.records import (
    AgentEnded,
    AgentOutcome,
    AnyRecord,
    CleanedUp,
    CountersRead,
    FrameAccepted,
    Reading,
    RunClosed,
    RunOpened,
    RunStarted,
    StopDecided,
    WorkerDied,
)
from coordinator.loop import after_load, journaled_agents
from tests.support.examples import tried
from tests.support.protocol import OTHER_RUN_ID, RUN_ID, RunBench, counted, final, fleet_plan, ready

AGENTS = ("a", "b", "c")
CLEANS = Workload(commands=(Command(command="GET"),), clean_up=CleanUp.KEYS)
SHORT = {"lease_s": 4.0, "drain_s": 2.0, "wait_s": 20.0, "prepare_s": 10.0}
PLANS = (
    fleet_plan(duration_s=5.0, **SHORT),
    fleet_plan(duration_s=None, requests=1000, **SHORT),
    msgspec.structs.replace(fleet_plan(duration_s=5.0, **SHORT), workload=CLEANS),
)
BOUND_S = 200.0
"""Silence of all agents after which a run has ended; the server's counters alone may take a minute, twice."""


class RunUnderAnyEvents(RuleBasedStateMachine):
    """A run, its journal, and agents that may send anything at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.plan, self.expected = PLANS[0], 1
        self.records: list[AnyRecord] = []
        self.ends: list[steps.End] = []
        self.reading: Reading | None = None
        self.deletes = False
        self.bench = RunBench()

    @initialize(plan=st.sampled_from(PLANS), expected=st.integers(1, 2), starts=st.integers(0, 2))
    def begins(self, plan: Plan, expected: int, starts: int) -> None:
        """starts: in how many cases of three the fleet comes up as it should."""
        self.plan, self.expected = plan, expected
        self.bench = RunBench(plan, expected)
        if starts:
            self.perform(self.bench.counting(*AGENTS[:expected]))
            self.answers()
            for name in AGENTS[:expected]:
                self.perform(self.bench.beat(name, AgentState.RUNNING))

    def perform(self, actions: list[steps.Action]) -> None:
        for action in actions:
            match action:
                case steps.Write(record):
                    assert not self.ends, f"{record} after the end"
                    self.records.append(record)
                case steps.ReadServer(when):
                    self.reading = when
                case steps.DeleteKeys():
                    assert self.bench.run.state.phase in (Phase.CLEANING, Phase.DISMISSING)
                    self.deletes = True
                case steps.Send(_, envelope):
                    match envelope.message:
                        case FrameAck(next_seq=next_seq):
                            member = self.bench.run.state.registry.find(envelope.incarnation)
                            assert member is not None
                            assert next_seq == len(self.accepted(member.agent_id)), "ahead of the journal"
                        case Start(t0_ns=t0_ns):
                            assert RunStarted(t0_ns=t0_ns) in self.records
                case steps.End():
                    self.ends.append(action)

    def accepted(self, name: str) -> list[FrameAccepted]:
        return [record for record in self.records if isinstance(record, FrameAccepted) and record.agent_id == name]

    # -- what agents say

    @rule(name=st.sampled_from(AGENTS), state=st.sampled_from(AgentState), run_id=st.sampled_from([None, OTHER_RUN_ID]))
    def hello(self, name: str, state: AgentState, run_id: str | None) -> None:
        self.perform(self.bench.hello(name, state=state, run_id=run_id))

    @rule(name=st.sampled_from(AGENTS), state=st.sampled_from(AgentState))
    def heartbeat(self, name: str, state: AgentState) -> None:
        if name in self.bench.states:
            self.perform(self.bench.beat(name, state))

    @rule(
        name=st.sampled_from((*AGENTS, "nobody")),
        message=st.sampled_from(
            [
                ready(),
                Preparing(step=PreparationStep.CONNECTIONS, done=1, total=2),
                Failed(kind=FailureKind.TARGET, reason="no answer"),
                Failed(kind=FailureKind.AGENT, reason="no room"),
                WorkerLost(process=0, exit_code=-9, reason="killed"),
                Bye(reason="terminated"),
                final(0),
            ]
        ),
        run_id=st.sampled_from([RUN_ID, RUN_ID, RUN_ID, OTHER_RUN_ID]),
    )
    def says(self, name: str, message: AgentMessage, run_id: str) -> None:
        self.perform(self.bench.says(name, message, run_id=run_id))

    @rule(name=st.sampled_from(AGENTS), ahead=st.sampled_from([-1, 0, 0, 0, 0, 1]), operations=st.integers(0, 3))
    def frame(self, name: str, ahead: int, operations: int) -> None:
        seq = max(0, len(self.accepted(name)) + ahead)
        self.perform(self.bench.frame(name, seq, second=min(seq, 5), operations=operations))

    @rule(name=st.sampled_from(AGENTS))
    def ends_well(self, name: str) -> None:
        """Its `Final`, when all its frames have come."""
        frames = self.accepted(name)
        operations = sum(part.operations for record in frames for part in record.frame.intervals)
        self.perform(self.bench.says(name, final(len(frames), issued=operations, counted=operations)))

    # -- what else happens

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 3.0]), beating=st.sets(st.sampled_from(AGENTS)))
    def passes(self, seconds: float, beating: set[str]) -> None:
        self.perform(self.bench.passes(seconds, *(name for name in sorted(beating) if name in self.bench.states)))

    @rule(seconds=st.floats(0.5, 30.0))
    def does_not_run(self, seconds: float) -> None:
        self.bench.now_ns += round(seconds * NS_PER_S)
        self.perform(self.bench.do(steps.Tick()))

    @rule(chance=st.integers(0, 4))
    def interrupted(self, chance: int) -> None:
        if chance == 0:
            self.perform(self.bench.do(steps.Interrupted()))

    @precondition(lambda self: self.reading or self.deletes)
    @rule()
    def answers(self) -> None:
        """The server has answered, or its keys are deleted."""
        if self.reading:
            when, self.reading = self.reading, None
            self.perform(self.bench.do(counted(when)))
        elif self.deletes:
            self.deletes = False
            self.perform(self.bench.do(steps.Cleaned(CleanedUp(deleted=1, left=0, took_ns=1))))

    @rule(when=st.sampled_from(Reading))
    def answers_late(self, when: Reading) -> None:
        """A reading that the run does not wait for."""
        if self.reading is None:
            self.perform(self.bench.do(counted(when)))

    @rule(chance=st.integers(0, 2))
    def killed(self, chance: int) -> None:
        """The coordinator dies, and is started again with the journal that it left."""
        if chance or self.ends:
            return
        self.reading, self.deletes = None, False
        written = fold(self.records)
        now_ns, states = self.bench.now_ns, self.bench.states
        if written.started is None:
            self.records.clear()
            self.bench = RunBench(self.plan, self.expected)
        else:
            run = Run.resumed(
                self.bench.setup,
                written.started.t0_ns,
                journaled_agents(written),
                now_ns,
                after=after_load(written),
                written=written,
            )
            self.bench = RunBench(self.plan, self.expected, run, written)
        self.bench.now_ns, self.bench.states = now_ns, states

    # -- what must hold

    @invariant()
    def the_journal_is_in_order(self) -> None:
        kinds = [type(record) for record in self.records]
        assert max(Counter(kinds)[kind] for kind in (RunOpened, RunStarted, RunClosed)) <= 1
        if kinds:
            assert kinds[0] is RunOpened
            assert RunClosed not in kinds[:-1]
        if {FrameAccepted, AgentEnded, WorkerDied, StopDecided} & set(kinds):
            begun = kinds.index(RunStarted)
            assert not {FrameAccepted, AgentEnded, WorkerDied, StopDecided} & set(kinds[:begun])
        assert kinds.count(CleanedUp) <= 1
        readings = [record.when for record in self.records if isinstance(record, CountersRead)]
        assert readings.count(Reading.BEFORE) <= 1

    @invariant()
    def each_frame_counts_once(self) -> None:
        total = 0
        for name in AGENTS:
            frames = self.accepted(name)
            assert [record.frame.seq for record in frames] == list(range(len(frames)))
            total += sum(part.operations for record in frames for part in record.frame.intervals)
        assert fold(self.records).totals.operations == total

    @invariant()
    def nothing_follows_the_final_of_an_agent(self) -> None:
        finished: set[str] = set()
        for record in self.records:
            if isinstance(record, FrameAccepted):
                assert record.agent_id not in finished
            if isinstance(record, AgentEnded) and record.state is AgentOutcome.FINISHED:
                assert record.agent_id not in finished
                finished.add(record.agent_id)

    @invariant()
    def it_ends_once(self) -> None:
        assert len(self.ends) <= 1
        assert bool(self.ends) == (self.bench.run.state.phase in (Phase.DISMISSING, Phase.CLOSED))
        if self.ends and self.ends[0].outcome is not None:
            assert isinstance(self.records[-1], RunClosed)

    def teardown(self) -> None:
        """When all agents are silent it ends, even if the server answers late."""
        for _ in range(round(BOUND_S / 10)):
            self.perform(self.bench.passes(10.0))
            if self.deletes and not self.ends:
                self.answers()
        assert self.ends, self.bench.run.state.phase


TestRunUnderAnyEvents = RunUnderAnyEvents.TestCase
TestRunUnderAnyEvents.settings = tried(40, steps=25)
