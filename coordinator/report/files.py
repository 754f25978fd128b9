"""What a run leaves in its folder beside the journal. Each file appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from common.errors import UsageError
from coordinator.aggregate import Aggregate
from coordinator.report.shapes import Summary
from coordinator.report.timeseries import timeseries_csv

JOURNAL_FILE = "journal"
PLAN_FILE = "plan.yaml"
SUMMARY_FILE = "summary.json"
TIMESERIES_FILE = "timeseries.csv"


def write_run_files(folder: Path, plan_yaml: str, summary: Summary, aggregate: Aggregate) -> None:
    """Write the plan (redacted by the caller), the summary and the time series; older ones are replaced.

    Raises UsageError when the folder cannot be written.
    """
    texts = {
        PLAN_FILE: plan_yaml,
        SUMMARY_FILE: summary.to_json(),
        TIMESERIES_FILE: timeseries_csv(aggregate),
    }
    for name, text in texts.items():
        write_whole(folder / name, text)


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
