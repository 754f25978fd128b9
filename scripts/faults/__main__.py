"""Runs fleets under random faults, and checks each run against the server's own counts.

checks after each round:
  - The server's count of the plan's commands is at least the operations with a reply, and at most these plus the
    operations that ended without one. If no process with load was killed, no operation is missing: results of agents
    that were cut off are collected after the end. The number of INCR commands matches the sum of the keys.
  - No operation reaches the server after the coordinator has reported the end of the run. No agent sends operations if
    it has not run, or has not heard its coordinator, for longer than lease and drain.
  - After a clean-up no key is left. Exit codes and outcomes are those in README.md, and have a cause. Remaining agents
    serve another run.
  - No process is left, no output shows a traceback or a bug, and the coordinator's memory stays limited.

A round is one run of `coordinator start` against a server on loopback, with up to three agents that join through a
relay each, and up to two local ones. Plan, fleet and faults are drawn from the seed: the same seed draws the same
rounds. The first round that fails a check ends the soak with exit code 1; all output and files of that round are kept.
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
from scripts.faults.draws import Draw, draw
from scripts.faults.judge import Seen, problems
from scripts.faults.play import Round
from scripts.faults.processes import adopt_orphans


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when all rounds kept the promises, 1 when one did not."""
    options = _parser().parse_args(arguments)
    adopt_orphans()
    seed = options.seed if options.seed is not None else random.randrange(1_000_000)
    print(f"seed {seed}", flush=True)
    folder = options.logs or Path(tempfile.mkdtemp(prefix="stampede-soak-"))
    until_s = time.monotonic() + options.minutes * 60
    tally = SoakTotals()
    number = options.first
    try:
        while time.monotonic() < until_s and (options.rounds is None or tally.rounds < options.rounds):
            drawn = draw(seed, number, quiet=options.quiet or None)
            directory = folder / f"{seed}-{number}"
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(parents=True)
            if not _round(drawn, directory, tally):
                return 1
            if not options.logs:
                shutil.rmtree(directory)
            number += 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    print(f"seed {seed}: {tally}")
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

    def add(self, seen: Seen) -> None:
        self.rounds += 1
        self.operations += seen.summary["ledger"]["counted"] if seen.summary else 0
        self.without_report += seen.summary is None
        self.resumes += seen.resumes
        self.collected += seen.collected
        self.reused += seen.reused
        self.faults.update(kind.name for kind in seen.happened)
        self.codes.update(code for code in seen.codes[-1:] if code is not None)

    def __str__(self) -> str:
        faults = ", ".join(f"{count} {name}" for name, count in sorted(self.faults.items())) or "none"
        codes = ", ".join(f"{count} x {code}" for code, count in sorted(self.codes.items()))
        return (
            f"{self.rounds} rounds, {self.operations:,} operations, all accounted for; {self.resumes} resumes "
            f"and {self.collected} of runs that had ended without an agent, "
            f"{self.reused} next runs of the same agents, {self.without_report} runs that never began\n"
            f"faults: {self.faults.total()} ({faults})\nexit codes: {codes}"
        )


def _round(drawn: Draw, directory: Path, tally: SoakTotals) -> bool:
    """Play and judge one round; whether it kept the promises."""
    began_s = time.monotonic()
    played = Round(drawn, directory)
    seen = played.play()
    tally.add(seen)
    found = list(problems(seen))
    counted = seen.summary["ledger"]["counted"] if seen.summary else 0
    faults = ", ".join(kind.name for kind in seen.happened) or "no fault"
    code = seen.codes[-1] if seen.codes else None
    print(
        f"round {drawn.number}: {time.monotonic() - began_s:5.1f} s, exit code {code}, {counted:,} operations, "
        f"{seen.memory_mib:.0f} MiB; {faults}",
        flush=True,
    )
    if found:
        print(f"\nround {drawn.number} of seed {drawn.seed} broke a promise:")
        print(*(f"  {problem}" for problem in found), "\nwhat happened:", sep="\n")
        print(*(f"  {line}" for line in played.timeline), sep="\n")
        print(f"\nplan, logs and the run's folder: {directory}")
        print(f"again: scripts/soak --seed {drawn.seed} --first {drawn.number} --rounds 1 --logs logs")
    return not found


if __name__ == "__main__":
    sys.exit(main())
