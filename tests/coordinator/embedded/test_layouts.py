from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis
from redis.crc import key_slot

from common.errors import TargetError
from common.plan.schema import Embedded
from coordinator.embedded import EmbeddedServer, open_embedded, servers
from coordinator.embedded.layouts import SERVICE
from tests.support.groups import ClusterGroup, SentinelGroup, used
from tests.support.runs import wait_until

GROUPS = [Embedded.CLUSTER, Embedded.SENTINEL]
STARTS_SERVERS_AND_WAITS = """
import sys
from common.plan.schema import Embedded
from coordinator.embedded import open_embedded
with open_embedded(Embedded(sys.argv[1])) as servers:
    print(*servers.pids, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def embedded_cluster() -> Iterator[ClusterGroup]:
    with open_embedded(Embedded.CLUSTER) as started, used(ClusterGroup(started)) as cluster:
        yield cluster


@pytest.fixture
def embedded_sentinel() -> Iterator[SentinelGroup]:
    with open_embedded(Embedded.SENTINEL) as started, used(SentinelGroup(started)) as group:
        yield group


@pytest.mark.usefixtures("no_leaks")
def test_a_cluster_has_three_primaries_with_a_replica_each_and_serves_all_slots() -> None:
    with open_embedded(Embedded.CLUSTER) as started, used(ClusterGroup(started)) as cluster:
        nodes = cluster.nodes
        assert len(nodes) == 6
        assert sorted(slot for node in nodes for served in node.slots for slot in served) == list(range(16384))
        primaries = [node.port for node in nodes if node.primary is None]
        assert sorted(node.primary for node in nodes if node.primary) == sorted(primaries)
        assert len(primaries) == 3
        assert cluster.url == "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)
        client = cluster.client()
        assert all(client.set(f"key {number}", number) for number in range(100))
        assert sum(cluster.at(port).dbsize() for port in primaries) == 100


@pytest.mark.usefixtures("no_leaks")
def test_sentinels_know_the_primary_its_replica_and_each_other() -> None:
    with open_embedded(Embedded.SENTINEL) as started, used(SentinelGroup(started)) as group:
        places = ",".join(f"127.0.0.1:{port}" for port in group.sentinels)
        assert group.url == f"redis+sentinel://{places}/{SERVICE}"
        for port in group.sentinels:
            assert group.at(port).sentinel_master(SERVICE)["num-other-sentinels"] == 2
            [replica] = group.at(port).sentinel_slaves(SERVICE)
            assert (replica["port"], replica["is_sdown"]) == (group.replica, False)
        assert group.client().set("a", 1)
        assert group.at(group.primary).wait(1, 500) == 1


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.usefixtures("no_leaks")
def test_stop_ends_every_process_and_is_idempotent(kind: Embedded) -> None:
    group = open_embedded(kind)
    pids = group.pids
    assert len(pids) == len(group.ports) == len(set(group.ports))
    group.stop()
    group.stop()
    assert group.pids == ()
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.usefixtures("no_leaks")
def test_running_servers_have_no_files(kind: Embedded) -> None:
    with open_embedded(kind):
        assert list(Path(tempfile.gettempdir()).iterdir()) == []


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can end a process with its parent")
@pytest.mark.usefixtures("no_leaks")
def test_all_servers_end_with_a_killed_parent(kind: Embedded) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTS_SERVERS_AND_WAITS, kind.value], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        assert parent.stdout is not None
        started = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.send_signal(signal.SIGKILL)
    assert started
    _, alive = psutil.wait_procs(started, timeout=5.0)
    assert not alive


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.usefixtures("no_leaks")
def test_an_interrupt_during_the_setup_leaves_nothing_behind(kind: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_self: EmbeddedServer) -> None:
        assert list(Path(tempfile.gettempdir()).iterdir()) == []  # so a SIGKILL leaves nothing behind either
        raise KeyboardInterrupt

    monkeypatch.setattr(EmbeddedServer, "_connect", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_embedded(kind)


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.usefixtures("no_leaks")
def test_servers_that_are_not_ready_in_time_raise_an_error_with_the_reason(
    kind: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "CONNECTED_WITHIN_S", 0.0)
    with pytest.raises(
        TargetError, match=r"^embedded server: not ready after 0s: (node|replica|Sentinel|a server) .*; try again$"
    ):
        open_embedded(kind)


def test_a_cluster_does_not_use_a_port_that_another_process_has_taken(
    shared_cluster: ClusterGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, free_ports = shared_cluster.ports[0], servers._free_ports
    attempts = iter((lambda ports: [*ports[:-1], taken], lambda ports: ports))
    monkeypatch.setattr(servers, "_free_ports", lambda count: next(attempts)(free_ports(count)))
    with open_embedded(Embedded.CLUSTER) as started, used(ClusterGroup(started)) as cluster:
        assert taken not in cluster.ports
        assert len(cluster.nodes) == 6
    assert len(shared_cluster.nodes) == 6


def test_a_replica_takes_over_by_command_and_when_its_primary_dies(embedded_cluster: ClusterGroup) -> None:
    client = embedded_cluster.client()
    client.set("a", 1)
    old, new = embedded_cluster.failover(embedded_cluster.owner(key_slot(b"a")))
    assert embedded_cluster.owner(key_slot(b"a")) == new
    assert embedded_cluster.replica_of(new) == old
    embedded_cluster.kill(new)
    wait_until(lambda: old in embedded_cluster.primaries, "the second failover")
    assert embedded_cluster.at(old).get("a") == "1"


def test_a_slot_migrates_with_its_keys_and_redirects_meanwhile(embedded_cluster: ClusterGroup) -> None:
    slot = key_slot(b"a")
    embedded_cluster.client().set("a", 1)
    source = embedded_cluster.owner(slot)
    to = next(port for port in embedded_cluster.primaries if port != source)
    with embedded_cluster.migrating(slot, to), pytest.raises(redis.exceptions.AskError):
        embedded_cluster.at(source).get("a")
    assert embedded_cluster.at(source).get("a") == "1"
    embedded_cluster.move_slot(slot, to)
    with pytest.raises(redis.exceptions.MovedError):
        embedded_cluster.at(source).get("a")
    assert embedded_cluster.at(to).get("a") == "1"


def test_sentinels_fail_over_by_command_and_when_the_primary_dies(embedded_sentinel: SentinelGroup) -> None:
    embedded_sentinel.client().set("a", 1)
    old, new = embedded_sentinel.failover()
    assert embedded_sentinel.primary == new
    assert embedded_sentinel.at(new).get("a") == "1"
    wait_until(lambda: embedded_sentinel.follows(old), "the old primary's return")
    embedded_sentinel.kill(new)
    wait_until(lambda: embedded_sentinel.primary == old, "the second failover", 30.0)
    assert embedded_sentinel.at(old).get("a") == "1"
