"""What a run leaves in its folder beside the journal. Each file appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from common.errors import UsageError
from common.program import explained
from coordinator.aggregate import Aggregate
from coordinator.report.shapes import Summary
from coordinator.report.timeseries import timeseries_csv

JOURNAL_FILE = "journal"
PLAN_FILE = "plan.yaml"
SUMMARY_FILE = "summary.json"
TIMESERIES_FILE = "timeseries.csv"
COMPARISON_FILE = "comparison.json"
"""In the folder of a comparison, beside the folders of its runs."""
ERROR_FILE = "error.txt"
"""Tracebacks of unexpected errors; most runs do not have this file."""


def write_run_files(folder: Path, plan_yaml: str, summary: Summary, aggregate: Aggregate) -> list[str]:
    """Write the plan (redacted by the caller), the summary and the time series; older ones are replaced. If one
    cannot be written, the others still are.

    Returns a line for each file that could not be written.
    """
    if not folder.is_dir():
        return [f"{folder}: the run's folder was deleted during the run"]
    texts: dict[str, Callable[[], str]] = {
        PLAN_FILE: lambda: plan_yaml,
        SUMMARY_FILE: summary.to_json,
        TIMESERIES_FILE: lambda: timeseries_csv(aggregate),
    }
    troubles = []
    for name, text in texts.items():
        try:
            write_whole(folder / name, text())
        except Exception as error:  # noqa: BLE001 - a bug in one must not lose the others
            _, why = explained(error, folder / ERROR_FILE)
            troubles.append(why)
    return troubles


def write_whole(path: Path, text: str) -> None:
    """Write a file beside its place, then move it there. Raises UsageError when that cannot be done."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot write this file: {error.strerror}") from error
