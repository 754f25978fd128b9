"""Does every shape of target work with every driver, model of load and size of pipeline?

judged:
  Each cell is one run of `coordinator start` with two client pools and a 1:1 mix of SET and GET, closed loop or open at
  500/s. It passes when operations were done, none of them failed, and the ledger's `unaccounted` is 0: what workers
  issued, what frames hold, and what the servers' own INFO commandstats gained, agree to the last one. In a cluster the
  servers' count is the sum over its nodes.

  Servers are started here, on loopback, and stopped: Valkey of the extra `embedded`, and Debian's redis-server for TLS.
  Exit code 1 when any cell does not pass or could not be run.
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
from scripts.shapes.cells import CellResult, MatrixCell, cells, run
from scripts.shapes.servers import SHAPES

_HEAD = "| shape | driver | load | pipeline | operations | ops/s | p99 ms | errors | unaccounted | |"
_RULE = "|---|---|---|---:|---:|---:|---:|---:|---:|---|"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when all cells passed, 1 when not."""
    options = _parser().parse_args(arguments)
    results: list[CellResult] = []
    print(_HEAD, _RULE, sep="\n", flush=True)
    try:
        for shape in options.shapes:
            results += _shape_results(shape, options.seconds)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    options.out.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")
    failed = [result for result in results if result.problem]
    print(f"\n{len(results) - len(failed)} of {len(results)} cells passed; {options.out}")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "scripts/matrix", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="length of each run (2)")
    parser.add_argument("--shapes", type=_shapes, default=list(SHAPES), help=f"some of {','.join(SHAPES)} (all)")
    parser.add_argument("--out", type=Path, default=Path("matrix.json"), help="where the results go (matrix.json)")
    return parser


def _shapes(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in SHAPES:
            raise argparse.ArgumentTypeError(f"expected some of {','.join(SHAPES)}, got {name!r}")
    return names


def _shape_results(shape: str, seconds: float) -> list[CellResult]:
    """All cells of one shape, each printed as soon as it is over; its servers live for as long."""
    results: list[CellResult] = []
    wanted = list(cells([shape]))
    with tempfile.TemporaryDirectory(prefix="stampede-matrix-") as directory:
        try:
            with SHAPES[shape](Path(directory)) as (url, flags):
                for cell in wanted:
                    command = cell.command(url, flags, seconds, Path(directory) / "runs")
                    results.append(_told(run(cell, command, seconds)))
        except (StampedeError, OSError) as error:
            results += [
                _told(CellResult(cell, f"its servers did not start: {error}")) for cell in wanted[len(results) :]
            ]
    return results


def _told(result: CellResult) -> CellResult:
    cell: MatrixCell = result.cell
    unaccounted = "-" if result.ledger is None else result.ledger["unaccounted"]
    print(
        f"| {cell.shape} | {cell.driver} | {cell.load} | {cell.pipeline} | {result.operations:,} | "
        f"{result.ops_per_s:,.0f} | {result.p99_ms:.2f} | {result.errors:,} | {unaccounted} | "
        f"{result.problem or 'ok'} |",
        flush=True,
    )
    return result


if __name__ == "__main__":
    sys.exit(main())
