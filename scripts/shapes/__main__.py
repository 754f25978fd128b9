"""Does every shape of target work with every driver, load model and pipeline depth?

checks:
  Each combination is one run of `coordinator start` with two client pools and SET and GET 1:1, as a closed loop or as
  an open loop at 500/s. It passes if there were operations, none failed, and the ledger's `unaccounted` is 0: workers,
  frames and the servers' INFO commandstats count exactly the same. In a cluster, the servers' count is the sum over all
  nodes.

  The script starts and stops the servers, on loopback: Valkey of the extra `embedded`, and Debian's redis-server for
  TLS. The exit code is 1 if a combination failed or could not run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from common.errors import EXIT_INTERRUPTED, StampedeError
from scripts.shapes.combinations import Combination, CombinationResult, combinations, run
from scripts.shapes.servers import SHAPES

_HEAD = "| shape | driver | load | pipeline | operations | ops/s | p99 ms | errors | unaccounted | |"
_RULE = "|---|---|---|---:|---:|---:|---:|---:|---:|---|"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the matrix and return the exit code: 0 if all combinations passed, 1 if not."""
    options = _parser().parse_args(arguments)
    results: list[CombinationResult] = []
    print(_HEAD, _RULE, sep="\n", flush=True)
    try:
        for shape in options.shapes:
            results += _shape_results(shape, options.seconds)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    options.out.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    failed = [result for result in results if result.problem]
    print(f"\n{len(results) - len(failed)} of {len(results)} combinations passed; wrote {options.out}")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "scripts/matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each run (2)")
    parser.add_argument("--shapes", type=_shapes, default=list(SHAPES), help=f"some of {','.join(SHAPES)} (all)")
    parser.add_argument("--out", type=Path, default=Path("matrix.json"), help="file for the results (matrix.json)")
    return parser


def _shapes(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in SHAPES:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(SHAPES)}, got {name!r}")
    return names


def _shape_results(shape: str, seconds: float) -> list[CombinationResult]:
    """Start the servers of one shape, and run all its combinations. Prints each result at once."""
    results: list[CombinationResult] = []
    wanted = list(combinations([shape]))
    with tempfile.TemporaryDirectory(prefix="stampede-matrix-") as directory:
        try:
            with SHAPES[shape](Path(directory)) as (url, flags):
                for combination in wanted:
                    command = combination.command(url, flags, seconds, Path(directory) / "runs")
                    results.append(_print_row(run(combination, command, seconds)))
        except (StampedeError, OSError) as error:
            problem = f"the servers did not start: {error}"
            results += [_print_row(CombinationResult(each, problem)) for each in wanted[len(results) :]]
    return results


def _print_row(result: CombinationResult) -> CombinationResult:
    row: Combination = result.combination
    unaccounted = "-" if result.ledger is None else result.ledger["unaccounted"]
    print(
        f"| {row.shape} | {row.driver} | {row.load} | {row.pipeline} | {result.operations:,} | "
        f"{result.ops_per_s:,.0f} | {result.p99_ms:.2f} | {result.errors:,} | {unaccounted} | "
        f"{result.problem or 'ok'} |",
        flush=True,
    )
    return result


if __name__ == "__main__":
    sys.exit(main())
