from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.metrics.process_usage import LoopRecord, ProcessUsage, pack_turn
from common.cgroup import QuotaReading
from common.metrics.intervals import GeneratorDelays, GeneratorMetrics
from common.plan.schema import Load
from common.plan.timeline import Timeline, timeline
from common.units import NS_PER_S, Seconds
from tests.support.stages import stage

T0 = 10**15
MS = 1_000_000
PLAIN = timeline(Load(duration_s=Seconds(3600)))
STAGED = timeline(Load(stages=(stage(1.5, 10), stage(1), stage(1.5, 10))))


class Watched:
    """A process whose cpu time and loop turns the test sets."""

    def __init__(self, loops: int = 1, line: Timeline = PLAIN) -> None:
        self.loops = [LoopRecord() for _ in range(loops)]
        self.now_ns = self.cpu_ns = 0
        self.line = line
        self.quota = QuotaReading()
        self.watch = ProcessUsage(
            [*self.loops, *self.loops], T0, line, lambda: self.now_ns, lambda: self.cpu_ns, lambda: self.quota
        )

    def used(self, at_ns: int, cpu_ns: int) -> None:
        self.now_ns, self.cpu_ns = T0 + at_ns, cpu_ns
        self.watch.look()

    def counted(self, at_ns: int, quota: QuotaReading) -> None:
        self.now_ns, self.quota = T0 + at_ns, quota
        self.watch.look(closely=True)

    def woke(self, at_ns: int, waited_ns: int = 50 * MS, used_ns: int = 0) -> None:
        self.now_ns, self.cpu_ns = T0 + at_ns, self.cpu_ns + used_ns
        self.watch.woke(waited_ns)

    def reported(self, at_ns: int) -> None:
        self.now_ns = T0 + at_ns
        self.watch.reported()

    def turn(self, ended_ns: int, busy_ns: int, loop: int = 0) -> None:
        self.loops[loop].add(pack_turn(T0 + ended_ns, busy_ns))

    def through(self, last: int) -> list[GeneratorMetrics]:
        self.watch.gather()
        places = [(second, leg) for second in range(last + 1) for leg in self.line.in_second(second)]
        return [self.watch.release(place, late=False) for place in places]


def test_cpu_time_at_the_edge_of_a_second_is_interpolated_between_two_readings() -> None:
    process = Watched()
    process.used(-100 * MS, 7_000)
    process.used(100 * MS, 9_000)
    process.used(980 * MS, 500_000)
    process.used(1020 * MS, 540_000)
    process.used(2000 * MS, 600_000)
    assert [one.cpu_ns for one in process.through(1)] == [520_000 - 8_000, 80_000]


def test_a_process_without_cpu_time_or_without_readings_has_zeros() -> None:
    nothing = GeneratorMetrics(watched_ns=NS_PER_S, delays=GeneratorDelays())
    assert Watched().through(1) == [nothing, nothing]
    process = Watched()
    process.used(3 * NS_PER_S, 5)
    assert process.through(1) == [nothing, nothing]


@given(
    st.lists(st.tuples(st.integers(1, 400 * MS), st.integers(0, 400 * MS)), min_size=1, max_size=40),
    st.sampled_from([PLAIN, STAGED]),
    st.integers(1, 4),
)
def test_all_cpu_time_is_reported_once_however_often_it_is_read(
    readings: list[tuple[int, int]], line: Timeline, steps: int
) -> None:
    process = Watched(line=line)
    process.used(0, 0)
    reported_ns = at_ns = used_ns = 0
    place = (0, 0)
    for number, (later_ns, more_ns) in enumerate(readings):
        at_ns, used_ns = at_ns + later_ns, used_ns + more_ns
        process.used(at_ns, used_ns)
        while number % steps == 0 and (place[0] + 1) * NS_PER_S <= at_ns:
            for leg in line.in_second(place[0]):
                reported_ns += process.watch.release((place[0], leg), late=False).cpu_ns
            place = (place[0] + 1, 0)
    assert reported_ns + process.watch.rest() == used_ns


def test_cpu_time_after_the_load_counts_and_adds_no_core_share() -> None:
    process = Watched()
    process.used(0, 0)
    process.used(800 * MS, 400 * MS)
    process.used(900 * MS, 500 * MS)
    found = process.watch.release((0, 0), late=False, end_ns=800 * MS)
    assert (found.cpu_ns, found.watched_ns, found.core_share_max) == (400 * MS, 800 * MS, 0.5)
    assert process.watch.rest() == 100 * MS


def test_a_very_short_interval_has_no_largest_core_share() -> None:
    process = Watched()
    process.used(0, 0)
    process.used(10 * MS, 10 * MS)
    found = process.watch.release((0, 0), late=False, end_ns=10 * MS)
    assert (found.busiest_cpu_ns, found.watched_ns, found.core_share_max) == (10 * MS, 10 * MS, 0.0)


def test_the_busiest_loop_is_reported_and_the_turns_of_all_loops_are_lag() -> None:
    process = Watched(loops=2)
    for at_ns, busy_ns, loop in ((10, 3, 0), (20, 4, 0), (30, 5, 1), (NS_PER_S, 9, 1), (NS_PER_S + 1, 2, 0)):
        process.turn(at_ns, busy_ns, loop)
    first, second = process.through(1)
    assert (first.busiest_loop_ns, first.loop_lag.count, first.loop_lag.value_sum) == (7, 3, 12)
    assert (second.busiest_loop_ns, second.loop_lag.maximum) == (9, 9)


