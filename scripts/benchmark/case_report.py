"""The report of the sections `rivals` and `ceiling`: a table per case, and the goals of the wire driver. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scripts.benchmark.cases import Case
from scripts.benchmark.context import GoalResult
from scripts.benchmark.driver_report import rough_lines
from scripts.benchmark.turn_stats import (
    Quartiles,
    TurnResult,
    cpu_s_per_million,
    ops_per_cpu_ratio,
    throughput_ratio,
)

OURS = "wire"
MIN_THROUGHPUT_RATIO = 0.98
"""Below 1, because medians vary by 2% from run to run when the server is the limit."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal of the wire driver against a rival. per_cpu: least ratio of operations per CPU second of the generator.
    The ratio of operations per second must be at least `MIN_THROUGHPUT_RATIO`. pipeline, connections, value_bytes: of
    the cases to which the goal applies; None for any."""

    rival: str
    per_cpu: float
    pipeline: int | None = None
    connections: int | None = None
    value_bytes: int | None = None

    def applies(self, case: Case) -> bool:
        """Whether this is a goal for the case."""
        wanted = (self.pipeline, self.connections, self.value_bytes)
        found = (case.pipeline, case.connections, case.value_bytes)
        return all(one is None or one == other for one, other in zip(wanted, found, strict=True))


GOALS = (
    Goal("memtier_benchmark", 1.15, pipeline=1, connections=50),
    Goal("memtier_benchmark", 1.0, pipeline=10, connections=50),
    Goal("memtier_benchmark", 1.0, pipeline=50, connections=50),
    Goal("redis-benchmark", 1.0, value_bytes=100),
    Goal("resp-benchmark", 1.0, value_bytes=100),
)


@dataclass(frozen=True, slots=True)
class CaseResult:
    """The result of a case. turns: by contender, one per round. unsupported: why a contender cannot run the case."""

    case: Case
    turns: Mapping[str, Sequence[TurnResult]]
    unsupported: Mapping[str, str]

    def throughput_ratio(self, rival: str) -> Quartiles:
        """Operations per second of the wire driver, divided by the rival's."""
        return throughput_ratio(self.turns[OURS], self.turns[rival])

    def per_cpu_ratio(self, rival: str) -> float:
        """Operations per CPU second of the wire driver, divided by the rival's."""
        return ops_per_cpu_ratio(self.turns[OURS], self.turns[rival])

    def goal_results(self) -> Iterator[GoalResult]:
        """One result for each goal that applies to the case."""
        if OURS not in self.turns:
            return
        for goal in GOALS:
            if goal.rival in self.turns and goal.applies(self.case):
                per_s, per_cpu = self.throughput_ratio(goal.rival).median, self.per_cpu_ratio(goal.rival)
                yield GoalResult(
                    what=f"{OURS} against {goal.rival}, {self.case.title}",
                    found=f"{per_cpu:.2f} times the operations per CPU second, {per_s:.2f} times those per second",
                    wanted=f"{goal.per_cpu:.2f} and {MIN_THROUGHPUT_RATIO:.2f}",
                    verdict="ok" if per_cpu >= goal.per_cpu and per_s >= MIN_THROUGHPUT_RATIO else "MISSED",
                )

    def lines(self) -> Iterator[str]:
        """The table of the case."""
        yield f"{self.case.title}, {self.case.keys} keys"
        yield _HEAD + (_RATIO_HEAD if OURS in self.turns else "")
        for name, turns in self.turns.items():
            ops_per_s = Quartiles.of([turn.ops_per_s for turn in turns]).median
            server = Quartiles.of([turn.server_cpu_s / turn.seconds for turn in turns]).median
            cpu_s = cpu_s_per_million(turns)
            line = f"  {name:<18} {ops_per_s:>10,.0f} {cpu_s:>13.2f} {1e6 / cpu_s:>12,.0f} {server:>11.0%}"
            if OURS in self.turns and name != OURS:
                ratio = self.throughput_ratio(name)
                line += f"   {self.per_cpu_ratio(name):>15.2f}"
                line += f"   {ratio.median:.2f} ({ratio.lower:.2f}..{ratio.upper:.2f})"
            yield line
        for name, problem in self.unsupported.items():
            yield f"  {name:<18} not in this case: {problem}"

    def document(self) -> dict[str, Any]:
        """The result for the JSON file, with every turn."""
        return {
            "connections": self.case.connections,
            "pipeline": self.case.pipeline,
            "value_bytes": self.case.value_bytes,
            "keys": self.case.keys,
            "unable": dict(self.unsupported),
            "contenders": {
                name: {
                    "ops_per_s": asdict(Quartiles.of([turn.ops_per_s for turn in turns])),
                    "cpu_s_per_million_operations": cpu_s_per_million(turns),
                    "rounds": [asdict(turn) for turn in turns],
                }
                for name, turns in self.turns.items()
            },
        }


_HEAD = f"  {'':<18} {'ops/s':>10} {'CPU s/M ops':>13} {'ops/CPU-s':>12} {'server CPU':>11}"
_RATIO_HEAD = f"   {'ratio ops/CPU-s':>15}   ratio ops/s (wire / this row)"


def case_lines(results: Sequence[CaseResult], cores: int) -> Iterator[str]:
    """The tables of all cases."""
    for result in results:
        yield ""
        yield from result.lines()
    yield from rough_lines([turn for result in results for turns in result.turns.values() for turn in turns], cores)
