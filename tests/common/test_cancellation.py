from __future__ import annotations

import socket
import threading

import pytest

from common.cancellation import Cancellation, CutShort


def test_nothing_ends_before_cancellation() -> None:
    cancellation = Cancellation()
    cancellation.check()
    cancellation.wait(0.0)
    assert not cancellation.is_cancelled


def test_cancelling_ends_every_wait_at_once() -> None:
    cancellation = Cancellation()
    entered, ended = threading.Event(), threading.Event()

    def wait_long() -> None:
        entered.set()
        with pytest.raises(CutShort):
            cancellation.wait(600.0)
        ended.set()

    thread = threading.Thread(target=wait_long)
    thread.start()
    assert entered.wait(5.0)
    cancellation.cancel()
    thread.join(5.0)
    assert ended.is_set()


def test_cancelling_wakes_a_thread_that_is_blocked_in_a_socket() -> None:
    cancellation = Cancellation()
    ours, theirs = socket.socketpair()
    received: list[bytes] = []
    with ours, theirs:
        cancellation.watch(ours)
        thread = threading.Thread(target=lambda: received.append(ours.recv(1)))
        thread.start()
        cancellation.cancel()
        thread.join(5.0)
    assert received == [b""]


def test_a_socket_is_refused_after_cancellation() -> None:
    cancellation = Cancellation()
    cancellation.cancel()
    with socket.socket() as late, pytest.raises(CutShort):
        cancellation.watch(late)


def test_cancelling_twice_and_with_closed_sockets_is_harmless() -> None:
    cancellation = Cancellation()
    sock = socket.socket()
    cancellation.watch(sock)
    sock.close()
    cancellation.cancel()
    cancellation.cancel()
    with pytest.raises(CutShort):
        cancellation.check()
