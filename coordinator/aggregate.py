"""A fold over the records of a run: what is known of it so far. Live views, ledger and reports read it; only
`Aggregate.apply` changes it.

A frame's intervals go two ways. Into the totals of their stage: every command of every pool, merged exactly. And into
the seconds: counts and latencies of all commands and stages together, which keeps an hour's seconds in some ten
megabytes. What is reported is of the stages that are measured; the audit is of everything. A second is complete
when every agent that still takes part has said so (`MetricsFrame.through`); a late operation is added to it even then.

An interval of several seconds is what an agent makes of frames that piled up while it could not send them. Its counts
are spread evenly over its seconds, its latencies and its peak of connections stand for each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import assert_never

import msgspec

from common.errors import ProtocolError
from common.histogram import EMPTY, Histogram
from common.messages import MetricsFrame
from common.metrics import (
    GeneratorMetrics,
    HoldUps,
    IntervalMetrics,
    Merge,
    add_named,
    merge_counts,
    merge_hold_ups,
    merge_intervals,
)
from common.plan.schema import Load
from common.plan.timeline import timeline
from common.units import NS_PER_S
from coordinator.frames import check_frame
from coordinator.records import (
    AgentEnd,
    AgentFacts,
    AgentNoted,
    AnyRecord,
    CleanedUp,
    CoordinatorFailed,
    FrameAccepted,
    RunClosed,
    RunOpened,
    RunStarted,
    ServerCounted,
    ShareTakenOver,
    StopDecided,
    Stopping,
    When,
    WorkerNoted,
)

_MERGE_AT_ONCE = 16
"""Intervals that wait to be merged into the totals: one merge of many costs little more than one of two."""

_MOST_PARTS = 64
"""Histograms of one second that wait to be merged: a second that is complete can still get any number of late ones."""

_NOTHING = IntervalMetrics(first=0, last=0)


class Pile:
    """Histograms on their way to becoming one; adding costs nothing, the merge happens when somebody looks."""

    __slots__ = ("_parts",)

    def __init__(self) -> None:
        self._parts: list[Histogram] = []

    def add(self, histogram: Histogram) -> None:
        """Take one more into the sum."""
        if histogram.count:
            self._parts.append(histogram)
            if len(self._parts) > _MOST_PARTS:
                self.settle()

    @property
    def merged(self) -> Histogram:
        """The histogram of all values so far."""
        self.settle()
        return self._parts[0] if self._parts else EMPTY

    def settle(self) -> None:
        """Merge what was added."""
        if len(self._parts) > 1:
            self._parts = [Histogram.merge(self._parts)]


@dataclass(slots=True)
class Busy:
    """How busy the busiest worker process of an agent was, in each second whichever that was; and the busiest event
    loop. watched_ns: for how long this is known; 0 of an agent whose release does not say."""

    watched_ns: int = 0
    cpu_ns: int = 0
    loop_ns: int = 0

    def add(self, watched_ns: int, cpu_ns: int, loop_ns: int) -> None:
        """Take some more time into the sum."""
        self.watched_ns += watched_ns
        self.cpu_ns += cpu_ns
        self.loop_ns += loop_ns

    @property
    def core_share(self) -> float:
        """Of one core, in the mean."""
        return self.cpu_ns / self.watched_ns if self.watched_ns else 0.0

    @property
    def loop_share(self) -> float:
        """Of the time, in the mean; 0.0 without event loops."""
        return self.loop_ns / self.watched_ns if self.watched_ns else 0.0


def _add_busy(by_agent: dict[str, Busy], agent_id: str, generator: GeneratorMetrics) -> None:
    busy = by_agent.setdefault(agent_id, Busy())
    busy.add(generator.watched_ns, generator.busiest_cpu_ns, generator.busiest_loop_ns)


def _add_hold_ups(by_agent: dict[str, HoldUps], agent_id: str, generator: GeneratorMetrics) -> None:
    more = generator.hold_ups
    if more is not None and more.allowed_ns:
        # Some systems do not report the CPU time of all processes under a quota: our own is a lower bound.
        more = msgspec.structs.replace(more, quota_used_ns=max(more.quota_used_ns, generator.cpu_ns))
    if (merged := merge_hold_ups([by_agent.get(agent_id), more], Merge.NEIGHBOURS)) is not None:
        by_agent[agent_id] = merged


@dataclass(slots=True)
class Second:
    """One second of the run, all agents and commands together. begun: operations, by the time at which that was read,
    soon after the second. ended_open: those of `operations` that had an intended time. failures, refusals: errors by
    class, without a reply and with an error reply. open_peaks, wanted_peaks: connections by agent id; busy: the same of
    worker processes."""

    operations: int = 0
    begun: int = 0
    ended_open: int = 0
    ok: int = 0
    errors: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    open_peaks: dict[str, int] = field(default_factory=dict)
    wanted_peaks: dict[str, int] = field(default_factory=dict)
    service: Pile = field(default_factory=Pile)
    response: Pile = field(default_factory=Pile)
    busy: dict[str, Busy] = field(default_factory=dict)
    loop_lag: Pile = field(default_factory=Pile)

    @property
    def core_share(self) -> float | None:
        """Of one core, of the busiest worker process of all agents; None where none says."""
        return max((busy.core_share for busy in self.busy.values() if busy.watched_ns), default=None)

    @property
    def connections_open(self) -> int:
        """Most connections open in this second: each agent's peak, added."""
        return sum(self.open_peaks.values())

    @property
    def connections_wanted(self) -> int | None:
        """Most connections wanted in this second, summed as `connections_open` is; None if an agent's release does not
        report them: such an agent has open connections and wants 0."""
        all_report = all(self.wanted_peaks[agent_id] for agent_id, peak in self.open_peaks.items() if peak)
        return sum(self.wanted_peaks.values()) if all_report else None

    def settle(self) -> None:
        """Keep one histogram of each kind, however many parts came."""
        self.service.settle()
        self.response.settle()
        self.loop_lag.settle()


