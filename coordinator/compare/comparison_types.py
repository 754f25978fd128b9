"""The types of `comparison.json`, for other programs. Keys keep their name and meaning; new keys may be added.

Latencies and CPU are in microseconds, rates per second of the measured time.
"""

from __future__ import annotations

import enum

import msgspec

from common.units import printable_json
from coordinator.analysis.verdict import Verdict
from coordinator.journal.records import Outcome
from coordinator.report.summary_types import SummaryPart, TargetSummary

COMPARISON_FORMAT = 1


class SpreadKind(enum.Enum):
    """Meaning of a spread's low and high: smallest and largest value, or from four rounds on the quartiles."""

    RANGE = "range"
    QUARTILES = "quartiles"


class LatencyKind(enum.Enum):
    """Which latencies are compared: from the intended send, or from the actual send."""

    RESPONSE = "response"
    SERVICE = "service"


class FigureSpread(SummaryPart, frozen=True, kw_only=True):
    """A figure of several rounds."""

    median: float
    low: float
    high: float


class Pair(SummaryPart, frozen=True, kw_only=True):
    """A figure with each driver. difference: client minus wire within each round, which is what redis-py adds. Its
    median may differ from the difference of the two medians."""

    client: FigureSpread
    wire: FigureSpread
    difference: FigureSpread


class LatencyPairs(SummaryPart, frozen=True, kw_only=True):
    """Latencies of successful operations."""

    p50: Pair
    p99: Pair
    p99_9: Pair = msgspec.field(name="p99.9")


class Cost(SummaryPart, frozen=True, kw_only=True):
    """Cost of a command, or of all commands, with each driver. cpu_us_per_operation: CPU of the worker processes; None
    for a single command, because it is not measured by command. latency_us: None if no round has both drivers' figures.
    """

    ops_per_s: Pair
    cpu_us_per_operation: Pair | None
    latency_us: LatencyPairs | None


class RunLatency(SummaryPart, frozen=True, kw_only=True):
    """Latencies of one run."""

    p50: float
    p99: float
    p99_9: float = msgspec.field(name="p99.9")


class ComparedRun(SummaryPart, frozen=True, kw_only=True):
    """One run. id: for `coordinator report`. round: counted from 1. counts: its round is complete, so that totals and
    commands include the run. latency_us: None without successful operations."""

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
    """How many operations a pool of this group has in flight at most: with the client driver because of its threads and
    client instances, with the wire driver because of its number of connections."""

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
    """The whole of comparison.json. outcome: completed, interrupted or aborted; reason: why. rounds: complete rounds,
    which totals and commands cover. totals: None without a complete round. notes: hints for the reader."""

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
