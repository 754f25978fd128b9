"""Runs fleets under random faults, and checks each run against the server's own counts.

checks after each round:
  - The server's count of the plan's commands is at least the number of operations with a reply, and at most this number
    plus the operations without a reply. If no process with load was killed, no operation is missing: results of agents
    that were cut off are collected after the end. The number of INCR commands equals the sum of their keys.
  - No operation reaches the server after the coordinator has reported the end of the run. An agent that was stopped or
    without its coordinator for longer than lease and drain sends no operations.
  - After a clean-up no key is left. Exit codes and outcomes are documented ones, and fit the faults. Remaining agents
    serve another run.
  - No process is left, no output shows a traceback or a bug, and the coordinator's memory stays limited.

A round is one run of `coordinator start` against a server on loopback, with up to three agents, each behind its own
relay, and up to two local agents. Plan, fleet and faults are drawn from the seed: the same seed draws the same rounds.
The first round that fails a check ends the soak with exit code 1; all output and files of this round are kept.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common.errors import EXIT_INTERRUPTED
from scripts.faults.processes import adopt_orphans
from scripts.faults.round_checks import Observations, problems
from scripts.faults.round_runner import RoundRunner
from scripts.faults.round_specs import RoundSpec, draw_round


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak and return the exit code: 0 if all rounds passed, 1 if one failed."""
    options = _parser().parse_args(arguments)
    adopt_orphans()
    seed = options.seed if options.seed is not None else random.randrange(1_000_000)
    print(f"seed {seed}", flush=True)
    folder = options.logs or Path(tempfile.mkdtemp(prefix="stampede-soak-"))
    until_s = time.monotonic() + options.minutes * 60
    totals = SoakTotals()
    number = options.first
    try:
        while time.monotonic() < until_s and (options.rounds is None or totals.rounds < options.rounds):
            spec = draw_round(seed, number, quiet=options.quiet or None)
            directory = folder / f"{seed}-{number}"
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            if not _run_round(spec, directory, totals):
                return 1
            if not options.logs:
                shutil.rmtree(directory)
            number += 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    print(f"seed {seed}: {totals}")
    if not options.logs:
        shutil.rmtree(folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "scripts/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="start no round after this time (20)")
    parser.add_argument("--rounds", type=int, help="number of rounds (no limit)")
    parser.add_argument("--seed", type=int, help="seed of plans and faults (a new one)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="start with round N of the seed (0)")
    parser.add_argument("--quiet", action="store_true", help="rounds without faults")
    parser.add_argument("--logs", type=Path, metavar="DIRECTORY", help="keep the output of all processes there")
    return parser


class SoakTotals:
    """Sums over rounds."""

    def __init__(self) -> None:
        self.rounds = self.operations = self.resumes = self.collected = self.reused = self.without_report = 0
        self.faults: Counter[str] = Counter()
        self.codes: Counter[int] = Counter()

    def add(self, observed: Observations) -> None:
        self.rounds += 1
        self.operations += observed.summary["ledger"]["counted"] if observed.summary else 0
        self.without_report += observed.summary is None
        self.resumes += observed.resumes
        self.collected += observed.collected
        self.reused += observed.reused
        self.faults.update(kind.name for kind in observed.faults)
        self.codes.update(code for code in observed.codes[-1:] if code is not None)

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items())) or "none"
        codes = ", ".join(f"{count} x {code}" for code, count in sorted(self.codes.items()))
        return (
            f"{self.rounds} rounds, {self.operations:,} operations, all accounted for\n"
            f"{self.resumes} resumes of a run, {self.collected} resumes after the end to collect kept results, "
            f"{self.reused} second runs of the same agents, {self.without_report} runs that never began\n"
            f"faults: {self.faults.total()} ({faults})\nexit codes: {codes}"
        )


def _run_round(spec: RoundSpec, directory: Path, totals: SoakTotals) -> bool:
    """Run and check one round. Returns whether the round passed."""
    began_s = time.monotonic()
    runner = RoundRunner(spec, directory)
    observed = runner.run()
    totals.add(observed)
    found = list(problems(observed))
    counted = observed.summary["ledger"]["counted"] if observed.summary else 0
    faults = ", ".join(kind.name for kind in observed.faults) or "no fault"
    code = observed.codes[-1] if observed.codes else None
    print(
        f"round {spec.number}: {time.monotonic() - began_s:5.1f} s, exit code {code}, {counted:,} operations, "
        f"{observed.memory_mib:.0f} MiB; {faults}",
        flush=True,
    )
    if found:
        print(f"\nround {spec.number} of seed {spec.seed} failed:")
        print(*(f"  {problem}" for problem in found), "\ntimeline:", sep="\n")
        print(*(f"  {line}" for line in runner.timeline), sep="\n")
        print(f"\nplan, logs and the run's folder: {directory}")
        print(f"again: scripts/soak --seed {spec.seed} --first {spec.number} --rounds 1 --logs logs")
    return not found


if __name__ == "__main__":
    sys.exit(main())
