"""The results of workers per second of the run: packed rows on the hot path, histograms later.

Each worker has its own buffer, and appends one row of ten 64-bit numbers for each operation: without a lock, shared
data, or objects for the garbage collector. (The wire driver appends one row for each batch, see
`drivers.wire.batch_rows`.) The collector takes the rows of a buffer and adds them up with numpy, some thousand at a
time, so that they fit the CPU cache and no thread waits for long. Appending and taking are one step each under the
interpreter lock.

A row belongs to the second in which its operation completed, whenever the collector finds it. If that second has been
reported already, the row goes into a further interval of the same second. So every row counts exactly once.
"""

from __future__ import annotations

import struct
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from agent.worker.metrics.endpoints import Endpoints
from agent.worker.metrics.hits import hits_of
from agent.worker.metrics.outcomes import DONE, Outcomes
from agent.worker.pacing.pacer import LEG_BY_TIME, NEVER_NS
from common.metrics.error_samples import ErrorSample, merge_each
from common.metrics.histogram import EMPTY, Ints, RunningHistogram
from common.metrics.intervals import (
    LATE_SEND_NS,
    CommandMetrics,
    PoolMetrics,
    merge_commands,
    merge_named,
)
from common.plan.timeline import MAX_LEGS, Timeline
from common.redis_client import NO_ENDPOINT
from common.units import NS_PER_S

Rows: TypeAlias = NDArray[np.int64]
"""Shape (n, 11), column-major; the columns are named below."""

ENDED_NS, KIND, SERVICE_NS, LAG_NS, LEG, BYTES_OUT, BYTES_IN, WAIT_NS, ENDPOINT, FOUND, COUNT = range(11)
"""The columns of `Rows`.

KIND: row of the mix + number of rows * outcome, see `Outcomes`; WAIT_ONLY for a checkout without an operation.
LAG_NS: from the intended to the actual send; NONE in a closed loop.
LEG: number of the leg of the timeline; LEG_BY_TIME: the leg of the intended send, or of the begin in a closed loop.
BYTES_OUT: 0 for an operation that was never sent.
WAIT_NS: of the checkout; NONE for all operations of a batch except the first.
ENDPOINT: see `Endpoints`; NO_ENDPOINT for a target that is one server.
FOUND: hits and misses, see `metrics.hits`; only those of operations done count.
COUNT: number of operations in the row, at least 1. They differ only in BYTES_OUT, BYTES_IN and FOUND, which are sums.
"""

NONE = -1
WAIT_ONLY = -1

_COLUMNS = 11
_MOST_OUTCOMES = 1 << 16
_MOST_ENDPOINTS = 1 << 16
PACKED = 10
"""Number of columns that `pack_row` packs: all except COUNT."""

pack_row: Callable[[int, int, int, int, int, int, int, int, int, int], bytes] = struct.Struct("=10q").pack
"""Packs a row of one operation, in the order of the columns."""

NO_ROWS: Rows = np.empty((0, _COLUMNS), dtype=np.int64, order="F")

IntervalKey: TypeAlias = tuple[int, int]
"""(second of the run, number of the leg of the timeline)."""

NOTHING_BEGUN = (NEVER_NS, 0)


class WorkerRecord(Protocol):
    """The results of one worker. Only the worker writes; the collector reads.

    issued: operations begun. transactions: MULTI/EXEC pairs sent. unsent: operations that were due but never sent.
    missed: the same by leg, for a load of several legs; updated before `unsent`. add: appends a packed row.
    """

    issued: int
    transactions: int
    unsent: int
    missed: Counter[int]
    add: Callable[[bytes], None]

    def take(self) -> Rows:
        """All rows since the last call."""


class ThreadRecord:
    """The record of a worker thread or task. See `WorkerRecord`."""

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
        return unpack_rows(self._buffer)


def unpack_rows(buffer: array[int]) -> Rows:
    """Take the packed rows of a buffer, each of one operation."""
    taken = take_rows(buffer, PACKED)
    rows: Rows = np.empty((len(taken), _COLUMNS), dtype=np.int64, order="F")
    rows[:, :PACKED] = taken
    rows[:, COUNT] = 1
    return rows


