"""The section `rates`: open loop at fractions of a driver's capacity. How closely is the intended rate achieved?"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

from common.metrics.histogram import Histogram
from common.metrics.intervals import IntervalMetrics
from common.plan.schema import Driver, Load
from common.units import PerSecond, Seconds
from scripts.benchmark.cases import Case, plan_for
from scripts.benchmark.contenders import LoadSpec
from scripts.benchmark.context import BenchContext, Findings, GoalResult, create_keys
from scripts.benchmark.turn_stats import Quartiles
from scripts.benchmark.turns import ContenderSetup, run_rounds
from scripts.benchmark.workers import run_to_end, workers

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
GOAL_SHARE = 0.5
MAX_DEVIATION = 0.001
MAX_LAG_US = 1000
CONNECTIONS = {Driver.WIRE: 50, Driver.CLIENT: 8}
_KEYS = 1_000_000
_WARM_UP_S = 1
_HEAD = (
    f"  {'driver':<8} {'share':>5} {'intended/s':>11} {'achieved/s':>11} {'off by':>7} {'lag p50':>9} {'lag p99':>9}"
    "  (send lag in us)"
)


@dataclass(frozen=True, slots=True)
class RateResult:
    """Intended and achieved rate of a run. share: of the driver's capacity. lag: send lag."""

    driver: str
    share: float
    rate_per_s: float
    achieved_per_s: float
    lag_p50_us: float
    lag_p99_us: float

    @property
    def deviation(self) -> float:
        """Difference between achieved and intended rate, as a fraction of the intended rate."""
        return abs(self.achieved_per_s / self.rate_per_s - 1)

    def line(self) -> str:
        """The row of the table."""
        return (
            f"  {self.driver:<8} {self.share:>5.0%} {self.rate_per_s:>11,.0f} {self.achieved_per_s:>11,.0f}"
            f" {self.deviation:>7.3%} {self.lag_p50_us:>9,.0f} {self.lag_p99_us:>9,.0f}"
        )

    def goal_result(self) -> GoalResult:
        """The result against the goals for rate and send lag."""
        return GoalResult(
            what=f"{self.driver} driver in open loop at {self.share:.0%} of its capacity",
            found=f"rate off by {self.deviation:.3%}, send lag p99 {self.lag_p99_us:,.0f} us",
            wanted=f"at most {MAX_DEVIATION:.1%}, below {MAX_LAG_US} us",
            verdict="ok" if self.deviation <= MAX_DEVIATION and self.lag_p99_us < MAX_LAG_US else "MISSED",
        )


def rate_result(
    driver: str, share: float, rate_per_s: float, seconds: int, intervals: Sequence[IntervalMetrics]
) -> RateResult:
    """The result of a run, without its first second. An operation belongs to the second in which it ends."""
    steady = [interval for interval in intervals if interval.first >= _WARM_UP_S and interval.last < seconds]
    lag = Histogram.merge(pool.send_lag for interval in steady for pool in interval.pools.values())
    achieved = sum(interval.operations for interval in steady) / (seconds - _WARM_UP_S)
    p50_us, p99_us = (lag.quantile(q) / 1e3 if lag.count else 0.0 for q in (0.5, 0.99))
    return RateResult(driver, share, rate_per_s, achieved, p50_us, p99_us)


def rates_section(context: BenchContext) -> Findings:
    """Measure the wire and the client driver, each at all shares."""
    options = context.options
    keys = min(_KEYS, options.keys)
    create_keys(context.target, keys, options.data_sizes[0])
    results = []
    for driver in [driver for driver in CONNECTIONS if driver.value in options.contenders]:
        case = Case(CONNECTIONS[driver], 1, options.data_sizes[0], keys)
        capacity = _capacity(context, driver, case)
        for share in SHARES:
            rate = PerSecond(round(capacity * share))
            print(f"{driver.value} driver at {share:.0%} of its capacity ...", file=sys.stderr)
            load = Load(duration_s=Seconds(options.rate_seconds), rate_per_s=rate)
            plan = plan_for(case, driver, context.target, load)
            run = run_to_end(LoadSpec(plan, context.server.port, context.generator_core))
            results.append(rate_result(driver.value, share, rate, options.rate_seconds, run.intervals))
    connections = ", ".join(f"{driver.value} with {count}" for driver, count in CONNECTIONS.items())
    lines = [
        f"open loop, constant arrivals, {options.rate_seconds} s each; connections: {connections}",
        _HEAD,
        *(result.line() for result in results),
    ]
    goal_results = [result.goal_result() for result in results if result.share == GOAL_SHARE]
    return Findings(lines, [asdict(result) for result in results], goal_results)


def _capacity(context: BenchContext, driver: Driver, case: Case) -> float:
    """Operations per second in a closed loop."""
    plan = plan_for(case, driver, context.target)
    spec = LoadSpec(plan, context.server.port, context.generator_core)
    print(f"{driver.value} driver's capacity ...", file=sys.stderr)
    setups = {driver.value: ContenderSetup(partial(workers, spec), context.counters)}
    turns = run_rounds(setups, context.options.rounds, context.options.turn_s)[driver.value]
    return Quartiles.of([turn.ops_per_s for turn in turns]).median
