from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.drivers.wire.batch_rows import WireRecord, pack_batch
from agent.worker.metrics.hits import HIT, MISS
from agent.worker.metrics.outcomes import Outcomes
from agent.worker.metrics.rows import NO_ROWS, NONE, Rows, ThreadRecord, join_rows
from agent.worker.metrics.wire_sizes import NIL_BYTES
from agent.worker.pacing.pacer import LEG_BY_TIME
from common.metrics.histogram import Ints
from common.redis_client import NO_ENDPOINT
from tests.support.rows import Row, bin_rows

NAMES = ("SET", "GET", "TTL")
T0 = 10**15
PROTOCOL = 3


@dataclass(frozen=True)
class Operation:
    row: int
    bytes_out: int
    bytes_in: int
    found: int = 0


@dataclass(frozen=True)
class Batch:
    operations: list[Operation]
    begin: int
    """Position within the block."""
    ended_ns: int
    service_ns: int
    lag_ns: int
    leg: int
    is_separate: bool


@st.composite
def loads(draw: st.DrawFn) -> tuple[list[int | None], bool, list[list[Batch]]]:
    """(size of the replies of each row of the mix, whether nil is a miss for rows without such a size, batches of each
    block)."""
    # At most one command has replies of different sizes: the bytes of a batch are not split by command.
    fixed = draw(st.lists(st.none() | st.integers(0, 100), min_size=1, max_size=3))
    fixed = [None if size is None and None not in fixed[:row] else size or 7 for row, size in enumerate(fixed)]

    is_by_nil = draw(st.booleans())

    def answered(row: int, bytes_out: int, bytes_in: int) -> Operation:
        if (size := fixed[row]) is not None:
            return Operation(row, bytes_out, size)
        return Operation(row, bytes_out, bytes_in, (MISS if bytes_in == NIL_BYTES[PROTOCOL] else HIT) * is_by_nil)

    def operation() -> st.SearchStrategy[Operation]:
        rows = st.integers(0, len(fixed) - 1)
        return st.builds(
            answered,
            rows,
            st.integers(14, 99) | st.just(1 << 29),  # a batch of the longest values needs more than 32 bits
            st.just(NIL_BYTES[PROTOCOL]) | st.integers(NIL_BYTES[PROTOCOL] + 1, 1 << 29),
        )

    longest = draw(st.sampled_from([1, 9]))
    blocks = []
    for _ in range(draw(st.integers(1, 4))):
        begin, batches = 0, []
        for operations in draw(st.lists(st.lists(operation(), min_size=1, max_size=longest), min_size=1, max_size=8)):
            timing = draw(st.tuples(st.integers(0, 10**9), st.integers(0, 10**7)))
            lag_ns, leg = draw(st.sampled_from([NONE, 0, 5_000, 2_000_000])), draw(st.sampled_from([LEG_BY_TIME, 3]))
            batches.append(Batch(operations, begin, T0 + timing[0], timing[1], lag_ns, leg, draw(st.booleans())))
            begin += len(operations)
        blocks.append(batches)
    return fixed, is_by_nil, blocks


def rows_of(batch: Batch) -> bytes:
    """One row per operation, as other drivers write them."""
    return b"".join(
        Row(
            ended_ns=batch.ended_ns,
            kind=one.row,
            service_ns=batch.service_ns,
            lag_ns=batch.lag_ns,
            leg=batch.leg,
            bytes_out=one.bytes_out,
            bytes_in=one.bytes_in,
            wait_ns=NONE,
            found=one.found,
        ).packed()
        for one in batch.operations
    )


def add(record: WireRecord, place: int, batch: Batch) -> None:
    count = len(batch.operations)
    if batch.is_separate:
        record.add(rows_of(batch))
        record.skip(place + batch.begin, count)
        return
    bytes_in = sum(one.bytes_in for one in batch.operations)
    began_ns = batch.ended_ns - batch.service_ns
    # The record finds the misses of a single operation itself.
    correction = sum(one.found == MISS for one in batch.operations) * (MISS - HIT) if count > 1 else 0
    record.add_batch(
        pack_batch(
            batch.ended_ns,
            began_ns,
            place + batch.begin,
            count,
            bytes_in,
            batch.lag_ns,
            batch.leg,
            NO_ENDPOINT,
            correction,
        )
    )


def column(batches: list[Batch], name: str) -> Ints:
    return np.array([getattr(one, name) for batch in batches for one in batch.operations], dtype=np.int64)


@given(loads(), st.randoms(use_true_random=False))
def test_batch_rows_count_the_same_as_one_row_per_operation(
    load: tuple[list[int | None], bool, list[list[Batch]]], chance: Random
) -> None:
    fixed, is_by_nil, blocks = load
    by_nil = [is_by_nil and size is None for size in fixed]
    record, one_by_one = WireRecord(fixed, by_nil, PROTOCOL), ThreadRecord()
    taken: list[Rows] = []
    under_way: list[tuple[int, Batch]] = []
    for batches in blocks:
        place = record.add_block(column(batches, "row"), column(batches, "bytes_out"))
        under_way += [(place, batch) for batch in batches]
        chance.shuffle(under_way)
        # Some batches stay in flight and end after later ones.
        for _ in range(chance.randint(0, len(under_way))):
            begin, batch = under_way.pop()
            add(record, begin, batch)
            one_by_one.add(rows_of(batch))
            if chance.random() < 0.2:
                taken.append(record.take())
    for begin, batch in under_way:
        add(record, begin, batch)
        one_by_one.add(rows_of(batch))
    taken.append(record.take())
    outcomes = Outcomes().names
    assert bin_rows(join_rows(taken), NAMES, outcomes) == bin_rows(one_by_one.take(), NAMES, outcomes)
    assert record.take().shape == NO_ROWS.shape


def test_a_block_is_freed_when_all_its_operations_are_recorded() -> None:
    record = WireRecord([None])
    sizes = np.full(3, 20)
    first, second = (record.add_block(np.zeros(3, dtype=np.int64), sizes) for _ in range(2))
    record.add_batch(pack_batch(T0, T0 - 5, first, 2, 10, NONE, LEG_BY_TIME, NO_ENDPOINT, 0))
    record.add_batch(pack_batch(T0, T0 - 5, second, 3, 10, NONE, LEG_BY_TIME, NO_ENDPOINT, 0))
    record.take()
    assert list(record._blocks) == [first]
    record.skip(first + 2, 1)
    assert record.take().shape == NO_ROWS.shape
    assert not record._blocks
