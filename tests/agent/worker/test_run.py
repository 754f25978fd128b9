from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from agent.worker.drivers.client import ThreadContext
from agent.worker.metrics.collector import Collector
from agent.worker.pacing.pacer import Span
from agent.worker.run import WorkerRun, describe
from common.cancellation import CutShort
from common.clock import monotonic_ns
from common.errors import PlanError, TargetError
from common.metrics.intervals import IntervalMetrics, Merge, merge_intervals
from common.plan.schema import (
    Arrivals,
    Command,
    Connections,
    Driver,
    Keys,
    Load,
    Plan,
    Pools,
    Target,
    Values,
    Workload,
)
from common.protocol.messages import Assignment, PoolRemainder, PoolShare, TakeOver
from common.units import NS_PER_S, Bytes, Count, PerSecond, Seconds
from tests.support.runs import wait_until
from tests.support.servers import Server
from tests.support.shapes import Group
from tests.support.stages import stage
from tests.support.workers import whole_of

pytestmark = pytest.mark.usefixtures("no_leaks")

NOWHERE = "redis://127.0.0.1:1"
FOREVER = Load(duration_s=Seconds(3600))


def plan_of(url: str, *pools: Pools, load: Load = FOREVER, seed: int = 1, commands: str = "SET") -> Plan:
    return Plan(
        target=Target(url=url),
        pools=pools or (Pools(),),
        workload=Workload(
            commands=(Command(command=commands),),
            keys=Keys(maximum=Count(1000)),
            values=Values(minimum_bytes=Bytes(1), maximum_bytes=Bytes(50)),
        ),
        load=load,
        seed=seed,
    )


def requests(count: int) -> Load:
    return Load(requests=Count(count))


def quiet(*_: int) -> None:
    """A progress callback that does nothing."""


def finished(run: WorkerRun) -> IntervalMetrics:
    """Run to the end and close. Returns the metrics of the whole run."""
    _, collector = started(run)
    wait_until(lambda: not run.is_alive, "the threads end")
    return collected(run, collector)


def started(run: WorkerRun) -> tuple[Span, Collector]:
    run.open(quiet)
    return run.start(monotonic_ns())


def collected(run: WorkerRun, collector: Collector) -> IntervalMetrics:
    run.close()
    assert run.crash == ""
    _, intervals = collector.collect_rest(0)
    return merge_intervals(intervals, Merge.CONSECUTIVE)


def test_each_thread_of_the_fleet_issues_its_own_part_on_any_machine(valkey: Server) -> None:
    # The second of two pools with two threads each, in a fleet of five threads: 103 = 21 + 21 + 21 + 20 + 20.
    plan = plan_of(valkey.url, Pools(client_pools=2, threads_per_pool=2), load=requests(103))
    share = Assignment(plan=plan, pools=(PoolShare(group=0, number=1, first_thread=2),), threads_total=5)
    total = finished(WorkerRun(share))
    assert total.issued == total.operations == 41


DRIVERS = {
    Driver.CLIENT: Pools(client_pools=2, threads_per_pool=2),
    Driver.ASYNCIO: Pools(client_pools=2, driver=Driver.ASYNCIO, tasks_per_pool=2),
    Driver.WIRE: Pools(client_pools=2, driver=Driver.WIRE, max_connections=2),
}


