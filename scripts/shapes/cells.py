"""One cell of the matrix: what is run, and what came of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

DRIVERS = ("client", "asyncio", "wire")
LOADS = ("closed", "open")
PIPELINES = (1, 10)
RATE_PER_S = 500

# Few connections a client: a cluster has as many for each of its nodes.
_POOLS = ("--client-pools", "2", "--max-connections", "8")
_WORKERS = {"client": ("--threads-per-pool", "2"), "asyncio": ("--tasks-per-pool", "2"), "wire": ()}
_WORKLOAD = ("--ratio", "1:1", "--key-maximum", "1000")
_GRACE_S = 60.0


@dataclass(frozen=True, slots=True)
class MatrixCell:
    """One run of the matrix."""

    shape: str
    driver: str
    load: str
    pipeline: int

    def command(self, url: str, flags: Sequence[str], seconds: float, out: Path) -> list[str]:
        """`coordinator start` as a person would type it."""
        rate = ("--rate", f"{RATE_PER_S}/s") if self.load == "open" else ()
        return [
            *(str(Path(sys.executable).with_name("coordinator")), "start", "--json", "--out", str(out)),
            *("--url", url, *flags, "--driver", self.driver, *_POOLS, *_WORKERS[self.driver]),
            *(*_WORKLOAD, "--pipeline", str(self.pipeline), *rate, "--duration", f"{seconds}s"),
        ]


@dataclass(frozen=True, slots=True)
class CellResult:
    """What came of a cell. problem: why it does not count as passed, "" where it does. ledger: as in summary.json."""

    cell: MatrixCell
    problem: str
    operations: int = 0
    ops_per_s: float = 0.0
    p99_ms: float = 0.0
    errors: int = 0
    ledger: dict[str, Any] | None = None


def cells(shapes: Sequence[str]) -> Iterator[MatrixCell]:
    """All cells of these shapes, shape by shape."""
    for shape, driver, load, pipeline in product(shapes, DRIVERS, LOADS, PIPELINES):
        yield MatrixCell(shape, driver, load, pipeline)


def run(cell: MatrixCell, command: Sequence[str], seconds: float) -> CellResult:
    """Run a cell to its end. Its servers must be up."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _GRACE_S)
    except subprocess.TimeoutExpired:
        return CellResult(cell, f"did not end within {seconds + _GRACE_S:g} s")
    if done.returncode != 0:
        last_words = (done.stderr.strip().splitlines() or [""])[-1]
        return CellResult(cell, f"exit code {done.returncode}: {last_words}")
    return judged(cell, json.loads(done.stdout))


def judged(cell: MatrixCell, summary: dict[str, Any]) -> CellResult:
    """A summary as a result: it passes when operations were done, none failed, and the server counted the same."""
    totals, ledger = summary["totals"], summary["ledger"]
    problem = ""
    if totals["operations"] == 0:
        problem = "no operation was done"
    elif totals["errors"]:
        problem = f"{totals['errors']} errors: {summary['errors']}"
    elif ledger["server_calls"] is None:
        problem = f"the server's count could not be compared: {ledger['note']}"
    elif ledger["unaccounted"]:
        problem = f"{ledger['unaccounted']} operations are unaccounted for"
    return CellResult(
        cell,
        problem,
        operations=totals["operations"],
        ops_per_s=totals["ops_per_s"],
        p99_ms=totals["latency_us"]["service"]["p99"] / 1000,
        errors=totals["errors"],
        ledger=ledger,
    )
