"""A simulated fleet under faults: nothing counts twice, nothing is lost silently, and every run ends."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from agent.core.outbox import CAPACITY, WINDOW
from common.plan.scenarios import scenario_plans
from common.plan.schema import OnAgentLoss
from common.protocol.messages import AgentState, Preloaded
from common.units import NS_PER_S
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.core.run import CLOCK_RTT_NS
from coordinator.core.transitions import Phase
from coordinator.journal.records import (
    AgentEnded,
    AgentOutcome,
    AnyRecord,
    CleanedUp,
    CountersRead,
    FrameAccepted,
    Outcome,
    Reading,
    RunClosed,
    RunOpened,
    RunStarted,
    ShareTakenOver,
    StopDecided,
    WorkerDied,
)
from tests.support.examples import tried
from tests.support.simulation import (
    DEATHS,
    END_OF_TIME_S,
    PRELOADED_KEYS,
    Fault,
    Kind,
    Scenario,
    World,
    figures,
    was_interrupted,
)

EXIT_CODES = {
    None: {5, 130, 4},
    Outcome.COMPLETED: {0},
    Outcome.INTERRUPTED: {130},
    Outcome.DEGRADED: {5},
    Outcome.ABORTED: {4, 5, 130},
}

times_s = st.floats(0, 15).map(lambda value: round(value, 1))
faults = st.builds(
    Fault,
    kind=st.sampled_from(Kind),
    at_s=times_s,
    agent=st.integers(0, 3),
    seconds=st.floats(0.1, 12).map(lambda value: round(value, 1)),
)
mild_faults = st.one_of(
    st.builds(
        Fault,
        kind=st.sampled_from(
            [
                Kind.CONTROL_DOWN,
                Kind.METRICS_DOWN,
                Kind.LINKS_DOWN,
                Kind.BLACKHOLE,
                Kind.HELD_UP,
                Kind.AGENT_STOPPED,
            ]
        ),
        at_s=times_s,
        agent=st.integers(0, 3),
        seconds=st.floats(0.1, 2).map(lambda value: round(value, 1)),
    ),
    st.builds(Fault, kind=st.just(Kind.KILLED), at_s=times_s, seconds=st.just(1.5)),
)


by_duration = st.fixed_dictionaries({"duration_s": st.sampled_from([1.0, 4.0, 8.0]), "staged": st.booleans()})
by_requests = st.fixed_dictionaries(
    {"duration_s": st.none(), "requests": st.sampled_from([3, 20]), "dead": st.booleans()}
)


def scenarios(
    possible_faults: st.SearchStrategy[Fault], most: int, loss: float, loads: st.SearchStrategy[dict[str, Any]]
) -> st.SearchStrategy[Scenario]:
    sizes = st.shared(st.integers(1, 4), key="agents")
    fleets = st.builds(
        Scenario,
        preloads=st.booleans(),
        cleans=st.booleans(),
        seed=st.integers(0, 2**32),
        agents=sizes,
        expected=sizes.flatmap(lambda agents: st.integers(1, agents)),
        at_least=st.none() | st.just(1),
        on_agent_loss=st.sampled_from(OnAgentLoss),
        processes=st.integers(1, 3),
        pools=st.none() | st.integers(1, 8),
        lease_s=st.sampled_from([4.0, 6.0]),
        once=st.booleans(),
        loss=st.sampled_from([0.0, loss]),
        repeats=st.sampled_from([0.0, 0.1]),
        slow=st.booleans(),
        second=st.booleans(),
        faults=st.lists(possible_faults, max_size=most).map(tuple),
    )
    return st.builds(lambda fleet, load: replace(fleet, **load), fleets, loads)


def played(scenario: Scenario) -> World:
    world = World(scenario)
    world.play()
    return world


def accepted_by_agent(records: list[AnyRecord]) -> dict[str, list[FrameAccepted]]:
    accepted: dict[str, list[FrameAccepted]] = {}
    for record in records:
        if isinstance(record, FrameAccepted):
            accepted.setdefault(record.agent_id, []).append(record)
    return accepted


def check_journal(world: World, run_id: str, records: list[AnyRecord]) -> None:
    """Check the order of a journal, and its counts: all that a finished agent reported, and never more."""
    kinds = [type(record) for record in records]
    if not records:
        assert run_id not in world.ends or world.ends[run_id].outcome is None
        return
    assert kinds[0] is RunOpened
    assert kinds.count(RunOpened) == 1
    assert kinds.count(RunStarted) <= 1
    first_end = kinds.index(RunClosed) if RunClosed in kinds else len(kinds)
    assert set(kinds[first_end:]) <= {RunClosed, FrameAccepted, AgentEnded, WorkerDied, CleanedUp, StopDecided}
    if RunStarted in kinds:
        load = [kind in (FrameAccepted, AgentEnded, WorkerDied, ShareTakenOver, StopDecided) for kind in kinds]
        assert not any(load[: kinds.index(RunStarted)])
    aggregate = fold(records)
    assert aggregate.opened is not None
    accepted_operations = sum(agent.counted for agent in aggregate.agents.values())
    assert sum(found.operations for found in aggregate.stages) == accepted_operations == aggregate.totals.operations
    check_scenarios(aggregate)
    incarnations = {agent_id: agent.facts.incarnation for agent_id, agent in aggregate.agents.items()}
    reported = {agent.incarnation: agent.reported[run_id] for agent in world.agents}
    accepted = accepted_by_agent(records)
    for agent_id, incarnation in incarnations.items():
        frames = [record.frame for record in accepted.get(agent_id, [])]
        assert [frame.seq for frame in frames] == list(range(len(frames)))
        throughs = [frame.through for frame in frames]
        assert throughs == sorted(throughs)
        counted = sum(part.operations for frame in frames for part in frame.intervals)
        end = aggregate.agents[agent_id].end
        if end is not None and end.final is not None:
            assert end.final.counted == counted == reported[incarnation]
            assert end.final.next_seq == len(frames)
        else:
            assert counted <= reported[incarnation]
    check_target(world, run_id, records)
    check_requests(world, records)
    cleaned = kinds[:first_end].count(CleanedUp)
    if world.scenario.cleans and RunClosed in kinds and RunStarted in kinds:
        # Once, after all other records. A killed coordinator may have begun it before.
        assert cleaned == 1
        assert set(kinds[kinds.index(CleanedUp) + 1 : first_end]) <= {AgentEnded}
    else:
        assert cleaned <= world.scenario.cleans
    if kinds.count(CountersRead) > 2:
        # Only the first reading after the load is free of the deletions.
        assert not world.deletions.get(run_id)
    preloaded = Preloaded.merge(facts.preloaded for facts in aggregate.opened.agents)
    if world.scenario.preloads:
        assert preloaded is not None
        assert (preloaded.keys, preloaded.commands) == (PRELOADED_KEYS, 2 * PRELOADED_KEYS)
        [first, *_] = aggregate.opened.threads or [aggregate.opened.threads_total]
        assert set(world.preloads[run_id]) == set(range(first))
    else:
        assert preloaded is None
    for number, found in enumerate(aggregate.stages):
        expected: Counter[str] = Counter()
        for agent in world.agents:
            expected.update(agent.by_stage[run_id, number])
        counted_here = figures(found.totals)
        assert counted_here["unsent"] == found.unsent
        if all(agent.finished for agent in aggregate.agents.values()):
            assert +Counter(counted_here) == +expected
        assert all(counted_here[name] <= expected[name] for name in counted_here)
    finals = [r.agent_id for r in records if isinstance(r, AgentEnded) and r.state is AgentOutcome.FINISHED]
    assert max(Counter(finals).values(), default=1) == 1


def check_scenarios(run: Aggregate) -> None:
    """Check that every operation belongs to one scenario, and that the scenarios of a finished agent add up to its
    totals."""
    for agent_id, agent in run.agents.items():
        parts = [part.agents[agent_id] for part in run.scenarios]
        assert sum(part.counted for part in parts) == agent.counted
        finals = [part.end.final for part in parts if part.end is not None and part.end.final is not None]
        if agent.end is not None and agent.end.final is not None:
            assert sum(final.counted for final in finals) == agent.end.final.counted
            assert max(final.ran_ns for final in finals) == agent.end.final.ran_ns
            assert all(final.counted == part.counted for final, part in zip(finals, parts, strict=True))


def check_target(world: World, run_id: str, records: list[AnyRecord]) -> None:
    """Check that counters were read and keys were deleted after the last operation, or that the record names agents
    that may still write; and that all operations are reported if no agent died."""
    aggregate = fold(records)
    reading = aggregate.readings.get(Reading.AFTER)
    if reading is not None and not reading.error and not reading.writers:
        assert world.at_work[run_id] == []
        assert reading.calls == {"get": world.done[run_id]}
        if aggregate.is_complete and not any(fault.kind in DEATHS for fault in world.scenario.faults):
            assert aggregate.totals.operations == world.done[run_id]
    if aggregate.cleaned is not None and not aggregate.cleaned.error:
        assert world.deleted[run_id] == world.done[run_id]


def check_requests(world: World, records: list[AnyRecord]) -> None:
    """Check that a number of requests is exact if every share was completed. Late reports of replaced agents count in
    addition."""
    aggregate = fold(records)
    assert aggregate.opened is not None
    of_scenarios = [scenario.plan.load.requests for scenario in scenario_plans(aggregate.opened.plan)]
    requests = None if None in of_scenarios else sum(count or 0 for count in of_scenarios)
    if requests is None or world.scenario.dead or aggregate.closed is None or aggregate.stops:
        return
    replaced = {record.replaces for record in aggregate.takeovers}
    ends = [agent.end for agent_id, agent in aggregate.agents.items() if agent_id not in replaced]
    finals = [end.final for end in ends if end is not None and end.final is not None]
    if len(finals) < len(ends) or any(final.reason or final.processes_lost for final in finals):
        return
    since: set[str] = set()
    late = 0
    for record in records:
        if isinstance(record, ShareTakenOver):
            since.add(record.replaces)
        elif isinstance(record, FrameAccepted) and record.agent_id in since:
            late += sum(part.operations for part in record.frame.intervals)
    assert aggregate.totals.operations == requests + late


def check_end(world: World, run_id: str) -> None:
    """Check that exit code and outcome match the journal."""
    end = world.ends.get(run_id)
    if end is None:
        return
    records = world.journals[run_id]
    assert end.exit_code in EXIT_CODES[end.outcome]
    if end.outcome is None:
        assert records == []
        return
    closed = records[-1]
    if not isinstance(closed, RunClosed):  # killed while it accepted late results
        assert any(fault.kind in (Kind.KILLED, Kind.REPLACED) for fault in world.scenario.faults)
        return
    assert closed.outcome is end.outcome
    if was_interrupted(records):
        assert end.outcome is Outcome.INTERRUPTED
    tallies = fold(records).agents.values()
    if end.outcome is Outcome.COMPLETED:
        finals = [tally.end.final for tally in tallies if tally.end is not None and tally.end.final is not None]
        assert len(finals) == len(tallies)
        assert not any(final.processes_lost or final.reason for final in finals)
        assert run_id not in world.interrupted
    if end.outcome is Outcome.DEGRADED:
        assert end.text


def check(world: World) -> None:
    """Check all invariants."""
    story = [(agent.incarnation, agent.session.state, agent.session.run_id, agent.exit) for agent in world.agents]
    assert world.rests, f"not at rest after {END_OF_TIME_S} s: {world.ends} {story}"
    for agent in world.agents:
        assert not agent.workers or all(not worker.alive for worker in agent.workers.values())
        assert agent.most_held <= WINDOW + CAPACITY
        assert not agent.alive or agent.session.state is AgentState.IDLE
        if agent.exit is not None:
            assert agent.exit.code in {0, 4, 5, 143}
    assert not world.unfenced
    assert not world.twice
    assert all(begun == 1 for threads in world.preloads.values() for begun in threads.values())
    for run_id, records in world.journals.items():
        check_journal(world, run_id, records)
        check_end(world, run_id)
    assert all(abs(error_ns) <= rtt_ns // 2 + 1 for error_ns, rtt_ns in world.starts)


@tried(400)
@given(scenarios(faults, most=6, loss=0.2, loads=by_duration | by_requests))
def test_under_any_faults_nothing_counts_twice_and_every_run_ends(scenario: Scenario) -> None:
    check(played(scenario))


@tried(200)
@given(scenarios(mild_faults, most=5, loss=0.05, loads=by_duration))
def test_short_faults_cost_nothing(scenario: Scenario) -> None:
    # Five cuts of two seconds may follow each other: the lease must outlast them and the reconnect.
    world = played(replace(scenario, lease_s=16.0))
    check(world)
    last = world.journals[list(world.journals)[-1]][-1]
    assert isinstance(last, RunClosed)
    assert (last.outcome, last.reason) == (Outcome.COMPLETED, "")
    assert all(abs(error_ns) <= CLOCK_RTT_NS for error_ns, _ in world.starts)


cut_off = st.builds(
    Fault,
    kind=st.sampled_from([Kind.LINKS_DOWN, Kind.CONTROL_DOWN, Kind.BLACKHOLE]),
    at_s=st.floats(5, 12),
    agent=st.integers(0, 3),
    seconds=st.floats(1, 7),
)


@tried(25)
@given(st.integers(0, 2**32), st.integers(1, 3), st.floats(1.5, 6), st.floats(4, 20))
def test_a_full_disk_ends_the_load_at_once_and_a_resume_collects_all_results(
    seed: int, agents: int, at_s: float, seconds: float
) -> None:
    fault = Fault(Kind.FULL, at_s=at_s, seconds=seconds)
    scenario = Scenario(seed=seed, agents=agents, expected=agents, duration_s=8.0, lease_s=6.0, faults=(fault,))
    world = played(scenario)
    check(world)
    *_, records = world.journals.values()
    ends = [tally.end for tally in fold(records).agents.values()]
    finals = [end.final for end in ends if end is not None and end.final is not None]
    assert len(finals) == agents
    if len(world.journals) == 1:  # otherwise the first run had not started
        assert all(final.ran_ns < (at_s + 2) * NS_PER_S for final in finals)


killed_late = st.builds(Fault, kind=st.just(Kind.KILLED), at_s=st.floats(5, 12), seconds=st.floats(1, 60))


@tried(100)
@given(st.integers(0, 2**32), st.integers(1, 3), st.lists(cut_off, max_size=1), killed_late | st.none())
def test_agents_and_coordinators_that_come_back_in_time_lose_nothing(
    seed: int, agents: int, cut: list[Fault], killed: Fault | None
) -> None:
    faults = (*cut, killed) if killed else tuple(cut)
    world = played(
        Scenario(seed=seed, agents=agents, expected=agents, duration_s=10.0, lease_s=12.0, faults=faults, repeats=0.1)
    )
    check(world)
    [records] = world.journals.values()
    closed = records[-1]
    assert isinstance(closed, RunClosed)
    assert (closed.outcome, closed.reason) == (Outcome.COMPLETED, "")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("once", [False, True])
def test_a_fleet_without_faults_completes(seed: int, once: bool) -> None:
    world = played(Scenario(seed=seed, agents=3, expected=3, once=once))
    check(world)
    [end] = world.ends.values()
    assert (end.outcome, end.exit_code, end.text) == (Outcome.COMPLETED, 0, "")
    assert [agent.exit.code if agent.exit else None for agent in world.agents] == [0 if once else None] * 3


@pytest.mark.parametrize("seed", range(3))
def test_the_load_of_an_agent_that_is_stopped_beyond_its_lease_ends(seed: int) -> None:
    stopped = Fault(Kind.AGENT_STOPPED, at_s=5.0, seconds=20.0)
    world = played(Scenario(seed=seed, duration_s=40.0, lease_s=4.0, faults=(stopped,)))
    check(world)
    [records] = world.journals.values()
    reasons = [record.final.reason for record in records if isinstance(record, AgentEnded) and record.final]
    assert any(reason.startswith("its own process did not run for 20.") for reason in reasons)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("twice", [False, True])
def test_an_interrupted_run_whose_coordinator_is_killed_stays_interrupted(seed: int, twice: bool) -> None:
    interrupts = [Fault(Kind.INTERRUPTED, at_s=6.0), Fault(Kind.INTERRUPTED, at_s=6.1)][: 1 + twice]
    killed = Fault(Kind.KILLED, at_s=6.15, seconds=2.0)
    world = played(Scenario(seed=seed, duration_s=None, requests=1_000, faults=(*interrupts, killed)))
    check(world)
    [records] = world.journals.values()
    closed = records[-1]  # it may have been killed right after this record
    assert isinstance(closed, RunClosed)
    assert closed.outcome is Outcome.INTERRUPTED


# -- the end of a run whose agents are cut off


def ended_as(world: World) -> RunClosed:
    """The end of the only run, all of whose operations are reported."""
    check(world)
    [records] = world.journals.values()
    aggregate = fold(records)
    assert aggregate.totals.operations == world.done["run-1"] > 0
    assert aggregate.closed is not None
    return aggregate.closed


AS_PLANNED = (Outcome.COMPLETED, "")
CUTS = (Kind.LINKS_DOWN, Kind.CONTROL_DOWN, Kind.BLACKHOLE, Kind.HELD_BACK)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("cleans", [False, True])
def test_the_only_agent_may_be_cut_off_for_most_of_its_lease(seed: int, cut: Kind, cleans: bool) -> None:
    faults = (Fault(cut, at_s=6.0, seconds=20.0),)
    scenario = Scenario(seed=seed, agents=1, expected=1, duration_s=None, requests=60, lease_s=30.0, cleans=cleans)
    closed = ended_as(played(replace(scenario, faults=faults)))
    assert (closed.outcome, closed.reason) == AS_PLANNED


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("cut", CUTS)
def test_an_agent_may_be_cut_off_at_the_planned_end(seed: int, cut: Kind) -> None:
    faults = (Fault(cut, at_s=10.0, seconds=14.0),)
    closed = ended_as(played(Scenario(seed=seed, duration_s=10.0, lease_s=30.0, faults=faults)))
    assert (closed.outcome, closed.reason) == AS_PLANNED


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("cut_s", [6.0, 20.0])
def test_a_run_may_be_interrupted_while_an_agent_is_cut_off(seed: int, cut: Kind, cut_s: float) -> None:
    faults = (Fault(cut, at_s=8.0, seconds=cut_s), Fault(Kind.INTERRUPTED, at_s=9.0))
    scenario = Scenario(seed=seed, agents=1, expected=1, duration_s=60.0, lease_s=30.0, faults=faults)
    closed = ended_as(played(scenario))
    assert (closed.outcome, closed.reason) == (Outcome.INTERRUPTED, "")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("at_s", [6.0, 12.0])
def test_the_results_of_an_agent_that_was_stopped_beyond_its_lease_count(seed: int, at_s: float) -> None:
    faults = (Fault(Kind.AGENT_STOPPED, at_s=at_s, seconds=16.0),)
    ended_as(played(Scenario(seed=seed, duration_s=12.0, lease_s=6.0, faults=faults)))


@pytest.mark.parametrize("seed", range(3))
def test_a_run_that_is_stopped_at_once_reports_all_operations(seed: int) -> None:
    faults = (Fault(Kind.INTERRUPTED, at_s=8.0), Fault(Kind.INTERRUPTED, at_s=8.1))
    closed = ended_as(played(Scenario(seed=seed, duration_s=60.0, lease_s=6.0, faults=faults)))
    assert (closed.outcome, closed.reason) == (Outcome.INTERRUPTED, "")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("once", [False, True])
def test_a_resume_of_an_ended_run_collects_the_results_of_an_agent_that_was_cut_off(seed: int, once: bool) -> None:
    cut_off = Fault(Kind.LINKS_DOWN, at_s=8.0, seconds=20.0)
    interrupts = (Fault(Kind.INTERRUPTED, at_s=9.0), Fault(Kind.INTERRUPTED, at_s=9.1))
    collected = Fault(Kind.COLLECTED, at_s=30.0)
    scenario = Scenario(seed=seed, duration_s=60.0, lease_s=6.0, once=once, cleans=True)
    lost = played(replace(scenario, faults=(cut_off, *interrupts)))
    check(lost)
    aggregate = fold(lost.journals["run-1"])
    assert aggregate.closed is not None
    assert aggregate.closed.reason.startswith("lost web")
    assert len(aggregate.readings[Reading.AFTER].writers) == 1
    assert aggregate.totals.operations < lost.done["run-1"]
    closed = ended_as(played(replace(scenario, faults=(cut_off, *interrupts, collected))))
    assert (closed.outcome, closed.reason) == (Outcome.INTERRUPTED, "")


@pytest.mark.parametrize("seed", range(3))
def test_agents_of_a_killed_coordinator_serve_the_next_run_and_keep_their_results(seed: int) -> None:
    killed = Fault(Kind.REPLACED, at_s=8.0, seconds=2.0)
    collected = Fault(Kind.COLLECTED, at_s=55.0)
    world = played(Scenario(seed=seed, duration_s=20.0, lease_s=6.0, faults=(killed, collected)))
    check(world)
    first, second = (fold(records) for records in world.journals.values())
    assert second.closed is not None
    assert (second.closed.outcome, second.closed.reason) == (Outcome.COMPLETED, "")
    assert second.totals.operations == world.done["run-2"]
    assert first.is_complete
    assert first.totals.operations == world.done["run-1"] > 0


# -- shares of lost agents that others take over

losses = st.builds(
    Fault,
    kind=st.sampled_from([*CUTS, *DEATHS, Kind.AGENT_TERMINATED, Kind.AGENT_STOPPED, Kind.KILLED, Kind.HELD_UP]),
    at_s=st.floats(2, 60).map(lambda value: round(value, 1)),
    agent=st.integers(0, 3),
    seconds=st.floats(0.5, 30).map(lambda value: round(value, 1)),
)


@tried(25)
@given(
    st.integers(0, 2**32),
    st.integers(1, 3),
    st.integers(0, 2),
    st.sampled_from([{"duration_s": 60.0}, {"duration_s": None, "requests": 30}]),
    st.lists(losses, min_size=1, max_size=5),
    st.sampled_from([0.0, 0.1]),
)
def test_two_agents_never_work_on_one_share(
    seed: int, expected: int, standbys: int, load: dict[str, Any], faults: list[Fault], loss: float
) -> None:
    scenario = Scenario(
        seed=seed,
        agents=expected + standbys,
        expected=expected,
        on_agent_loss=OnAgentLoss.REPLACE,
        lease_s=4.0,
        loss=loss,
        faults=tuple(faults),
    )
    check(played(replace(scenario, **load)))


@pytest.mark.parametrize("fault", [Kind.AGENT_KILLED, Kind.AGENT_TERMINATED, Kind.BLACKHOLE, Kind.AGENT_STOPPED])
@pytest.mark.parametrize("is_resumed", [False, True])
def test_a_standby_takes_over_the_share_of_a_lost_agent(fault: Kind, is_resumed: bool) -> None:
    lost = Fault(fault, at_s=8.0, seconds=70.0)
    killed = (Fault(Kind.KILLED, at_s=20.0, seconds=2.0),) if is_resumed else ()
    scenario = Scenario(agents=3, expected=2, duration_s=120.0, lease_s=6.0, faults=(lost, *killed))
    world = played(replace(scenario, on_agent_loss=OnAgentLoss.REPLACE))
    check(world)
    [records] = world.journals.values()
    aggregate = fold(records)
    [taken] = aggregate.takeovers
    assert aggregate.agents[taken.agent.agent_id].finished
    end = aggregate.agents[taken.replaces].end
    assert end is not None
    assert end.final is None or end.final.reason


class FleetWithFaults(RuleBasedStateMachine):
    """A simulated fleet with faults at moments that depend on its state."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(Scenario())

    @initialize(scenario=scenarios(st.nothing(), most=0, loss=0.1, loads=by_duration | by_requests))
    def begins(self, scenario: Scenario) -> None:
        self.world = World(scenario)

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0, 5.0]))
    def passes(self, seconds: float) -> None:
        self.world.play_for(seconds)

    @rule(phase=st.sampled_from(Phase), seconds=st.sampled_from([0.0, 0.3]))
    def comes_to(self, phase: Phase, seconds: float) -> None:
        """Play until the run is in this phase, at most for 20 s, and a little further."""
        self.world.play_for(20.0, lambda: self.phase is phase)
        self.world.play_for(seconds)

    @rule(kind=st.sampled_from(Kind), agent=st.integers(0, 3), seconds=st.sampled_from([0.2, 1.0, 3.0, 10.0]))
    def inflicts_a_fault(self, kind: Kind, agent: int, seconds: float) -> None:
        self.world.inflict(Fault(kind, at_s=0.0, agent=agent, seconds=seconds))

    @property
    def phase(self) -> Phase | None:
        return self.world.coordinator.run.state.phase if self.world.coordinator is not None else None

    @invariant()
    def nothing_counts_twice(self) -> None:
        for run_id, records in self.world.journals.items():
            reported = sum(agent.reported[run_id] for agent in self.world.agents)
            assert fold(records).totals.operations <= reported

    @invariant()
    def no_agent_loads_beyond_its_lease(self) -> None:
        assert not self.world.unfenced

    def teardown(self) -> None:
        self.world.play()
        check(self.world)


TestFleetWithFaults = FleetWithFaults.TestCase
TestFleetWithFaults.settings = tried(15, steps=12)


@pytest.mark.parametrize("seed", range(3))
def test_late_answers_do_not_extend_a_lease(seed: int) -> None:
    # The agent receives answers all the time, but each of them is old.
    faults = tuple(Fault(Kind.HELD_BACK, at_s=5.0 + 5.5 * number, seconds=5.4) for number in range(12))
    world = played(Scenario(seed=seed, agents=1, expected=1, duration_s=40.0, lease_s=4.0, faults=faults))
    check(world)
    [records] = world.journals.values()
    reasons = [record.final.reason for record in records if isinstance(record, AgentEnded) and record.final]
    assert reasons == ["no word from its coordinator for 4 s"]
