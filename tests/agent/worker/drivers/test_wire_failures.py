"""The wire driver against real servers that are killed, hang, move, refuse and return: all is counted, and once.

In each of these, the operations of the load are those that the worker issued, and each ended in one way.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from common.clock import monotonic_ns
from common.plan.schema import Command, Driver, Fleet, Keys, Load, Plan, Pools, Retry, Target, Values, Workload
from common.protocol.messages import Prepared, WorkerFinal, WorkerMetrics
from common.units import NS_PER_S, Bytes, Count, PerSecond, Seconds
from tests.support.groups import ClusterGroup, SentinelGroup
from tests.support.runs import wait_until
from tests.support.servers import Server, start_server
from tests.support.workers import Reported, WorkerThread

pytestmark = pytest.mark.usefixtures("no_leaks")


FOR_EVER = Load(duration_s=Seconds(3600))


def plan_of(url: str, load: Load = FOR_EVER, connections: int = 5, **told: Any) -> Plan:
    """SET and GET; what is told goes to the section that has a field of that name."""
    told = {"retry": Retry(retries=0), "connect_timeout_s": Seconds(2), "keys": Keys(maximum=Count(1000)), **told}
    told.setdefault("commands", (Command(command="SET"), Command(command="GET")))

    def section(kind: type[Any], **given: Any) -> Any:
        mine = {name: told.pop(name) for name in list(told) if name in kind.__struct_fields__}
        return kind(**given, **mine)

    plan = Plan(
        target=section(Target, url=url),
        pools=(section(Pools, driver=Driver.WIRE, max_connections=connections),),
        load=load,
        workload=section(Workload),
        fleet=section(Fleet),
    )
    assert not told
    return plan


def of(requests: int) -> Load:
    return Load(requests=Count(requests))


def calls_of(told: Any) -> int:
    stats = told.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("set", "get"))


def grows(count: Callable[[], int], by: int = 200) -> None:
    """Until a count has grown by so many."""
    before = count()
    wait_until(lambda: count() >= before + by, "the load goes on")


def stopped(worker: WorkerThread) -> Reported:
    worker.stop()
    reported = worker.reported()
    assert worker.end() == 0
    reported.adds_up()
    return reported


# One server


def test_killed_connections_are_reopened_and_lose_only_operations_in_flight(
    valkey: Server, worker: WorkerThread
) -> None:
    told = valkey.client()
    worker.began(plan_of(valkey.url))
    for _ in range(5):
        grows(lambda: calls_of(told))
        victim = next(row["id"] for row in told.client_list() if row["name"] == "stampede")
        told.client_kill_filter(_id=victim)
        wait_until(lambda: sum(row["name"] == "stampede" for row in told.client_list()) == 5, "it is made anew")
    grows(lambda: calls_of(told))
    reported = stopped(worker)
    connections = reported.pool.connections
    assert connections.drops == {"closed by server": 5}
    assert (connections.opened, connections.reconnects, connections.failed_attempts) == (10, 5, 0)
    assert sum(reported.all_commands.failures.values()) <= 5
    assert set(reported.all_commands.failures) <= {"ConnectionError"}
    assert reported.all_commands.ok <= calls_of(told) <= reported.all_commands.operations


@pytest.mark.parametrize("batch", [{}, {"pipeline": 7}, {"transaction": 3}], ids=str)
def test_a_restarted_server_is_loaded_again(valkey: Server, worker: WorkerThread, batch: dict[str, int]) -> None:
    told = valkey.client()
    worker.began(plan_of(valkey.url, **batch))
    grows(lambda: calls_of(told))
    valkey.kill()
    with start_server(port=valkey.port) as again:
        new = again.client()
        grows(lambda: calls_of(new), 500)
        wait_until(lambda: sum(row["name"] == "stampede" for row in new.client_list()) == 5, "all are back")
        reported = stopped(worker)
    connections = reported.pool.connections
    assert sum(connections.drops.values()) == connections.reconnects == 5
    assert connections.opened == 10
    assert set(reported.all_commands.failures) <= {"ConnectionError", "handshake: ConnectionError"}


def test_a_run_by_requests_ends_although_the_server_is_gone(valkey: Server, worker: WorkerThread) -> None:
    told = valkey.client()
    worker.began(plan_of(valkey.url, Load(requests=Count(600), rate_per_s=PerSecond(300)), 10))
    grows(lambda: calls_of(told), 50)
    valkey.kill()
    reported = worker.reported()
    reported.adds_up()
    commands = reported.all_commands
    assert commands.failures == {"ConnectionError": 600 - commands.ok}
    assert 50 <= commands.ok < 600


def test_a_run_by_requests_ends_with_failures_alone(valkey: Server, worker: WorkerThread) -> None:
    worker.prepare(plan_of(valkey.url, of(300), 10))
    worker.hear(Prepared)
    valkey.kill()
    worker.start()
    reported = worker.reported()
    reported.adds_up()
    assert reported.all_commands.failures == {"ConnectionError": 300}
    assert reported.all_commands.ok == 0


def test_a_run_by_rate_continues_over_a_restart_of_the_server(valkey: Server, worker: WorkerThread) -> None:
    told = valkey.client()
    load = Load(duration_s=Seconds(2), rate_per_s=PerSecond(1000))
    worker.began(plan_of(valkey.url, load))
    grows(lambda: calls_of(told), 100)
    valkey.kill()
    with start_server(port=valkey.port):
        reported = worker.reported()
    reported.adds_up()
    assert reported.final.issued + reported.total.unsent == 2000
    assert reported.all_commands.failures["ConnectionError"] > 0


def test_a_paused_server_times_out_and_is_loaded_again_when_it_resumes(valkey: Server, worker: WorkerThread) -> None:
    told = valkey.client()
    worker.began(plan_of(valkey.url, socket_timeout_s=Seconds(0.3), connections=3))
    grows(lambda: calls_of(told))
    valkey.pause()
    heard: list[Any] = []
    while "TimeoutError" not in str(heard):
        heard.append(worker.hear(WorkerMetrics))
    valkey.resume()
    grows(lambda: calls_of(told), 500)
    worker.stop()
    heard += worker.all_until(WorkerFinal)
    reported = Reported(heard, heard[-1])
    reported.adds_up()
    failures = reported.all_commands.failures
    assert set(failures) <= {"TimeoutError", "handshake: TimeoutError"}
    assert reported.pool.connections.drops == {"timeout": failures["TimeoutError"]}


@pytest.mark.parametrize("batch", [{}, {"pipeline": 5}], ids=str)
def test_a_paused_server_delays_the_end_by_the_drain_only(
    valkey: Server, worker: WorkerThread, batch: dict[str, int]
) -> None:
    told = valkey.client()
    load = Load(duration_s=Seconds(1))
    began_ns = worker.began(plan_of(valkey.url, load, drain_s=Seconds(0.3), socket_timeout_s=Seconds(60), **batch))
    grows(lambda: calls_of(told))
    valkey.pause()
    reported = worker.reported()
    assert monotonic_ns() - began_ns < 5 * NS_PER_S
    valkey.resume()
    reported.adds_up()
    # Those connections that stood had a whole batch under way each.
    size = sum(batch.values()) or 1
    assert reported.all_commands.failures in [{"CutShort": size * standing} for standing in range(1, 6)]


def test_connections_beyond_maxclients_are_retried_while_others_carry_the_load(
    valkey: Server, worker: WorkerThread
) -> None:
    told = valkey.client()
    told.config_set("maxclients", 8)
    worker.began(plan_of(valkey.url, connections=20))
    grows(lambda: calls_of(told), 1000)
    told.config_set("maxclients", 100)
    wait_until(lambda: sum(row["name"] == "stampede" for row in told.client_list()) == 20, "all stand")
    reported = stopped(worker)
    assert reported.all_commands.error_count == 0
    connections = reported.pool.connections
    assert connections.failed_by_cause == {"maxclients": connections.failed_attempts}
    assert (connections.wanted, connections.never_opened) == (20, {})
    assert reported.all_commands.ok == calls_of(told)


def test_connections_that_maxclients_never_admits_are_reported(valkey: Server, worker: WorkerThread) -> None:
    told = valkey.client()
    told.config_set("maxclients", 8)
    worker.began(plan_of(valkey.url, connections=20))
    grows(lambda: calls_of(told), 1000)
    connections = stopped(worker).pool.connections
    # One of the eight asks, one was to read the topology.
    assert 6 <= connections.open_peak <= 7
    assert sum(connections.never_opened.values()) == 20 - connections.open_peak
    assert connections.never_opened.keys() == {"maxclients"}


def test_a_thousand_connections_carry_load(valkey: Server, worker: WorkerThread) -> None:
    told = valkey.client()
    worker.prepare(plan_of(valkey.url, of(20_000), 500, client_instances_per_pool=2))
    worker.hear(Prepared)
    worker.start()
    reported = worker.reported()
    reported.adds_up()
    assert reported.all_commands.ok == calls_of(told) == 20_000
    wait_until(lambda: len(told.client_list()) == 1, "none is left open")


@pytest.mark.parametrize("verify", [False, True])
def test_pipelines_larger_than_the_socket_buffer_arrive_whole(
    valkey: Server, worker: WorkerThread, verify: bool
) -> None:
    told = valkey.client()
    values = Values(minimum_bytes=Bytes(10_000), maximum_bytes=Bytes(10_000), verify=verify)
    reported = worker.ran(
        plan_of(valkey.url, of(20_000), 4, values=values, pipeline=500, keys=Keys(maximum=Count(200)))
    )
    assert reported.all_commands.ok == calls_of(told) == 20_000
    assert reported.pool.connections.drops == {}


def test_password_database_and_resp2_work_with_the_wire_driver(
    valkey_with_password: Server, worker: WorkerThread
) -> None:
    server = valkey_with_password
    plan = plan_of(f"{server.url}/5", of(1000), password=server.password, protocol=2)
    reported = worker.ran(plan)
    assert reported.all_commands.ok == 1000
    assert server.client(db=5).dbsize() > 0
    assert server.client(db=0).dbsize() == 0


# Sentinels, clusters


def test_the_load_follows_a_sentinel_failover(valkey_sentinel: SentinelGroup, worker: WorkerThread) -> None:
    group = valkey_sentinel
    worker.began(plan_of(group.url, retry=Retry(retries=3)))
    old = group.primary
    grows(lambda: calls_of(group.at(old)))
    _, new = group.failover()
    grows(lambda: calls_of(group.at(new)), 1000)
    reported = stopped(worker)
    assert set(reported.all_commands.errors) <= {"READONLY"}
    assert reported.pool.connections.reconnects >= 5


def test_slots_that_move_under_load_lose_no_operation(shared_cluster: ClusterGroup, worker: WorkerThread) -> None:
    group = shared_cluster
    source, to = group.primaries[:2]
    slots = [slot for node in group.nodes if node.port == source for served in node.slots for slot in served][:12]
    before = sum(calls_of(group.at(port)) for port in group.primaries)
    worker.began(plan_of(group.url, connections=2, pipeline=3, keys=Keys(maximum=Count(20_000))))
    grows(lambda: calls_of(group.at(source)))
    for slot in slots:
        group.move_slot(slot, to)
        grows(lambda: calls_of(group.at(source)), 50)
    for slot in slots[:4]:
        group.move_slot(slot, source)
    for slot in slots[4:]:
        with group.migrating(slot, source):
            grows(lambda: calls_of(group.at(to)), 50)
        group.move_slot(slot, source)
    reported = stopped(worker)
    commands, connections = reported.all_commands, reported.pool.connections
    # While keys are on their way, of some it cannot be said where they are.
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
    worker.began(plan_of(group.url, connections=3, keys=Keys(maximum=Count(20_000))))
    grows(lambda: calls_of(group.at(victim)))
    group.kill(victim)
    grows(lambda: calls_of(group.at(other)), 3000)
    wait_until(lambda: group.role(heir) == "master", "the replica takes over", 30)
    grows(lambda: calls_of(group.at(heir)), 1000)
    reported = stopped(worker)
    commands = reported.all_commands
    assert commands.ok > 0
    assert {"ConnectionError"} <= set(commands.failures) <= {"ConnectionError", "handshake: ConnectionError"}
    assert set(commands.errors) <= {"CLUSTERDOWN"}


def test_commands_whose_keys_the_server_must_name_survive_the_loss_of_all_nodes(
    valkey_cluster: ClusterGroup, worker: WorkerThread
) -> None:
    group = valkey_cluster
    commands = (Command(command="ZUNION 1 __key__"),)
    worker.began(plan_of(group.url, connections=2, values=Values(verify=True), commands=commands))
    grows(lambda: sum(group.calls("zunion", port) for port in group.primaries))
    for port in group.ports:
        group.kill(port)
    reported = stopped(worker)
    assert set(reported.all_commands.failures) <= {"ConnectionError", "handshake: ConnectionError"}


@pytest.mark.parametrize("verify", [False, True])
def test_all_nodes_are_loaded_again_after_a_failover_and_a_failback(
    valkey_cluster: ClusterGroup, worker: WorkerThread, verify: bool
) -> None:
    group = valkey_cluster
    worker.began(plan_of(group.url, connections=2, values=Values(verify=verify), keys=Keys(maximum=Count(20_000))))
    first = group.primaries[0]
    grows(lambda: calls_of(group.at(first)))
    _, second = group.failover(first)
    grows(lambda: calls_of(group.at(second)), 1000)
    group.failover(second)
    grows(lambda: calls_of(group.at(first)), 1000)
    reported = stopped(worker)
    assert reported.all_commands.ok > 0
    assert set(reported.all_commands.failures) <= {"ConnectionError"}


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("pipeline", [1, 4])
def test_other_nodes_keep_their_rate_when_a_cluster_loses_a_node(
    valkey_cluster: ClusterGroup, worker: WorkerThread, verify: bool, pipeline: int
) -> None:
    group = valkey_cluster
    victim = group.primaries[0]
    load = Load(duration_s=Seconds(4), rate_per_s=PerSecond(1000))
    keys = Keys(maximum=Count(20_000))
    worker.began(plan_of(group.url, load, 2, values=Values(verify=verify), keys=keys, pipeline=pipeline), in_s=0.2)
    grows(lambda: calls_of(group.at(victim)), 50)
    group.kill(victim)
    reported = worker.reported()
    reported.adds_up()
    assert reported.final.issued + reported.total.unsent == 4000
    # Nobody waits for the one that is down: what is due there fails, and the others have what is theirs.
    assert reported.total.unsent < 400
    assert reported.all_commands.ok > 2300
    assert sum(reported.all_commands.failures.values()) > 400


@pytest.mark.parametrize("verify", [False, True])
def test_other_nodes_continue_when_one_node_of_a_cluster_hangs(
    valkey_cluster: ClusterGroup, worker: WorkerThread, verify: bool
) -> None:
    group = valkey_cluster
    victim, other = group.primaries[:2]
    pid = dict(zip(group.ports, group.pids, strict=True))[victim]
    keys = Keys(maximum=Count(20_000))
    worker.began(
        plan_of(group.url, connections=2, values=Values(verify=verify), keys=keys, socket_timeout_s=Seconds(0.5))
    )
    grows(lambda: calls_of(group.at(victim)))
    os.kill(pid, signal.SIGSTOP)
    try:
        # Much more than lies ready for each while the one is waited for.
        grows(lambda: calls_of(group.at(other)), 12_000)
    finally:
        os.kill(pid, signal.SIGCONT)
    reported = stopped(worker)
    assert set(reported.all_commands.failures) <= {"TimeoutError", "handshake: TimeoutError", "ConnectionError"}
    assert "TimeoutError" in reported.all_commands.failures
