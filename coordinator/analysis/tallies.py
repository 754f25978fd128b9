"""Sums of a run: by second, by stage and by agent. Pure; `coordinator.analysis.aggregate` fills them from records.

A second adds up all agents, commands and stages: counts, and one histogram of each kind. What each agent had (its peak
of connections, its busiest worker process) is kept while more of it may come, and then summed: of a large fleet these
gauges would take more memory than everything else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from common.metrics.histogram import EMPTY, Histogram
from common.metrics.intervals import (
    GeneratorMetrics,
    HoldUps,
    IntervalMetrics,
    Merge,
    SecondMetrics,
    add_named,
    merge_counts,
    merge_hold_ups,
    merge_intervals,
)
from coordinator.analysis.compact_histogram import CompactHistogram
from coordinator.core.records import AgentEnd, AgentFacts, AgentNoted

_MERGE_AT_ONCE = 256
"""Intervals that wait to be merged into the totals: one merge of many costs little more than one of two."""

_MOST_PARTS = 256
"""Histograms of one second that wait to be merged: a second that is complete can still get any number of late ones."""

_NOTHING = IntervalMetrics(first=0, last=0)


class Pile:
    """Histograms on their way to becoming one; adding costs nothing, the merge happens when somebody looks."""

    __slots__ = ("_compact", "_parts")

    def __init__(self) -> None:
        self._parts: list[Histogram] = []
        self._compact: CompactHistogram | None = None

    def add(self, *histograms: Histogram) -> None:
        """Add to the sum."""
        self._parts += [histogram for histogram in histograms if histogram.count]
        if len(self._parts) > _MOST_PARTS:
            self.settle()

    @property
    def merged(self) -> Histogram:
        """The histogram of all values so far."""
        if self._compact is not None:
            self.compress()
            return self._compact.expand()
        self.settle()
        return self._parts[0] if self._parts else EMPTY

    def settle(self) -> None:
        """Merge what was added."""
        if len(self._parts) > 1:
            self._parts = [Histogram.merge(self._parts)]

    def compress(self) -> None:
        """Merge everything, and keep it in a fraction of the memory: reading it costs more from now on."""
        if self._parts:
            before = [] if self._compact is None else [self._compact.expand()]
            self._compact = CompactHistogram.of(Histogram.merge([*before, *self._parts]))
            self._parts = []


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


@dataclass(frozen=True, slots=True)
class Sealed:
    """What agents had in a second that was complete long ago: how many agents, the sums of their peaks of connections
    (wanted: None if one does not report it), and the share of a core of the busiest worker process."""

    agents: int = 0
    open: int = 0
    wanted: int | None = 0
    core_share: float | None = None


class SecondPart(NamedTuple):
    """What one agent had in one second, all pools and commands together. Fields as in `SecondMetrics`; refusals: errors
    by code, errors: operations that were not done. service, response: histograms that add up to those of the second."""

    number: int
    issued: int
    ok: int
    errors: int
    failures: Mapping[str, int]
    refusals: Mapping[str, int]
    service: Sequence[Histogram]
    response: Sequence[Histogram]
    loop_lag: Histogram
    open_peak: int
    wanted: int
    watched_ns: int
    busiest_cpu_ns: int
    busiest_loop_ns: int

    @classmethod
    def of(cls, second: SecondMetrics) -> SecondPart:
        """As its agent reported it."""
        return cls(
            second.number,
            second.issued,
            second.ok,
            second.error_count,
            second.failures,
            second.errors,
            (second.service,),
            (second.response,),
            second.loop_lag,
            second.open_peak,
            second.wanted,
            second.watched_ns,
            second.busiest_cpu_ns,
            second.busiest_loop_ns,
        )


def spread(interval: IntervalMetrics) -> Iterator[SecondPart]:
    """The seconds of an interval that does not have them apart: counts evenly, everything else in each."""
    pools, generator = interval.pools.values(), interval.generator
    commands = [command for pool in pools for command in pool.commands.values()]
    failed = [command for command in commands if command.errors or command.failures]
    ok, errors = sum([command.ok for command in commands]), sum([command.error_count for command in failed])
    failures = merge_counts([command.failures for command in failed])
    refusals = merge_counts([command.errors for command in failed])
    span = interval.last - interval.first + 1
    for position, number in enumerate(range(interval.first, interval.last + 1)):
        yield SecondPart(
            number,
            _part(interval.issued, position, span),
            _part(ok, position, span),
            _part(errors, position, span),
            {name: _part(count, position, span) for name, count in failures.items()},
            {name: _part(count, position, span) for name, count in refusals.items()},
            [command.service for command in commands],
            [command.response for command in commands],
            generator.loop_lag,
            sum([pool.connections.open_peak for pool in pools]),
            sum([pool.connections.wanted for pool in pools]),
            generator.watched_ns,
            generator.busiest_cpu_ns,
            generator.busiest_loop_ns,
        )


def _part(count: int, position: int, parts: int) -> int:
    """The share of `count` that falls to `position` when it is dealt evenly; all shares add up to it."""
    return count * (position + 1) // parts - count * position // parts


@dataclass(slots=True)
class Second:
    """One second of the run, all agents and commands together. begun: operations, by the time at which that was read,
    soon after the second. ended_open: those of `operations` that had an intended time. failures, refusals: errors by
    class, without a reply and with an error reply. open_peaks, wanted_peaks: connections by agent id; busy: the same of
    worker processes; all three only of agents that reported after the second was sealed."""

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
    sealed: Sealed | None = None

    @property
    def agents(self) -> int:
        """How many agents have reported something."""
        return len(self.open_peaks) + (self.sealed.agents if self.sealed else 0)

    @property
    def core_share(self) -> float | None:
        """Of one core, of the busiest worker process of all agents; None where none says."""
        shares = [busy.core_share for busy in self.busy.values() if busy.watched_ns]
        if self.sealed and self.sealed.core_share is not None:
            shares.append(self.sealed.core_share)
        return max(shares, default=None)

    @property
    def connections_open(self) -> int:
        """Most connections open in this second: each agent's peak, added."""
        return sum(self.open_peaks.values()) + (self.sealed.open if self.sealed else 0)

    @property
    def connections_wanted(self) -> int | None:
        """Most connections wanted in this second, summed as `connections_open` is; None if an agent's release does not
        report them: such an agent has open connections and wants 0."""
        before = self.sealed.wanted if self.sealed else 0
        all_report = all(self.wanted_peaks[agent_id] for agent_id, peak in self.open_peaks.items() if peak)
        return sum(self.wanted_peaks.values()) + before if all_report and before is not None else None

    def settle(self) -> None:
        """Keep one histogram of each kind, however many parts came."""
        self.service.settle()
        self.response.settle()
        self.loop_lag.settle()

    def add(self, agent_id: str, through: int, part: SecondPart, *, is_open: bool) -> None:
        """Take what an agent had in this second, and has reported before up to `through`. is_open: in an open loop."""
        self.operations += part.ok + part.errors
        self.begun += part.issued
        self.ended_open += part.ok + part.errors if is_open else 0
        self.ok += part.ok
        self.errors += part.errors
        for counts, more in ((self.failures, part.failures), (self.refusals, part.refusals)):
            for name, count in more.items():
                add_named(counts, name, count)
        self.service.add(*part.service)
        self.response.add(*part.response)
        self.loop_lag.add(part.loop_lag)
        if self.sealed is not None and part.number <= through and agent_id not in self.open_peaks:
            return  # its gauges are among the sums: what was late has no more of them
        self.open_peaks[agent_id] = max(self.open_peaks.get(agent_id, 0), part.open_peak)
        self.wanted_peaks[agent_id] = max(self.wanted_peaks.get(agent_id, 0), part.wanted)
        self.busy.setdefault(agent_id, Busy()).add(part.watched_ns, part.busiest_cpu_ns, part.busiest_loop_ns)

    @property
    def sums(self) -> Sealed:
        """The gauges of all agents together."""
        return Sealed(self.agents, self.connections_open, self.connections_wanted, self.core_share)

    def seal(self) -> None:
        """Keep sums over agents only, and compress the histograms: then an hour takes tens of megabytes."""
        self.sealed = self.sums
        self.open_peaks, self.wanted_peaks, self.busy = {}, {}, {}
        for pile in (self.service, self.response, self.loop_lag):
            pile.compress()


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

    def add(self, agent_id: str, interval: IntervalMetrics, ok: int, errors: int) -> None:
        """Add an interval, with its numbers of operations that were done, and that ended otherwise."""
        _add_busy(self.busy, agent_id, interval.generator)
        _add_hold_ups(self.hold_ups, agent_id, interval.generator)
        self.operations += ok + errors
        self.ok += ok
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
    def left(self) -> bool:
        """It has reported all that it ever will, although it did not come to its end."""
        return self.end is not None and self.end.left

    @property
    def finished(self) -> bool:
        """It came to its end and said what it did."""
        return self.end is not None and self.end.state is AgentEnd.FINISHED
