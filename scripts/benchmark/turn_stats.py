"""The result of a turn, and statistics over turns: ratios of neighbouring turns, median and spread. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TurnResult:
    """What one turn of a contender did. CPU time in seconds during the turn: of the load generator's processes, of the
    server, and of the whole machine with everything else that runs there."""

    operations: int
    seconds: float
    generator_cpu_s: float
    server_cpu_s: float
    machine_cpu_s: float

    @property
    def ops_per_s(self) -> float:
        """Operations per second."""
        return self.operations / self.seconds


@dataclass(frozen=True, slots=True)
class Quartiles:
    """Median, quartiles (lower, upper), minimum and maximum of some numbers."""

    median: float
    lower: float
    upper: float
    minimum: float
    maximum: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Quartiles:
        """Raises StatisticsError if there are no numbers."""
        if len(numbers) == 1:
            only = numbers[0]
            return cls(only, only, only, only, only)
        lower, _, upper = quantiles(numbers, n=4, method="inclusive")
        return cls(median(numbers), lower, upper, min(numbers), max(numbers))


def throughput_ratio(ones: Sequence[TurnResult], others: Sequence[TurnResult]) -> Quartiles:
    """Operations per second of one contender divided by another's, round by round. Other work on the machine slows
    neighbouring turns alike, so it cancels out.

    Both have one turn per round, in the order of the rounds. Raises ValueError if their lengths differ.
    """
    return Quartiles.of([one.ops_per_s / other.ops_per_s for one, other in zip(ones, others, strict=True)])


def cpu_s_per_million(turns: Sequence[TurnResult]) -> float:
    """CPU seconds of the generator per million operations, over all turns together: one turn is too short for the
    system's clock of CPU time, which ticks every 10 ms."""
    used_s = sum(turn.generator_cpu_s for turn in turns)
    return used_s / sum(turn.operations for turn in turns) * 1e6


def core_utilization(turns: Sequence[TurnResult], cores: int) -> float:
    """Share of all cores' time that server and generator used together, over all turns: 1.0 is all of it."""
    used_s = sum(turn.generator_cpu_s + turn.server_cpu_s for turn in turns)
    return used_s / (cores * sum(turn.seconds for turn in turns))


def other_work_share(turns: Sequence[TurnResult], cores: int) -> float:
    """Share of all cores' time that other processes used, over all turns. This includes the benchmark's own process,
    which mostly waits."""
    other_s = sum(turn.machine_cpu_s - turn.generator_cpu_s - turn.server_cpu_s for turn in turns)
    return max(0.0, other_s / (cores * sum(turn.seconds for turn in turns)))


def turn_order(contenders: Sequence[T], round_number: int) -> list[T]:
    """The order of turns in a round: forwards and backwards in alternation, and the first contender rotates. So no
    contender always follows the same other one."""
    first = round_number // 2 % len(contenders)
    rotated = [*contenders[first:], *contenders[:first]]
    return rotated[::-1] if round_number % 2 else rotated


def combine_halves(ones: Sequence[TurnResult], others: Sequence[TurnResult]) -> list[TurnResult]:
    """Combine two contenders that send one command each, as if each round were one turn with equally many operations of
    both.

    Both have one turn per round. Raises ValueError if their lengths differ, or if a turn has no operations.
    """
    return [_combine(one, other) for one, other in zip(ones, others, strict=True)]


def _combine(one: TurnResult, other: TurnResult) -> TurnResult:
    operations = min(one.operations, other.operations)
    if not operations:
        raise ValueError("expected operations in both halves of a round, got none in one")
    weighted = [(half, operations / half.operations) for half in (one, other)]
    return TurnResult(
        operations=2 * operations,
        seconds=sum(half.seconds * weight for half, weight in weighted),
        generator_cpu_s=sum(half.generator_cpu_s * weight for half, weight in weighted),
        server_cpu_s=sum(half.server_cpu_s * weight for half, weight in weighted),
        machine_cpu_s=sum(half.machine_cpu_s * weight for half, weight in weighted),
    )


def ops_per_cpu_ratio(ones: Sequence[TurnResult], others: Sequence[TurnResult]) -> float:
    """Operations per CPU second of one contender's generator divided by another's, over all turns together."""
    return cpu_s_per_million(others) / cpu_s_per_million(ones)
