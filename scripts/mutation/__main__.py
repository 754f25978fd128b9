"""Applies each mutant to a copy of the repository, and runs the tests that should detect the mutant.

First runs the test file that mirrors the module. If it passes, runs all tests of its folder, and the simulation of
whole fleets. A mutant is killed if a test fails or does not end in time. The exit code is 1 if a mutant does not apply
any more, or if fewer than nine in ten are killed.
"""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from scripts.mutation.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
SIMULATION = "tests/test_fleet_simulation.py"
MIN_KILLED = 0.9
TIMEOUT_S = 300
_PASSED, _NOTHING_RAN = 0, 5
"""Exit codes of pytest."""


def stale(root: Path) -> list[str]:
    """Error lines for mutants whose original text does not occur exactly once in its file."""
    found = []
    for mutant in MUTANTS:
        path = root / mutant.file
        times = path.read_text().count(mutant.old) if path.exists() else 0
        if times != 1:
            found.append(f"{mutant.file}: expected this text once, found it {times} times: {mutant.old}")
    return found


def mirrored(mutant: Mutant) -> tuple[Path, Path]:
    """(test file, test folder) that mirror the mutant's module."""
    module = Path(mutant.file)
    folder = Path("tests") / module.parent
    return folder / f"test_{module.name}", folder


@contextmanager
def _copies(number: int) -> Iterator[queue.SimpleQueue[Path]]:
    """Copies of all files that Git tracks or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    names = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    free: queue.SimpleQueue[Path] = queue.SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for copy in (Path(folder) / str(each) for each in range(number)):
            for name in names:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
            free.put(copy)
        yield free


def _killer(copy: Path, tests: Path | str) -> str:
    """The name of these tests if a fast one fails or does not end; "" otherwise."""
    if not (copy / tests).exists():
        return ""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "fast", "-p", "no:cacheprovider"]
    command += ["--hypothesis-profile", "unshrunk", str(tests)]
    quiet = subprocess.DEVNULL
    try:
        code = subprocess.run(command, cwd=copy, stdout=quiet, stderr=quiet, timeout=TIMEOUT_S).returncode
    except subprocess.TimeoutExpired:
        return f"{tests}, which did not end in {TIMEOUT_S} s"
    return str(tests) if code not in (_PASSED, _NOTHING_RAN) else ""


def _try(mutant: Mutant, free: queue.SimpleQueue[Path]) -> str:
    """The tests that kill the mutant; "" if it survives."""
    copy = free.get()
    path = copy / mutant.file
    text, stat = path.read_text(), path.stat()
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        return next(filter(None, (_killer(copy, tests) for tests in (*mirrored(mutant), SIMULATION))), "")
    finally:
        path.write_text(text)
        # Restore the time too: Python compares it in whole seconds, and could use the compiled mutant.
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        free.put(copy)


def main(arguments: Sequence[str]) -> int:
    """Run the mutants and return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/mutants", description="Counts the mutants that the fast tests kill.")
    parser.add_argument("--only", default="", help="only mutants with this text in their file's path or their lines")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="mutants at a time (default: all cores)")
    options = parser.parse_args(arguments)
    stale_lines = stale(ROOT)
    for line in stale_lines:
        print(f"does not apply any more: {line}", flush=True)
    dropped = {line.rpartition(" times: ")[2] for line in stale_lines}
    chosen = [
        mutant
        for mutant in MUTANTS
        if options.only in "\n".join((mutant.file, mutant.old, mutant.new)) and mutant.old not in dropped
    ]
    began_s = time.monotonic()
    with _copies(options.jobs) as free, ThreadPoolExecutor(options.jobs) as pool:
        killed: dict[Mutant, bool] = {}
        for mutant, killer in zip(chosen, pool.map(lambda mutant: _try(mutant, free), chosen), strict=True):
            killed[mutant] = bool(killer)
            verdict = f"killed by {killer}" if killer else f"SURVIVED: {mutant.old}  ->  {mutant.new}"
            print(f"{mutant.file}: {verdict}", flush=True)
    folders = sorted({str(Path(mutant.file).parent) for mutant in chosen})
    print(f"\n{'folder':<28} {'mutants':>7} {'killed':>7}")
    for folder in folders:
        results = [killed[mutant] for mutant in chosen if str(Path(mutant.file).parent) == folder]
        print(f"{folder:<28} {len(results):>7} {sum(results):>7}")
    share = sum(killed.values()) / max(len(chosen), 1)
    print(f"{'all':<28} {len(chosen):>7} {sum(killed.values()):>7}  ({share:.0%}, {time.monotonic() - began_s:.0f} s)")
    return int(bool(stale_lines) or share < MIN_KILLED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
