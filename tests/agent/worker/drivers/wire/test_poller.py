from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from agent.worker.drivers.wire.poller import READ, WRITE, FilePoller, open_poller
from common.clock import monotonic_ns

LONG_NS = 10**10

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture
def poller(_leak_check_first: None) -> Iterator[FilePoller]:
    opened = open_poller()
    yield opened
    opened.close()
    opened.close()


@pytest.fixture
def pair(_leak_check_first: None) -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def events_of(found: list[tuple[int, int]], sock: socket.socket) -> int:
    """The events reported for a socket."""
    assert {fd for fd, _ in found} <= {sock.fileno()}
    return sum(events for _, events in found)


@pytest.mark.parametrize("is_precise", [True, False])
def test_a_readable_file_is_reported_once(
    poller: FilePoller, pair: tuple[socket.socket, socket.socket], is_precise: bool
) -> None:
    ours, theirs = pair
    poller.add(ours.fileno())
    assert poller.wait(0, is_precise) == []
    theirs.send(b"x")
    assert events_of(poller.wait(LONG_NS, is_precise), ours) == READ
    assert poller.wait(0, is_precise) == []
    theirs.send(b"y")
    assert events_of(poller.wait(LONG_NS, is_precise), ours) == READ
    assert ours.recv(10) == b"xy"


def test_bytes_that_arrive_before_a_file_is_watched_are_reported(
    poller: FilePoller, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    theirs.send(b"x")
    poller.add(ours.fileno())
    assert events_of(poller.wait(LONG_NS, False), ours) == READ


def test_a_full_socket_is_reported_when_it_has_room(
    poller: FilePoller, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    poller.add(ours.fileno())
    sent = 0
    with suppress(BlockingIOError):
        while True:
            sent += ours.send(bytes(1 << 16))
    assert sent > 0
    poller.watch_write(ours.fileno(), True)
    poller.watch_write(ours.fileno(), True)
    assert events_of(poller.wait(0, False), ours) & WRITE == 0
    while sent:
        sent -= len(theirs.recv(1 << 16))
    assert events_of(poller.wait(LONG_NS, False), ours) & WRITE
    poller.watch_write(ours.fileno(), False)
    poller.watch_write(ours.fileno(), False)
    theirs.send(b"x")
    assert events_of(poller.wait(LONG_NS, False), ours) == READ


def test_readable_and_writable_are_reported_together(
    poller: FilePoller, pair: tuple[socket.socket, socket.socket]
) -> None:
    ours, theirs = pair
    theirs.send(b"x")
    poller.add(ours.fileno())
    poller.watch_write(ours.fileno(), True)
    assert events_of(poller.wait(LONG_NS, False), ours) == READ | WRITE


@pytest.mark.parametrize("before", [b"", b"x"])
def test_a_disconnect_is_reported_as_readable_with_a_further_event(
    poller: FilePoller, pair: tuple[socket.socket, socket.socket], before: bytes
) -> None:
    ours, theirs = pair
    poller.add(ours.fileno())
    theirs.sendall(before)
    theirs.close()
    events = events_of(poller.wait(LONG_NS, False), ours)
    # A reader of the last reply learns from it that the connection may be closed.
    assert events & ~WRITE != READ
    assert ours.recv(10) == before


def test_a_removed_file_is_not_reported(poller: FilePoller, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    poller.add(ours.fileno())
    poller.watch_write(ours.fileno(), True)
    poller.remove(ours.fileno())
    theirs.send(b"x")
    assert poller.wait(0, False) == []
    poller.add(ours.fileno())
    assert events_of(poller.wait(LONG_NS, False), ours) == READ


@pytest.mark.parametrize("is_precise", [True, False])
def test_a_wait_ends_at_its_time(poller: FilePoller, is_precise: bool) -> None:
    began_ns = monotonic_ns()
    assert poller.wait(2_000_000, is_precise) == []
    assert monotonic_ns() - began_ns >= 1_900_000
    assert poller.wait(-5, is_precise) == []


@pytest.mark.parametrize("is_precise", [True, False])
def test_an_event_ends_a_wait(poller: FilePoller, pair: tuple[socket.socket, socket.socket], is_precise: bool) -> None:
    ours, theirs = pair
    poller.add(ours.fileno())
    found: list[tuple[int, int]] = []
    waiting = threading.Thread(target=lambda: found.extend(poller.wait(LONG_NS, is_precise)))
    waiting.start()
    theirs.send(b"x")
    waiting.join(8)
    assert events_of(found, ours) == READ


def test_an_epoll_descriptor_beyond_the_limit_of_select_works(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.worker.drivers.wire.poller._SELECTABLE", 0)
    monkeypatch.setattr(select, "select", None)
    poller = open_poller()
    ours, theirs = pair
    poller.add(ours.fileno())
    assert poller.wait(1_000_000, True) == []
    theirs.send(b"x")
    assert events_of(poller.wait(LONG_NS, True), ours) == READ
    poller.close()