@pytest.mark.parametrize(("ended_ns", "busy_ns", "counted"), [(-5, 3, []), (0, 3, []), (5, 3, [3]), (5, 8, [5])])
def test_a_loop_turn_counts_from_the_start_instant(ended_ns: int, busy_ns: int, counted: list[int]) -> None:
    process = Watched()
    process.turn(ended_ns, busy_ns)
    [found] = process.through(0)
    assert (found.loop_lag.count, found.loop_lag.value_sum) == (len(counted), sum(counted))


def test_loop_turns_count_in_the_stage_in_which_they_ended() -> None:
    process = Watched(line=STAGED)
    process.turn(1499 * MS, 1)
    process.turn(1501 * MS, 2)
    process.turn(9000 * MS, 4)
    assert [one.busiest_loop_ns for one in process.through(9)][:4] == [0, 1, 2, 0]
    assert process.watch.keys() == set()


def test_a_late_report_has_loop_turns_and_no_watched_time() -> None:
    process = Watched()
    process.through(0)
    process.turn(5, 3)
    process.watch.gather()
    assert process.watch.keys() == {(0, 0)}
    found = process.watch.release((0, 0), late=True)
    assert found == GeneratorMetrics(busiest_loop_ns=3, loop_lag=found.loop_lag)
    assert found.loop_lag.count == 1


# Delays


def held_up(process: Watched, last: int) -> list[GeneratorDelays]:
    return [one.delays for one in process.through(last) if one.delays is not None]


def test_cpu_throttling_counts_from_the_start_instant_in_the_second_in_which_it_happened() -> None:
    process = Watched()
    process.quota = QuotaReading(cores=0.1, periods=7, throttled_periods=5, throttled_ns=70, used_ns=900)
    process.used(-50 * MS, 0)
    process.used(0, 0)
    process.quota = QuotaReading(cores=0.1, periods=99)  # not read: the quota is read once a second
    process.used(50 * MS, 0)
    process.counted(NS_PER_S, QuotaReading(0.1, 17, 14, 970, 1900))
    process.counted(2 * NS_PER_S, QuotaReading(0.1, 19, 14, 970, 2000))
    assert held_up(process, 1) == [
        GeneratorDelays(
            allowed_ns=NS_PER_S // 10,
            quota_used_ns=1000,
            quota_periods=10,
            throttled_periods=9,
            throttled_ns=900,
        ),
        GeneratorDelays(allowed_ns=NS_PER_S // 10, quota_used_ns=100, quota_periods=2),
    ]


def test_throttling_stays_counted_when_the_quota_is_removed() -> None:
    process = Watched()
    process.used(0, 0)
    process.counted(NS_PER_S, QuotaReading(0.5, 10, 4, 40, 900))
    process.counted(2 * NS_PER_S, QuotaReading(None, 10, 4, 40, 0))
    first, second = held_up(process, 1)
    assert (first.throttled_periods, first.quota_used_ns) == (4, 900)
    assert second == GeneratorDelays()


@pytest.mark.parametrize(
    ("late_ns", "used_ns", "is_stall"),
    [(3 * NS_PER_S, 0, True), (250 * MS, 62 * MS, True), (250 * MS, 63 * MS, False), (249 * MS, 0, False)],
)
def test_a_process_that_wakes_late_without_cpu_time_has_stalled(late_ns: int, used_ns: int, is_stall: bool) -> None:
    process = Watched()
    process.reported(1000 * MS)
    process.woke(1050 * MS + late_ns, used_ns=used_ns)
    found = held_up(process, 4)
    assert sum(one.stalled_ns for one in found) == (late_ns if is_stall else 0)
    assert max(one.stall_max_ns for one in found) == (late_ns if is_stall else 0)


def test_each_second_of_a_stall_has_the_length_and_the_begin_of_the_stall() -> None:
    process = Watched()
    process.reported(1200 * MS)
    process.woke(3500 * MS, 0)
    process.woke(3800 * MS, 0)
    assert held_up(process, 3) == [
        GeneratorDelays(),
        GeneratorDelays(stalled_ns=800 * MS, stall_max_ns=2300 * MS, stall_at_ns=1200 * MS),
        GeneratorDelays(stalled_ns=1000 * MS, stall_max_ns=2300 * MS, stall_at_ns=1200 * MS),
        GeneratorDelays(stalled_ns=800 * MS, stall_max_ns=2300 * MS, stall_at_ns=1200 * MS),
    ]


def test_a_stall_counts_from_the_start_instant_to_the_end_of_the_load() -> None:
    process = Watched()
    process.reported(-400 * MS)
    process.woke(600 * MS, 0)
    process.woke(800 * MS, 200 * MS)
    process.woke(2000 * MS, 0)
    found = process.watch.release((0, 0), late=False, end_ns=900 * MS).delays
    assert found == GeneratorDelays(stalled_ns=700 * MS, stall_max_ns=1200 * MS, stall_at_ns=800 * MS)


def test_a_wait_for_an_agent_that_does_not_read_is_not_a_stall() -> None:
    process = Watched()
    process.reported(500 * MS)
    process.reported(9000 * MS)
    process.woke(9 * NS_PER_S + 50 * MS)
    assert {one.stalled_ns for one in held_up(process, 8)} == {0}


LOOP_TURNS = st.lists(st.tuples(st.integers(0, 2**62), st.integers(0, 2**62)), max_size=20)


@given(LOOP_TURNS, LOOP_TURNS)
def test_each_loop_turn_is_taken_once_and_unchanged(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    record = LoopRecord()
    for left in (first, second, []):
        for ended_ns, busy_ns in left:
            record.add(pack_turn(ended_ns, busy_ns))
        assert [tuple(turn) for turn in record.take().tolist()] == left
