from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.metrics.collector import CollectedGroup, Collector
from agent.worker.metrics.connection_events import EventLog
from agent.worker.metrics.deliveries import DeliveryEvent, DeliveryRecord, pack_delivery
from agent.worker.metrics.outcomes import Outcomes
from agent.worker.metrics.process_usage import LoopRecord, ProcessUsage, pack_turn
from agent.worker.metrics.rows import PACKED, WAIT_ONLY, ThreadRecord
from common.metrics.intervals import IntervalMetrics
from common.plan.schema import Load
from common.plan.timeline import Timeline, timeline
from common.units import NS_PER_S, PerSecond, Seconds
from tests.support.rows import Row
from tests.support.stages import stage

T0 = 10**15
PLAIN = timeline(Load(duration_s=Seconds(3600)))
NAMES = ("GET",)


class Process:
    """A worker process without threads: the test records and collects."""

    def __init__(self, threads: int = 1, line: Timeline = PLAIN) -> None:
        self.records = [ThreadRecord() for _ in range(threads)]
        self.log = EventLog()
        self.deliveries = DeliveryRecord()
        groups = [
            CollectedGroup("one", self.records, [self.log], self.deliveries),
            CollectedGroup("two", [], [EventLog()]),
        ]
        self.now_ns = T0
        self.cpu_ns = 0
        self.turns = LoopRecord()
        watch = ProcessUsage([self.turns], T0, line, lambda: self.now_ns, lambda: self.cpu_ns)
        self.collector = Collector(groups, NAMES, Outcomes(), T0, line, watch)

    def use(self, seconds: float, core: float) -> None:
        """Let time pass in which this share of a core is used."""
        self.collector.look()
        self.now_ns += round(seconds * NS_PER_S)
        self.cpu_ns += round(seconds * core * NS_PER_S)
        self.collector.look()

    def turn(self, at_s: float, busy_ns: int) -> None:
        self.turns.add(pack_turn(T0 + round(at_s * NS_PER_S), busy_ns))

    def complete(self, at_s: float, thread: int = 0, service_ns: int = 1000) -> None:
        record = self.records[thread]
        record.issued += 1
        record.add(Row(T0 + round(at_s * NS_PER_S), 0, service_ns, bytes_out=10, bytes_in=5).packed())

    def deliver(self, at_s: float) -> None:
        self.deliveries.add(pack_delivery(T0 + round(at_s * NS_PER_S), DeliveryEvent.DELIVERED, 5))

    def send(self, due_s: float, begin_s: float, end_s: float, thread: int = 0) -> None:
        """Record an operation of an open loop."""
        due_ns, begin_ns, end_ns = (round(at_s * NS_PER_S) for at_s in (due_s, begin_s, end_s))
        record = self.records[thread]
        record.issued += 1
        record.add(Row(T0 + end_ns, 0, end_ns - begin_ns, begin_ns - due_ns, bytes_out=10, bytes_in=5).packed())

    def open_connection(self, at_s: float) -> None:
        self.log.opened(T0 + round(at_s * NS_PER_S), None, self.log.number())


def counts(intervals: tuple[IntervalMetrics, ...]) -> dict[int, int]:
    assert all(interval.first == interval.last for interval in intervals)
    assert all(earlier.first < later.first for earlier, later in pairwise(intervals))
    return {interval.first: interval.operations for interval in intervals}


