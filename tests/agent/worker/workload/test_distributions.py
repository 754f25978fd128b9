from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.pacing.pacer import quota_of
from agent.worker.workload.distributions import KeyDistribution, Latest, key_distribution
from common.metrics.histogram import Ints
from common.plan.schema import Distribution, Keys
from common.serde import from_builtins
from tests.support.statistics import fits, rank_cells, zipf_shares

MANY = 200_000
EACH = [(number, number) for number in range(1, 101)]


def numbers(kind: str, thread: int = 0, threads: int = 1, **keys: Any) -> KeyDistribution:
    return key_distribution(from_builtins({"distribution": kind, **keys}, Keys), thread, threads)


def draw(drawn: KeyDistribution, count: int = MANY, seed: int = 7) -> Ints:
    return drawn.draw(np.random.default_rng(seed), count)


def normal_shares(cells: list[tuple[int, int]], median: float, deviation: float) -> Any:
    def below(x: float) -> float:
        return 0.5 * (1 + math.erf((x - median) / deviation / math.sqrt(2)))

    shares = np.array([below(last + 0.5) - below(first - 0.5) for first, last in cells])
    return shares / shares.sum()


def test_uniform_draws_every_number_equally_often() -> None:
    shares = np.full(100, 0.01)
    assert fits(draw(numbers("uniform", maximum=100)), EACH, shares)
    assert not fits(draw(numbers("uniform", maximum=99)), EACH, shares)
    assert not fits(draw(numbers("zipfian", maximum=100, exponent=0.05)), EACH, shares)


def test_sequential_repeats_the_range_in_order() -> None:
    drawn = numbers("sequential", thread=3, threads=4, minimum=5, maximum=9)
    found = np.concatenate([draw(drawn, count) for count in (3, 0, 4, 6)])
    assert found.tolist() == [5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6, 7]


