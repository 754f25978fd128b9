"""Find the run or comparison that a user names: by its id, the beginning of the id, its path, or `latest`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from common.errors import UsageError
from common.file_reading import read_bounded
from common.units import counted
from coordinator.journal.journal_file import read_journal
from coordinator.journal.records import RunOpened
from coordinator.report.run_files import COMPARISON_FILE, JOURNAL_FILE, LARGEST_BYTES, PLAN_FILE

LATEST = "latest"
_RUNS_NAMED = 10
_RUN_OF_COMPARISON = re.compile(r"\d{1,4}-[a-z]+")
_ID_TIME = re.compile(r"\d{8}-\d{6}(?=-)")


def find_report(run: str, out: Path) -> Path:
    """Return the journal or the comparison.json of `run`.

    run: an id in the folder `out` (COMPARISON/RUN for a run of a comparison), an unambiguous beginning of an id,
    "latest", or the path of a run folder, a journal or a comparison.json. Raises UsageError if nothing matches, or more
    than one run.
    """
    for path in (Path(run), out / run) if run else ():
        if path.is_file():
            return path
        if (found := _report_in(path)) is not None:
            return found
        _check_reportable(run, path)
    reports = dict(_reports(out))
    if not reports:
        raise UsageError(f'no run "{run}": {out} has no runs; name their folder with --out')
    if run == LATEST:
        return max(reports.items(), key=lambda item: (_began(*item), item[0]))[1]
    matching = [name for name in reports if run and name.startswith(run)]
    if len(matching) == 1:
        return reports[matching[0]]
    if matching:
        raise UsageError(f'"{run}" matches {_named(matching)}; give more of the run id')
    raise UsageError(f'no run "{run}" in {out}; there are: {_named(list(reports))}')


def find_journal(run: str, out: Path) -> Path:
    """Return the journal of `run`, see `find_report`. Raises UsageError for a comparison too: it has no journal."""
    found = find_report(run, out)
    if found.name == COMPARISON_FILE:
        runs = _named([f"{found.parent.name}/{name}" for name in _runs_in(found.parent)])
        raise UsageError(f'"{run}" is a comparison, expected one of its runs: {runs}')
    return found


def _report_in(folder: Path) -> Path | None:
    return next((path for name in (JOURNAL_FILE, COMPARISON_FILE) if (path := folder / name).is_file()), None)


def _check_reportable(run: str, folder: Path) -> None:
    """Raise UsageError for a folder of a coordinator that was killed before there was anything to report."""
    if runs := _runs_in(folder):
        names = _named([f"{folder.name}/{name}" for name in runs])
        raise UsageError(f'"{run}" is a comparison that ended before its first run did; there are: {names}')
    if (folder / PLAN_FILE).is_file():
        raise UsageError(f'"{run}" has no journal: its coordinator ended before it wrote one, and so before any load')


def _runs_in(folder: Path) -> list[str]:
    """Return the names of a comparison's runs, in order."""
    found = [path.parent.name for path in folder.glob(f"*/{JOURNAL_FILE}")]
    names = [name for name in found if _RUN_OF_COMPARISON.fullmatch(name)]
    return sorted(names, key=lambda name: (len(name.partition("-")[0]), name))


def _reports(out: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name, file) of runs and comparisons; for a comparison without a result, those of its runs."""
    for folder in sorted(path for path in out.glob("*") if path.is_dir()):
        if (found := _report_in(folder)) is not None:
            yield folder.name, found
        else:
            yield from ((f"{folder.name}/{name}", folder / name / JOURNAL_FILE) for name in _runs_in(folder))


def _began(name: str, path: Path) -> float:
    """Return when a run began, in seconds since the epoch: from its id, or if the folder was renamed, from its file.
    The file's modification time is the last resort, because copying changes it."""
    with suppress(ValueError):
        if match := _ID_TIME.match(name):
            return datetime.strptime(match[0], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp()
    with suppress(UsageError, OSError, ValueError, msgspec.DecodeError):
        return datetime.fromisoformat(_started_at(path)).timestamp()
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _started_at(path: Path) -> str:
    if path.name == COMPARISON_FILE:
        return msgspec.json.decode(read_bounded(path, LARGEST_BYTES), type=_StartedAt).started_at
    first = next(read_journal(path), None)
    return first.started_at if isinstance(first, RunOpened) else ""


class _StartedAt(msgspec.Struct):
    """The key of comparison.json that is needed here."""

    started_at: str


def _named(names: list[str]) -> str:
    more = len(names) - _RUNS_NAMED
    return ", ".join(names[-_RUNS_NAMED:]) + (f" and {counted(more, 'earlier one')}" if more > 0 else "")
