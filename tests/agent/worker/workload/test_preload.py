from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.metrics.wire_sizes import request_bytes
from agent.worker.workload import preload as module
from agent.worker.workload.preload import BATCH, BATCH_BYTES, PreloadTask, preload, preload_operations, preload_tasks
from agent.worker.workload.reply_effects import Operation
from agent.worker.workload.values import is_intact
from common.clock import monotonic_ns
from common.errors import TargetError
from common.plan.schema import Keys, Plan, Pools, Preload, Retry, Target, Values, Workload
from common.protocol.messages import Assignment, PoolShare, Preloaded
from common.serde import from_builtins
from common.units import NS_PER_S, Bytes, Count, Seconds
from tests.support.groups import ClusterGroup, SentinelGroup
from tests.support.plans import plan_for
from tests.support.servers import Server, SocketServer


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> None:
    # Shared servers keep connections between their nodes.
    if not {"shared_cluster", "shared_sentinel"} & set(request.fixturenames):
        request.getfixturevalue("no_leaks")


def plan_of(url: str, *entries: Preload, maximum: int = 1_000, **workload: Any) -> Plan:
    target = Target(url=url, retry=Retry(retries=0), connect_timeout_s=Seconds(1.0), socket_timeout_s=Seconds(5.0))
    return plan_for(target, keys=Keys(maximum=Count(maximum)), preload=entries or (Preload(),), **workload)


def shares(plan: Plan, processes: int, threads_each: int) -> list[Assignment]:
    """One pool per process, with this many threads."""
    plan = Plan(
        target=plan.target, pools=(Pools(client_pools=processes, threads_per_pool=threads_each),),
        workload=plan.workload,
    )  # fmt: skip
    return [
        Assignment(
            plan=plan,
            pools=(PoolShare(group=0, number=number, first_thread=number * threads_each),),
            threads_total=processes * threads_each,
        )
        for number in range(processes)
    ]


def fill(plan: Plan, processes: int = 2, threads_each: int = 3) -> Preloaded:
    reported = [
        preload(preload_tasks(share), plan.target, lambda *_: None) for share in shares(plan, processes, threads_each)
    ]
    merged = Preloaded.merge(reported)
    assert merged is not None
    return merged


def operations(plan: Plan, processes: int = 2, threads_each: int = 3) -> list[Operation]:
    return [
        operation
        for share in shares(plan, processes, threads_each)
        for tasks in preload_tasks(share)
        for task in tasks
        for operation in task.operations
    ]


def test_a_takeover_preloads_nothing() -> None:
    [share] = shares(plan_of("redis://localhost"), 1, 2)
    assert preload_tasks(share)
    assert preload_tasks(msgspec.structs.replace(share, preloads=False)) == []


def test_a_task_has_the_number_of_operations_that_it_reports() -> None:
    plan = plan_of("redis://127.0.0.1:1", Preload(), Preload(times=3, key_maximum=Count(10)), maximum=101)
    tasks = [task for share in shares(plan, 3, 5) for each in preload_tasks(share) for task in each]
    assert [task.keys * task.times for task in tasks] == [len(list(task.operations)) for task in tasks]


def test_the_same_plan_writes_the_same_values() -> None:
    plan = plan_of("redis://127.0.0.1:1", values=Values(minimum_bytes=Bytes(1), maximum_bytes=Bytes(100)))
    assert operations(plan) == operations(plan)


def test_every_key_exists_afterwards_and_the_counts_are_reported(valkey: Server) -> None:
    plan = plan_of(valkey.url, Preload(), Preload(command="LPUSH __key__ __data__", key_prefix="list:", times=3,
                                                  key_maximum=Count(100)))  # fmt: skip
    done = fill(plan)
    assert (done.keys, done.commands) == (1_100, 1_300)
    assert done.took_ns > 0
    client = valkey.client()
    assert client.dbsize() == 1_100
    assert {client.llen(f"list:{number}") for number in range(1, 101)} == {3}
    stats: Any = client.info("commandstats")
    assert (stats["cmdstat_set"]["calls"], stats["cmdstat_lpush"]["calls"]) == (1_000, 300)


def test_the_reported_bytes_are_the_bytes_that_were_sent(valkey: Server) -> None:
    before: Any = valkey.client().info("stats")
    done = fill(plan_of(valkey.url, maximum=20_000), 1, 2)
    after: Any = valkey.client().info("stats")
    read = after["total_net_input_bytes"] - before["total_net_input_bytes"]
    # The server also read two handshakes, a PING and our INFO.
    assert done.bytes_out <= read <= done.bytes_out + 2_000


