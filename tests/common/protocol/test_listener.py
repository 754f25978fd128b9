from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import pytest
import zmq

from common.protocol import listener as module
from common.protocol import transport
from common.protocol.inbox import MAX_UNKNOWN_MESSAGES
from common.protocol.listener import Listener, shut_down
from common.protocol.transport import Context, CurveServer, LinkEvent, SocketPoller
from tests.support.links import ANYWHERE, CLIENT, PATIENCE_S, SERVER, Bench

pytestmark = pytest.mark.usefixtures("no_leaks")

QUICK_S = 0.3
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
"""ZMTP 3.0 without keys, spoken by hand: a ZeroMQ socket keeps a message back until it has all parts."""
GARBAGE = [
    pytest.param(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", id="HTTP"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), id="TLS"),
    pytest.param(b"\x01\x00", id="ZMTP 1"),
    pytest.param(b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x01\x05\x00\x00", id="ZMTP 2"),
    pytest.param(bytes(range(255, 0, -1)), id="bytes"),
]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connected(listener: Listener) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", listener.port))
    peer.settimeout(PATIENCE_S)
    return peer


def is_cut(peer: socket.socket) -> bool:
    """Waits until the other side has ended the connection. Raises TimeoutError when it does not."""
    with suppress(ConnectionError):
        while peer.recv(4096):
            pass
    return True


@pytest.mark.parametrize("curve", [SERVER, None], ids=["CURVE", "NULL"])
@pytest.mark.parametrize("said", GARBAGE)
def test_a_peer_that_does_not_speak_zeromq_is_cut_and_counted_as_refused(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, curve: CurveServer | None, said: bytes
) -> None:
    monkeypatch.setattr(transport, "HANDSHAKE_S", QUICK_S)
    bench = Bench(stack, curve)
    with closing(connected(bench.listener)) as peer:
        with suppress(ConnectionError):
            peer.sendall(said)
        assert is_cut(peer)
    bench.until(lambda: bench.listener.count_refused().total() == 1)
    assert bench.heard == []


@pytest.mark.parametrize("curve", [SERVER, None], ids=["CURVE", "NULL"])
def test_a_silent_peer_is_cut_after_the_time_for_a_handshake(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, curve: CurveServer | None
) -> None:
    monkeypatch.setattr(transport, "HANDSHAKE_S", QUICK_S)
    bench = Bench(stack, curve)
    with closing(connected(bench.listener)) as peer:
        assert is_cut(peer)
    bench.until(lambda: bench.listener.count_refused().total() == 1)


def test_the_oldest_strangers_are_cut_when_there_are_too_many(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MAX_STRANGERS", 3)
    bench = Bench(stack, SERVER)
    strangers = [stack.enter_context(closing(connected(bench.listener))) for _ in range(5)]
    assert all(is_cut(stranger) for stranger in strangers[:2])
    dialer = bench.dial(CLIENT)
    bench.until_up(dialer)
    dialer.send(b"hello")
    assert bench.until(lambda: bench.heard) == [b"hello"]


def test_a_peer_that_floods_is_cut_and_named_and_others_get_through(stack: ExitStack) -> None:
    bench = Bench(stack, SERVER)
    flooder, agent = bench.dial(CLIENT), bench.dial(CLIENT)
    for dialer in (flooder, agent):
        bench.until_up(dialer)
    agent.send(b"first")
    bench.until(lambda: bench.heard == [b"first"])
    poller = SocketPoller()  # the messages are not taken
    poller.watch(flooder)
    while LinkEvent.DOWN not in list(flooder.link_events()):
        while flooder.send(b"flood"):
            pass
        poller.wait(0.01)
    agent.send(b"second")
    bench.until(lambda: b"second" in bench.heard)
    assert bench.heard.count(b"flood") == 0
    [line] = bench.until(bench.listener.take_floods)
    assert line.startswith("cut a connection of a peer at 127.0.0.1:")
    assert line.endswith(": more messages than an agent sends")
    assert bench.listener.count_cut() == 1
    assert bench.listener.count_refused() == {}


def test_a_connection_with_a_known_agent_may_have_more_waiting(stack: ExitStack) -> None:
    bench = Bench(stack, SERVER)
    agent = bench.dial(CLIENT)
    bench.until_up(agent)
    agent.send(b"hello")
    [(routing_id, _)] = bench.until(lambda: bench.received)
    bench.listener.introduce(routing_id, "web1", metrics=True)
    sent = 0
    while sent < 3 * MAX_UNKNOWN_MESSAGES:
        sent += agent.send(b"frame")
    bench.until(lambda: bench.heard.count(b"frame") == sent)
    agent.socket.send_multipart([b"one", b"two"])
    bench.until(lambda: LinkEvent.DOWN in bench.events[agent])
    [line] = bench.until(bench.listener.take_floods)
    assert line.startswith("cut a connection of agent web1 at 127.0.0.1:")


def test_a_message_that_never_ends_is_cut_before_it_fills_memory(stack: ExitStack) -> None:
    bench = Bench(stack, None)
    part = b"\x03" + (1 << 19).to_bytes(8) + bytes(1 << 19)  # a long frame, and more to come
    sent = 0
    with closing(connected(bench.listener)) as peer, suppress(ConnectionError):
        peer.sendall(GREETING + READY)
        answer = b""
        while b"READY" not in answer:
            answer += peer.recv(4096)
        while sent < 1 << 30:
            peer.sendall(part)
            sent += len(part)
    assert sent < 1 << 29
    [line] = bench.until(bench.listener.take_floods)
    assert line.endswith(": a message that never ends")
    assert bench.heard == []


def test_a_peer_that_waits_for_our_receive_window_notices_the_cut() -> None:
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as server,
        closing(socket.create_connection(server.getsockname())) as peer,
        closing(server.accept()[0]) as accepted,
    ):
        peer.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                peer.send(bytes(1 << 19))
        assert shut_down(accepted.fileno(), server.getsockname()[1]).startswith("127.0.0.1:")
        with suppress(ConnectionError):
            while accepted.recv(1 << 16):  # as ZeroMQ does before it closes
                pass
        accepted.close()
        peer.settimeout(PATIENCE_S)
        with pytest.raises(ConnectionError):
            peer.sendall(bytes(64 << 20))


def test_a_connection_of_another_port_is_not_shut_down() -> None:
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as server,
        closing(socket.create_connection(server.getsockname())) as peer,
        closing(server.accept()[0]) as accepted,
    ):
        assert shut_down(accepted.fileno(), server.getsockname()[1] + 1) == ""
        peer.sendall(b"on")
        assert accepted.recv(2) == b"on"


def test_a_listener_can_be_closed_during_a_storm_of_strangers(stack: ExitStack) -> None:
    bench = Bench(stack, SERVER)
    port, stop, made = bench.listener.port, threading.Event(), itertools.count()

    def storm() -> None:
        while not stop.is_set():
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                next(made)

    threads = [threading.Thread(target=storm, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        bench.until(lambda: next(made) > 1_000)
        stack.close()  # hangs if the I/O thread is blocked
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_an_error_of_the_thread_is_raised_when_messages_are_taken(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise ZeroDivisionError

    monkeypatch.setattr(module._Reader, "_read", fail)
    bench = Bench(stack, None)
    with pytest.raises(ZeroDivisionError):
        bench.until(lambda: False)


def test_a_listener_wakes_a_poller_until_everything_is_taken(stack: ExitStack) -> None:
    bench = Bench(stack, None)
    dialer = bench.dial(None)
    bench.until_up(dialer)
    dialer.send(b"hello")
    bench.until(lambda: bench.received)
    bench.listener.introduce(bench.received[0][0], "web1", metrics=False)
    sent = 0
    while sent < 600:
        sent += dialer.send(b"x")
    bench.until(lambda: len(bench.heard) == sent + 1)


def test_two_listeners_do_not_share_an_address() -> None:
    with Context() as context, Listener(context, ANYWHERE, None), pytest.raises(zmq.ZMQError):
        Listener(context, ANYWHERE, None)
