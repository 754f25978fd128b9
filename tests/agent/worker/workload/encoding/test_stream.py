from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from redis.connection import HiredisRespSerializer

from agent.worker.workload.encoding.stream import PackedBlock, draw_packed
from agent.worker.workload.mix import CommandMix
from agent.worker.workload.operations import draw_operations
from common.redis_client import SLOTS, slot_of
from tests.support.examples import examples
from tests.support.workloads import mix_of

PACKER = HiredisRespSerializer()
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)


WORDS = st.sampled_from(
    [
        "__key__",
        "__key__",
        "__keys(3)__",
        "__pairs(2)__",
        "__new_key__",
        "__data__",
        "__rand(0,120)__",
        "__rand(-12,12)__",
        "__rand(5,4000000000000000000)__",
        "__rand_int__",
        "__ttl__",
        "__thread__",
        "__seq__",
        "__sha(one)__",
        "__message__",
        "field:__rand(1,100)__",
        "a:__key__:__seq__:z",
        "__data__.__data__",
        "__rand(1,9)__{__new_key__}",
        "''",
        "é",
        "'a b'",
        r'"\x00\xff\x5f_\""',
        r'"a\xfe:__key__"',
        "x" * 90,
        "__key:k__ v:__key:k__",
        "__key:k__",
        "__rand(1,99):r____rand(1,99):r__",
        "__data:d__ a:__data:d__",
        "__seq:s__:__seq:s__",
        "__new_key:w__ __new_key:w__",
        "__rand_1st__ __rand_2nd__ __rand_1st__",
        "__ttl:t__ __ttl:t__",
        "__text__",
        "a:__text__ __text:x__ __text:x__",
    ]
)
COMMANDS = st.builds(
    lambda name, words, weight: {
        "command": " ".join([name, *words, *(["__key:k__"] if words.count("__key:k__") == 1 else [])]),
        "weight": weight,
    },
    st.sampled_from(["GET", "X", "SET", "LONGER.NAME"]),
    st.lists(WORDS, min_size=1, max_size=4),
    st.sampled_from([1, 0.05, 7]),
)
TABLE_NAMES = st.sampled_from(["SET", "GET", "MGET __keys(2)__", "PING", "=DBSIZE", "SETEX", "HSET", "GET fixed"]).map(
    lambda name: {"command": name}
)
KEYS = st.builds(
    lambda prefix, low, size, kind: {
        "prefix": prefix, "minimum": low, "maximum": min(low + size, 1 << 60), "distribution": kind,
    },
    st.one_of(TEXTS, st.sampled_from(["", "%d{", "{tag}:", "{}", "a{b", "}{x}{y", "{é}%", "stampede:"])),
    st.one_of(st.integers(0, 1200), st.integers(0, 1 << 60), st.integers(2, 17).map(lambda power: 10**power - 40)),
    st.one_of(st.sampled_from([40, 80]), st.integers(0, 3000), st.integers(0, 10**9), st.integers(0, 1 << 60)),
    st.sampled_from(["uniform", "sequential", "parallel", "gaussian", "zipfian", "latest", "hotspot"]),
)  # fmt: skip
SIZES = st.one_of(st.integers(0, 40), st.integers(0, 1200), st.just(100))
KINDS = st.sampled_from(["binary", "text", "json"])
VALUES = st.one_of(
    st.builds(
        lambda low, more, kind: {
            "minimum": low + 8 * (kind == "json"), "maximum": low + more + 8 * (kind == "json"), "kind": kind,
        },
        SIZES,
        st.one_of(st.just(0), SIZES),
        KINDS,
    ),
    st.lists(st.fixed_dictionaries({"size": SIZES, "weight": st.integers(1, 9)}), min_size=1, max_size=4).map(
        lambda sizes: {"sizes": sizes}
    ),
)  # fmt: skip
MIXES = st.builds(
    lambda commands, keys, values, expiry, tag: mix_of(
        *commands, keys=keys, values=values, tag=tag, expiry={"minimum": expiry[0], "maximum": expiry[0] + expiry[1]},
        scripts=[{"name": "one", "lua": "return 1"}],
    ),
    st.lists(st.one_of(COMMANDS, TABLE_NAMES), min_size=1, max_size=4),
    KEYS,
    VALUES,
    st.tuples(st.integers(1, 200_000), st.integers(0, 200_000)),
    st.sampled_from([0, 0, 1, 7]),
)  # fmt: skip


