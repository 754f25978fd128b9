"""The wire driver against real servers that die, hang, fail over, refuse and return.

In each test every issued operation counts exactly once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from common.plan.schema import Driver, Keys, Load, Plan, Retry, Values
from common.protocol.messages import Prepared, WorkerFinal, WorkerMetrics
from common.units import Bytes, Count, PerSecond, Seconds
from tests.support.groups import ClusterGroup, SentinelGroup
from tests.support.plans import plan_with
from tests.support.runs import wait_until
from tests.support.servers import Server, start_server
from tests.support.workers import WorkerReport, WorkerThread

pytestmark = pytest.mark.usefixtures("no_leaks")


ENDLESS = Load(duration_s=Seconds(3600))


def plan_of(url: str, *commands: str, load: Load = ENDLESS, connections: int = 5, **settings: Any) -> Plan:
    """A plan for the wire driver, without retries; by default SET and GET."""
    settings = {
        "retry": Retry(retries=0),
        "connect_timeout_s": Seconds(2),
        "keys": Keys(maximum=Count(1000)),
        **settings,
    }
    plan = plan_with(url, *(commands or ("SET", "GET")), driver=Driver.WIRE, max_connections=connections, **settings)
    return msgspec.structs.replace(plan, load=load)


def requests(count: int) -> Load:
    return Load(requests=Count(count))


def calls_of(client: Any) -> int:
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("set", "get"))


def wait_for_growth(count: Callable[[], int], by: int = 200) -> None:
    """Wait until a count has grown by this much."""
    before = count()
    wait_until(lambda: count() >= before + by, "the load goes on")


def stop_and_check(worker: WorkerThread) -> WorkerReport:
    worker.stop()
    report = worker.finish()
    assert worker.end() == 0
    report.check_sums()
    return report


# One server


def test_killed_connections_are_reopened_and_lose_only_operations_in_flight(
    valkey: Server, worker: WorkerThread
) -> None:
    client = valkey.client()
    worker.start_load(plan_of(valkey.url))
    for _ in range(5):
        wait_for_growth(lambda: calls_of(client))
        victim = next(row["id"] for row in client.client_list() if row["name"] == "stampede")
        client.client_kill_filter(_id=victim)
        wait_until(
            lambda: sum(row["name"] == "stampede" for row in client.client_list()) == 5, "the connection is reopened"
        )
    wait_for_growth(lambda: calls_of(client))
    report = stop_and_check(worker)
    connections = report.pool.connections
    assert connections.drops == {"closed by server": 5}
    assert (connections.opened, connections.reconnects, connections.failed_attempts) == (10, 5, 0)
    assert sum(report.all_commands.failures.values()) <= 5
    assert set(report.all_commands.failures) <= {"ConnectionError"}
    assert report.all_commands.ok <= calls_of(client) <= report.all_commands.operations


@pytest.mark.parametrize("batch", [{}, {"pipeline": 7}, {"transaction": 3}], ids=str)
def test_a_restarted_server_is_loaded_again(valkey: Server, worker: WorkerThread, batch: dict[str, int]) -> None:
    client = valkey.client()
    worker.start_load(plan_of(valkey.url, **batch))
    wait_for_growth(lambda: calls_of(client))
    valkey.kill()
    with start_server(port=valkey.port) as again:
        new = again.client()
        wait_for_growth(lambda: calls_of(new), 500)
        wait_until(lambda: sum(row["name"] == "stampede" for row in new.client_list()) == 5, "all are back")
        report = stop_and_check(worker)
    connections = report.pool.connections
    assert sum(connections.drops.values()) == connections.reconnects == 5
    assert connections.opened == 10
    assert set(report.all_commands.failures) <= {"ConnectionError", "handshake: ConnectionError"}


def test_a_run_by_requests_ends_although_the_server_is_gone(valkey: Server, worker: WorkerThread) -> None:
    client = valkey.client()
    worker.start_load(plan_of(valkey.url, load=Load(requests=Count(600), rate_per_s=PerSecond(300)), connections=10))
    wait_for_growth(lambda: calls_of(client), 50)
    valkey.kill()
    report = worker.finish()
    report.check_sums()
    commands = report.all_commands
    assert commands.failures == {"ConnectionError": 600 - commands.ok}
    assert 50 <= commands.ok < 600


def test_a_run_by_requests_ends_with_failures_alone(valkey: Server, worker: WorkerThread) -> None:
    worker.prepare(plan_of(valkey.url, load=requests(300), connections=10))
    worker.receive_next(Prepared)
    valkey.kill()
    worker.start()
    report = worker.finish()
    report.check_sums()
    assert report.all_commands.failures == {"ConnectionError": 300}
    assert report.all_commands.ok == 0


def test_a_run_by_rate_continues_over_a_restart_of_the_server(valkey: Server, worker: WorkerThread) -> None:
    client = valkey.client()
    load = Load(duration_s=Seconds(2), rate_per_s=PerSecond(1000))
    worker.start_load(plan_of(valkey.url, load=load))
    wait_for_growth(lambda: calls_of(client), 100)
    valkey.kill()
    with start_server(port=valkey.port):
        report = worker.finish()
    report.check_sums()
    assert report.final.issued + report.total.unsent == 2000
    assert report.all_commands.failures["ConnectionError"] > 0


def test_a_paused_server_times_out_and_is_loaded_again_when_it_resumes(valkey: Server, worker: WorkerThread) -> None:
    client = valkey.client()
    worker.start_load(plan_of(valkey.url, socket_timeout_s=Seconds(0.3), connections=3))
    wait_for_growth(lambda: calls_of(client))
    valkey.pause()
    messages: list[Any] = []
    while "TimeoutError" not in str(messages):
        messages.append(worker.receive_next(WorkerMetrics))
    valkey.resume()
    wait_for_growth(lambda: calls_of(client), 500)
    worker.stop()
    messages += worker.receive_until(WorkerFinal)
    report = WorkerReport(messages, messages[-1])
    report.check_sums()
    failures = report.all_commands.failures
    assert set(failures) <= {"TimeoutError", "handshake: TimeoutError"}
    assert report.pool.connections.drops == {"timeout": failures["TimeoutError"]}


def test_connections_beyond_maxclients_are_retried_while_others_carry_the_load(
    valkey: Server, worker: WorkerThread
) -> None:
    client = valkey.client()
    client.config_set("maxclients", 8)
    worker.start_load(plan_of(valkey.url, connections=20))
    wait_for_growth(lambda: calls_of(client), 1000)
    client.config_set("maxclients", 100)
    wait_until(lambda: sum(row["name"] == "stampede" for row in client.client_list()) == 20, "all stand")
    report = stop_and_check(worker)
    assert report.all_commands.error_count == 0
    connections = report.pool.connections
    assert connections.failed_by_cause == {"maxclients": connections.failed_attempts}
    assert (connections.wanted, connections.never_opened) == (20, {})
    assert report.all_commands.ok == calls_of(client)


def test_connections_that_maxclients_never_admits_are_reported(valkey: Server, worker: WorkerThread) -> None:
    client = valkey.client()
    client.config_set("maxclients", 8)
    worker.start_load(plan_of(valkey.url, connections=20))
    wait_for_growth(lambda: calls_of(client), 1000)
    connections = stop_and_check(worker).pool.connections
    # Of the eight, the test uses one, and reading the topology used another.
    assert 6 <= connections.open_peak <= 7
    assert sum(connections.never_opened.values()) == 20 - connections.open_peak
    assert connections.never_opened.keys() == {"maxclients"}


def test_a_thousand_connections_carry_load(valkey: Server, worker: WorkerThread) -> None:
    client = valkey.client()
    worker.prepare(plan_of(valkey.url, load=requests(20_000), connections=500, client_instances_per_pool=2))
    worker.receive_next(Prepared)
    worker.start()
    report = worker.finish()
    report.check_sums()
    assert report.all_commands.ok == calls_of(client) == 20_000
    wait_until(lambda: len(client.client_list()) == 1, "none is left open")


@pytest.mark.parametrize("verify", [False, True])
def test_pipelines_larger_than_the_socket_buffer_arrive_whole(
    valkey: Server, worker: WorkerThread, verify: bool
) -> None:
    client = valkey.client()
    values = Values(minimum_bytes=Bytes(10_000), maximum_bytes=Bytes(10_000), verify=verify)
    report = worker.run(
        plan_of(
            valkey.url, load=requests(20_000), connections=4, values=values, pipeline=500, keys=Keys(maximum=Count(200))
        )
    )
    assert report.all_commands.ok == calls_of(client) == 20_000
    assert report.pool.connections.drops == {}


def test_password_database_and_resp2_work_with_the_wire_driver(
    valkey_with_password: Server, worker: WorkerThread
) -> None:
    server = valkey_with_password
    plan = plan_of(f"{server.url}/5", load=requests(1000), password=server.password, protocol=2)
    report = worker.run(plan)
    assert report.all_commands.ok == 1000
    assert server.client(db=5).dbsize() > 0
    assert server.client(db=0).dbsize() == 0


# Sentinels, clusters


def test_the_load_follows_a_sentinel_failover(valkey_sentinel: SentinelGroup, worker: WorkerThread) -> None:
    group = valkey_sentinel
    worker.start_load(plan_of(group.url, retry=Retry(retries=3)))
    old = group.primary
    wait_for_growth(lambda: calls_of(group.at(old)))
    _, new = group.failover()
    wait_for_growth(lambda: calls_of(group.at(new)), 1000)
    report = stop_and_check(worker)
    assert set(report.all_commands.errors) <= {"READONLY"}
    assert report.pool.connections.reconnects >= 5
    assert {int(name.rpartition(":")[2]) for name in report.pool.primaries} == {old, new}


def test_slots_that_move_under_load_lose_no_operation(shared_cluster: ClusterGroup, worker: WorkerThread) -> None:
    group = shared_cluster
    source, to = group.primaries[:2]
    slots = [slot for node in group.nodes if node.port == source for served in node.slots for slot in served][:12]
    before = sum(calls_of(group.at(port)) for port in group.primaries)
    worker.start_load(plan_of(group.url, connections=2, pipeline=3, keys=Keys(maximum=Count(20_000))))
    wait_for_growth(lambda: calls_of(group.at(source)))
    for slot in slots:
        group.move_slot(slot, to)
        wait_for_growth(lambda: calls_of(group.at(source)), 50)
    for slot in slots[:4]:
        group.move_slot(slot, source)
    for slot in slots[4:]:
        with group.migrating(slot, source):
            wait_for_growth(lambda: calls_of(group.at(to)), 50)
        group.move_slot(slot, source)
    report = stop_and_check(worker)
    commands, connections = report.all_commands, report.pool.connections
    # While keys migrate, a command with several keys may not know its node.
    assert set(commands.errors) <= {"TRYAGAIN"}
    assert commands.failures == {}
    assert connections.redirects.get("MOVED", 0) > 0
    assert commands.ok == sum(calls_of(group.at(port)) for port in group.primaries) - before


def test_a_killed_primary_is_replaced_while_other_primaries_continue(
    valkey_cluster: ClusterGroup, worker: WorkerThread
) -> None:
    group = valkey_cluster
    victim, other = group.primaries[:2]
    heir = group.replica_of(victim)
    worker.start_load(plan_of(group.url, connections=3, keys=Keys(maximum=Count(20_000))))
    wait_for_growth(lambda: calls_of(group.at(victim)))
    group.kill(victim)
    wait_for_growth(lambda: calls_of(group.at(other)), 3000)
    wait_until(lambda: group.role(heir) == "master", "the replica takes over", 30)
    wait_for_growth(lambda: calls_of(group.at(heir)), 1000)
    report = stop_and_check(worker)
    commands = report.all_commands
    assert commands.ok > 0
    assert {"ConnectionError"} <= set(commands.failures) <= {"ConnectionError", "handshake: ConnectionError"}
    assert set(commands.errors) <= {"CLUSTERDOWN"}


def test_commands_whose_keys_the_server_must_name_survive_the_loss_of_all_nodes(
    valkey_cluster: ClusterGroup, worker: WorkerThread
) -> None:
    group = valkey_cluster
    worker.start_load(plan_of(group.url, "ZUNION 1 __key__", connections=2, values=Values(verify=True)))
    wait_for_growth(lambda: sum(group.calls("zunion", port) for port in group.primaries))
    for port in group.ports:
        group.kill(port)
    report = stop_and_check(worker)
    assert set(report.all_commands.failures) <= {"ConnectionError", "handshake: ConnectionError"}


@pytest.mark.parametrize("verify", [False, True])
def test_all_nodes_are_loaded_again_after_a_failover_and_a_failback(
    valkey_cluster: ClusterGroup, worker: WorkerThread, verify: bool
) -> None:
    group = valkey_cluster
    worker.start_load(plan_of(group.url, connections=2, values=Values(verify=verify), keys=Keys(maximum=Count(20_000))))
    first = group.primaries[0]
    wait_for_growth(lambda: calls_of(group.at(first)))
    _, second = group.failover(first)
    wait_for_growth(lambda: calls_of(group.at(second)), 1000)
    group.failover(second)
    wait_for_growth(lambda: calls_of(group.at(first)), 1000)
    report = stop_and_check(worker)
    assert report.all_commands.ok > 0
    assert set(report.all_commands.failures) <= {"ConnectionError"}


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("pipeline", [1, 4])
def test_other_nodes_keep_their_rate_when_a_cluster_loses_a_node(
    valkey_cluster: ClusterGroup, worker: WorkerThread, verify: bool, pipeline: int
) -> None:
    group = valkey_cluster
    victim = group.primaries[0]
    load = Load(duration_s=Seconds(4), rate_per_s=PerSecond(1000))
    keys = Keys(maximum=Count(20_000))
    worker.start_load(
        plan_of(group.url, load=load, connections=2, values=Values(verify=verify), keys=keys, pipeline=pipeline),
        in_s=0.2,
    )
    wait_for_growth(lambda: calls_of(group.at(victim)), 50)
    group.kill(victim)
    report = worker.finish()
    report.check_sums()
    assert report.final.issued + report.total.unsent == 4000
    # No node waits for the lost one: its operations fail, the others keep their own.
    assert report.total.unsent < 400
    assert report.all_commands.ok > 2300
    assert sum(report.all_commands.failures.values()) > 400


@pytest.mark.parametrize("verify", [False, True])
def test_other_nodes_continue_when_one_node_of_a_cluster_hangs(
    valkey_cluster: ClusterGroup, worker: WorkerThread, verify: bool
) -> None:
    group = valkey_cluster
    victim, other = group.primaries[:2]
    pid = dict(zip(group.ports, group.pids, strict=True))[victim]
    keys = Keys(maximum=Count(20_000))
    worker.start_load(
        plan_of(group.url, connections=2, values=Values(verify=verify), keys=keys, socket_timeout_s=Seconds(0.5))
    )
    wait_for_growth(lambda: calls_of(group.at(victim)))
    os.kill(pid, signal.SIGSTOP)
    try:
        # Much more than the queues hold while the hanging node blocks drawing.
        wait_for_growth(lambda: calls_of(group.at(other)), 12_000)
    finally:
        os.kill(pid, signal.SIGCONT)
    report = stop_and_check(worker)
    assert set(report.all_commands.failures) <= {"TimeoutError", "handshake: TimeoutError", "ConnectionError"}
    assert "TimeoutError" in report.all_commands.failures
