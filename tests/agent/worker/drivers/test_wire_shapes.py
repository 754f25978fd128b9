"""Runs of the wire driver against real targets of every shape, as the servers themselves count them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agent.worker.run import WorkerRun
from common.clock import monotonic_ns
from common.metrics.intervals import IntervalMetrics, Merge, merge_intervals
from common.plan.schema import Command, Connections, Driver, Keys, Load, Plan, Pools, Target, Values, Workload
from common.units import Bytes, Count, PerSecond, Seconds
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


def ran(
    target: Target, load: Load | None = None, *, connections: Connections = Connections.LAZY, **workload: Any
) -> tuple[int, IntervalMetrics]:
    """(connections that were prewarmed, all that the run did)."""
    pools = Pools(driver=Driver.WIRE, client_instances_per_pool=2, max_connections=3, connections=connections)
    # One slot, so that a cluster can have transactions of it.
    usual: dict[str, Any] = {
        "commands": (Command(command="SET"), Command(command="GET")),
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
        wait_until(lambda: not run.is_alive, "the loop ends", 40)
    finally:
        run.close()
    assert run.crash == ""
    _, intervals = collector.collect_rest(0)
    return opened, merge_intervals(intervals, Merge.NEIGHBOURS)


def counts(group: Group, target: Target) -> dict[str, int]:
    """What primaries counted: replicas count what they are handed, too, and in their own time."""
    is_cluster = target.url.startswith(("redis+cluster", "rediss+cluster"))
    told = [node.ask("INFO", "commandstats") for node in group.nodes[: 3 if is_cluster else 1]]
    return {
        name: sum(each.get(f"cmdstat_{name.lower()}", {}).get("calls", 0) for each in told) for name in ("SET", "GET")
    }


@pytest.mark.parametrize("verify", [False, True], ids=("drawn ahead", "one by one"))
@pytest.mark.parametrize("batch", [{}, {"pipeline": 10}, {"transaction": 5}], ids=str)
def test_every_operation_is_done_and_counted_by_both_sides(
    shape: tuple[Group, Target], batch: dict[str, int], verify: bool
) -> None:
    group, target = shape
    before = counts(group, target)
    # What is verified has keys of its own: what else is written is not what it expects.
    keys = Keys(prefix="{v}:" if verify else "{a}:", maximum=Count(100))
    _, total = ran(target, values=Values(verify=verify), keys=keys, **batch)
    after = counts(group, target)
    commands = total.pools["main"].commands
    assert total.issued == total.operations == OPERATIONS
    assert {name: metrics.ok for name, metrics in commands.items()} == {
        name: after[name] - before[name] for name in commands
    }
    assert total.pools["main"].connections.drops == {}


@pytest.mark.parametrize("pipeline", [1, 50])
def test_large_values_go_both_ways_whole(shape: tuple[Group, Target], pipeline: int) -> None:
    # More than a record of TLS, more than a socket takes at once.
    large = Values(minimum_bytes=Bytes(60_000), maximum_bytes=Bytes(70_000))
    group, target = shape
    before = counts(group, target)
    _, total = ran(target, Load(requests=Count(400)), values=large, pipeline=pipeline)
    after = counts(group, target)
    commands = total.pools["main"].commands
    assert total.issued == total.operations == 400
    assert {name: metrics.ok for name, metrics in commands.items()} == {
        name: after[name] - before[name] for name in commands
    }


def test_an_open_loop_sends_what_is_due(shape: tuple[Group, Target]) -> None:
    _, total = ran(shape[1], Load(duration_s=Seconds(0.5), rate_per_s=PerSecond(400)))
    assert total.issued + total.unsent == 200
    assert sum(metrics.response.count for metrics in total.pools["main"].commands.values()) == total.issued


def test_prewarming_opens_all_connections_and_the_load_takes_these(shape: tuple[Group, Target]) -> None:
    group, target = shape
    nodes = 1 if target.url.startswith("rediss+cluster") else 3 if "cluster" in target.url else 1
    opened, total = ran(target, connections=Connections.PREWARM)
    assert opened == 2 * 3 * nodes == total.pools["main"].connections.opened
    asking = group.nodes[0].client()
    with asking:
        wait_until(lambda: "stampede" not in [row["name"] for row in asking.client_list()], "none is left open")
