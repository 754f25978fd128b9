"""Runs of the asyncio and wire drivers against targets of every shape, compared with the servers' own counters."""

from __future__ import annotations

from typing import Any

import pytest

from agent.worker.run import WorkerRun
from common.clock import monotonic_ns
from common.metrics.intervals import IntervalMetrics, Merge, merge_intervals
from common.plan.schema import Command, Connections, Driver, Keys, Load, Plan, Pools, Target, Values, Workload
from common.units import Bytes, Count, PerSecond, Seconds
from tests.support.runs import wait_until
from tests.support.shapes import Group
from tests.support.workers import whole_of

pytestmark = pytest.mark.usefixtures("no_leaks")

OPERATIONS = 203
DRIVERS = (Driver.ASYNCIO, Driver.WIRE)


def ran(
    driver: Driver,
    target: Target,
    load: Load | None = None,
    *,
    connections: Connections = Connections.LAZY,
    **workload: Any,
) -> tuple[int, IntervalMetrics]:
    """Run to the end. Returns (number of prewarmed connections, metrics of the whole run)."""
    pools = Pools(
        driver=driver, tasks_per_pool=4, client_instances_per_pool=2, max_connections=3, connections=connections
    )
    usual: dict[str, Any] = {
        "commands": (Command(command="SET"), Command(command="GET")),
        # All keys share a slot: a transaction needs that in a cluster.
        "keys": Keys(prefix="{a}:", maximum=Count(100)),
    }
    plan = Plan(
        target=target,
        pools=(pools,),
        workload=Workload(**(usual | workload)),
        load=load or Load(requests=Count(OPERATIONS)),
    )
    run = WorkerRun(whole_of(plan))
    try:
        opened = run.open(lambda *_: None)
        _, collector = run.start(monotonic_ns())
        wait_until(lambda: not run.is_alive, "the run ends", 40)
    finally:
        run.close()
    assert run.crash == ""
    _, intervals = collector.collect_rest(0)
    return opened, merge_intervals(intervals, Merge.CONSECUTIVE)


def calls(group: Group, target: Target) -> dict[str, int]:
    """Calls that the primaries counted. Replicas also count replicated writes, at a later time."""
    primaries = Group(group.url, group.nodes[:3] if "+cluster" in target.url else group.nodes[:1])
    return {name: primaries.calls(name.lower()) for name in ("SET", "GET")}


def done(total: IntervalMetrics) -> dict[str, int]:
    return {name: metrics.ok for name, metrics in total.pools["main"].commands.items()}


@pytest.mark.parametrize(
    ("driver", "verify"), [(Driver.ASYNCIO, False), (Driver.WIRE, False), (Driver.WIRE, True)], ids=str
)
@pytest.mark.parametrize("batch", [{}, {"pipeline": 10}, {"transaction": 5}], ids=str)
def test_every_operation_is_done_once_and_counted_by_both_sides(
    shape: tuple[Group, Target], driver: Driver, batch: dict[str, int], verify: bool
) -> None:
    group, target = shape
    _, total = ran(driver, target, values=Values(verify=verify), **batch)
    assert total.issued == total.operations == OPERATIONS
    assert done(total) == calls(group, target)
    assert total.pools["main"].connections.drops == {}


@pytest.mark.parametrize("pipeline", [1, 50])
def test_large_values_arrive_whole_in_both_directions(shape: tuple[Group, Target], pipeline: int) -> None:
    # Larger than a TLS record and than a socket's buffer.
    large = Values(minimum_bytes=Bytes(60_000), maximum_bytes=Bytes(70_000))
    group, target = shape
    _, total = ran(Driver.WIRE, target, Load(requests=Count(400)), values=large, pipeline=pipeline)
    assert total.issued == total.operations == 400
    assert done(total) == calls(group, target)


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_open_loop_sends_every_operation_when_it_is_due(shape: tuple[Group, Target], driver: Driver) -> None:
    _, total = ran(driver, shape[1], Load(duration_s=Seconds(0.5), rate_per_s=PerSecond(400)))
    assert total.issued + total.unsent == 200
    commands = total.pools["main"].commands.values()
    assert sum(command.response.count for command in commands) == sum(command.ok for command in commands)
    assert sum(command.ok for command in commands) == total.issued


@pytest.mark.parametrize("driver", DRIVERS)
def test_prewarming_opens_all_connections_to_each_node_that_the_driver_uses(
    shape: tuple[Group, Target], driver: Driver
) -> None:
    group, target = shape
    nodes = 1
    if "+cluster" in target.url:
        nodes = len(group.nodes) if driver is Driver.ASYNCIO else len(group.nodes[:3])
    opened, total = ran(driver, target, connections=Connections.PREWARM)
    assert opened == 2 * 3 * nodes
    assert total.pools["main"].connections.open_peak >= opened
    assert driver is Driver.ASYNCIO or total.pools["main"].connections.opened == opened
    with group.nodes[0].client() as asking:
        wait_until(lambda: "stampede" not in [row["name"] for row in asking.client_list()], "no connection is left")
