"""The percentiles that a plan asks for, in tables and in summary.json. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from coordinator.report.summary_types import Quantiles

FIXED = {"p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99", "p99.9": "p99_9", "p99.99": "p99_99"}
"""The percentiles that every `Quantiles` has: their names, and its fields."""


def percentile_names(percentiles: Iterable[float]) -> list[str]:
    """`(99.0, 50.0, 97.5)` -> ["p50", "p97.5", "p99"]: ascending, each once."""
    return [f"p{percentile:.15g}" for percentile in sorted(set(percentiles))]


def shown_percentiles(plan: dict[str, Any], default: Sequence[str]) -> list[str]:
    """The names of the percentiles in tables: those that the plan asks for, or these."""
    return percentile_names(map(float, plan.get("percentiles") or ())) or list(default)


def percentile_of(quantiles: Quantiles, name: str) -> float:
    """The value of a percentile."""
    return quantiles.asked[name] if name in quantiles.asked else float(getattr(quantiles, FIXED[name]))
