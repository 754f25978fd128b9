from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.clock import ClockSample, ClockSync, Suspension, boottime_ns, clock_sample, monotonic_ns
from common.units import NS_PER_S

times_ns = st.integers(0, 2**62)
offsets_ns = st.integers(-(2**62), 2**62)
delays_ns = st.integers(0, 10**10)


@given(times_ns, offsets_ns, delays_ns, delays_ns, delays_ns)
def test_an_offset_is_known_to_half_a_round_trip(sent: int, offset: int, there: int, held: int, back: int) -> None:
    received = sent + there + offset
    sample = clock_sample(sent, received, received + held, sent + there + held + back)
    assert sample.rtt_ns == there + back
    assert abs(sample.offset_ns - offset) <= (there + back + 1) // 2


def test_equal_delays_both_ways_give_the_exact_offset() -> None:
    assert clock_sample(100, 1_050, 1_060, 210) == ClockSample(offset_ns=900, rtt_ns=100)


def test_nothing_is_known_before_the_first_exchange() -> None:
    sync = ClockSync()
    assert sync.best is None
    assert sync.count == 0
    assert sync.to_local_ns(77) is None


def test_the_fastest_exchange_is_used() -> None:
    sync = ClockSync()
    for offset_ns, rtt_ns in ((5, 100), (7, 10), (9, 50)):
        sync.add(ClockSample(offset_ns, rtt_ns))
    assert sync.best == ClockSample(7, 10)
    assert sync.to_local_ns(1_007) == 1_000


def test_an_exchange_with_a_negative_round_trip_is_ignored() -> None:
    sync = ClockSync()
    sync.add(clock_sample(sent_ns=50, received_ns=9, replied_ns=9, returned_ns=40))
    assert sync.best is None


def test_old_exchanges_are_forgotten_because_clocks_drift() -> None:
    sync = ClockSync(window=2)
    for rtt_ns in (1, 20, 10):
        sync.add(ClockSample(rtt_ns, rtt_ns))
    assert sync.best == ClockSample(10, 10)
    assert sync.count == 2


@given(times_ns, offsets_ns)
def test_a_remote_instant_is_converted_however_far_apart_the_clocks_are(instant: int, offset: int) -> None:
    sync = ClockSync()
    sync.add(ClockSample(offset, 0))
    assert sync.to_local_ns(instant + offset) == instant


def test_the_clock_that_counts_suspension_is_never_behind_the_other() -> None:
    assert boottime_ns() >= monotonic_ns() - NS_PER_S


def test_a_suspension_is_reported_once_and_is_the_difference_of_the_clocks() -> None:
    now = {"boottime": 100, "monotonic": 40}
    suspension = Suspension(lambda: now["boottime"], lambda: now["monotonic"])
    assert (suspension.ahead_ns(), suspension.take_ns()) == (60, 0)
    now["boottime"] += 61 * NS_PER_S
    now["monotonic"] += NS_PER_S
    assert suspension.take_ns() == 60 * NS_PER_S
    assert suspension.take_ns() == 0
    assert suspension.ahead_ns() == 60 + 60 * NS_PER_S


def test_a_pause_between_two_readings_is_no_suspension() -> None:
    now = {"boottime": 0, "monotonic": 0}
    suspension = Suspension(lambda: now["boottime"], lambda: now["monotonic"])
    for paused_ns in (5 * NS_PER_S, 0, NS_PER_S, 0):
        now["monotonic"] = paused_ns
        assert suspension.take_ns() == 0
