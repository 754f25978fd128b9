"""Runs the commands of both programs with standard streams that cannot break a run, and reports errors in one line,
with the traceback in a file.

A run must not fail because its output cannot be written. So stdout and stderr are replaced by streams that never raise.

stderr has the program's messages while it works. Writing to stderr never waits: see `stderr_writer`.

stdout has the result, written when the work is done. Writing waits for a slow reader (`| less`) without a limit; Ctrl-C
ends the wait. After the first error, later output is dropped. At its end, the program reports lost output, depending on
the cause:

    the reader stopped early (`| head`)   nothing
    closed, or its disk is full           a line on stderr, and exit code 2 unless the output is also elsewhere
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

from common.errors import EXIT_INTERRUPTED, StampedeError, UsageError
from common.program.stderr_writer import PATIENCE_S, StderrWriter, text_stream
from common.redaction import hide_userinfo
from common.units import printable

_STDIN, _STDOUT, _STDERR = 0, 1, 2
_LARGEST_SIZE = 9_999
"""The largest plausible number of columns or lines of a terminal. Tables are padded to the width in COLUMNS."""
_OUR_PACKAGES = ("agent", "common", "coordinator")


class Outlet(io.RawIOBase):
    """A stream to a file descriptor that raises no error except KeyboardInterrupt. `error` is the first failure; later
    output is dropped."""

    def __init__(self, fd: int, error: OSError | None = None, before: Callable[[], None] | None = None) -> None:
        """before: called before each write."""
        super().__init__()
        self._fd = fd
        self._before = before
        self.error = error
        self.has_dropped = False
        """Whether some output was dropped."""

    def writable(self) -> bool:
        """Always true."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Whether the descriptor is a terminal."""
        return self.error is None and os.isatty(self._fd)

    def write(self, data: object) -> int:
        """Write all data, or drop it. Returns the size of the data in either case."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]  # typeshed has no name for a buffer in 3.11
        try:
            if self._before is not None and self.error is None:
                self._before()
            left = self._write(view)
        except KeyboardInterrupt:
            self.drop_rest()
            raise
        self.has_dropped = self.has_dropped or bool(left)
        return len(view)

    def drop_rest(self) -> None:
        """Drop all further output: after a Ctrl-C, a flush at the end must not wait for a reader."""
        self.error, self.has_dropped = self.error or OSError(errno.EINTR, "interrupted"), True

    def _write(self, left: memoryview) -> memoryview:
        """What could not be written."""
        while left and self.error is None:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                # Another program on the same terminal made it non-blocking: wait.
                select.select([], [self._fd], [])
            except OSError as error:
                self.error = error
        return left


def run_program(name: str, command: Callable[[], int]) -> int:
    """Run a command with standard streams that cannot break it. Returns its exit code. If its output could not be
    written, the code of a usage error replaces EXIT_OK."""
    _ignore_impossible_sizes()
    with _safe_streams():
        try:
            code = command()
            if (why := stdout_lost()) is not None:
                complain(name, f"cannot write to stdout: {why}")
                code = code or UsageError.exit_code
        except KeyboardInterrupt:
            if (outlet := _stdout_outlet()) is not None:
                outlet.drop_rest()
            code = EXIT_INTERRUPTED
    return code


def stdout_lost() -> str | None:
    """Why output to stdout was lost since the last call; None if none was, or if the reader stopped early."""
    sys.stdout.flush()
    outlet = _stdout_outlet()
    if outlet is None or not outlet.has_dropped or outlet.error is None:
        return None
    outlet.has_dropped = False
    left_early = outlet.error.errno in (errno.EPIPE, errno.EINTR)
    return None if left_early else outlet.error.strerror or "unknown error"


def _stdout_outlet() -> Outlet | None:
    outlet = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return outlet if isinstance(outlet, Outlet) else None


def complain(name: str, message: str) -> None:
    """One line on stderr."""
    print(f"{name}: {printable(hide_userinfo(' '.join(message.split())))}", file=sys.stderr)


def failed(name: str, error: Exception) -> int:
    """Print one line about the error that ended a program, and return the exit code. The traceback of an unexpected
    error goes into a file, which the line names."""
    code, text = explained(error)
    complain(name, text)
    return code


def explained(error: Exception, file: Path | None = None) -> tuple[int, str]:
    """(exit code, one line) for an error that ended a program. file: for the traceback of an unexpected error."""
    if isinstance(error, StampedeError):
        return error.exit_code, str(error) + _without_directory(error)
    if isinstance(error, OSError):
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
        return UsageError.exit_code, what + (_without_directory(error) or _kept(error, file))
    return StampedeError.exit_code, f"a bug in redis-stampede: {described(error)}{_kept(error, file)}"


def described(error: BaseException) -> str:
    """An exception in one line: class, message, and where in our code it happened."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _module_path(frame.filename) is not None]
    where = f" ({_module_path(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    message = printable(hide_userinfo(" ".join(str(error).split())))[:200]
    return f"{type(error).__name__}{': ' if message else ''}{message}{where}"