def test_progress_runs_from_no_command_to_all(valkey: Server) -> None:
    reported: list[tuple[int, int]] = []
    [share] = shares(plan_of(valkey.url), 1, 3)
    preload(preload_tasks(share), share.plan.target, lambda done, total: reported.append((done, total)))
    assert reported[0] == (0, 1_000)
    assert reported[-1] == (1_000, 1_000)
    assert reported == sorted(reported)


def test_a_single_key_with_many_commands_reports_progress(valkey: Server) -> None:
    reported: list[int] = []
    [share] = shares(plan_of(valkey.url, Preload(command="RPUSH", times=60_000), maximum=1), 1, 1)
    done = preload(preload_tasks(share), share.plan.target, lambda done, _: reported.append(done))
    assert done is not None
    assert (done.keys, done.commands, reported[-1]) == (1, 60_000, 60_000)
    assert len(set(reported)) > 2


def test_a_plan_without_preload_does_not_connect() -> None:
    [share] = shares(plan_for(Target(url="redis://127.0.0.1:1")), 1, 3)
    assert preload(preload_tasks(share), share.plan.target, lambda *_: None) is None


def test_an_error_reply_names_command_key_and_reply(valkey: Server) -> None:
    valkey.client().lpush("stampede:17", "x")
    plan = plan_of(valkey.url, Preload(command="INCR __key__"))
    with pytest.raises(TargetError) as caught:
        fill(plan)
    assert str(caught.value) == (
        f"target 127.0.0.1:{valkey.port} refused the preload: INCR stampede:17 was answered with "
        "WRONGTYPE Operation against a key holding the wrong kind of value"
    )


def test_a_target_that_refuses_connections_is_a_target_error(refusing_url: str) -> None:
    with pytest.raises(TargetError, match="refused the connection"):
        fill(plan_of(refusing_url))


def test_an_exception_from_on_progress_ends_the_preload_although_the_target_hangs(valkey: Server) -> None:
    class Enough(Exception):
        pass

    paused_ns = 0

    def on_progress(done: int, _total: int) -> None:
        nonlocal paused_ns
        if done:
            valkey.pause()
            paused_ns = monotonic_ns()
            raise Enough

    [share] = shares(plan_of(valkey.url, maximum=10_000_000), 1, 2)
    try:
        with pytest.raises(Enough):
            preload(preload_tasks(share), share.plan.target, on_progress)
        # Well below the socket timeout of five seconds.
        assert monotonic_ns() - paused_ns < 3 * NS_PER_S
    finally:
        valkey.resume()


def test_a_server_that_does_not_answer_is_a_target_error(silent_server: SocketServer) -> None:
    plan = plan_of(silent_server.url)
    target = Target(url=plan.target.url, socket_timeout_s=Seconds(0.3), retry=Retry(retries=0))
    with pytest.raises(TargetError, match="did not answer"):
        fill(Plan(target=target, workload=plan.workload))


