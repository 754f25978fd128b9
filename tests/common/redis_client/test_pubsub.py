"""Subscriptions of one connection; and the contract with redis-py's PubSub."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from agent.worker.metrics.connection_events import EventKind, EventLog
from common.cancellation import Cancellation, CutShort
from common.plan.schema import BackoffKind, Pools, Retry, Target
from common.redis_client import Client, build_client
from common.redis_client.pubsub import MESSAGE, Channel, Received, SubscribedConnections
from tests.support.clients import DURING_CONNECT
from tests.support.runs import calls, connections, wait_until
from tests.support.servers import Server

pytestmark = pytest.mark.usefixtures("no_leaks")

A: Channel = ("SUBSCRIBE", b"a")
B: Channel = ("SUBSCRIBE", b"b")
SHARDED: Channel = ("SSUBSCRIBE", b"a")

QUICK = Retry(retries=3, backoff=BackoffKind.NONE)


class Watched:
    """One line to a server, and what it went through."""

    def __init__(self, client: Client, log: EventLog) -> None:
        self.client, self.log = client, log
        self.replays: list[int] = []
        self.lines = SubscribedConnections(client, self.replays.append)
        self.line = self.lines.connection_for(A)

    def received(self, enough: Callable[[list[Received]], bool]) -> list[Received]:
        """All that comes until it is enough."""
        found: list[Received] = []

        def has_enough() -> bool:
            found.extend(self.line.receive(100))
            return enough(found)

        wait_until(has_enough, f"enough of {found}", 5)
        return found

    def events(self) -> list[EventKind]:
        return [kind for _, kind, *_ in self.log.take() if kind not in DURING_CONNECT]


@pytest.fixture(params=[2, 3])
def watched(valkey: Server, request: pytest.FixtureRequest) -> Iterator[Watched]:
    log = EventLog()
    target = Target(url=valkey.url, protocol=request.param, retry=QUICK)
    client = build_client(target, Pools(max_connections=2), events=log, cancellation=Cancellation())
    watched = Watched(client, log)
    yield watched
    watched.line.close()
    client.close()


def kinds(received: list[Received]) -> list[tuple[str, Channel]]:
    return [(kind, channel) for kind, channel, _ in received]


def test_confirmations_and_messages_arrive_in_the_servers_order(watched: Watched, valkey: Server) -> None:
    assert watched.line.fileno() == -1
    watched.line.subscribe(A)
    watched.line.subscribe(SHARDED)
    assert kinds(watched.received(lambda found: len(found) == 2)) == [("subscribe", A), ("ssubscribe", SHARDED)]
    publisher = valkey.client()
    assert publisher.publish("a", b"one") == 1
    assert publisher.execute_command("SPUBLISH", "a", b"two") == 1
    watched.line.unsubscribe(A)
    assert watched.received(lambda found: len(found) == 3) == [
        (MESSAGE, A, b"one"),
        (MESSAGE, SHARDED, b"two"),
        ("unsubscribe", A, 0),
    ]
    assert watched.line.is_subscribed


def test_a_connection_is_subscribed_until_the_server_confirms_the_end_of_all_channels(watched: Watched) -> None:
    for channel in (A, B, SHARDED):
        watched.line.subscribe(channel)
    watched.line.unsubscribe_all()
    assert watched.line.is_subscribed
    watched.received(lambda found: sum(kind.endswith("unsubscribe") for kind, _, _ in found) == 3)
    assert not watched.line.is_subscribed


def test_one_connection_of_the_tcp_pool_is_taken_and_returned_closed(watched: Watched, valkey: Server) -> None:
    assert connections(valkey.client()) == 0
    watched.line.subscribe(A)
    watched.line.subscribe(B)
    assert connections(valkey.client()) == 1
    watched.line.close()
    assert watched.events() == [EventKind.OPENED, EventKind.CLOSED]
    wait_until(lambda: connections(valkey.client()) == 0, "closed", 5)


def test_a_lost_connection_comes_back_with_all_its_channels(watched: Watched, valkey: Server) -> None:
    control = valkey.client()
    for channel in (A, B, SHARDED):
        watched.line.subscribe(channel)
    watched.received(lambda found: len(found) == 3)
    control.config_resetstat()
    assert control.client_kill_filter(_type="pubsub") == 1
    confirmed = watched.received(lambda found: len(found) == 3)
    assert set(kinds(confirmed)) == {("subscribe", A), ("subscribe", B), ("ssubscribe", SHARDED)}
    counted = calls(control)
    assert watched.replays == [2]
    assert (counted["subscribe"], counted["ssubscribe"]) == (1, 1)
    assert watched.events() == [EventKind.OPENED, EventKind.DROPPED, EventKind.OPENED, EventKind.RETRIED]
    assert control.publish("b", "again") == 1
    assert watched.received(lambda found: len(found) == 1) == [(MESSAGE, B, b"again")]


def test_a_channel_that_was_being_unsubscribed_does_not_come_back(watched: Watched, valkey: Server) -> None:
    control = valkey.client()
    watched.line.subscribe(A)
    watched.line.subscribe(B)
    watched.received(lambda found: len(found) == 2)
    assert control.client_kill_filter(_type="pubsub") == 1
    watched.line.unsubscribe(B)
    watched.received(lambda found: ("unsubscribe", B) in kinds(found))
    assert control.pubsub_channels() == [b"a"]


def test_a_channel_without_permission_is_refused_and_can_be_forgotten(watched: Watched, valkey: Server) -> None:
    control = valkey.client()
    control.execute_command("ACL", "SETUSER", "default", "resetchannels", "&b*")
    watched.line.subscribe(A)
    with pytest.raises(redis.exceptions.NoPermissionError):
        watched.received(lambda found: bool(found))
    watched.line.forget(A)
    watched.line.subscribe(B)
    assert kinds(watched.received(lambda found: bool(found))) == [("subscribe", B)]
    control.client_kill_filter(_type="pubsub")
    assert kinds(watched.received(lambda found: bool(found))) == [("subscribe", B)]


def test_a_message_that_arrives_in_many_pieces_is_one(watched: Watched, valkey: Server) -> None:
    watched.line.subscribe(A)
    watched.received(lambda found: len(found) == 1)
    large = bytes(range(256)) * 20_000
    assert valkey.client().publish("a", large) == 1
    assert watched.received(lambda found: len(found) == 1) == [(MESSAGE, A, large)]


def test_cancelling_ends_a_reconnect(valkey: Server) -> None:
    cancellation = Cancellation()
    client = build_client(Target(url=valkey.url), Pools(), events=EventLog(), cancellation=cancellation)
    watched = Watched(client, EventLog())
    watched.line.subscribe(A)
    watched.received(lambda found: len(found) == 1)
    cancellation.cancel()
    with pytest.raises(CutShort):
        watched.received(lambda _: False)
    watched.line.close()
    client.close()
