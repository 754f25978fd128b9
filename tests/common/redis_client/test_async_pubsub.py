"""Subscriptions of one connection on a loop; and the contract with redis.asyncio's PubSub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import redis

from agent.worker.metrics.connection_events import EventKind, EventLog
from common.cancellation import Cancellation, CutShort
from common.plan.schema import BackoffKind, Pools, Retry, Target
from common.redis_client.async_clients import build_async_client, close_async_client
from common.redis_client.async_pubsub import AsyncSubscribedConnection, AsyncSubscribedConnections
from common.redis_client.pubsub import MESSAGE, Channel, Received
from tests.support.clients import DURING_CONNECT
from tests.support.loops import OthersTurn
from tests.support.runs import calls, connections, wait_until
from tests.support.servers import Server

pytestmark = pytest.mark.usefixtures("no_leaks")

A: Channel = ("SUBSCRIBE", b"a")
B: Channel = ("SUBSCRIBE", b"b")
SHARDED: Channel = ("SSUBSCRIBE", b"a")

QUICK = Retry(retries=3, backoff=BackoffKind.NONE)


class Watched:
    """One line to a server that runs, and what it went through."""

    def __init__(self, target: Target) -> None:
        self.log = EventLog()
        self.cancellation = Cancellation()
        self.client = build_async_client(
            target, Pools(max_connections=2), events=self.log, cancellation=self.cancellation
        )
        self.replays: list[int] = []
        self.errors: list[Exception] = []
        self.tasks: list[asyncio.Task[None]] = []
        self._found: list[Received] = []
        self._came = asyncio.Event()
        self.lines = AsyncSubscribedConnections(self.client, self, self._start)
        self.line = self.lines.connection_for(A)

    def _start(self, line: AsyncSubscribedConnection) -> None:
        self.tasks.append(asyncio.create_task(line.run()))

    def received(self, _: AsyncSubscribedConnection, received: Received) -> None:
        self._found.append(received)
        self._came.set()

    def refused(self, _: AsyncSubscribedConnection, channel: Channel, error: Exception) -> None:
        self.line.forget(channel)
        self.errors.append(error)
        self._came.set()

    async def failed(self, _: AsyncSubscribedConnection, error: Exception) -> None:
        self.errors.append(error)
        self._came.set()

    def resubscribed(self, commands: int) -> None:
        self.replays.append(commands)

    async def until(self, enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not enough():
                self._came.clear()
                await self._came.wait()

    async def came(self, count: int) -> list[Received]:
        """The next `count` replies."""
        await self.until(lambda: len(self._found) >= count)
        found, self._found = self._found, []
        assert len(found) == count
        return found

    def events(self) -> list[EventKind]:
        return [kind for _, kind, *_ in self.log.take() if kind not in DURING_CONNECT]

    async def ended(self) -> None:
        await asyncio.wait_for(asyncio.gather(*self.tasks), 5)


@asynccontextmanager
async def watch(target: Target) -> AsyncIterator[Watched]:
    watched = Watched(target)
    try:
        yield watched
    finally:
        for task in watched.tasks:
            task.cancel()
            with suppress(asyncio.CancelledError, CutShort):
                await task
        await close_async_client(watched.client)


def on_loop(target: Target, body: Callable[[Watched], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with watch(target) as watched:
            await body(watched)

    asyncio.run(run())


@pytest.fixture(params=[2, 3])
def target(valkey: Server, request: pytest.FixtureRequest) -> Target:
    return Target(url=valkey.url, protocol=request.param, retry=QUICK)


def kinds(received: list[Received]) -> list[tuple[str, Channel]]:
    return [(kind, channel) for kind, channel, _ in received]


def test_confirmations_and_messages_arrive_in_the_servers_order(target: Target, valkey: Server) -> None:
    async def body(watched: Watched) -> None:
        watched.line.subscribe(A)
        watched.line.subscribe(SHARDED)
        assert kinds(await watched.came(2)) == [("subscribe", A), ("ssubscribe", SHARDED)]
        publisher = valkey.client()
        assert publisher.publish("a", b"one") == 1
        assert publisher.execute_command("SPUBLISH", "a", b"two") == 1
        watched.line.unsubscribe(A)
        assert await watched.came(3) == [(MESSAGE, A, b"one"), (MESSAGE, SHARDED, b"two"), ("unsubscribe", A, 0)]

    on_loop(target, body)


def test_it_ends_when_the_server_has_confirmed_the_end_of_all_channels(target: Target, valkey: Server) -> None:
    async def body(watched: Watched) -> None:
        for channel in (A, B, SHARDED):
            watched.line.subscribe(channel)
        await watched.came(3)
        assert valkey.client().publish("a", "the last") == 1
        watched.line.end()
        await watched.ended()
        last = await watched.came(4)
        assert last[0] == (MESSAGE, A, b"the last")
        assert [kind for kind, _, _ in last[1:]].count("unsubscribe") == 2
        assert watched.events() == [EventKind.OPENED, EventKind.CLOSED]

    on_loop(target, body)


def test_one_connection_of_the_tcp_pool_is_taken_and_returned_closed(target: Target, valkey: Server) -> None:
    async def body(watched: Watched) -> None:
        watched.line.subscribe(A)
        watched.line.subscribe(B)
        await watched.came(2)
        assert connections(valkey.client()) == 1
        watched.line.end()
        await watched.ended()
        assert len(watched.client.connection_pool._available_connections) == 1  # type: ignore[union-attr]

    on_loop(target, body)
    wait_until(lambda: connections(valkey.client()) == 0, "closed", 5)


def test_interrupted_reads_lose_nothing(target: Target, valkey: Server) -> None:
    publisher, large = valkey.client(), bytes(range(256)) * 4_000

    async def body(watched: Watched) -> None:
        watched.line.subscribe(A)
        await watched.came(1)
        loop = asyncio.get_running_loop()
        publishing = [loop.run_in_executor(None, publisher.publish, "a", large) for _ in range(10)]
        while not all(each.done() for each in publishing):
            watched.line.subscribe(B)
            await OthersTurn()
        watched.line.unsubscribe(B)
        await watched.until(lambda: watched._found[-1:] == [("unsubscribe", B, 1)])
        messages = [what for kind, _, what in watched._found if kind is MESSAGE]
        assert messages == [large] * 10
        assert watched.errors == []

    on_loop(target, body)


def test_other_tasks_have_their_turn_during_a_stream_of_messages(target: Target, valkey: Server) -> None:
    async def body(watched: Watched) -> None:
        watched.line.subscribe(A)
        await watched.came(1)
        with valkey.client().pipeline(transaction=False) as pipeline:
            for _ in range(3000):
                pipeline.publish("a", "")
            assert pipeline.execute() == [1] * 3000  # the loop stands still meanwhile
        async with asyncio.timeout(5):
            while not watched._found:
                await OthersTurn()
        assert len(watched._found) < 3000
        await watched.came(3000)

    on_loop(target, body)


def test_a_lost_connection_comes_back_with_all_its_channels(target: Target, valkey: Server) -> None:
    control = valkey.client()

    async def body(watched: Watched) -> None:
        for channel in (A, B, SHARDED):
            watched.line.subscribe(channel)
        await watched.came(3)
        control.config_resetstat()
        assert control.client_kill_filter(_type="pubsub") == 1
        assert set(kinds(await watched.came(3))) == {("subscribe", A), ("subscribe", B), ("ssubscribe", SHARDED)}
        counted = calls(control)
        assert watched.replays == [2]
        assert (counted["subscribe"], counted["ssubscribe"]) == (1, 1)
        assert watched.events() == [EventKind.OPENED, EventKind.DROPPED, EventKind.OPENED, EventKind.RETRIED]
        assert watched.errors == []
        assert control.publish("b", "again") == 1
        assert await watched.came(1) == [(MESSAGE, B, b"again")]

    on_loop(target, body)


@pytest.mark.parametrize("retry", [Retry(retries=0), Retry(retries=3, errors=())], ids=["no retries", "no errors"])
def test_a_lost_connection_comes_back_even_without_a_retry_policy(valkey: Server, retry: Retry) -> None:
    control = valkey.client()

    async def body(watched: Watched) -> None:
        watched.line.subscribe(A)
        await watched.came(1)
        assert control.client_kill_filter(_type="pubsub") == 1
        assert kinds(await watched.came(1)) == [("subscribe", A)]
        assert [type(error) for error in watched.errors] == [redis.ConnectionError]
        assert watched.events()[:3] == [EventKind.OPENED, EventKind.DROPPED, EventKind.OPENED]

    on_loop(Target(url=valkey.url, retry=retry), body)


def test_a_channel_that_was_being_unsubscribed_does_not_come_back(target: Target, valkey: Server) -> None:
    control = valkey.client()

    async def body(watched: Watched) -> None:
        watched.line.subscribe(A)
        watched.line.subscribe(B)
        await watched.came(2)
        assert control.client_kill_filter(_type="pubsub") == 1
        watched.line.unsubscribe(B)
        await watched.until(lambda: ("subscribe", A) in kinds(watched._found))
        watched.line.subscribe(SHARDED)  # a confirmation that comes after all that was under way
        await watched.until(lambda: ("ssubscribe", SHARDED) in kinds(watched._found))
        assert control.pubsub_channels() == [b"a"]

    on_loop(target, body)


def test_a_channel_without_permission_is_refused_and_can_be_forgotten(target: Target, valkey: Server) -> None:
    control = valkey.client()
    control.execute_command("ACL", "SETUSER", "default", "resetchannels", "&b*")

    async def body(watched: Watched) -> None:
        watched.line.subscribe(A)
        await watched.until(lambda: bool(watched.errors))
        assert [type(error) for error in watched.errors] == [redis.exceptions.NoPermissionError]
        watched.line.forget(A)
        watched.line.subscribe(B)
        assert kinds(await watched.came(1)) == [("subscribe", B)]
        control.client_kill_filter(_type="pubsub")
        assert kinds(await watched.came(1)) == [("subscribe", B)]

    on_loop(target, body)


def test_a_channel_that_cannot_be_asked_for_is_refused(closing_server: Any) -> None:
    async def body(watched: Watched) -> None:
        watched.line.subscribe(A)
        await watched.until(lambda: bool(watched.errors))
        assert [type(error) for error in watched.errors] == [redis.ConnectionError]
        watched.line.end()
        await watched.ended()

    on_loop(Target(url=closing_server.url, retry=Retry(retries=0)), body)


def test_nothing_reconnects_after_cancellation(target: Target, valkey: Server) -> None:
    async def body(watched: Watched) -> None:
        watched.line.subscribe(A)
        await watched.came(1)
        watched.cancellation.cancel()
        valkey.client().client_kill_filter(_type="pubsub")
        with pytest.raises(CutShort):
            await watched.ended()

    on_loop(target, body)
