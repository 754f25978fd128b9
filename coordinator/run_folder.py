"""The folder of a run. It is created with the first record, and locked during the run."""

from __future__ import annotations

import os
import secrets
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from common.closing import Closing
from common.errors import ProtocolError, UsageError
from common.plan.plan_text import plan_yaml
from common.plan.schema import Plan
from coordinator.analysis.totals.aggregate import Aggregate, fold
from coordinator.journal.journal_file import Journal, read_journal
from coordinator.report.run_files import (
    JOURNAL_FILE,
    PLAN_FILE,
    PRIVATE_FOLDER,
    complete_run_files,
    make_private,
    write_whole,
)
from coordinator.report.run_lookup import find_journal


@dataclass(slots=True)
class RunFolder(Closing):
    """The folder of one run, and the state of the run according to its journal.

    aggregate: of the records in the journal; empty for a new run. is_resumed: another coordinator ran this run before.
    has_ended: a resumed run whose end is recorded: it only collects results that agents have kept. The folder owns the
    journal, and keeps it locked until `close` or the end of the `with`, so that no other coordinator resumes the run
    while the files of the run are written.
    """

    path: Path
    run_id: str
    aggregate: Aggregate
    is_resumed: bool
    has_ended: bool = False
    _journal: Journal | None = None
    _made: list[Path] = field(default_factory=list)

    def open_journal(self, plan: Plan) -> Journal:
        """Return the open journal. For a new run, the first call creates the folder, the plan file and the journal."""
        if self._journal is None:
            try:
                self._make_folder()
                write_whole(self.path / PLAN_FILE, plan_yaml(plan))
                self._journal = Journal.create(self.path / JOURNAL_FILE)
            except BaseException:
                self.discard()
                raise
        return self._journal

    @property
    def is_intact(self) -> bool:
        """Whether the journal is still in its place. True if none was opened."""
        return self._journal is None or self._journal.is_in_place

    def discard(self) -> None:
        """Remove what `open_journal` created, because a run that did not begin leaves no files. Does nothing for a
        resumed run."""
        self.close()
        for path in self._made:
            with suppress(OSError):  # such as a folder that has a file of another program
                path.rmdir() if path.is_dir() else path.unlink()
        self._made.clear()

    def _make_folder(self) -> None:
        """Create the folder. The folders of the run id are private, independent of the umask, because the journal has
        the identities of agents. Folders above get the permissions of the umask."""
        folders = (self.path, *self.path.parents)
        private = folders[: len(Path(self.run_id).parts)]
        try:
            for folder in reversed([folder for folder in folders if folder == self.path or not folder.exists()]):
                folder.mkdir(PRIVATE_FOLDER if folder in private else 0o777)
                self._made.insert(0, folder)
                if folder in private:
                    make_private(folder, PRIVATE_FOLDER)
        except OSError as error:
            raise UsageError(f"{self.path}: cannot create the run's folder: {error.strerror}; see --out") from error
        self._made[:0] = [self.path / JOURNAL_FILE, self.path / PLAN_FILE]

    def close(self) -> None:
        """Close the journal and release its lock. Idempotent."""
        if self._journal is not None:
            self._journal.close()


def new_run_id() -> str:
    """Return a unique id, which begins with the time in UTC."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def new_run_folder(out: Path, run_id: str) -> RunFolder:
    """Return the folder of a new run below `out`; it is created later. Raises UsageError if it cannot be created."""
    _check_writable(out)
    return RunFolder(out / run_id, run_id, Aggregate(), is_resumed=False)


def reopen_run_folder(run: str, out: Path) -> RunFolder:
    """Return the folder of a run to resume, with its journal locked: its coordinator was killed, or it ended without
    the results of an agent. Raises UsageError if there is nothing to resume, or if another coordinator runs the run."""
    with ExitStack() as undo:
        # Lock the journal before reading it, or another coordinator could append to it in between.
        journal = undo.enter_context(Journal.reopen(find_journal(run, out)))
        try:
            aggregate = fold(read_journal(journal.path))
        except ProtocolError as error:
            raise UsageError(f"{journal.path}: {error}") from error
        if aggregate.opened is None or aggregate.started is None:
            raise UsageError(f"--resume {run}: that run never began; start the run again")
        if not aggregate.can_resume:
            complete_run_files(journal.path, aggregate)  # a killed coordinator may not have written them
            raise UsageError(f"--resume {run}: that run has ended; see `coordinator report {run}`")
        undo.pop_all()
        return RunFolder(
            journal.path.parent,
            aggregate.opened.run_id,
            aggregate,
            is_resumed=True,
            has_ended=aggregate.closed is not None,
            _journal=journal,
        )


def _check_writable(out: Path) -> None:
    """Raise UsageError if no folder can be created in `out`."""
    wanted = f"--out {out}: expected a writable folder, but"
    try:
        existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    except OSError as error:
        if not error.filename:
            raise UsageError(
                f"--out {out}: expected an absolute path, or a working directory in which to create the folder"
            ) from error
        raise UsageError(f"{wanted} {error.filename}: {error.strerror}") from error
    if not existing.is_dir():
        raise UsageError(f"{wanted} {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"{wanted} {existing} is not writable")
