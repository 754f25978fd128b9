"""`coordinator report RUN`: the journal folded anew, in the format that is wanted."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from common.errors import ProtocolError, UsageError
from common.units import counted
from coordinator.aggregate import Aggregate, fold
from coordinator.journal import read_journal
from coordinator.report.files import JOURNAL_FILE
from coordinator.report.look import console_for
from coordinator.report.summary import build_summary
from coordinator.report.text import print_summary
from coordinator.report.timeseries import timeseries_csv

LATEST = "latest"
_RUNS_NAMED = 10


def render(run: str, out: Path, format: str, hide_histogram: bool) -> str:
    """The report of a run, in colours where stdout shows them. run: a run id in `out`, an unambiguous beginning of one,
    "latest", or the path of a run's folder or journal. Raises UsageError for an unknown run or format, and for a
    journal that cannot be read.
    """
    if format not in FORMATS:
        raise UsageError(f'--format: expected one of {", ".join(FORMATS)}, got "{format}"')
    journal = find_journal(run, out)
    try:
        aggregate = fold(read_journal(journal))
    except ProtocolError as error:
        raise UsageError(f"{journal}: {error}") from error
    if aggregate.opened is None:
        raise UsageError(f"{journal}: it ends before the run began, so there is nothing to report")
    return FORMATS[format](aggregate, hide_histogram)


def find_journal(run: str, out: Path) -> Path:
    """The journal that `run` means, see `render`. Raises UsageError when there is none, or more than one."""
    for candidate in (Path(run), Path(run) / JOURNAL_FILE, out / run / JOURNAL_FILE):
        if run and candidate.is_file():
            return candidate
    journals = {path.parent.name: path for path in sorted(out.glob(f"*/{JOURNAL_FILE}"))}
    if not journals:
        raise UsageError(f'no run "{run}": {out} holds no runs; --out says where they are')
    if run == LATEST:
        return max(journals.values(), key=lambda path: (path.stat().st_mtime_ns, path))
    matching = [name for name in journals if run and name.startswith(run)]
    if len(matching) == 1:
        return journals[matching[0]]
    if matching:
        raise UsageError(f'"{run}" may mean any of {_named(matching)}; give more of the run id')
    raise UsageError(f'no run "{run}" in {out}; there are: {_named(list(journals))}')


def _named(names: list[str]) -> str:
    more = len(names) - _RUNS_NAMED
    return ", ".join(names[-_RUNS_NAMED:]) + (f" and {counted(more, 'earlier one')}" if more > 0 else "")


def _as_text(aggregate: Aggregate, hide_histogram: bool) -> str:
    text = io.StringIO()
    shown_on = console_for()
    console = Console(
        file=text,
        width=shutil.get_terminal_size().columns,
        force_terminal=shown_on.is_terminal,
        color_system=cast(Any, shown_on.color_system),
        no_color=shown_on.no_color,
    )
    print_summary(console, build_summary(aggregate), hide_histogram=hide_histogram)
    return text.getvalue()


def _as_json(aggregate: Aggregate, _: bool) -> str:
    return build_summary(aggregate).to_json()


def _as_csv(aggregate: Aggregate, _: bool) -> str:
    return timeseries_csv(aggregate)


FORMATS: dict[str, Callable[[Aggregate, bool], str]] = {"text": _as_text, "json": _as_json, "csv": _as_csv}
