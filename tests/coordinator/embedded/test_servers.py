from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import redis

from common.errors import TargetError
from common.plan.schema import Embedded
from coordinator.embedded import HOST, EmbeddedServer, open_embedded, servers
from coordinator.embedded.layouts import STANDALONE
from tests.support.servers import Server, closed_port, start_server

STARTS_A_SERVER_AND_WAITS = """
import sys
from common.plan.schema import Embedded
from coordinator.embedded import open_embedded
with open_embedded(Embedded.STANDALONE) as server:
    print(server.pid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.usefixtures("no_leaks")
def test_a_server_answers_from_open_to_close() -> None:
    with open_embedded(Embedded.STANDALONE) as server:
        host, port = server.url.removeprefix("redis://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(b"PING\r\n")
            assert connection.recv(64) == b"+PONG\r\n"
        pid = server.pid
        assert pid is not None
    assert server.pid is None
    assert not psutil.pid_exists(pid)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, server.port), timeout=5)


@pytest.mark.usefixtures("no_leaks")
def test_stop_is_idempotent() -> None:
    server = open_embedded(Embedded.STANDALONE)
    server.stop()
    server.stop()
    assert server.pid is None


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(valkey: Server) -> None:
    assert os.getpgid(valkey.pid) != os.getpgid(0)
    assert os.getsid(valkey.pid) != os.getsid(0)


@pytest.mark.usefixtures("no_leaks")
def test_a_running_server_has_no_files() -> None:
    with start_server() as server:
        client = server.client(decode_responses=True)
        assert client.config_get("save", "appendonly") == {"save": "", "appendonly": "no"}
        client.set("a", 1)
        with pytest.raises(redis.ResponseError):
            client.save()
        assert list(Path(tempfile.gettempdir()).iterdir()) == []
        assert client.get("a") == "1"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can end a process with its parent")
@pytest.mark.usefixtures("no_leaks")
def test_the_server_ends_with_a_killed_parent() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTS_A_SERVER_AND_WAITS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        assert parent.stdout is not None
        server = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs([server], timeout=5.0)
    assert not alive


@pytest.mark.usefixtures("no_leaks")
def test_the_server_does_not_use_a_port_that_another_process_has_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with start_server() as other:
        free = closed_port()
        ports = iter(([other.port], [free]))
        monkeypatch.setattr(servers, "_free_ports", lambda _count: next(ports))
        with open_embedded(Embedded.STANDALONE) as server:
            assert server.port == free


@pytest.mark.usefixtures("no_leaks")
def test_a_server_that_does_not_start_raises_an_error_with_the_last_line_of_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "valkey-server"
    broken.write_text("#!/bin/sh\necho no room left on the moon\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(TargetError, match=r"^embedded server: .* no room left on the moon$"):
        EmbeddedServer(broken, STANDALONE)
