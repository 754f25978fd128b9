"""The folder of a run: made when there is something to write, locked while the run goes on, left behind at its end."""

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
class RunFolder:
    """The folder of one run, and what its journal says; a new run's says nothing yet.

    has_ended: a resumed run that has its end, and only collects results that agents have kept. Owns the run's journal,
    which stays locked until `close` or the end of the `with`, so that nobody else resumes the run while its files are
    written.
    """

    path: Path
    run_id: str
    aggregate: Aggregate
    is_resumed: bool
    has_ended: bool = False
    _journal: Journal | None = None
    _made: list[Path] = field(default_factory=list)

    def open_journal(self, plan: Plan) -> Journal:
        """The journal to append to. The first call for a new run makes the folder, the plan file and the journal."""
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
        """Whether the journal, once there is one, is still the file that was opened."""
        return self._journal is None or self._journal.is_in_place

    def discard(self) -> None:
        """Remove what `open_journal` made: a run that did not begin leaves nothing behind. Does nothing to a resumed
        run."""
        self.close()
        for path in self._made:
            with suppress(OSError):  # such as a folder into which somebody else has put a file
                path.rmdir() if path.is_dir() else path.unlink()
        self._made.clear()

    def _make_folder(self) -> None:
        """Make the folders of the run's id readable by their owner only, whatever the umask: the journal has the
        identities of agents. Folders above get the permissions of the umask."""
        folders = (self.path, *self.path.parents)
        private = folders[: len(Path(self.run_id).parts)]
        try:
            for folder in reversed([folder for folder in folders if folder == self.path or not folder.exists()]):
                folder.mkdir(PRIVATE_FOLDER if folder in private else 0o777)
                self._made.insert(0, folder)
                if folder in private:
                    make_private(folder, PRIVATE_FOLDER)
        except OSError as error:
            raise UsageError(f"{self.path}: cannot make the run's folder: {error.strerror}; see --out") from error
        self._made[:0] = [self.path / JOURNAL_FILE, self.path / PLAN_FILE]

    def close(self) -> None:
        """Close the journal and release its lock; a second call does nothing."""
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def new_run_id() -> str:
    """A unique id that begins with the time in UTC."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def new_run_folder(out: Path, run_id: str) -> RunFolder:
    """The folder of a new run below `out`, not made yet. Raises UsageError if it could not be made."""
    _check_writable(out)
    return RunFolder(out / run_id, run_id, Aggregate(), is_resumed=False)


def reopen_run_folder(run: str, out: Path) -> RunFolder:
    """The folder of a run whose coordinator was killed, or that ended without the results of an agent, with its journal
    locked. Raises UsageError if there is nothing to resume, or another coordinator runs it."""
    with ExitStack() as undo:
        # Locked first: another coordinator could still append to what is read.
        journal = undo.enter_context(Journal.reopen(find_journal(run, out)))
        try:
            aggregate = fold(read_journal(journal.path))
        except ProtocolError as error:
            raise UsageError(f"{journal.path}: {error}") from error
        if aggregate.opened is None or aggregate.started is None:
            raise UsageError(f"--resume {run}: that run never began; start the run again")
        if not aggregate.may_go_on:
            complete_run_files(journal.path, aggregate)  # its coordinator may have been killed before it wrote them
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
    """Refuse a folder in which none could be made, before the run starts."""
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
