from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from common.file_reading import WrongKind, read_bounded


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A named pipe without a writer."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def test_a_file_is_read_to_its_end_or_a_byte_beyond_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 1000)
    for limit in (0, 1000, 255_999, 256_000, 1 << 40):
        assert read_bounded(path, limit, wait_s=0) == path.read_bytes()[: limit + 1]


def test_a_huge_file_costs_no_more_than_the_limit(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    assert read_bounded(tmp_path / "huge", 100) == bytes(101)


def test_a_slow_pipe_is_read_to_its_end(fifo: Path) -> None:
    writer = threading.Thread(target=fifo.write_bytes, args=(b"x" * 200_000,))
    writer.start()
    assert read_bounded(fifo, 1 << 20, wait_s=30) == b"x" * 200_000
    writer.join()


def test_a_pipe_without_a_writer_or_an_end_times_out(fifo: Path) -> None:
    with pytest.raises(TimeoutError, match=r"it is a pipe that did not end within 0\.01 s"):
        read_bounded(fifo, 100, wait_s=0.01)
    writer = os.open(fifo, os.O_RDWR)
    os.write(writer, b"x" * 100)
    with pytest.raises(TimeoutError, match="did not end"):
        read_bounded(fifo, 100, wait_s=0.01)
    assert read_bounded_again(fifo, writer) == b"x" * 101
    os.close(writer)


def read_bounded_again(fifo: Path, writer: int) -> bytes:
    """What comes through a pipe that never ends."""
    os.write(writer, b"x" * 200)
    return read_bounded(fifo, 100, wait_s=10)


def test_anything_but_a_file_or_pipe_is_not_opened(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        kinds = {str(tmp_path): "a directory", "/dev/zero": "a device or terminal", f"{tmp_path}/socket": "a socket"}
        for name, kind in kinds.items():
            with pytest.raises(WrongKind, match=f"it is {kind}") as refused:
                read_bounded(Path(name), 100)
            assert refused.value.kind == kind
