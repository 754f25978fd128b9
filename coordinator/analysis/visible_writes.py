"""Visibility: how many stamped writes were seen on the other target, and how long after they began. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from common.metrics.histogram import Histogram
from common.metrics.intervals import DeliveryMetrics, merge_deliveries
from common.plan.schema import StampRole
from coordinator.analysis.totals.aggregate import Aggregate


@dataclass(frozen=True, slots=True)
class VisibleWrites:
    """write, read: names of the targets, "" for the plan's own. written: writes that the server confirmed. seen: writes
    that a read has shown in time. Both include the warmup; lag does not."""

    write: str
    read: str
    written: int
    seen: int
    lag: Histogram


def visible_writes(run: Aggregate) -> VisibleWrites | None:
    """Return the figures of the run; None if the plan has no visibility."""
    parts = {role: part for part in run.parts if (role := _role(part)) is not None}
    writer, reader = parts.get(StampRole.WRITE), parts.get(StampRole.READ)
    if writer is None or reader is None:
        return None
    measured = merge_deliveries(pool.deliveries for pool in reader.measured.pools.values())
    return VisibleWrites(
        write=_target(writer),
        read=_target(reader),
        written=_deliveries(writer).expected,
        seen=_deliveries(reader).delivered,
        lag=measured.latency,
    )


def _role(part: Aggregate) -> StampRole | None:
    stamps = part.opened.plan.workload.stamps if part.opened is not None else None
    return None if stamps is None else stamps.role


def _target(part: Aggregate) -> str:
    return part.scenario.target if part.scenario is not None else ""


def _deliveries(part: Aggregate) -> DeliveryMetrics:
    return merge_deliveries(pool.deliveries for pool in part.totals.pools.values())
