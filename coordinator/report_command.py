"""`coordinator report RUN`: print the report of a run from its journal, or of a comparison, as text, JSON or CSV."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgspec
from rich.console import Console

from common.errors import ProtocolError, UsageError
from common.file_reading import read_bounded
from common.units import printable_json
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.compare.comparison_text import print_comparison
from coordinator.compare.comparison_types import Comparison
from coordinator.journal.journal_file import read_journal
from coordinator.journal.journal_lock import is_locked
from coordinator.journal.records import Outcome
from coordinator.report.printing import console_for
from coordinator.report.run_files import COMPARISON_FILE, JOURNAL_FILE, LARGEST_BYTES, complete_run_files
from coordinator.report.run_lookup import find_report
from coordinator.report.summary import build_summary
from coordinator.report.summary_text import print_summary
from coordinator.report.timeseries import timeseries_csv


def render(run: str, out: Path, format: str, hide_histogram: bool, note: Callable[[str], None] = lambda _: None) -> str:
    """Return the report of a run or of a comparison, with colours if stdout shows them.

    run: see `find_report`. note: called with a line about files of the run folder that were missing. Raises UsageError
    for an unknown run or format, and for a file that cannot be read.
    """
    if format not in FORMATS:
        raise UsageError(f'--format: expected one of {", ".join(FORMATS)}, got "{format}"')
    path = find_report(run, out)
    if path.name == COMPARISON_FILE:
        return _render_comparison(path, format)
    # Check the lock before reading the journal: if the run ends in between, the journal still has its end.
    is_running = is_locked(path)
    try:
        aggregate = fold(read_journal(path))
    except ProtocolError as error:
        raise UsageError(f"{path}: {error}") from error
    aggregate.is_running = is_running and aggregate.closed is None
    if aggregate.opened is None:
        why = "its run is about to start" if is_running else "its coordinator ended before the start, without any load"
        raise UsageError(f"{path}: the journal is empty: {why}, so there is nothing to report")
    text = FORMATS[format](aggregate, hide_histogram)
    if not is_running:  # its coordinator writes the files
        written, problems = complete_run_files(path, aggregate)
        if written:
            note(f"wrote missing files in {path.parent}: {', '.join(written)}")
        for problem in problems:
            note(problem)
    return text


def _render_comparison(path: Path, format: str) -> str:
    try:
        text = read_bounded(path, LARGEST_BYTES).decode()
        comparison = msgspec.json.decode(text, type=Comparison)
    except (OSError, ValueError, msgspec.DecodeError) as error:
        raise UsageError(f"{path}: expected a comparison that this version can read, got: {error}") from error
    if format == "csv":
        first = comparison.runs[0].id if comparison.runs else f"{comparison.id}/RUN"
        raise UsageError(
            f"--format csv: {comparison.id} is a comparison, which has no time series; its runs have, as in "
            f"`coordinator report {first} --format csv`"
        )
    if any(is_locked(journal) for journal in path.parent.glob(f"*/{JOURNAL_FILE}")):
        comparison = msgspec.structs.replace(
            comparison, outcome=Outcome.RUNNING, reason="the comparison has not ended: one of its runs is going on"
        )
        text = comparison.to_json()
    return printable_json(text) if format == "json" else _drawn(lambda console: print_comparison(console, comparison))


def _drawn(draw: Callable[[Console], None]) -> str:
    text = io.StringIO()
    shown_on = console_for()
    draw(
        Console(
            file=text,
            width=shutil.get_terminal_size().columns,
            force_terminal=shown_on.is_terminal,
            color_system=cast(Any, shown_on.color_system),
            no_color=shown_on.no_color,
        )
    )
    return text.getvalue()


def _as_text(aggregate: Aggregate, hide_histogram: bool) -> str:
    summary = build_summary(aggregate)
    return _drawn(lambda console: print_summary(console, summary, hide_histogram=hide_histogram))


def _as_json(aggregate: Aggregate, _: bool) -> str:
    return build_summary(aggregate).to_json()


def _as_csv(aggregate: Aggregate, _: bool) -> str:
    return timeseries_csv(aggregate)


FORMATS: dict[str, Callable[[Aggregate, bool], str]] = {"text": _as_text, "json": _as_json, "csv": _as_csv}
