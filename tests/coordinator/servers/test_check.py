from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import pytest

from common.plan.schema import (
    CleanUp,
    Command,
    Driver,
    Fleet,
    Keys,
    Plan,
    Pools,
    Preload,
    Scenario,
    Script,
    Target,
    Then,
    Values,
    Workload,
)
from common.plan.schema.target import Tls, Verify
from common.units import Bytes, Count
from coordinator.core.dealt_plan import assign
from coordinator.plan_view import expected_agents
from coordinator.servers import check as checking
from coordinator.servers.check import CheckLine, CheckReport, check, check_files, check_scenarios
from tests.support.groups import ClusterGroup, SentinelGroup
from tests.support.plans import plan_for
from tests.support.runs import wait_until
from tests.support.servers import Server, closed_port
from tests.support.shapes import Group
from tests.support.shapes import start_cluster as start_shape

SMALL = Keys(maximum=Count(1000))
TlsServers = Callable[..., Group]
NAMES = ["reachable", "server", "topology", "commands", "memory", "connections", "permissions", "clock"]


def line(report: CheckReport, name: str) -> CheckLine:
    [found] = [line for line in report.lines if line.name == name]
    return found


@pytest.mark.usefixtures("no_leaks")
def test_a_suitable_target_is_ok_in_every_line(valkey: Server) -> None:
    report = check(plan_for(Target(url=valkey.url), "SET", "GET", "DEL", transaction=5, keys=SMALL), 300)
    assert [line.name for line in report.lines] == NAMES
    assert report.ok, report
    assert line(report, "server").text.startswith("valkey 9.")
    assert line(report, "permissions").text == "we may call DEL, GET, SET"
    assert "could not" not in str(report)


def test_a_check_writes_nothing_to_the_target(valkey: Server) -> None:
    check(plan_for(Target(url=valkey.url), "SET", "GET", "DEL", transaction=5), 1)
    calls = valkey.client(decode_responses=True).info("commandstats")
    assert not {"cmdstat_set", "cmdstat_del", "cmdstat_multi"} & calls.keys()
    assert valkey.client().dbsize() == 0


@pytest.mark.parametrize(("ceiling", "ok"), [(49, True), (50, False)])
def test_more_connections_than_maxclients_allows_are_not_ok(valkey: Server, ceiling: int, ok: bool) -> None:
    others = [valkey.client() for _ in range(2)]
    for other in others:
        other.ping()
    others[0].config_set("maxclients", 51)
    found = line(check(plan_for(Target(url=valkey.url)), ceiling), "connections")
    assert (found.ok, "49 of 51 free" in found.text) == (ok, True)
    assert ok or "raise maxclients" in found.text


def test_the_connections_of_all_scenarios_on_a_target_must_be_allowed_together(valkey: Server) -> None:
    valkey.client().config_set("maxclients", 100)
    alone = plan_for(Target(url=valkey.url))
    half = Pools(client_pools=Count(1), client_instances_per_pool=Count(1), max_connections=Count(60))
    scenarios = tuple(Scenario(name=name, pools=(half,), workload=alone.workload) for name in ("a", "b"))
    dealt = assign(msgspec.structs.replace(alone, scenarios=scenarios), expected_agents(alone, 1))
    found = [each for each in check_scenarios(dealt) if each.name == "connections"]
    assert [(each.scenario, each.ok, each.text.partition(",")[0]) for each in found] == [
        ("a", False, "up to 120 wanted"),
        ("b", False, "up to 120 wanted"),
    ]


@pytest.mark.parametrize(("command", "ok"), [("SET", False), ("GETSET __key__ __data__", False), ("GET", True)])
def test_a_plan_that_writes_to_a_read_only_replica_is_not_ok(valkey: Server, command: str, ok: bool) -> None:
    port = closed_port()
    valkey.client().replicaof("127.0.0.1", port)
    found = line(check(plan_for(Target(url=valkey.url), command), 1), "topology")
    assert found.ok == ok
    assert ok or f"({command.split()[0]}): use its primary, 127.0.0.1:{port}" in found.text


def test_a_writable_replica_is_ok(valkey: Server) -> None:
    valkey.client().config_set("replica-read-only", "no")
    valkey.client().replicaof("127.0.0.1", closed_port())
    assert line(check(plan_for(Target(url=valkey.url), "SET"), 1), "topology") == CheckLine("topology", True, "replica")


