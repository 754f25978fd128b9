"""The journal of a run: the coordinator writes each record to this file before it acknowledges it.

The file is `MAGIC`, then one block for each record: a header of three little-endian uint32 (length of the payload,
CRC-32 of the payload, CRC-32 of these first eight bytes), and the payload, which is the record packed by `codec.pack`.

The checksum of the header distinguishes two cases. If the header is right but the payload is too short, the record was
cut off: its coordinator was killed. Only this record is lost. If a checksum is wrong, the file is damaged, and no later
record can be trusted. After a power failure, a file may end in zeros instead of the data that was not yet on the disk;
such a record counts as cut off too.

A coordinator locks the journal before it reads the file, and until it closes the file (`journal_lock`), so that no
other coordinator appends records in between. The file does not change before the first `append`.
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
from typing import BinaryIO, Literal, Self

from common.closing import Closing
from common.errors import ProtocolError, UsageError
from common.plan.scenarios import all_legs
from common.protocol import codec
from coordinator.journal.frame_checks import check_journaled_frame
from coordinator.journal.journal_lock import Lock
from coordinator.journal.records import AnyRecord, FrameAccepted, RunOpened

MAGIC = b"stampede journal 1\n"
_ANY_VERSION = MAGIC[: MAGIC.index(b"1")]
_LENGTH_AND_CHECKSUM = struct.Struct("<II")
_HEADER_CHECKSUM = struct.Struct("<I")
_HEADER_SIZE = _LENGTH_AND_CHECKSUM.size + _HEADER_CHECKSUM.size
_MIN_ZEROS = 64
"""A damaged record may also end in a few zeros, so fewer zeros than this do not count as cut off."""
_CHUNK = 1 << 16
_REMEDIES = {
    errno.ENOSPC: "make room on its file system",
    errno.EDQUOT: "make room in the disk quota",
    errno.EFBIG: "raise ulimit -f",
    errno.EROFS: "have its file system mounted for writing",
}
"""What the user has to do before resuming the run, by error number."""


class Journal(Closing):
    """An open journal, the only writer of its file. `create` or `reopen` opens it; `close` or `with` closes it."""

    def __init__(self, path: Path, file: FileIO, end: int, lock: Lock) -> None:
        self.path = path
        self._file = file
        self._end = end
        self._lock = lock
        self._can_append = False

    @classmethod
    def create(cls, path: Path) -> Self:
        """Create a new journal in an existing folder. Raises UsageError if the file exists, or cannot be created."""
        try:
            return cls._open_locked(path, "xb")
        except FileExistsError:
            raise UsageError(f"{path}: this journal exists already; each run needs its own folder") from None
        except OSError as error:
            raise UsageError(f"{path}: cannot create a journal here: {error.strerror}") from error

    @classmethod
    def reopen(cls, path: Path) -> Self:
        """Open the journal of a killed coordinator, to append after the last complete record. The first `append`
        removes an incomplete record.

        Raises UsageError if the file cannot be opened, is damaged, or is in use by another coordinator.
        """
        try:
            return cls._open_locked(path, "r+b")
        except OSError as error:
            raise UsageError(f"{path}: cannot open this journal for writing: {error.strerror}") from error

    @classmethod
    def _open_locked(cls, path: Path, mode: Literal["xb", "r+b"]) -> Self:
        with contextlib.ExitStack() as undo:
            file = undo.enter_context(open(path, mode, buffering=0, opener=_open_private))
            lock = Lock.take(file, path)
            undo.callback(lock.release)
            if not _is_same_file(path, file):
                raise UsageError(f"{path}: this journal was replaced or deleted while it was opened; try again")
            journal = cls(path, file, _end_of_records(path), lock)
            if mode == "xb":
                journal._prepare_append()
            undo.pop_all()
            return journal

    def append(self, record: AnyRecord, packed_frame: bytes | None = None) -> None:
        """Write one record to the file. Afterwards the record survives if this process is killed.

        packed_frame: the frame of a FrameAccepted as its agent packed it, so that it is not packed again. Raises
        UsageError if the record cannot be written; the journal then ends with the record before.
        """
        if not self._can_append:
            self._prepare_append()
        if packed_frame is not None and isinstance(record, FrameAccepted):
            texts = {"type": FrameAccepted.__name__, "agent_id": record.agent_id}
            payload = codec.packed_map(texts, "frame", packed_frame)
        else:
            payload = codec.pack(record)
        lengths = _LENGTH_AND_CHECKSUM.pack(len(payload), zlib.crc32(payload))
        self._write(lengths + _HEADER_CHECKSUM.pack(zlib.crc32(lengths)) + payload)

    def _prepare_append(self) -> None:
        """Remove an incomplete record: otherwise its rest would follow a shorter new record."""
        try:
            if os.fstat(self._file.fileno()).st_size > self._end:
                self._file.truncate(self._end)
        except OSError as error:
            raise self._write_error(error) from error
        self._can_append = True
        if not self._end:
            self._write(MAGIC)

    def _write(self, data: bytes) -> None:
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self._file.fileno(), data[written:], self._end + written)
        except OSError as error:
            self._can_append = False
            with contextlib.suppress(OSError):  # report the first error; readers ignore an incomplete record
                self._file.truncate(self._end)
            raise self._write_error(error) from error
        self._end += len(data)

    def _write_error(self, error: OSError) -> UsageError:
        remedy = _REMEDIES.get(error.errno or 0)
        hint = f" ({remedy} first)" if remedy else ""
        return UsageError(f"{self.path}: cannot write the journal: {error.strerror}{hint}")

    def sync(self) -> None:
        """Flush all records to the disk. Raises UsageError if that fails."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._write_error(error) from error

    @property
    def is_in_place(self) -> bool:
        """Whether `path` is still the open file: False if the file was deleted or moved, or its file system is gone."""
        return _is_same_file(self.path, self._file)

    def close(self) -> None:
        """Close the file and release its lock. Idempotent."""
        if not self._file.closed:
            self._lock.release()
            self._file.close()


