from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.metrics.histogram import (
    BUCKETS,
    EMPTY,
    MAX_VALUE,
    Histogram,
    RunningHistogram,
    bucket_bounds,
    bucket_indices,
    check_histograms,
)
from common.metrics.intervals import CommandMetrics, IntervalMetrics, PoolMetrics
from common.protocol.codec import DecodedMessage, decode_from_agent, decode_from_agents, encode, pack, unpack
from common.protocol.messages import Envelope, MetricsFrame

SIGNIFICANT_DIGITS = 3
QUANTILES = st.sampled_from([0.0, 0.25, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.0])

values = st.one_of(
    st.integers(0, MAX_VALUE),
    st.integers(0, 5000),
    st.integers(0, 41).flatmap(lambda power: st.integers(max(0, (1 << power) - 2), (1 << power) + 2)),
)
value_lists = st.lists(values, max_size=200)


def of(numbers: list[int]) -> Histogram:
    return Histogram.from_values(np.array(numbers, dtype=np.int64))


def hdr_index(value: int) -> int:
    """countsArrayIndex of HdrHistogram's own algorithm, for 3 significant digits and a lowest value of 1."""
    sub_bucket_magnitude = math.ceil(math.log2(2 * 10**SIGNIFICANT_DIGITS))
    half_magnitude = sub_bucket_magnitude - 1
    mask = (1 << sub_bucket_magnitude) - 1
    bucket = (value | mask).bit_length() - sub_bucket_magnitude
    sub_bucket = value >> bucket
    return ((bucket + 1) << half_magnitude) + sub_bucket - (1 << half_magnitude)


def hdr_highest_equivalent(value: int) -> int:
    sub_bucket_magnitude = math.ceil(math.log2(2 * 10**SIGNIFICANT_DIGITS))
    bucket = (value | ((1 << sub_bucket_magnitude) - 1)).bit_length() - sub_bucket_magnitude
    return ((value >> bucket) << bucket) + (1 << bucket) - 1


@given(st.lists(values, min_size=1))
def test_every_value_falls_into_the_bucket_that_hdrhistogram_gives_it(numbers: list[int]) -> None:
    assert bucket_indices(np.array(numbers, dtype=np.int64)).tolist() == [hdr_index(value) for value in numbers]


def test_the_design_s_formula_gives_the_same_bucket_at_every_edge() -> None:
    for power in range(43):
        for value in {max(0, (1 << power) - 1), min(1 << power, MAX_VALUE), min((1 << power) + 1, MAX_VALUE)}:
            shift = value.bit_length() - 11
            expected = (shift << 10) + (value >> shift) if shift > 0 else value
            assert bucket_indices(np.array([value], dtype=np.int64)).tolist() == [expected]


def test_the_buckets_cover_every_value_without_gap_or_overlap() -> None:
    lowest, highest = bucket_bounds(np.arange(BUCKETS, dtype=np.int64))
    assert lowest[0] == 0
    assert highest[-1] == MAX_VALUE
    assert (lowest[1:] == highest[:-1] + 1).all()
    assert (bucket_indices(lowest) == np.arange(BUCKETS)).all()
    assert (bucket_indices(highest) == np.arange(BUCKETS)).all()
    assert (highest - lowest <= lowest / 1024).all()


@given(value_lists)
def test_count_minimum_maximum_and_sum_are_exact(numbers: list[int]) -> None:
    histogram = of(numbers)
    assert histogram.count == len(numbers)
    assert histogram.minimum == min(numbers, default=0)
    assert histogram.maximum == max(numbers, default=0)
    assert histogram.value_sum == sum(numbers)
    assert histogram.mean == (sum(numbers) / len(numbers) if numbers else 0.0)
    assert histogram.clamped == 0


