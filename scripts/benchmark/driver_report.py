"""The report of the sections `drivers` and `scaling`: printed lines, and documents for the JSON file. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scripts.benchmark.context import GoalResult
from scripts.benchmark.turn_stats import (
    Quartiles,
    TurnResult,
    core_utilization,
    cpu_s_per_million,
    other_work_share,
    throughput_ratio,
)

DRIVER = "client driver"
TASK_DRIVER = "asyncio driver"
PREGENERATED = "bare pregenerated"
MIN_BASELINE_RATIO = 0.95
MIN_SCALING_RATIO = 1.6
MAX_OTHER_WORK = 0.1
"""Share of all cores' time that other processes may use before the report calls its numbers rough."""
FULL_MACHINE = 0.9
"""Share of all cores' time, used by server and generator, that leaves no room for a second worker process. The rest
goes to the kernel, to the benchmark's own process, and to other programs."""


@dataclass(frozen=True, slots=True)
class DriverComparison:
    """A driver and its baselines with one number of workers. turns: by contender, one per round, in order."""

    workers: int
    turns: Mapping[str, Sequence[TurnResult]]
    driver: str = DRIVER

    @property
    def worker_kind(self) -> str:
        """ "tasks" or "threads"."""
        return "tasks" if self.driver == TASK_DRIVER else "threads"

    def ratio(self, baseline: str) -> Quartiles:
        """Operations per second of the driver, divided by the baseline's."""
        return throughput_ratio(self.turns[self.driver], self.turns[baseline])

    def cpu_ratio(self, baseline: str) -> float:
        """CPU per operation of the driver, divided by the baseline's."""
        return cpu_s_per_million(self.turns[self.driver]) / cpu_s_per_million(self.turns[baseline])

    @property
    def baselines(self) -> list[str]:
        """Names of the contenders that are not the driver."""
        return [name for name in self.turns if name != self.driver]

    @property
    def goals(self) -> list[str]:
        """Names of the baselines that are goals for the driver."""
        return [name for name in self.baselines if name != PREGENERATED]

    def lines(self) -> Iterator[str]:
        """One line per contender."""
        for name, turns in self.turns.items():
            line = f"{self.workers:>7}  {name:<22} {_turn_columns(turns)}"
            if name != self.driver:
                ratio = self.ratio(name)
                line += f"   {_spread(ratio)}   {self.cpu_ratio(name):>10.2f}"
            if name in self.goals:
                line += "   ok" if ratio.median >= MIN_BASELINE_RATIO else "   MISSED"
            yield line

    def goal_results(self) -> Iterator[GoalResult]:
        """One result per goal."""
        for name in self.goals:
            found = self.ratio(name).median
            yield GoalResult(
                what=f"{self.driver} against {name}, {self.workers} {self.worker_kind}",
                found=f"{found:.2f} times the operations per second",
                wanted=f"{MIN_BASELINE_RATIO:.2f}",
                verdict="ok" if found >= MIN_BASELINE_RATIO else "MISSED",
            )

    def document(self) -> dict[str, Any]:
        """The comparison for the JSON file, with every turn."""
        return {
            self.worker_kind: self.workers,
            "contenders": {name: _contender_document(turns) for name, turns in self.turns.items()},
            "ratios": {name: asdict(self.ratio(name)) for name in self.baselines},
            "cpu_ratios": {name: self.cpu_ratio(name) for name in self.baselines},
            "met": {name: self.ratio(name).median >= MIN_BASELINE_RATIO for name in self.goals},
        }


@dataclass(frozen=True, slots=True)
class Scaling:
    """Turns of one worker process and of two, one per round, in order. threads: per process."""

    threads: int
    cores: int
    one: Sequence[TurnResult]
    two: Sequence[TurnResult]

    @property
    def ratio(self) -> Quartiles:
        """Operations per second of two processes, divided by those of one."""
        return throughput_ratio(self.two, self.one)

    @property
    def verdict(self) -> str:
        """Whether the goal is met, or why it cannot be judged."""
        if self.ratio.median >= MIN_SCALING_RATIO:
            return "ok"
        used = core_utilization(self.two, self.cores)
        if used >= FULL_MACHINE:
            return "all cores full"
        if used + other_work_share(self.two, self.cores) < FULL_MACHINE:
            return "MISSED"
        return "undecided: other work filled the cores"

    def lines(self) -> Iterator[str]:
        """A line for one process, a line for two, and how busy the cores were with two."""
        yield f"{self.threads:>7}  {'one worker process':<22} {_turn_columns(self.one)}"
        yield (
            f"{self.threads:>7}  {'two worker processes':<22} {_turn_columns(self.two)}"
            f"   {_spread(self.ratio)}   {self.verdict}"
        )
        used, others = core_utilization(self.two, self.cores), other_work_share(self.two, self.cores)
        yield f"{'':>7}  two: server and generator used {used:.0%} of {self.cores} cores, everything else {others:.0%}"

    def document(self) -> dict[str, Any]:
        """The comparison for the JSON file, with every turn."""
        return {
            "threads_per_process": self.threads,
            "one": _contender_document(self.one),
            "two": _contender_document(self.two),
            "ratio": asdict(self.ratio),
            "cores_used_by_server_and_generator": core_utilization(self.two, self.cores) * self.cores,
            "cores_used_by_others": other_work_share(self.two, self.cores) * self.cores,
            "verdict": self.verdict,
        }


def comparison_lines(comparisons: Sequence[DriverComparison], cores: int) -> Iterator[str]:
    """The table of one driver's comparisons."""
    yield f"{comparisons[0].worker_kind:>7}  {'':<22} {_TURN_HEAD}   {'driver / bare':<17}   {'CPU ratio':>10}"
    for comparison in comparisons:
        yield from comparison.lines()
    all_turns = [turn for comparison in comparisons for turns in comparison.turns.values() for turn in turns]
    yield from rough_lines(all_turns, cores)


def rough_lines(turns: Sequence[TurnResult], cores: int) -> Iterator[str]:
    """A warning if other work disturbed these turns."""
    if turns and (others := other_work_share(turns, cores)) > MAX_OTHER_WORK:
        yield f"rough: other work on this machine used {others:.0%} of {cores} cores; repeat the run on a quiet machine"


def scaling_lines(scalings: Sequence[Scaling]) -> Iterator[str]:
    """The table of one worker process against two."""
    yield f"{'threads':>7}  {'':<22} {_TURN_HEAD}   {'two / one'}"
    for scaling in scalings:
        yield from scaling.lines()


_TURN_HEAD = f"{'ops/s':>8} {'CPU us/op':>10} {'server CPU':>11}"


def _turn_columns(turns: Sequence[TurnResult]) -> str:
    ops_per_s = Quartiles.of([turn.ops_per_s for turn in turns]).median
    server = Quartiles.of([turn.server_cpu_s / turn.seconds for turn in turns]).median
    return f"{ops_per_s:>8,.0f} {cpu_s_per_million(turns):>10.1f} {server:>11.0%}"


def _spread(spread: Quartiles) -> str:
    return f"{spread.median:.2f} ({spread.lower:.2f}..{spread.upper:.2f})"


def _contender_document(turns: Sequence[TurnResult]) -> dict[str, Any]:
    return {
        "ops_per_s": asdict(Quartiles.of([turn.ops_per_s for turn in turns])),
        "cpu_s_per_million_operations": cpu_s_per_million(turns),
        "rounds": [asdict(turn) for turn in turns],
    }