def join_rows(parts: Sequence[Rows]) -> Rows:
    """All rows of these parts."""
    filled = [part for part in parts if len(part)]
    return filled[0] if len(filled) == 1 else np.concatenate([NO_ROWS, *filled])


def take_rows(buffer: array[int], columns: int) -> NDArray[np.int64]:
    """Take the content of a buffer as rows of shape (n, columns). Other threads may append whole rows meanwhile."""
    count = len(buffer)
    taken = buffer[:count]
    del buffer[:count]
    return np.frombuffer(taken, dtype=np.int64).reshape(-1, columns)


def distinct(values: Ints) -> list[int]:
    """Each value once, ascending."""
    # Not `np.unique`, whose first call imports a package and so pauses the load for 10 ms.
    ordered = np.sort(values)
    return [*ordered[:-1][ordered[1:] != ordered[:-1]].tolist(), *ordered[-1:].tolist()]


def seconds_of(rows: Rows, t0_ns: int) -> Ints:
    """The second of the run in which each row completed; second 0 for rows before `t0_ns`."""
    return np.maximum(rows[:, ENDED_NS] - t0_ns, 0) // NS_PER_S


def legs_of(rows: Rows, t0_ns: int, line: Timeline) -> Ints:
    """The leg of the timeline of each row."""
    if line.has_one_leg:
        return np.zeros(len(rows), dtype=np.int64)
    due_ns = rows[:, ENDED_NS] - rows[:, SERVICE_NS] - np.maximum(rows[:, LAG_NS], 0)
    by_time = np.searchsorted(np.array(line.begins_ns), due_ns - t0_ns, side="right") - 1
    return np.where(rows[:, LEG] == LEG_BY_TIME, np.maximum(by_time, 0), rows[:, LEG])


def by_interval(rows: Rows, t0_ns: int, line: Timeline) -> Iterator[tuple[IntervalKey, Rows]]:
    """The rows of each interval."""
    if not len(rows):
        return
    first, last = (
        max(int(end_ns) - t0_ns, 0) // NS_PER_S for end_ns in (rows[:, ENDED_NS].min(), rows[:, ENDED_NS].max())
    )
    if line.has_one_leg and first == last:  # nearly always, and much cheaper
        yield (first, 0), rows
        return
    keys = seconds_of(rows, t0_ns) * MAX_LEGS + legs_of(rows, t0_ns, line)
    for key in distinct(keys):
        yield divmod(key, MAX_LEGS), _select(rows.T, keys == key).T


