"""Locks a journal, so that one coordinator at a time writes it.

The lock is `flock` on the journal; the system releases it when the process ends. `flock` does not report its owner, so
the owner writes its host and process id to `journal.lock`. A killed coordinator leaves that file behind, and a copied
folder has one too. So the file is checked: on this machine, the process with this id and start time is the coordinator;
without such a process, the coordinator has ended.

    flock         process in journal.lock   result
    free          runs                      refused: this folder is a copy; the process writes to the original
    free          any other, or none        locked
    taken         ended                     refused; the owner is not known, because it has not written its name yet
    taken         any other                 refused; the message names the owner
    unsupported   ended, or none            locked: the file alone is the lock
    unsupported   on another machine        refused: it may still run there
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path

import msgspec
import psutil

from common.errors import UsageError
from common.file_reading import read_bounded
from common.machine import boot_id, this_host
from common.units import printable

LOCK_SUFFIX = ".lock"
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""What `flock` fails with on file systems without it, such as NFS without its lock service."""
_ATTEMPTS, _PAUSE_S = 10, 0.02
"""Retries, because `coordinator report` takes a shared lock for a moment, to find out whether the run goes on."""
_LARGEST_BYTES = 4096
_SAME_START_S = 2.0
"""Tolerance for the start time of a process: it is computed from the system's clock, which may be adjusted."""


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """The process of a coordinator. system: the boot and the process namespace to which `pid` belongs. started_s: when
    the process started, in seconds since 1970."""

    host: str
    pid: int
    system: str
    started_s: float

    def __str__(self) -> str:
        return f"process {self.pid} on {printable(self.host)}"

    @property
    def is_this_process(self) -> bool:
        """Whether this process is the holder."""
        return self == _this_process()

    @property
    def runs(self) -> bool | None:
        """Whether the process still runs; None if it is on another machine or in another container."""
        if self.system != _process_namespace():
            return None
        try:
            started_s = psutil.Process(self.pid).create_time()
        except psutil.NoSuchProcess:
            return False
        except psutil.Error:
            return None
        return abs(started_s - self.started_s) < _SAME_START_S


class Lock:
    """The lock of a journal, from `take` to `release`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def take(cls, file: FileIO, journal: Path) -> Lock:
        """Lock an open journal until its file is closed. Raises UsageError if another coordinator writes the journal,
        and OSError."""
        path = _lock_path(journal)
        locked = _flock(file)
        holder = _holder(path)
        if locked is False:
            owner = f" ({holder})" if holder is not None and holder.runs is not False else ""
            raise UsageError(f"{journal}: another coordinator{owner} is running this run; stop it, or wait for its end")
        if holder is not None and holder.runs and not holder.is_this_process:
            raise UsageError(
                f"{journal}: its coordinator ({holder}) still runs, and writes to the original of this copy; stop it, "
                "or wait for its end"
            )
        if locked is None and holder is not None and holder.runs is None:
            raise UsageError(
                f"{journal}: {holder} may still be running this run, and this file system has no locks; delete "
                f"{path} if it has ended"
            )
        with suppress(OSError):  # a full disk or a read-only folder costs the name, not the lock
            _write_holder(path, _this_process())
        return cls(path)

    def release(self) -> None:
        """Remove our lock file; closing the journal's file releases the lock itself."""
        with suppress(OSError):
            if (holder := _holder(self._path)) is not None and holder.is_this_process:
                self._path.unlink()


def is_locked(journal: Path) -> bool:
    """Whether a coordinator writes the journal: on this machine, or on any machine if the file system shares locks."""
    with suppress(OSError), open(journal, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            holder = _holder(_lock_path(journal))
            return error.errno in _NO_LOCKS and holder is not None and holder.runs is not False
    return False


def _flock(file: FileIO) -> bool | None:
    """Take the lock. Returns whether that succeeded; None if the file system has no locks."""
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 < _ATTEMPTS:
                time.sleep(_PAUSE_S)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return None
        else:
            return True
    return False


def _lock_path(journal: Path) -> Path:
    return journal.with_name(journal.name + LOCK_SUFFIX)


def _holder(path: Path) -> Holder | None:
    """Return the process that the lock file names; None if the file cannot be read."""
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(read_bounded(path, _LARGEST_BYTES, wait_s=0), type=Holder)
    return None


def _write_holder(path: Path, holder: Holder) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(handle, "wb") as file:
            os.fchmod(handle, 0o600)  # independent of the umask
            file.write(msgspec.json.encode(holder))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _this_process() -> Holder:
    process = psutil.Process()
    return Holder(host=this_host(), pid=process.pid, system=_process_namespace(), started_s=process.create_time())


def _process_namespace() -> str:
    namespace = ""
    with suppress(OSError):  # only Linux has these
        namespace = os.readlink("/proc/self/ns/pid")
    return f"{boot_id()} {namespace}".strip()
