"""Sharded publishers and subscribers, against a real cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from redis.cluster import key_slot

from agent.worker.metrics.connection_events import EventKind
from agent.worker.run import WorkerRun
from common.clock import monotonic_ns
from common.metrics.intervals import Merge, merge_intervals
from common.plan.schema import Command, Driver, Keys, Load, Plan, Pools, PubSub, Retry, Target, Workload
from common.redis_client import TARGET_ERRORS
from common.units import Count
from tests.support.listening import DRIVERS, Listening
from tests.support.runs import wait_until
from tests.support.shapes import Group, ServerNode, start_cluster
from tests.support.workers import whole_of


# The plan refuses subscribers with the wire driver: tests/common/plan/rules/test_wire_rules.py.
@pytest.mark.parametrize("driver", [Driver.CLIENT, Driver.ASYNCIO])
def test_a_worker_process_delivers_every_message_through_any_node(cluster: Group, driver: Driver) -> None:
    before = {name: cluster.calls(name) for name in ("spublish", "ssubscribe")}
    plan = Plan(
        target=Target(url=cluster.url),
        pools=(Pools(driver=driver, threads_per_pool=3, tasks_per_pool=3, client_instances_per_pool=2),),
        workload=Workload(
            commands=(Command(command="SPUBLISH __key__ __message__"), Command(command="SSUBSCRIBE __key__")),
            keys=Keys(maximum=Count(20)),
            pubsub=PubSub(channels_per_thread=6),
        ),
        load=Load(requests=Count(3000)),
    )
    whole = whole_of(plan)
    run = WorkerRun(whole, "run")
    run.open(lambda *_: None)
    _, collector = run.start(monotonic_ns())
    wait_until(lambda: not run.is_alive, "the threads end")

    def has_ended() -> bool:
        run.finish_listening(monotonic_ns())
        return not run.is_listening

    wait_until(has_ended, "the subscribers end", 10)
    run.close()
    assert run.crash == ""
    _, intervals = collector.collect_rest(0)
    [pool] = merge_intervals(intervals, Merge.CONSECUTIVE).pools.values()
    deliveries = pool.deliveries
    assert deliveries.delivered == deliveries.expected == deliveries.latency.count > 0
    assert deliveries.foreign == deliveries.repeated == deliveries.resubscribed == 0
    assert {name: pool.commands[name.upper()].ok for name in before} == {
        name: cluster.calls(name) - calls for name, calls in before.items()
    }


@pytest.fixture(params=DRIVERS)
def listen(request: pytest.FixtureRequest) -> Callable[[Group], Listening]:
    """Creates the subscriber of each driver."""
    return lambda cluster: DRIVERS[request.param](cluster.url, most=5, retry=Retry())


@pytest.fixture
def listening(cluster: Group, listen: Callable[[Group], Listening]) -> Iterator[Listening]:
    listening = listen(cluster)
    yield listening
    listening.close()


def channels(node: ServerNode) -> list[str]:
    found: list[str] = node.ask("PUBSUB", "SHARDCHANNELS")
    return sorted(found)


def test_each_channel_is_subscribed_at_the_node_of_its_slot(cluster: Group, listening: Listening) -> None:
    names = ["a", "b", "c", "d"]
    for name in names:
        [[word, channel, _]] = listening.subscribe(name.encode())
        assert (word, channel) == (b"ssubscribe", name.encode())
    assert sorted(name for node in cluster.nodes for name in channels(node)) == names
    assert max(len(channels(node)) for node in cluster.nodes) < 4
    listening.subscribe(b"e", b"f")
    wait_until(
        lambda: sorted(name for node in cluster.nodes for name in channels(node)) == ["b", "c", "d", "e", "f"],
        "the oldest is given up",
        5,
    )
    assert [listening.publish(name.encode()) for name in "abcdef"] == [0, 1, 1, 1, 1, 1]
    wait_until(lambda: listening.metrics.delivered == 5, "all messages", 5)


def test_the_next_subscription_finds_a_channel_whose_slot_moved(cluster: Group, listening: Listening) -> None:
    slot = key_slot(b"a")
    ids = {node.port: node.ask("CLUSTER", "MYID") for node in cluster.nodes}
    rows = cluster.nodes[0].ask("CLUSTER", "SLOTS")
    port = next(row[2][1] for row in rows if row[0] <= slot <= row[1])
    owner = next(node for node in cluster.nodes if node.port == port)
    other = next(node for node in cluster.nodes if node.port != port)
    listening.subscribe(b"a")
    try:
        for node in (other, owner, *cluster.nodes):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[other.port])
        wait_until(lambda: not channels(owner), "the old owner drops the channel", 5)
        listening.subscribe(b"a")
        assert channels(other) == ["a"]
        assert listening.events().count(EventKind.REDIRECTED) == 1
        assert listening.publish(b"a") == 1
        wait_until(lambda: listening.metrics.delivered == 1, "the message", 5)
    finally:
        for node in (owner, other, *cluster.nodes):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", ids[owner.port])


def test_a_disconnected_subscriber_subscribes_again_slot_by_slot(cluster: Group, listening: Listening) -> None:
    listening.subscribe(b"a", b"b", b"c", b"d", b"e")
    node = max(cluster.nodes, key=lambda node: len(channels(node)))
    held = channels(node)
    assert len(held) > 1
    node.ask("CLIENT", "KILL", "TYPE", "pubsub")
    wait_until(lambda: listening.metrics.resubscribed == len(held), "all are subscribed again", 5)
    wait_until(lambda: channels(node) == held, "all are back", 5)


def test_channels_of_a_dead_node_move_to_its_replica(
    listen: Callable[[Group], Listening],
) -> None:
    with start_cluster(replicas=1) as cluster:
        listening = listen(cluster)
        names = [b"a", b"b", b"c", b"d", b"e"]
        listening.subscribe(*names)
        dying = max(cluster.nodes[:3], key=lambda node: len(channels(node)))
        alive = [node for node in cluster.nodes if node is not dying]
        dying.kill()

        def all_are_there() -> bool:
            with suppress(*TARGET_ERRORS):
                for name in names:
                    listening.publish(name)  # a redirection tells the client of the new topology
            return sorted(name for node in alive for name in channels(node)) == ["a", "b", "c", "d", "e"]

        wait_until(all_are_there, "all channels are subscribed", 30)
        before = listening.metrics
        assert before.resubscribed >= 1
        assert sum(listening.publish(name) for name in names) == 5
        wait_until(lambda: listening.metrics.delivered >= before.delivered + 5, "their messages", 5)
        listening.close()
