from __future__ import annotations

import os
import re
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.program.stderr_writer import StderrWriter, is_behind, text_stream

REPORT = re.compile(r"\((1 line was|([\d,]+) lines were) not shown: stderr took no output\)\n")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """(reader, writer)"""
    ends = os.pipe()
    yield ends
    for fd in ends:
        with suppress(OSError):
            os.close(fd)


def fill(fd: int) -> int:
    """Write to a pipe until it takes nothing more; how much that was."""
    os.set_blocking(fd, False)
    size = 0
    with suppress(BlockingIOError):
        while True:
            size += os.write(fd, b"." * 1024)
    with suppress(BlockingIOError):
        while True:
            size += os.write(fd, b".")
    os.set_blocking(fd, True)
    return size


def drained(fd: int, size: int) -> None:
    while size:
        size -= len(os.read(fd, size))


def missed(text: str) -> int:
    """Lines that a stderr reports as not shown."""
    return sum(int((many or "1").replace(",", "")) for _, many in REPORT.findall(text))


def shown(text: str) -> list[str]:
    """Lines without those reports."""
    return REPORT.sub("", text).splitlines()


@given(sizes=st.lists(st.integers(0, 300), max_size=30), reads=st.lists(st.integers(1, 2000), max_size=10))
def test_every_line_is_shown_in_order_or_counted_as_missing(sizes: list[int], reads: list[int]) -> None:
    reader, writer = os.pipe()
    fill(writer)
    stderr = StderrWriter(writer, most_bytes=1000)
    lines = [f"{number}{'x' * size}" for number, size in enumerate(sizes)]
    read = b""
    for line in lines:
        stderr.write(f"{line}\n".encode())
        if reads:
            read += os.read(reader, reads.pop())
    finished = threading.Thread(target=lambda: (stderr.drain(None), os.close(writer)))
    finished.start()
    while part := os.read(reader, 65536):
        read += part
    finished.join()
    stderr.close()
    os.close(reader)
    text = read.decode().lstrip(".")
    assert len(shown(text)) + missed(text) == len(lines)
    assert shown(text) == sorted(set(lines) & set(shown(text)), key=lines.index)


def test_an_unread_pipe_blocks_nothing_and_dropped_lines_are_reported_in_place(
    pipe: tuple[int, int],
) -> None:
    reader, writer = pipe
    filled = fill(writer)
    stderr = StderrWriter(writer, most_bytes=30)
    stream = text_stream(stderr)
    for number in range(10):
        print(f"line {number}", file=stream)
    assert is_behind(stream)
    drained(reader, filled)
    assert stderr.drain(None)
    print("again", file=stream)
    assert stderr.drain(None)
    text = os.read(reader, 65536).decode()
    assert text == ("line 0\nline 1\nline 2\nline 3\n(6 lines were not shown: stderr took no output)\nagain\n")
    assert not is_behind(stream)
    stderr.close()


def test_a_paused_terminal_blocks_nothing_and_shows_everything_when_it_resumes() -> None:
    ours, theirs = os.openpty()
    termios.tcflow(theirs, termios.TCOOFF)
    stderr = StderrWriter(theirs)
    assert stderr.write(b"a line\n") == 7
    assert not stderr.drain(0.01)
    termios.tcflow(theirs, termios.TCOON)
    assert stderr.drain(None)
    assert os.read(ours, 100) == b"a line\r\n"
    stderr.close()
    for fd in (ours, theirs):
        os.close(fd)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_lines_lost_to_a_full_disk_are_reported_when_it_has_room(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    full = os.open("/dev/full", os.O_WRONLY)
    stderr = StderrWriter(full)
    for _ in range(2):
        stderr.write(b"lost\n")
        stderr.drain(None)
    os.dup2(writer, full)
    stderr.write(b"heard\n")
    stderr.drain(None)
    assert os.read(reader, 100) == b"(2 lines were not shown: stderr took no output)\nheard\n"
    stderr.close()
    os.close(full)


def test_a_closed_reader_raises_no_error(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    stderr = StderrWriter(writer)
    assert stderr.write(b"to nobody\n") == 10
    assert stderr.drain(None)
    stderr.close()


def test_writes_wait_for_a_terminal_that_another_program_made_non_blocking(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    filled = fill(writer)
    os.set_blocking(writer, False)
    stderr = StderrWriter(writer)
    stderr.write(b"a line\n")
    drained(reader, filled)
    assert stderr.drain(None)
    assert os.read(reader, 100) == b"a line\n"
    stderr.close()


def test_a_closed_writer_writes_nothing_and_its_thread_ends(pipe: tuple[int, int]) -> None:
    _, writer = pipe
    before = set(threading.enumerate())
    stderr = StderrWriter(writer)
    stderr.write(b"a line\n")
    [thread] = set(threading.enumerate()) - before
    stderr.close()
    stderr.close()
    thread.join(10)
    assert not thread.is_alive()


def test_a_worker_process_ends_even_if_its_stderr_is_not_read(pipe: tuple[int, int]) -> None:
    _, writer = pipe
    fill(writer)
    code = "from common.program import stderr_writer\nstderr_writer.write_stderr_by_thread()\nraise ZeroDivisionError"
    ended = subprocess.run((sys.executable, "-c", code), stderr=writer, timeout=30, check=False)
    assert ended.returncode == 1


def test_the_end_of_a_process_waits_for_its_last_lines() -> None:
    code = "from common.program import stderr_writer\nstderr_writer.write_stderr_by_thread()\n"
    code += "raise ZeroDivisionError('why')"
    ended = subprocess.run((sys.executable, "-c", code), capture_output=True, timeout=30, check=False)
    assert b"ZeroDivisionError: why\n" in ended.stderr


def test_several_threads_may_write_at_once(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    stderr = StderrWriter(writer)
    threads = [threading.Thread(target=stderr.write, args=(f"{number}\n".encode() * 10,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stderr.drain(None)
    lines = os.read(reader, 65536).decode().splitlines()
    assert len(lines) == 80
    assert len([1 for before, after in pairwise(lines) if before != after]) == 7
    stderr.close()
