"""The contract with redis.asyncio that only asyncio has: cancelled tasks, pipelines, TCP pools and cluster clients."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

from agent.worker.metrics.connection_events import ConnectionEvent, EventKind, EventLog
from common.cancellation import Cancellation, CutShort
from common.errors import PlanError, TargetError
from common.plan.schema import BackoffKind, Pools, Retry, Target, TcpPool
from common.redis_client import failure_of
from common.redis_client.async_clients import (
    AsyncClient,
    async_tcp_pools,
    build_async_client,
    close_async_client,
    open_async_client,
)
from common.redis_client.async_cluster import AsyncClusterClient
from common.units import Seconds
from tests.support.clients import DURING_CONNECT
from tests.support.loops import OthersTurn
from tests.support.servers import Server, SocketServer

pytestmark = pytest.mark.usefixtures("no_leaks")

QUICK = Seconds(0.2)
Play = Callable[["Client"], Awaitable[None]]


class Client:
    """A client of one target, its events and its cancellation, on a loop of its own that ends with `play`."""

    def __init__(self, url: str, *, pools: Pools | None = None, retry: Retry | None = None, **target: Any) -> None:
        self.log = EventLog()
        self.cancellation = Cancellation()
        self.pools = pools or Pools(max_connections=2)
        self.target = Target(
            url=url,
            retry=retry or Retry(retries=0, backoff=BackoffKind.NONE),
            **{"connect_timeout_s": QUICK, "socket_timeout_s": QUICK, **target},
        )
        self._seen: list[ConnectionEvent] = []
        self.redis: AsyncClient

    @property
    def seen(self) -> list[ConnectionEvent]:
        self._seen += [event for event in self.log.take() if event[1] not in DURING_CONNECT]
        return self._seen

    @property
    def kinds(self) -> Counter[EventKind]:
        return Counter(kind for _, kind, *_ in self.seen)

    def details(self, wanted: EventKind) -> list[int | str | None]:
        return [detail for _, kind, detail, _ in self.seen if kind is wanted]

    async def call(self, *arguments: Any) -> Any:
        return await self.redis.execute_command(*arguments)  # type: ignore[no-untyped-call, unused-ignore]

    def play(self, play: Play) -> None:
        async def all_of_it() -> None:
            await open_async_client(self.redis, self.target)
            try:
                await play(self)
            finally:
                await close_async_client(self.redis)
                await close_async_client(self.redis)

        # Made without a loop, as a worker process makes it.
        self.redis = build_async_client(self.target, self.pools, events=self.log, cancellation=self.cancellation)
        asyncio.run(all_of_it())
        gc.collect()  # what was left open would warn


async def cancelled(what: Awaitable[Any], until: Callable[[], Any]) -> None:
    """Cancel it once this is true."""
    task = asyncio.ensure_future(what)
    while not until():
        await OthersTurn()
    while not task.done():
        # The first one may meet a step of the call that ends by itself, and then is forgotten.
        task.cancel()
        await OthersTurn()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("is_cut", [True, False])
def test_a_cancelled_call_closes_its_connection_and_returns_it_to_the_pool(valkey: Server, is_cut: bool) -> None:
    async def play(client: Client) -> None:
        asking = valkey.client()
        await client.call("PING")
        if is_cut:
            client.cancellation.cancel()
        await cancelled(client.call("BLPOP", "nothing", 0), lambda: asking.info("clients")["blocked_clients"])
        # Only the end of a run cancels calls; otherwise it counts as a loss.
        assert client.kinds == {EventKind.OPENED: 1, EventKind.CLOSED if is_cut else EventKind.DROPPED: 1}
        [pool] = async_tcp_pools(client.redis)
        assert (len(pool._available_connections), len(pool._in_use_connections)) == (1, 0)

    Client(valkey.url, socket_timeout_s=Seconds(30)).play(play)


def test_a_backoff_ends_when_its_task_is_cancelled_and_none_begins_after_that(refusing_url: str) -> None:
    hour = Seconds(3600)

    async def play(client: Client) -> None:
        await cancelled(client.call("PING"), lambda: client.kinds[EventKind.RETRIED])
        client.cancellation.cancel()
        with pytest.raises(CutShort):
            await client.call("PING")
        assert client.kinds[EventKind.RETRIED] == 1

    policy = Retry(retries=5, backoff=BackoffKind.CONSTANT, base_s=hour, cap_s=hour)
    Client(refusing_url, retry=policy).play(play)


@pytest.mark.parametrize("transaction", [False, True])
def test_a_pipeline_returns_its_replies_and_errors_in_their_places(valkey: Server, transaction: bool) -> None:
    async def play(client: Client) -> None:
        valkey.client().set("text", "x")
        pipeline: Any = client.redis.pipeline(transaction=transaction)
        for arguments in (("SET", "a", "1"), ("LPUSH", "text", "y"), ("GET", "a")):
            assert not asyncio.iscoroutine(pipeline.execute_command(*arguments))
        done, wrong, got = await pipeline.execute(raise_on_error=False)
        assert (done, got) == (True, b"1")
        assert failure_of(wrong).name == "WRONGTYPE"

    Client(valkey.url).play(play)


@pytest.mark.parametrize(("kind", "error"), [(TcpPool.RAISING, "Too many"), (TcpPool.BLOCKING, "No connection")])
def test_an_exhausted_tcp_pool_raises_or_waits_as_planned(valkey: Server, kind: TcpPool, error: str) -> None:
    async def play(client: Client) -> None:
        [pool] = async_tcp_pools(client.redis)
        taken = await pool.get_connection()
        with pytest.raises(redis.ConnectionError, match=error):
            await client.call("PING")
        await pool.release(taken)
        assert await client.call("PING")

    pools = Pools(max_connections=1, tcp_pool=kind, tcp_pool_wait_s=Seconds(0.05))
    Client(valkey.url, pools=pools).play(play)


def test_a_server_that_answers_ok_to_everything_is_not_redis() -> None:
    async def play(client: Client) -> None:
        with pytest.raises(redis.InvalidResponse, match="HELLO"):
            await client.call("PING")

    with SocketServer(reply=b"+OK\r\n") as server:
        client = Client(server.url, username="somebody", password="something")
        client.play(play)
    assert client.kinds == {EventKind.ATTEMPT_FAILED: 1}


# Clusters, as far as they need none


CLUSTER_NOWHERE = "redis+cluster://127.0.0.1:1"


def test_a_cluster_client_connects_when_it_is_opened() -> None:
    async def play(_: Client) -> None:
        raise AssertionError("it was opened")

    client = Client(CLUSTER_NOWHERE)
    with pytest.raises(TargetError, match=r"127\.0\.0\.1:1"):
        client.play(play)
    assert set(client.kinds) == {EventKind.ATTEMPT_FAILED}


def test_nodes_of_a_cluster_make_observed_connections() -> None:
    client = build_async_client(
        Target(url=CLUSTER_NOWHERE), Pools(max_connections=3), events=EventLog(), cancellation=Cancellation()
    )
    assert isinstance(client, AsyncClusterClient)
    [node] = client.nodes_manager.startup_nodes.values()
    assert client.nodes_manager.connection_kwargs is client.connection_kwargs
    assert node.connection_class is client.connection_kwargs["connection_class"]
    assert node.max_connections == client.connection_kwargs["max_connections"] == 3
    connection: Any = node.acquire_connection()
    assert connection._tracker._events is client._tracker._events
    assert connection in client._made_connections


def test_a_cluster_has_no_blocking_tcp_pools() -> None:
    with pytest.raises(PlanError, match="expected tcp_pool raising"):
        build_async_client(
            Target(url=CLUSTER_NOWHERE),
            Pools(tcp_pool=TcpPool.BLOCKING),
            events=EventLog(),
            cancellation=Cancellation(),
        )
