from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from agent import connectivity
from agent.connectivity import (
    EVERY_NS,
    FIRST_AFTER_NS,
    HANDSHAKE_NS,
    NEXT_AFTER_NS,
    SLOW_NS,
    Connectivity,
    Obstacle,
    Reached,
    Resolved,
    examine,
)
from common.clock import monotonic_ns
from common.protocol.endpoint import Endpoint, parse_endpoint
from common.protocol.listener import Listener
from common.protocol.token import coordinator_credentials
from common.protocol.token_sources import TokenVariables
from common.protocol.transport import Context
from tests.support.runs import HOST, wait_until

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connectivity, "ANSWER_S", 0.2)


@contextmanager
def server(*, greeting: bytes = b"", reply: bytes = b"", closes: bool = False) -> Iterator[Endpoint]:
    """A server that sends `greeting` on accept and `reply` to the first data."""
    with socket.create_server((HOST, 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    connection.sendall(greeting)
                    if not closes and connection.recv(4096):
                        connection.sendall(reply)
                        connection.recv(4096)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Endpoint(HOST, listening.getsockname()[1])
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.parametrize("secured", [True, False])
def test_a_coordinator_with_another_encryption_setting_is_named(tmp_path: Path, secured: bool) -> None:
    curve = coordinator_credentials(tmp_path / "token", TokenVariables(), {}).coordinator if secured else None
    with Context() as context, Listener(context, f"tcp://{HOST}:*", curve) as listener:
        address = parse_endpoint(listener.endpoint)
        assert examine(address, curve=secured) == Reached(address)
        found = examine(address, curve=not secured)
    assert isinstance(found, Obstacle)
    assert found.lasting
    assert found.text == (
        f"the coordinator at {address} requires its token; join without --insecure, and with --token-file"
        if secured
        else f"the coordinator at {address} was started with --insecure; join with --insecure"
    )


@pytest.mark.parametrize(
    ("greeting", "reply", "kind"),
    [
        (b"", b"HTTP/1.0 404 Not Found\r\n\r\n", "an HTTP server"),
        (b"", b"-ERR wrong number of arguments for 'get' command\r\n", "a Redis server"),
        (b"-DENIED Redis is running in protected mode", b"", "a Redis server"),
        (b"SSH-2.0-OpenSSH_10.0\r\n", b"", "an SSH server"),
        (b"220 mail.example ESMTP\r\n", b"", "something else"),
        (b"", b"\x15\x03\x01\x00\x02\x02\x46", "a TLS server"),
    ],
)
def test_another_kind_of_server_at_the_address_is_named(greeting: bytes, reply: bytes, kind: str) -> None:
    with server(greeting=greeting, reply=reply) as address:
        found = examine(address, curve=True)
    assert found == Obstacle(f"{kind} listens at {address}, not a coordinator", lasting=True)


def test_a_temporary_obstacle_is_named_and_is_not_final() -> None:
    with server() as address:
        silent = examine(address, curve=True)
    with server(closes=True) as address:
        closing = examine(address, curve=True)
    closed = examine(address, curve=True)
    unknown = examine(Endpoint("no-such-host.invalid", 1), curve=True)
    for found, said in (
        (silent, "accepts connections, but nothing answers there"),
        (closing, f"{address} closes connections at once"),
        (closed, f"nothing listens at {address}"),
        (unknown, "cannot resolve no-such-host.invalid: "),
    ):
        assert isinstance(found, Obstacle)
        assert said in found.text
        assert not found.lasting


def test_every_address_of_a_host_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    with Context() as context, Listener(context, f"tcp://{HOST}:*", None) as listener:
        there = parse_endpoint(listener.endpoint)
        others = [Endpoint("127.0.0.9", there.port), there]
        monkeypatch.setattr(connectivity, "resolve", lambda _: others)
        assert examine(Endpoint("name", there.port), curve=False) == Reached(there)
    found = examine(Endpoint("name", there.port), curve=False)
    assert found == Obstacle(f"nothing listens at {others[0]}; nothing listens at {there}")


def test_a_host_name_is_resolved_first_and_examined_while_there_is_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def found(address: Endpoint, *, curve: bool) -> Obstacle:
        asked.append((address, curve))
        return Obstacle("closed")

    monkeypatch.setattr(connectivity, "examine", found)
    address, now_ns = Endpoint("127.0.0.1", 1), monotonic_ns()
    checks = Connectivity(address, curve=True)
    assert wait_until(lambda: checks.look(is_up=False, now_ns=now_ns), "an address") == Resolved(address)
    assert checks.look(is_up=False, now_ns=now_ns + FIRST_AFTER_NS - 1) is None
    assert checks.look(is_up=True, now_ns=now_ns + 10 * FIRST_AFTER_NS) is None
    now_ns += 11 * FIRST_AFTER_NS
    assert checks.look(is_up=False, now_ns=now_ns + HANDSHAKE_NS - 1, is_connected=True) is None
    assert not asked
    assert wait_until(lambda: checks.look(is_up=False, now_ns=now_ns), "a finding") == Obstacle("closed")
    assert checks.look(is_up=False, now_ns=now_ns + EVERY_NS - 1) is None
    assert wait_until(lambda: checks.look(is_up=False, now_ns=now_ns + EVERY_NS), "another") == Obstacle("closed")
    assert asked == [(address, True)] * 2


def test_the_addresses_of_a_host_name_are_tried_one_by_one_until_one_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third = places = [Endpoint(f"127.0.0.{number}", 1) for number in (1, 2, 3)]
    monkeypatch.setattr(connectivity, "resolve", lambda _: places)
    checks, now_ns = Connectivity(Endpoint("name", 1), curve=True), monotonic_ns()
    found = wait_until(lambda: checks.look(is_up=False, now_ns=now_ns), "an address")
    assert found == Resolved(first, (second, third))
    assert checks.look(is_up=False, now_ns=now_ns + NEXT_AFTER_NS - 1) is None
    assert checks.look(is_up=False, now_ns=now_ns + NEXT_AFTER_NS) == Resolved(second, (third,))
    assert checks.look(is_up=False, now_ns=now_ns + 3 * NEXT_AFTER_NS, is_connected=True) is None
    assert checks.look(is_up=True, now_ns=now_ns + 4 * NEXT_AFTER_NS) is None
    assert checks.look(is_up=False, now_ns=now_ns + 6 * NEXT_AFTER_NS) is None


def test_slow_name_resolution_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, here, now_ns = threading.Event(), Endpoint("127.0.0.1", 1), monotonic_ns()
    monkeypatch.setattr(connectivity, "resolve", lambda _: [here] if answers.wait(30) else [])
    checks = Connectivity(Endpoint("slow", 1), curve=True)
    assert checks.look(is_up=False, now_ns=now_ns) is None
    slow = Obstacle("cannot resolve slow: the name servers have not answered yet")
    found = [checks.look(is_up=False, now_ns=now_ns + SLOW_NS + after_ns) for after_ns in (-1, 0, 1)]
    assert found == [None, slow, None]
    answers.set()
    assert wait_until(lambda: checks.look(is_up=False, now_ns=now_ns + 2 * SLOW_NS), "an address") == Resolved(here)


def test_a_host_name_that_does_not_resolve_is_reported_at_once() -> None:
    checks = Connectivity(Endpoint("no-such-host.invalid", 1), curve=True)
    found = wait_until(lambda: checks.look(is_up=False, now_ns=monotonic_ns()), "a finding")
    assert isinstance(found, Obstacle)
    assert found.text.startswith("cannot resolve no-such-host.invalid: ")
