"""Write the files of a run folder except the journal: plan.yaml, summary.json and the time series. Each file appears
completely or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from common.errors import UsageError
from common.file_reading import read_bounded
from common.plan.plan_text import plan_yaml
from common.program.standard_streams import explained
from coordinator.analysis.totals.aggregate import Aggregate
from coordinator.report.servers_csv import servers_csv
from coordinator.report.summary import build_summary
from coordinator.report.summary_types import Summary
from coordinator.report.timeseries import scenario_rows, timeseries_csv

JOURNAL_FILE = "journal"
PLAN_FILE = "plan.yaml"
SUMMARY_FILE = "summary.json"
TIMESERIES_FILE = "timeseries.csv"
SERVERS_FILE = "servers.csv"
"""Only for a run whose servers were watched."""
COMPARISON_FILE = "comparison.json"
"""In the folder of a comparison, beside the folders of its runs."""
ERROR_FILE = "error.txt"
"""Tracebacks of unexpected errors; most runs do not have this file."""
LARGEST_BYTES = 256 << 20
"""Largest file to read again. A time series of a month is smaller."""
PRIVATE_FOLDER, PRIVATE_FILE = 0o700, 0o600
"""Modes of a run's folders and files, independent of the umask: only the owner may read them."""


def write_run_files(folder: Path, summary: Summary, aggregate: Aggregate) -> list[str]:
    """Write the summary and the time series, replacing older files. If one cannot be written, the other still is.

    Returns a line for each file that could not be written; one line if the folder does not exist.
    """
    texts = _result_texts(summary, aggregate)
    with suppress(FileNotFoundError, NotADirectoryError):
        os.stat(os.path.join(folder, ""))
        return _write_all(folder, texts)
    return [f"{folder}: the run's folder was deleted or moved during the run: {', '.join(texts)} are not written"]


def complete_run_files(journal: Path, aggregate: Aggregate) -> tuple[list[str], list[str]]:
    """Write the files of a run that has ended, if they are missing, incomplete, or older than the end of the run: its
    coordinator may have been killed before it wrote them. Other files stay as they are. Does nothing for a journal that
    was copied out of its run folder.

    Returns (names of the written files, a line for each file that could not be written).
    """
    folder, opened = journal.parent, aggregate.opened
    if opened is None or aggregate.closed is None or journal.name != JOURNAL_FILE or not (folder / PLAN_FILE).is_file():
        return [], []
    summary = build_summary(aggregate)
    rows = len(scenario_rows(aggregate))
    is_current = _is_whole(folder / SUMMARY_FILE, lambda text: _is_of_this_end(text, summary))
    whole = {
        PLAN_FILE: _is_whole(folder / PLAN_FILE),
        SUMMARY_FILE: is_current,
        TIMESERIES_FILE: is_current and _is_whole(folder / TIMESERIES_FILE, lambda text: text.count("\n") > rows),
    }
    if aggregate.servers.nodes:
        samples = sum(len(side.rows) for side in aggregate.servers.nodes.values())
        whole[SERVERS_FILE] = is_current and _is_whole(folder / SERVERS_FILE, lambda text: text.count("\n") > samples)
    plan = opened.plan
    texts = {PLAN_FILE: lambda: plan_yaml(plan), **_result_texts(summary, aggregate)}
    wanted = {name: text for name, text in texts.items() if not whole[name]}
    problems = _write_all(folder, wanted)
    return ([] if problems else list(wanted)), problems


def _is_whole(path: Path, check: Callable[[str], bool] = lambda _: True) -> bool:
    try:
        text = read_bounded(path, LARGEST_BYTES, wait_s=0).decode()
    except (FileNotFoundError, UnicodeDecodeError):
        return False
    except OSError:
        return True  # unreadable: leave it as it is
    return text.endswith("\n") and "\0" not in text and check(text)


def _is_of_this_end(text: str, summary: Summary) -> bool:
    """Return whether a summary.json, of any release, has the end and the totals of this summary."""
    with suppress(ValueError, KeyError, TypeError):
        theirs, ours = json.loads(text), json.loads(summary.to_json())
        return all(theirs[part][key] == ours[part][key] for part, key in _END_KEYS)
    return False


_END_KEYS = (
    ("run", "outcome"),
    ("run", "reason"),
    ("run", "duration_s"),
    ("totals", "operations"),
    ("totals", "errors"),
)
"""Keys that differ between the summaries of two ends of one run."""


def _result_texts(summary: Summary, aggregate: Aggregate) -> dict[str, Callable[[], str]]:
    texts: dict[str, Callable[[], str]] = {
        SUMMARY_FILE: summary.to_json,
        TIMESERIES_FILE: lambda: timeseries_csv(aggregate),
    }
    if aggregate.servers.nodes:
        texts[SERVERS_FILE] = lambda: servers_csv(aggregate)
    return texts


def _write_all(folder: Path, texts: Mapping[str, Callable[[], str]]) -> list[str]:
    problems = []
    for name, text in texts.items():
        try:
            write_whole(folder / name, text())
        except Exception as error:  # noqa: BLE001 - a bug in one must not lose the others
            _, why = explained(error, folder / ERROR_FILE)
            problems.append(why)
    return problems


def write_whole(path: Path, text: str) -> None:
    """Write a temporary file next to `path`, readable by its owner only, then rename it. Raises UsageError if that
    fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE)
            with open(handle, "w", encoding="utf-8") as file:
                make_private(temporary, PRIVATE_FILE)
                file.write(text)
                file.flush()
                os.fsync(handle)  # without this, a power failure may leave an empty file under the new name
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot write this file: {error.strerror}") from error


def make_private(path: Path, mode: int) -> None:
    """Set the mode of a new file or folder, independent of the umask. Some file systems have no modes."""
    with suppress(OSError):
        path.chmod(mode)
