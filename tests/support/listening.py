"""The subscribers of both drivers behind one interface, on a thread and on a loop."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import Any

from agent.worker.metrics.connection_events import EventKind, EventLog
from agent.worker.metrics.deliveries import DeliveryRecord, add_up
from agent.worker.pubsub.task_subscriber import AsyncSubscriber
from agent.worker.pubsub.thread_subscriber import Subscriber
from common.cancellation import Cancellation
from common.metrics.intervals import DeliveryMetrics, merge_deliveries
from common.plan.planned_commands import is_cluster
from common.plan.schema import BackoffKind, Pools, Retry, Target
from common.pubsub_header import HEADER_BYTES, HeaderReader, HeaderWriter
from common.redis_client import build_client
from common.redis_client.async_clients import build_async_client, close_async_client, open_async_client
from tests.support.clients import DURING_CONNECT
from tests.support.runs import wait_until

QUICK = Retry(retries=3, backoff=BackoffKind.NONE)


class Listening:
    """A subscriber of a target, and all messages that it received."""

    subscriber: Any

    def __init__(self, url: str, *, most: int = 3, timeout_s: float | None = 5.0, retry: Retry = QUICK) -> None:
        self._target = Target(url=url, retry=retry)
        self._settings = (most, timeout_s)
        self._sharded = "S" if is_cluster(self._target) else ""
        self._writer = HeaderWriter("run", "here", 1)
        self.record = DeliveryRecord()
        self.log = EventLog()
        self.cancellation = Cancellation()
        self.complaints: list[Any] = []
        self._taken: list[DeliveryMetrics] = []
        self._build()

    def _build(self) -> None:
        raise NotImplementedError

    def _made(self, kind: Any, client: Any) -> Any:
        reader = HeaderReader("run", "here")
        return kind("subscriber", client, *self._settings, reader, self.record, self.complaints.append)

    def subscribe(self, *names: bytes) -> list[list[Any]]:
        """Subscribe to these channels one by one; in a cluster to sharded ones. Returns the confirmations."""
        return [self._result(self.subscriber.subscribe, f"{self._sharded}SUBSCRIBE", name) for name in names]

    def publish(self, name: bytes) -> int:
        """Publish one message of the run with the subscriber's client. Returns the number of receivers."""
        message = self._writer.write(bytes(HEADER_BYTES), 1)
        receivers: int = self._result(self._client.execute_command, f"{self._sharded}PUBLISH", name, message)
        return receivers

    def _result(self, call: Any, *arguments: Any) -> Any:
        return call(*arguments)

    @property
    def metrics(self) -> DeliveryMetrics:
        """Metrics of all messages so far."""
        self._taken.append(add_up(self.record.take()))
        return merge_deliveries(self._taken)

    def events(self) -> list[EventKind]:
        """Connection events since the last call."""
        return [kind for _, kind, *_ in self.log.take() if kind not in DURING_CONNECT]

    def ends(self) -> None:
        """Wait for its end."""
        wait_until(lambda: not self.subscriber.is_alive, "its end", 5)

    def close(self) -> None:
        """Cut it if it still runs. Checks that it had no error and leaves nothing behind."""
        self.cancellation.cancel()
        self.subscriber.cut()
        self.ends()
        self.subscriber.close()
        self._close_client()
        assert self.complaints == []

    _client: Any

    def _close_client(self) -> None:
        raise NotImplementedError


class OnThread(Listening):
    """The subscriber of worker threads."""

    def _build(self) -> None:
        self._client = build_client(self._target, Pools(), events=self.log, cancellation=self.cancellation)
        self.subscriber = self._made(Subscriber, self._client)

    def _close_client(self) -> None:
        self._client.close()


class OnLoop(Listening):
    """The subscriber of worker tasks. Errors of its event loop, such as a pending task, count as complaints."""

    def _build(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda _, context: self.complaints.append(context))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = build_async_client(self._target, Pools(), events=self.log, cancellation=self.cancellation)
        self._result(open_async_client, self._client, self._target)
        self.subscriber = self._made(AsyncSubscriber, self._client)

    def _result(self, call: Any, *arguments: Any) -> Any:
        async def result() -> Any:
            return await call(*arguments)

        return asyncio.run_coroutine_threadsafe(result(), self._loop).result(30)

    def _close_client(self) -> None:
        if self._loop.is_closed():
            return
        self._result(close_async_client, self._client)
        left = self._result(self._others)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()
        gc.collect()
        assert left == set()

    async def _others(self) -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


DRIVERS = {"client": OnThread, "asyncio": OnLoop}
