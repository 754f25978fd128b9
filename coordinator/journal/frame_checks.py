"""Checks the frames of agents. Pure.

Each frame is checked once, when it arrives, so `Aggregate` does not check it again. Some checks are the same for all
runs: they ensure that `Aggregate` can add the frame, and that its memory stays bounded.

- From an agent (`FrameLimits`): these checks, and limits of this run and of the agent's assignment: seconds that have
  passed, pools of the assignment, commands of the plan. An agent that exceeds them is hostile or broken, so the
  coordinator ignores its later messages. Histograms have been checked when the message was decoded.
- From a journal (`check_journaled_frame`): these checks, and histograms.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from common.errors import ProtocolError
from common.metrics.histogram import check_histograms
from common.metrics.intervals import (
    MAX_ENDPOINT_LENGTH,
    MAX_ENDPOINTS,
    MAX_NAME_LENGTH,
    MAX_NAMES,
    CommandMetrics,
    IntervalMetrics,
    PoolMetrics,
    histograms_of,
)
from common.plan.planned_commands import has_endpoints, planned_commands
from common.plan.scenarios import load_end_ns, scenario_plans
from common.plan.schema import Plan
from common.protocol.messages import MAX_INTERVALS, MetricsFrame, PoolShare
from common.units import NS_PER_S, listed, show

LAST_SECOND = 100 * 86_400
"""Latest second of a run that a frame may have: a hundred days."""
MOST_VALUES = 1 << 36
"""Most values of one kind in an interval. No agent measures more in five minutes, the longest merged interval; and the
sum over all frames that a coordinator can accept stays below 63 bits."""
AHEAD_S = 60
"""How many seconds a frame may be ahead of the coordinator's clock, and after the planned end and the drain."""
FRAMES_AT_ONCE, FRAMES_PER_S = 1_000, 64
"""Most frames of an agent: it sends one frame per second (with very many commands some tens), and after an outage the
frames that it could not send before."""


def check_journaled_frame(frame: MetricsFrame, stages: int) -> None:
    """Check a frame from a journal. stages: stages of the run. Raises ProtocolError for an impossible frame."""
    _check_frame(frame, stages)
    try:
        check_histograms(histogram for interval in frame.intervals for histogram in histograms_of(interval))
    except ValueError as error:
        raise ProtocolError(f"frame {frame.seq}: {error}") from error


def _check_frame(frame: MetricsFrame, stages: int) -> None:
    """The checks that are the same for all runs. Raises ProtocolError for impossible seconds, a stage that does not
    exist, or more values than any agent can measure."""
    spans = [(interval.first, interval.last) for interval in frame.intervals]
    for first, last in (*spans, (0, max(frame.through, 0))):
        if not 0 <= first <= last <= LAST_SECOND:
            raise ProtocolError(f"frame {frame.seq}: expected seconds within 0..{LAST_SECOND}, got {first}..{last}")
    for interval in frame.intervals:
        if interval.stage >= stages:
            raise ProtocolError(f"frame {frame.seq}: expected stages within 0..{stages - 1}, got {interval.stage}")
        if problem := _problem_of_seconds(interval):
            raise ProtocolError(f"frame {frame.seq}: {problem}")
        if (most := max([histogram.count for histogram in histograms_of(interval)], default=0)) > MOST_VALUES:
            raise ProtocolError(f"frame {frame.seq}: expected at most {MOST_VALUES} values of a kind, got {most}")


def _problem_of_seconds(interval: IntervalMetrics) -> str:
    """Why an interval is not the sum of its seconds; "" if it is."""
    if not (seconds := interval.seconds):
        return ""
    numbers = [second.number for second in seconds]
    if len(seconds) > MAX_INTERVALS or not interval.first <= min(numbers) <= max(numbers) <= interval.last:
        return f"expected at most {MAX_INTERVALS} seconds within {interval.first}..{interval.last}"
    if (ended := sum([second.ok + second.error_count for second in seconds])) != interval.operations:
        return f"expected seconds with {interval.operations:,} operations, got {ended:,}"
    if (issued := sum([second.issued for second in seconds])) != interval.issued:
        return f"expected seconds with {interval.issued:,} operations issued, got {issued:,}"
    return ""