@given(st.lists(values, min_size=1, max_size=300), QUANTILES)
def test_a_quantile_is_the_value_at_its_rank_to_the_width_of_a_bucket(numbers: list[int], q: float) -> None:
    rank = max(1, math.ceil(Fraction(str(q)) * len(numbers)))
    exact = sorted(numbers)[rank - 1]
    expected = min(hdr_highest_equivalent(exact), max(numbers))
    assert of(numbers).quantile(q) == expected
    assert exact <= expected <= exact * (1 + 1 / 1024)


@given(st.integers(1, 2**40), st.sampled_from(["0.5", "0.9", "0.95", "0.99", "0.999", "0.9999"]))
def test_a_rank_is_exact_however_many_values_there_are(count: int, q: str) -> None:
    rank = max(1, math.ceil(Fraction(q) * count))
    below, above = rank - 1, count - rank
    parts = [(10, below), (20, 1), (30, above)]
    filled = [(value, n) for value, n in parts if n]
    histogram = Histogram(
        np.array([value for value, _ in filled], dtype="<u2").tobytes(),
        np.array([n for _, n in filled], dtype="<u8").tobytes(),
        count,
        filled[0][0],
        filled[-1][0],
        sum(value * n for value, n in filled),
    )
    assert histogram.quantile(float(q)) == 20