def keep_traceback(error: BaseException, path: Path | None = None) -> Path | None:
    """Append an exception's traceback to a file. Without a path, or if that file cannot be written, use a temporary
    file. Returns the path; None if no file could be written."""
    text = hide_userinfo("".join(traceback.format_exception(error)))
    if path is not None:
        with suppress(OSError), open(path, "a", opener=_private, encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
            return path
    with suppress(OSError):
        handle, temporary = tempfile.mkstemp(prefix="stampede-error-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        return Path(temporary)
    return None


def _private(path: str, flags: int) -> int:
    """Open a file that only its owner may read, because a traceback may show names and addresses."""
    return os.open(path, flags, 0o600)


def _kept(error: BaseException, file: Path | None) -> str:
    path = keep_traceback(error, file)
    return "" if path is None else f"; its traceback is in {path}"


def _module_path(filename: str) -> str | None:
    """The path of a module of this project, such as `coordinator/start.py`; None for any other file."""
    root = Path(__file__).parents[2]
    path = Path(filename)
    if not path.is_relative_to(root):
        return None
    parts = path.relative_to(root).parts
    return "/".join(parts) if parts[0] in _OUR_PACKAGES else None


def _without_directory(error: Exception) -> str:
    """The end of a message about a file if the working directory was deleted; otherwise ""."""
    is_about_files = isinstance(error, UsageError) or any(isinstance(cause, OSError) for cause in _causes(error))
    is_gone = is_about_files and directory_is_gone()
    return "; the working directory was deleted: change to one that exists (cd)" if is_gone else ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def directory_is_gone() -> bool:
    """Whether the working directory was deleted, even if a new one has its name."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


def _ignore_impossible_sizes() -> None:
    """Remove COLUMNS and LINES if they are not plausible: rich uses COLUMNS=0, and click and rich differ on other
    values. Without the variables, both ask the terminal."""
    for name in ("COLUMNS", "LINES"):
        size = os.environ.get(name, "1")
        if not (size.isascii() and size.isdigit() and len(size) < 9 and 0 < int(size) <= _LARGEST_SIZE):
            del os.environ[name]


@contextmanager
def _safe_streams() -> Iterator[None]:
    before = sys.stdout, sys.stderr
    for stream in filter(None, before):
        with suppress(OSError, ValueError):
            stream.flush()
    closed = {fd: _closed(fd) for fd in (_STDIN, _STDOUT, _STDERR)}
    stderr_writer = StderrWriter(_STDERR)
    try:
        sys.stdout = _result_stream(before[0], closed[_STDOUT], stderr_writer)
        sys.stderr = text_stream(stderr_writer, _encoding(before[1]))
        yield
        with suppress(KeyboardInterrupt):
            sys.stdout.flush()
            sys.stderr.flush()
            stderr_writer.drain(PATIENCE_S)
    finally:
        stderr_writer.close()
        sys.stdout, sys.stderr = before


def _closed(fd: int) -> OSError | None:
    """The error of a closed descriptor; None for an open one. /dev/null takes its place: otherwise the next opened file
    would get this descriptor, and the output."""
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


def _result_stream(before: object, error: OSError | None, stderr_writer: StderrWriter) -> io.TextIOWrapper:
    """stdout. Before it writes, it waits until stderr is written: without a limit if both are the same terminal or
    pipe."""
    patience_s = None if _are_the_same() else PATIENCE_S
    waits = True

    def drain_stderr() -> None:
        nonlocal waits
        waits = waits and stderr_writer.drain(patience_s)

    outlet = Outlet(_STDOUT, error, drain_stderr)
    return io.TextIOWrapper(
        io.BufferedWriter(outlet),
        encoding=_encoding(before),
        errors="backslashreplace",
        line_buffering=outlet.isatty(),
    )


def _are_the_same() -> bool:
    """Whether stdout and stderr lead to the same terminal, pipe or file."""
    out, err = os.fstat(_STDOUT), os.fstat(_STDERR)
    return (out.st_dev, out.st_ino) == (err.st_dev, err.st_ino)


def _encoding(stream: object) -> str:
    return getattr(stream, "encoding", None) or "utf-8"