def test_connections_that_open_before_a_takeover_count_at_its_begin() -> None:
    log = EventLog()
    log.opened(T0 + NS_PER_S // 2, None, log.number())
    group = CollectedGroup("one", [], [log], begin_ns=T0 + 2 * NS_PER_S)
    group.gather(T0, PLAIN, 1)
    assert group.keys(T0, PLAIN) == {(2, 0)}


def test_each_second_is_reported_once_even_without_operations() -> None:
    process = Process()
    process.complete(0.5)
    process.complete(2.5)
    assert counts(process.collector.collect(0)) == {0: 1}
    assert counts(process.collector.collect(1)) == {1: 0}
    assert counts(process.collector.collect(2)) == {2: 1}
    assert process.collector.collect_rest(2) == (2, ())


def test_a_late_row_counts_in_the_second_in_which_it_completed() -> None:
    process = Process()
    process.collector.collect(0)
    process.complete(0.999)
    process.complete(1.5)
    late, fresh = process.collector.collect(1)
    assert (late.first, late.operations, list(late.pools)) == (0, 1, ["one"])
    assert (fresh.first, fresh.operations, list(fresh.pools)) == (1, 1, ["one", "two"])
    assert late.pools["one"].connections.open_peak == 0


def test_an_operation_that_takes_several_seconds_counts_once_at_its_end() -> None:
    process = Process(threads=2)
    process.records[0].issued += 1
    for second in range(4):
        process.complete(second + 0.5, thread=1)
        assert counts(process.collector.collect(second)) == {second: 1}
    process.records[0].add(Row(T0 + round(4.2 * NS_PER_S), 0, round(4.1 * NS_PER_S)).packed())
    interval, *others = process.collector.collect(4)
    assert (interval.first, interval.operations, interval.issued, others) == (4, 1, 0, [])
    assert process.collector.issued == process.collector.counted == 5


def test_the_last_report_reaches_to_the_last_event() -> None:
    process = Process()
    process.complete(0.5)
    process.complete(7.5)
    through, intervals = process.collector.collect_rest(4)
    assert through == 7
    assert counts(intervals) == {second: int(second in (0, 7)) for second in range(8)}


def test_the_last_report_reaches_to_the_end_of_the_load_without_events() -> None:
    assert Process().collector.collect_rest(1)[0] == 1
    assert Process().collector.collect_rest(-1) == (-1, ())


def test_issued_operations_are_reported_in_the_second_in_which_they_began() -> None:
    process = Process()
    process.complete(0.5)
    process.collector.collect(0)
    process.complete(1.5)
    process.complete(2.0001)  # begun in second 1
    _, intervals = process.collector.collect_rest(1)
    assert {interval.first: interval.issued for interval in intervals} == {1: 2, 2: 0}


def test_unsent_operations_are_reported_once_even_without_rows() -> None:
    process = Process()
    process.complete(0.5)
    process.collector.collect(1)
    process.records[0].unsent += 3
    process.records[0].transactions += 2
    through, (interval,) = process.collector.collect_rest(1)
    assert (through, interval.first, interval.unsent, interval.transactions) == (1, 1, 3, 2)
    assert process.collector.collect_rest(1) == (1, ())
    assert process.collector.transactions == 2


def test_each_second_has_its_own_peak_of_open_connections() -> None:
    process = Process()
    process.open_connection(-0.5)
    process.open_connection(1.5)
    peaks = [interval.pools["one"].connections.open_peak for interval in process.collector.collect(2)]
    assert peaks == [1, 2, 2]


def test_the_start_skew_is_the_lag_of_the_earliest_operation_and_not_of_a_wait() -> None:
    process = Process()
    process.records[0].add(Row(T0 + 5, WAIT_ONLY, bytes_out=0, bytes_in=0, wait_ns=5).packed())
    process.collector.collect(0)
    assert process.collector.start_skew_ns == 0
    process.complete(0.000_002, service_ns=1500)
    process.complete(0.000_002, service_ns=1700)
    process.collector.collect(1)
    assert process.collector.start_skew_ns == 300
    assert process.collector.counted == 2


def test_a_first_operation_that_is_due_late_adds_no_start_skew() -> None:
    process = Process(line=timeline(Load(duration_s=Seconds(3600), rate_per_s=PerSecond(2))))
    process.send(due_s=0.5, begin_s=0.500_004, end_s=0.501)
    process.send(due_s=1.5, begin_s=1.7, end_s=1.8)
    process.collector.collect(1)
    assert process.collector.start_skew_ns == 4000


def test_the_start_skew_of_a_closed_leg_counts_from_its_own_begin() -> None:
    pause = stage(2, 0.001)
    process = Process(line=timeline(Load(stages=(pause, stage(2)))))
    process.records[0].add(Row(T0 + 2 * NS_PER_S + 30, 0, 10, leg=1).packed())
    process.collector.collect(2)
    assert process.collector.start_skew_ns == 20


@given(
    st.lists(st.tuples(st.floats(0, 6), st.integers(0, 2)), max_size=60),
    st.lists(st.integers(0, 5), max_size=4).map(sorted),
)
def test_every_operation_counts_once_whenever_it_is_collected(
    completed: list[tuple[float, int]], collections: list[int]
) -> None:
    process = Process(threads=3)
    seen: dict[int, int] = {}
    parts = max(1, len(collections))
    for number, through in enumerate(collections):
        for at_s, thread in completed[number::parts]:
            process.complete(at_s, thread)
        for second, count in counts(process.collector.collect(through)).items():
            seen[second] = seen.get(second, 0) + count
    if not collections:
        for at_s, thread in completed:
            process.complete(at_s, thread)
    for second, count in counts(process.collector.collect_rest(0)[1]).items():
        seen[second] = seen.get(second, 0) + count
    wanted: dict[int, int] = {}
    for at_s, _ in completed:
        second = round(at_s * NS_PER_S) // NS_PER_S
        wanted[second] = wanted.get(second, 0) + 1
    assert {second: count for second, count in seen.items() if count} == wanted
    assert process.collector.counted == process.collector.issued == len(completed)


def test_a_message_counts_in_the_second_of_its_arrival_even_after_the_end() -> None:
    process = Process()
    process.deliver(0.5)
    first = process.collector.collect(0)
    process.deliver(0.7)
    process.deliver(2.5)
    through, rest = process.collector.collect_rest(1)
    assert through == 2
    delivered = [(one.first, one.pools["one"].deliveries.delivered) for one in (*first, *rest)]
    assert delivered == [(0, 1), (0, 1), (1, 0), (2, 1)]


def test_each_second_has_its_cpu_time_and_the_last_one_includes_what_follows_the_load() -> None:
    process = Process()
    process.use(1, 0.5)
    process.use(1.05, 1)
    first = process.collector.collect(1)
    process.use(0.15, 1)
    _, rest = process.collector.collect_rest(2, T0 + round(2.1 * NS_PER_S))
    generators = [one.generator for one in (*first, *rest)]
    assert [one.busiest_cpu_ns for one in generators] == [500_000_000, 1_000_000_000, 100_000_000]
    assert [one.watched_ns for one in generators] == [NS_PER_S, NS_PER_S, 100_000_000]
    assert [one.cpu_ns for one in generators] == [500_000_000, 1_000_000_000, 200_000_000]
    assert [one.core_share_max for one in generators] == [0.5, 1.0, 0.0]


def test_cpu_time_is_reported_even_without_rows() -> None:
    process = Process()
    process.use(1, 1)
    process.collector.collect(0)
    process.use(0.01, 0.5)
    through, (interval,) = process.collector.collect_rest(0, T0 + NS_PER_S)
    assert (through, interval.first, interval.last, interval.operations) == (0, 0, 0, 0)
    assert (interval.generator.cpu_ns, interval.generator.watched_ns) == (5_000_000, 0)


def test_a_late_loop_turn_counts_in_the_second_in_which_it_ended() -> None:
    process = Process()
    process.turn(0.5, 1_000)
    first = process.collector.collect(0)
    process.turn(0.999, 5_000)
    process.turn(1.5, 3_000)
    late, second = process.collector.collect(1)
    assert [(one.first, one.generator.busiest_loop_ns) for one in (*first, late, second)] == [
        (0, 1_000),
        (0, 5_000),
        (1, 3_000),
    ]
    assert (late.pools, late.generator.watched_ns) == ({}, 0)


def test_many_rows_are_summed_early_and_still_count_in_their_second() -> None:
    process = Process()
    [record] = process.records
    process.complete(0.5)
    for _ in range(3):
        process.collector.look()
    assert len(record._buffer) == PACKED
    for _ in range(5000):
        process.complete(1.5)
    process.collector.look()
    assert len(record._buffer) == 0
    process.complete(1.6)
    process.collector.look()
    assert len(record._buffer) == PACKED
    assert counts(process.collector.collect(0)) == {0: 1}
    assert counts(process.collector.collect(1)) == {1: 5001}


# Stages

STAGED = timeline(Load(stages=(stage(1.5, 10), stage(1), stage(1.5, 10))))


def by_place(intervals: tuple[IntervalMetrics, ...]) -> dict[tuple[int, int], int]:
    places = [(interval.first, interval.stage) for interval in intervals]
    assert places == sorted(set(places))
    return {(interval.first, interval.stage): interval.operations for interval in intervals}


def test_a_second_in_which_a_stage_ends_has_one_interval_per_stage() -> None:
    process = Process(line=STAGED)
    process.complete(1.4)
    process.complete(1.6)
    process.complete(1.7, service_ns=NS_PER_S // 2)
    assert by_place(process.collector.collect(3)) == {(0, 0): 0, (1, 0): 2, (1, 1): 1, (2, 1): 0, (2, 2): 0, (3, 2): 0}


def test_a_late_operation_counts_in_the_stage_of_its_due_time_and_the_second_of_its_end() -> None:
    process = Process(line=STAGED)
    process.send(1.4, 2.7, 2.8)
    process.send(2.6, 2.7, 2.8)
    found = process.collector.collect(2)
    assert by_place(found) == {(0, 0): 0, (1, 0): 0, (1, 1): 0, (2, 0): 1, (2, 1): 0, (2, 2): 1}
    late = next(interval for interval in found if (interval.first, interval.stage) == (2, 0))
    assert late.pools["one"].commands["GET"].response.maximum == round(1.4 * NS_PER_S)
    assert [interval.late for interval in found] == [0, 0, 0, 1, 0, 0]


def test_an_operation_that_waited_for_a_closed_stage_has_no_response_time() -> None:
    process = Process(line=STAGED)
    process.send(1.5, 1.5001, 1.6)
    [interval] = [part for part in process.collector.collect(1) if part.operations]
    assert interval.stage == 1
    pool = interval.pools["one"]
    assert (pool.send_lag.count, pool.commands["GET"].response.count, pool.commands["GET"].ok) == (0, 0, 1)


def test_connection_events_count_once_in_the_stage_in_which_they_happened() -> None:
    process = Process(line=STAGED)
    for at_s in (0.5, 1.4, 1.6):
        process.open_connection(at_s)
    process.send(1.4, 2.1, 2.2)
    found = {(part.first, part.stage): part.pools["one"].connections for part in process.collector.collect(2)}
    assert {place: one.opened for place, one in found.items() if one.opened} == {(0, 0): 1, (1, 0): 1, (1, 1): 1}
    assert found[1, 0].open_peak == 2
    assert found[1, 1].open_peak == found[2, 0].open_peak == found[2, 1].open_peak == 3


def test_unsent_operations_are_reported_once_per_stage() -> None:
    process = Process(line=STAGED)
    process.complete(0.5)
    process.records[0].missed.update({0: 3, 2: 4})
    assert all(interval.unsent == 0 for interval in process.collector.collect(3))  # the seconds are not complete yet
    process.records[0].unsent += 7
    process.records[0].transactions += 1
    through, found = process.collector.collect_rest(3)
    assert through == 3
    assert {interval.stage: (interval.unsent, interval.transactions) for interval in found} == {0: (3, 0), 2: (4, 1)}
    assert process.collector.collect_rest(3) == (3, ())


def test_each_stage_has_the_cpu_time_and_loop_turns_of_its_part_of_a_second() -> None:
    process = Process(line=STAGED)
    process.use(1.5, 0.2)
    process.use(0.6, 0.8)
    process.turn(1.4, 1_000)
    process.turn(1.6, 2_000)
    process.send(1.4, 1.7, 1.8)  # due in the first stage, in a second of both stages
    generators = {(one.first, one.stage): one.generator for one in process.collector.collect(1)}
    assert {place: one.cpu_ns for place, one in generators.items()} == {
        (0, 0): 200_000_000,
        (1, 0): 100_000_000,
        (1, 1): 400_000_000,
    }
    assert [one.busiest_loop_ns for one in generators.values()] == [0, 1_000, 2_000]


@given(
    st.lists(st.tuples(st.floats(0, 4), st.floats(0, 2), st.floats(0.001, 2)), max_size=40),
    st.lists(st.integers(0, 5), max_size=4).map(sorted),
)
def test_stages_add_up_to_the_whole_whenever_they_are_collected(
    operations: list[tuple[float, float, float]], collections: list[int]
) -> None:
    process = Process(line=STAGED)
    intervals: list[IntervalMetrics] = []
    for number, through in enumerate([*collections, None]):
        for due_s, late_s, service_s in operations[number :: len(collections) + 1]:
            process.send(due_s, due_s + late_s, due_s + late_s + service_s)
        found = process.collector.collect(through) if through is not None else process.collector.collect_rest(0)[1]
        intervals += found
    wanted = [0, 0, 0]
    for due_s, _, _ in operations:
        wanted[STAGED.at(round(due_s * NS_PER_S))] += 1
    counted = [sum(part.operations for part in intervals if part.stage == leg) for leg in range(3)]
    assert counted == wanted
    assert sum(part.issued for part in intervals) == process.collector.counted == len(operations)


@given(st.lists(st.tuples(st.floats(0, 4), st.floats(0, 2), st.floats(0.001, 2), st.booleans()), max_size=40))
def test_the_result_does_not_depend_on_when_rows_are_summed(operations: list[tuple[float, float, float, bool]]) -> None:
    often, once = Process(line=STAGED), Process(line=STAGED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agent.worker.metrics.collector._GATHER_AFTER", 1)
        for due_s, late_s, service_s, looks in operations:
            for process in (often, once):
                process.send(due_s, due_s + late_s, due_s + late_s + service_s)
            if looks:
                often.collector.look()
    assert often.collector.collect_rest(0) == once.collector.collect_rest(0)
    assert often.collector.start_skew_ns == once.collector.start_skew_ns