def test_a_suitable_cluster_is_ok_in_every_line(shared_cluster: ClusterGroup) -> None:
    report = check(plan_for(Target(url=shared_cluster.url), "SET", "GET", transaction=5, keys=SMALL), 300)
    assert [line.name for line in report.lines] == [*NAMES[:3], "slots", *NAMES[3:]]
    assert report.ok, report
    assert line(report, "topology").text == "cluster, 3 primaries, 3 replicas, 16,384 of 16,384 slots served"
    assert "by each node" in line(report, "connections").text
    assert "could not" not in str(report)


def test_a_listed_replica_belongs_to_the_topology_and_must_be_one(
    shared_sentinel: SentinelGroup, valkey: Server
) -> None:
    url, replica = f"redis://127.0.0.1:{shared_sentinel.primary}", f"127.0.0.1:{shared_sentinel.replica}"
    report = check(plan_for(Target(url=url, replicas=(replica,)), "SET", "GET", keys=SMALL), 300)
    assert report.ok, report
    assert line(report, "topology").text == "standalone, 1 replica"
    other = f"127.0.0.1:{valkey.port}"
    found = line(check(plan_for(Target(url=url, replicas=(other,)), "GET"), 300), "topology")
    assert (found.ok, found.text) == (False, f"{other} is no replica: take it out of --replicas")


def test_a_suitable_sentinel_target_is_ok_in_every_line(shared_sentinel: SentinelGroup) -> None:
    report = check(plan_for(Target(url=shared_sentinel.url), "SET", "GET", keys=SMALL), 300)
    assert [line.name for line in report.lines] == NAMES
    assert report.ok, report
    assert line(report, "topology").text == "sentinel, 1 primary, 1 replica"


def test_a_node_that_is_down_is_named_and_the_others_are_checked() -> None:
    with start_shape() as cluster:
        down = cluster.nodes[-1]
        down.kill()
        report = check(plan_for(Target(url=cluster.url), "SET", "GET", keys=SMALL), 300)
    found = line(report, "nodes")
    assert not report.ok
    assert found.text.startswith("1 of 6 cannot be reached: target 127.0.0.1:")
    assert f":{down.port}, as the cluster announces it, refused the connection: is it up?" in found.text
    assert {"memory", "connections", "permissions", "clock"} <= {each.name for each in report.lines if each.ok}


def test_the_node_with_the_lowest_limits_is_named(shared_cluster: ClusterGroup) -> None:
    port = shared_cluster.ports[1]
    node = shared_cluster.at(port)
    node.config_set("maxclients", 60)
    node.config_set("maxmemory", "16mb")
    try:
        report = check(plan_for(Target(url=shared_cluster.url), "SET", keys=Keys(maximum=Count(3_000_000))), 100)
    finally:
        node.config_set("maxclients", 10000)
        node.config_set("maxmemory", 0)
    assert not line(report, "connections").ok
    assert f"of 60 free at 127.0.0.1:{port}: raise maxclients" in line(report, "connections").text
    assert not line(report, "memory").ok
    assert line(report, "memory").text.startswith(f"127.0.0.1:{port}: ")
    assert "1,000,000 keys of" in line(report, "memory").text


def test_a_command_that_one_node_forbids_is_found(shared_cluster: ClusterGroup) -> None:
    for port in shared_cluster.ports:
        commands = ["+@all"] if port != shared_cluster.primaries[1] else ["+@all", "-del"]
        shared_cluster.at(port).acl_setuser("bob", enabled=True, passwords=["+word"], commands=commands, keys=["*"])
    target = Target(url=shared_cluster.url, username="bob", password="word")
    found = line(check(plan_for(target, "GET", "DEL", keys=SMALL), 1), "permissions")
    assert not found.ok
    assert "DEL: User bob has no permissions to run the 'del' command" in found.text


def test_a_cluster_with_a_replica_that_lost_its_primary_is_not_ok(valkey_cluster: ClusterGroup) -> None:
    replica = valkey_cluster.replicas[0]
    valkey_cluster.at(replica).config_set("masterauth", "wrong")
    valkey_cluster.at(replica).config_set("masteruser", "nobody")
    [primary] = [node.primary for node in valkey_cluster.nodes if node.port == replica]
    assert primary is not None
    valkey_cluster.at(primary).client_kill_filter(_type="replica")
    wait_until(lambda: not valkey_cluster.follows(replica), "the loss of its link")
    found = line(check(plan_for(Target(url=valkey_cluster.url), "GET"), 1), "topology")
    assert not found.ok
    assert f"replica 127.0.0.1:{replica} has lost its primary" in found.text


