from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.metrics.histogram import MAX_VALUE, Histogram
from common.metrics.intervals import (
    MAX_ENDPOINTS,
    OTHER,
    CommandMetrics,
    ConnectionMetrics,
    DeliveryMetrics,
    GeneratorDelays,
    GeneratorMetrics,
    IntervalMetrics,
    Merge,
    PoolMetrics,
    SecondMetrics,
    merge_by_stage,
    merge_commands,
    merge_connections,
    merge_counts,
    merge_delays,
    merge_deliveries,
    merge_endpoints,
    merge_generators,
    merge_intervals,
    merge_named,
    merge_pools,
)
from common.metrics.splitting import joined_seconds, size_of, split_interval
from common.protocol.codec import pack, unpack
from common.serde import from_builtins, to_builtins

T = TypeVar("T")

numbers = st.integers(0, 1000)
histograms = st.lists(st.integers(0, MAX_VALUE), max_size=5).map(
    lambda v: Histogram.from_values(np.array(v, dtype=np.int64))
)
classes = st.dictionaries(st.sampled_from(["READONLY", "WRONGTYPE", "TimeoutError"]), st.integers(1, 9))
commands = st.builds(
    CommandMetrics,
    ok=numbers,
    errors=classes,
    failures=classes,
    bytes_out=numbers,
    bytes_in=numbers,
    service=histograms,
    response=histograms,
    failed=histograms,
)
connections = st.builds(
    ConnectionMetrics,
    opened=numbers,
    failed_attempts=numbers,
    failed_by_cause=classes,
    never_opened=classes,
    drops=classes,
    reconnects=numbers,
    reconnect=histograms,
    connect=histograms,
    connect_tcp=histograms,
    connect_tls=histograms,
    connect_handshake=histograms,
    tls_handshakes=numbers,
    maintenance=classes,
    retries=numbers,
    open_peak=numbers,
    wanted=numbers,
)
deliveries = st.builds(
    DeliveryMetrics,
    expected=numbers,
    delivered=numbers,
    foreign=numbers,
    repeated=numbers,
    resubscribed=numbers,
    latency=histograms,
)
pools = st.builds(
    PoolMetrics,
    commands=st.dictionaries(st.sampled_from(["GET", "SET", "DEL"]), commands, max_size=2),
    primaries=st.dictionaries(st.sampled_from(["h:1", "h:2"]), commands, max_size=2),
    replicas=st.dictionaries(st.sampled_from(["h:2", "h:3"]), commands, max_size=1),
    checkout_wait=histograms,
    send_lag=histograms,
    late_sends=numbers,
    connections=connections,
    deliveries=deliveries,
)
delays = st.builds(
    GeneratorDelays,
    allowed_ns=numbers,
    quota_used_ns=numbers,
    quota_periods=numbers,
    throttled_periods=numbers,
    throttled_ns=numbers,
    stalled_ns=numbers,
    stall_max_ns=st.integers(0, 3),
    stall_at_ns=numbers,
)
generators = st.builds(
    GeneratorMetrics,
    cpu_ns=numbers,
    watched_ns=numbers,
    busiest_cpu_ns=numbers,
    busiest_loop_ns=numbers,
    core_share_max=st.floats(0, 2),
    loop_lag=histograms,
    delays=st.none() | delays,
)
intervals = st.builds(
    lambda first, more, **rest: IntervalMetrics(first=first, last=first + more, **rest),
    first=st.integers(0, 100),
    more=st.integers(0, 3),
    issued=numbers,
    transactions=numbers,
    unsent=numbers,
    late=numbers,
    generator=generators,
    pools=st.dictionaries(st.sampled_from(["main", "other"]), pools, max_size=2),
)
hows = st.sampled_from(list(Merge))


def assert_merges_like_sums(merge: Callable[[list[T]], T], a: T, b: T, c: T) -> None:
    assert merge([merge([a, b]), c]) == merge([a, merge([b, c])]) == merge([a, b, c])
    assert merge([a, b]) == merge([b, a])
    assert merge([a]) == a


