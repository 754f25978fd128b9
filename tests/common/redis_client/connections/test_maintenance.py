"""Maintenance notifications on single connections, against a server that sends them."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from common.cancellation import Cancellation
from common.plan.schema import Maintenance, Pools, Target
from common.redis_client import build_client, tcp_pools
from common.redis_client.connections.maintenance import KINDS, cancel_timers
from common.redis_client.wire_connections import SINGLE_NODE, InstancePools, WireConnection
from common.units import NS_PER_S, Seconds
from tests.support.clients import Events
from tests.support.notifying import NotifyingServer, push

pytestmark = pytest.mark.usefixtures("no_leaks")


def target_of(server: NotifyingServer, relaxed_s: float) -> Target:
    return Target(url=server.url, maintenance=Maintenance.ON, relaxed_timeout_s=Seconds(relaxed_s))


def test_all_kinds_of_redis_py_are_counted() -> None:
    assert {"MOVING", "MIGRATING", "MIGRATED", "FAILING_OVER", "FAILED_OVER", "SMIGRATING", "SMIGRATED"} == KINDS


@pytest.mark.parametrize(("relaxed_s", "during_s"), [(60, 60), (0, 5)])
def test_the_timeout_is_relaxed_while_maintenance_lasts(relaxed_s: float, during_s: float) -> None:
    events = Events()
    with NotifyingServer({1: push("MIGRATING", 1, 10), 2: push("MIGRATED", 2)}) as server:
        target = target_of(server, relaxed_s)
        with build_client(target, Pools(), events=events, cancellation=Cancellation()) as client:
            timeouts = []
            for _ in range(2):
                client.execute_command("GET", "key")
                [connection] = tcp_pools(client)[0]._available_connections
                timeouts.append(connection.socket_timeout)
    assert timeouts == [during_s, 5]
    assert events.notifications == ["MIGRATING", "MIGRATED"]


def test_a_wire_connection_knows_its_timeout_during_maintenance() -> None:
    with NotifyingServer() as server:
        target = target_of(server, 60)
        with closing(InstancePools(target, Pools(), events=Events(), cancellation=Cancellation())) as pools:
            link = WireConnection(pools.pool_for(SINGLE_NODE))
            link.open()
            assert link.timeout_ns == 5 * NS_PER_S
            link.pushed([b"FAILING_OVER", 1, 10])
            assert link.timeout_ns == 60 * NS_PER_S
            link.pushed([b"FAILED_OVER", 2])
            assert link.timeout_ns == 5 * NS_PER_S


def test_closing_a_client_ends_only_the_timers_of_its_own_moves() -> None:
    with NotifyingServer() as server:
        server.send_at(1, push("MOVING", 1, 3600, server.address))
        server.send_at(2, push("MOVING", 2, 3600, server.address))
        target = target_of(server, 10)
        clients = [build_client(target, Pools(), events=Events(), cancellation=Cancellation()) for _ in range(2)]
        for client in clients:
            client.execute_command("GET", "key")
        timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
        assert len(timers) == 2
        for ended, client in enumerate(clients, 1):
            client.close()
            cancel_timers(tcp_pools(client))
            assert sum(timer.finished.is_set() for timer in timers) == ended