class RowSums:
    """Adds up the rows of one interval of one group of pools.

    first: (when the earliest operation began, how long after its intended time). begun_after: number of operations that
    began at `end_ns` or later.
    """

    def __init__(
        self,
        is_open: bool = True,
        begin_ns: int = 0,
        end_ns: int | None = None,
        commands: int = 1,
        outcomes: Outcomes | None = None,
    ) -> None:
        """is_open: the leg is an open loop. In a closed loop, the intended time of the first operation is the beginning
        of the leg. begin_ns, end_ns: of the leg. end_ns: None if no operation can begin after the leg. commands: number
        of rows of the mix. outcomes: of the rows; without it, there are no samples of errors."""
        self._outcomes = outcomes
        self._errors: defaultdict[tuple[int, int], _ErrorSums] = defaultdict(_ErrorSums)
        self._is_open, self._begin_ns, self._end_ns, self._commands = is_open, begin_ns, end_ns, commands
        self._kinds: defaultdict[int, _KindSums] = defaultdict(_KindSums)
        self._endpoints: defaultdict[tuple[int, int], _KindSums] = defaultdict(_KindSums)
        self._waits, self._lags = RunningHistogram(), RunningHistogram()
        self._late_sends = 0
        self.first = NOTHING_BEGUN
        self.begun_after = 0

    def add(self, rows: Rows) -> None:
        """Add rows."""
        columns = np.ascontiguousarray(rows.T)
        if self._outcomes is not None and columns[KIND].max(initial=0) >= self._commands:
            columns = self._add_errors(columns, self._outcomes)
        kinds, wait_ns, counts = columns[KIND], columns[WAIT_NS], columns[COUNT]
        present = distinct(kinds)
        for kind in present:
            if kind != WAIT_ONLY:
                self._add_kind(kind, columns if len(present) == 1 else _select(columns, kinds == kind))
        if columns[ENDPOINT].max(initial=NO_ENDPOINT) != NO_ENDPOINT:
            self._add_by_endpoint(columns)
        _add_known(self._waits, wait_ns, counts, wait_ns)
        if self._is_open:
            lag_ns = columns[LAG_NS]
            if not columns[BYTES_OUT].all():
                lag_ns = np.where(columns[BYTES_OUT] > 0, lag_ns, NONE)
            _add_known(self._lags, lag_ns, counts, lag_ns)
            self._late_sends += int(counts[lag_ns > LATE_SEND_NS].sum())

    def _add_errors(self, columns: Ints, outcomes: Outcomes) -> Ints:
        """Count errors by kind and server. Returns the rows with the class of each error instead of its kind, because
        histograms and counts are by class."""
        outcome = np.maximum(columns[KIND], 0) // self._commands
        failed = _select(columns, outcome > 0)
        keys = failed[KIND] * _MOST_ENDPOINTS + failed[ENDPOINT] - NO_ENDPOINT
        for key in distinct(keys):
            kind, endpoint = divmod(key, _MOST_ENDPOINTS)
            chosen = np.flatnonzero(keys == key)
            self._errors[kind, endpoint + NO_ENDPOINT].add(failed[ENDED_NS][chosen], failed[COUNT][chosen])
        by_class = columns.copy()
        by_class[KIND] += (np.array(outcomes.classes)[outcome] - outcome) * self._commands
        return by_class

    def _add_kind(self, kind: int, columns: Ints) -> None:
        service_ns, lag_ns, counts = columns[SERVICE_NS], columns[LAG_NS], columns[COUNT]
        self._kinds[kind].add(columns, self._is_open)
        began_ns = columns[ENDED_NS] - service_ns
        self.first = min(self.first, self._first_of(began_ns, lag_ns))
        if self._end_ns is not None:
            self.begun_after += int(counts[began_ns >= self._end_ns].sum())

    def _add_by_endpoint(self, columns: Ints) -> None:
        keys = columns[ENDPOINT] * _MOST_OUTCOMES + columns[KIND] // self._commands
        present = distinct(keys)
        for key in present:
            if key >= 0:  # NO_ENDPOINT is negative
                chosen = columns if len(present) == 1 else _select(columns, keys == key)
                self._endpoints[divmod(key, _MOST_OUTCOMES)].add(chosen, self._is_open)

    def _first_of(self, began_ns: Ints, lag_ns: Ints) -> tuple[int, int]:
        """`first`, with these operations included. The operations of a batch begin together, and the batch is due when
        its last operation is, so the smallest delay counts."""
        earliest_ns = int(began_ns.min())
        if earliest_ns > self.first[0]:
            return self.first
        skew_ns = np.full_like(lag_ns, earliest_ns - self._begin_ns)
        if self._is_open:
            skew_ns = np.where(lag_ns >= 0, lag_ns, skew_ns)
        return earliest_ns, int(skew_ns[began_ns == earliest_ns].min())

    def metrics(
        self,
        names: tuple[str, ...],
        outcomes: Sequence[tuple[bool, str]],
        endpoints: Endpoints | None = None,
        t0_ns: int = 0,
    ) -> PoolMetrics:
        """Metrics of all rows so far. names: commands by row of the mix. outcomes: see `Outcomes.names`. endpoints:
        those that the rows name. t0_ns: the start instant, for the times of errors."""
        commands = []
        for kind, sums in sorted(self._kinds.items()):
            outcome, row = divmod(kind, len(names))
            commands.append({names[row]: sums.metrics(outcomes[outcome])})
        primaries: list[dict[str, CommandMetrics]] = []
        replicas: list[dict[str, CommandMetrics]] = []
        for (endpoint, outcome), sums in sorted(self._endpoints.items()):
            assert endpoints is not None
            role = replicas if endpoints.is_replica(endpoint) else primaries
            role.append({endpoints.names[endpoint]: sums.metrics(outcomes[outcome])})
        return PoolMetrics(
            commands=merge_named(commands, merge_commands),
            primaries=merge_named(primaries, merge_commands),
            replicas=merge_named(replicas, merge_commands),
            checkout_wait=self._waits.histogram(),
            send_lag=self._lags.histogram(),
            late_sends=self._late_sends,
            error_samples=self._error_samples(names, endpoints, t0_ns),
        )

    def _error_samples(
        self, names: tuple[str, ...], endpoints: Endpoints | None, t0_ns: int
    ) -> tuple[ErrorSample, ...]:
        found = []
        for (kind, endpoint), sums in sorted(self._errors.items()):
            assert self._outcomes is not None
            outcome, row = divmod(kind, self._commands)
            name, texts = self._outcomes.names[outcome][1], self._outcomes.samples[outcome]
            first_ns, last_ns = max(sums.first_ns - t0_ns, 0), max(sums.last_ns - t0_ns, 0)
            if texts is None:
                found.append(ErrorSample(name=name, count=sums.count, first_ns=first_ns, last_ns=last_ns))
                continue
            server = "" if endpoints is None or endpoint == NO_ENDPOINT else endpoints.names[endpoint]
            found.append(texts.sample(name, names[row], server, sums.count, first_ns, last_ns))
        return merge_each(found)


