"""Sums of a run by second, by stage and by agent. Pure; `coordinator.analysis.totals.aggregate` adds the records.

A second sums all agents, commands and stages: counts, and one histogram of each kind. The gauges of each agent (peak of
connections, busiest worker process) are kept while the agent may report more about the second, and then summed: for a
large fleet these gauges would take more memory than everything else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from common.metrics.histogram import EMPTY, Histogram
from common.metrics.intervals import (
    GeneratorDelays,
    GeneratorMetrics,
    IntervalMetrics,
    Merge,
    SecondMetrics,
    add_named,
    hits_by_command,
    merge_counts,
    merge_delays,
    merge_intervals,
)
from coordinator.analysis.totals.compact_histogram import CompactHistogram
from coordinator.journal.records import AgentEnded, AgentFacts, AgentOutcome

_MERGE_AT_ONCE = 256
"""Intervals to collect before merging them: one merge of many costs little more than a merge of two."""

_MOST_PARTS = 256
"""Histograms of one second to collect before merging them: a complete second can still get many late ones."""

_NOTHING = IntervalMetrics(first=0, last=0)


class HistogramSum:
    """A sum of histograms: adding one is cheap, reading the sum merges them."""

    __slots__ = ("_compact", "_parts")

    def __init__(self) -> None:
        self._parts: list[Histogram] = []
        self._compact: CompactHistogram | None = None

    def add(self, *histograms: Histogram) -> None:
        """Add histograms to the sum."""
        self._parts += [histogram for histogram in histograms if histogram.count]
        if len(self._parts) > _MOST_PARTS:
            self.merge()

    @property
    def merged(self) -> Histogram:
        """The histogram of all values so far."""
        if self._compact is not None:
            self.compress()
            return self._compact.expand()
        self.merge()
        return self._parts[0] if self._parts else EMPTY

    def merge(self) -> None:
        """Merge the added histograms into one."""
        if len(self._parts) > 1:
            self._parts = [Histogram.merge(self._parts)]

    def compress(self) -> None:
        """Merge all histograms, and compress the result. This saves memory and makes reading slower."""
        if self._parts:
            before = [] if self._compact is None else [self._compact.expand()]
            self._compact = CompactHistogram.from_histogram(Histogram.merge([*before, *self._parts]))
            self._parts = []


@dataclass(slots=True)
class BusyTime:
    """CPU time of an agent's busiest worker process, chosen again each second, and busy time of its busiest event loop.
    watched_ns: how long this was measured; 0 if the agent's release does not measure it."""

    watched_ns: int = 0
    cpu_ns: int = 0
    loop_ns: int = 0

    def add(self, watched_ns: int, cpu_ns: int, loop_ns: int) -> None:
        """Add a period."""
        self.watched_ns += watched_ns
        self.cpu_ns += cpu_ns
        self.loop_ns += loop_ns

    @property
    def core_share(self) -> float:
        """Mean share of one core."""
        return self.cpu_ns / self.watched_ns if self.watched_ns else 0.0

    @property
    def loop_share(self) -> float:
        """Mean share of the time that the event loop was busy; 0.0 without event loops."""
        return self.loop_ns / self.watched_ns if self.watched_ns else 0.0


def _add_busy(by_agent: dict[str, BusyTime], agent_id: str, generator: GeneratorMetrics) -> None:
    busy = by_agent.setdefault(agent_id, BusyTime())
    busy.add(generator.watched_ns, generator.busiest_cpu_ns, generator.busiest_loop_ns)


def _add_delays(by_agent: dict[str, GeneratorDelays], agent_id: str, generator: GeneratorMetrics) -> None:
    more = generator.delays
    if more is not None and more.allowed_ns:
        # Some systems do not report the CPU time of all processes under a quota: our own is a lower bound.
        more = msgspec.structs.replace(more, quota_used_ns=max(more.quota_used_ns, generator.cpu_ns))
    if (merged := merge_delays([by_agent.get(agent_id), more], Merge.CONSECUTIVE)) is not None:
        by_agent[agent_id] = merged


@dataclass(frozen=True, slots=True)
class Gauges:
    """Sums of gauges over agents. wanted: sum of the peaks of wanted connections; None if an agent does not report it.
    core_share: share of a core that the busiest worker process of all agents used."""

    agents: int = 0
    wanted: int | None = 0
    core_share: float | None = None


