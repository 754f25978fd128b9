"""What threads did, per second of the run: raw rows on the hot path, histograms off it.

Each thread owns one buffer and appends one row of seven 64-bit numbers per operation: no lock, nothing shared, no
objects that the garbage collector would have to walk. (The wire driver appends one a batch, see `wire.record`.) The
collector cuts off what a buffer holds (one step under the interpreter's own lock, as the append is) and bins it with
numpy. A row belongs to the second in which its operation
completed, whenever it is found: one that is found late makes a straggler, an interval of a second already reported.
So every row is counted exactly once, and no second is ever counted twice.
"""

from __future__ import annotations

import struct
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.worker.pacer import UNSENT, leg_of
from common.histogram import EMPTY, Histogram, Ints
from common.metrics import LATE_SEND_NS, CommandMetrics, PoolMetrics, merge_commands, merge_named
from common.plan.timeline import Timeline
from common.target import Ending
from common.units import NS_PER_S

Rows: TypeAlias = NDArray[np.int64]
"""Shape (n, 8): completed_ns, kind, service_ns, lag_ns, bytes_out, bytes_in, wait_ns, count.

kind: row of the mix + number of rows * outcome, see `Outcomes`; `WAIT_ONLY` for a checkout that led to no operation.
lag_ns: from intended to actual send. Below 0 there is none, and it only tells the leg of the timeline: -1: the one in
which the operation began; `whenever_of` a leg: that one; `lag_of_unsent`: the one in which it was due. wait_ns: of the
checkout, -1 for all but the first operation of a batch. count: how many operations the row stands for, all alike but
for their bytes, which are those of all of them; at least 1.
"""

Place: TypeAlias = tuple[int, int]
"""(second of the run, number of the leg of its timeline)."""

NO_ROWS: Rows = np.empty((0, 8), dtype=np.int64)
pack_row: Callable[[int, int, int, int, int, int, int], bytes] = struct.Struct("=7q").pack
WAIT_ONLY = -1
NONE = -1
DONE = (True, "")


class Outcomes:
    """Numbers for the ways in which an operation can end. 0: done. Thread-safe; asked only when one was not done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[tuple[bool, str], int] = {}
        self.endings: list[tuple[bool, str]] = [DONE]
        """By number: (was there a reply, code or class)."""

    def number(self, ending: Ending) -> int:
        """The number of this way to end, a new one for a new way."""
        key = (ending.replied, ending.name)
        with self._lock:
            number = self._numbers.get(key)
            if number is None:
                number = self._numbers[key] = len(self.endings)
                self.endings.append(key)
            return number


class Record(Protocol):
    """What one worker did, whatever its driver. Only that worker writes; the collector reads.

    issued: operations begun. transactions: MULTI/EXEC pairs sent. unsent: operations that came too late to be sent;
    missed: the same by leg, known before, of a load that has several. add: takes rows as `pack_row` makes them.
    """

    issued: int
    transactions: int
    unsent: int
    missed: Counter[int]
    add: Callable[[bytes], None]

    def take(self) -> Rows:
        """All rows since the last call."""


class ThreadRecord:
    """See `Record`: of a worker thread or task."""

    __slots__ = ("_buffer", "add", "issued", "missed", "transactions", "unsent")

    def __init__(self) -> None:
        self._buffer = array("q")
        self.add: Callable[[bytes], None] = self._buffer.frombytes
        self.issued = 0
        self.transactions = 0
        self.unsent = 0
        self.missed: Counter[int] = Counter()

    def take(self) -> Rows:
        """All rows since the last call."""
        taken = take_rows(self._buffer, 7)
        rows = np.ones((len(taken), 8), dtype=np.int64)
        rows[:, :7] = taken
        return rows


def take_rows(buffer: array[int], columns: int) -> NDArray[np.int64]:
    """What a buffer holds, cut off: shape (n, columns). Others may append meanwhile, whole rows at a time."""
    count = len(buffer)
    taken = buffer[:count]
    del buffer[:count]
    return np.frombuffer(taken, dtype=np.int64).reshape(-1, columns)


def seconds_of(rows: Rows, t0_ns: int) -> Ints:
    """The second of the run in which each row completed; what was before `t0_ns` belongs to second 0."""
    return np.maximum(rows[:, 0] - t0_ns, 0) // NS_PER_S


def legs_of(rows: Rows, t0_ns: int, line: Timeline) -> Ints:
    """The leg of the timeline to which each row belongs: in which it was due, or in a closed loop began."""
    if line.is_plain:
        return np.zeros(len(rows), dtype=np.int64)
    began_ns, lag = rows[:, 0] - rows[:, 2], rows[:, 3]
    due_ns = began_ns - np.where(lag <= UNSENT, UNSENT - lag, np.maximum(lag, 0))
    by_time = np.searchsorted(np.array(line.begins_ns), due_ns - t0_ns, side="right") - 1
    return np.where((lag < NONE) & (lag > UNSENT), leg_of(lag), np.maximum(by_time, 0))


def bin_rows(rows: Rows, names: tuple[str, ...], endings: Sequence[tuple[bool, str]]) -> PoolMetrics:
    """Rows of one group of pools, added up; `names` and `endings` tell what their kinds mean."""
    columns = np.ascontiguousarray(rows.T)
    kinds = columns[1]
    by_name: dict[str, list[CommandMetrics]] = {}
    for kind in np.unique(kinds).tolist():
        if kind != WAIT_ONLY:
            outcome, row = divmod(kind, len(names))
            by_name.setdefault(names[row], []).append(_of_one_kind(columns[:, kinds == kind], endings[outcome]))
    return PoolMetrics(
        commands=merge_named([{name: part} for name, parts in by_name.items() for part in parts], merge_commands),
        checkout_wait=_histogram(columns[6], columns[7]),
        send_lag=_histogram(columns[3], columns[7]),
        late_sends=int(columns[7][columns[3] > LATE_SEND_NS].sum()),
    )


def _of_one_kind(columns: Ints, ending: tuple[bool, str]) -> CommandMetrics:
    _, _, service_ns, lag_ns, bytes_out, bytes_in, _, counts = columns
    count = int(counts.sum())
    is_open = lag_ns >= 0
    replied, name = ending
    done = ending == DONE
    return CommandMetrics(
        ok=count if done else 0,
        errors={name: count} if replied and not done else {},
        failures={} if replied else {name: count},
        bytes_out=int(bytes_out.sum()),
        bytes_in=int(bytes_in.sum()),
        service=_times(service_ns, counts) if done else EMPTY,
        response=_times((service_ns + lag_ns)[is_open], counts[is_open]) if done else EMPTY,
        failed=EMPTY if done else _times(service_ns, counts),
    )


def _histogram(values: Ints, counts: Ints) -> Histogram:
    return _times(values[values >= 0], counts[values >= 0])


def _times(values: Ints, counts: Ints) -> Histogram:
    return Histogram.of(values, None if (counts == 1).all() else counts)