class _ErrorSums:
    """Errors of one kind at one server."""

    __slots__ = ("count", "first_ns", "last_ns")

    def __init__(self) -> None:
        self.count, self.first_ns, self.last_ns = 0, NEVER_NS, 0

    def add(self, ended_ns: Ints, counts: Ints) -> None:
        """Add errors."""
        self.count += int(counts.sum())
        self.first_ns = min(self.first_ns, int(ended_ns.min()))
        self.last_ns = max(self.last_ns, int(ended_ns.max()))


class _KindSums:
    """Sums of the rows of one kind."""

    __slots__ = ("bytes_in", "bytes_out", "count", "hits", "misses", "response", "service")

    def __init__(self) -> None:
        self.count = self.bytes_out = self.bytes_in = self.hits = self.misses = 0
        self.service, self.response = RunningHistogram(), RunningHistogram()

    def add(self, columns: Ints, is_open: bool) -> None:
        """Add rows of one kind. is_open: of an open loop."""
        service_ns, lag_ns, counts = columns[SERVICE_NS], columns[LAG_NS], columns[COUNT]
        count = int(counts.sum())
        self.count += count
        self.bytes_out += int(columns[BYTES_OUT].sum())
        self.bytes_in += int(columns[BYTES_IN].sum())
        hits, misses = hits_of(int(columns[FOUND].sum()))
        self.hits += hits
        self.misses += misses
        self.service.add(service_ns, _weights(counts, count))
        if is_open:
            _add_known(self.response, service_ns + lag_ns, counts, lag_ns)

    def metrics(self, outcome: tuple[bool, str]) -> CommandMetrics:
        replied, name = outcome
        done = outcome == DONE
        return CommandMetrics(
            ok=self.count if done else 0,
            errors={name: self.count} if replied and not done else {},
            failures={} if replied else {name: self.count},
            bytes_out=self.bytes_out,
            bytes_in=self.bytes_in,
            hits=self.hits if done else 0,
            misses=self.misses if done else 0,
            service=self.service.histogram() if done else EMPTY,
            response=self.response.histogram() if done else EMPTY,
            failed=EMPTY if done else self.service.histogram(),
        )


def _select(columns: Ints, chosen: NDArray[np.bool_]) -> Ints:
    return columns.take(np.flatnonzero(chosen), axis=1)


def _add_known(histogram: RunningHistogram, values: Ints, counts: Ints, known: Ints) -> None:
    """Add the values where `known` is not below 0."""
    if not len(known) or int(known.max()) < 0:
        return
    if int(known.min()) < 0:
        is_known = known >= 0
        values, counts = values[is_known], counts[is_known]
    histogram.add(values, _weights(counts, int(counts.sum())))


def _weights(counts: Ints, total: int) -> Ints | None:
    """`counts`; None if each count is 1, the minimum."""
    return None if total == len(counts) else counts
