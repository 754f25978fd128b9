"""Deliveries of pub/sub messages: a raw row when a message is sent or arrives, added up once per second.

It works like `agent.worker.metrics.rows`. Any thread appends, which is one step under the interpreter lock, and the
collector takes all rows of the buffer.
"""

from __future__ import annotations

import enum
import struct
from array import array
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.worker.metrics.rows import distinct, take_rows
from common.metrics.histogram import Histogram, Ints
from common.metrics.intervals import DeliveryMetrics
from common.plan.timeline import MAX_LEGS, Timeline
from common.pubsub_header import HeaderReader, is_after
from common.units import NS_PER_S

DeliveryRows: TypeAlias = NDArray[np.int64]
"""Shape (n, 3): at_ns, event, value; see `DeliveryEvent`."""

NO_DELIVERY_ROWS: DeliveryRows = np.empty((0, 3), dtype=np.int64)
pack_delivery: Callable[[int, int, int], bytes] = struct.Struct("=3q").pack
UNTIMED = -1


class DeliveryEvent(enum.IntEnum):
    """The event of a row, and the meaning of its value."""

    EXPECTED = 0  # number of subscribers to which the server sent a message
    DELIVERED = 1  # ns from sending to arrival, UNTIMED if the clocks cannot be compared
    FOREIGN = 2  # 1
    REPEATED = 3  # 1
    RESUBSCRIBED = 4  # SUBSCRIBE calls that a reconnect repeated


class DeliveryRecord:
    """Rows of the messages of several workers. Any thread adds rows; one thread takes them."""

    __slots__ = ("_buffer", "add")

    def __init__(self) -> None:
        self._buffer = array("q")
        self.add = self._buffer.frombytes

    def take(self) -> DeliveryRows:
        """All rows since the last call."""
        return take_rows(self._buffer, 3)


class DeliveryClassifier:
    """Classifies the messages that one subscriber receives: delivered, repeated or foreign. For one thread."""

    def __init__(self, reader: HeaderReader, record: DeliveryRecord) -> None:
        self._read = reader.read
        self._add = record.add
        self._last: dict[tuple[int, int], int] = {}

    def arrived(self, connection: int, message: bytes, at_ns: int) -> None:
        """A message has arrived. connection: the number of its connection. Each connection gets a sender's messages in
        the order of their numbers, so a message whose number does not rise was sent twice, by a retry."""
        header = self._read(message)
        if header is None:
            self._add(pack_delivery(at_ns, DeliveryEvent.FOREIGN, 1))
            return
        key = (connection, header.sender)
        last = self._last.get(key)
        if last is not None and not is_after(header.number, last):
            self._add(pack_delivery(at_ns, DeliveryEvent.REPEATED, 1))
            return
        self._last[key] = header.number
        latency_ns = UNTIMED if header.sent_ns is None else at_ns - header.sent_ns
        self._add(pack_delivery(at_ns, DeliveryEvent.DELIVERED, latency_ns))


def add_up(rows: DeliveryRows) -> DeliveryMetrics:
    """The sums of the rows of one pool group."""
    events, values = rows[:, 1], rows[:, 2]
    # Without negative latencies: a clone of a virtual machine has the original's boot id, but another clock.
    latencies = values[(events == DeliveryEvent.DELIVERED) & (values >= 0)]
    return DeliveryMetrics(
        expected=int(values[events == DeliveryEvent.EXPECTED].sum()),
        delivered=int(np.count_nonzero(events == DeliveryEvent.DELIVERED)),
        foreign=int(np.count_nonzero(events == DeliveryEvent.FOREIGN)),
        repeated=int(np.count_nonzero(events == DeliveryEvent.REPEATED)),
        resubscribed=int(values[events == DeliveryEvent.RESUBSCRIBED].sum()),
        latency=Histogram.from_values(latencies),
    )


def keys_of(rows: DeliveryRows, t0_ns: int, line: Timeline) -> Ints:
    """The key of each row, second * MAX_LEGS + leg: the second of the event, and the leg in which its message was sent;
    the leg of the event if that is not known."""
    offsets_ns = np.maximum(rows[:, 0] - t0_ns, 0)
    timed = (rows[:, 1] == DeliveryEvent.DELIVERED) & (rows[:, 2] > 0)
    sent_ns = offsets_ns - np.where(timed, rows[:, 2], 0)
    legs = np.maximum(np.searchsorted(np.array(line.begins_ns), sent_ns, side="right") - 1, 0)
    return offsets_ns // NS_PER_S * MAX_LEGS + legs


class CollectedDeliveries:
    """Rows of one pool group, until their seconds are reported."""

    def __init__(self, record: DeliveryRecord) -> None:
        self._record = record
        self._rows = NO_DELIVERY_ROWS
        self._keys: Ints = np.empty(0, dtype=np.int64)

    def gather(self, t0_ns: int, line: Timeline) -> None:
        """Take all rows since the last call."""
        fresh = self._record.take()
        self._rows = np.concatenate([self._rows, fresh])
        self._keys = np.concatenate([self._keys, keys_of(fresh, t0_ns, line)])

    def keys(self) -> set[tuple[int, int]]:
        """(second, number of the leg) of all rows."""
        return {divmod(key, MAX_LEGS) for key in distinct(self._keys)}

    def release(self, key: tuple[int, int]) -> DeliveryMetrics:
        """Metrics of the rows with this key, which are removed."""
        second, leg = key
        is_here = self._keys == second * MAX_LEGS + leg
        rows = self._rows[is_here]
        self._rows, self._keys = self._rows[~is_here], self._keys[~is_here]
        return add_up(rows)
