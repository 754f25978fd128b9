from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from common.errors import PlanError, TargetError, UsageError
from common.program.standard_streams import Outlet, described, explained, failed, keep_traceback, run_program
from tests.support.runs import wait_until


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Descriptors 0, 1 and 2 may be closed and replaced; so may stdout and stderr."""
    kept = [os.dup(fd) for fd in (0, 1, 2)]
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    yield
    for fd, copy in enumerate(kept):
        os.dup2(copy, fd)
        os.close(copy)


def redirect(fd: int, target: str | int | Path) -> None:
    """Have a descriptor lead to a file, or to another descriptor, which is closed here."""
    opened = target if isinstance(target, int) else os.open(target, os.O_WRONLY | os.O_CREAT)
    os.dup2(opened, fd)
    os.close(opened)


def printing() -> int:
    print("é a line")
    return 0


@pytest.mark.usefixtures("descriptors")
def test_a_reader_that_stops_early_does_not_change_the_exit_code(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    redirect(1, writer)
    redirect(2, tmp_path / "err")
    assert run_program("coordinator", printing) == 0
    assert (tmp_path / "err").read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.usefixtures("descriptors")
def test_a_full_disk_is_one_line_and_a_usage_error_unless_the_program_failed_anyway(tmp_path: Path) -> None:
    redirect(1, "/dev/full")
    redirect(2, tmp_path / "err")
    assert run_program("coordinator", printing) == 2
    assert run_program("coordinator", lambda: printing() or 5) == 5
    line = "coordinator: cannot write to stdout: No space left on device\n"
    assert (tmp_path / "err").read_text() == 2 * line


@pytest.mark.usefixtures("descriptors")
def test_closed_streams_are_reported_and_no_file_gets_their_descriptors(tmp_path: Path) -> None:
    redirect(2, tmp_path / "err")
    for fd in (0, 1):
        os.close(fd)

    def command() -> int:
        with (tmp_path / "file").open("w") as file:
            assert file.fileno() > 2
            return printing()

    assert run_program("agent", command) == 2
    assert (tmp_path / "err").read_text() == "agent: cannot write to stdout: it is closed\n"


@pytest.mark.usefixtures("descriptors")
def test_a_program_works_without_stderr(tmp_path: Path) -> None:
    redirect(1, tmp_path / "out")
    os.close(2)
    assert run_program("agent", lambda: print("lost", file=sys.stderr) or printing()) == 0  # type: ignore[func-returns-value]
    assert "a line" in (tmp_path / "out").read_text()


@pytest.mark.usefixtures("descriptors")
def test_characters_outside_the_encoding_are_escaped(tmp_path: Path) -> None:
    redirect(1, tmp_path / "out")
    sys.stdout = os.fdopen(os.dup(1), "w", encoding="ascii")
    with sys.stdout:
        assert run_program("coordinator", printing) == 0
    assert (tmp_path / "out").read_text() == "\\xe9 a line\n"


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize("columns", ["0", "x", "-5", "²", "99999999", ""])
def test_an_impossible_width_is_ignored(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", "40")
    assert run_program("coordinator", lambda: 0) == 0
    assert ("COLUMNS" in os.environ, os.environ["LINES"]) == (False, "40")


def test_a_stream_waits_for_a_slow_reader() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    outlet = Outlet(writer)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 1024)
    assert os.read(reader, 1 << 20)
    assert outlet.write(b"abc") == 3
    assert outlet.error is None
    for fd in (reader, writer):
        os.close(fd)


def test_ctrl_c_ends_the_wait_for_a_reader() -> None:
    code = "from common.program import standard_streams\n"
    code += "exit(standard_streams.run_program('x', lambda: any(print(n) for n in range(10**5))))"
    with subprocess.Popen((sys.executable, "-c", code), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pipe = process.stdout.fileno()

        def filled() -> int:
            return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)

        wait_until(lambda: filled() > 60_000, "the pipe is full")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


@pytest.mark.usefixtures("descriptors")
def test_ctrl_c_between_two_lines_does_not_wait_for_the_reader_of_a_full_pipe() -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with suppress(BlockingIOError):
        while os.write(write_end, bytes(4096)):
            pass
    os.set_blocking(write_end, True)
    os.dup2(write_end, 1)
    os.close(write_end)

    def command() -> int:
        print("a line")
        raise KeyboardInterrupt

    assert run_program("coordinator", command) == 130
    os.close(read_end)


@pytest.mark.usefixtures("descriptors")
def test_text_on_stderr_is_written_before_the_result(tmp_path: Path) -> None:
    redirect(1, tmp_path / "out")
    os.dup2(1, 2)

    def command() -> int:
        for number in range(100):
            print(f"note {number}", file=sys.stderr)
        return printing()

    assert run_program("coordinator", command) == 0
    assert (tmp_path / "out").read_text().splitlines() == [*(f"note {number}" for number in range(100)), "é a line"]


def test_an_unexpected_error_is_one_line_with_its_traceback_in_a_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(AttributeError) as caught:
        explained(None)  # type: ignore[arg-type]  # a bug of ours, in a module of ours
    assert failed("coordinator", caught.value) == 1
    [line] = capsys.readouterr().err.splitlines()
    [file] = tmp_path.iterdir()
    assert line.startswith("coordinator: a bug in redis-stampede: AttributeError: 'NoneType' object has no attribute")
    assert "(common/program/standard_streams.py:" in line
    assert line.endswith(f"; its traceback is in {file}")
    assert "Traceback (most recent call last)" in file.read_text()


def test_an_os_error_is_a_usage_error_that_names_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    error = PermissionError(errno.EACCES, "Permission denied", "/somewhere/plan.yaml")
    assert failed("agent", error) == 2
    assert capsys.readouterr().err.startswith("agent: /somewhere/plan.yaml: Permission denied; its traceback is in ")


def plan_error(cause: Exception | None) -> PlanError:
    error = PlanError("plan.yaml: expected a plan that can be read")
    error.__cause__ = cause
    return error


GONE = "; the working directory was deleted: change to one that exists (cd)"


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (UsageError("no run there"), True),
        (FileNotFoundError(2, "No such file"), True),
        (plan_error(FileNotFoundError()), True),
        (plan_error(plan_error(FileNotFoundError())), True),
        (plan_error(None), False),
        (TargetError("nothing listens there"), False),
    ],
)
def test_a_working_directory_that_was_deleted_is_named(
    error: Exception, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gone").mkdir()
    os.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    failed("coordinator", error)
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith(GONE) is named


def test_a_traceback_goes_to_the_run_folder_or_else_to_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    error = ZeroDivisionError("x\n" * 300)
    assert keep_traceback(error, tmp_path / "error.txt") == tmp_path / "error.txt"
    elsewhere = keep_traceback(error, tmp_path / "gone" / "error.txt")
    assert elsewhere is not None
    assert elsewhere.parent == tmp_path
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert keep_traceback(error) is None
    assert len(described(error)) < 250
