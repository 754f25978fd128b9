from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.worker.workload.keys import Keyspace
from common.plan.planned_commands import key_text
from common.redis_client import slot_of


@given(
    prefix=st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
    numbers=st.lists(st.integers(0, 2**60), max_size=20),
    tag=st.integers(0, 1000),
)
def test_keys_have_the_form_of_key_text(prefix: str, numbers: list[int], tag: int) -> None:
    keyspace = Keyspace(prefix, 0, 2**60, tag)
    drawn = np.array(numbers, dtype=np.int64)
    texts = list(keyspace.texts(drawn))
    assert texts == [key_text(prefix, number, tag) for number in numbers]
    assert keyspace.lengths(drawn).tolist() == [len(text) for text in texts]
    if tag:
        assert [keyspace.tag(text) for text in texts] == [number // tag for number in numbers]


@given(
    prefix=st.one_of(
        st.text(st.characters(exclude_categories=("Cs",)), max_size=8),
        st.text("{}a", max_size=5),
        st.sampled_from(["{tag}", "{}", "a{", "}{x}{y}", "{é}%d", "stampede:"]),
    ),
    numbers=st.lists(st.one_of(st.integers(0, 2**60), st.integers(0, 20_000)), max_size=20),
    more=st.lists(st.sampled_from([0, 1, 9, 10, 9999, 10_000, 10**8 - 1, 10**8, 10**12, 10**16, 2**60]), max_size=3),
    tag=st.sampled_from([0, 0, 1, 7, 1000]),
)
@settings(deadline=None)
def test_slots_are_the_slots_of_a_cluster(prefix: str, numbers: list[int], more: list[int], tag: int) -> None:
    keyspace = Keyspace(prefix, 0, 2**60, tag)
    drawn = np.array(numbers + more, dtype=np.int64)
    for part in (drawn, drawn[drawn < 10_000], drawn[drawn < 10**8]):
        assert keyspace.slots(part).tolist() == [slot_of(text) for text in keyspace.texts(part)]


@given(tag=st.integers(1, 50), low=st.integers(0, 99), size=st.integers(1, 100), count=st.integers(1, 8))
def test_sibling_keys_share_the_hash_tag_and_differ_if_possible(tag: int, low: int, size: int, count: int) -> None:
    keyspace = Keyspace("k", low, low + size - 1, tag)
    generator = np.random.default_rng(1)
    first = generator.integers(low, low + size, 50)
    for number, row in zip(first, keyspace.siblings(generator, first, count).tolist(), strict=True):
        assert row[0] == number
        group = {other for other in range(low, low + size) if other // tag == number // tag}
        assert set(row) <= group
        assert len(set(row)) == min(count, len(group))


def test_siblings_are_drawn_uniformly() -> None:
    keyspace = Keyspace("k", 0, 9, 5)
    found = keyspace.siblings(np.random.default_rng(1), np.full(20_000, 7), 2)[:, 1]
    shares = np.bincount(found, minlength=10) / 20_000
    assert shares[7] == 0
    assert np.abs(shares[[5, 6, 8, 9]] - 0.25).max() < 0.02


@given(tag=st.integers(1, 50), low=st.integers(0, 99), size=st.integers(1, 100))
def test_a_number_within_a_tag_lies_in_the_range(tag: int, low: int, size: int) -> None:
    keyspace = Keyspace("k", low, low + size - 1, tag)
    generator = np.random.default_rng(1)
    tags = generator.integers(low, low + size, 50) // tag
    found = keyspace.within(generator, tags)
    assert (found // tag == tags).all()
    assert ((low <= found) & (found < low + size)).all()
