"""What is made of the readings: ratios of neighbours, their median and spread. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reading:
    """One turn. CPU in seconds over the same time, of the load generator's processes, of the server, and of the whole
    machine with all that runs on it beside us."""

    operations: int
    seconds: float
    generator_cpu_s: float
    server_cpu_s: float
    machine_cpu_s: float

    @property
    def ops_per_s(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds


@dataclass(frozen=True, slots=True)
class Quartiles:
    """The median of some numbers, the middle half of them (lower, upper), and all of them (minimum, maximum)."""

    median: float
    lower: float
    upper: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Quartiles:
        """Raises StatisticsError without any."""
        if len(numbers) == 1:
            only = numbers[0]
            return cls(only, only, only, only, only)
        lower, _, upper = quantiles(numbers, n=4, method="inclusive")
        return cls(median(numbers), lower, upper, min(numbers), max(numbers))


def speed_ratio(ones: Sequence[Reading], others: Sequence[Reading]) -> Quartiles:
    """Operations a second of the ones to those of the others, round by round: what else the machine does slows
    neighbours alike, and so cancels out.

    Both hold one reading a round, in the order of the rounds. Raises ValueError when one of them holds more.
    """
    return Quartiles.of([one.ops_per_s / other.ops_per_s for one, other in zip(ones, others, strict=True)])


def cpu_s_per_million(readings: Sequence[Reading]) -> float:
    """CPU of the generator in seconds for a million operations, over all readings: a turn alone is too short for the
    system's clock of CPU time, which ticks every 10 ms."""
    used_s = sum(reading.generator_cpu_s for reading in readings)
    return used_s / sum(reading.operations for reading in readings) * 1e6


def filled(readings: Sequence[Reading], cores: int) -> float:
    """Which part of all cores' time server and generator used together, over all readings: 1.0 is all of it."""
    used_s = sum(reading.generator_cpu_s + reading.server_cpu_s for reading in readings)
    return used_s / (cores * sum(reading.seconds for reading in readings))


def disturbed(readings: Sequence[Reading], cores: int) -> float:
    """Which part of all cores' time went to what has no part in the benchmark, over all readings; our own part in it,
    which is to wait, is among it."""
    other_s = sum(reading.machine_cpu_s - reading.generator_cpu_s - reading.server_cpu_s for reading in readings)
    return max(0.0, other_s / (cores * sum(reading.seconds for reading in readings)))


def order(contenders: Sequence[T], round_number: int) -> list[T]:
    """Whose turn it is when in a round: to and fro, and each of them first in turn, so that nobody always follows the
    same one."""
    first = round_number // 2 % len(contenders)
    turned = [*contenders[first:], *contenders[:first]]
    return turned[::-1] if round_number % 2 else turned


def even(ones: Sequence[Reading], others: Sequence[Reading]) -> list[Reading]:
    """Turns of two halves as if each round had been one turn with as many operations of the one as of the other.

    Both hold one reading a round. Raises ValueError when one of them holds more, or when nothing was done in one.
    """
    return [_even(one, other) for one, other in zip(ones, others, strict=True)]


def _even(one: Reading, other: Reading) -> Reading:
    operations = min(one.operations, other.operations)
    if not operations:
        raise ValueError("expected operations in both halves of a round, got none in one")
    parts = [(half, operations / half.operations) for half in (one, other)]
    return Reading(
        operations=2 * operations,
        seconds=sum(half.seconds * share for half, share in parts),
        generator_cpu_s=sum(half.generator_cpu_s * share for half, share in parts),
        server_cpu_s=sum(half.server_cpu_s * share for half, share in parts),
        machine_cpu_s=sum(half.machine_cpu_s * share for half, share in parts),
    )


def cpu_ratio(ones: Sequence[Reading], others: Sequence[Reading]) -> float:
    """Operations of the ones for a second of the generator's CPU, to those of the others; over all readings."""
    return cpu_s_per_million(others) / cpu_s_per_million(ones)
