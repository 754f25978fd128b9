from __future__ import annotations

import threading
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.metrics.endpoints import Endpoints
from agent.worker.metrics.hits import HIT, MISS
from agent.worker.metrics.outcomes import Outcomes
from agent.worker.metrics.rows import (
    COUNT,
    ENDED_NS,
    NO_ROWS,
    NONE,
    PACKED,
    WAIT_NS,
    WAIT_ONLY,
    RowSums,
    ThreadRecord,
    join_rows,
    legs_of,
    seconds_of,
)
from agent.worker.pacing.pacer import LEG_BY_TIME
from common.plan.schema import Load
from common.plan.timeline import timeline
from common.redis_client import NO_ENDPOINT, Failure
from common.units import NS_PER_S
from tests.support.rows import Row, bin_rows, named, rows_of
from tests.support.stages import stage

NAMES = ("SET", "GET")
READONLY = Failure(True, "READONLY", 10)
LOST = Failure(False, "ConnectionError", 0)


def test_rows_come_back_as_they_were_packed() -> None:
    first, second = Row(1, 2, 3, NONE, 4, 5, 6, 7), Row(10**18, 0, 2**62, 4, LEG_BY_TIME, 0, 0, NONE)
    assert named(rows_of(first, second)) == [first, second]


def test_a_row_that_arrives_during_a_take_is_taken_the_next_time() -> None:
    class Busy(array):  # type: ignore[type-arg]
        """Another thread adds a row just after each look at the length."""

        def __len__(self) -> int:
            count = super().__len__()
            self.frombytes(Row(count).packed())
            return count

    record = ThreadRecord()
    record._buffer = Busy("q")
    assert [record.take()[:, ENDED_NS].tolist() for _ in range(3)] == [[], [0], [PACKED]]


@pytest.mark.usefixtures("eager_switches")
def test_no_row_is_lost_or_doubled_between_two_threads() -> None:
    record, count = ThreadRecord(), 200_000
    done = threading.Event()

    def add() -> None:
        for number in range(count):
            record.add(Row(number, wait_ns=number).packed())
        done.set()

    thread = threading.Thread(target=add)
    thread.start()
    taken = []
    while not done.is_set():
        taken.append(record.take())
    thread.join()
    taken.append(record.take())
    rows = np.concatenate(taken)
    assert rows[:, ENDED_NS].tolist() == list(range(count))
    assert (rows[:, ENDED_NS] == rows[:, WAIT_NS]).all()


@given(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=4))
def test_parts_are_joined_in_order(parts: list[list[int]]) -> None:
    found = join_rows([rows_of(*map(Row, part)) for part in parts])
    assert found[:, ENDED_NS].tolist() == [at_ns for part in parts for at_ns in part]
    assert found.shape[1] == NO_ROWS.shape[1]


def test_a_row_counts_in_the_second_in_which_it_completed() -> None:
    t0_ns = 10**12
    rows = rows_of(*(Row(t0_ns + offset) for offset in (-5, 0, NS_PER_S - 1, NS_PER_S, 3 * NS_PER_S + 1)))
    assert seconds_of(rows, t0_ns).tolist() == [0, 0, 0, 1, 3]


def test_each_outcome_has_one_number_and_zero_is_success() -> None:
    outcomes = Outcomes()
    numbers = [outcomes.number(failure) for failure in (READONLY, LOST, READONLY, Failure(True, "READONLY", 99))]
    assert numbers == [1, 2, 1, 1]
    assert outcomes.names[1:] == [(True, "READONLY"), (False, "ConnectionError")]


def test_rows_add_up_by_command_and_outcome() -> None:
    outcomes = Outcomes()
    readonly, lost = (len(NAMES) * outcomes.number(failure) for failure in (READONLY, LOST))
    metrics = bin_rows(
        rows_of(
            Row(1, 0, 100, bytes_out=60, bytes_in=5),
            Row(2, 0, 300, bytes_out=61, bytes_in=5, wait_ns=7),
            Row(3, 1, 200, bytes_out=30, bytes_in=40),
            Row(4, 0 + readonly, 500, bytes_out=62, bytes_in=10),
            Row(5, 1 + lost, 900, bytes_out=31, bytes_in=0),
            Row(6, 1 + lost, 901, bytes_out=32, bytes_in=0),
            Row(7, WAIT_ONLY, bytes_out=0, bytes_in=0, wait_ns=99),
        ),
        NAMES,
        outcomes.names,
    )
    writes, reads = metrics.commands["SET"], metrics.commands["GET"]
    assert (writes.ok, writes.errors, writes.failures, writes.bytes_out, writes.bytes_in) == (
        2,
        {"READONLY": 1},
        {},
        183,
        20,
    )
    assert (writes.service.count, writes.service.value_sum, writes.failed.value_sum) == (2, 400, 500)
    assert (reads.ok, reads.errors, reads.failures, reads.operations) == (1, {}, {"ConnectionError": 2}, 3)
    assert (reads.failed.count, reads.bytes_out) == (2, 93)
    assert (metrics.checkout_wait.count, metrics.checkout_wait.value_sum) == (7, 106)
    assert (writes.response.count, reads.response.count, metrics.send_lag.count) == (0, 0, 0), (
        "a closed loop has no lag"
    )


