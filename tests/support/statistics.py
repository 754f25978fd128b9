"""Statistical tests of draws from a distribution."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from common.metrics.histogram import Ints

Floats = npt.NDArray[np.float64]

_FEWEST = 20.0
"""Cells with a smaller expected count are joined to their neighbour: chi-square needs this much."""


def fits(draws: Ints, cells: list[tuple[int, int]], shares: Floats) -> bool:
    """Pearson's chi-square test. cells: (first, last) numbers in ascending order; shares: the probability of each cell.

    False for draws outside all cells, and for a statistic that correct draws exceed once in 30,000 times.
    """
    firsts, lasts = (np.array(ends) for ends in zip(*cells, strict=True))
    places = np.searchsorted(firsts, draws, side="right") - 1
    if (places < 0).any() or (draws > lasts[places]).any():
        return False
    return _statistic(np.bincount(places, minlength=len(cells)), shares * draws.size)


def _statistic(observed: Ints, expected: Floats) -> bool:
    assert math.isclose(expected.sum(), observed.sum(), rel_tol=1e-6), "shares that do not add up to 1"
    merged: list[list[float]] = [[0.0, 0.0]]
    for seen, wanted in zip(observed.tolist(), expected.tolist(), strict=True):
        if merged[-1][1] >= _FEWEST:
            merged.append([0.0, 0.0])
        merged[-1][0] += seen
        merged[-1][1] += wanted
    if len(merged) > 1 and merged[-1][1] < _FEWEST:
        seen, wanted = merged.pop()
        merged[-1][0] += seen
        merged[-1][1] += wanted
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in merged)
    return statistic <= _limit(len(merged) - 1)


def _limit(freedom: int) -> float:
    """The statistic at the probability of four standard deviations (approximation by Wilson and Hilferty)."""
    if freedom == 0:
        return 1e-9
    part = 2 / (9 * freedom)
    return float(freedom * (1 - part + 4 * math.sqrt(part)) ** 3)


def zipf_shares(cells: list[tuple[int, int]], size: int, exponent: float) -> Floats:
    """The probability of ranks first..last of 1..size for each cell: exact sums up to rank 10,000, then the integral
    with the Euler-Maclaurin correction, exact to ten digits."""
    weights = np.array([_weight(first, last, exponent) for first, last in cells])
    return np.asarray(weights / _weight(1, size, exponent))


_EXACT = 10_000


def _weight(first: int, last: int, exponent: float) -> float:
    total = 0.0
    if first <= _EXACT:
        total += float((np.arange(first, min(last, _EXACT) + 1, dtype=np.float64) ** -exponent).sum())
        first = _EXACT + 1
    if first > last:
        return total
    if exponent == 1:
        area = math.log(last / first)
    else:
        area = (last ** (1 - exponent) - first ** (1 - exponent)) / (1 - exponent)
    ends = (first**-exponent + last**-exponent) / 2
    slope = exponent * (first ** (-exponent - 1) - last ** (-exponent - 1)) / 12
    return total + area + ends + slope


def rank_cells(size: int) -> list[tuple[int, int]]:
    """Cells of ranks 1..size: the first 32 ranks alone, then wider and wider cells."""
    edges = [*range(1, min(size, 32) + 1)]
    edge = 33
    while edge <= size:
        edges.append(edge)
        edge += max(1, edge // 2)
    return list(zip(edges, [*(edge - 1 for edge in edges[1:]), size], strict=True))