def test_unserved_slots_are_counted(valkey_cluster: ClusterGroup) -> None:
    primary = valkey_cluster.primaries[0]
    for port in valkey_cluster.ports:
        valkey_cluster.at(port).config_set("cluster-require-full-coverage", "no")
    valkey_cluster.at(primary).execute_command("CLUSTER DELSLOTSRANGE", 0, 9)
    found = line(check(plan_for(Target(url=valkey_cluster.url), "GET"), 1), "topology")
    assert not found.ok
    assert "10 slots have no node" in found.text


@pytest.mark.parametrize(
    ("policy", "command", "keys", "ok"),
    [
        ("noeviction", "SET", 1_000_000, False),
        ("volatile-lru", "SET", 1_000_000, False),
        ("allkeys-lru", "SET", 1_000_000, True),
        ("noeviction", "GET", 1_000_000, True),
        ("noeviction", "SET", 100, True),
    ],
)
def test_a_data_set_beyond_maxmemory_needs_an_eviction_policy(
    valkey: Server, policy: str, command: str, keys: int, ok: bool
) -> None:
    valkey.client().config_set("maxmemory", "16mb", "maxmemory-policy", policy)
    values = Values(minimum_bytes=Bytes(20), maximum_bytes=Bytes(44))
    plan = plan_for(Target(url=valkey.url), command, keys=Keys(maximum=Count(keys)), values=values)
    found = line(check(plan, 1), "memory")
    assert found.ok == ok
    assert f"of 16.0 MiB, {policy}" in found.text
    assert ok or "1,000,000 keys of 32 bytes need more than 30.5 MiB" in found.text


def test_a_command_that_the_acl_forbids_is_named_with_its_reason(valkey: Server) -> None:
    commands = ["+get", "+set", "+ping", "+acl|dryrun", "+info", "+multi"]
    valkey.client().acl_setuser("bob", enabled=True, passwords=["+word"], commands=commands, keys=["stampede:*"])
    target = Target(url=valkey.url, username="bob", password="word", client_name=None)
    fine = line(check(plan_for(target, "GET", "SET", keys=SMALL), 1), "permissions")
    assert fine == CheckLine("permissions", True, "we may call GET, SET")
    found = line(check(plan_for(target, "GET", "DEL", transaction=2, keys=SMALL), 1), "permissions")
    assert not found.ok
    assert "DEL: User bob has no permissions to run the 'del' command" in found.text
    assert "EXEC: User bob has no permissions to run the 'exec' command" in found.text
    assert "MULTI" not in found.text
    assert "GET" not in found.text


def test_a_key_that_the_acl_forbids_is_found_by_its_prefix(valkey: Server) -> None:
    valkey.client().acl_setuser("bob", enabled=True, passwords=["+word"], categories=["+@all"], keys=["stampede:*"])
    commands = (Command(command="SET"), Command(command="GET", key_prefix="other:"))
    plan = Plan(
        target=Target(url=valkey.url, username="bob", password="word", client_name=None),
        workload=Workload(commands=commands, keys=SMALL),
    )
    found = line(check(plan, 1), "permissions")
    assert "GET: User bob has no permissions to access the 'other:1' key" in found.text
    assert "SET:" not in found.text


def test_a_command_that_the_server_refuses_is_found(valkey: Server) -> None:
    report = check(plan_for(Target(url=valkey.url), "XGROUP CREAT __key__ g 0"), 1)
    found = line(report, "commands")
    assert not found.ok
    assert "did you mean CREATE?" in found.text
    assert line(report, "permissions").text == "could not be verified: the server does not know all commands"


def test_commands_that_follow_a_reply_are_checked_with_their_arguments(valkey: Server) -> None:
    valkey.client().acl_setuser(
        "bob", enabled=True, passwords=["+word"], commands=["+get", "+ping", "+acl|dryrun", "+info"], keys=["a*"]
    )
    then = (Then(command="SET"), Then(command="HSET x__key__ f:__rand(1,9)__ __data__"))
    plan = Plan(
        target=Target(url=valkey.url, username="bob", password="word", client_name=None),
        workload=Workload(commands=(Command(command="GET", key_prefix="a", then=then),)),
    )
    found = line(check(plan, 1), "permissions").text
    assert "GET:" not in found
    assert "SET: User bob has no permissions to run the 'set' command" in found
    assert "HSET: User bob has no permissions to run the 'hset' command" in found


def test_a_command_of_weight_zero_is_not_checked(valkey: Server) -> None:
    commands = (Command(command="GET"), Command(command="NOSUCH __key__", weight=0))
    report = check(Plan(target=Target(url=valkey.url), workload=Workload(commands=commands)), 1)
    assert line(report, "permissions").text == "we may call GET"