@given(low=st.integers(0, 10**9), size=st.integers(1, 50), threads=st.integers(1, 50))
def test_parallel_gives_each_worker_a_part_of_its_own_in_order(low: int, size: int, threads: int) -> None:
    high = low + size - 1
    keys = from_builtins({"minimum": low, "maximum": high}, Keys)
    parts = [keys.part(thread, threads) for thread in range(threads)]
    assert [number for part in parts for number in part] == list(range(low, high + 1))
    own = parts[threads // 2]
    drawn = draw(numbers("parallel", threads // 2, threads, minimum=low, maximum=high), len(own) + 1).tolist()
    if size >= threads:
        assert drawn == [*own, own[0]]
    assert all(low <= number <= high for number in drawn)


@given(size=st.integers(1, 300), threads=st.integers(1, 40))
def test_with_parallel_keys_as_many_requests_as_keys_use_each_key_once(size: int, threads: int) -> None:
    used: Counter[int] = Counter()
    for thread in range(threads):
        quota = quota_of(size, thread, threads)
        assert quota is not None
        used.update(draw(numbers("parallel", thread, threads, minimum=7, maximum=6 + size), quota).tolist())
    assert used == Counter(range(7, 7 + size))


@pytest.mark.parametrize(("median", "deviation"), [(None, None), (30, 8.0), (1, 40.0), (100, 10.0), (60, 5000.0)])
def test_gaussian_is_the_normal_distribution_within_the_range(median: int | None, deviation: float | None) -> None:
    settings = {"median": median, "deviation": deviation}
    drawn = draw(
        numbers("gaussian", maximum=100, **{key: value for key, value in settings.items() if value is not None})
    )
    median_, deviation_ = median or 50.5, deviation or 16.5
    assert fits(drawn, EACH, normal_shares(EACH, median_, deviation_))
    if deviation_ < 100:
        assert not fits(drawn, EACH, normal_shares(EACH, median_, deviation_ * 1.1))
        assert not fits(drawn, EACH, normal_shares(EACH, median_ + 3, deviation_))


@pytest.mark.parametrize("low", [2**53 - 1, 2**60 - 3])
def test_gaussian_draws_every_number_of_a_small_range_of_large_numbers(low: int) -> None:
    settings = {"minimum": low, "maximum": low + 3, "deviation": 1.0}
    assert set(draw(numbers("gaussian", **settings), 300).tolist()) == set(range(low, low + 4))
    assert set(draw(numbers("gaussian", **{**settings, "median": low + 1, "deviation": 0}), 9).tolist()) == {low + 1}


def test_gaussian_without_deviation_draws_the_median() -> None:
    assert set(draw(numbers("gaussian", maximum=100, median=7, deviation=0), 100).tolist()) == {7}


@pytest.mark.parametrize("size", [1, 2, 7, 100, 10**6, 10**9])
@pytest.mark.parametrize("exponent", [0, 0.5, 0.99, 1, 1.2, 3])
def test_zipfian_draws_each_number_by_its_rank(exponent: float, size: int) -> None:
    cells = rank_cells(size)
    drawn = draw(numbers("zipfian", maximum=size, exponent=exponent))
    assert fits(drawn, cells, zipf_shares(cells, size, exponent))


@pytest.mark.parametrize("size", [100, 10**9])
@pytest.mark.parametrize("exponent", [0.5, 0.99, 1, 1.2])
def test_the_check_of_zipfian_detects_another_exponent_or_range(exponent: float, size: int) -> None:
    cells = rank_cells(size)
    shares = zipf_shares(cells, size, exponent)
    for wrong in (exponent - 0.02, exponent + 0.02):
        assert not fits(draw(numbers("zipfian", maximum=size, exponent=wrong)), cells, shares)
    smaller = draw(numbers("zipfian", maximum=size // 10, exponent=exponent))
    assert not fits(smaller, cells, shares)


def test_the_expected_shares_of_ranks_are_right() -> None:
    """Compares the integral that approximates a sum with the sum."""
    cells = rank_cells(10**6)
    ranks = np.arange(1, 10**6 + 1, dtype=np.float64)
    for exponent in (0.0, 0.5, 0.99, 1.0, 1.2):
        weights = ranks**-exponent
        exact = np.array([weights[first - 1 : last].sum() for first, last in cells]) / weights.sum()
        np.testing.assert_allclose(zipf_shares(cells, 10**6, exponent), exact, rtol=1e-9)


def test_zipfian_begins_at_the_minimum() -> None:
    drawn = draw(numbers("zipfian", minimum=1000, maximum=1099))
    cells = [(first + 999, last + 999) for first, last in rank_cells(100)]
    assert fits(drawn, cells, zipf_shares(rank_cells(100), 100, 0.99))


def test_latest_is_zipfian_counted_back_from_the_newest_key() -> None:
    drawn = numbers("latest", minimum=11, maximum=110)
    assert fits(111 - draw(drawn), rank_cells(100), zipf_shares(rank_cells(100), 100, 0.99))
    newest = np.full(MANY, 310, dtype=np.int64)
    grown = 311 - drawn.draw(np.random.default_rng(1), MANY, newest)
    assert fits(grown, rank_cells(300), zipf_shares(rank_cells(300), 300, 0.99))
    assert not fits(311 - draw(drawn), rank_cells(300), zipf_shares(rank_cells(300), 300, 0.99))


def test_latest_follows_the_newest_key_from_draw_to_draw() -> None:
    newest = np.arange(10, 2010, dtype=np.int64)
    drawn = Latest(1, 10, 5.0).draw(np.random.default_rng(1), 2000, newest)
    assert (drawn <= newest).all()
    assert np.mean(drawn == newest) > 0.9


@pytest.mark.parametrize(("hot_keys", "hot_operations"), [(0.2, 0.8), (0.05, 0.5), (0.5, 0.0), (0.001, 1.0)])
def test_hotspot_draws_its_share_from_the_first_keys(hot_keys: float, hot_operations: float) -> None:
    drawn = draw(numbers("hotspot", maximum=100, hot_keys=hot_keys, hot_operations=hot_operations))
    hot = max(1, round(100 * hot_keys))
    shares = np.r_[np.full(hot, hot_operations / hot), np.full(100 - hot, (1 - hot_operations) / (100 - hot))]
    seen = shares > 0
    cells = [cell for cell, kept in zip(EACH, seen, strict=True) if kept]
    assert fits(drawn, cells, shares[seen])
    if 0 < hot_operations < 1:
        off = shares * np.r_[np.full(hot, 1.05), np.full(100 - hot, 1.0)]
        assert not fits(drawn, cells, (off / off.sum())[seen])


def test_hotspot_of_the_whole_range_is_uniform() -> None:
    assert fits(draw(numbers("hotspot", maximum=100, hot_keys=1, hot_operations=0.1)), EACH, np.full(100, 0.01))


@pytest.mark.parametrize("kind", [kind.value for kind in Distribution])
def test_the_same_seed_draws_the_same_numbers_all_within_the_range(kind: str) -> None:
    first, second = (draw(numbers(kind, minimum=3, maximum=2**40), 5000) for _ in range(2))
    assert first.tolist() == second.tolist()
    assert first.min() >= 3
    assert first.max() <= 2**40
    only = draw(numbers(kind, minimum=8, maximum=8), 100)
    assert set(only.tolist()) == {8}
