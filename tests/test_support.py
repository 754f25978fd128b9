"""The helpers of other tests work, and their checks can fail."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests.support import leaks
from tests.support.commands import CommandLine
from tests.support.leaks import nothing_left_behind
from tests.support.servers import Server, SocketServer
from tests.support.shapes import tls_server

SLEEPS = "import sys; sys.stdin.read()"
LEAVES_A_CHILD_BEHIND = f"""
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", {SLEEPS!r}]).pid, flush=True)
"""


@pytest.fixture
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "_GRACE_S", 0.05)


def _leave_a_process() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", SLEEPS], stdin=subprocess.PIPE):
        yield


def _leave_an_orphan() -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-c", LEAVES_A_CHILD_BEHIND], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        parent.wait()
        yield
    orphan.wait(timeout=5)


def _leave_a_thread() -> Iterator[None]:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="left behind")
    thread.start()
    yield
    done.set()
    thread.join()


def _leave_a_socket() -> Iterator[None]:
    with socket.create_server(("127.0.0.1", 0)):
        yield


def _leave_a_file() -> Iterator[None]:
    with tempfile.NamedTemporaryFile(delete=False):
        yield


@pytest.mark.usefixtures("_short_grace")
@pytest.mark.parametrize(
    ("leak", "named"),
    [
        (_leave_a_process, "process"),
        pytest.param(
            _leave_an_orphan,
            "process",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux adopts orphans"),
        ),
        (_leave_a_thread, "thread left behind"),
        (_leave_a_socket, "socket"),
        (_leave_a_file, "temporary file"),
    ],
)
def test_a_leak_of_each_kind_is_found(leak: Callable[[], Iterator[None]], named: str) -> None:
    leaking = leak()
    with pytest.raises(AssertionError, match=f"left behind: {named}"), nothing_left_behind():
        next(leaking)
    assert next(leaking, "done") == "done"


def test_a_paused_server_is_silent_and_a_resumed_one_answers(valkey: Server) -> None:
    with socket.create_connection(("127.0.0.1", valkey.port)) as asked:
        valkey.pause()
        asked.sendall(b"PING\r\n")
        asked.settimeout(0.05)
        with pytest.raises(TimeoutError):
            asked.recv(64)
        valkey.resume()
        asked.settimeout(5)
        assert asked.recv(64) == b"+PONG\r\n"


def test_a_server_with_a_password_requires_it(valkey_with_password: Server) -> None:
    with socket.create_connection(("127.0.0.1", valkey_with_password.port), timeout=5) as asked:
        asked.sendall(b"PING\r\n")
        assert asked.recv(64).startswith(b"-NOAUTH")
    assert valkey_with_password.client().ping()


@pytest.mark.parametrize(
    ("name", "said"),
    [("closing_server", b""), ("http_server", b"HTTP/1.1 400"), ("smtp_server", b"220 mail.example")],
)
def test_each_fake_server_answers_as_described(name: str, said: bytes, request: pytest.FixtureRequest) -> None:
    server: SocketServer = request.getfixturevalue(name)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as asked:
        if name == "http_server":
            asked.sendall(b"PING\r\n")
        heard = asked.recv(64)
    assert re.match(re.escape(said), heard)
    assert bool(heard) == bool(said)


def test_a_silent_server_accepts_connections_and_sends_nothing(silent_server: SocketServer) -> None:
    with socket.create_connection(("127.0.0.1", silent_server.port), timeout=5) as asked:
        asked.sendall(b"PING\r\n")
        asked.settimeout(0.05)
        with pytest.raises(TimeoutError):
            asked.recv(64)


def test_a_deaf_port_never_completes_a_connection(deaf_url: str) -> None:
    with pytest.raises(TimeoutError):
        socket.create_connection(("127.0.0.1", int(deaf_url.rsplit(":")[-1])), timeout=0.05)


def test_commands_have_their_own_home(commands: CommandLine) -> None:
    assert commands.environment["XDG_CONFIG_HOME"].startswith(str(commands.directory))
    assert not [name for name in commands.environment if name.startswith("STAMPEDE_")]


def test_without_a_server_with_tls_its_tests_are_skipped_but_fail_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no redis-server with TLS"):
        tls_server()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="NOTHING IS TESTED WITH TLS: no redis-server with TLS"):
        tls_server()
