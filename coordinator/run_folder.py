"""Where a run is kept, and what is known of it already."""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from common.errors import ProtocolError, UsageError
from common.plan.loading.secrets import redacted
from common.plan.plan_text import plan_yaml
from common.plan.schema import Plan
from coordinator.analysis.aggregate import Aggregate, fold
from coordinator.journal import Journal, read_journal
from coordinator.report.files import (
    JOURNAL_FILE,
    PLAN_FILE,
    PRIVATE_FOLDER,
    complete_run_files,
    make_private,
    write_whole,
)
from coordinator.report.run_lookup import find_journal


@dataclass(slots=True)
class Place:
    """A run's folder and id, and what is known of it already: something only when it is resumed. ended: it has its end,
    and only results that agents kept are collected. Owns the run's
    journal, which stays locked until `close` or the end of the `with`, so that nobody else goes on with the run while
    its files are written."""

    folder: Path
    run_id: str
    aggregate: Aggregate
    resumed: bool
    ended: bool = False
    _journal: Journal | None = None
    _made: list[Path] = field(default_factory=list)

    def open_journal(self, plan: Plan) -> Journal:
        """The journal to append to; a new run's is made with its folder and plan when there is something to write."""
        if self._journal is None:
            try:
                self._make_folder()
                write_whole(self.folder / PLAN_FILE, plan_yaml(redacted(plan)))
                self._journal = Journal.create(self.folder / JOURNAL_FILE)
            except BaseException:
                self.discard()
                raise
        return self._journal

    @property
    def is_intact(self) -> bool:
        """Whether the journal, once there is one, lies where it was opened."""
        return self._journal is None or self._journal.is_in_place

    def discard(self) -> None:
        """Remove what `open_journal` made: a run that did not begin leaves nothing behind. Does nothing to a run that
        is resumed."""
        self.close()
        for path in self._made:
            with suppress(OSError):  # such as a folder that somebody else has put something into
                path.rmdir() if path.is_dir() else path.unlink()
        self._made.clear()

    def _make_folder(self) -> None:
        """Only their owner reads what a run leaves, whatever the umask: the journal names what an agent is known by.
        Folders above the run's id are made as the umask has it."""
        folders = (self.folder, *self.folder.parents)
        private = folders[: len(Path(self.run_id).parts)]
        try:
            for folder in reversed([folder for folder in folders if folder == self.folder or not folder.exists()]):
                folder.mkdir(PRIVATE_FOLDER if folder in private else 0o777)
                self._made.insert(0, folder)
                if folder in private:
                    make_private(folder, PRIVATE_FOLDER)
        except OSError as error:
            raise UsageError(f"{self.folder}: cannot make the run's folder: {error.strerror}; see --out") from error
        self._made[:0] = [self.folder / JOURNAL_FILE, self.folder / PLAN_FILE]

    def close(self) -> None:
        """Close the journal and let go of its lock; a second call does nothing."""
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def new_id() -> str:
    """An id that tells when, and is nobody else's."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def new_place(out: Path, run_id: str) -> Place:
    """A new run's place below `out`. Makes nothing yet. Raises UsageError when it could not be made."""
    _check_writable(out)
    return Place(out / run_id, run_id, Aggregate(), resumed=False)


def place_to_resume(run: str, out: Path) -> Place:
    """That of a run which a killed coordinator left, or that ended without the results of an agent; with its journal
    locked. Raises UsageError when there is nothing to go on with, or another coordinator runs it."""
    with ExitStack() as undo:
        # Locked first: what is folded would be out of date if another coordinator could still add to it.
        journal = undo.enter_context(Journal.reopen(find_journal(run, out)))
        try:
            aggregate = fold(read_journal(journal.path))
        except ProtocolError as error:
            raise UsageError(f"{journal.path}: {error}") from error
        if aggregate.opened is None or aggregate.started is None:
            raise UsageError(f"--resume {run}: that run never began; start the run again")
        if not aggregate.may_go_on:
            complete_run_files(journal.path, aggregate)  # its coordinator may have been killed before it had
            raise UsageError(f"--resume {run}: that run has ended; see `coordinator report {run}`")
        undo.pop_all()
        ended = aggregate.closed is not None
        return Place(
            journal.path.parent, aggregate.opened.run_id, aggregate, resumed=True, ended=ended, _journal=journal
        )


def _check_writable(out: Path) -> None:
    """A folder for the run is made when there is something to write; that it cannot be is told before the start."""
    wanted = f"--out {out}: expected a folder that can be written, but"
    try:
        existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    except OSError as error:
        if not error.filename:
            raise UsageError(
                f"--out {out}: expected an absolute path, or a working directory to create it in"
            ) from error
        raise UsageError(f"{wanted} {error.filename}: {error.strerror}") from error
    if not existing.is_dir():
        raise UsageError(f"{wanted} {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"{wanted} {existing} may not be written to")
