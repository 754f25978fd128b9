from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import msgspec
import pytest
import redis

from common.clock import monotonic_ns
from common.plan.schema import Target
from common.redis_client import nodes_of
from common.units import NS_PER_S, SecondsOrOff
from coordinator.journal.records import NodeDescribed, NodeSampled, NodeSilent, Reading
from coordinator.servers.node_watch import ServerRecord
from coordinator.servers.sampler import ServerSampler
from tests.support.groups import ClusterGroup, SentinelGroup
from tests.support.runs import wait_until
from tests.support.servers import Server, SocketServer, start_server
from tests.support.shapes import Group

EVERY_S = 0.05


class Watched:
    """A sampler of a target, and all its records so far."""

    def __init__(self, sampler: ServerSampler) -> None:
        self.sampler = sampler
        self.records: list[ServerRecord] = []

    def take(self) -> list[ServerRecord]:
        self.records += self.sampler.take()
        return self.records

    def samples(self, name: str = "") -> list[NodeSampled]:
        return [each for each in self.take() if isinstance(each, NodeSampled) and name in ("", each.node)]

    def silences(self) -> list[NodeSilent]:
        return [each for each in self.take() if isinstance(each, NodeSilent)]

    def described(self, when: Reading) -> list[NodeDescribed]:
        return [each for each in self.take() if isinstance(each, NodeDescribed) and each.when is when]

    def until(self, condition: Callable[[], object], what: str) -> None:
        wait_until(condition, what)


@contextlib.contextmanager
def watching(url: str, every_s: float = EVERY_S, *, describes: bool = True, **settings: object) -> Iterator[Watched]:
    target = Target(url=url, server_stats_s=SecondsOrOff(every_s), **settings)  # type: ignore[arg-type]
    with ServerSampler(target) as sampler:
        if describes:
            sampler.describe()
        sampler.start(monotonic_ns())
        yield Watched(sampler)


def test_servers_of_every_shape_are_watched(shape: tuple[Group, Target]) -> None:
    _, target = shape
    every = msgspec.structs.replace(target, server_stats_s=SecondsOrOff(EVERY_S))
    names = {node.name for node in nodes_of(target)}
    with ServerSampler(every) as sampler:
        watched = Watched(sampler)
        sampler.describe()
        sampler.start(monotonic_ns())
        watched.until(lambda: {each.node for each in watched.samples()} == names, "a sample of each")
        sampler.finish()
    assert {each.node for each in watched.described(Reading.BEFORE)} == names
    assert {each.node for each in watched.described(Reading.AFTER)} == names
    assert watched.silences() == []
    assert {each.sample.replica for each in watched.samples()} <= {False, True}


@pytest.mark.usefixtures("no_leaks")
def test_a_server_is_described_sampled_and_described_again(valkey: Server) -> None:
    with watching(valkey.url) as watched:
        watched.until(lambda: len(watched.samples()) >= 5, "five samples")
        watched.sampler.finish()
    kinds = [type(each).__name__ for each in watched.take()]
    assert (kinds[0], kinds[-1]) == ("NodeDescribed", "NodeDescribed")
    assert set(kinds[1:-1]) == {"NodeSampled"}
    assert [each.when for each in watched.take() if isinstance(each, NodeDescribed)] == [Reading.BEFORE, Reading.AFTER]
    apart_s = (watched.samples()[-1].at_ns - watched.samples()[0].at_ns) / NS_PER_S / (len(watched.samples()) - 1)
    assert 0.8 * EVERY_S < apart_s < 3 * EVERY_S


def test_no_server_is_asked_if_that_is_off(valkey: Server) -> None:
    client = valkey.client()
    before = client.info("commandstats")["cmdstat_info"]["calls"]
    with watching(valkey.url, 0.0) as watched:
        watched.sampler.finish()
    assert watched.take() == []
    assert client.info("commandstats")["cmdstat_info"]["calls"] == before + 1