def requests(packed: PackedBlock) -> list[bytes]:
    """The requests of a block, after a check that its parts agree."""
    assert packed.offsets[0] == 0
    assert packed.offsets[-1] == len(packed.payload)
    assert packed.sizes.tolist() == np.diff(packed.offsets).tolist()
    assert len(packed.rows) == len(packed.sizes)
    return [packed.payload[begin:end] for begin, end in zip(packed.offsets, packed.offsets[1:], strict=False)]


def expected_operations(
    mixed: CommandMix, count: int, *, block: int, thread: int = 0, threads: int = 1
) -> list[tuple[int, Any, bytes]]:
    """(row, arguments, request as redis-py packs it) of the operations that the other drivers issue."""
    operations = islice(draw_operations(mixed, 5, thread, threads, block=block), count)
    return [(row, arguments, b"".join(PACKER.pack(*arguments))) for row, arguments, _, _ in operations]


@given(mixed=MIXES, block=st.integers(1, 80), threads=st.integers(1, 3))
@example(mixed=mix_of("SET", keys={"minimum": 10**8 - 9, "maximum": 10**8}), block=80, threads=1)
@example(mixed=mix_of("SET", keys={"minimum": 10**16 - 9, "maximum": 10**16}), block=80, threads=1)
@example(mixed=mix_of("SET", values={"minimum": 40, "maximum": 40, "kind": "json"}), block=8, threads=1)
@settings(max_examples=examples(200), deadline=None)
def test_packed_requests_are_the_bytes_that_redis_py_sends(mixed: CommandMix, block: int, threads: int) -> None:
    stream = draw_packed(mixed, 5, threads - 1, threads, block=block)
    blocks = [stream.block() for _ in range(3)]
    expected = expected_operations(mixed, 3 * block, block=block, thread=threads - 1, threads=threads)
    assert [request for packed in blocks for request in requests(packed)] == [request for _, _, request in expected]
    assert [row for packed in blocks for row in packed.rows.tolist()] == [row for row, _, _ in expected]
    assert {packed.node for packed in blocks} == {0}


@pytest.mark.parametrize(
    ("minimum", "maximum", "block"), [(150_000, 150_000, 5), (130_000, 270_000, 5), (900, 900, 400)]
)
def test_values_longer_than_a_copy_step_are_whole(minimum: int, maximum: int, block: int) -> None:
    mix = mix_of("SET", "GET", values={"minimum": minimum, "maximum": maximum})
    expected = [request for _, _, request in expected_operations(mix, block, block=block)]
    assert requests(draw_packed(mix, 5, 0, block=block).block()) == expected


FIRST_KEYS: list[tuple[str, int | None]] = [
    ("SET", 1),
    ("GET __key__", 1),
    ("INCR fixed", 1),
    ("MGET __keys(2)__", 1),
    ("EVALSHA __sha(one)__ 1 __key__ __data__", 3),
    ("APPEND a:__rand(1,9)__:__key__ __key__", 1),
    ("COPY __new_key__ __key__", 1),
    ("STRLEN user:__rand(1,100000)__", 1),
    ("HMSET user:__rand(1,9):r__ id __rand(1,9):r__", 1),
    ("HSETNX __key:k__ self __key:k__", 1),
    ("FCALL one 1 __rand(1,9):r__:__key:k__ __rand(1,9):r__ __key:k__", 3),
    ("PING", None),
    ("ECHO __data__", None),
    ("WHATEVER literal", None),
]
"""(template, index of its first key)."""