@given(commands, commands, commands)
def test_commands_merge_in_any_order_and_grouping(a: CommandMetrics, b: CommandMetrics, c: CommandMetrics) -> None:
    assert_merges_like_sums(merge_commands, a, b, c)


@given(connections, connections, connections, hows)
def test_connections_merge_in_any_order_and_grouping(
    a: ConnectionMetrics, b: ConnectionMetrics, c: ConnectionMetrics, how: Merge
) -> None:
    assert_merges_like_sums(lambda parts: merge_connections(parts, how), a, b, c)


@given(deliveries, deliveries, deliveries)
def test_deliveries_merge_in_any_order_and_grouping(a: DeliveryMetrics, b: DeliveryMetrics, c: DeliveryMetrics) -> None:
    assert_merges_like_sums(merge_deliveries, a, b, c)


@given(deliveries)
def test_lost_messages_are_the_expected_ones_that_did_not_arrive(metrics: DeliveryMetrics) -> None:
    assert metrics.lost == max(0, metrics.expected - metrics.delivered)


@given(generators, generators, generators, hows)
def test_generators_merge_in_any_order_and_grouping(
    a: GeneratorMetrics, b: GeneratorMetrics, c: GeneratorMetrics, how: Merge
) -> None:
    assert_merges_like_sums(lambda parts: merge_generators(parts, how), a, b, c)


@given(pools, pools, pools, hows)
def test_pools_merge_in_any_order_and_grouping(a: PoolMetrics, b: PoolMetrics, c: PoolMetrics, how: Merge) -> None:
    assert_merges_like_sums(lambda parts: merge_pools(parts, how), a, b, c)


@given(intervals, intervals, intervals, hows)
def test_intervals_merge_in_any_order_and_grouping(
    a: IntervalMetrics, b: IntervalMetrics, c: IntervalMetrics, how: Merge
) -> None:
    assert_merges_like_sums(lambda parts: merge_intervals(parts, how), a, b, c)


@given(st.lists(intervals, min_size=1, max_size=4), hows)
def test_a_merge_loses_no_operation_and_invents_none(parts: list[IntervalMetrics], how: Merge) -> None:
    merged = merge_intervals(parts, how)
    assert merged.operations == sum(part.operations for part in parts)
    assert merged.issued == sum(part.issued for part in parts)
    assert merged.transactions == sum(part.transactions for part in parts)
    assert merged.unsent == sum(part.unsent for part in parts)
    assert merged.late == sum(part.late for part in parts)
    assert (merged.first, merged.last) == (min(p.first for p in parts), max(p.last for p in parts))


def test_open_connections_add_up_across_peers_and_not_over_time() -> None:
    parts = [ConnectionMetrics(opened=1, open_peak=3, wanted=9), ConnectionMetrics(opened=1, open_peak=5, wanted=7)]
    assert merge_connections(parts, Merge.PARALLEL) == ConnectionMetrics(opened=2, open_peak=8, wanted=16)
    assert merge_connections(parts, Merge.CONSECUTIVE) == ConnectionMetrics(opened=2, open_peak=5, wanted=9)


def test_connections_that_never_opened_add_up_by_cause() -> None:
    one = ConnectionMetrics(failed_attempts=3, failed_by_cause={"maxclients": 3}, never_opened={"maxclients": 1})
    other = ConnectionMetrics(failed_attempts=2, failed_by_cause={"timeout": 2}, never_opened={"maxclients": 4})
    for how in Merge:
        merged = merge_connections([one, other], how)
        assert merged.failed_by_cause == {"maxclients": 3, "timeout": 2}
        assert merged.never_opened == {"maxclients": 5}


def test_the_busiest_process_counts_across_peers_and_its_seconds_add_up_over_time() -> None:
    busy = GeneratorMetrics(cpu_ns=90, watched_ns=100, busiest_cpu_ns=90, busiest_loop_ns=70, core_share_max=0.9)
    idle = GeneratorMetrics(cpu_ns=10, watched_ns=100, busiest_cpu_ns=10, busiest_loop_ns=80, core_share_max=0.1)
    assert merge_generators([busy, idle], Merge.PARALLEL) == GeneratorMetrics(
        cpu_ns=100, watched_ns=100, busiest_cpu_ns=90, busiest_loop_ns=80, core_share_max=0.9
    )
    assert merge_generators([busy, idle], Merge.CONSECUTIVE) == GeneratorMetrics(
        cpu_ns=100, watched_ns=200, busiest_cpu_ns=100, busiest_loop_ns=150, core_share_max=0.9
    )


