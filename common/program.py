"""What surrounds the command line of both programs: standard streams that cannot break a run, and one line for each
error, with its traceback in a file.

A run must not fail because nobody reads what it prints. So stdout and stderr are replaced by streams that never raise:
the first error is kept, and later output is dropped. The program decides at its end what a lost stdout means:

    the reader left (`| head`)         nothing: it has read what it wanted
    closed, or its disk is full        a line on stderr, and exit code 2 unless the output was delivered elsewhere
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from common.errors import StampedeError, UsageError
from common.redaction import hide_userinfo
from common.units import printable

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_WIDEST = 9_999
"""Columns or lines; a terminal that claims more is a mistake, and tables would be padded to it."""
_FRAMES_NAMED = ("agent", "common", "coordinator")


class Outlet(io.RawIOBase):
    """A file descriptor to write to. Never raises: `error` is the first failure, after which everything is dropped."""

    def __init__(self, fd: int, error: OSError | None = None) -> None:
        super().__init__()
        self._fd = fd
        self.error = error
        self.missed = False
        """Something was written that nobody received."""

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Whether people sit at the other end."""
        return self.error is None and os.isatty(self._fd)

    def write(self, data: object) -> int:
        """Write all of it, or drop it. Returns its size."""
        left = memoryview(data).cast("B")  # type: ignore[arg-type]  # typeshed has no name for a buffer in 3.11
        size = len(left)
        while left and self.error is None:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                # Somebody who shares the terminal made it non-blocking.
                select.select([], [self._fd], [])
            except OSError as error:
                self.error = error
        self.missed = self.missed or bool(left)
        return size


def run_program(name: str, command: Callable[[], int]) -> int:
    """Run a command with standard streams that cannot break it. Returns its exit code: EXIT_OK becomes that of a usage
    error where its output could not be written."""
    _forget_impossible_sizes()
    with _safe_streams():
        code = command()
        if (why := stdout_lost()) is not None:
            complain(name, f"cannot write to stdout: {why}")
            code = code or UsageError.exit_code
    return code


def stdout_lost() -> str | None:
    """Why stdout has not taken all that was written to it since the last call; None where it has, or where its reader
    wanted no more."""
    sys.stdout.flush()
    outlet = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if not isinstance(outlet, Outlet) or not outlet.missed or outlet.error is None:
        return None
    outlet.missed = False
    return None if outlet.error.errno == errno.EPIPE else outlet.error.strerror or "unknown error"


def complain(name: str, message: str) -> None:
    """One line on stderr."""
    print(f"{name}: {printable(hide_userinfo(' '.join(message.split())))}", file=sys.stderr)


def failed(name: str, error: Exception) -> int:
    """Say in one line what ended a program. Returns the exit code that the error means. The traceback of what nobody
    foresaw goes into a file that the line names."""
    code, text = explained(error)
    complain(name, text)
    return code


def explained(error: Exception, file: Path | None = None) -> tuple[int, str]:
    """(exit code, one line) of what ended a program. file: takes the traceback of what nobody foresaw."""
    if isinstance(error, StampedeError):
        return error.exit_code, str(error) + _without_directory(error)
    if isinstance(error, OSError):
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
        return UsageError.exit_code, what + (_without_directory(error) or _kept(error, file))
    return StampedeError.exit_code, f"a bug in redis-stampede: {described(error)}{_kept(error, file)}"


def described(error: BaseException) -> str:
    """An exception in one line: class, message, and where in our code it happened."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _room(frame.filename) is not None]
    where = f" ({_room(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    message = printable(hide_userinfo(" ".join(str(error).split())))[:200]
    return f"{type(error).__name__}{': ' if message else ''}{message}{where}"


def keep_traceback(error: BaseException, path: Path | None = None) -> Path | None:
    """Append an exception's traceback to a file; without a path, or where that cannot be written, to a temporary one.
    Returns where it is; None where no place takes it."""
    text = hide_userinfo("".join(traceback.format_exception(error)))
    if path is not None:
        with suppress(OSError), path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            return path
    with suppress(OSError):
        handle, temporary = tempfile.mkstemp(prefix="stampede-error-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return Path(temporary)
    return None


def _kept(error: BaseException, file: Path | None) -> str:
    path = keep_traceback(error, file)
    return "" if path is None else f"; its traceback is in {path}"


def _room(filename: str) -> str | None:
    """A file of ours, as `coordinator/start.py`; None for any other."""
    root = Path(__file__).parent.parent
    path = Path(filename)
    if not path.is_relative_to(root):
        return None
    parts = path.relative_to(root).parts
    return "/".join(parts) if parts[0] in _FRAMES_NAMED else None


def _without_directory(error: Exception) -> str:
    """A working directory that was deleted is the cause of many a file that is not found."""
    of_files = isinstance(error, UsageError | OSError) or isinstance(error.__cause__, OSError)
    gone = of_files and directory_is_gone()
    return "; the working directory was deleted: change to one that exists (cd)" if gone else ""


def directory_is_gone() -> bool:
    """Whether the working directory was deleted. Another one of the same name does not take its place."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _forget_impossible_sizes() -> None:
    """rich believes COLUMNS=0, and click and rich read other nonsense in different ways: without it, both ask the
    terminal."""
    for name in ("COLUMNS", "LINES"):
        said = os.environ.get(name, "1")
        if not (said.isascii() and said.isdigit() and len(said) < 9 and 0 < int(said) <= _WIDEST):
            del os.environ[name]


@contextmanager
def _safe_streams() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    for stream in filter(None, before):
        with suppress(OSError, ValueError):
            stream.flush()
    closed = {fd: _closed(fd) for fd in (_STDIN, _STDOUT, _STDERR)}
    try:
        sys.stdout = _stream(_STDOUT, before[0], closed[_STDOUT])
        sys.stderr = _stream(_STDERR, before[1], closed[_STDERR])
        yield
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        sys.stdout, sys.stderr = before


def _closed(fd: int) -> OSError | None:
    """The error of a descriptor that is closed. /dev/null takes its place: the next file that is opened would, and so
    be written to or read from by mistake."""
    try:
        os.fstat(fd)
    except OSError as error:
        null = os.open(os.devnull, os.O_RDWR)
        if null != fd:
            os.dup2(null, fd)
            os.close(null)
        os.set_inheritable(fd, True)
        return OSError(error.errno, "it is closed")
    return None


def _stream(fd: int, before: io.TextIOBase | object, error: OSError | None) -> io.TextIOWrapper:
    outlet = Outlet(fd, error)
    return io.TextIOWrapper(
        io.BufferedWriter(outlet),
        encoding=getattr(before, "encoding", None) or "utf-8",
        errors="backslashreplace",
        line_buffering=fd == _STDERR or outlet.isatty(),
    )