def read_journal(path: Path) -> Iterator[AnyRecord]:
    """Yield the records of a journal, in order, without a last record that was cut off. Checks frames.

    Raises UsageError during the iteration if the file cannot be read, is not a journal, or is damaged, or if it has a
    frame that no agent can have sent.
    """
    stages = 1
    try:
        with open(path, "rb") as file:
            for end, payload in _blocks(path, file):
                record = _unpack_record(path, end, payload)
                if isinstance(record, RunOpened):
                    stages = len(all_legs(record.plan))
                elif isinstance(record, FrameAccepted):
                    _check_frame(path, end, record, stages)
                yield record
    except OSError as error:
        raise UsageError(f"{path}: cannot read this journal: {error.strerror}") from error


def _open_private(path: str, flags: int) -> int:
    handle = os.open(path, flags, 0o600)
    if flags & os.O_EXCL:
        with contextlib.suppress(OSError):  # some file systems have no modes
            os.fchmod(handle, 0o600)  # independent of the umask
    return handle


def _is_same_file(path: Path, file: FileIO) -> bool:
    """Whether this path is this open file. A lock on a deleted or moved file would be useless."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


def _unpack_record(path: Path, end: int, payload: bytes) -> AnyRecord:
    try:
        return codec.unpack(payload, AnyRecord)  # type: ignore[arg-type]  # a union is no type[T] to mypy
    except ProtocolError as error:
        raise UsageError(f"{path}: this version does not know the record that ends at byte {end}") from error


def _check_frame(path: Path, end: int, record: FrameAccepted, stages: int) -> None:
    try:
        check_journaled_frame(record.frame, stages)
    except ProtocolError as error:
        raise UsageError(f"{path}: the record that ends at byte {end}: {error}") from error


def _end_of_records(path: Path) -> int:
    with open(path, "rb") as file:
        ends = [_check_magic(path, file)]
        ends.extend(end for end, _ in _blocks(path, file))
        return ends[-1]


def _check_magic(path: Path, file: BinaryIO) -> int:
    """Return where the first record begins; 0 if the file ends within the magic, and so has no record."""
    file.seek(0)
    magic = file.read(len(MAGIC))
    if magic == MAGIC:
        return len(MAGIC)
    if MAGIC.startswith(magic[: _zeros_from(file)]):
        return 0
    if magic.startswith(_ANY_VERSION):
        raise UsageError(f"{path}: a journal of another version; expected {MAGIC.decode().strip()!r}")
    raise UsageError(f"{path}: not a journal of a run")


def _blocks(path: Path, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield (end of the record in the file, payload) for each complete record. Raises UsageError for damage."""
    end = _check_magic(path, file)
    size = os.fstat(file.fileno()).st_size
    while end and len(header := file.read(_HEADER_SIZE)) == _HEADER_SIZE:
        length, checksum = _LENGTH_AND_CHECKSUM.unpack_from(header)
        if _HEADER_CHECKSUM.unpack_from(header, _LENGTH_AND_CHECKSUM.size)[0] != zlib.crc32(
            header[: _LENGTH_AND_CHECKSUM.size]
        ):
            if _is_zeroed(file, end, end + _HEADER_SIZE):
                return
            raise UsageError(f"{path}: damaged at byte {end}: the checksum of a record's header is wrong")
        if end + _HEADER_SIZE + length > size:
            return
        payload = file.read(length)
        if zlib.crc32(payload) != checksum:
            if _is_zeroed(file, end, end + _HEADER_SIZE + length):
                return
            raise UsageError(f"{path}: damaged at byte {end}: the checksum of a record is wrong")
        end += _HEADER_SIZE + length
        yield end, payload


def _is_zeroed(file: BinaryIO, begin: int, end: int) -> bool:
    """Whether a power failure cut this record off: it and the rest of the file are zeros, or it ends in many zeros."""
    zeros = _zeros_from(file)
    return zeros <= begin or (zeros < end and os.fstat(file.fileno()).st_size - zeros >= _MIN_ZEROS)


def _zeros_from(file: BinaryIO) -> int:
    """Return where the zeros at the end of the file begin; the size of the file if there are none."""
    position = os.fstat(file.fileno()).st_size
    while position > 0:
        start = max(0, position - _CHUNK)
        file.seek(start)
        rest = file.read(position - start).rstrip(b"\0")
        if rest:
            return start + len(rest)
        position = start
    return 0