@dataclass(frozen=True, slots=True)
class _LegNames:
    """What the metrics of a leg may name. pools: those of the agent in the leg's scenario. commands: the labels of its
    rows. has_endpoints: its target has several servers; their names are not known beforehand."""

    pools: frozenset[str]
    commands: frozenset[str]
    has_endpoints: bool


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """What the frames of one agent may contain. legs: the names of each leg, over all scenarios. end_ns: the planned
    end of the load, None if it has none."""

    legs: tuple[_LegNames, ...]
    end_ns: int | None
    drain_s: float

    @classmethod
    def from_plan(cls, plan: Plan, share: Iterable[PoolShare]) -> Self:
        """The limits for an agent with these pools."""
        legs: list[_LegNames] = []
        dealt = list(share)
        for scenario in scenario_plans(plan):
            own = (pool for pool in dealt if pool.scenario == scenario.number)
            names = _LegNames(
                pools=frozenset(scenario.plan.pools[pool.group].name for pool in own),
                commands=frozenset(planned.label for planned in planned_commands(scenario.plan.workload)),
                has_endpoints=has_endpoints(scenario.plan.target),
            )
            legs += [names] * len(scenario.legs)
        return cls(legs=tuple(legs), end_ns=load_end_ns(plan), drain_s=float(plan.fleet.drain_s))

    def objection(self, frame: MetricsFrame, elapsed_ns: int | None) -> str:
        """Why no agent of this run with these pools can send this frame; "" if one can. elapsed_ns: since the start
        instant, None if that is not known."""
        try:
            _check_frame(frame, len(self.legs))
        except ProtocolError as error:
            return str(error)
        latest, most_frames = self._latest_second(elapsed_ns), self._most_frames(elapsed_ns)
        named = max([frame.through, *(interval.last for interval in frame.intervals)])
        if named > latest:
            return f"frame {frame.seq}: expected seconds up to {latest:,} by now, got {named:,}"
        if frame.seq >= most_frames:
            return f"frame {frame.seq}: expected at most {most_frames:,} frames by now"
        if len(frame.intervals) > MAX_INTERVALS:
            return f"frame {frame.seq}: expected at most {MAX_INTERVALS} intervals, got {len(frame.intervals):,}"
        problem = next((found for each in frame.intervals for found in _problems(each, self.legs[each.stage])), "")
        return f"frame {frame.seq}: {problem}" if problem else ""

    def _latest_second(self, elapsed_ns: int | None) -> int:
        latest = LAST_SECOND if elapsed_ns is None else elapsed_ns // NS_PER_S + AHEAD_S
        if self.end_ns is not None:
            latest = min(latest, round(self.end_ns / NS_PER_S + self.drain_s) + AHEAD_S)
        return latest

    def _most_frames(self, elapsed_ns: int | None) -> int:
        seconds = LAST_SECOND if elapsed_ns is None else elapsed_ns // NS_PER_S
        return FRAMES_AT_ONCE + FRAMES_PER_S * seconds


def _problems(interval: IntervalMetrics, names: _LegNames) -> Iterator[str]:
    if (strange := interval.pools.keys() - names.pools) or len(interval.pools) > len(names.pools):
        yield f"expected pools of its share, {_names(names.pools)}, got {_names(strange)}"
    if (most := max(interval.issued, interval.transactions, interval.unsent, interval.late)) > MOST_VALUES:
        yield f"expected at most {MOST_VALUES:,} operations, got {most:,}"
    for second in interval.seconds:
        for counts in (second.errors, second.failures):
            if counts:
                yield from _problems_of_classes(counts, "errors")
        for counts in (second.hits, second.misses):
            if strange := counts.keys() - names.commands:
                yield f"expected commands of the plan, {_names(names.commands)}, got {_names(strange)}"
    for pool in interval.pools.values():
        if strange := pool.commands.keys() - names.commands:
            yield f"expected commands of the plan, {_names(names.commands)}, got {_names(strange)}"
        yield from _problems_of_names(pool)
        if pool.primaries or pool.replicas:
            yield from _problems_of_endpoints(pool, names)
        if pool.error_samples and (strange := {each.command for each in pool.error_samples} - _sampled(names)):
            yield f"expected error samples of the plan's commands, {_names(names.commands)}, got {_names(strange)}"
        for command in pool.commands.values():
            # Fast path: nearly all commands have no errors, and frames come by the thousand.
            most = max(command.ok, command.hits, command.misses)
            if command.errors or command.failures or most > MOST_VALUES:
                yield from _problems_of_command(command)


def _sampled(names: _LegNames) -> frozenset[str]:
    """The commands that error samples may have; "" beyond the limits of samples."""
    return frozenset({"", *(name[:MAX_NAME_LENGTH] for name in names.commands)})


def _problems_of_endpoints(pool: PoolMetrics, names: _LegNames) -> Iterator[str]:
    if not names.has_endpoints:
        yield f"expected no servers by name from a target that is one server, got {_names(pool.primaries)}"
    for endpoints in (pool.primaries, pool.replicas):
        if len(endpoints) > MAX_ENDPOINTS:
            yield f"expected at most {MAX_ENDPOINTS} servers, got {len(endpoints):,}"
        for name, command in endpoints.items():
            if len(name) > MAX_ENDPOINT_LENGTH:
                yield f"expected names of servers of at most {MAX_ENDPOINT_LENGTH} characters, got {len(name):,}"
            yield from _problems_of_command(command)


def _problems_of_names(pool: PoolMetrics) -> Iterator[str]:
    connections = pool.connections
    by_cause = (connections.failed_by_cause, connections.never_opened, connections.drops, connections.redirects)
    for causes in (*by_cause, connections.maintenance):
        if causes:
            yield from _problems_of_classes(causes, "causes")


def _problems_of_command(command: CommandMetrics) -> Iterator[str]:
    if command.errors:
        yield from _problems_of_classes(command.errors, "errors")
    if command.failures:
        yield from _problems_of_classes(command.failures, "errors")
    if command.operations > MOST_VALUES:
        yield f"expected at most {MOST_VALUES:,} operations, got {command.operations:,}"
    if (most := max(command.hits, command.misses)) > MOST_VALUES:
        yield f"expected at most {MOST_VALUES:,} hits and misses, got {most:,}"


def _problems_of_classes(counts: Mapping[str, int], kind: str) -> Iterator[str]:
    if len(counts) > MAX_NAMES:
        yield f"expected at most {MAX_NAMES} kinds of {kind}, got {len(counts):,}"
    for name in counts:
        if len(name) > MAX_NAME_LENGTH:
            yield f"expected names of {kind} of at most {MAX_NAME_LENGTH} characters, got {len(name):,}"


def _names(names: Iterable[str]) -> str:
    """The first names, for an error message."""
    return listed([show(name) for name in sorted(names)], most=3) or "none"