def test_a_row_of_several_operations_counts_each_of_them() -> None:
    several = Row(9, 0, 5, lag_ns=3_000_000, bytes_out=60, bytes_in=15, wait_ns=2)
    rows = rows_of(several, Row(9, 0, 7, bytes_out=61, bytes_in=5, wait_ns=NONE))
    rows[:, COUNT] = (3, 1)
    metrics = bin_rows(rows, NAMES, Outcomes().names)
    found = metrics.commands["SET"]
    assert (found.ok, found.bytes_out, found.bytes_in) == (4, 121, 20)
    assert (found.service.count, found.service.value_sum) == (4, 22)
    assert (found.response.count, found.response.value_sum) == (3, 3 * 3_000_005)
    assert (metrics.send_lag.count, metrics.late_sends) == (3, 3)
    # The second row is not the first of its batch: it has no wait for a client.
    assert (metrics.checkout_wait.count, metrics.checkout_wait.value_sum) == (3, 6)


def test_in_a_closed_leg_the_wait_for_its_begin_is_not_lag() -> None:
    sums = RowSums(is_open=False)
    sums.add(rows_of(Row(9, 0, 5, lag_ns=3_000_000)))
    metrics = sums.metrics(NAMES, Outcomes().names)
    assert (metrics.send_lag.count, metrics.late_sends, metrics.commands["SET"].response.count) == (0, 0, 0)
    assert metrics.commands["SET"].service.count == 1


def test_sums_have_the_first_begin_and_the_number_of_begins_after_the_end() -> None:
    sums = RowSums(end_ns=100)
    sums.add(rows_of(Row(5, WAIT_ONLY, wait_ns=5), Row(200, 0, 101, lag_ns=0), Row(200, 0, 100, lag_ns=0)))
    sums.add(rows_of(Row(130, 1, 90, lag_ns=0)))
    assert (sums.first, sums.begun_after) == ((40, 0), 1)


@pytest.mark.parametrize(
    ("is_open", "lags_ns", "skew_ns"),
    [
        (True, [0], 0),
        (True, [7], 7),
        (True, [700, 400, 100], 100),  # a batch is due with its last operation
        (False, [NONE], 60),
        (False, [60], 60),
    ],
)
def test_the_start_skew_is_the_lag_of_the_earliest_operation(is_open: bool, lags_ns: list[int], skew_ns: int) -> None:
    later = rows_of(Row(300, 1, 10, lag_ns=1))
    sums = RowSums(is_open, begin_ns=40)
    sums.add(later)
    sums.add(rows_of(*(Row(250, 0, 150, lag_ns=lag_ns) for lag_ns in lags_ns)))
    sums.add(later)
    assert sums.first == (100, skew_ns)


def test_response_time_is_lag_plus_service_time() -> None:
    metrics = bin_rows(rows_of(Row(1, 0, 100, lag_ns=23), Row(1, 0, 100, lag_ns=0)), NAMES, Outcomes().names)
    response = metrics.commands["SET"].response
    assert (response.minimum, response.maximum, response.count) == (100, 123, 2)
    assert (metrics.send_lag.minimum, metrics.send_lag.maximum) == (0, 23)


ROWS = st.builds(
    Row,
    ended_ns=st.just(10**12),
    kind=st.integers(WAIT_ONLY, 5),
    service_ns=st.integers(0, 10**9),
    lag_ns=st.integers(NONE, 10**7),
    leg=st.just(LEG_BY_TIME),
    bytes_out=st.integers(0, 99),
    bytes_in=st.integers(0, 99),
    wait_ns=st.integers(NONE, 9),
    found=st.sampled_from((0, HIT, MISS, 7 * HIT + 3 * MISS)),
    count=st.just(1),
    endpoint=st.integers(NO_ENDPOINT, 2),
).map(lambda row: row._replace(endpoint=NO_ENDPOINT) if row.kind == WAIT_ONLY else row)