def test_facts_that_the_user_may_not_query_are_not_verified(valkey: Server) -> None:
    valkey.client().acl_setuser("narrow", enabled=True, passwords=["+word"], commands=["+ping", "+get"], keys=["*"])
    report = check(plan_for(Target(url=valkey.url, username="narrow", password="word", client_name=None), "GET"), 1)
    assert report.ok
    unverified = {line.name for line in report.lines if "could not be verified" in line.text}
    assert unverified == {"memory", "connections", "permissions", "clock"}


@pytest.mark.parametrize(("ahead_s", "ok"), [(0.0, True), (60.0, False), (-60.0, False)])
def test_a_wrong_clock_is_found(valkey: Server, monkeypatch: pytest.MonkeyPatch, ahead_s: float, ok: bool) -> None:
    monkeypatch.setattr(checking.time, "time", lambda now=time.time: now() - ahead_s)
    found = line(check(plan_for(Target(url=valkey.url)), 1), "clock")
    assert found.ok == ok
    assert ok or ("ahead of" if ahead_s > 0 else "behind") in found.text


@pytest.mark.parametrize(("ahead_s", "ok"), [(0.0, True), (86_400.0 * 1.5, False)])
def test_the_tls_line_has_the_version_and_the_expiry_of_the_certificate(
    certificates: dict[str, str], tls_server_with: TlsServers, monkeypatch: pytest.MonkeyPatch, ahead_s: float, ok: bool
) -> None:
    plan = plan_for(Target(url=tls_server_with().url, tls=Tls(ca_file=certificates["ca"])), "GET", keys=SMALL)
    monkeypatch.setattr(checking.time, "time", lambda now=time.time: now() + ahead_s)
    found = line(check(plan, 1), "tls")
    assert found.ok == ok
    assert found.text.startswith("TLSv1.3, ")
    assert ("valid for 2 days" in found.text, "expires within a day: renew it" in found.text) == (ok, not ok)


def test_an_unverified_certificate_is_named_as_such(tls_server_with: TlsServers) -> None:
    target = Target(url=tls_server_with("expired").url, tls=Tls(verify=Verify.NONE))
    found = line(check(plan_for(target, "GET"), 1), "tls")
    assert found.ok
    assert found.text.endswith("certificate not verified (target.tls.verify is none)")


def test_commands_before_and_after_the_load_are_checked_too(valkey: Server) -> None:
    commands = ["+get", "+ping", "+acl|dryrun", "+info"]
    valkey.client().acl_setuser("bob", enabled=True, passwords=["+word"], commands=commands, keys=["*"])
    plan = Plan(
        target=Target(url=valkey.url, username="bob", password="word", client_name=None),
        workload=Workload(
            commands=(Command(command="GET"),),
            keys=SMALL,
            scripts=(Script(name="one", lua="return 1"),),
            setup=("XGROUP CREATE __key__ g 0 MKSTREAM",),
            preload=(Preload(command="SET"),),
            flush_before=True,
            clean_up=CleanUp.KEYS,
        ),
    )
    found = line(check(plan, 1), "permissions").text
    refused = ["FLUSHDB", "SCAN", "SCRIPT", "SET", "UNLINK", "XGROUP"]
    assert [name for name in ("GET", *refused) if f"{name}: User" in found] == refused


@pytest.mark.parametrize(
    ("limit", "pools", "ok", "text"),
    [
        (None, Pools(), True, "may open any number of files (`ulimit -n`), and needs 1 connection"),
        (1000, Pools(driver=Driver.WIRE), True, "may open 1,000 files (`ulimit -n`), and needs 50 connections"),
        (100, Pools(driver=Driver.WIRE), False, "may open 100 files (`ulimit -n`), but needs 50 connections: raise"),
        (
            100,
            Pools(client_instances_per_pool=50, threads_per_pool=50),
            True,  # calls may not need them
            "may open 100 files (`ulimit -n`), but needs 50 connections: raise `ulimit -n`",
        ),
    ],
)
def test_worker_processes_of_this_machine_must_be_allowed_to_open_their_connections(
    limit: int | None, pools: Pools, ok: bool, text: str
) -> None:
    plan = Plan(target=Target(url="redis://127.0.0.1:1"), pools=(pools,))
    agents = expected_agents(plan, 1)
    [found] = check_files(assign(plan, agents), agents, limit)
    assert (found.name, found.ok) == ("open files", ok)
    assert text in found.text


def test_open_files_of_other_machines_are_not_checked() -> None:
    plan = Plan(target=Target(url="redis://127.0.0.1:1"), fleet=Fleet(expect_agents=2))
    agents = expected_agents(plan, 1)
    assert check_files(assign(plan, agents), agents, 10) == []