class SecondPart(NamedTuple):
    """Metrics of one agent in one second, over all pools and commands. Fields as in `SecondMetrics`. refusals: error
    replies by code. errors: failed operations. service, response: histograms whose sum is that of the second."""

    number: int
    issued: int
    ok: int
    errors: int
    failures: Mapping[str, int]
    refusals: Mapping[str, int]
    hits: Mapping[str, int]
    misses: Mapping[str, int]
    service: Sequence[Histogram]
    response: Sequence[Histogram]
    loop_lag: Histogram
    open_peak: int
    wanted: int
    watched_ns: int
    busiest_cpu_ns: int
    busiest_loop_ns: int

    @classmethod
    def from_metrics(cls, second: SecondMetrics) -> SecondPart:
        """Return a second as its agent reported it."""
        return cls(
            second.number,
            second.issued,
            second.ok,
            second.error_count,
            second.failures,
            second.errors,
            second.hits,
            second.misses,
            (second.service,),
            (second.response,),
            second.loop_lag,
            second.open_peak,
            second.wanted,
            second.watched_ns,
            second.busiest_cpu_ns,
            second.busiest_loop_ns,
        )


def spread_over_seconds(interval: IntervalMetrics) -> Iterator[SecondPart]:
    """Yield the seconds of an interval that has no separate seconds: counts spread evenly, everything else in each."""
    pools, generator = interval.pools.values(), interval.generator
    commands = [command for pool in pools for command in pool.commands.values()]
    failed = [command for command in commands if command.errors or command.failures]
    ok, errors = sum([command.ok for command in commands]), sum([command.error_count for command in failed])
    failures = merge_counts([command.failures for command in failed])
    refusals = merge_counts([command.errors for command in failed])
    hits, misses = hits_by_command(interval)
    span = interval.last - interval.first + 1
    for position, number in enumerate(range(interval.first, interval.last + 1)):
        yield SecondPart(
            number,
            _part(interval.issued, position, span),
            _part(ok, position, span),
            _part(errors, position, span),
            _parts(failures, position, span),
            _parts(refusals, position, span),
            _parts(hits, position, span),
            _parts(misses, position, span),
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
    """Return the share of `count` at `position` of equal parts; all shares add up to `count`."""
    return count * (position + 1) // parts - count * position // parts


def _parts(counts: Mapping[str, int], position: int, parts: int) -> dict[str, int]:
    return {name: _part(count, position, parts) for name, count in counts.items()}


def add_by_name(counts: dict[str, int], more: Mapping[str, int]) -> None:
    """Add counts by the names of commands, whose number the plan limits."""
    for name, count in more.items():
        counts[name] = counts.get(name, 0) + count


@dataclass(slots=True)
class Second:
    """One second of the run, over all agents and commands.

    operations: ended operations; ended_open: those of an open loop. begun: operations begun until shortly after the
    second. failures, refusals: errors by class, without a reply and with an error reply. hits, misses: by command.
    connections_open: sum of the agents' peaks of open connections. open_peaks, wanted_peaks and busy: gauges by agent
    id, in a run with several scenarios by agent id, NUL and scenario; after `compact`, only those that came later.
    past_gauges: the gauges before `compact`.
    """

    operations: int = 0
    begun: int = 0
    ended_open: int = 0
    ok: int = 0
    errors: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    hits: dict[str, int] = field(default_factory=dict)
    misses: dict[str, int] = field(default_factory=dict)
    connections_open: int = 0
    open_peaks: dict[str, int] = field(default_factory=dict)
    wanted_peaks: dict[str, int] = field(default_factory=dict)
    service: HistogramSum = field(default_factory=HistogramSum)
    response: HistogramSum = field(default_factory=HistogramSum)
    busy: dict[str, BusyTime] = field(default_factory=dict)
    loop_lag: HistogramSum = field(default_factory=HistogramSum)
    past_gauges: Gauges | None = None

    @property
    def agents(self) -> int:
        """How many agents reported this second."""
        known = {gauge.partition("\0")[0] for gauge in self.open_peaks}
        return len(known) + (self.past_gauges.agents if self.past_gauges else 0)

    @property
    def core_share(self) -> float | None:
        """Share of one core that the busiest worker process of all agents used; None if no agent reports it."""
        shares = [busy.core_share for busy in self.busy.values() if busy.watched_ns]
        if self.past_gauges and self.past_gauges.core_share is not None:
            shares.append(self.past_gauges.core_share)
        return max(shares, default=None)

    @property
    def connections_wanted(self) -> int | None:
        """Sum of the agents' peaks of wanted connections. None if an agent's release does not report them: such an
        agent has open connections, but wants 0."""
        before = self.past_gauges.wanted if self.past_gauges else 0
        all_report = all(self.wanted_peaks[agent_id] for agent_id, peak in self.open_peaks.items() if peak)
        return sum(self.wanted_peaks.values()) + before if all_report and before is not None else None

    def merge(self) -> None:
        """Merge the histograms, so that one of each kind is left."""
        self.service.merge()
        self.response.merge()
        self.loop_lag.merge()

    def add(self, agent_id: str, through: int, part: SecondPart, *, is_open: bool) -> None:
        """Add an agent's part. through: the last second that the agent has reported. is_open: in an open loop."""
        self.operations += part.ok + part.errors
        self.begun += part.issued
        self.ended_open += part.ok + part.errors if is_open else 0
        self.ok += part.ok
        self.errors += part.errors
        for counts, more in ((self.failures, part.failures), (self.refusals, part.refusals)):
            for name, count in more.items():
                add_named(counts, name, count)
        for counts, more in ((self.hits, part.hits), (self.misses, part.misses)):
            add_by_name(counts, more)
        self.service.add(*part.service)
        self.response.add(*part.response)
        self.loop_lag.add(part.loop_lag)
        if self.past_gauges is not None and part.number <= through and agent_id not in self.open_peaks:
            return  # `past_gauges` includes the gauges of this agent already
        open_before = self.open_peaks.get(agent_id, 0)
        self.open_peaks[agent_id] = max(open_before, part.open_peak)
        self.connections_open += max(part.open_peak - open_before, 0)
        self.wanted_peaks[agent_id] = max(self.wanted_peaks.get(agent_id, 0), part.wanted)
        self.busy.setdefault(agent_id, BusyTime()).add(part.watched_ns, part.busiest_cpu_ns, part.busiest_loop_ns)

    @property
    def gauges(self) -> Gauges:
        """The gauges of all agents."""
        return Gauges(self.agents, self.connections_wanted, self.core_share)

    def compact(self) -> None:
        """Sum the gauges over agents and compress the histograms: an hour then takes tens of megabytes."""
        self.past_gauges = self.gauges
        self.open_peaks, self.wanted_peaks, self.busy = {}, {}, {}
        for histograms in (self.service, self.response, self.loop_lag):
            histograms.compress()


@dataclass(slots=True)
class StageTally:
    """Sums of one leg of the load's timeline. operations: ended operations. late: operations that were sent after the
    end of the leg. hits, misses: by command. busy, delays: by agent id; delays only of agents whose release reports
    them."""

    operations: int = 0
    ok: int = 0
    unsent: int = 0
    late: int = 0
    hits: Counter[str] = field(default_factory=Counter)
    misses: Counter[str] = field(default_factory=Counter)
    busy: dict[str, BusyTime] = field(default_factory=dict)
    delays: dict[str, GeneratorDelays] = field(default_factory=dict)
    _totals: IntervalMetrics = _NOTHING
    _waiting: list[IntervalMetrics] = field(default_factory=list)

    @property
    def errors(self) -> int:
        """Failed operations."""
        return self.operations - self.ok

    @property
    def totals(self) -> IntervalMetrics:
        """All intervals of the stage merged into one, whose leg is 0."""
        self._merge_waiting()
        return self._totals

    def add(self, agent_id: str, interval: IntervalMetrics, ok: int, errors: int) -> None:
        """Add an interval. ok, errors: its operations that succeeded and failed."""
        _add_busy(self.busy, agent_id, interval.generator)
        _add_delays(self.delays, agent_id, interval.generator)
        self.operations += ok + errors
        self.ok += ok
        self.unsent += interval.unsent
        self.late += interval.late
        hits, misses = hits_by_command(interval)
        self.hits.update(hits)
        self.misses.update(misses)
        self._waiting.append(msgspec.structs.replace(interval, stage=0))
        if len(self._waiting) >= _MERGE_AT_ONCE:
            self._merge_waiting()

    def _merge_waiting(self) -> None:
        if self._waiting:
            self._totals = merge_intervals([self._totals, *self._waiting], Merge.CONSECUTIVE)
            self._waiting.clear()


@dataclass(slots=True)
class AgentTally:
    """Sums of one agent so far. issued, counted, transactions, never_opened (connections by cause): from its frames.

    through: the last second that it has reported. next_seq: number of the next frame. measured: ended operations of
    the measured stages, by pool group. due_known: operations that ended, or that it reported as never sent, by leg.
    end: how its part ended; None while it runs.
    """

    facts: AgentFacts
    through: int = -1
    next_seq: int = 0
    never_opened: dict[str, int] = field(default_factory=dict)
    issued: int = 0
    counted: int = 0
    transactions: int = 0
    measured: Counter[str] = field(default_factory=Counter)
    due_known: Counter[int] = field(default_factory=Counter)
    end: AgentEnded | None = None

    @property
    def has_left(self) -> bool:
        """Whether it will report no more results, although it did not finish."""
        return self.end is not None and self.end.has_left

    @property
    def finished(self) -> bool:
        """Whether it finished and reported its totals."""
        return self.end is not None and self.end.state is AgentOutcome.FINISHED