def test_all_servers_that_sentinels_know_are_watched(shared_sentinel: SentinelGroup) -> None:
    names = {f"127.0.0.1:{port}" for port in (shared_sentinel.primary, shared_sentinel.replica)}
    with watching(shared_sentinel.url) as watched:
        watched.until(lambda: {each.node for each in watched.samples()} == names, "samples of both")
    roles = {each.node: each.sample.replica for each in watched.samples()}
    assert roles == {
        f"127.0.0.1:{shared_sentinel.primary}": False,
        f"127.0.0.1:{shared_sentinel.replica}": True,
    }
    primary = f"127.0.0.1:{shared_sentinel.primary}"
    assert all(each.sample.lag_s in (0, 1, 2) for each in watched.samples(primary))


def test_a_server_that_hangs_delays_neither_the_others_nor_the_end(
    valkey_cluster: ClusterGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.servers.sampler.DESCRIBE_S", 0.5)
    victim = valkey_cluster.replicas[0]
    pid = dict(zip(valkey_cluster.ports, valkey_cluster.pids, strict=True))[victim]
    with watching(valkey_cluster.url) as watched:
        watched.until(lambda: len(watched.samples(f"127.0.0.1:{victim}")) >= 2, "samples of all")
        os.kill(pid, signal.SIGSTOP)
        try:
            before = Counter(each.node for each in watched.samples())
            others = [f"127.0.0.1:{port}" for port in valkey_cluster.ports if port != victim]
            watched.until(
                lambda: all(len(watched.samples(name)) >= before[name] + 5 for name in others), "five more of each"
            )
            began_ns = monotonic_ns()
            watched.sampler.finish()
            assert (monotonic_ns() - began_ns) / NS_PER_S < 5
        finally:
            os.kill(pid, signal.SIGCONT)
    assert {each.node for each in watched.described(Reading.AFTER)} == set(others)
    [silent] = watched.silences()
    assert (silent.node, silent.reason, silent.own) == (f"127.0.0.1:{victim}", "gave no answer in time", {"info": 1})


def test_a_server_that_was_away_is_sampled_again() -> None:
    with start_server() as server, watching(server.url) as watched:
        watched.until(watched.samples, "a sample")
        server.kill()
        watched.until(watched.silences, "a silence")
        count = len(watched.samples())
        with start_server(port=server.port):
            watched.until(lambda: len(watched.samples()) > count, "a sample of its successor")
    [silent, *_] = watched.silences()
    assert silent.node == f"127.0.0.1:{server.port}"
    assert not silent.for_good


def test_a_failover_changes_roles(valkey_cluster: ClusterGroup) -> None:
    with watching(valkey_cluster.url) as watched:
        watched.until(lambda: len({each.node for each in watched.samples()}) == 6, "all six")
        old, new = valkey_cluster.failover()
        watched.until(lambda: watched.samples(f"127.0.0.1:{new}")[-1].sample.replica is False, "the new primary")
        watched.until(lambda: watched.samples(f"127.0.0.1:{old}")[-1].sample.replica is True, "the old one")


def test_a_node_that_nobody_knew_at_the_start_is_found(
    shared_cluster: ClusterGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    from coordinator.servers import sampler as module

    all_nodes, hidden = module.nodes_of, f"127.0.0.1:{shared_cluster.replicas[0]}"
    seen: list[bool] = []

    def nodes_of(*arguments: object) -> object:
        found = all_nodes(*arguments)  # type: ignore[arg-type]
        seen.append(True)
        return found if len(seen) > 1 else tuple(node for node in found if node.name != hidden)

    monkeypatch.setattr(module, "nodes_of", nodes_of)
    with watching(shared_cluster.url) as watched:
        watched.until(lambda: len({each.node for each in watched.samples()}) == 5, "five servers")
        shared_cluster.at(shared_cluster.primaries[0]).execute_command("CLUSTER BUMPEPOCH")
        watched.until(lambda: watched.samples(hidden), "the sixth")
    assert [each.node for each in watched.described(Reading.BEFORE)][-1] == hidden


def test_a_target_that_nothing_is_known_of_is_looked_for_at_intervals(
    refusing_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = threading.Semaphore(0)

    def nodes_of(*_: object) -> object:
        looks.release()
        raise redis.ConnectionError("refused")

    monkeypatch.setattr("coordinator.servers.sampler.nodes_of", nodes_of)
    monkeypatch.setattr("coordinator.servers.sampler.LOOK_PAUSE_S", 0.2)
    began_ns = monotonic_ns()
    with watching(refusing_url, describes=False) as watched:
        for _ in range(4):
            assert looks.acquire(timeout=10)
    assert (monotonic_ns() - began_ns) / NS_PER_S >= 0.6
    assert watched.take() == []


def test_a_server_that_refuses_info_is_asked_once(valkey: Server) -> None:
    valkey.client().acl_setuser("narrow", enabled=True, passwords=["+word"], commands=["+@all", "-info"], keys=["*"])
    with watching(valkey.url, username="narrow", password="word") as watched:
        watched.until(watched.silences, "its refusal")
        watched.sampler.finish()
    [silent] = watched.silences()
    assert silent.for_good
    assert silent.reason.startswith("answered INFO with NOPERM")
    assert watched.samples() == []
    [after] = watched.described(Reading.AFTER)
    assert {"INFO", "INFO commandstats"} <= {unread.what for unread in after.unread}
    assert "maxmemory" in after.config


@pytest.mark.usefixtures("no_leaks")
def test_a_target_that_says_nothing_delays_the_run_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.servers.sampler.DESCRIBE_S", 0.2)
    began_ns = monotonic_ns()
    with SocketServer() as server:
        for scheme in ("redis", "redis+cluster", "redis+sentinel"):
            url = f"{scheme}://127.0.0.1:{server.port}" + ("/name" if "sentinel" in scheme else "")
            with watching(url) as watched:
                watched.sampler.finish()
            assert {each.reason for each in watched.silences()} <= {"gave no answer in time"}
    assert (monotonic_ns() - began_ns) / NS_PER_S < 10


@pytest.mark.parametrize(
    "reply", [b"+OK\r\n", b":1\r\n", b"*0\r\n", b"$-1\r\n", b"-ERR no\r\n", b"HTTP/1.1 400 Bad\r\n\r\n"]
)
def test_a_server_that_answers_nonsense_is_watched_without_an_error(reply: bytes) -> None:
    with SocketServer(reply=reply) as server, watching(f"redis://127.0.0.1:{server.port}", protocol=2) as watched:
        watched.until(watched.take, "a record")
        watched.sampler.finish()
    assert all(each.node for each in watched.take())


def test_a_bug_costs_the_samples_and_is_named(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("coordinator.servers.node_watch.sample_of", broken)
    with watching(valkey.url, describes=False) as watched:
        watched.until(watched.silences, "the bug")
        watched.sampler.finish()
    [silent] = watched.silences()
    assert silent.for_good
    assert "ZeroDivisionError" in silent.reason


def test_a_resumed_run_says_what_the_coordinator_before_may_have_asked(valkey: Server) -> None:
    name = f"127.0.0.1:{valkey.port}"
    target = Target(url=valkey.url, server_stats_s=SecondsOrOff(EVERY_S))
    with ServerSampler(target) as sampler:
        watched = Watched(sampler)
        sampler.start(monotonic_ns() - 10 * NS_PER_S, [name])
        watched.until(watched.samples, "a sample")
        sampler.finish()
    [silent] = watched.silences()
    assert (silent.reason, silent.own["info"]) == ("was watched by a coordinator that was killed", 4)
    assert [each.when for each in watched.take() if isinstance(each, NodeDescribed)] == [Reading.AFTER]


def test_at_most_a_fixed_number_of_servers_is_watched(
    shared_cluster: ClusterGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.servers.sampler.MOST_NODES", 4)
    with watching(shared_cluster.url) as watched:
        watched.until(lambda: len({each.node for each in watched.samples()}) == 4, "four servers")
        assert sum(thread.name.startswith("server 127") for thread in threading.enumerate()) == 4
    [silent] = [silent for silent in watched.silences() if not silent.node]
    assert (silent.for_good, silent.reason) == (True, "the target has more than 4 servers: the others are not watched")
