"""What is said of the matrix: a table a cell, and the figures that it is held against. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scripts.benchmark.cells import Cell
from scripts.benchmark.figures import Quartiles, Reading, cpu_ratio, cpu_s_per_million, speed_ratio
from scripts.benchmark.ground import Judged
from scripts.benchmark.report import rough_lines

OURS = "wire"
NO_LOWER = 0.98
"""Medians of turns against a server that is itself the limit differ by so much from run to run."""


@dataclass(frozen=True, slots=True)
class Goal:
    """Where the wire driver has to be so good against a rival: operations for a CPU-second of the generator, as a
    ratio; and operations a second no lower. connections, value_bytes: None for any."""

    rival: str
    per_cpu: float
    pipeline: int | None = None
    connections: int | None = None
    value_bytes: int | None = None

    def applies(self, cell: Cell) -> bool:
        """Whether it is about this cell."""
        wanted = (self.pipeline, self.connections, self.value_bytes)
        found = (cell.pipeline, cell.connections, cell.value_bytes)
        return all(one is None or one == other for one, other in zip(wanted, found, strict=True))


GOALS = (
    Goal("memtier_benchmark", 1.15, pipeline=1, connections=50),
    Goal("memtier_benchmark", 1.0, pipeline=10, connections=50),
    Goal("memtier_benchmark", 1.0, pipeline=50, connections=50),
    Goal("redis-benchmark", 1.0, value_bytes=100),
    Goal("resp-benchmark", 1.0, value_bytes=100),
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One cell. readings: by contender, one a round. unable: who cannot do it, and why."""

    cell: Cell
    readings: Mapping[str, Sequence[Reading]]
    unable: Mapping[str, str]

    def speed(self, rival: str) -> Quartiles:
        """Operations a second of the wire driver to the rival's."""
        return speed_ratio(self.readings[OURS], self.readings[rival])

    def per_cpu(self, rival: str) -> float:
        """The same of operations for a CPU-second of the generator."""
        return cpu_ratio(self.readings[OURS], self.readings[rival])

    def judged(self) -> Iterator[Judged]:
        """What is wanted of this cell, and what was found."""
        if OURS not in self.readings:
            return
        for goal in GOALS:
            if goal.rival in self.readings and goal.applies(self.cell):
                speed, per_cpu = self.speed(goal.rival).median, self.per_cpu(goal.rival)
                yield Judged(
                    what=f"{OURS} against {goal.rival}, {self.cell.title}",
                    found=f"{per_cpu:.2f} times the operations a CPU-second, {speed:.2f} times those a second",
                    wanted=f"{goal.per_cpu:.2f} and {NO_LOWER:.2f}",
                    verdict="ok" if per_cpu >= goal.per_cpu and speed >= NO_LOWER else "BELOW",
                )

    def lines(self) -> Iterator[str]:
        """The cell's table."""
        yield f"{self.cell.title}, {self.cell.keys} keys"
        yield _HEAD + (_RATIO_HEAD if OURS in self.readings else "")
        for name, readings in self.readings.items():
            speed = Quartiles.of([reading.ops_per_s for reading in readings]).median
            server = Quartiles.of([reading.server_cpu_s / reading.seconds for reading in readings]).median
            cpu_s = cpu_s_per_million(readings)
            line = f"  {name:<18} {speed:>10,.0f} {cpu_s:>13.2f} {1e6 / cpu_s:>12,.0f} {server:>11.0%}"
            if OURS in self.readings and name != OURS:
                ratio = self.speed(name)
                line += f"   {self.per_cpu(name):>8.2f}   {ratio.median:.2f} ({ratio.lower:.2f}..{ratio.upper:.2f})"
            yield line
        for name, problem in self.unable.items():
            yield f"  {name:<18} not here: {problem}"

    def document(self) -> dict[str, Any]:
        """The same for programs, with every reading."""
        return {
            "connections": self.cell.connections,
            "pipeline": self.cell.pipeline,
            "value_bytes": self.cell.value_bytes,
            "keys": self.cell.keys,
            "unable": dict(self.unable),
            "contenders": {
                name: {
                    "ops_per_s": asdict(Quartiles.of([reading.ops_per_s for reading in readings])),
                    "cpu_s_per_million_operations": cpu_s_per_million(readings),
                    "rounds": [asdict(reading) for reading in readings],
                }
                for name, readings in self.readings.items()
            },
        }


_HEAD = f"  {'':<18} {'ops/s':>10} {'CPU s/M ops':>13} {'ops/CPU-s':>12} {'server CPU':>11}"
_RATIO_HEAD = f"   {'wire/it: ops/CPU-s':<8}, ops/s"


def matrix_lines(measured: Sequence[Measured], cores: int) -> Iterator[str]:
    """The tables of all cells."""
    for one in measured:
        yield ""
        yield from one.lines()
    yield from rough_lines([turn for one in measured for turns in one.readings.values() for turn in turns], cores)


def matrix_judged(measured: Sequence[Measured]) -> list[Judged]:
    """What is wanted of all cells."""
    return [judged for one in measured for judged in one.judged()]
