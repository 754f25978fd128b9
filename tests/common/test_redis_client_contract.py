"""The contract with redis-py, for threads and for asyncio: which of its hooks are called, how often, and when."""

from __future__ import annotations

import asyncio
import copy
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry as RedisRetry

from common.cancellation import Cancellation, CutShort
from common.clock import monotonic_ns
from common.plan.schema import BackoffKind, Keepalive, Pools, Retry, Target
from common.redis_client import TARGET_ERRORS, build_client, failure_of, open_control_client
from common.redis_client.async_clients import async_tcp_pools, build_async_client, close_async_client
from common.redis_client.clients import tcp_pools
from common.units import NS_PER_S, Seconds
from tests.support.clients import QUICK, Events, NoFiles, quick_client, quick_target
from tests.support.servers import Server, SocketServer

pytestmark = pytest.mark.usefixtures("no_leaks")


class Client:
    """A client for threads, its events and its cancellation. It opens at most two connections."""

    def __init__(self, url: str, retry: Retry | None = None, **settings: Any) -> None:
        self.events, self.cancellation = Events(), Cancellation()
        self.target = quick_target(url, retry=retry or Retry(retries=0, backoff=BackoffKind.NONE), **settings)
        self._build()

    def _build(self) -> None:
        self._client: Any = build_client(
            self.target, Pools(max_connections=2), events=self.events, cancellation=self.cancellation
        )

    def call(self, *arguments: Any) -> Any:
        """The reply to a command."""
        return self._wait(self._client.execute_command(*arguments))

    def connections(self) -> list[Any]:
        """Both connections, open. They go back to the pool."""
        [pool] = self._pools()
        opened = [self._wait(pool.get_connection()) for _ in range(2)]
        for connection in opened:
            self._wait(pool.release(connection))
        return opened

    def _pools(self) -> list[Any]:
        return list(tcp_pools(self._client))

    def _wait(self, result: Any) -> Any:
        return result

    def close(self) -> None:
        self._client.close()