def test_the_throttling_of_a_shared_quota_counts_once_across_peers_and_adds_up_over_time() -> None:
    first = GeneratorDelays(allowed_ns=50, quota_used_ns=50, quota_periods=10, throttled_periods=9, throttled_ns=70)
    second = GeneratorDelays(
        allowed_ns=50, quota_periods=9, throttled_periods=9, stalled_ns=300, stall_max_ns=200, stall_at_ns=7
    )
    assert merge_delays([first, None, second], Merge.PARALLEL) == GeneratorDelays(
        allowed_ns=50,
        quota_used_ns=50,
        quota_periods=10,
        throttled_periods=9,
        throttled_ns=70,
        stalled_ns=300,
        stall_max_ns=200,
        stall_at_ns=7,
    )
    assert merge_delays([first, None, second], Merge.CONSECUTIVE) == GeneratorDelays(
        allowed_ns=100,
        quota_used_ns=50,
        quota_periods=19,
        throttled_periods=18,
        throttled_ns=70,
        stalled_ns=300,
        stall_max_ns=200,
        stall_at_ns=7,
    )


def test_a_frame_without_delays_differs_from_a_frame_with_zero_delays() -> None:
    assert merge_delays([None, None], Merge.PARALLEL) is merge_delays([], Merge.PARALLEL) is None
    assert merge_delays([None, GeneratorDelays()], Merge.PARALLEL) == GeneratorDelays()


def test_error_replies_and_failures_are_operations_that_were_not_done() -> None:
    command = CommandMetrics(ok=5, errors={"READONLY": 2}, failures={"TimeoutError": 1, "ConnectionError": 3})
    assert command.error_count == 6
    assert command.operations == 11


def test_names_keep_the_order_in_which_they_first_came() -> None:
    assert list(merge_counts([{"b": 1}, {"a": 1, "b": 2}])) == ["b", "a"]
    assert merge_named([{"b": 1}, {"a": 1, "b": 2}], sum) == {"b": 3, "a": 1}


def test_intervals_of_different_stages_are_never_merged() -> None:
    parts = [IntervalMetrics(first=0, last=0, stage=stage, unsent=stage) for stage in (2, 0, 2)]
    with pytest.raises(ValueError, match=r"expected intervals of one stage, got stages \[0, 2\]"):
        merge_intervals(parts, Merge.PARALLEL)
    assert [(part.stage, part.unsent) for part in merge_by_stage(parts, Merge.PARALLEL)] == [(0, 0), (2, 4)]


def test_a_merge_of_no_intervals_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one interval"):
        merge_intervals([], Merge.PARALLEL)


@given(intervals)
def test_an_interval_survives_the_wire(interval: IntervalMetrics) -> None:
    assert unpack(pack(interval), IntervalMetrics) == interval


def test_frames_of_older_and_newer_peers_are_understood() -> None:
    plain = to_builtins(IntervalMetrics(first=3, last=3, issued=5, pools={"main": PoolMetrics(late_sends=2)}))
    del plain["pools"]["main"]["late_sends"]
    older = IntervalMetrics(first=3, last=3, issued=5, pools={"main": PoolMetrics()})
    assert from_builtins(plain, IntervalMetrics) == older
    assert from_builtins(plain | {"mood": "good"}, IntervalMetrics) == older


def in_full(value: object) -> object:
    """Every field, as releases before this one wrote them, in frames and in journals."""
    if isinstance(value, msgspec.Struct):
        names = zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True)
        return {key: in_full(getattr(value, name)) for key, name in names}
    return {name: in_full(each) for name, each in value.items()} if isinstance(value, dict) else value


