"""`coordinator start --compare-drivers`: run one plan several times with each driver, and report the differences.

Each run is a complete `coordinator start` with its own embedded server, sockets, local agents, folder and report, so
that no run affects the next one. Agents that joined from other machines stay, and join the next run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from common.errors import EXIT_INTERRUPTED, EXIT_OK, UsageError
from common.plan.schema import Driver, Plan
from common.program.standard_streams import explained
from coordinator.compare.comparison_text import print_comparison, run_line
from coordinator.compare.comparison_types import Comparison
from coordinator.compare.differences import ComparisonPlan, EndedRun, build_comparison
from coordinator.compare.wire_plan import plans_to_compare
from coordinator.journal.records import Outcome
from coordinator.report.printing import console_for, say
from coordinator.report.run_files import COMPARISON_FILE, write_whole
from coordinator.run_folder import new_run_folder, new_run_id
from coordinator.start import RunResult, run_plan, write_report
from coordinator.start_options import StartOptions

_NOT_ENDED = "the comparison has no recorded end: its coordinator still runs, or was killed"


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run to do. round: counted from 1. name: of its folder."""

    round: int
    driver: Driver
    name: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why no further run begins."""

    outcome: Outcome
    reason: str
    exit_code: int


ALL_DONE = Stopped(Outcome.COMPLETED, "", EXIT_OK)


def planned_runs(rounds: int) -> list[PlannedRun]:
    """Return both drivers for each round, in alternating order, so that slow changes of the server or of the machines
    affect both drivers equally."""
    forth, back = (Driver.CLIENT, Driver.WIRE), (Driver.WIRE, Driver.CLIENT)
    order = [(number, driver) for number in range(1, rounds + 1) for driver in (forth if number % 2 else back)]
    return [PlannedRun(number, driver, f"{run}-{driver.value}") for run, (number, driver) in enumerate(order, 1)]


def compare(plan: Plan, options: StartOptions, rounds: int) -> int:
    """Run a plan with both drivers, and report the differences. Returns the exit code of a run that ended the
    comparison early, else 0.

    Raises StampedeError if the first run cannot start.
    """
    plans = plans_to_compare(plan)
    stderr = console_for(stderr=True)
    head = ComparisonPlan(new_run_id(), datetime.now(UTC).isoformat(timespec="seconds"), plan, rounds)
    folder = options.out / head.id
    runs: list[EndedRun] = []
    write_errors: list[str] = []
    stopped = ALL_DONE
    order = planned_runs(rounds)
    for turn, following in zip(order, [*order[1:], None], strict=True):
        try:
            ended = run_plan(plans[turn.driver], options, new_run_folder(options.out, f"{head.id}/{turn.name}"), stderr)
        except (Exception, KeyboardInterrupt) as error:
            if not runs:
                raise
            stopped = stopped_by(turn, error)
            break
        write_errors += ended.write_errors
        if ended.summary is not None:
            runs.append(EndedRun(turn.round, turn.driver, ended.exit_code, ended.summary))
            # Keep the results so far: the next run may be killed.
            comparison, _ = _write_comparison(folder, head, runs, Stopped(Outcome.ABORTED, _NOT_ENDED, EXIT_OK))
            if not options.quiet:
                say(stderr, f"round {turn.round} of {rounds}, {run_line(comparison.runs[-1])}")
        if (why := stop_after(turn, ended, following)) is not None:
            stopped = why
            break
    code = stopped.exit_code
    if runs:
        comparison, errors = _write_comparison(folder, head, runs, stopped)
        write_errors += errors
        draw = partial(print_comparison, comparison=comparison)
        code = write_report(draw, comparison.to_json(), options, stderr, write_errors, code)
        if not write_errors and not options.silent:
            say(stderr, f"comparison folder: {folder}")
    if stopped.exit_code != EXIT_OK:
        say(stderr, f"coordinator: {stopped.reason}")
    return code


def stop_after(turn: PlannedRun, ended: RunResult, following: PlannedRun | None) -> Stopped | None:
    """Return why the comparison ends after this run; None to go on."""
    if ended.exit_code == EXIT_INTERRUPTED:
        return Stopped(Outcome.INTERRUPTED, f"{turn.name} was interrupted", EXIT_INTERRUPTED)
    if ended.exit_code != EXIT_OK:
        why = ended.text or ("; ".join(ended.summary.verdict.reasons) if ended.summary else "")
        return Stopped(Outcome.ABORTED, f"{turn.name} failed: {why}", ended.exit_code)
    return _interrupted_before(following) if ended.interrupted_at_end and following is not None else None


def stopped_by(turn: PlannedRun, error: Exception | KeyboardInterrupt) -> Stopped:
    """Return why the comparison ends with this run, which raised an error."""
    if isinstance(error, KeyboardInterrupt):
        return _interrupted_before(turn)
    code, text = explained(error)
    return Stopped(Outcome.ABORTED, f"{turn.name} failed: {text}", code)


def _interrupted_before(turn: PlannedRun) -> Stopped:
    return Stopped(Outcome.INTERRUPTED, f"interrupted before {turn.name} began", EXIT_INTERRUPTED)


def _write_comparison(
    folder: Path, head: ComparisonPlan, runs: Sequence[EndedRun], stopped: Stopped
) -> tuple[Comparison, tuple[str, ...]]:
    """Write the comparison so far. Returns (the comparison, why it could not be written)."""
    comparison = build_comparison(head, runs, stopped.outcome, stopped.reason)
    try:
        write_whole(folder / COMPARISON_FILE, comparison.to_json())
    except UsageError as error:
        return comparison, (str(error),)
    return comparison, ()
