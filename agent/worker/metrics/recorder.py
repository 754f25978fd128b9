"""What threads did, per second of the run: raw rows on the hot path, histograms off it.

Each thread owns one buffer and appends one row of seven 64-bit numbers per operation: no lock, nothing shared, no
objects that the garbage collector would have to walk. (The wire driver's record is one row a batch, see `wire.rows`.)
The collector cuts off what a buffer holds (one step under the interpreter's own lock, as the append is) and adds it up
with numpy, some thousand rows at a time: so what it works on stays in the cache, and no thread waits for long. A row
belongs to the second in which its operation completed, whenever it is found: one that is found late makes a straggler,
an interval of a second already reported. So every row is counted exactly once, and no second is ever counted twice.
"""

from __future__ import annotations

import struct
import threading
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.worker.pacing.pacer import NEVER_NS, UNSENT, leg_of
from common.metrics.histogram import EMPTY, Ints, RunningHistogram
from common.metrics.intervals import (
    LATE_SEND_NS,
    MAX_NAME_LENGTH,
    MAX_NAMES,
    OTHER,
    CommandMetrics,
    PoolMetrics,
    merge_commands,
    merge_named,
)
from common.plan.timeline import MAX_LEGS, Timeline
from common.redis_client import Failure
from common.units import NS_PER_S

Rows: TypeAlias = NDArray[np.int64]
"""Shape (n, 8): completed_ns, kind, service_ns, lag_ns, bytes_out, bytes_in, wait_ns, count. Column-major.

kind: row of the mix + number of rows * outcome, see `Outcomes`; `WAIT_ONLY` for a checkout that led to no operation.
lag_ns: from intended to actual send. Below 0 there is none, and it only tells the leg of the timeline: -1: the one in
which the operation began; `whenever_of` a leg: that one; `lag_of_unsent`: the one in which it was due. wait_ns: of the
checkout, -1 for all but the first operation of a batch. count: how many operations the row stands for, all alike but
for their bytes, which are those of all of them; at least 1.
"""

Place: TypeAlias = tuple[int, int]
"""(second of the run, number of the leg of its timeline)."""

_COLUMNS = 8
NO_ROWS: Rows = np.empty((0, _COLUMNS), dtype=np.int64, order="F")
PACKED = 7
"""How many numbers `pack_row` packs: all but the count."""

pack_row: Callable[[int, int, int, int, int, int, int], bytes] = struct.Struct("=7q").pack
WAIT_ONLY = -1
NONE = -1
NOTHING_BEGUN = (NEVER_NS, 0)
DONE = (True, "")


