"""The section `rates`: open loop at shares of what a driver can do, and how near it keeps to what was intended."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial

from common.metrics.histogram import Histogram
from common.metrics.intervals import IntervalMetrics
from common.plan.schema import Driver, Load
from common.units import PerSecond, Seconds
from scripts.benchmark.cells import Cell, plan_for
from scripts.benchmark.contenders import Lane
from scripts.benchmark.figures import Quartiles
from scripts.benchmark.ground import Findings, Ground, Judged, fill
from scripts.benchmark.turns import Player, play
from scripts.benchmark.workers import run_through, workers

SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
JUDGED_SHARE = 0.5
NEAR_ENOUGH = 0.001
LAG_US = 1000
CONNECTIONS = {Driver.WIRE: 50, Driver.CLIENT: 8}
_KEYS = 1_000_000
_SETTLING_S = 1
_HEAD = (
    f"  {'driver':<8} {'share':>5} {'intended/s':>11} {'achieved/s':>11} {'off':>7} {'lag p50':>9} {'lag p99':>9}"
    "  (send lag in us)"
)


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of a rate. share: of the driver's capacity. Send lag in microseconds."""

    driver: str
    share: float
    rate_per_s: float
    achieved_per_s: float
    lag_p50_us: float
    lag_p99_us: float

    @property
    def off(self) -> float:
        """By which part of it the rate was missed."""
        return abs(self.achieved_per_s / self.rate_per_s - 1)

    def line(self) -> str:
        """For people."""
        return (
            f"  {self.driver:<8} {self.share:>5.0%} {self.rate_per_s:>11,.0f} {self.achieved_per_s:>11,.0f}"
            f" {self.off:>7.3%} {self.lag_p50_us:>9,.0f} {self.lag_p99_us:>9,.0f}"
        )

    def judged(self) -> Judged:
        """Against what was asked for at this share."""
        return Judged(
            what=f"{self.driver} driver in open loop at {self.share:.0%} of its capacity",
            found=f"rate missed by {self.off:.3%}, send lag p99 {self.lag_p99_us:,.0f} us",
            wanted=f"{NEAR_ENOUGH:.1%} and {LAG_US} us",
            verdict="ok" if self.off <= NEAR_ENOUGH and self.lag_p99_us < LAG_US else "BELOW",
        )


def kept(driver: str, share: float, rate_per_s: float, seconds: int, intervals: Sequence[IntervalMetrics]) -> Kept:
    """From the metrics of a run of so many seconds, without its first one. Operations count when they are over."""
    steady = [one for one in intervals if one.first >= _SETTLING_S and one.last < seconds]
    lag = Histogram.merge(pool.send_lag for one in steady for pool in one.pools.values())
    achieved = sum(one.operations for one in steady) / (seconds - _SETTLING_S)
    median_us, p99_us = (lag.quantile(q) / 1e3 if lag.count else 0.0 for q in (0.5, 0.99))
    return Kept(driver, share, rate_per_s, achieved, median_us, p99_us)


def rates_section(ground: Ground) -> Findings:
    """The wire and the client driver, at each share."""
    options = ground.options
    keys = min(_KEYS, options.keys)
    fill(ground.target, keys, options.data_sizes[0])
    found = []
    for driver in [driver for driver in CONNECTIONS if driver.value in options.contenders]:
        cell = Cell(CONNECTIONS[driver], 1, options.data_sizes[0], keys)
        capacity = _capacity(ground, driver, cell)
        for share in SHARES:
            rate = PerSecond(round(capacity * share))
            print(f"{driver.value} driver at {share:.0%} of its capacity ...", file=sys.stderr)
            load = Load(duration_s=Seconds(options.rate_seconds), rate_per_s=rate)
            run = run_through(Lane(plan_for(cell, driver, ground.target, load), ground.server.port, ground.core))
            found.append(kept(driver.value, share, rate, options.rate_seconds, run.intervals))
    connections = ", ".join(f"{driver.value} with {count}" for driver, count in CONNECTIONS.items())
    lines = [
        f"open loop, constant arrivals, {options.rate_seconds} s each, connections: {connections}",
        _HEAD,
        *(one.line() for one in found),
    ]
    judged = [one.judged() for one in found if one.share == JUDGED_SHARE]
    return Findings(lines, [asdict(one) for one in found], judged)


def _capacity(ground: Ground, driver: Driver, cell: Cell) -> float:
    """Operations a second in a closed loop."""
    lane = Lane(plan_for(cell, driver, ground.target), ground.server.port, ground.core)
    print(f"{driver.value} driver's capacity ...", file=sys.stderr)
    readings = play({"": Player(partial(workers, lane), ground.referee)}, ground.options.rounds, ground.options.turn_s)[
        ""
    ]
    return Quartiles.of([reading.ops_per_s for reading in readings]).median