@given(
    chosen=st.lists(st.sampled_from(FIRST_KEYS), min_size=1, max_size=5, unique=True),
    keys=KEYS,
    tag=st.sampled_from([0, 3]),
    nodes=st.integers(-1, 4),
    block=st.sampled_from([1, 3, 70]),
)
@settings(max_examples=examples(100), deadline=None)
def test_requests_go_to_the_node_of_their_first_key_in_order(
    chosen: list[tuple[str, int | None]], keys: dict[str, Any], tag: int, nodes: int, block: int
) -> None:
    listed = [{"command": command, "weight": 1 + number} for number, (command, _) in enumerate(chosen)]
    mixed = mix_of(*listed, keys=keys, tag=tag, scripts=[{"name": "one", "lua": "return 1"}])
    owners = np.random.default_rng(3).integers(-1, nodes + 1, SLOTS)
    stream = draw_packed(mixed, 5, 0, block=block)
    expected = expected_operations(mixed, 2 * block, block=block)
    for number in range(2):
        ours = expected[block * number :][:block]
        blocks = stream.blocks(owners)
        nodes_found = [packed.node for packed in blocks]
        assert nodes_found == sorted(set(nodes_found))
        keyless: list[bytes] = []
        for packed in blocks:
            each = list(zip(packed.rows.tolist(), requests(packed), strict=True))
            assert each
            mine = [
                (row, request)
                for row, arguments, request in ours
                if (place := chosen[row][1]) and owners[slot_of(arguments[place])] == packed.node
            ]
            assert [(row, request) for row, request in each if chosen[row][1]] == mine
            keyless += [request for row, request in each if not chosen[row][1]]
        assert sorted(keyless) == sorted(request for row, _, request in ours if not chosen[row][1])
        assert sum(len(packed.rows) for packed in blocks) == block


@given(batch=st.integers(1, 9), tag=st.integers(1, 30), block=st.integers(1, 60))
@settings(max_examples=examples(50), deadline=None)
def test_a_transaction_stays_in_one_slot(batch: int, tag: int, block: int) -> None:
    mixed = mix_of(
        "SET",
        "MGET __keys(3)__",
        "ECHO __seq__",
        {"command": "INCR", "key_prefix": "n:"},
        tag=tag,
        transaction=batch,
    )
    owners = np.arange(SLOTS) % 3
    stream = draw_packed(mixed, 5, 0, block=block)
    size = -(-block // batch) * batch
    blocks = stream.blocks(owners)
    expected = [request for _, _, request in expected_operations(mixed, size, block=block)]
    left = {packed.node: requests(packed) for packed in blocks}
    assert all(len(each) % batch == 0 for each in left.values())
    while expected:
        mine, expected = expected[:batch], expected[batch:]
        keys = [request.split(b"\r\n")[4] for request in mine if b"\r\nECHO\r\n" not in request[:15]]
        nodes = {slot_of(key) % 3 for key in keys} or {node for node, each in left.items() if each[:batch] == mine}
        node = min(nodes)
        assert len(nodes) == 1 or not keys
        assert left[node][:batch] == mine
        del left[node][:batch]


def test_requests_without_keys_go_to_all_nodes() -> None:
    blocks = draw_packed(mix_of("PING"), 1, 0, block=3000).blocks(np.arange(SLOTS) % 3)
    assert [packed.node for packed in blocks] == [0, 1, 2]
    assert all(len(packed.rows) > 900 for packed in blocks)


def test_splitting_does_not_change_what_is_expected_operations() -> None:
    mixed = mix_of("SET", "PING", "GET", keys={"distribution": "zipfian"})
    one, other = draw_packed(mixed, 1, 0, block=100), draw_packed(mixed, 1, 0, block=100)
    owners = np.arange(SLOTS) % 2
    for _ in range(3):
        split = [request for packed in one.blocks(owners) for request in requests(packed)]
        assert sorted(split) == sorted(requests(other.block()))


@pytest.mark.parametrize("size", [0, 1, 100, 1024, 40_000, 3 << 20])
def test_the_size_of_a_block_is_limited_for_values_of_any_size(size: int) -> None:
    packed = draw_packed(mix_of("SET", "GET", values={"minimum": size, "maximum": size}), 1, 0).block()
    assert len(packed.payload) <= max(1 << 20, 2 * size)


def test_a_mix_that_depends_on_replies_is_refused() -> None:
    for mixed in (mix_of("SCAN"), mix_of("GET", values={"verify": True})):
        with pytest.raises(AssertionError, match="expected"):
            draw_packed(mixed, 1, 0)
