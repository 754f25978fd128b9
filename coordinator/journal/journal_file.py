"""The journal of a run: records on disk before anybody is told that they were accepted.

A file is `MAGIC`, then frames. A frame is a header of three little-endian uint32 (length of the payload, its CRC-32,
CRC-32 of those eight bytes) and the payload, one record as `codec.pack` makes it. The header has a checksum of its
own, so that a damaged length is told from a record that was cut off: a coordinator that was killed leaves the second,
which costs its last record and nothing else; the first is damage, and the file cannot be trusted after it.
After a power cut, file systems may leave zeros, to the end of the file, in place of what was not on the disk yet. These
count as cut off, too.

A journal is locked before it is read, and stays so until it is closed (`journal_lock`): what is read in
between is all that there is. Nothing of it changes before the first `append`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import zlib
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Literal, Self

from common.errors import ProtocolError, UsageError
from common.plan.timeline import timeline
from common.protocol import codec
from coordinator.journal.frame_checks import check_journaled_frame
from coordinator.journal.journal_lock import Lock
from coordinator.journal.records import AnyRecord, FrameAccepted, RunOpened

MAGIC = b"stampede journal 1\n"
_FAMILY = MAGIC[: MAGIC.index(b"1")]
_LENGTHS = struct.Struct("<II")
_CHECK = struct.Struct("<I")
_HEADER_SIZE = _LENGTHS.size + _CHECK.size
_FEWEST_ZEROS = 64
"""A record that is damaged elsewhere may end with some zeros, too."""
_CHUNK = 1 << 16
_REMEDIES = {
    errno.ENOSPC: "make room on its file system",
    errno.EDQUOT: "make room in the disk quota",
    errno.EFBIG: "raise ulimit -f",
    errno.EROFS: "have its file system mounted for writing",
}
"""What helps against an error, before the run is resumed."""


class Journal:
    """An open journal, the only writer of its file. Made by `create` or `reopen`; closed by `close` or `with`."""

    def __init__(self, path: Path, file: FileIO, end: int, lock: Lock) -> None:
        self.path = path
        self._file = file
        self._end = end
        self._lock = lock
        self._is_ready = False

    @classmethod
    def create(cls, path: Path) -> Self:
        """A new journal; its folder must exist. Raises UsageError when there is a file already, or none can be made."""
        try:
            return cls._locked(path, "xb")
        except FileExistsError:
            raise UsageError(f"{path}: this journal exists already; every run needs a folder of its own") from None
        except OSError as error:
            raise UsageError(f"{path}: cannot make a journal here: {error.strerror}") from error

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Go on where a killed coordinator stopped, after the last whole record; the first `append` cuts off what is
        torn.

        Raises UsageError when it cannot be opened, is damaged, or another coordinator is writing it.
        """
        try:
            return cls._locked(path, "r+b")
        except OSError as error:
            raise UsageError(f"{path}: cannot go on with this journal: {error.strerror}") from error

    @classmethod
    def _locked(cls, path: Path, mode: Literal["xb", "r+b"]) -> Self:
        with contextlib.ExitStack() as undo:
            file = undo.enter_context(open(path, mode, buffering=0, opener=_opened))
            lock = Lock.take(file, path)
            undo.callback(lock.release)
            if not _is_at(path, file):
                raise UsageError(f"{path}: this journal was replaced or deleted at this moment; try again")
            journal = cls(path, file, _end_of_frames(path), lock)
            if mode == "xb":
                journal._make_ready()
            undo.pop_all()
            return journal

    def append(self, record: AnyRecord, packed_frame: bytes | None = None) -> None:
        """Hand one record to the operating system; when this returns, killing this process does not lose it.
        packed_frame: the frame of a FrameAccepted as its agent packed it, which need not be packed again.

        Raises UsageError when it cannot be written; the journal then ends with the record before it.
        """
        if not self._is_ready:
            self._make_ready()
        if packed_frame is not None and isinstance(record, FrameAccepted):
            texts = {"type": FrameAccepted.__name__, "agent_id": record.agent_id}
            payload = codec.packed_map(texts, "frame", packed_frame)
        else:
            payload = codec.pack(record)
        lengths = _LENGTHS.pack(len(payload), zlib.crc32(payload))
        self._write(lengths + _CHECK.pack(zlib.crc32(lengths)) + payload)

    def _make_ready(self) -> None:
        """Cut off what is torn: a record over a part of it would have the rest behind it."""
        try:
            if os.fstat(self._file.fileno()).st_size > self._end:
                self._file.truncate(self._end)
        except OSError as error:
            raise self._unwritable(error) from error
        self._is_ready = True
        if not self._end:
            self._write(MAGIC)

    def _write(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file.fileno(), data[written:], self._end + written)
        except OSError as error:
            self._is_ready = False
            with contextlib.suppress(OSError):  # the full disk is the news; readers pass over a torn end
                self._file.truncate(self._end)
            raise self._unwritable(error) from error
        self._end += len(data)

    def _unwritable(self, error: OSError) -> UsageError:
        remedy = _REMEDIES.get(error.errno or 0)
        hint = f" ({remedy} first)" if remedy else ""
        return UsageError(f"{self.path}: cannot write the journal: {error.strerror}{hint}")

    def sync(self) -> None:
        """Bring everything to the disk. Raises UsageError when that fails."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    @property
    def is_in_place(self) -> bool:
        """Whether the file still lies where it was opened: it was not deleted, moved, or lost with its file system."""
        return _is_at(self.path, self._file)

    def close(self) -> None:
        """Let go of the file and of its lock; a second call does nothing."""
        if not self._file.closed:
            self._lock.release()
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: Path) -> Iterator[AnyRecord]:
    """The records of a journal, in order; one that was cut off at the end is left out. Frames are checked here, once.

    Raises UsageError, as it is iterated, for a file that cannot be read, is no journal, or is damaged, and for a frame
    that no agent can have sent.
    """
    stages = 1
    try:
        with open(path, "rb") as file:
            for end, payload in _frames(path, file):
                record = _record(path, end, payload)
                if isinstance(record, RunOpened):
                    stages = len(timeline(record.plan.load).legs)
                elif isinstance(record, FrameAccepted):
                    _check_frame(path, end, record, stages)
                yield record
    except OSError as error:
        raise UsageError(f"{path}: cannot read this journal: {error.strerror}") from error


def _opened(path: str, flags: int) -> int:
    handle = os.open(path, flags, 0o600)
    if flags & os.O_EXCL:
        with contextlib.suppress(OSError):  # some file systems have no modes
            os.fchmod(handle, 0o600)  # whatever the umask
    return handle


def _is_at(path: Path, file: FileIO) -> bool:
    """Whether a file lies at this path; what was deleted or moved away is locked to no purpose."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


