"""One combination of shape, driver, load model and pipeline depth: its command line, its run and its result."""

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

# Few connections per client, because a cluster client has this many for each node.
_POOLS = ("--client-pools", "2", "--max-connections", "8")
_WORKERS = {"client": ("--threads-per-pool", "2"), "asyncio": ("--tasks-per-pool", "2"), "wire": ()}
_WORKLOAD = ("--ratio", "1:1", "--key-maximum", "1000")
_EXTRA_TIME_S = 60.0


@dataclass(frozen=True, slots=True)
class Combination:
    """One run of the matrix. load: "closed" or "open"."""

    shape: str
    driver: str
    load: str
    pipeline: int

    def command(self, url: str, flags: Sequence[str], seconds: float, out: Path) -> list[str]:
        """The command line: `coordinator start` with its flags."""
        rate = ("--rate", f"{RATE_PER_S}/s") if self.load == "open" else ()
        return [
            *(str(Path(sys.executable).with_name("coordinator")), "start", "--json", "--out", str(out)),
            *("--url", url, *flags, "--driver", self.driver, *_POOLS, *_WORKERS[self.driver]),
            *(*_WORKLOAD, "--pipeline", str(self.pipeline), *rate, "--duration", f"{seconds}s"),
        ]


@dataclass(frozen=True, slots=True)
class CombinationResult:
    """The result of a combination. problem: why it failed; "" if it passed. ledger: as in summary.json."""

    combination: Combination
    problem: str
    operations: int = 0
    ops_per_s: float = 0.0
    p99_ms: float = 0.0
    errors: int = 0
    ledger: dict[str, Any] | None = None


def combinations(shapes: Sequence[str]) -> Iterator[Combination]:
    """All combinations for these shapes, shape by shape."""
    for shape, driver, load, pipeline in product(shapes, DRIVERS, LOADS, PIPELINES):
        yield Combination(shape, driver, load, pipeline)


def run(combination: Combination, command: Sequence[str], seconds: float) -> CombinationResult:
    """Run a combination. Its servers must be up."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + _EXTRA_TIME_S)
    except subprocess.TimeoutExpired:
        return CombinationResult(combination, f"did not end within {seconds + _EXTRA_TIME_S:g} s")
    if done.returncode != 0:
        last_line = (done.stderr.strip().splitlines() or [""])[-1]
        return CombinationResult(combination, f"exit code {done.returncode}: {last_line}")
    return result_of(combination, json.loads(done.stdout))


def result_of(combination: Combination, summary: dict[str, Any]) -> CombinationResult:
    """Check a summary: there must be operations, none may have failed, and all counts must agree."""
    totals, ledger = summary["totals"], summary["ledger"]
    problem = ""
    if totals["operations"] == 0:
        problem = "no operations"
    elif totals["errors"]:
        problem = f"{totals['errors']} errors: {summary['errors']}"
    elif ledger["server_calls"] is None:
        problem = f"the server's count could not be compared: {ledger['note']}"
    elif ledger["unaccounted"]:
        problem = f"{ledger['unaccounted']} operations are unaccounted for"
    return CombinationResult(
        combination,
        problem,
        operations=totals["operations"],
        ops_per_s=totals["ops_per_s"],
        p99_ms=totals["latency_us"]["service"]["p99"] / 1000,
        errors=totals["errors"],
        ledger=ledger,
    )
