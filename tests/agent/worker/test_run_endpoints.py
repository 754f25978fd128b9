"""Operations by endpoint are those that each server itself counts, with every driver and every way of sending."""

from __future__ import annotations

import pytest

from agent.worker.run import WorkerRun
from common.clock import monotonic_ns
from common.metrics.intervals import Merge, PoolMetrics, merge_intervals
from common.plan.schema import Command, Driver, Keys, Load, Plan, Pools, Target, Workload
from common.units import Count
from tests.support.runs import wait_until
from tests.support.servers import Server
from tests.support.shapes import Group, ServerNode
from tests.support.workers import whole_of


def calls_at(node: ServerNode) -> int:
    with node.client() as client:
        stats = client.info("commandstats")
    return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("get", "set"))


def run_on(url: str, driver: Driver, **workload: int) -> PoolMetrics:
    plan = Plan(
        target=Target(url=url),
        pools=(Pools(driver=driver, max_connections=2),),
        workload=Workload(
            commands=(Command(command="SET"), Command(command="GET")), keys=Keys(maximum=Count(500)), **workload
        ),
        load=Load(requests=Count(1200)),
    )
    run = WorkerRun(whole_of(plan))
    run.open(lambda *_: None)
    _, collector = run.start(monotonic_ns())
    wait_until(lambda: not run.is_alive, "the workers end")
    run.close()
    assert run.crash == ""
    _, intervals = collector.collect_rest(0)
    [pool] = merge_intervals(intervals, Merge.CONSECUTIVE).pools.values()
    return pool


@pytest.mark.parametrize("driver", list(Driver))
@pytest.mark.parametrize("workload", [{}, {"pipeline": 6}, {"transaction": 4}], ids=["single", "pipeline", "multi"])
def test_each_node_of_a_cluster_has_the_operations_that_it_counts_itself(
    cluster: Group, driver: Driver, workload: dict[str, int]
) -> None:
    before = {node.port: calls_at(node) for node in cluster.nodes}
    pool = run_on(cluster.url, driver, **workload)
    assert pool.replicas == {}
    assert sum(command.errors == {} for command in pool.primaries.values()) == 3
    found = {int(name.rpartition(":")[2]): command.ok for name, command in pool.primaries.items()}
    assert found == {node.port: calls_at(node) - before[node.port] for node in cluster.nodes}
    assert sum(found.values()) == 1200
    assert sum(command.service.count for command in pool.primaries.values()) == 1200


@pytest.mark.parametrize("driver", list(Driver))
def test_the_only_server_of_a_target_is_not_counted_by_name(valkey: Server, driver: Driver) -> None:
    pool = run_on(valkey.url, driver)
    assert (pool.primaries, pool.replicas) == ({}, {})
