from __future__ import annotations

from itertools import count, islice
from typing import Any, cast

import hiredis
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.drivers.wire.batch_rows import TOLD_APART, WireRecord
from agent.worker.drivers.wire.request_source import (
    NO_REQUESTS,
    NOBODY,
    Block,
    BlockSource,
    Feed,
    OperationSource,
    packed_block,
)
from agent.worker.workload.encoding.stream import PackedStream
from common.redis_client.slots import slot_of
from common.redis_client.wire_connections import SLOTS
from tests.support.wire import GET, SET, Dealt, operation

Sizes = st.lists(st.integers(0, 7), min_size=1, max_size=12)


def gets() -> Any:
    return (operation("GET", f"key:{number}") for number in count())


def keys(payload: bytes) -> list[int]:
    """The numbers of the keys that requests name."""
    reader = hiredis.Reader()
    reader.feed(payload)
    return [int(command[1].split(b":")[1]) for command in iter(reader.gets, False)]


def blocks_of(sizes: list[int], *, with_operations: bool = False) -> list[Block]:
    """Blocks of so many requests each, one following the other."""
    drawn = gets()
    blocks = [packed_block(list(islice(drawn, size))) for size in sizes]
    for block in blocks:
        block.operations = block.operations if with_operations else None
    return blocks


def taken(feed: Feed, record: WireRecord, counts: list[int], *, in_batches: bool) -> list[int]:
    """All that a feed has, in batches of so many."""
    found: list[int] = []
    for wanted in counts:
        if not feed.advance(wanted, record):
            break
        if in_batches:
            for batch in feed.batches(wanted):
                assert len(keys(batch[1])) == wanted
                found += keys(batch[1])
        else:
            block, begin, end = feed.take(wanted)
            found += keys(block.payload[block.offsets[begin] : block.offsets[end]])
    return found


@given(sizes=Sizes, wanted=st.lists(st.integers(1, 9), max_size=20), with_operations=st.booleans())
def test_requests_of_blocks_are_taken_once_and_in_order_however_many_at_a_time(
    sizes: list[int], wanted: list[int], with_operations: bool
) -> None:
    feed, record = Feed(), WireRecord([None, 5])
    for block in blocks_of(sizes, with_operations=with_operations):
        feed.append(block)
    found = taken(feed, record, wanted, in_batches=False)
    assert found == list(range(len(found)))
    assert feed.backlog == sum(sizes) - len(found)


@given(sizes=Sizes, batch=st.integers(1, 9))
def test_batches_of_a_steady_load_are_all_that_there_is_but_for_a_rest(sizes: list[int], batch: int) -> None:
    feed, record = Feed(), WireRecord([None, 5])
    for block in blocks_of(sizes):
        feed.append(block)
    found = taken(feed, record, [batch] * 100, in_batches=True)
    assert found == list(range(sum(sizes) // batch * batch))
    assert feed.backlog == sum(sizes) % batch


@given(sizes=Sizes, wanted=st.lists(st.integers(1, 9), min_size=1, max_size=9), clears=st.booleans())
def test_the_record_hears_of_each_request_of_a_block_that_it_knows(
    sizes: list[int], wanted: list[int], clears: bool
) -> None:
    told: list[tuple[int, int]] = []

    class Told(WireRecord):
        __slots__ = ()

    record = Told([None, 5])
    feed = Feed()
    for block in blocks_of(sizes):
        feed.append(block)
    for number in wanted:
        if feed.advance(number, record):
            block, begin, end = feed.take(number)
            told.append((block.place + begin, end - begin))
    if clears:
        taken_so_far = sum(sizes) - feed.backlog
        left_over = [key for block in feed.hand_over(record) for key in keys(block.payload)]
        assert left_over == list(range(taken_so_far, sum(sizes)))
        assert (feed.backlog, feed.block) == (0, NO_REQUESTS)
    left = np.frombuffer(bytes(record._batches), dtype=np.int64).reshape(-1, 6)
    assert (left[:, 4] == TOLD_APART).all()
    heard = sorted([*told, *((place, many) for _, _, place, many, _, _ in left.tolist())])
    reached = 0
    for place, many in heard:
        assert place == reached
        reached += many
    assert reached == record._next - (0 if clears else feed.block.count - feed.at)


def test_operations_of_a_part_of_a_block_are_those_of_its_requests() -> None:
    block = packed_block([GET, SET, GET])
    assert block.operations_of(1, 3) == [SET, GET]
    block.operations = None
    assert block.operations_of(1, 3) == [(1, (), SET[2], None), (0, (), GET[2], None)]


def test_a_block_source_draws_until_there_are_enough() -> None:
    source = BlockSource(cast(PackedStream, Dealt(gets(), 4)))
    blocks = list(source.draw(9, None))
    assert [(node, block.count) for node, block in blocks] == [(0, 4)] * 3
    assert [key for _, block in blocks for key in keys(block.payload)] == list(range(12))


@given(owners=st.lists(st.integers(-1, 2), min_size=1, max_size=5), wanted=st.integers(1, 30))
def test_each_request_goes_to_the_node_of_its_slot_and_to_nobody_where_none_has_it(
    owners: list[int], wanted: int
) -> None:
    nodes = np.array([owners[slot % len(owners)] for slot in range(SLOTS)])
    source = BlockSource(cast(PackedStream, Dealt(gets(), 4)))
    by_node: dict[int, list[int]] = {}
    for node, block in source.draw(wanted, nodes):
        by_node.setdefault(node, []).extend(keys(block.payload))
    drawn = range(-(-wanted // 4) * 4)
    owner = {number: int(nodes[slot_of(b"key:%d" % number)]) for number in drawn}
    assert by_node == {
        node: mine for node in (NOBODY, 0, 1, 2) if (mine := [number for number in drawn if owner[number] == node])
    }


def test_operations_one_by_one_are_made_only_when_they_are_wanted() -> None:
    made: list[int] = []

    def drawn() -> Any:
        for number in count():
            made.append(number)
            yield operation("GET", f"key:{number}")

    source = OperationSource(drawn(), lambda call: slot_of(cast(bytes, call[1])), 1)
    [(node, block)] = source.draw(3, None)
    assert (node, keys(block.payload), made) == (0, [0, 1, 2], [0, 1, 2])
    nodes = np.arange(SLOTS) % 2
    blocks = list(source.draw(4, nodes))
    assert [keys(block.payload) for _, block in blocks] == [[3], [4], [5], [6]]
    assert [node for node, _ in blocks] == [slot_of(b"key:%d" % number) % 2 for number in (3, 4, 5, 6)]


def test_operations_that_stay_together_go_to_the_node_of_the_first() -> None:
    source = OperationSource(gets(), lambda call: slot_of(cast(bytes, call[1])), 3)
    [(node, block)] = source.draw(3, np.arange(SLOTS) % 2)
    assert (node, keys(block.payload)) == (slot_of(b"key:0") % 2, [0, 1, 2])
    assert [each[1] for each in block.operations or ()] == [("GET", b"key:%d" % number) for number in range(3)]
