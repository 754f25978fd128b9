from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import redis

from agent.worker.metrics.connection_events import EventKind
from agent.worker.metrics.wire_sizes import reply_measure
from common.cancellation import CutShort
from common.pubsub_header import HEADER_BYTES, HeaderWriter
from tests.support.listening import DRIVERS, Listening
from tests.support.runs import calls, connections, wait_until
from tests.support.servers import Server, start_server

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(params=DRIVERS)
def listen(request: pytest.FixtureRequest) -> type[Listening]:
    """The subscriber of each driver."""
    return DRIVERS[request.param]


@pytest.fixture
def listening(listen: type[Listening], valkey: Server) -> Iterator[Listening]:
    listening = listen(valkey.url)
    yield listening
    listening.close()


def publisher(server: Server, name: bytes = b"a") -> Callable[[], int]:
    """A function that publishes one message of the run and returns the number of receivers."""
    writer, client = HeaderWriter("run", "here", 1), server.client()
    return lambda: client.execute_command("PUBLISH", name, writer.write(bytes(HEADER_BYTES), 1))


def test_a_subscription_ends_with_the_servers_confirmation(listening: Listening, valkey: Server) -> None:
    assert listening.subscribe(b"a", b"b") == [[b"subscribe", b"a", 1], [b"subscribe", b"b", 2]]
    assert sorted(valkey.client().pubsub_channels()) == [b"a", b"b"]


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_size_of_a_confirmation_is_exact(listening: Listening, protocol: int) -> None:
    measure = reply_measure("SUBSCRIBE", protocol, {})
    assert measure(listening.subscribe(b"a")[0]) == len(b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")


def test_a_new_channel_replaces_the_oldest(listening: Listening, valkey: Server) -> None:
    listening.subscribe(b"a", b"b", b"c", b"a", b"d")
    assert sorted(valkey.client().pubsub_channels()) == [b"a", b"c", b"d"]


def test_every_subscription_calls_the_server_even_for_a_subscribed_channel(
    listening: Listening, valkey: Server
) -> None:
    listening.subscribe(*[b"a"] * 5, b"b", b"a")
    assert calls(valkey.client())["subscribe"] == 7


def test_messages_are_read_as_soon_as_they_arrive(listening: Listening, valkey: Server) -> None:
    listening.subscribe(b"a")
    publish = publisher(valkey)
    assert publish() == 1
    wait_until(lambda: listening.metrics.delivered == 1, "the message", 5)
    valkey.client().publish("a", "not ours")
    wait_until(lambda: listening.metrics.foreign == 1, "the foreign one", 5)


def test_every_message_that_the_server_sent_is_read_before_the_end(
    listening: Listening, valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_held, arrivals = threading.Event(), listening.subscriber._subscriptions._deliveries
    arrived = arrivals.arrived

    def held(line: int, message: bytes, at_ns: int) -> None:
        is_held.wait(10)
        arrived(line, message, at_ns)

    monkeypatch.setattr(arrivals, "arrived", held)
    listening.subscribe(b"a", b"b")
    publish = publisher(valkey)
    handed_out = sum(publish() for _ in range(3000))
    listening.subscriber.finish()
    handed_out += sum(publish() for _ in range(100))  # it has not unsubscribed yet
    is_held.set()
    listening.ends()
    assert listening.metrics.delivered == handed_out == 3100
    assert connections(valkey.client()) == 0


def test_a_refused_channel_is_an_error_of_its_subscription_only(listening: Listening, valkey: Server) -> None:
    valkey.client().execute_command("ACL", "SETUSER", "default", "resetchannels", "&b*")
    with pytest.raises(redis.exceptions.NoPermissionError):
        listening.subscribe(b"a")
    assert listening.subscribe(b"b") == [[b"subscribe", b"b", 1]]


def test_a_disconnected_subscriber_comes_back_with_its_channels(listening: Listening, valkey: Server) -> None:
    control = valkey.client()
    listening.subscribe(b"a", b"b")
    assert control.client_kill_filter(_type="pubsub") == 1
    wait_until(lambda: len(control.pubsub_channels()) == 2, "its return", 5)
    assert publisher(valkey)() == 1
    wait_until(lambda: listening.metrics.delivered == 1, "the message", 5)
    assert listening.metrics.resubscribed == 1
    assert listening.events() == [EventKind.OPENED, EventKind.DROPPED, EventKind.OPENED, EventKind.RETRIED]


def test_a_subscription_without_a_confirmation_times_out(listen: type[Listening], valkey: Server) -> None:
    listening = listen(valkey.url, timeout_s=0.1)
    listening.subscribe(b"a")
    valkey.pause()
    with pytest.raises(TimeoutError, match="no confirmation of a subscription"):
        listening.subscribe(b"b")
    valkey.resume()
    wait_until(lambda: len(valkey.client().pubsub_channels()) == 2, "the late confirmation", 5)
    assert listening.subscribe(b"c") == [[b"subscribe", b"c", 3]]
    listening.close()


def test_a_dead_server_is_an_error_and_delays_nothing(listen: type[Listening], valkey: Server) -> None:
    listening = listen(valkey.url)
    listening.subscribe(b"a")
    valkey.kill()
    with pytest.raises(redis.ConnectionError):
        listening.subscribe(b"b")
    listening.subscriber.finish()
    listening.ends()
    listening.close()


def test_a_cut_ends_waiting_workers_and_refuses_new_subscriptions(listen: type[Listening], valkey: Server) -> None:
    listening = listen(valkey.url, timeout_s=None)
    listening.subscribe(b"a")
    valkey.pause()
    ended: list[type[Exception]] = []

    def wait() -> None:
        try:
            listening.subscribe(b"b")
        except CutShort as error:
            ended.append(type(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: listening.subscriber._subscriptions._pending is not None, "the thread waits", 5)
    listening.cancellation.cancel()
    listening.subscriber.cut()
    waiting.join(5)
    listening.ends()
    assert ended == [CutShort]
    with pytest.raises(CutShort):
        listening.subscribe(b"c")
    valkey.resume()
    listening.close()


def test_an_unused_subscriber_has_nothing_to_close(listen: type[Listening]) -> None:
    listening = listen("redis://127.0.0.1:1")
    listening.subscriber.finish()
    assert not listening.subscriber.is_alive
    listening.close()


def test_a_server_that_returns_after_all_retries_gets_its_subscriptions_again(
    listening: Listening, valkey: Server
) -> None:
    listening.subscribe(b"a")
    valkey.kill()
    wait_until(lambda: EventKind.ATTEMPT_FAILED in listening.events(), "the loss is noticed", 5)
    with pytest.raises(redis.ConnectionError):
        listening.subscribe(b"b")
    with start_server(port=valkey.port) as again:
        wait_until(lambda: again.client().pubsub_channels() == [b"a"], "its return", 5)
        assert listening.subscribe(b"c") == [[b"subscribe", b"c", 2]]
        listening.cancellation.cancel()
        listening.subscriber.cut()
        listening.ends()