@dataclass(slots=True)
class StageTally:
    """What is known of one leg of the load's timeline. operations: those that came to an end; how many more were begun
    is known of the whole run only. late: those begun after the end of the leg. busy, hold_ups: by agent id; the latter
    only of those whose release tells."""

    operations: int = 0
    ok: int = 0
    unsent: int = 0
    late: int = 0
    busy: dict[str, Busy] = field(default_factory=dict)
    hold_ups: dict[str, HoldUps] = field(default_factory=dict)
    _totals: IntervalMetrics = _NOTHING
    _waiting: list[IntervalMetrics] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Operations that came to an end, but were not done."""
        return self.operations - self.ok

    @property
    def totals(self) -> IntervalMetrics:
        """All its intervals as one, which claims to be of leg 0."""
        self._merge_waiting()
        return self._totals

    def add(self, agent_id: str, interval: IntervalMetrics) -> None:
        """Take one more."""
        _add_busy(self.busy, agent_id, interval.generator)
        _add_hold_ups(self.hold_ups, agent_id, interval.generator)
        commands = [command for pool in interval.pools.values() for command in pool.commands.values()]
        self.operations += sum(command.operations for command in commands)
        self.ok += sum(command.ok for command in commands)
        self.unsent += interval.unsent
        self.late += interval.late
        self._waiting.append(msgspec.structs.replace(interval, stage=0))
        if len(self._waiting) >= _MERGE_AT_ONCE:
            self._merge_waiting()

    def _merge_waiting(self) -> None:
        if self._waiting:
            self._totals = merge_intervals([self._totals, *self._waiting], Merge.NEIGHBOURS)
            self._waiting.clear()


@dataclass(slots=True)
class AgentTally:
    """One agent's part so far. issued, counted, transactions, never_opened (connections by cause): from its frames.
    measured: operations of those stages that are measured, by pool group. due_known: operations by leg that came to an
    end, or that were due and never sent. next_seq: of the frame wanted next. end: how its part ended, None while it
    runs."""

    facts: AgentFacts
    through: int = -1
    next_seq: int = 0
    never_opened: dict[str, int] = field(default_factory=dict)
    issued: int = 0
    counted: int = 0
    transactions: int = 0
    measured: Counter[str] = field(default_factory=Counter)
    due_known: Counter[int] = field(default_factory=Counter)
    end: AgentNoted | None = None

    @property
    def finished(self) -> bool:
        """It came to its end and said what it did."""
        return self.end is not None and self.end.state is AgentEnd.FINISHED


class Aggregate:
    """All that the records so far say. Attributes are for reading. recovered: complete seconds that changed later,
    because an agent that had been cut off reported its share."""

    def __init__(self) -> None:
        self.opened: RunOpened | None = None
        self.started: RunStarted | None = None
        self.cleaned: CleanedUp | None = None
        self.stops: list[StopDecided] = []
        self.closed: RunClosed | None = None
        self.failed: CoordinatorFailed | None = None
        self.is_running = False
        """A coordinator runs it at this moment. No record says so: the reader of the journal sets this."""
        self.readings: dict[When, ServerCounted] = {}
        self.agents: dict[str, AgentTally] = {}
        self.takeovers: list[ShareTakenOver] = []
        self.workers_lost: list[WorkerNoted] = []
        self.seconds: dict[int, Second] = {}
        self.complete_through = -1
        self.recovered: set[int] = set()
        self.line = timeline(Load())
        self.stages: list[StageTally] = [StageTally()]

    def apply(self, record: AnyRecord) -> None:
        """Take one record. Raises ProtocolError, and changes nothing, for one that makes no sense here."""
        self._check_order(record)
        self.failed = None  # a record after the failure means that the run was resumed
        match record:
            case RunOpened() if self.opened is not None:
                pass  # the same once more
            case RunOpened():
                self.opened = record
                self.line = timeline(record.plan.load)
                self.stages = [StageTally() for _ in self.line.legs]
                self.agents = {facts.agent_id: AgentTally(facts) for facts in record.agents}
            case RunStarted():
                self.started = record
            case FrameAccepted():
                self._add_frame(record.agent_id, record.frame)
            case AgentNoted():
                self._agent(record.agent_id).end = record
                self._settle()
            case ShareTakenOver():
                self._take_over(record)
            case WorkerNoted():
                self.workers_lost.append(record)
            case ServerCounted():
                self.readings[record.when] = record
            case CleanedUp():
                self.cleaned = record
            case StopDecided():
                self.stops.append(record)
            case RunClosed():
                self.closed = record
            case CoordinatorFailed():
                self.failed = record
            case _:
                assert_never(record)

    def _check_order(self, record: AnyRecord) -> None:
        if self.opened is None and not isinstance(record, RunOpened):
            raise ProtocolError(f"the first record is {type(record).__name__}, expected RunOpened")
        if self.opened is not None and isinstance(record, RunOpened) and record != self.opened:
            raise ProtocolError(f"a second run begins in it, {record.run_id}; expected one run, {self.opened.run_id}")

    @property
    def load_stop(self) -> StopDecided | None:
        """The decision that ended the load before its time; None for a load that went on as long as was planned."""
        return next((stop for stop in self.stops if stop.what is not Stopping.CLEAN_UP), None)

    @property
    def totals(self) -> IntervalMetrics:
        """Everything that all frames counted, in all stages."""
        return _as_one(self.stages)

    @property
    def measured(self) -> IntervalMetrics:
        """What is reported: everything that was counted in the stages that are measured."""
        return _as_one(self.measured_stages)

    @property
    def measured_stages(self) -> list[StageTally]:
        """All but the warmup."""
        return [stage for stage, leg in zip(self.stages, self.line.legs, strict=True) if leg.measured]

    @property
    def peak_open(self) -> int:
        """Most connections open in any second, over all agents."""
        return max((second.connections_open for second in self.seconds.values()), default=0)

    @property
    def peak_wanted(self) -> int | None:
        """Most connections wanted in any second, over all agents; None if an agent's release does not report them."""
        wanted = [second.connections_wanted for second in self.seconds.values()]
        return None if None in wanted else max((count for count in wanted if count is not None), default=0)

    @property
    def duration_s(self) -> float:
        """Length of the run: as its end says, or else as far as its seconds reach."""
        return self.closed.duration_s if self.closed else float(max(self.seconds, default=-1) + 1)

    def by_second(self) -> Iterator[tuple[int, Second]]:
        """(number, second) for every second from 0 to the last; one in which nothing happened is empty."""
        for number in range(max(self.seconds, default=-1) + 1):
            yield number, self.seconds.get(number) or Second()

    def _agent(self, agent_id: str) -> AgentTally:
        try:
            return self.agents[agent_id]
        except KeyError:
            known = ", ".join(self.agents) or "none"
            raise ProtocolError(f"a record of agent {agent_id!r}, but the agents of this run are: {known}") from None

    def _take_over(self, record: ShareTakenOver) -> None:
        if record.agent.agent_id not in self.agents:
            self.takeovers.append(record)
            # Nobody had the share in the seconds before: they are not waited for.
            self.agents[record.agent.agent_id] = AgentTally(record.agent, through=record.from_ns // NS_PER_S - 1)

    def _add_frame(self, agent_id: str, frame: MetricsFrame) -> None:
        agent = self._agent(agent_id)
        check_frame(frame, len(self.stages))
        for interval in frame.intervals:
            agent.issued += interval.issued
            agent.counted += interval.operations
            agent.transactions += interval.transactions
            agent.due_known[interval.stage] += interval.operations + interval.unsent
            for name, pool in interval.pools.items():
                if self.line.legs[interval.stage].measured:
                    agent.measured[name] += sum(command.operations for command in pool.commands.values())
                for cause, count in pool.connections.never_opened.items():
                    add_named(agent.never_opened, cause, count)
            self._add_seconds(agent_id, interval)
            self.stages[interval.stage].add(agent_id, interval)
        agent.next_seq = frame.seq + 1
        if agent.end is not None and agent.end.state is AgentEnd.LOST:
            agent.end = None  # it was silent for a while, and is back
        # While this agent was cut off, these seconds became complete without its share.
        self.recovered.update(range(agent.through + 1, min(frame.through, self.complete_through) + 1))
        agent.through = max(agent.through, frame.through)
        self._settle()

    def _add_seconds(self, agent_id: str, interval: IntervalMetrics) -> None:
        commands = [command for pool in interval.pools.values() for command in pool.commands.values()]
        ok = sum(command.ok for command in commands)
        errors = sum(command.error_count for command in commands)
        failures = merge_counts(command.failures for command in commands)
        refusals = merge_counts(command.errors for command in commands)
        peak = sum(pool.connections.open_peak for pool in interval.pools.values())
        wanted = sum(pool.connections.wanted for pool in interval.pools.values())
        span = interval.last - interval.first + 1
        is_open = self.line.legs[interval.stage].is_open
        for position, number in enumerate(range(interval.first, interval.last + 1)):
            second = self.seconds.setdefault(number, Second())
            ok_here, errors_here = _part(ok, position, span), _part(errors, position, span)
            second.operations += ok_here + errors_here
            second.begun += _part(interval.issued, position, span)
            second.ended_open += ok_here + errors_here if is_open else 0
            second.ok += ok_here
            second.errors += errors_here
            _add_part(second.failures, failures, position, span)
            _add_part(second.refusals, refusals, position, span)
            second.open_peaks[agent_id] = max(second.open_peaks.get(agent_id, 0), peak)
            second.wanted_peaks[agent_id] = max(second.wanted_peaks.get(agent_id, 0), wanted)
            _add_busy(second.busy, agent_id, interval.generator)
            second.loop_lag.add(interval.generator.loop_lag)
            for command in commands:
                second.service.add(command.service)
                second.response.add(command.response)

    def _settle(self) -> None:
        """Move `complete_through` on, and merge what became complete: memory is one histogram a second from then on."""
        running = [agent.through for agent in self.agents.values() if agent.end is None]
        through = min(running) if running else max(self.seconds, default=-1)
        for number in range(self.complete_through + 1, through + 1):
            if (second := self.seconds.get(number)) is not None:
                second.settle()
        self.complete_through = max(self.complete_through, through)


def fold(records: Iterable[AnyRecord]) -> Aggregate:
    """What a whole journal says. Raises ProtocolError as `apply` does."""
    aggregate = Aggregate()
    for record in records:
        aggregate.apply(record)
    return aggregate


def _as_one(stages: list[StageTally]) -> IntervalMetrics:
    totals = [stage.totals for stage in stages]
    return totals[0] if len(totals) == 1 else merge_intervals(totals, Merge.NEIGHBOURS)


def _add_part(counts: dict[str, int], added: dict[str, int], position: int, parts: int) -> None:
    for name, count in added.items():
        add_named(counts, name, _part(count, position, parts))


def _part(count: int, position: int, parts: int) -> int:
    """The share of `count` that falls to `position` when it is dealt evenly; all shares add up to it."""
    return count * (position + 1) // parts - count * position // parts