def run_takeover(
    run: WorkerRun, from_s: float, remaining: tuple[PoolRemainder, ...] | None = None
) -> tuple[int, IntervalMetrics]:
    """Run a takeover that begins soon, `from_s` after the start of the run. Returns (start skew, metrics)."""
    run.open(quiet)
    from_ns = round(from_s * NS_PER_S)
    _, collector = run.start(monotonic_ns() + NS_PER_S // 10 - from_ns, TakeOver(from_ns=from_ns, remaining=remaining))
    wait_until(lambda: not run.is_alive, "the workers end")
    run.close()
    assert run.crash == ""
    _, intervals = collector.collect_rest(0)
    assert min(interval.first for interval in intervals) == int(from_s)
    return collector.start_skew_ns, merge_intervals(intervals, Merge.CONSECUTIVE)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("arrivals", Arrivals)
@pytest.mark.parametrize("staged", [False, True])
def test_a_takeover_in_an_open_loop_has_no_backlog(
    valkey: Server, driver: Driver, arrivals: Arrivals, staged: bool
) -> None:
    load = Load(duration_s=Seconds(100.3), rate_per_s=PerSecond(1000.0), arrivals=arrivals)
    if staged:
        load = Load(stages=(stage(50, 1000), stage(50.3, 1000)), arrivals=arrivals, warmup_s=Seconds(0))
    skew_ns, total = run_takeover(WorkerRun(whole_of(plan_of(valkey.url, DRIVERS[driver], load=load))), 100.0)
    assert 0 <= skew_ns < NS_PER_S
    assert total.issued + total.unsent == pytest.approx(300, abs=0 if arrivals is Arrivals.CONSTANT else 90)
    assert total.pools["main"].commands["SET"].response.maximum < 10 * NS_PER_S


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("batch", [{}, {"pipeline": 3}, {"transaction": 3}])
def test_a_takeover_issues_the_requests_that_its_pools_have_left(
    valkey: Server, driver: Driver, batch: dict[str, int]
) -> None:
    plan = plan_of(valkey.url, DRIVERS[driver], load=requests(1000))
    plan = msgspec.structs.replace(plan, workload=msgspec.structs.replace(plan.workload, **batch))
    skew_ns, total = run_takeover(WorkerRun(whole_of(plan)), 50.0, (PoolRemainder(0, 11), PoolRemainder(1, 0)))
    assert 0 <= skew_ns < NS_PER_S
    assert total.issued == total.operations == 11


def contents(server: Server) -> dict[bytes, Any]:
    client = server.client()
    found = {key: client.get(key) for key in client.keys("*")}
    client.flushall()
    return found


def test_the_data_depend_on_the_plan_and_its_seed_only(valkey: Server) -> None:
    written = []
    for seed in (1, 1, 2):
        finished(WorkerRun(whole_of(plan_of(valkey.url, load=requests(200), seed=seed))))
        written.append(contents(valkey))
    assert written[0] == written[1] != written[2]
    assert len(written[0]) > 100


def test_several_processes_write_the_same_data_as_one_process(valkey: Server) -> None:
    whole = whole_of(plan_of(valkey.url, Pools(client_pools=3), load=requests(300), commands="LPUSH"))
    finished(WorkerRun(whole))
    client = valkey.client()
    together = {key: sorted(client.lrange(key, 0, -1)) for key in client.keys("*")}
    client.flushall()
    for pool in whole.pools:
        finished(WorkerRun(msgspec.structs.replace(whole, pools=(pool,))))
    assert {key: sorted(client.lrange(key, 0, -1)) for key in client.keys("*")} == together


def test_groups_of_pools_are_measured_separately(valkey: Server) -> None:
    groups = (
        Pools(name="few", client_pools=1, threads_per_pool=1),
        Pools(name="many", client_pools=2, threads_per_pool=2, client_instances_per_pool=2),
    )
    run = WorkerRun(whole_of(plan_of(valkey.url, *groups, load=requests(500))))
    total = finished(run)
    # Five threads, 100 operations each.
    assert {name: pool.commands["SET"].ok for name, pool in total.pools.items()} == {"few": 100, "many": 400}
    assert total.pools["few"].connections.opened == 1
    assert 2 <= total.pools["many"].connections.opened <= 4


def test_threads_have_the_names_of_their_pools_and_do_not_block_an_exit(valkey: Server) -> None:
    run = WorkerRun(whole_of(plan_of(valkey.url, Pools(client_pools=2, threads_per_pool=2))))
    span, collector = started(run)
    mine = [thread for thread in threading.enumerate() if thread.name.startswith("pool ")]
    assert sorted(thread.name for thread in mine) == [
        "pool 0 thread 0",
        "pool 0 thread 1",
        "pool 1 thread 2",
        "pool 1 thread 3",
    ]
    assert all(thread.daemon for thread in mine)
    span.end_at(monotonic_ns())
    wait_until(lambda: not run.is_alive, "the threads end")
    collected(run, collector)


def test_building_a_run_opens_nothing_and_open_only_prewarms(valkey: Server) -> None:
    asking = valkey.client()
    groups = (
        Pools(name="lazy", client_pools=2, max_connections=7),
        Pools(
            name="warm", client_pools=2, client_instances_per_pool=3, max_connections=4, connections=Connections.PREWARM
        ),
    )
    run = WorkerRun(whole_of(plan_of(valkey.url, *groups)))
    assert len(asking.client_list()) == 1
    progress: list[tuple[int, int]] = []
    assert run.open(lambda done, total: progress.append((done, total))) == 24
    assert progress[-1] == (24, 24)
    assert len(asking.client_list()) == 25
    run.close()
    run.close()
    wait_until(lambda: len(asking.client_list()) == 1, "no connection is left")


def test_a_cut_ends_threads_that_wait_for_a_reply_or_for_a_client(valkey: Server) -> None:
    asking = valkey.client()
    run = WorkerRun(whole_of(plan_of(valkey.url, Pools(threads_per_pool=3), commands="BLPOP nothing 0")))
    span, collector = started(run)
    wait_until(lambda: asking.info("clients")["blocked_clients"] == 1, "a thread waits for its reply")
    span.end_at(monotonic_ns())
    run.cut()
    run.cut()
    wait_until(lambda: not run.is_alive, "the threads end")
    total = collected(run, collector)
    assert total.pools["main"].commands["BLPOP"].failures == {"CutShort": 1}


def test_a_cut_ends_the_wait_for_a_client_that_another_thread_keeps(
    valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken, release = threading.Event(), threading.Event()

    def keep_instance(worker: ThreadContext) -> None:
        try:
            instance, _ = worker.pool.checkout()
        except CutShort:
            woken.set()
            return
        release.wait(10)
        worker.pool.give_back(instance)

    monkeypatch.setattr("agent.worker.drivers.client.run_client_worker", keep_instance)
    run = WorkerRun(whole_of(plan_of(valkey.url, Pools(threads_per_pool=2))))
    span, collector = started(run)
    span.end_at(monotonic_ns())
    run.cut()
    assert woken.wait(5)
    release.set()
    wait_until(lambda: not run.is_alive, "the threads end")
    collected(run, collector)


def test_the_load_ends_with_its_last_thread(valkey: Server) -> None:
    assert WorkerRun(whole_of(plan_of(NOWHERE))).ended_ns == 0
    run = WorkerRun(whole_of(plan_of(valkey.url, Pools(threads_per_pool=2), load=Load(duration_s=Seconds(0.1)))))
    span, collector = started(run)
    if run.is_alive:
        assert monotonic_ns() - run.ended_ns < NS_PER_S
    wait_until(lambda: not run.is_alive, "the threads end")
    ended_ns = run.ended_ns
    assert span.end_ns <= ended_ns <= monotonic_ns()
    collected(run, collector)
    assert run.ended_ns == ended_ns


def test_a_target_that_refuses_is_found_before_any_connection_opens(refusing_url: str) -> None:
    run = WorkerRun(whole_of(plan_of(refusing_url, Pools(connections=Connections.PREWARM))))
    with pytest.raises(TargetError, match="refused the connection"):
        run.open(quiet)
    run.close()


def test_a_malformed_url_is_an_error_of_the_plan() -> None:
    with pytest.raises(PlanError):
        WorkerRun(whole_of(plan_of("http://127.0.0.1")))


def test_an_unexpected_error_is_described_in_one_line_with_its_place() -> None:
    def crash() -> None:
        raise KeyError("two\n  lines " + "x" * 1000)

    with pytest.raises(KeyError) as raised:
        crash()
    line = describe(raised.value)
    assert line.startswith("unexpected KeyError at crash:")
    assert "\n" not in line
    assert len(line) < 300
    assert describe(ValueError("never raised")) == "unexpected ValueError: never raised"


def test_opening_a_run_reads_the_topology_and_prewarms_every_node(cluster: Group) -> None:
    pools = Pools(client_instances_per_pool=2, threads_per_pool=2, max_connections=2, connections=Connections.PREWARM)
    run = WorkerRun(whole_of(plan_of(cluster.url, pools, load=requests(300))))

    def connected() -> list[int]:
        return [node.ask("INFO", "clients")["connected_clients"] for node in cluster.nodes]

    wait_until(lambda: connected() == [1, 1, 1], "only the client that asks is connected")
    assert run.open(quiet) == 2 * 2 * len(cluster.nodes)
    whole = finished(run)
    command = whole.pools["main"].commands["SET"]
    assert (command.ok, command.errors, command.failures) == (300, {}, {})
    assert whole.pools["main"].connections.redirects == {}
    assert cluster.calls("set") == 300
    wait_until(lambda: connected() == [1, 1, 1], "the nodes have seen all connections closed")


def test_a_cluster_that_is_down_is_reported_when_the_run_opens() -> None:
    run = WorkerRun(whole_of(plan_of("redis+cluster://127.0.0.1:1")))
    with pytest.raises(TargetError, match="has no node that can be used"):
        run.open(quiet)
    run.cut()
    run.close()
