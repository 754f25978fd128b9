"""Adds up the records of a run. Live views, the ledger and reports read the sums; only `Aggregate.apply` changes them.

Each interval of a frame is added twice:

- To the totals of its stage: every command of every pool, merged exactly.
- To its seconds: counts and latencies over all commands and stages. Past seconds are compressed, so that an hour takes
  tens of megabytes.

Reports cover the measured stages; the ledger covers everything. A second is complete when every agent that still takes
part has reported it (`MetricsFrame.through`). Operations that an agent reports later are still added to their second.

An agent that could not send for some time merges its frames into an interval of several seconds. The interval's counts
are spread evenly over its seconds; its latencies and its peak of connections count in each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import assert_never

from common.errors import ProtocolError
from common.metrics.intervals import (
    IntervalMetrics,
    Merge,
    add_named,
    merge_intervals,
)
from common.plan.scenarios import MAIN, ScenarioPlan, scenario_plans
from common.plan.schema import Load
from common.plan.timeline import Timeline, timeline
from common.protocol.messages import MetricsFrame
from common.units import NS_PER_S
from coordinator.analysis.totals.scenario_records import record_of_scenario
from coordinator.analysis.totals.server_side import ServerSide
from coordinator.analysis.totals.tallies import AgentTally, Second, SecondPart, StageTally, spread_over_seconds
from coordinator.journal.records import (
    AgentEnded,
    AgentOutcome,
    AnyRecord,
    CleanedUp,
    CoordinatorFailed,
    CountersRead,
    FrameAccepted,
    NodeDescribed,
    NodeSampled,
    NodeSilent,
    Reading,
    RunClosed,
    RunOpened,
    RunStarted,
    ShareTakenOver,
    StopDecided,
    StopKind,
    WorkerDied,
)

COMPACT_AFTER_S = 10
"""Once a second has been complete for this long, it keeps only sums over agents, and compressed histograms."""


class Aggregate:
    """The sums of all records so far. Attributes are read-only for callers.

    recovered: complete seconds that changed later, because an agent that had been cut off reported its operations.
    peak_open: most connections open in any second, over all agents. scenario: see `__init__`. parts: in a run with
    several scenarios, an aggregate of each, folded from this scenario's records alone. The legs of `line` are then
    those of all scenarios, one scenario after the other; their times overlap.
    """

    def __init__(self, scenario: ScenarioPlan | None = None) -> None:
        """scenario: for a part of a run with several."""
        self.scenario = scenario
        self.parts: tuple[Aggregate, ...] = ()
        self._scenario_of_leg: tuple[int, ...] = (0,)
        self.opened: RunOpened | None = None
        self.started: RunStarted | None = None
        self.cleaned: CleanedUp | None = None
        self.stops: list[StopDecided] = []
        self.closed: RunClosed | None = None
        self.failed: CoordinatorFailed | None = None
        self.is_running = False
        """Whether a coordinator runs this run now. The reader of the journal sets this, because no record has it."""
        self.readings: dict[Reading, CountersRead] = {}
        self.servers = ServerSide()
        self.agents: dict[str, AgentTally] = {}
        self.takeovers: list[ShareTakenOver] = []
        self.workers_lost: list[WorkerDied] = []
        self.seconds: dict[int, Second] = {}
        self.complete_through = -1
        self.peak_open = 0
        self.recovered: set[int] = set()
        self.timeline = timeline(Load())
        self.stages: list[StageTally] = [StageTally()]
        self._lagging: set[str] = set()
        """Agents that take part, but have reported no second after `complete_through`."""
        self._compacted_through = -1

    def apply(self, record: AnyRecord) -> None:
        """Add one record. A repeated record counts once. Results after the end of a run reopen it until its end is
        recorded again. Raises ProtocolError, and changes nothing, for a record that is not possible here. The content
        of frames has been checked before (`coordinator.journal.frame_checks`)."""
        self._check_order(record)
        self.failed = None  # a record after the failure means that the run was resumed
        match record:
            case RunOpened() if self.opened is not None:
                pass  # a repeated record
            case RunOpened():
                self.opened = record
                self._open_parts(record)
                self.stages = [StageTally() for _ in self.timeline.legs]
                self.agents = {facts.agent_id: AgentTally(facts) for facts in record.agents}
                self._lagging = set(self.agents)
            case RunStarted():
                self.started = record
            case FrameAccepted():
                self._add_frame(record.agent_id, record.frame)
            case AgentEnded():
                self._note(record)
            case ShareTakenOver():
                self._take_over(record)
            case WorkerDied():
                known = {(each.agent_id, each.process) for each in self.workers_lost}
                if (record.agent_id, record.process) not in known:
                    self.workers_lost.append(record)
            case CountersRead():
                self.readings[record.when] = record
            case NodeDescribed() | NodeSampled() | NodeSilent():
                self.servers.apply(record, counts=Reading.BEFORE in self.readings)
            case CleanedUp():
                self.cleaned = record
            case StopDecided():
                if record not in self.stops:
                    self.stops.append(record)
            case RunClosed():
                self.closed = record
            case CoordinatorFailed():
                self.failed = record
            case _:
                assert_never(record)
        for part in self.parts:
            assert part.scenario is not None
            if isinstance(record, NodeDescribed | NodeSampled | NodeSilent):
                continue  # parts share `servers`
            if part.opened is None or not isinstance(record, RunOpened):
                part.apply(record_of_scenario(record, part.scenario))
        if self.parts and isinstance(record, RunOpened):
            # The legs of the run are those of its scenarios, so each is added up once.
            self.stages = [stage for part in self.parts for stage in part.stages]

    def _check_order(self, record: AnyRecord) -> None:
        if self.opened is None and not isinstance(record, RunOpened):
            raise ProtocolError(f"the first record is {type(record).__name__}, expected RunOpened")
        if self.opened is not None and isinstance(record, RunOpened) and record != self.opened:
            raise ProtocolError(f"a second run begins, {record.run_id}; expected one run, {self.opened.run_id}")

    def _open_parts(self, record: RunOpened) -> None:
        if self.scenario is not None:
            self.timeline = self.scenario.timeline
            return
        scenarios = scenario_plans(record.plan)
        self.timeline = Timeline(tuple(leg for each in scenarios for leg in each.timeline.legs))
        self._scenario_of_leg = tuple(each.number for each in scenarios for _ in each.timeline.legs)
        if record.plan.scenarios:
            self.parts = tuple(map(Aggregate, scenarios))
            for part in self.parts:
                part.servers = self.servers

    @property
    def name(self) -> str:
        """The name of the scenario."""
        return self.scenario.name if self.scenario is not None else MAIN

    @property
    def end_ns(self) -> int | None:
        """When the load ends as planned, after the start; None if the end of a scenario is not planned in time."""
        ends_ns = [each.timeline.end_ns for each in self.scenarios]
        known_ns = [end_ns for end_ns in ends_ns if end_ns is not None]
        return max(known_ns) if len(known_ns) == len(ends_ns) else None

    @property
    def scenarios(self) -> tuple[Aggregate, ...]:
        """The aggregate of each scenario: this one, for a run with one."""
        return self.parts or (self,)

    @property
    def is_complete(self) -> bool:
        """Whether the run has ended, and every agent has reported everything."""
        return self.closed is not None and all(agent.finished for agent in self.agents.values())

    @property
    def can_resume(self) -> bool:
        """Whether `--resume` makes sense: the run has not ended, agents may have results, or keys are left."""
        may_report = any(not agent.finished and not agent.has_left for agent in self.agents.values())
        return self.closed is None or may_report or self.left_keys

    @property
    def left_keys(self) -> bool:
        """Whether the clean-up left keys, or may have left some."""
        return self.cleaned is not None and self.cleaned.left != 0

    @property
    def load_stop(self) -> StopDecided | None:
        """The decision that stopped the load early; None if the load lasted as long as planned."""
        return next((stop for stop in self.stops if stop.what is not StopKind.CLEAN_UP), None)

    @property
    def totals(self) -> IntervalMetrics:
        """The sum of all frames, over all stages."""
        return _together([part.totals for part in self.parts]) if self.parts else _as_one(self.stages)

    @property
    def measured(self) -> IntervalMetrics:
        """The sum of all frames over the measured stages, which is what reports show."""
        return _together([part.measured for part in self.parts]) if self.parts else _as_one(self.measured_stages)

    @property
    def measured_stages(self) -> list[StageTally]:
        """All stages except the warmup."""
        return [stage for stage, leg in zip(self.stages, self.timeline.legs, strict=True) if leg.measured]

    @property
    def peak_wanted(self) -> int | None:
        """Most connections wanted in any second, over all agents; None if an agent's release does not report them."""
        wanted = [second.connections_wanted for second in self.seconds.values()]
        return None if None in wanted else max((count for count in wanted if count is not None), default=0)

    @property
    def duration_s(self) -> float:
        """Length of the run; until it has ended, up to the last known second. For one scenario of several, up to the
        end of this scenario."""
        if self.closed is None:
            return float(max(self.seconds, default=-1) + 1)
        finals = [agent.end.final for agent in self.agents.values() if agent.end and agent.end.final]
        if self.scenario is None or len(finals) < len(self.agents):
            end_ns = None if self.scenario is None else self.timeline.end_ns
            return self.closed.duration_s if end_ns is None else min(self.closed.duration_s, end_ns / NS_PER_S)
        return max((final.ran_ns for final in finals), default=0) / NS_PER_S

    def by_second(self) -> Iterator[tuple[int, Second]]:
        """Yield (number, second) for every second up to the last known one; a second without reports is empty."""
        for number in range(max(self.seconds, default=-1) + 1):
            yield number, self.seconds.get(number) or Second()

    def _agent(self, agent_id: str) -> AgentTally:
        try:
            return self.agents[agent_id]
        except KeyError:
            known = ", ".join(self.agents) or "none"
            raise ProtocolError(f"a record of agent {agent_id!r}, but the agents of this run are: {known}") from None

    def _take_over(self, record: ShareTakenOver) -> None:
        agent_id = record.agent.agent_id
        if agent_id not in self.agents:
            self.takeovers.append(record)
            # No agent had the share before that, so these seconds wait for no report.
            self.agents[agent_id] = AgentTally(record.agent, through=record.from_ns // NS_PER_S - 1)
            self._has_reported(self.agents[agent_id])

    def _note(self, record: AgentEnded) -> None:
        agent = self._agent(record.agent_id)
        if agent.finished or agent.end == record:
            return
        agent.end = record
        self.closed = None
        self._lagging.discard(record.agent_id)
        self._advance()

    def _add_frame(self, agent_id: str, frame: MetricsFrame) -> None:
        agent = self._agent(agent_id)
        if frame.seq < agent.next_seq:
            return
        self.closed = None
        for interval in frame.intervals:
            self._add_interval(agent, interval)
        agent.next_seq = frame.seq + 1
        if agent.end is not None and agent.end.state is AgentOutcome.LOST:
            agent.end = None  # the agent was silent for a while, and is back
        # These seconds became complete without the share of this agent, which was cut off.
        self.recovered.update(range(agent.through + 1, min(frame.through, self.complete_through) + 1))
        agent.through = max(agent.through, frame.through)
        self._has_reported(agent)
        self._advance()

    def _has_reported(self, agent: AgentTally) -> None:
        if agent.through > self.complete_through:
            self._lagging.discard(agent.facts.agent_id)
        elif agent.end is None:
            self._lagging.add(agent.facts.agent_id)

    def _add_interval(self, agent: AgentTally, interval: IntervalMetrics) -> None:
        commands = [command for pool in interval.pools.values() for command in pool.commands.values()]
        ok = sum([command.ok for command in commands])
        failed = [command for command in commands if command.errors or command.failures]
        errors = sum(command.error_count for command in failed)
        agent.issued += interval.issued
        agent.counted += ok + errors
        agent.transactions += interval.transactions
        agent.due_known[interval.stage] += ok + errors + interval.unsent
        for name, pool in interval.pools.items():
            if self.timeline.legs[interval.stage].measured:
                agent.measured[name] += sum([command.operations for command in pool.commands.values()])
            for cause, count in pool.connections.never_opened.items():
                add_named(agent.never_opened, cause, count)
        if not self.parts:
            self.stages[interval.stage].add(agent.facts.agent_id, interval, ok, errors)
        is_open = self.timeline.legs[interval.stage].is_open
        scenario = self._scenario_of_leg[interval.stage] if self.parts else 0
        for part in (
            map(SecondPart.from_metrics, interval.seconds) if interval.seconds else spread_over_seconds(interval)
        ):
            second = self.seconds.get(part.number) or self.seconds.setdefault(part.number, Second())
            # Scenarios have connections and processes of their own, so their gauges add up.
            gauge = f"{agent.facts.agent_id}\0{scenario}" if self.parts else agent.facts.agent_id
            second.add(gauge, agent.through, part, is_open=is_open)
            self.peak_open = max(self.peak_open, second.connections_open)

    def _advance(self) -> None:
        """Advance `complete_through`, merge the histograms of the new complete seconds, and compact older ones."""
        if self._lagging:
            return
        running = [agent for agent in self.agents.values() if agent.end is None]
        through = min(agent.through for agent in running) if running else max(self.seconds, default=-1)
        for number in range(self.complete_through + 1, through + 1):
            if (second := self.seconds.get(number)) is not None:
                second.merge()
        self.complete_through = max(self.complete_through, through)
        self._lagging = {agent.facts.agent_id for agent in running if agent.through <= self.complete_through}
        for number in range(self._compacted_through + 1, self.complete_through - COMPACT_AFTER_S + 1):
            if (second := self.seconds.get(number)) is not None:
                second.compact()
            self._compacted_through = number


def fold(records: Iterable[AnyRecord]) -> Aggregate:
    """Add all records of a journal, as `read_journal` returns them. Raises ProtocolError as `apply` does."""
    aggregate = Aggregate()
    for record in records:
        aggregate.apply(record)
    return aggregate


def scenarios_by_target(run: Aggregate) -> dict[str, list[Aggregate]]:
    """The scenarios of a run by the name of their target."""
    found: dict[str, list[Aggregate]] = {}
    for each in run.scenarios:
        found.setdefault(each.scenario.target if each.scenario else "", []).append(each)
    return found


def _together(scenarios: list[IntervalMetrics]) -> IntervalMetrics:
    """The sum over scenarios, which run at the same time and have connections and processes of their own."""
    return merge_intervals(scenarios, Merge.PARALLEL)


def _as_one(stages: list[StageTally]) -> IntervalMetrics:
    totals = [stage.totals for stage in stages]
    return totals[0] if len(totals) == 1 else merge_intervals(totals, Merge.CONSECUTIVE)
