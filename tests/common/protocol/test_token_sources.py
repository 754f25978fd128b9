from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import UsageError
from common.protocol.token_sources import read_secret_file, read_secret_stdin


@pytest.fixture
def stdin() -> Iterator[None]:
    """Descriptor 0 may be replaced."""
    kept = os.dup(0)
    yield
    os.dup2(kept, 0)
    os.close(kept)


def put_on_stdin(fd: int) -> None:
    os.dup2(fd, 0)
    os.close(fd)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A named pipe without a writer."""
    path = tmp_path / "fifo"
    os.mkfifo(path, 0o600)
    return path


def test_a_pipe_without_a_writer_times_out(fifo: Path) -> None:
    with pytest.raises(UsageError, match=r"fifo: expected the token from this pipe, but it did not end within 0\.01 s"):
        read_secret_file(fifo, "the token", wait_s=0.01)
    writer = os.open(fifo, os.O_RDWR)
    os.write(writer, b"begun")
    with pytest.raises(UsageError, match="did not end within"):
        read_secret_file(fifo, "the token", wait_s=0.01)
    os.close(writer)


def test_a_slow_pipe_is_read_to_its_end(fifo: Path) -> None:
    writer = threading.Thread(target=lambda: fifo.write_text("a token"))
    writer.start()
    assert read_secret_file(fifo, "the token", wait_s=30) == "a token"
    writer.join()


def test_process_substitution_is_a_pipe(tmp_path: Path) -> None:
    del tmp_path
    reader, writer = os.pipe()
    os.write(writer, b"a token")
    os.close(writer)
    assert read_secret_file(Path(f"/dev/fd/{reader}"), "the token") == "a token"
    os.close(reader)


def test_anything_but_a_file_or_pipe_is_named_in_the_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        found = {tmp_path: "a directory", tmp_path / "socket": "a socket", Path("/dev/zero"): "a device or terminal"}
        for path, kind in found.items():
            with pytest.raises(UsageError, match=f"{path}: expected a file or a pipe with the token, got {kind}"):
                read_secret_file(path, "the token")


def test_a_file_without_end_is_read_up_to_the_limit(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.touch(0o600)
    os.truncate(large, 1 << 30)
    assert len(read_secret_file(large, "the token")) < 1 << 16


def test_the_suggested_command_is_valid_for_a_shell(tmp_path: Path) -> None:
    path = tmp_path / "a token"
    path.touch()
    path.chmod(0o644)
    with pytest.raises(UsageError, match=rf"expected mode 0600 \(chmod 600 '{path}'\)"):
        read_secret_file(path, "the token")


@pytest.mark.usefixtures("stdin")
def test_stdin_is_read_to_its_end() -> None:
    reader, writer = os.pipe()
    put_on_stdin(reader)
    os.write(writer, "\ufeffa token\n".encode())
    with pytest.raises(UsageError, match="stdin: expected the token from this pipe, but it did not end within"):
        read_secret_stdin("the token", wait_s=0.01)
    os.write(writer, b"a token\n")
    os.close(writer)
    assert read_secret_stdin("the token") == "a token\n"


@pytest.mark.usefixtures("stdin")
def test_a_terminal_as_stdin_is_no_source_of_a_token() -> None:
    ours, theirs = os.openpty()
    put_on_stdin(theirs)
    with pytest.raises(UsageError, match="stdin: expected the token from a pipe or a file, got a terminal"):
        read_secret_stdin("the token")
    os.close(ours)