def test_a_preload_batch_is_limited_in_commands_and_bytes() -> None:
    small = [(0, ("SET", b"k", b"v"), 10, None)] * (2 * BATCH + 1)
    assert [len(batch) for batch, _ in module._batches(iter(small))] == [BATCH, BATCH, 1]
    large = [(0, ("SET", b"k", b"v"), BATCH_BYTES // 2, None)] * 3
    assert [(len(batch), size) for batch, size in module._batches(iter(large))] == [
        (2, BATCH_BYTES), (1, BATCH_BYTES // 2),
    ]  # fmt: skip


def test_few_connections_write_tasks_of_unequal_sizes(valkey: Server) -> None:
    def task(first: int, end: int) -> PreloadTask:
        return PreloadTask(
            ((0, ("SET", b"k%d" % number, b""), 1, None) for number in range(first, end)), end - first, 1, 1
        )

    tasks = [[task(number * 10, number * 10 + 10)] for number in range(50)] + [[task(500, 5_000)]]
    done = preload(tasks, Target(url=valkey.url), lambda *_: None)
    assert done is not None
    assert (done.keys, valkey.client().dbsize()) == (5_000, 5_000)


def test_entries_run_in_order_within_a_worker(valkey: Server) -> None:
    fill(plan_of(valkey.url, Preload(), Preload(command="EXPIRE __key__ 1000")))
    assert 0 < int(valkey.client().ttl("stampede:1000")) <= 1_000  # type: ignore[arg-type]


@pytest.mark.parametrize("per_hash_tag", [None, 10])
def test_a_cluster_is_filled_through_all_its_primaries(shared_cluster: ClusterGroup, per_hash_tag: int | None) -> None:
    keys = Keys(maximum=Count(3_001), per_hash_tag=per_hash_tag)
    plan = plan_for(Target(url=shared_cluster.url), keys=keys, preload=(Preload(),))
    done = fill(plan)
    assert (done.keys, done.commands) == (3_001, 3_001)
    counts = [shared_cluster.at(port).dbsize() for port in shared_cluster.primaries]
    assert (sum(counts), min(counts) > 500) == (3_001, True)


def test_a_cluster_is_filled_while_its_slots_move(shared_cluster: ClusterGroup) -> None:
    plan = plan_for(Target(url=shared_cluster.url), keys=Keys(maximum=Count(20_000)), preload=(Preload(),))
    moved: list[int] = []

    def on_progress(done: int, _total: int) -> None:
        if done and len(moved) < 3:
            slot = 100 + len(moved)
            others = [port for port in shared_cluster.primaries if port != shared_cluster.owner(slot)]
            shared_cluster.move_slot(slot, others[0])
            moved.append(slot)

    [share] = shares(plan, 1, 3)
    preload(preload_tasks(share), plan.target, on_progress)
    assert moved
    assert sum(shared_cluster.at(port).dbsize() for port in shared_cluster.primaries) == 20_000


def test_a_primary_behind_sentinels_is_filled(shared_sentinel: SentinelGroup) -> None:
    fill(plan_for(Target(url=shared_sentinel.url), keys=Keys(maximum=Count(1_000)), preload=(Preload(),)))
    assert shared_sentinel.at(shared_sentinel.primary).dbsize() == 1_000


def entry_operations(
    entry: dict[str, Any], thread: int = 0, threads: int = 1, tag: int = 0, **workload: Any
) -> list[Operation]:
    made = preload_operations(
        from_builtins({"commands": [{"command": "GET"}], **workload}, Workload),
        from_builtins(entry, Preload),
        thread,
        threads,
        seed=1,
        per_hash_tag=tag,
    )
    return list(made)


@given(low=st.integers(0, 100), size=st.integers(1, 1500), threads=st.integers(1, 20), times=st.integers(1, 3))
def test_all_workers_together_issue_each_key_as_often_as_the_entry_says(
    low: int, size: int, threads: int, times: int
) -> None:
    keys = {"prefix": "k", "minimum": low, "maximum": low + size - 1}
    parts = [entry_operations({"times": times}, thread, threads, keys=keys) for thread in range(threads)]
    issued = Counter(arguments[1] for part in parts for _, arguments, _, _ in part)
    assert issued == {b"k%d" % number: times for number in range(low, low + size)}
    counts = [len(part) // times for part in parts]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("tag", [0, 7])
def test_a_preload_writes_the_keys_values_and_times_to_live_of_the_mix(tag: int) -> None:
    workload = {
        "keys": {"maximum": 40},
        "values": {"minimum": 60, "maximum": 90, "verify": True},
        "expiry": {"minimum": "5s", "maximum": "5s"},
    }
    for _, arguments, size, follow in entry_operations({}, tag=tag, **workload):
        assert (arguments[0], arguments[3:]) == ("SET", (b"EX", b"5"))
        assert isinstance(arguments[1], bytes)
        assert isinstance(arguments[2], bytes)
        assert arguments[1].startswith(b"stampede:{" if tag else b"stampede:")
        assert 60 <= len(arguments[2]) <= 90
        assert is_intact(arguments[2], arguments[1])
        assert (size, follow) == (request_bytes(arguments), None)


def test_an_entry_may_have_a_command_and_keys_of_its_own() -> None:
    entry = {"command": "RPUSH __key__ n:__seq__", "key_prefix": "l", "key_maximum": 2, "times": 2}
    assert [arguments for _, arguments, _, _ in entry_operations(entry)] == [
        ("RPUSH", b"l1", b"n:1"),
        ("RPUSH", b"l1", b"n:2"),
        ("RPUSH", b"l2", b"n:3"),
        ("RPUSH", b"l2", b"n:4"),
    ]