@given(value_lists)
def test_quantiles_rise_and_end_at_the_maximum(numbers: list[int]) -> None:
    histogram = of(numbers)
    found = histogram.quantiles([0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
    assert found == sorted(found)
    assert found[-1] == histogram.maximum
    assert found[0] >= histogram.minimum


repeated = st.lists(st.tuples(values | st.just(MAX_VALUE + 5), st.integers(1, 1000)), max_size=30)


@given(st.lists(repeated, max_size=5))
def test_values_that_come_in_bulks_and_several_times_make_the_histogram_of_all_of_them(
    bulks: list[list[tuple[int, int]]],
) -> None:
    running = RunningHistogram()
    for bulk in bulks:
        numbers, times = (np.array([pair[of] for pair in bulk], dtype=np.int64) for of in (0, 1))
        running.add(numbers, times)
    everything = [value for bulk in bulks for value, times in bulk for _ in range(times)]
    found = running.histogram()
    kept = [min(value, MAX_VALUE) for value in everything]
    assert found == of(everything)
    assert (found.count, found.value_sum, found.clamped) == (
        len(kept),
        sum(kept),
        sum(v > MAX_VALUE for v in everything),
    )
    assert (found.minimum, found.maximum) == (min(kept, default=0), max(kept, default=0))
    indices, counts = found.buckets()
    wanted = Counter(hdr_index(value) for value in kept)
    assert dict(zip(indices.tolist(), counts.tolist(), strict=True)) == wanted


@given(st.lists(value_lists, max_size=6))
def test_a_merge_is_the_histogram_of_all_values(parts: list[list[int]]) -> None:
    assert Histogram.merge(of(part) for part in parts) == of([value for part in parts for value in part])


@given(value_lists, value_lists, value_lists)
def test_merging_is_associative_and_commutative_and_empty_is_neutral(a: list[int], b: list[int], c: list[int]) -> None:
    one, two, three = of(a), of(b), of(c)
    left = Histogram.merge([Histogram.merge([one, two]), three])
    right = Histogram.merge([one, Histogram.merge([two, three])])
    assert left == right == Histogram.merge([three, two, one])
    assert Histogram.merge([one, EMPTY]) == one
    assert Histogram.merge([]) == EMPTY


def test_counts_beyond_32_bits_add_up() -> None:
    big = Histogram(b"\x07\x00", np.array([2**32 - 1], dtype="<u4").tobytes(), 2**32 - 1, 7, 7, 7 * (2**32 - 1))
    twice = Histogram.merge([big, big])
    assert twice.count == 2 * (2**32 - 1)
    assert Histogram.merge([twice, big]).count == 3 * (2**32 - 1)
    assert twice.quantile(0.5) == 7


def test_values_over_the_top_are_clamped_and_counted() -> None:
    histogram = of([5, MAX_VALUE, MAX_VALUE + 1, 2**60])
    assert histogram.clamped == 2
    assert histogram.maximum == MAX_VALUE
    assert histogram.value_sum == 5 + 3 * MAX_VALUE
    assert Histogram.merge([histogram, histogram]).clamped == 4


def test_a_negative_value_is_refused() -> None:
    with pytest.raises(ValueError, match="expected values >= 0, got -1"):
        of([3, -1])


def test_an_empty_histogram_answers_with_zeros() -> None:
    assert of([]) == EMPTY
    assert EMPTY.quantiles([0.5, 1.0]) == [0, 0]
    assert EMPTY.mean == 0.0
    assert [part.size for part in EMPTY.buckets()] == [0, 0]


@given(value_lists)
def test_a_histogram_survives_the_wire(numbers: list[int]) -> None:
    histogram = of(numbers)
    assert unpack(pack(histogram), Histogram) == histogram


GOOD = of([1, 5, 5, 3000])
FORGERIES = {
    "half an index": {"indices": GOOD.indices[:-1]},
    "counts for other buckets": {"counts": GOOD.counts[:-4]},
    "a wrong count": {"count": 5},
    "no count": {"count": 0},
    "descending buckets": {"indices": GOOD.indices[::-1]},
    "a bucket twice": {"indices": GOOD.indices[:2] * 3},
    "a bucket that is empty": {"counts": np.array([0, 3, 1], dtype="<u4").tobytes()},
    "a count that turns negative": {"counts": np.array([2**64 - 1, 4, 1], dtype="<u8").tobytes()},
    "counts that overflow": {"counts": np.array([2**63 - 1, 2**63 - 1, 6], dtype="<u8").tobytes()},
    "a bucket beyond the last": {"indices": GOOD.indices[:4] + b"\xff\xff"},
    "a minimum elsewhere": {"minimum": 2},
    "a negative minimum": {"minimum": -1},
    "a maximum elsewhere": {"maximum": 5000},
    "an enormous maximum": {"maximum": 2**63},
    "a sum too small": {"value_sum": 3},
    "a sum too large": {"value_sum": 4 * 3000 + 1},
    "more clamped than there are": {"clamped": 5},
    "a negative clamped": {"clamped": -1},
    "nothing in it but a count": {"indices": b"", "counts": b""},
}


def forged(change: dict[str, object]) -> Histogram:
    return Histogram(**{name: getattr(GOOD, name) for name in GOOD.__struct_fields__} | change)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forged_histogram_is_refused_alone_and_among_others(change: dict[str, object]) -> None:
    one = forged(change)
    for many in ([one], [GOOD, one], [one, GOOD], [GOOD, EMPTY, one, GOOD]):
        with pytest.raises(ValueError, match="histogram: "):
            check_histograms(many)


@pytest.mark.parametrize("change", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_frame_with_a_forged_histogram_is_refused_as_it_is_decoded_and_others_are_not(
    change: dict[str, object],
) -> None:
    def framed(histogram: Histogram) -> bytes:
        pools = {"main": PoolMetrics(commands={"GET": CommandMetrics(service=histogram)})}
        part = IntervalMetrics(first=0, last=0, pools=pools)
        frame = MetricsFrame(seq=0, through=0, intervals=(part,))
        return encode(Envelope(run_id="r", incarnation="i", message=frame))

    good, bad = framed(GOOD), framed(forged(change))
    with pytest.raises(ProtocolError):
        decode_from_agent(bad)
    decoded = decode_from_agents([good, bad, b"", good])
    assert [isinstance(each, DecodedMessage) for each in decoded] == [True, False, False, True]


@given(st.lists(value_lists))
def test_honest_histograms_pass_the_check_together(many: list[list[int]]) -> None:
    check_histograms([of(numbers) for numbers in many])


def test_a_histogram_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        GOOD.count = 7  # type: ignore[misc]
    assert msgspec.structs.replace(GOOD) == GOOD
