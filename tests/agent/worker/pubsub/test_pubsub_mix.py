from __future__ import annotations

from typing import Any, cast

import pytest

from agent.worker.metrics.deliveries import DeliveryRecord, add_up
from agent.worker.pools.thread_pools import ClientInstance, ClientInstancePool
from agent.worker.pubsub.pubsub_mix import PubSubPool, Subscribers
from agent.worker.pubsub.thread_subscriber import Subscriber
from agent.worker.run import WorkerRun
from agent.worker.workload.values import MessageBody
from common.clock import monotonic_ns
from common.metrics.intervals import DeliveryMetrics, Merge, merge_intervals
from common.plan.schema import Command, Driver, Keys, Load, Plan, Pools, PubSub, Target, Workload
from common.pubsub_header import HEADER_BYTES, HeaderReader, HeaderWriter, MessageHeader
from common.units import NS_PER_S, Count, Seconds
from tests.support.plans import plan_for
from tests.support.runs import calls, connections, wait_until
from tests.support.servers import Server
from tests.support.workers import whole_of

LISTENING = [driver for driver in Driver if driver is not Driver.WIRE]
"""Drivers with subscribers. The plan refuses the wire driver: tests/common/plan/rules/test_wire_rules.py."""

BLANK = MessageBody(bytes(HEADER_BYTES) + b"padding")