@given(intervals)
def test_empty_fields_are_left_out_of_a_frame_and_every_field_survives_the_wire(
    interval: IntervalMetrics,
) -> None:
    full = msgpack.packb(in_full(interval), use_bin_type=True)
    assert unpack(full, IntervalMetrics) == interval
    assert len(pack(interval)) < len(full)
    assert to_builtins(IntervalMetrics(first=3, last=3)) == {"first": 3, "last": 3}
    assert to_builtins(Histogram(value_sum=1)) == {"total": 1}


@pytest.mark.parametrize("share", [-0.1, float("nan"), float("inf")])
def test_an_impossible_core_share_is_refused(share: float) -> None:
    with pytest.raises(ProtocolError, match="core_share_max"):
        unpack(pack(GeneratorMetrics(core_share_max=share)), GeneratorMetrics)


@pytest.mark.parametrize("how", list(Merge))
def test_redirections_and_changes_of_the_topology_add_up(how: Merge) -> None:
    parts = [
        ConnectionMetrics(redirects={"MOVED": 1, "ASK": 2}, topology_refreshes=3),
        ConnectionMetrics(redirects={"MOVED": 4}, topology_refreshes=5),
    ]
    merged = merge_connections(parts, how)
    assert (merged.redirects, merged.topology_refreshes) == ({"MOVED": 5, "ASK": 2}, 8)


@given(intervals, st.sampled_from([1, 1_500, 3_000, 100_000]))
def test_the_parts_of_a_split_interval_are_small_and_merge_to_the_whole(interval: IntervalMetrics, most: int) -> None:
    parts = list(split_interval(interval, most))
    assert merge_intervals(parts, Merge.CONSECUTIVE) == interval
    for part in parts:
        pools = part.pools.values()
        assert (
            size_of(part) <= most
            or sum(map(len, [by for p in pools for by in (p.commands, p.primaries, p.replicas)])) <= 1
        )


@given(st.lists(intervals, min_size=2, max_size=5))
def test_joined_seconds_lose_only_the_commands_of_each_second(parts: list[IntervalMetrics]) -> None:
    apart = [
        msgspec.structs.replace(part, first=number, last=number, stage=0, seconds=())
        for number, part in enumerate(parts)
    ]
    [joined] = joined_seconds(apart)
    assert msgspec.structs.replace(joined, seconds=()) == merge_intervals(apart, Merge.CONSECUTIVE)
    assert [second.number for second in joined.seconds] == list(range(len(parts)))
    for second, part in zip(joined.seconds, apart, strict=True):
        commands = [command for pool in part.pools.values() for command in pool.commands.values()]
        assert second.ok + second.error_count == part.operations
        assert second.issued == part.issued
        assert second.service == Histogram.merge(command.service for command in commands)
        assert second.response == Histogram.merge(command.response for command in commands)
        assert sum(second.hits.values()) == sum(command.hits for command in commands)
        assert sum(second.misses.values()) == sum(command.misses for command in commands)
    assert unpack(pack(joined), IntervalMetrics) == joined


def test_servers_beyond_the_limit_are_summed_and_nothing_is_lost() -> None:
    parts = [{f"h:{port}": CommandMetrics(ok=port)} for port in range(MAX_ENDPOINTS + 5)]
    merged = merge_endpoints([*parts, {OTHER: CommandMetrics(ok=9)}])
    assert len(merged) == MAX_ENDPOINTS
    assert merged["h:7"].ok == 7
    assert sum(command.ok for command in merged.values()) == sum(range(MAX_ENDPOINTS + 5)) + 9
    assert merge_endpoints([merged, parts[0]]).keys() == merged.keys()


def test_a_split_interval_loses_its_values_per_second() -> None:
    seconds = (SecondMetrics(number=0, ok=1), SecondMetrics(number=1, ok=1))
    pools = {"main": PoolMetrics(commands={name: CommandMetrics(ok=1) for name in ("GET", "SET")})}
    parts = list(split_interval(IntervalMetrics(first=0, last=1, pools=pools, seconds=seconds), 1))
    assert len(parts) > 1
    assert not any(part.seconds for part in parts)
