"""What the benchmark says: lines for people, one document for programs. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scripts.benchmark.figures import Quartiles, Reading, cpu_s_per_million, disturbed, filled, speed_ratio
from scripts.benchmark.ground import Judged

DRIVER = "client driver"
TASK_DRIVER = "asyncio driver"
LEAST = "the same, drawn before"
ENOUGH_OF_BARE = 0.95
ENOUGH_OF_ONE = 1.6
QUIET = 0.1
"""Of all cores' time, what may go to other work before the figures are called rough."""
FULL = 0.9
"""Server and generator together leave the machine no room for a second worker process above this part of its cores:
the rest goes to the kernel's own work, to us who measure, and to whatever else runs."""


@dataclass(frozen=True, slots=True)
class DriverComparison:
    """A driver and its bare loops at one number of workers. readings: by contender, one a round, in their order."""

    workers: int
    readings: Mapping[str, Sequence[Reading]]
    driver: str = DRIVER

    @property
    def counted(self) -> str:
        """What its workers are."""
        return "tasks" if self.driver == TASK_DRIVER else "threads"

    def ratio(self, contender: str) -> Quartiles:
        """Operations a second of the driver to those of a bare loop."""
        return speed_ratio(self.readings[self.driver], self.readings[contender])

    def cpu_ratio(self, contender: str) -> float:
        """CPU an operation of the driver to that of a bare loop."""
        return cpu_s_per_million(self.readings[self.driver]) / cpu_s_per_million(self.readings[contender])

    @property
    def bare(self) -> list[str]:
        """The contenders that are not the driver."""
        return [name for name in self.readings if name != self.driver]

    @property
    def judged(self) -> list[str]:
        """Those that the driver has to come near to."""
        return [name for name in self.bare if name != LEAST]

    def lines(self) -> Iterator[str]:
        """A line a contender."""
        for name, readings in self.readings.items():
            line = f"{self.workers:>7}  {name:<22} {_reading_columns(readings)}"
            if name != self.driver:
                ratio = self.ratio(name)
                line += f"   {_show(ratio)}   {self.cpu_ratio(name):>10.2f}"
            if name in self.judged:
                line += "   ok" if ratio.median >= ENOUGH_OF_BARE else "   BELOW"
            yield line

    def verdicts(self) -> Iterator[Judged]:
        """Against each bare loop that it has to come near to."""
        for name in self.judged:
            found = self.ratio(name).median
            yield Judged(
                what=f"{self.driver} against {name}, {self.workers} {self.counted}",
                found=f"{found:.2f} times the operations a second",
                wanted=f"{ENOUGH_OF_BARE:.2f}",
                verdict="ok" if found >= ENOUGH_OF_BARE else "BELOW",
            )

    def document(self) -> dict[str, Any]:
        """The same for programs, with every reading."""
        return {
            self.counted: self.workers,
            "contenders": {name: _contender_document(readings) for name, readings in self.readings.items()},
            "ratios": {name: asdict(self.ratio(name)) for name in self.bare},
            "cpu_ratios": {name: self.cpu_ratio(name) for name in self.bare},
            "met": {name: self.ratio(name).median >= ENOUGH_OF_BARE for name in self.judged},
        }


@dataclass(frozen=True, slots=True)
class Scaling:
    """Two worker processes and one, each with so many threads. Readings one a round, in their order."""

    threads: int
    cores: int
    one: Sequence[Reading]
    two: Sequence[Reading]

    @property
    def ratio(self) -> Quartiles:
        """Operations a second of two processes to those of one."""
        return speed_ratio(self.two, self.one)

    @property
    def verdict(self) -> str:
        """Whether it is enough, or why it cannot be."""
        if self.ratio.median >= ENOUGH_OF_ONE:
            return "ok"
        used = filled(self.two, self.cores)
        if used >= FULL:
            return "all cores full"
        return "BELOW" if used + disturbed(self.two, self.cores) < FULL else "undecided: cores full of other work"

    def lines(self) -> Iterator[str]:
        """A line for one process, one for two, and what they did to the cores."""
        yield f"{self.threads:>7}  {'one worker process':<22} {_reading_columns(self.one)}"
        yield (
            f"{self.threads:>7}  {'two worker processes':<22} {_reading_columns(self.two)}"
            f"   {_show(self.ratio)}   {self.verdict}"
        )
        used, others = filled(self.two, self.cores), disturbed(self.two, self.cores)
        yield f"{'':>7}  two: server and generator used {used:.0%} of {self.cores} cores, everything else {others:.0%}"

    def document(self) -> dict[str, Any]:
        """The same for programs, with every reading."""
        return {
            "threads_per_process": self.threads,
            "one": _contender_document(self.one),
            "two": _contender_document(self.two),
            "ratio": asdict(self.ratio),
            "cores_used_by_server_and_generator": filled(self.two, self.cores) * self.cores,
            "cores_used_by_others": disturbed(self.two, self.cores) * self.cores,
            "verdict": self.verdict,
        }


def comparison_lines(comparisons: Sequence[DriverComparison], cores: int) -> Iterator[str]:
    """A table of comparisons of one driver."""
    yield f"{comparisons[0].counted:>7}  {'':<22} {_READING_HEAD}   {'driver / bare':<17}   {'CPU of it'}"
    for comparison in comparisons:
        yield from comparison.lines()
    turns = [reading for comparison in comparisons for readings in comparison.readings.values() for reading in readings]
    yield from rough_lines(turns, cores)


def rough_lines(turns: Sequence[Reading], cores: int) -> Iterator[str]:
    """A warning where other work disturbed these turns."""
    if turns and (others := disturbed(turns, cores)) > QUIET:
        yield f"rough: other work on this machine took {others:.0%} of {cores} cores meanwhile; run it again when quiet"


def scaling_lines(scalings: Sequence[Scaling]) -> Iterator[str]:
    """The second table."""
    yield f"{'threads':>7}  {'':<22} {_READING_HEAD}   {'two / one'}"
    for scaling in scalings:
        yield from scaling.lines()


_READING_HEAD = f"{'ops/s':>8} {'CPU us/op':>10} {'server CPU':>11}"


def _reading_columns(readings: Sequence[Reading]) -> str:
    ops_per_s = Quartiles.of([reading.ops_per_s for reading in readings]).median
    server = Quartiles.of([reading.server_cpu_s / reading.seconds for reading in readings]).median
    return f"{ops_per_s:>8,.0f} {cpu_s_per_million(readings):>10.1f} {server:>11.0%}"


def _show(spread: Quartiles) -> str:
    return f"{spread.median:.2f} ({spread.lower:.2f}..{spread.upper:.2f})"


def _contender_document(readings: Sequence[Reading]) -> dict[str, Any]:
    return {
        "ops_per_s": asdict(Quartiles.of([reading.ops_per_s for reading in readings])),
        "cpu_s_per_million_operations": cpu_s_per_million(readings),
        "rounds": [asdict(reading) for reading in readings],
    }
