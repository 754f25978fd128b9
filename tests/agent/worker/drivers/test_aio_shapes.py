"""Runs of the asyncio driver against real targets of every shape, as the servers themselves count them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agent.worker.run import WorkerRun
from common.clock import monotonic_ns
from common.metrics.intervals import IntervalMetrics, Merge, merge_intervals
from common.plan.schema import Command, Connections, Driver, Keys, Load, Plan, Pools, Target, Workload
from common.units import Count, PerSecond, Seconds
from tests.support.runs import wait_until
from tests.support.shapes import SHAPES, Group, started_shape
from tests.support.workers import whole_of

pytestmark = pytest.mark.usefixtures("no_leaks")

OPERATIONS = 203


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Group, Target]]:
    """The servers of one shape, and a target that names them."""
    with started_shape(request.param, tmp_path_factory.mktemp("papers")) as started:
        yield started


def ran(target: Target, load: Load | None = None, connections: Connections = Connections.LAZY, **batch: int) -> Any:
    """(connections that were prewarmed, all that the run did)."""
    pools = Pools(
        driver=Driver.ASYNCIO, tasks_per_pool=4, client_instances_per_pool=2, max_connections=3, connections=connections
    )
    plan = Plan(
        target=target,
        pools=(pools,),
        # One slot, so that a cluster can have transactions of it.
        workload=Workload(commands=(Command(command="SET"),), keys=Keys(prefix="{a}:", maximum=Count(100)), **batch),
        load=load or Load(requests=Count(OPERATIONS)),
    )
    run = WorkerRun(whole_of(plan))
    try:
        opened = run.open(lambda *_: None)
        _, collector = run.start(monotonic_ns())
        wait_until(lambda: not run.is_alive, "the tasks end")
    finally:
        run.close()
    assert run.crash == ""
    _, intervals = collector.collect_rest(0)
    return opened, merge_intervals(intervals, Merge.NEIGHBOURS)


@pytest.mark.parametrize("batch", [{}, {"pipeline": 10}, {"transaction": 5}], ids=str)
def test_every_operation_is_done_and_counted_by_both_sides(shape: tuple[Group, Target], batch: dict[str, int]) -> None:
    group, target = shape
    # Replicas count what they are handed, too, and in their own time.
    primaries = Group(group.url, group.nodes[:3] if target.url.startswith("redis+cluster") else group.nodes[:1])
    before = primaries.calls("set")
    total: IntervalMetrics
    _, total = ran(target, **batch)
    assert total.issued == total.operations == total.pools["main"].commands["SET"].ok == OPERATIONS
    assert primaries.calls("set") - before == OPERATIONS
    assert total.pools["main"].connections.drops == {}


def test_an_open_loop_sends_what_is_due(shape: tuple[Group, Target]) -> None:
    _, total = ran(shape[1], Load(duration_s=Seconds(0.5), rate_per_s=PerSecond(400)))
    assert total.issued + total.unsent == 200
    assert total.pools["main"].commands["SET"].response.count == total.pools["main"].commands["SET"].ok == total.issued


def test_prewarming_opens_all_connections_to_each_node_that_it_may_use(shape: tuple[Group, Target]) -> None:
    group, target = shape
    nodes = len(group.nodes) if target.url.startswith("redis+cluster") else 1
    opened, total = ran(target, connections=Connections.PREWARM)
    assert opened == 2 * 3 * nodes
    assert total.pools["main"].connections.open_peak >= opened
    asking = group.nodes[0].client()
    with asking:
        wait_until(lambda: "stampede" not in [row["name"] for row in asking.client_list()], "none is left open")
