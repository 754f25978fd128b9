"""A worker task's subscriptions, and the tasks that read them: one for each connection.

Everything runs on the event loop of the worker's pool; other threads only call `finish`, `cut` and `close`. See
`agent.worker.pubsub.thread_subscriber` for the order of shutdown; here `cut` cancels the tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from agent.worker.metrics.deliveries import DeliveryRecord
from agent.worker.pubsub.subscriptions import SubscribeRequest, Subscriptions, not_confirmed_error, run_over_error
from common.cancellation import CutShort
from common.pubsub_header import HeaderReader
from common.redis_client.async_clients import AsyncClient
from common.redis_client.async_pubsub import AsyncSubscribedConnection, AsyncSubscribedConnections
from common.redis_client.pubsub import Channel, Received

_CANCEL_AGAIN_S = 0.05


class _TaskRequest(SubscribeRequest):
    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self.ready = asyncio.Event()

    def wake(self) -> None:
        self.ready.set()


class AsyncSubscriber:
    """The subscriptions of one worker task, at most `most` at a time. Its own tasks start with the first subscription.

    timeout_s: how long the worker waits for a confirmation; None: without a limit. crash: called with an unexpected
    error that ended a task.
    """

    def __init__(
        self,
        name: str,
        client: AsyncClient,
        most: int,
        timeout_s: float | None,
        reader: HeaderReader,
        record: DeliveryRecord,
        crash: Callable[[Exception], None],
    ) -> None:
        """Opens no connection."""
        self._name = name
        self._timeout_s = timeout_s
        self._crash = crash
        self._connections = AsyncSubscribedConnections(client, self, self._start)
        self._subscriptions: Subscriptions[AsyncSubscribedConnection] = Subscriptions(
            most, self._connections, reader, record
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_over = False
        self._cancel_again: asyncio.TimerHandle | None = None

    async def subscribe(self, command: str, name: bytes) -> list[Any]:
        """The server's confirmation: [word, channel, number of channels].

        Raises redis-py's errors, TimeoutError without a confirmation in time, CutShort at the end of the run.
        """
        if self._is_over:
            raise run_over_error()
        self._loop = asyncio.get_running_loop()
        request = _TaskRequest((command, name))
        self._subscriptions.begin(request)
        try:
            async with asyncio.timeout(self._timeout_s):
                await request.ready.wait()
        except TimeoutError:
            raise not_confirmed_error(self._timeout_s) from None
        return request.result()

    def finish(self) -> None:
        """Read the last messages, and end all tasks. Idempotent. Call it from any thread, once all workers have
        ended."""
        self._call(self._finish)

    def cut(self) -> None:
        """End all tasks now. Idempotent. Call it from any thread."""
        self._is_over = True
        self._call(self._cut)

    @property
    def is_alive(self) -> bool:
        """Whether any of its tasks runs."""
        return bool(self._tasks)

    def close(self, _: float = 0.0) -> None:
        """Cut the tasks that `finish` has not ended by now. Idempotent."""
        self.cut()

    def _call(self, function: Callable[[], None]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed, and all its tasks with it
                self._loop.call_soon_threadsafe(function)

    def _finish(self) -> None:
        self._is_over = True
        for connection in self._connections:
            connection.end()

    def _cut(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._cancel_again is not None:
            self._cancel_again.cancel()
        if self._tasks:
            # redis-py loses a cancellation that arrives just as the awaited step ends.
            self._cancel_again = asyncio.get_running_loop().call_later(_CANCEL_AGAIN_S, self._cut)

    def _start(self, connection: AsyncSubscribedConnection) -> None:
        task = asyncio.create_task(self._run(connection), name=self._name)
        self._tasks.add(task)
        # Not at the end of `_run`: a task that is cancelled at once never begins it.
        task.add_done_callback(self._ended)
        if self._is_over:
            connection.end()

    async def _run(self, connection: AsyncSubscribedConnection) -> None:
        try:
            await connection.run()
        except CutShort:
            pass
        except Exception as error:  # noqa: BLE001 - the process reports it in one line
            self._crash(error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._is_over = True
        self._tasks.remove(task)
        self._subscriptions.end_pending(run_over_error())

    # `SubscriptionHandler` of the connections.

    def received(self, connection: AsyncSubscribedConnection, received: Received) -> None:
        """A reply has come on a connection."""
        self._subscriptions.received(connection, received)

    def refused(self, _: AsyncSubscribedConnection, channel: Channel, error: Exception) -> None:
        """A subscription could not be sent, or the server refused it."""
        self._subscriptions.refused(channel, error)

    async def failed(self, connection: AsyncSubscribedConnection, error: Exception) -> None:
        """Reading failed with an error."""
        self._subscriptions.failed(connection, error, await self._connections.redirected(error))

    def resubscribed(self, commands: int) -> None:
        """A connection subscribed to its channels again, by this many commands."""
        self._subscriptions.resubscribed(commands)
