"""The shape of `comparison.json`, for other programs. Keys keep name and meaning; more may be added.

Latencies and CPU are in microseconds, rates per second of the time that was measured.
"""

from __future__ import annotations

import enum

import msgspec

from common.units import printable_json
from coordinator.analysis.verdict import Verdict
from coordinator.core.records import Outcome
from coordinator.report.summary_types import SummaryPart, TargetSummary

COMPARISON_FORMAT = 1


class SpreadKind(enum.Enum):
    """What low and high of a spread are: the least and the greatest value, or from four rounds on the quartiles."""

    RANGE = "range"
    QUARTILES = "quartiles"


class LatencyKind(enum.Enum):
    """Which latencies are compared: from the intended send, or from the actual one."""

    RESPONSE = "response"
    SERVICE = "service"


class FigureSpread(SummaryPart, frozen=True, kw_only=True):
    """A figure of several rounds."""

    median: float
    low: float
    high: float


class Pair(SummaryPart, frozen=True, kw_only=True):
    """A figure with each driver. difference: client minus wire within each round, which is what redis-py adds; its
    median need not be the difference of the two medians."""

    client: FigureSpread
    wire: FigureSpread
    difference: FigureSpread


class LatencyPairs(SummaryPart, frozen=True, kw_only=True):
    """Latencies of operations done."""

    p50: Pair
    p99: Pair
    p99_9: Pair = msgspec.field(name="p99.9")


class Cost(SummaryPart, frozen=True, kw_only=True):
    """What a command, or all together, took with each driver. cpu_us_per_operation: of the worker processes; None for a
    single command, because nobody can tell whose it was. latency_us: None where no round has any with both drivers."""

    ops_per_s: Pair
    cpu_us_per_operation: Pair | None
    latency_us: LatencyPairs | None


class RunLatency(SummaryPart, frozen=True, kw_only=True):
    """Latencies of one run."""

    p50: float
    p99: float
    p99_9: float = msgspec.field(name="p99.9")


class ComparedRun(SummaryPart, frozen=True, kw_only=True):
    """One of the runs, in their order. id: for `coordinator report`. round: counted from 1. counts: its round is whole,
    so it is in totals and commands. latency_us: None where nothing was done."""

    id: str
    round: int
    driver: str
    counts: bool
    outcome: Outcome
    exit_code: int
    ops_per_s: float
    operations: int
    errors: int
    cpu_us_per_operation: float | None
    latency_us: RunLatency | None
    verdict: Verdict


class ComparedPools(SummaryPart, frozen=True, kw_only=True):
    """How many operations a pool of this group has under way at most: with the client driver because of its threads
    and client instances, with the wire driver because it has so many connections."""

    threads_per_pool: int
    client_instances_per_pool: int
    at_once_per_pool: int


class ComparedLoad(SummaryPart, frozen=True, kw_only=True):
    """How operations were timed, see summary.json, and so which latencies are compared."""

    model: str
    arrivals: str | None
    target_rate_per_s: float | None
    wanted_rate_per_s: float | None
    latency: LatencyKind


class Comparison(SummaryPart, frozen=True, kw_only=True):
    """The whole of comparison.json. outcome: completed, interrupted or aborted; reason says by what. rounds: the whole
    ones, of which totals and commands are. totals: None without any. notes: what one must know to read it."""

    format: int
    id: str
    started_at: str
    outcome: Outcome
    reason: str
    rounds_wanted: int
    rounds: int
    spread: SpreadKind
    target: TargetSummary
    load: ComparedLoad
    pools: dict[str, ComparedPools]
    totals: Cost | None
    commands: dict[str, Cost]
    runs: tuple[ComparedRun, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """The text of comparison.json."""
        return printable_json(msgspec.json.format(msgspec.json.encode(self), indent=2).decode()) + "\n"
