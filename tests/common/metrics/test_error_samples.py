from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.metrics.counts import MAX_NAMES, OTHER
from common.metrics.error_samples import (
    MAX_MESSAGE,
    MAX_SAMPLES,
    SAMPLES_PER_CLASS,
    ErrorSample,
    merge_each,
    merge_samples,
)
from common.metrics.intervals import Merge, PoolMetrics, merge_pools


def sample(name: str = "ERR", message: str = "ERR no", **fields: object) -> ErrorSample:
    return ErrorSample(name=name, message=message, command="GET", **fields)  # type: ignore[arg-type]


def test_errors_of_one_kind_are_one_sample_with_its_first_and_last_time() -> None:
    early = sample(key="key:1", count=2, first_ns=5, last_ns=7)
    late = sample(key="key:2", count=3, first_ns=9, last_ns=11)
    assert merge_samples([(late,), (), (early,)]) == (sample(key="key:2", count=5, first_ns=5, last_ns=11),)


def test_errors_that_differ_in_class_command_endpoint_or_message_are_samples_of_their_own() -> None:
    several = (
        sample(),
        sample("WRONGTYPE"),
        sample(message="ERR another"),
        sample(endpoint="web1:6379"),
        ErrorSample(name="ERR", message="ERR no", command="SET"),
    )
    assert merge_samples([several, several]) == tuple(msgspec.structs.replace(each, count=2) for each in several)


def test_errors_beyond_the_samples_of_a_class_count_in_its_rest() -> None:
    many = [sample(message=f"ERR {number}", first_ns=number, last_ns=number) for number in range(50)]
    merged = merge_each([*many, sample("OOM")])
    assert [each.message for each in merged[:SAMPLES_PER_CLASS]] == [f"ERR {number}" for number in range(20)]
    assert merged[SAMPLES_PER_CLASS:] == (
        ErrorSample(name="ERR", count=30, first_ns=20, last_ns=49),
        sample("OOM"),
    )


@given(
    st.lists(
        st.lists(
            st.builds(
                sample,
                st.integers(0, 80).map(lambda number: f"CODE{number}"),
                st.integers(0, 40).map(lambda number: f"text {number}"),
                count=st.integers(1, 9),
            ),
            max_size=300,
        ).map(merge_each),
        max_size=4,
    )
)
def test_samples_are_bounded_and_their_counts_add_up(parts: list[tuple[ErrorSample, ...]]) -> None:
    merged = merge_samples(parts)
    assert sum(each.count for each in merged) == sum(each.count for part in parts for each in part)
    assert sum(not each.is_rest for each in merged) <= MAX_SAMPLES
    assert max(Counter(each.name for each in merged if not each.is_rest).values(), default=0) <= SAMPLES_PER_CLASS
    names = {each.name for each in merged}
    assert len(names) <= MAX_NAMES
    if OTHER not in names:
        by_name = Counter[str]()
        for each in merged:
            by_name[each.name] += each.count
        assert all(
            by_name[name] == sum(each.count for part in parts for each in part if each.name == name) for name in names
        )


def test_pools_merge_their_samples() -> None:
    pool = PoolMetrics(error_samples=(sample(),))
    for how in Merge:
        assert merge_pools([pool, PoolMetrics(), pool], how).error_samples == (sample(count=2),)


@pytest.mark.parametrize(
    "pool",
    [
        PoolMetrics(error_samples=(sample(),) * (MAX_SAMPLES + MAX_NAMES + 1)),
        PoolMetrics(error_samples=(sample(message="x" * (MAX_MESSAGE + 1)),)),
        PoolMetrics(error_samples=(sample(key="x" * 101),)),
        PoolMetrics(error_samples=(sample(endpoint="x" * 101),)),
        PoolMetrics(error_samples=(sample(name="x" * 65),)),
        PoolMetrics(error_samples=(sample(count=-1),)),
    ],
)
def test_samples_beyond_the_limits_are_refused_from_a_peer(pool: PoolMetrics) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(pool), type=PoolMetrics)


def test_the_most_samples_of_a_pool_fit_a_message() -> None:
    widest = "\N{GRINNING FACE}"
    full = tuple(
        ErrorSample(
            name=f"{number % 63:04}" + 60 * widest,
            message=f"{number:04}" + 196 * widest,
            command=64 * widest,
            key=100 * widest,
            endpoint=100 * widest,
            exception=64 * widest,
            cause=200 * widest,
            count=1 << 53,
            first_ns=1 << 53,
            last_ns=1 << 53,
        )
        for number in range(4 * MAX_SAMPLES)
    )
    merged = merge_each(full)
    assert len(merged) <= MAX_SAMPLES + MAX_NAMES
    assert len(msgspec.msgpack.encode(PoolMetrics(error_samples=merged))) < 1 << 19
