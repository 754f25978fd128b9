from __future__ import annotations

from itertools import count, islice
from typing import Any, cast

import hiredis
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.drivers.wire.batch_rows import RECORDED_SEPARATELY, WireRecord
from agent.worker.drivers.wire.requests import (
    NO_REQUESTS,
    OperationRequestSource,
    PackedRequestSource,
    RequestBlock,
    RequestQueue,
    packed_block,
)
from agent.worker.pacing.pacer import NO_DUE_TIME, Turn
from agent.worker.workload.encoding.stream import PackedStream
from common.redis_client.connections.cluster_topology import slot_of
from common.redis_client.wire_connections import SLOTS
from tests.support.wire import GET, SET, FixedStream, operation

Sizes = st.lists(st.integers(0, 7), min_size=1, max_size=12)


def gets() -> Any:
    return (operation("GET", f"key:{number}") for number in count())


def keys(payload: bytes) -> list[int]:
    """The numbers in the keys of packed requests."""
    reader = hiredis.Reader()
    reader.feed(payload)
    return [int(command[1].split(b":")[1]) for command in iter(reader.gets, False)]


def blocks_of(sizes: list[int], *, with_operations: bool = False) -> list[RequestBlock]:
    """One block per size, with consecutive keys."""
    drawn = gets()
    blocks = [packed_block(list(islice(drawn, size))) for size in sizes]
    for block in blocks:
        block.operations = block.operations if with_operations else None
    return blocks


def turn_of(count: int) -> Turn:
    return Turn((NO_DUE_TIME,) * count)


def taken(queue: RequestQueue, record: WireRecord, counts: list[int], *, in_batches: bool) -> list[int]:
    """The keys of all requests of a queue, taken in batches of these counts."""
    found: list[int] = []
    for wanted in counts:
        if not queue.advance(wanted, record):
            break
        if in_batches:
            for batch in queue.batches(turn_of(wanted)):
                assert len(keys(batch[1])) == wanted
                found += keys(batch[1])
        else:
            found += keys(queue.take(turn_of(wanted))[1])
    return found


@given(sizes=Sizes, wanted=st.lists(st.integers(1, 9), max_size=20), with_operations=st.booleans())
def test_a_queue_returns_each_request_once_and_in_order(
    sizes: list[int], wanted: list[int], with_operations: bool
) -> None:
    queue, record = RequestQueue(), WireRecord([None, 5])
    for block in blocks_of(sizes, with_operations=with_operations):
        queue.append(block)
    found = taken(queue, record, wanted, in_batches=False)
    assert found == list(range(len(found)))
    assert queue.backlog == sum(sizes) - len(found)


@given(sizes=Sizes, batch=st.integers(1, 9))
def test_steady_batches_take_all_requests_except_an_incomplete_last_batch(sizes: list[int], batch: int) -> None:
    queue, record = RequestQueue(), WireRecord([None, 5])
    for block in blocks_of(sizes):
        queue.append(block)
    found = taken(queue, record, [batch] * 100, in_batches=True)
    assert found == list(range(sum(sizes) // batch * batch))
    assert queue.backlog == sum(sizes) % batch


@given(sizes=Sizes, wanted=st.lists(st.integers(1, 9), min_size=1, max_size=9), clears=st.booleans())
def test_the_record_is_told_of_each_request_that_leaves_the_queue(
    sizes: list[int], wanted: list[int], clears: bool
) -> None:
    batches: list[tuple[int, int]] = []
    queue, record = RequestQueue(), WireRecord([None, 5])
    for block in blocks_of(sizes):
        queue.append(block)
    for number in wanted:
        if queue.advance(number, record):
            batches.append((queue.take(turn_of(number))[0], number))
    if clears:
        taken_so_far = sum(sizes) - queue.backlog
        left_over = [key for block in queue.remove_all(record) for key in keys(block.payload)]
        assert left_over == list(range(taken_so_far, sum(sizes)))
        assert (queue.backlog, queue.block) == (0, NO_REQUESTS)
    left = np.frombuffer(bytes(record._batches), dtype=np.int64).reshape(-1, 9)
    assert (left[:, 4] == RECORDED_SEPARATELY).all()
    heard = sorted([*batches, *((place, many) for _, _, place, many, *_ in left.tolist())])
    reached = 0
    for place, many in heard:
        assert place == reached
        reached += many
    assert reached == record._next - (0 if clears else queue.block.count - queue.position)


def test_a_batch_finds_the_operations_of_its_requests() -> None:
    block = packed_block([GET, SET, GET])
    batch = block.batch(1, turn_of(2))
    assert block.operations_of(batch) == [SET, GET]
    block.operations = None
    assert block.operations_of(batch) == [(1, (), SET[2], None), (0, (), GET[2], None)]


def test_a_packed_source_draws_blocks_until_there_are_enough_requests() -> None:
    source = PackedRequestSource(cast(PackedStream, FixedStream(gets(), 4)))
    blocks = list(source.draw(9, None))
    assert [(node, block.count) for node, block in blocks] == [(0, 4)] * 3
    assert [key for _, block in blocks for key in keys(block.payload)] == list(range(12))


def test_single_operations_are_drawn_only_when_they_are_needed() -> None:
    made: list[int] = []

    def drawn() -> Any:
        for number in count():
            made.append(number)
            yield operation("GET", f"key:{number}")

    source = OperationRequestSource(drawn(), lambda call: slot_of(cast(bytes, call[1])), 1)
    [(node, block)] = source.draw(3, None)
    assert (node, keys(block.payload), made) == (0, [0, 1, 2], [0, 1, 2])
    nodes = np.arange(SLOTS) % 2
    blocks = list(source.draw(4, nodes))
    assert [keys(block.payload) for _, block in blocks] == [[3], [4], [5], [6]]
    assert [node for node, _ in blocks] == [slot_of(b"key:%d" % number) % 2 for number in (3, 4, 5, 6)]


def test_a_transaction_goes_to_the_node_of_its_first_operation() -> None:
    source = OperationRequestSource(gets(), lambda call: slot_of(cast(bytes, call[1])), 3)
    [(node, block)] = source.draw(3, np.arange(SLOTS) % 2)
    assert (node, keys(block.payload)) == (slot_of(b"key:0") % 2, [0, 1, 2])
    assert [each[1] for each in block.operations or ()] == [("GET", b"key:%d" % number) for number in range(3)]


def test_a_block_returns_the_arguments_of_its_requests() -> None:
    calls = [(b"SET", b"key:1", b"a\r\nb"), (b"GET", b""), (b"PING",)]
    block = packed_block([(0, call, 0, None) for call in calls])
    assert [tuple(block.arguments_of(index)) for index in range(3)] == calls
