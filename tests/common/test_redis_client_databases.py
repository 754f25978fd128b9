"""Numbered databases, on every shape of target; clusters have them since Valkey 9."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from common.errors import TargetError
from common.plan.schema import CleanUp, Keys, Plan, Target, Workload
from common.redis_client import ping_target
from coordinator.journal.records import Reading
from coordinator.servers.cleanup import DeletionProgress, delete_plan_keys
from coordinator.servers.commandstats import read_server_counts
from coordinator.servers.facts import probe
from coordinator.servers.setup_commands import flush
from tests.support.clients import quick_target
from tests.support.drivers import KEYS, WRITTEN, Reach, by_asyncio, by_client, by_coordinator, by_wire
from tests.support.servers import Server, closed_port
from tests.support.shapes import Group, start_cluster, start_standalone, tls_server

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Group]:
    with start_cluster(0, "--cluster-databases", "4") as group:
        yield group


def keys_in(cluster: Group, db: int) -> int:
    total = 0
    for node in cluster.nodes:
        with node.client(db=db) as client:
            total += client.dbsize()
    return total


@pytest.mark.parametrize("reach", [by_client, by_asyncio, by_wire])
def test_every_driver_and_the_coordinator_use_a_database_of_a_cluster(cluster: Group, reach: Reach) -> None:
    target = Target(url=f"{cluster.url}/3")
    assert flush(target) in (0, len(KEYS))
    assert reach(target) == WRITTEN
    assert (keys_in(cluster, 3), keys_in(cluster, 0)) == (len(KEYS), 0)
    assert by_coordinator(target) == WRITTEN
    assert probe(target).keys == read_server_counts(target, Reading.BEFORE).keys == len(KEYS)
    keys = Keys(prefix="key:", minimum=0, maximum=len(KEYS) - 1)
    workload = Workload(keys=keys, clean_up=CleanUp.KEYS)
    tally = DeletionProgress()
    delete_plan_keys(Plan(target=Target(url=f"{cluster.url}/2"), workload=workload), tally)
    assert (tally.deleted, keys_in(cluster, 3)) == (0, len(KEYS))
    assert flush(target) == len(KEYS)


def finding(target: Target) -> str:
    with pytest.raises(TargetError) as caught:
        ping_target(target)
    return str(caught.value)


def test_a_missing_database_is_refused_with_the_limit(cluster: Group, valkey: Server) -> None:
    for protocol in (2, 3):
        assert "has databases 0 to 3 only, and no 4" in finding(quick_target(f"{cluster.url}/4", protocol=protocol))
    assert "raise its setting `cluster-databases`" in finding(quick_target(f"{cluster.url}/4"))
    assert "has databases 0 to 15 only, and no 99" in finding(quick_target(f"{valkey.url}/99"))
    valkey.client().execute_command("ACL", "SETUSER", "default", "-config")
    assert "has fewer databases, and no 99" in finding(quick_target(f"{valkey.url}/99"))


def test_a_cluster_with_one_database_says_so() -> None:
    with start_standalone("--cluster-enabled", "yes", "--cluster-port", str(closed_port())) as group:
        group.nodes[0].ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        url = group.url.replace("redis:", "redis+cluster:")
        assert "has database 0 only, and no 1" in finding(Target(url=f"{url}/1"))


def test_a_cluster_before_valkey_9_says_so() -> None:
    options = ("--cluster-enabled", "yes", "--cluster-port", str(closed_port()))
    with start_standalone(*options, binary=tls_server()) as group:
        url = group.url.replace("redis:", "redis+cluster:")
        assert "has database 0 only, as clusters do before Valkey 9" in finding(Target(url=f"{url}/1"))
        with pytest.raises(TargetError, match="before Valkey 9"):
            by_asyncio(Target(url=f"{url}/1"))
        with pytest.raises(TargetError, match="before Valkey 9"):
            by_client(Target(url=f"{url}/1"))