class FakeInstance:
    """Records every call and returns 2."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.client = self

    def execute(self, *arguments: Any) -> int:
        self.calls.append(arguments)
        return 2


class FakeSubscriber:
    def subscribe(self, command: str, name: bytes) -> list[Any]:
        return [command.lower().encode(), name, 1]


@pytest.fixture
def instance() -> FakeInstance:
    return FakeInstance()


@pytest.fixture
def record() -> DeliveryRecord:
    return DeliveryRecord()


@pytest.fixture
def lent(instance: FakeInstance, record: DeliveryRecord) -> PubSubPool:
    pool = ClientInstancePool([cast(ClientInstance, instance)], 1.0)
    view = PubSubPool(pool, cast(Subscriber, FakeSubscriber()), HeaderWriter("run", "here", 7), record)
    taken, wait_ns = view.checkout()
    assert wait_ns == 0
    return taken


def test_a_published_message_has_a_header_and_counts_its_expected_receivers(
    lent: PubSubPool, instance: FakeInstance, record: DeliveryRecord
) -> None:
    for command in ("PUBLISH", "SPUBLISH"):
        assert lent.execute(command, b"channel", BLANK) == 2
    read = [HeaderReader("run", "here").read(message) for _, _, message in instance.calls]
    assert [(header.sender, header.number) for header in read if isinstance(header, MessageHeader)] == [(7, 1), (7, 2)]
    assert [(command, channel, len(message)) for command, channel, message in instance.calls] == [
        ("PUBLISH", b"channel", len(BLANK)),
        ("SPUBLISH", b"channel", len(BLANK)),
    ]
    assert add_up(record.take()) == DeliveryMetrics(expected=4)


def test_subscribe_goes_to_the_subscriber_and_other_commands_to_the_client_instance(
    lent: PubSubPool, instance: FakeInstance, record: DeliveryRecord
) -> None:
    assert lent.execute("SUBSCRIBE", b"channel") == [b"subscribe", b"channel", 1]
    assert lent.execute("SSUBSCRIBE", b"channel") == [b"ssubscribe", b"channel", 1]
    assert lent.execute("PUBLISH", b"channel", b"not ours") == lent.execute("GET", b"key") == 2
    assert instance.calls == [("PUBLISH", b"channel", b"not ours"), ("GET", b"key")]
    assert add_up(record.take()) == DeliveryMetrics()


def test_a_failed_publish_expects_no_receivers(
    lent: PubSubPool, instance: FakeInstance, record: DeliveryRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise ConnectionError("gone")

    monkeypatch.setattr(instance, "execute", fail)
    with pytest.raises(ConnectionError, match="gone"):
        lent.execute("PUBLISH", b"channel", BLANK)
    assert add_up(record.take()) == DeliveryMetrics()


def test_the_client_instance_returns_to_the_pool(instance: FakeInstance, record: DeliveryRecord) -> None:
    pool = ClientInstancePool([cast(ClientInstance, instance)], 0.01)
    view = PubSubPool(pool, cast(Subscriber, FakeSubscriber()), HeaderWriter("run", "here", 7), record)
    for _ in range(2):
        taken, _ = view.checkout()
        view.give_back(taken)


def test_a_mix_without_subscribers_uses_its_pools_directly(instance: FakeInstance, record: DeliveryRecord) -> None:
    pool = ClientInstancePool([cast(ClientInstance, instance)], 1.0)
    subscribers = Subscribers(plan_for(Target(url="redis://x"), "PUBLISH", "GET"), "run", pytest.fail)
    for driver in Driver:
        assert subscribers.pool_for(0, driver, pool, record) is pool
    assert not subscribers.is_alive


def test_subscriptions_are_spread_evenly_over_client_instances(record: DeliveryRecord) -> None:
    plan = plan_for(Target(url="redis://x"), "SUBSCRIBE")
    instances = [FakeInstance(), FakeInstance()]
    pool = ClientInstancePool([cast(ClientInstance, each) for each in instances], 1.0)
    subscribers = Subscribers(plan, "run", pytest.fail)
    views = [subscribers.pool_for(number, Driver.CLIENT, pool, record) for number in range(4, 8)]
    subscribers.close()
    taken = [view._subscriber._connections._client for view in views]
    assert taken == [instances[0], instances[1]] * 2
    assert plan.pools == (Pools(),)


def mix_of(driver: Driver, url: str, load: Load, grace_s: float = 1.0) -> Plan:
    return Plan(
        target=Target(url=url),
        pools=(Pools(driver=driver, threads_per_pool=3, tasks_per_pool=3, client_instances_per_pool=2),),
        workload=Workload(
            commands=(Command(command="PUBLISH __key__ __message__"), Command(command="SUBSCRIBE __key__")),
            keys=Keys(maximum=Count(20)),
            pubsub=PubSub(channels_per_thread=4, grace_s=Seconds(grace_s)),
        ),
        load=load,
    )


def listened(run: WorkerRun) -> float:
    """Seconds for which subscribers continued after the worker threads ended."""
    assert run.is_listening
    began_ns = monotonic_ns()

    def has_ended() -> bool:
        run.finish_listening(monotonic_ns())
        return not run.is_listening

    wait_until(has_ended, "the subscribers end", 10)
    assert run.crash == ""
    return (monotonic_ns() - began_ns) / NS_PER_S


@pytest.mark.parametrize("driver", LISTENING)
@pytest.mark.usefixtures("no_leaks")
def test_a_worker_process_delivers_every_message_and_counts_each_once(valkey: Server, driver: Driver) -> None:
    run = WorkerRun(whole_of(mix_of(driver, valkey.url, Load(requests=Count(5000)), grace_s=5)), "run")
    run.open(lambda *_: None)
    _, collector = run.start(monotonic_ns())
    wait_until(lambda: not run.is_alive, "the threads end")
    assert listened(run) < 5
    _, intervals = collector.collect_rest(0)
    [pool] = merge_intervals(intervals, Merge.CONSECUTIVE).pools.values()
    deliveries, counted = pool.deliveries, calls(valkey.client())
    assert deliveries.delivered == deliveries.expected == deliveries.latency.count > 0
    assert deliveries.foreign == deliveries.repeated == deliveries.resubscribed == deliveries.lost == 0
    assert {name: pool.commands[name.upper()].ok for name in ("publish", "subscribe")} == {
        name: counted[name] for name in ("publish", "subscribe")
    }
    run.close()
    wait_until(lambda: connections(valkey.client()) == 0, "all is closed", 5)


@pytest.mark.parametrize("driver", LISTENING)
@pytest.mark.usefixtures("no_leaks")
def test_a_paused_server_delays_the_end_by_the_grace_only(valkey: Server, driver: Driver) -> None:
    run = WorkerRun(whole_of(mix_of(driver, valkey.url, Load(requests=Count(200)), grace_s=0.3)), "run")
    run.open(lambda *_: None)
    run.start(monotonic_ns())
    wait_until(lambda: not run.is_alive, "the threads end")
    valkey.pause()
    assert 0.3 <= listened(run) < 2
    run.close()
    valkey.resume()