class Outcomes:
    """Numbers for the ways in which an operation can end. 0: done. Thread-safe; asked only when one was not done."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers: dict[tuple[bool, str], int] = {}
        self.endings: list[tuple[bool, str]] = [DONE]
        """By number: (was there a reply, code or class)."""

    def number(self, failure: Failure) -> int:
        """The number of this way to end, a new one for a new way."""
        key = (failure.replied, failure.name[:MAX_NAME_LENGTH])
        with self._lock:
            number = self._numbers.get(key)
            if number is None and len(self.endings) >= MAX_NAMES:
                key = (failure.replied, OTHER)
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
        return rows_of_packed(self._buffer)


def rows_of_packed(buffer: array[int]) -> Rows:
    """What a buffer holds that `pack_row` made, cut off: as rows of one operation each."""
    taken = take_rows(buffer, PACKED)
    rows: Rows = np.empty((len(taken), _COLUMNS), dtype=np.int64, order="F")
    rows[:, :PACKED] = taken
    rows[:, PACKED] = 1
    return rows


def joined(parts: Sequence[Rows]) -> Rows:
    """All rows of all parts."""
    filled = [part for part in parts if len(part)]
    return filled[0] if len(filled) == 1 else np.concatenate([NO_ROWS, *filled])


def take_rows(buffer: array[int], columns: int) -> NDArray[np.int64]:
    """What a buffer holds, cut off: shape (n, columns). Others may append meanwhile, whole rows at a time."""
    count = len(buffer)
    taken = buffer[:count]
    del buffer[:count]
    return np.frombuffer(taken, dtype=np.int64).reshape(-1, columns)


def distinct(values: Ints) -> list[int]:
    """Each value once, ascending."""
    # Not with `np.unique`, which loads a package when it is first called: a pause of 10 ms in the midst of the load.
    ordered = np.sort(values)
    return [*ordered[:-1][ordered[1:] != ordered[:-1]].tolist(), *ordered[-1:].tolist()]


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


def by_place(rows: Rows, t0_ns: int, line: Timeline) -> Iterator[tuple[Place, Rows]]:
    """The rows of each place."""
    if not len(rows):
        return
    first, last = (max(int(end_ns) - t0_ns, 0) // NS_PER_S for end_ns in (rows[:, 0].min(), rows[:, 0].max()))
    if line.is_plain and first == last:  # nearly always, and much cheaper
        yield (first, 0), rows
        return
    places = seconds_of(rows, t0_ns) * MAX_LEGS + legs_of(rows, t0_ns, line)
    for place in distinct(places):
        yield divmod(place, MAX_LEGS), _those(rows.T, places == place).T


class Sums:
    """Rows of one place of one group of pools, added up as they come.

    first: (when the earliest of the operations began, how long after its intended time). begun_after: how many began at
    `end_ns` or later.
    """

    def __init__(self, is_open: bool = True, begin_ns: int = 0, end_ns: int | None = None) -> None:
        """is_open: the leg is an open loop, and a lag says how late an operation was sent. In a closed loop the begin
        of the leg is the intended time of the first operation."""
        self._is_open, self._begin_ns, self._end_ns = is_open, begin_ns, end_ns
        self._kinds: defaultdict[int, _KindSums] = defaultdict(_KindSums)
        self._waits, self._lags = RunningHistogram(), RunningHistogram()
        self._late_sends = 0
        self.first = NOTHING_BEGUN
        self.begun_after = 0

    def add(self, rows: Rows) -> None:
        """Add these."""
        columns = np.ascontiguousarray(rows.T)
        _, kinds, _, lag_ns, _, _, wait_ns, counts = columns
        present = distinct(kinds)
        for kind in present:
            if kind != WAIT_ONLY:
                self._add_kind(kind, columns if len(present) == 1 else _those(columns, kinds == kind))
        _add_known(self._waits, wait_ns, counts, wait_ns)
        if self._is_open:
            _add_known(self._lags, lag_ns, counts, lag_ns)
            self._late_sends += int(counts[lag_ns > LATE_SEND_NS].sum())

    def _add_kind(self, kind: int, columns: Ints) -> None:
        ended_ns, _, service_ns, lag_ns, _, _, _, counts = columns
        bytes_out, bytes_in, _, count = columns[4:].sum(axis=1).tolist()
        sums = self._kinds[kind]
        sums.count += count
        sums.bytes_out += bytes_out
        sums.bytes_in += bytes_in
        sums.service.add(service_ns, _times(counts, count))
        if self._is_open:
            _add_known(sums.response, service_ns + lag_ns, counts, lag_ns)
        began_ns = ended_ns - service_ns
        self.first = min(self.first, self._first_of(began_ns, lag_ns))
        if self._end_ns is not None:
            self.begun_after += int(counts[began_ns >= self._end_ns].sum())

    def _first_of(self, began_ns: Ints, lag_ns: Ints) -> tuple[int, int]:
        """`first` with these operations. Operations of one batch begin together, and the batch is due with its last
        one."""
        earliest_ns = int(began_ns.min())
        if earliest_ns > self.first[0]:
            return self.first
        skew_ns = np.full_like(lag_ns, earliest_ns - self._begin_ns)
        if self._is_open:
            skew_ns = np.where(lag_ns >= 0, lag_ns, np.where(lag_ns <= UNSENT, UNSENT - lag_ns, skew_ns))
        return earliest_ns, int(skew_ns[began_ns == earliest_ns].min())

    def metrics(self, names: tuple[str, ...], endings: Sequence[tuple[bool, str]]) -> PoolMetrics:
        """Of all rows so far; `names` and `endings` tell what their kinds mean."""
        commands = []
        for kind, sums in sorted(self._kinds.items()):
            outcome, row = divmod(kind, len(names))
            commands.append({names[row]: sums.metrics(endings[outcome])})
        return PoolMetrics(
            commands=merge_named(commands, merge_commands),
            checkout_wait=self._waits.histogram(),
            send_lag=self._lags.histogram(),
            late_sends=self._late_sends,
        )


class _KindSums:
    """Of the rows of one kind."""

    __slots__ = ("bytes_in", "bytes_out", "count", "response", "service")

    def __init__(self) -> None:
        self.count = self.bytes_out = self.bytes_in = 0
        self.service, self.response = RunningHistogram(), RunningHistogram()

    def metrics(self, outcome: tuple[bool, str]) -> CommandMetrics:
        replied, name = outcome
        done = outcome == DONE
        return CommandMetrics(
            ok=self.count if done else 0,
            errors={name: self.count} if replied and not done else {},
            failures={} if replied else {name: self.count},
            bytes_out=self.bytes_out,
            bytes_in=self.bytes_in,
            service=self.service.histogram() if done else EMPTY,
            response=self.response.histogram() if done else EMPTY,
            failed=EMPTY if done else self.service.histogram(),
        )


def bin_rows(rows: Rows, names: tuple[str, ...], endings: Sequence[tuple[bool, str]]) -> PoolMetrics:
    """Rows of one group of pools, added up; `names` and `endings` tell what their kinds mean."""
    sums = Sums()
    sums.add(rows)
    return sums.metrics(names, endings)


def _those(columns: Ints, chosen: NDArray[np.bool_]) -> Ints:
    return columns.take(np.flatnonzero(chosen), axis=1)


def _add_known(histogram: RunningHistogram, values: Ints, counts: Ints, known: Ints) -> None:
    """Add the values of those that are known: where `known` is not below 0."""
    if not len(known) or int(known.max()) < 0:
        return
    if int(known.min()) < 0:
        is_known = known >= 0
        values, counts = values[is_known], counts[is_known]
    histogram.add(values, _times(counts, int(counts.sum())))


def _times(counts: Ints, sum_of_them: int) -> Ints | None:
    """None where each is 1, as it is the least that they can be."""
    return None if sum_of_them == len(counts) else counts