def _record(path: Path, end: int, payload: bytes) -> AnyRecord:
    try:
        return codec.unpack(payload, AnyRecord)  # type: ignore[arg-type]  # a union is no type[T] to mypy
    except ProtocolError as error:
        raise UsageError(f"{path}: the record that ends at byte {end} is none that this version knows") from error


def _check_frame(path: Path, end: int, record: FrameAccepted, stages: int) -> None:
    try:
        check_journaled_frame(record.frame, stages)
    except ProtocolError as error:
        raise UsageError(f"{path}: the record that ends at byte {end}: {error}") from error


def _end_of_frames(path: Path) -> int:
    with open(path, "rb") as file:
        ends = [_check_magic(path, file)]
        ends.extend(end for end, _ in _frames(path, file))
        return ends[-1]


def _check_magic(path: Path, file: BinaryIO) -> int:
    """Where the first frame begins: 0 when the file ends inside the magic, which leaves nothing to keep."""
    file.seek(0)
    magic = file.read(len(MAGIC))
    if magic == MAGIC:
        return len(MAGIC)
    if MAGIC.startswith(magic[: _zeros_from(file)]):
        return 0
    if magic.startswith(_FAMILY):
        raise UsageError(f"{path}: a journal of another version of this program; expected {MAGIC.decode().strip()!r}")
    raise UsageError(f"{path}: not a journal of a run")


def _frames(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """(where the frame ends, its payload) for each whole frame. Raises UsageError for damage."""
    end = _check_magic(path, file)
    size = os.fstat(file.fileno()).st_size
    while end and len(header := file.read(_HEADER_SIZE)) == _HEADER_SIZE:
        length, checksum = _LENGTHS.unpack_from(header)
        if _CHECK.unpack_from(header, _LENGTHS.size)[0] != zlib.crc32(header[: _LENGTHS.size]):
            if _is_zeroed(file, end, end + _HEADER_SIZE):
                return
            raise UsageError(f"{path}: damaged at byte {end}: the header of a record does not fit its checksum")
        if end + _HEADER_SIZE + length > size:
            return
        payload = file.read(length)
        if zlib.crc32(payload) != checksum:
            if _is_zeroed(file, end, end + _HEADER_SIZE + length):
                return
            raise UsageError(f"{path}: damaged at byte {end}: a record does not fit its checksum")
        end += _HEADER_SIZE + length
        yield end, payload


def _is_zeroed(file: BinaryIO, begin: int, end: int) -> bool:
    """Whether a frame was lost in a power cut: all of it and of what follows is zeros, or it ends in many of them."""
    zeros = _zeros_from(file)
    return zeros <= begin or (zeros < end and os.fstat(file.fileno()).st_size - zeros >= _FEWEST_ZEROS)


def _zeros_from(file: BinaryIO) -> int:
    """Where the zeros begin that the file ends with."""
    position = os.fstat(file.fileno()).st_size
    while position > 0:
        start = max(0, position - _CHUNK)
        file.seek(start)
        rest = file.read(position - start).rstrip(b"\0")
        if rest:
            return start + len(rest)
        position = start
    return 0
