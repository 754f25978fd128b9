"""A worker task's subscriptions, and the tasks that read what comes on them, one for each connection.

All of it happens on the event loop of the worker's pool; from outside of that it is only asked for. The end is as that
of `agent.worker.pubsub.thread_subscriber`, but that a cut cancels what it finds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from agent.worker.metrics.deliveries import DeliveryRecord
from agent.worker.pubsub.subscriptions import SubscribeRequest, Subscriptions, over
from common.cancellation import CutShort
from common.pubsub_header import HeaderReader
from common.redis_client.async_clients import AsyncClient
from common.redis_client.async_pubsub import AsyncLine, AsyncLines
from common.redis_client.pubsub import Channel, Received

_PATIENCE_S = 0.05


class _Order(SubscribeRequest):
    """For a task."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self.ready = asyncio.Event()

    def wake(self) -> None:
        self.ready.set()


class AsyncSubscriber:
    """The subscriptions of one worker task, `most` at a time. Its own tasks start with the first one.

    timeout_s: how long the worker waits for a confirmation; None: for ever. crash: told of what ends a task and never
    should.
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
        self._lines = AsyncLines(client, self, self._start)
        self._subscriptions: Subscriptions[AsyncLine] = Subscriptions(most, self._lines, reader, record)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_over = False
        self._again: asyncio.TimerHandle | None = None

    async def subscribe(self, command: str, name: bytes) -> list[Any]:
        """The server's confirmation: [word, channel, number of channels].

        Raises what redis-py does, TimeoutError without a confirmation in time, CutShort when the run is over.
        """
        if self._is_over:
            raise over()
        self._loop = asyncio.get_running_loop()
        order = _Order((command, name))
        self._subscriptions.begin(order)
        try:
            async with asyncio.timeout(self._timeout_s):
                await order.ready.wait()
        except TimeoutError:
            raise TimeoutError(f"no confirmation of a subscription in {self._timeout_s} s") from None
        return order.outcome()

    def finish(self) -> None:
        """Have what is left read, and all tasks end. Idempotent; from any thread, when nobody subscribes any more."""
        self._ask(self._finish)

    def cut(self) -> None:
        """Have all tasks end now. Idempotent; from any thread."""
        self._is_over = True
        self._ask(self._cut)

    @property
    def is_alive(self) -> bool:
        """Whether any of its tasks runs."""
        return bool(self._tasks)

    def close(self, _: float = 0.0) -> None:
        """For when it was told to finish: what clings to its work then is cut off. Idempotent."""
        self.cut()

    def _ask(self, what: Callable[[], None]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed, and all its tasks with it
                self._loop.call_soon_threadsafe(what)

    def _finish(self) -> None:
        self._is_over = True
        for line in self._lines:
            line.end()

    def _cut(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._again is not None:
            self._again.cancel()
        if self._tasks:
            # On its way through redis-py a cancellation may meet a step that ends by itself, and then is forgotten.
            self._again = asyncio.get_running_loop().call_later(_PATIENCE_S, self._cut)

    def _start(self, line: AsyncLine) -> None:
        task = asyncio.create_task(self._run(line), name=self._name)
        self._tasks.add(task)
        # Not at the end of `_run`, which a task that is cancelled at once never begins.
        task.add_done_callback(self._ended)
        if self._is_over:
            line.end()

    async def _run(self, line: AsyncLine) -> None:
        try:
            await line.run()
        except CutShort:
            pass
        except Exception as error:  # noqa: BLE001 - the last stop of a task: said in one line, by the process
            self._crash(error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._is_over = True
        self._tasks.remove(task)
        self._subscriptions.end_pending(over())

    def received(self, line: AsyncLine, received: Received) -> None:
        """Of a line: something came."""
        self._subscriptions.received(line.number, line, received)

    def refused(self, _: AsyncLine, channel: Channel, error: Exception) -> None:
        """Of a line: a channel could not be asked for."""
        self._subscriptions.refused(channel, error)

    async def failed(self, line: AsyncLine, error: Exception) -> None:
        """Of a line: reading met an error."""
        self._subscriptions.failed(line, error, await self._lines.redirected(error))

    def replayed(self, commands: int) -> None:
        """Of a line: so many commands subscribed anew."""
        self._subscriptions.replayed(commands)
