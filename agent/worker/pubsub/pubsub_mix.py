"""A mix with subscribers: gives each worker a pool of its own that handles PUBLISH and SUBSCRIBE.

Drivers do not know about it. The pool's instances add a header to each message that is published, and pass SUBSCRIBE to
the worker's subscriber. Workers of all other mixes use their pools directly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agent.worker.metrics.connection_events import EventLog
from agent.worker.metrics.deliveries import DeliveryEvent, DeliveryRecord, pack_delivery
from agent.worker.pubsub.task_subscriber import AsyncSubscriber
from agent.worker.pubsub.thread_subscriber import Subscriber
from agent.worker.workload.values import MessageBody
from common.clock import monotonic_ns
from common.commands import SUBSCRIBING
from common.machine import boot_id
from common.plan.planned_commands import subscribes
from common.plan.schema import Driver, Plan
from common.pubsub_header import HeaderReader, HeaderWriter
from common.units import NS_PER_S

_CLOSE_NS = 1 * NS_PER_S
"""How long all threads together may take to end after `cut`."""


class _WorkerPool:
    """Replaces one worker's pool, and each instance that the pool lends. Each twin has its own `execute`, for speed: it
    runs for every operation."""

    def __init__(self, pool: Any, subscriber: Any, writer: HeaderWriter, record: DeliveryRecord) -> None:
        self._pool = pool
        self._subscriber = subscriber
        self._write_header = writer.write
        self._add = record.add
        self._lent: Any

    @property
    def events(self) -> EventLog:
        """See an instance's `events`. A SUBSCRIBE goes through a connection of its own, so its server is that of the
        instance's last command."""
        events: EventLog = self._lent.events
        return events

    def give_back(self, _: object) -> None:
        """See the pool's `give_back`."""
        self._pool.give_back(self._lent)


class PubSubPool(_WorkerPool):
    """For a thread, with a ClientInstancePool and a Subscriber."""

    def checkout(self) -> tuple[PubSubPool, int]:
        """As the pool's method."""
        self._lent, wait_ns = self._pool.checkout()
        return self, wait_ns

    def execute(self, *arguments: Any) -> Any:
        """See an instance's `execute`. A message's header has the time at which its PUBLISH begins. The reply to
        PUBLISH is the number of expected deliveries."""
        last = arguments[-1]
        if type(last) is MessageBody:
            sent_ns = monotonic_ns()
            receivers = self._lent.execute(*arguments[:-1], self._write_header(last, sent_ns))
            self._add(pack_delivery(sent_ns, DeliveryEvent.EXPECTED, receivers))
            return receivers
        if arguments[0] in SUBSCRIBING:
            return self._subscriber.subscribe(arguments[0], last)
        return self._lent.execute(*arguments)


class AsyncPubSubPool(_WorkerPool):
    """For a task, with an AsyncClientInstancePool and an AsyncSubscriber."""

    def take(self) -> AsyncPubSubPool | None:
        """As the pool's method."""
        if (lent := self._pool.take()) is None:
            return None
        self._lent = lent
        return self

    async def checkout(self) -> tuple[AsyncPubSubPool, int]:
        """As the pool's method."""
        self._lent, wait_ns = await self._pool.checkout()
        return self, wait_ns

    async def execute(self, *arguments: Any) -> Any:
        """As `PubSubPool.execute`."""
        last = arguments[-1]
        if type(last) is MessageBody:
            sent_ns = monotonic_ns()
            receivers = await self._lent.execute(*arguments[:-1], self._write_header(last, sent_ns))
            self._add(pack_delivery(sent_ns, DeliveryEvent.EXPECTED, receivers))
            return receivers
        if arguments[0] in SUBSCRIBING:
            return await self._subscriber.subscribe(arguments[0], last)
        return await self._lent.execute(*arguments)


_OF_DRIVER: dict[Driver, tuple[Any, Any]] = {
    Driver.CLIENT: (Subscriber, PubSubPool),
    Driver.ASYNCIO: (AsyncSubscriber, AsyncPubSubPool),
}


class Subscribers:
    """The subscribers of one worker process."""

    def __init__(self, plan: Plan, run_id: str, crash: Callable[[Exception], None]) -> None:
        """crash: called with an unexpected error that ended a subscriber."""
        self._plan = plan
        self._run_id = run_id
        self._boot_id = boot_id()
        self._crash = crash
        self._is_wanted = subscribes(plan.workload)
        self._all: list[Subscriber | AsyncSubscriber] = []
        self._finish_by_ns: int | None = None

    def pool_for(self, number: int, driver: Driver, pool: Any, record: DeliveryRecord) -> Any:
        """The pool of worker `number` of the fleet; its driver's pool itself if the mix does not subscribe.

        Workers of a pool have consecutive numbers, so their subscriptions are spread evenly over its client instances.
        """
        if not self._is_wanted:
            return pool
        subscriber_class, pool_class = _OF_DRIVER[driver]
        subscriber = subscriber_class(
            f"subscriber {number}",
            pool.instances[number % len(pool.instances)].client,
            self._plan.workload.pubsub.channels_per_thread,
            float(self._plan.target.socket_timeout_s) or None,
            HeaderReader(self._run_id, self._boot_id),
            record,
            self._crash,
        )
        self._all.append(subscriber)
        return pool_class(pool, subscriber, HeaderWriter(self._run_id, self._boot_id, number), record)

    def finish(self, now_ns: int) -> int:
        """Begin to read the last messages. Call it when all workers have ended. Returns the deadline (monotonic ns),
        the same on each call."""
        if self._finish_by_ns is None:
            self._finish_by_ns = now_ns + self._plan.workload.pubsub.grace_s.ns
            for subscriber in self._all:
                subscriber.finish()
        return self._finish_by_ns

    @property
    def is_alive(self) -> bool:
        """Whether a subscriber still reads."""
        return any(subscriber.is_alive for subscriber in self._all)

    def cut(self) -> None:
        """End all subscribers now; the run was cancelled. Idempotent."""
        for subscriber in self._all:
            subscriber.cut()

    def close(self) -> None:
        """Close all subscribers. Idempotent."""
        give_up_ns = monotonic_ns() + _CLOSE_NS
        for subscriber in self._all:
            subscriber.close((give_up_ns - monotonic_ns()) / NS_PER_S)
