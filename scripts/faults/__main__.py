"""Are all operations accounted for, and is all load held back, whatever happens to a fleet?

judged, after each round, by what the server itself and the system say:
  The server's count of the plan's commands lies within what the report accounts for: operations with a reply, and those
  that ended without one. If no process with load was killed, nothing is missing, however long agents were cut off: what
  they kept is collected after the end. INCR was executed as often as the keys say.
  No operation reaches the server after the coordinator has said that the run is over, nor of an agent that has neither
  run nor heard its coordinator for longer than lease and drain.
  After a clean-up no key is left. Exit codes and outcomes are those that README.md lists, and have a cause. Agents that
  stay serve a next run. No process, no traceback and no "bug" is left; the coordinator's memory is bounded.

A round is one run of `coordinator start` against a server on loopback, with up to three agents that join through relays
of their own and up to two local ones. Plan, fleet and faults are drawn from the seed: the same seed draws the same
rounds. The first round that breaks a promise ends it with exit code 1, and keeps what everybody said.
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
from tests.support.leaks import adopt_orphans


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when all rounds kept the promises, 1 when one did not."""
    options = _parser().parse_args(arguments)
    adopt_orphans()
    seed = options.seed if options.seed is not None else random.randrange(1_000_000)
    print(f"seed {seed}", flush=True)
    folder = options.logs or Path(tempfile.mkdtemp(prefix="stampede-soak-"))
    until_s = time.monotonic() + options.minutes * 60
    tally = Tally()
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
    parser.add_argument("--minutes", type=float, default=20.0, help="begin no round after this time (20)")
    parser.add_argument("--rounds", type=int, help="stop after this many (no limit)")
    parser.add_argument("--seed", type=int, help="what plans and faults are drawn from (a new one)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="begin with round N of the seed (0)")
    parser.add_argument("--quiet", action="store_true", help="rounds without faults")
    parser.add_argument("--logs", type=Path, metavar="DIRECTORY", help="keep what everybody said there")
    return parser


class Tally:
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


def _round(drawn: Draw, directory: Path, tally: Tally) -> bool:
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