@given(st.lists(st.lists(ROWS, max_size=20), max_size=5))
def test_rows_add_up_the_same_in_parts_and_at_once(parts: list[list[Row]]) -> None:
    outcomes = Outcomes()
    outcomes.number(READONLY)
    outcomes.number(LOST)
    endpoints = Endpoints()
    for port in range(3):
        endpoints.number("h", port)
        endpoints.has_role("h", port, "replica" if port else "primary")
    sums = RowSums(commands=len(NAMES))
    for part in parts:
        sums.add(rows_of(*part))
    rows = [row for part in parts for row in part]
    at_once = bin_rows(rows_of(*rows), NAMES, outcomes.names, endpoints)
    assert sums.metrics(NAMES, outcomes.names, endpoints) == at_once
    sent = sum(row.kind != WAIT_ONLY and row.endpoint != NO_ENDPOINT for row in rows)
    by_server = (*at_once.primaries.values(), *at_once.replicas.values())
    assert sum(command.operations for command in by_server) == sent


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**9)), max_size=60))
def test_every_operation_counts_exactly_once(kinds: list[tuple[int, int]]) -> None:
    outcomes = Outcomes()
    outcomes.number(READONLY)
    outcomes.number(LOST)
    rows = rows_of(*(Row(1, kind, service_ns) for kind, service_ns in kinds))
    metrics = bin_rows(rows, NAMES, outcomes.names)
    assert sum(command.operations for command in metrics.commands.values()) == len(kinds)
    for command in metrics.commands.values():
        assert command.service.count == command.ok
        assert command.failed.count == command.error_count


def test_a_row_counts_in_the_leg_in_which_it_was_due_or_began() -> None:
    line = timeline(Load(stages=(stage(1, 10), stage(1), stage(1, 10))))
    t0_ns, s = 10**15, NS_PER_S

    def row(end_s: float, service_s: float, lag_ns: int = NONE, **others: int) -> Row:
        return Row(t0_ns + round(end_s * s), 0, round(service_s * s), lag_ns, **others)

    rows = rows_of(
        row(2.5, 0.1, 0),  # sent as it was due
        row(2.5, 0.4, s // 5),  # due 0.1 s before its leg
        row(2.5, 0.1, 2 * s),
        row(2.5, 2.4),  # by its begin
        row(2.5, 1.4),
        row(2.5, 0.1, leg=1),  # begun in the closed leg
        row(2.5, 0.2, round(1.8 * s), bytes_out=0),  # never got a client
        row(0.1, 0.2),
        row(9.0, 0.1),
    )
    assert legs_of(rows, t0_ns, line).tolist() == [2, 1, 0, 0, 1, 1, 0, 0, 2]
    assert set(legs_of(rows, t0_ns, timeline(Load())).tolist()) == {0}


def test_an_operation_sent_more_than_a_millisecond_after_its_due_time_is_late() -> None:
    lags = (NONE, 0, 999_999, 1_000_000, 1_000_001, 5 * NS_PER_S)
    never_sent = Row(100, 1, 10, lag_ns=NS_PER_S, bytes_out=0)
    rows = rows_of(*(Row(100, 1, 10, lag) for lag in lags), never_sent)
    metrics = bin_rows(rows, NAMES, Outcomes().names)
    assert (metrics.late_sends, metrics.send_lag.count) == (2, 5)


def test_operations_are_summed_by_the_server_that_they_were_sent_to_and_by_its_role() -> None:
    outcomes, endpoints = Outcomes(), Endpoints()
    readonly = outcomes.number(READONLY)
    first, second = endpoints.number("h", 1), endpoints.number("h", 2)
    endpoints.has_role("h", 2, "replica")
    sums = RowSums(commands=len(NAMES))
    sums.add(
        rows_of(
            Row(5, 0, 100, endpoint=first, bytes_out=7, bytes_in=3),
            Row(5, 1, 200, endpoint=first, bytes_out=7, bytes_in=3, lag_ns=50),
            Row(5, len(NAMES) * readonly, 300, endpoint=first),
            Row(5, 1, 400, endpoint=second),
            Row(5, WAIT_ONLY, wait_ns=5),
            Row(5, 0, 500),
        )
    )
    metrics = sums.metrics(NAMES, outcomes.names, endpoints)
    [(primary, at_first)] = metrics.primaries.items()
    assert (primary, at_first.ok, at_first.errors) == ("h:1", 2, {"READONLY": 1})
    assert (at_first.service.maximum, at_first.response.maximum, at_first.failed.maximum) == (200, 250, 300)
    [(replica, at_second)] = metrics.replicas.items()
    assert (replica, at_second.ok, at_second.service.maximum) == ("h:2", 1, 400)
    # The last operation was sent to no server.
    assert sum(command.operations for command in metrics.commands.values()) == 5


def test_rows_of_one_server_are_not_summed_by_server() -> None:
    metrics = bin_rows(rows_of(Row(5, 0, 100)), NAMES, Outcomes().names)
    assert (metrics.primaries, metrics.replicas) == ({}, {})