class AsyncClient(Client):
    """The same for asyncio, on a loop of its own. Made without a running loop, as a worker process makes it."""

    def _build(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = build_async_client(
            self.target, Pools(max_connections=2), events=self.events, cancellation=self.cancellation
        )

    def _pools(self) -> list[Any]:
        return async_tcp_pools(self._client)

    def _wait(self, result: Any) -> Any:
        return self._loop.run_until_complete(result)

    def close(self) -> None:
        if not self._loop.is_closed():
            self._wait(close_async_client(self._client))
            self._wait(close_async_client(self._client))
            self._loop.close()
            gc.collect()  # an open connection would warn


Make = Callable[..., Client]


@pytest.fixture(params=[Client, AsyncClient], ids=["threads", "asyncio"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    with ExitStack() as stack:

        def make(*arguments: Any, **settings: Any) -> Client:
            client: Client = request.param(*arguments, **settings)
            stack.callback(client.close)
            return client

        yield make


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_connect_is_reported_once_after_its_handshake_and_a_close_once(
    make: Make, valkey: Server, protocol: int
) -> None:
    client = make(valkey.url, protocol=protocol)
    assert client.events.seen == []
    for _ in range(3):
        assert client.call("PING") is True
    assert client.events.seen == [("opened", None)]
    [listed] = [row for row in valkey.client().client_list() if row["name"] == "stampede"]
    assert listed["resp"] == str(protocol)
    assert listed["lib-name"].startswith("redis-py")
    client.close()
    client.close()
    assert client.events.kinds == {"opened": 1, "closed": 1}


def test_a_client_that_was_never_used_has_nothing_to_close(make: Make, refusing_url: str) -> None:
    client = make(refusing_url)
    client.close()
    assert client.events.seen == []


def test_an_idle_connection_that_the_server_closed_is_a_drop_and_a_reconnect(make: Make, valkey: Server) -> None:
    client = make(valkey.url)
    client.call("PING")
    valkey.client().client_kill_filter(_type="normal", skipme=True)
    while not client.events["dropped"]:
        # It may notice before or after it has sent something.
        with suppress(redis.ConnectionError):
            client.call("PING")
    client.call("PING")
    assert client.events["dropped"] == ["closed by server"]
    first, second = client.events["opened"]
    assert first is None
    assert 0 < second < 5 * NS_PER_S


def test_a_missing_reply_is_one_drop_by_timeout(make: Make, valkey: Server) -> None:
    client = make(valkey.url)
    with pytest.raises(redis.TimeoutError):
        client.call("BLPOP", "nothing", 0)
    assert client.events["dropped"] == ["timeout"]
    client.call("PING")
    assert client.events.kinds == {"opened": 2, "dropped": 1}


def test_each_retry_of_a_command_is_counted_once(make: Make, valkey: Server) -> None:
    client = make(valkey.url, Retry(retries=2, backoff=BackoffKind.NONE))
    with pytest.raises(redis.TimeoutError):
        client.call("BLPOP", "nothing", 0)
    assert client.events.kinds == {"opened": 3, "dropped": 3, "retried": 2}


def test_each_failed_attempt_and_each_retry_of_a_connect_is_counted_once(make: Make, refusing_url: str) -> None:
    client = make(refusing_url, Retry(retries=3, backoff=BackoffKind.NONE))
    with pytest.raises(redis.ConnectionError):
        client.call("PING")
    assert client.events.kinds == {"attempt failed": 4, "retried": 3}
    assert client.events["attempt failed"] == ["refused"] * 4
    assert (client.events.made, client.events.tries) == (1, [1] * 4)


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_refused_handshake_is_a_failed_attempt_and_not_a_reply(
    make: Make, valkey_with_password: Server, protocol: int
) -> None:
    client = make(valkey_with_password.url, protocol=protocol)
    with pytest.raises(redis.AuthenticationError) as raised:
        client.call("GET", "key")
    failure = failure_of(raised.value)
    assert (failure.replied, failure.bytes_in) == (False, 0)
    assert failure.name.startswith("handshake: ")
    assert client.events.seen == [("attempt failed", "authentication")]


def test_a_handshake_that_hangs_is_a_failed_attempt_and_not_a_drop(make: Make, silent_server: SocketServer) -> None:
    client = make(silent_server.url)
    with pytest.raises(redis.TimeoutError):
        client.call("PING")
    assert client.events.seen == [("attempt failed", "timeout")]


def test_a_server_with_too_many_clients_is_a_cause_of_its_own(make: Make, valkey: Server) -> None:
    admin = valkey.client()
    admin.ping()
    admin.config_set("maxclients", 1)
    client = make(valkey.url)
    with pytest.raises(redis.ConnectionError) as raised:
        client.call("PING")
    assert failure_of(raised.value).name == "handshake: maxclients"
    assert client.events.seen == [("attempt failed", "maxclients")]


def test_the_limit_of_open_files_is_a_cause_of_its_own(make: Make, refusing_url: str, no_files_left: NoFiles) -> None:
    client = make(refusing_url)
    with no_files_left(), pytest.raises(redis.ConnectionError):
        client.call("PING")
    assert client.events.seen == [("attempt failed", "ulimit -n")]


@pytest.mark.parametrize("backoff", BackoffKind)
def test_each_connection_has_the_plans_retry_policy_with_a_state_of_its_own(
    make: Make, valkey: Server, backoff: BackoffKind
) -> None:
    first, second = make(valkey.url, Retry(retries=7, backoff=backoff)).connections()
    assert first.retry.get_retries() == second.retry.get_retries() == 7
    assert first.retry._backoff.inner is not second.retry._backoff.inner
    assert first.retry._backoff._events is second.retry._backoff._events


def test_keepalive_health_check_and_name_are_those_of_the_plan(make: Make, valkey: Server) -> None:
    settings: dict[str, Any] = {"keepalive": Keepalive(enabled=False), "health_check_interval_s": Seconds(12)}
    connection, _ = make(valkey.url, client_name="someone", **settings).connections()
    assert (connection.socket_keepalive, connection.health_check_interval) == (False, 12.0)
    assert "someone" in [row["name"] for row in valkey.client().client_list()]


def test_maintenance_notifications_are_off_and_cost_no_round_trip(make: Make, valkey: Server) -> None:
    make(valkey.url).call("PING")
    assert not any("maint" in name for name in valkey.client().info("commandstats"))


def test_nothing_connects_after_cancellation(make: Make, valkey: Server) -> None:
    client = make(valkey.url)
    client.cancellation.cancel()
    with pytest.raises(CutShort):
        client.call("PING")
    assert client.events.seen == []


# Threads only


def test_a_reconnect_takes_from_the_drop_to_the_end_of_the_new_handshake(valkey: Server) -> None:
    events = Events()
    with quick_client(valkey.url, events) as client:
        client.ping()
        valkey.pause()
        with pytest.raises(redis.TimeoutError):
            client.get("x")
        # Still lost: the handshake hangs, and the attempt fails.
        with pytest.raises(redis.TimeoutError):
            client.get("x")
        valkey.resume()
        client.ping()
        up_ns = monotonic_ns()
    assert [kind for kind, _ in events.seen] == ["opened", "dropped", "attempt failed", "opened", "closed"]
    assert QUICK.ns < events["opened"][1] <= up_ns - events.dropped_ns


def test_a_connection_reset_under_a_command_is_a_drop_by_its_error(valkey: Server) -> None:
    events = Events()
    with quick_client(valkey.url, events) as client:
        connection = client.connection_pool.get_connection()
        valkey.kill()
        with pytest.raises(TARGET_ERRORS):  # noqa: PT012 - either of the two may be the one that notices
            connection.send_command("PING")
            connection.read_response()
        client.connection_pool.release(connection)
        assert events.kinds == {"opened": 1, "dropped": 1}
        assert events["dropped"][0] in ("closed by server", "ConnectionResetError", "BrokenPipeError")


def test_redis_py_copies_a_retry_into_each_connection() -> None:
    retry = RedisRetry(NoBackoff(), 1)
    assert copy.deepcopy(retry) is not retry
    assert redis.Connection(retry=retry).retry is not retry


def test_cancelling_ends_a_long_backoff_at_once(refusing_url: str) -> None:
    events, cancellation = Events(), Cancellation()
    raised: list[BaseException] = []

    def ping() -> None:
        with quick_client(
            refusing_url, events, cancellation, retries=9, backoff=BackoffKind.CONSTANT, base_s=Seconds(600.0)
        ) as client:
            try:
                client.ping()
            except CutShort as error:
                raised.append(error)

    thread = threading.Thread(target=ping)
    thread.start()
    assert events.first_retry.wait(10.0)
    cancellation.cancel()
    thread.join(10.0)
    assert not thread.is_alive()
    assert len(raised) == 1


def test_cancelling_ends_a_wait_for_a_reply_at_once_and_is_not_a_drop(valkey: Server) -> None:
    events, cancellation = Events(), Cancellation()
    client = build_client(
        Target(url=valkey.url, socket_timeout_s=Seconds(600.0)),
        Pools(max_connections=1),
        events=events,
        cancellation=cancellation,
    )
    client.ping()
    valkey.pause()
    ended = threading.Event()

    def get() -> None:
        with pytest.raises((CutShort, redis.ConnectionError)):
            client.get("x")
        ended.set()

    thread = threading.Thread(target=get)
    thread.start()
    cancellation.cancel()
    thread.join(10.0)
    assert ended.is_set()
    valkey.resume()
    client.close()
    assert events.kinds == {"opened": 1, "closed": 1}


def test_the_control_client_does_not_retry_and_opens_one_connection(valkey: Server) -> None:
    with open_control_client(quick_target(valkey.url)) as client:
        client.ping()
        first = client.client_id()
        valkey.client().execute_command("CLIENT", "PAUSE", 30_000, "WRITE")
        began_ns = monotonic_ns()
        with pytest.raises(redis.TimeoutError):
            client.set("x", "y")
        assert monotonic_ns() - began_ns < 10 * QUICK.ns
        valkey.client().client_unpause()
        assert client.client_id() != first
        assert client.connection_pool.max_connections == 1
