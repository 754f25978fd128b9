"""Rows of the hot path, with named columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from agent.worker.metrics.endpoints import Endpoints
from agent.worker.metrics.rows import NONE, PACKED, Rows, RowSums, ThreadRecord, pack_row
from agent.worker.pacing.pacer import LEG_BY_TIME
from common.metrics.intervals import PoolMetrics
from common.redis_client import NO_ENDPOINT


class Row(NamedTuple):
    """See `agent.worker.metrics.rows`."""

    ended_ns: int = 1
    kind: int = 0
    service_ns: int = 0
    lag_ns: int = NONE
    leg: int = LEG_BY_TIME
    bytes_out: int = 1
    bytes_in: int = 1
    wait_ns: int = 0
    endpoint: int = NO_ENDPOINT
    found: int = 0
    count: int = 1

    def packed(self) -> bytes:
        return pack_row(*self[:PACKED])


def rows_of(*rows: Row) -> Rows:
    """These rows as a record returns them, each of one operation."""
    record = ThreadRecord()
    for row in rows:
        record.add(row.packed())
    return record.take()


def named(rows: Rows, t0_ns: int = 0) -> list[Row]:
    """The rows with named columns; times from `t0_ns`."""
    return [Row(ended_ns - t0_ns, *others) for ended_ns, *others in rows.tolist()]


def bin_rows(
    rows: Rows, names: tuple[str, ...], outcomes: Sequence[tuple[bool, str]], endpoints: Endpoints | None = None
) -> PoolMetrics:
    """Metrics of rows of an open loop; see `RowSums.metrics`."""
    sums = RowSums(commands=len(names))
    sums.add(rows)
    return sums.metrics(names, outcomes, endpoints)
