"""Maintenance notifications in runs of every driver, against a server that sends them."""

from __future__ import annotations

from typing import Any

import pytest

from agent.worker.run import WorkerRun
from common.clock import monotonic_ns
from common.metrics.intervals import ConnectionMetrics, Merge, merge_intervals
from common.plan.schema import Command, Driver, EndpointType, Load, Maintenance, Plan, Pools, Target, Workload
from common.units import Count, Seconds
from tests.support.notifying import NotifyingServer, push
from tests.support.runs import wait_until
from tests.support.workers import whole_of

pytestmark = pytest.mark.usefixtures("no_leaks")

OPERATIONS = 200
AN_HOUR_S = 3600


def ran(driver: Driver, target: Target, connections: int = 1, operations: int = OPERATIONS) -> ConnectionMetrics:
    """Run to the end. Returns the metrics of the connections."""
    plan = Plan(
        target=target,
        pools=(Pools(driver=driver, max_connections=connections),),
        workload=Workload(commands=(Command(command="SET"), Command(command="GET"))),
        load=Load(requests=Count(operations)),
    )
    run = WorkerRun(whole_of(plan))
    try:
        run.open(lambda *_: None)
        _, collector = run.start(monotonic_ns())
        wait_until(lambda: not run.is_alive, "the run ends")
    finally:
        run.close()
    assert run.crash == ""
    total = merge_intervals(collector.collect_rest(0)[1], Merge.CONSECUTIVE)
    assert total.issued == total.operations == sum(each.ok for each in total.pools["main"].commands.values())
    return total.pools["main"].connections


def target_of(server: NotifyingServer, kind: str = "redis", **settings: Any) -> Target:
    return Target(url=server.url.replace("redis", kind), **{"maintenance": Maintenance.AUTO, **settings})


@pytest.mark.parametrize("driver", list(Driver))
def test_notifications_count_by_kind_and_a_move_makes_the_client_connect_again(driver: Driver) -> None:
    with NotifyingServer() as server:
        server.send_at(20, push("MIGRATING", 1, 10) + push("MIGRATED", 2))
        server.send_at(40, push("FAILING_OVER", 3, 10))
        server.send_at(60, push("FAILED_OVER", 4))
        server.send_at(80, push("MOVING", 5, AN_HOUR_S, server.address))
        connections = ran(driver, target_of(server))
    kinds = ("MIGRATING", "MIGRATED", "FAILING_OVER", "FAILED_OVER", "MOVING")
    assert connections.maintenance == dict.fromkeys(kinds, 1)
    assert (connections.opened, connections.drops) == (2, {})


def test_a_move_reopens_all_wire_connections_although_only_one_was_notified() -> None:
    with NotifyingServer() as server:
        server.send_at(100, push("MOVING", 1, AN_HOUR_S, server.address))
        connections = ran(Driver.WIRE, target_of(server), connections=4, operations=4000)
    assert connections.maintenance == {"MOVING": 1}
    assert (connections.opened, connections.drops) == (8, {})


@pytest.mark.parametrize("driver", list(Driver))
def test_notifications_of_a_cluster_count_by_kind(driver: Driver) -> None:
    with NotifyingServer() as server:
        server.send_at(20, push("SMIGRATING", 1, "0-100"))
        server.send_at(40, push("SMIGRATED", 2, [[server.address, server.address, "0-100"]]))
        connections = ran(driver, target_of(server, "redis+cluster"))
    assert connections.maintenance == {"SMIGRATING": 1, "SMIGRATED": 1}


@pytest.mark.parametrize("driver", list(Driver))
def test_other_push_messages_and_unasked_notifications_do_not_count(driver: Driver) -> None:
    with NotifyingServer({20: push("invalidate", ["key"]) + push("NEWS", 1)}) as server:
        assert ran(driver, target_of(server)).maintenance == {}
    with NotifyingServer({20: push("MIGRATING", 1, 10)}) as server:
        assert ran(driver, target_of(server, maintenance=Maintenance.OFF)).maintenance == {}
        assert server.endpoint_types == []


@pytest.mark.parametrize("driver", list(Driver))
def test_a_push_message_without_a_kind_loses_its_connection_and_not_the_run(driver: Driver) -> None:
    with NotifyingServer({20: b">0\r\n"}) as server:
        plan_target = target_of(server)
        run = WorkerRun(
            whole_of(
                Plan(
                    target=plan_target,
                    pools=(Pools(driver=driver, max_connections=1),),
                    workload=Workload(commands=(Command(command="GET"),)),
                    load=Load(requests=Count(OPERATIONS)),
                )
            )
        )
        try:
            run.open(lambda *_: None)
            run.start(monotonic_ns())
            wait_until(lambda: not run.is_alive, "the run ends")
        finally:
            run.close()
    assert run.crash == ""


@pytest.mark.parametrize("driver", list(Driver))
@pytest.mark.parametrize(
    ("endpoint_type", "asked"), [(EndpointType.AUTO, "internal-ip"), (EndpointType.EXTERNAL_FQDN, "external-fqdn")]
)
def test_connections_ask_for_the_endpoint_type_of_the_plan(
    driver: Driver, endpoint_type: EndpointType, asked: str
) -> None:
    with NotifyingServer() as server:
        ran(driver, target_of(server, endpoint_type=endpoint_type, relaxed_timeout_s=Seconds(3)))
        assert set(server.endpoint_types) == {asked}


@pytest.mark.parametrize("driver", list(Driver))
def test_a_server_without_notifications_is_used_as_before(driver: Driver) -> None:
    with NotifyingServer(knows_notifications=False) as server:
        connections = ran(driver, target_of(server))
    assert (connections.maintenance, connections.opened) == ({}, 1)
