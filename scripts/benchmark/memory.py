"""The section `memory`: what a worker process of the wire driver holds over minutes. Not run unless it is named."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import median

import psutil

from common.plan.schema import Driver, Load
from common.units import Seconds
from scripts.benchmark.cells import Cell, plan_for
from scripts.benchmark.contenders import Lane
from scripts.benchmark.ground import Findings, Ground, Judged, fill
from scripts.benchmark.workers import run_through

MOST_BYTES = 150_000_000
FLAT = 0.02
_CONNECTIONS = 200
_PIPELINE = 10
_KEYS = 1_000_000
_SHOWN = 10


def growth(sizes: Sequence[int]) -> float:
    """By which part memory grew from the second tenth of the time, when all is warm, to the last; each by its
    median, as a second's metrics are held for a moment. Raises ValueError for fewer than ten sizes."""
    if len(sizes) < 10:
        raise ValueError(f"expected at least 10 sizes, got {len(sizes)}")
    tenth = len(sizes) // 10
    return median(sizes[-tenth:]) / median(sizes[tenth : 2 * tenth]) - 1


def memory_section(ground: Ground) -> Findings:
    """One size a second, at 200 connections."""
    options = ground.options
    keys = min(_KEYS, options.keys)
    fill(ground.target, keys, options.data_sizes[0])
    print(f"memory over {options.memory_seconds} s ...", file=sys.stderr)
    cell = Cell(_CONNECTIONS, _PIPELINE, options.data_sizes[0], keys)
    load = Load(duration_s=Seconds(options.memory_seconds))
    sizes: list[int] = []
    run = run_through(
        Lane(plan_for(cell, Driver.WIRE, ground.target, load), ground.server.port, ground.core),
        lambda pid: sizes.append(psutil.Process(pid).memory_info().rss),
    )
    grown = growth(sizes)
    shown = ", ".join(f"{size / 1e6:.1f}" for size in sizes[:: max(1, len(sizes) // _SHOWN)])
    return Findings(
        [f"{cell.title}, {options.memory_seconds} s, {run.counted:,} operations; MB now and then: {shown}"],
        {"resident_bytes": sizes, "growth": grown, "operations": run.counted},
        [
            Judged(
                what=f"memory of a worker process of the wire driver, {_CONNECTIONS} connections",
                found=f"at most {max(sizes) / 1e6:.1f} MB, {grown:+.1%} from the second tenth of the time to the last",
                wanted=f"under {MOST_BYTES / 1e6:.0f} MB, and at most {FLAT:+.0%}",
                verdict="ok" if max(sizes) < MOST_BYTES and grown <= FLAT else "BELOW",
            )
        ],
    )
