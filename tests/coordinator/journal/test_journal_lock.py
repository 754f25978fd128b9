from __future__ import annotations

import errno
import fcntl
import os
from io import FileIO
from pathlib import Path

import msgspec
import psutil
import pytest

from common.errors import UsageError
from common.machine import this_host
from coordinator.journal.journal_file import Journal, read_journal
from coordinator.journal.journal_lock import LOCK_SUFFIX, Holder, is_locked
from coordinator.journal.records import RunStarted
from tests.support.records import opened

HERE = f"process {os.getpid()} on {this_host()}"
WITHOUT_LOCKS = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The journal of a killed coordinator."""
    path = tmp_path / "journal"
    with Journal.create(path) as journal:
        journal.append(opened())
    return path


def beside(path: Path) -> Path:
    return path.with_name(path.name + LOCK_SUFFIX)


def written(path: Path, **changes: object) -> Holder:
    """Change facts in the lock file of an open journal. Returns its new holder."""
    ours = msgspec.json.decode(beside(path).read_bytes(), type=Holder)
    holder = msgspec.structs.replace(ours, **changes)
    beside(path).write_bytes(msgspec.json.encode(holder))
    return holder


def left_by(path: Path, pid: int) -> Holder:
    """Leave a lock file, as in a copied run folder, that names this running process."""
    with Journal.reopen(path):
        return written(path, pid=pid, started_s=psutil.Process(pid).create_time())


def without_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)


def test_a_second_writer_is_refused_with_the_name_of_the_first(path: Path) -> None:
    with Journal.reopen(path):
        assert beside(path).stat().st_mode & 0o777 == 0o600
        with pytest.raises(UsageError) as refused:
            Journal.reopen(path)
    assert str(refused.value) == (
        f"{path}: another coordinator ({HERE}) is running this run; stop it, or wait for its end"
    )
    assert not beside(path).exists()
    Journal.reopen(path).close()


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b'{"host": "web1"}', b'{"host":1}', b"\xff"])
def test_an_unreadable_lock_file_costs_only_the_name(path: Path, content: bytes) -> None:
    with Journal.reopen(path):
        beside(path).write_bytes(content)
        with pytest.raises(UsageError, match=f"{path}: another coordinator is running this run"):
            Journal.reopen(path)
    Journal.reopen(path).close()


def test_a_lock_file_that_is_a_pipe_does_not_block(path: Path) -> None:
    os.mkfifo(beside(path))
    Journal.reopen(path).close()


def test_a_dead_process_in_the_lock_file_is_not_named(path: Path) -> None:
    with Journal.reopen(path):
        assert written(path, started_s=1.0).runs is False
        with pytest.raises(UsageError, match="another coordinator is running this run"):
            Journal.reopen(path)


def test_a_process_of_another_machine_is_named_as_long_as_the_lock_lasts(path: Path) -> None:
    with Journal.reopen(path):
        assert written(path, system="another", host="web2\x1b[2J", pid=7).runs is None
        with pytest.raises(UsageError, match=r"\(process 7 on web2\\x1b\[2J\)"):
            Journal.reopen(path)
    Journal.reopen(path).close()


def test_the_copy_of_a_running_run_is_not_reopened(path: Path) -> None:
    holder = left_by(path, os.getppid())
    with pytest.raises(UsageError, match=rf"its coordinator \({holder}\) still runs.*original of this copy"):
        Journal.reopen(path)
    written(path, started_s=1.0)  # the process has ended, and another has its number
    Journal.reopen(path).close()


@pytest.mark.parametrize("number", WITHOUT_LOCKS)
def test_without_locks_the_file_beside_the_journal_decides(
    path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_by(path, os.getppid())
    without_locks(monkeypatch, number)
    assert is_locked(path)
    with pytest.raises(UsageError, match="still runs"):
        Journal.reopen(path)
    written(path, started_s=1.0)
    assert not is_locked(path)
    with Journal.reopen(path) as journal:
        journal.append(RunStarted(t0_ns=1))
        assert is_locked(path)
        written(path, system="another", pid=7)
        assert is_locked(path)
        with pytest.raises(UsageError, match=f"process 7 on .* may still be running.* delete {beside(path)} if"):
            Journal.reopen(path)
    beside(path).unlink()
    Journal.reopen(path).close()


def test_another_error_of_the_lock_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(UsageError, match="cannot open this journal for writing: Input/output error"):
        Journal.reopen(path)
    assert not is_locked(path)


def test_a_reader_that_checks_the_lock_does_not_block_a_writer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(path, "rb") as looks:
        fcntl.flock(looks, fcntl.LOCK_SH)
        monkeypatch.setattr("coordinator.journal.journal_lock.time.sleep", lambda _: fcntl.flock(looks, fcntl.LOCK_UN))
        Journal.reopen(path).close()


@pytest.mark.parametrize("replaced", [False, True], ids=["deleted", "replaced"])
def test_a_journal_that_is_replaced_or_deleted_during_locking_is_refused(
    path: Path, replaced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def replace(file: FileIO, how: int) -> None:
        lock(file, how)
        path.unlink()
        if replaced:
            path.touch()

    monkeypatch.setattr(fcntl, "flock", replace)
    with pytest.raises(UsageError, match="this journal was replaced or deleted"):
        Journal.reopen(path)


def test_the_lock_works_without_a_lock_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("coordinator.journal.journal_lock._write_holder", refuse)
    with Journal.reopen(path):
        assert not beside(path).exists()
        with pytest.raises(UsageError, match="another coordinator is running"):
            Journal.reopen(path)


def test_reopening_alone_does_not_change_the_file(path: Path) -> None:
    torn = path.read_bytes() + b"torn"
    path.write_bytes(torn)
    Journal.reopen(path).close()
    assert path.read_bytes() == torn
    with Journal.reopen(path) as journal:
        journal.append(RunStarted(t0_ns=1))
    assert list(read_journal(path)) == [opened(), RunStarted(t0_ns=1)]
