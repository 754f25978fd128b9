"""Stamps of visibility: gives each worker a pool of its own that writes stamps, or looks for them.

Drivers do not know about it, as with `agent.worker.pubsub`: the pool's instances replace the number of the drawn key.
`common.plan.visibility` has the theory of operation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import count
from typing import Any

from agent.worker.metrics.connection_events import EventLog
from agent.worker.metrics.deliveries import DeliveryEvent, DeliveryRecord, pack_delivery
from agent.worker.pacing.pacer import Span
from common.clock import MonotonicNs, monotonic_ns
from common.machine import boot_id
from common.plan.schema import Plan, StampRole, Stamps
from common.plan.visibility import FIRST_KEY, KEYS, keys_per_worker
from common.pubsub_header import HeaderReader, HeaderWriter
from common.units import NS_PER_S


class _Worker:
    """A pool that lends itself in place of each instance."""

    def __init__(self, pool: Any, prefix: bytes, stamps: Stamps, number: int) -> None:
        self._pool = pool
        self._prefix = prefix
        self._keys = keys_per_worker(stamps)
        self._number = number
        self._lent: Any

    @property
    def events(self) -> EventLog:
        """See an instance's `events`."""
        events: EventLog = self._lent.events
        return events

    def key(self, write: int) -> bytes:
        """The key of a write; writes are counted from 1."""
        return self._prefix + str(FIRST_KEY + (self._number * self._keys + write % self._keys) % KEYS).encode()

    def checkout(self) -> tuple[_Worker, int]:
        """As the pool's method."""
        self._lent, wait_ns = self._pool.checkout()
        return self, wait_ns

    def give_back(self, _: object) -> None:
        """As the pool's method."""
        self._pool.give_back(self._lent)


class StampWriter(_Worker):
    """Writes stamps. A write counts as expected when the server has confirmed it."""

    def __init__(
        self,
        pool: Any,
        prefix: bytes,
        stamps: Stamps,
        number: int,
        header: HeaderWriter,
        record: DeliveryRecord,
        now: MonotonicNs = monotonic_ns,
    ) -> None:
        super().__init__(pool, prefix, stamps, number)
        self._header, self._add, self._now = header, record.add, now
        self._writes = count(1)

    def execute(self, *arguments: Any) -> Any:
        """See an instance's `execute`."""
        name, _, value, *options = arguments
        key, written_ns = self.key(next(self._writes)), self._now()
        reply = self._lent.execute(name, key, self._header.write(bytes(value), written_ns), *options)
        self._add(pack_delivery(written_ns, DeliveryEvent.EXPECTED, 1))
        return reply


class StampReader(_Worker):
    """Looks for the stamps of the writer with the same number: of all writes that are due in turn, and of the next
    write if none is."""

    def __init__(
        self,
        pool: Any,
        prefix: bytes,
        stamps: Stamps,
        number: int,
        header: HeaderReader,
        record: DeliveryRecord,
        *,
        due_ns: Iterator[int],
        now: MonotonicNs = monotonic_ns,
    ) -> None:
        """due_ns: when each write is due, on our clock."""
        super().__init__(pool, prefix, stamps, number)
        self._header, self._add, self._now = header, record.add, now
        self._timeout_ns = stamps.timeout_s.ns
        self._due = enumerate(due_ns, 1)
        self._next, self._next_due_ns = next(self._due)
        self._since_ns = self._next_due_ns
        self._pending: deque[tuple[int, int]] = deque()

    def execute(self, *arguments: Any) -> Any:
        """See an instance's `execute`."""
        self._look(self._now())
        write = self._pending[0][0] if self._pending else self._next
        reply = self._lent.execute(arguments[0], self.key(write))
        seen_ns = self._now()
        written_ns = self._time_of(write, reply)
        if written_ns is None:
            self._pending.rotate(-1)
            return reply
        if self._pending:
            self._pending.popleft()
        else:
            self._advance()
        self._add(pack_delivery(seen_ns, DeliveryEvent.DELIVERED, seen_ns - written_ns))
        return reply

    def _look(self, now_ns: int) -> None:
        """Look for the writes that are due by now, and no longer for those that were due too long ago."""
        while self._next_due_ns <= now_ns:
            self._pending.append((self._next, self._next_due_ns))
            self._advance()
        # Rotation changes the order, so the oldest may be anywhere.
        if self._pending and min(due_ns for _, due_ns in self._pending) < now_ns - self._timeout_ns:
            late = [each for each in self._pending if each[1] < now_ns - self._timeout_ns]
            for each in late:
                self._pending.remove(each)

    def _advance(self) -> None:
        self._next, self._next_due_ns = next(self._due)

    def _time_of(self, write: int, reply: Any) -> int | None:
        """When the write was begun; None if the reply has another value, such as one of an earlier run."""
        header = self._header.read(reply) if isinstance(reply, bytes) else None
        if header is None or (header.sender, header.number) != (self._number, write):
            return None
        return header.sent_ns if header.sent_ns is not None and header.sent_ns >= self._since_ns else None


def with_stamps(
    plan: Plan, run_id: str, pool: Any, number: int, threads: int, span: Span, record: DeliveryRecord
) -> Any:
    """The pool of worker `number` of `threads`; the pool itself for a workload without stamps."""
    stamps = plan.workload.stamps
    if stamps is None:
        return pool
    prefix = plan.workload.keys.prefix.encode()
    if stamps.role is StampRole.WRITE:
        return StampWriter(pool, prefix, stamps, number, HeaderWriter(run_id, boot_id(), number), record)
    gap_ns = threads * NS_PER_S / stamps.rate_per_s
    begin_ns = span.begin_ns + number * NS_PER_S / stamps.rate_per_s
    due_ns = (round(begin_ns + at * gap_ns) for at in count())
    return StampReader(pool, prefix, stamps, number, HeaderReader(run_id, boot_id()), record, due_ns=due_ns)
