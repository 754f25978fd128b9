"""The section `memory`: memory of a worker process of the wire driver over minutes. Runs only if named."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import median

import psutil

from common.plan.schema import Driver, Load
from common.units import Seconds
from scripts.benchmark.cases import Case, plan_for
from scripts.benchmark.contenders import LoadSpec
from scripts.benchmark.context import BenchContext, Findings, GoalResult, create_keys
from scripts.benchmark.workers import run_to_end

MAX_BYTES = 150_000_000
MAX_GROWTH = 0.02
_CONNECTIONS = 200
_PIPELINE = 10
_KEYS = 1_000_000
_SHOWN = 10


def growth(sizes: Sequence[int]) -> float:
    """Relative growth of memory from the second tenth of the run, when all caches are warm, to the last tenth. Compares
    medians, because the metrics of each second take memory for a moment. Raises ValueError for fewer than ten sizes."""
    if len(sizes) < 10:
        raise ValueError(f"expected at least 10 sizes, got {len(sizes)}")
    tenth = len(sizes) // 10
    return median(sizes[-tenth:]) / median(sizes[tenth : 2 * tenth]) - 1


def memory_section(context: BenchContext) -> Findings:
    """Measure resident memory once per second."""
    options = context.options
    keys = min(_KEYS, options.keys)
    create_keys(context.target, keys, options.data_sizes[0])
    print(f"memory over {options.memory_seconds} s ...", file=sys.stderr)
    case = Case(_CONNECTIONS, _PIPELINE, options.data_sizes[0], keys)
    load = Load(duration_s=Seconds(options.memory_seconds))
    sizes: list[int] = []
    run = run_to_end(
        LoadSpec(plan_for(case, Driver.WIRE, context.target, load), context.server.port, context.generator_core),
        lambda pid: sizes.append(psutil.Process(pid).memory_info().rss),
    )
    grown = growth(sizes)
    shown = ", ".join(f"{size / 1e6:.1f}" for size in sizes[:: max(1, len(sizes) // _SHOWN)])
    return Findings(
        [f"{case.title}, {options.memory_seconds} s, {run.counted:,} operations", f"MB over the run: {shown}"],
        {"resident_bytes": sizes, "growth": grown, "operations": run.counted},
        [
            GoalResult(
                what=f"memory of a worker process of the wire driver, {_CONNECTIONS} connections",
                found=f"at most {max(sizes) / 1e6:.1f} MB, {grown:+.1%} from the second tenth of the run to the last",
                wanted=f"under {MAX_BYTES / 1e6:.0f} MB, and at most {MAX_GROWTH:+.0%}",
                verdict="ok" if max(sizes) < MAX_BYTES and grown <= MAX_GROWTH else "MISSED",
            )
        ],
    )
