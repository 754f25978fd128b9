from __future__ import annotations

import socket
import threading

import pytest

from common.cancellation import CutShort, Lifeline


def test_nothing_happens_until_it_is_cut() -> None:
    lifeline = Lifeline()
    lifeline.check()
    lifeline.wait(0.0)
    assert not lifeline.is_cut


def test_cutting_ends_every_wait_at_once() -> None:
    lifeline = Lifeline()
    entered, ended = threading.Event(), threading.Event()

    def wait_long() -> None:
        entered.set()
        with pytest.raises(CutShort):
            lifeline.wait(600.0)
        ended.set()

    thread = threading.Thread(target=wait_long)
    thread.start()
    assert entered.wait(5.0)
    lifeline.cut()
    thread.join(5.0)
    assert ended.is_set()


def test_cutting_wakes_whoever_is_blocked_in_a_socket() -> None:
    lifeline = Lifeline()
    ours, theirs = socket.socketpair()
    received: list[bytes] = []
    with ours, theirs:
        lifeline.hold(ours)
        thread = threading.Thread(target=lambda: received.append(ours.recv(1)))
        thread.start()
        lifeline.cut()
        thread.join(5.0)
    assert received == [b""]


def test_a_socket_that_comes_too_late_is_refused() -> None:
    lifeline = Lifeline()
    lifeline.cut()
    with socket.socket() as late, pytest.raises(CutShort):
        lifeline.hold(late)


def test_cutting_twice_and_cutting_closed_sockets_is_harmless() -> None:
    lifeline = Lifeline()
    sock = socket.socket()
    lifeline.hold(sock)
    sock.close()
    lifeline.cut()
    lifeline.cut()
    with pytest.raises(CutShort):
        lifeline.check()
