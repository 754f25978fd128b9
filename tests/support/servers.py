"""Servers for tests: real ones, and sockets that answer like other programs."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any, Self

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from common.plan.schema import Embedded
from coordinator.embedded import HOST, EmbeddedServer, open_embedded
from scripts.shapes.targets import closed_port as closed_port


class Server:
    """A real server. `url` never has the password; `password` is None if the server requires none."""

    def __init__(self, embedded: EmbeddedServer, password: str | None) -> None:
        self._embedded = embedded
        self._clients = contextlib.ExitStack()
        self.password = password

    @property
    def url(self) -> str:
        return self._embedded.url

    @property
    def port(self) -> int:
        return self._embedded.port

    @property
    def pid(self) -> int:
        """The process id of the server. Raises AssertionError after `kill`."""
        assert self._embedded.pid is not None
        return self._embedded.pid

    def client(self, **options: Any) -> redis.Redis:
        """Open a client, which is closed with the server; options are those of `redis.Redis`."""
        options = {"socket_timeout": 5.0, "password": self.password, **options}
        client: redis.Redis = self._clients.enter_context(redis.Redis(host=HOST, port=self.port, **options))
        return client

    def kill(self) -> None:
        """Kill the server."""
        self._embedded.stop()

    def pause(self) -> None:
        """Stop the process: the kernel still accepts connections, but nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Continue the process after `pause`."""
        os.kill(self.pid, signal.SIGCONT)

    def disconnect(self) -> None:
        """Close all clients that `client` opened."""
        self._clients.close()

    def close(self) -> None:
        self.disconnect()
        self._embedded.stop()


@contextlib.contextmanager
def start_server(password: str | None = None, port: int | None = None) -> Iterator[Server]:
    """Start an empty real server. port: of a killed server that it replaces."""
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            if port is not None:
                patch.setattr("coordinator.embedded.servers._free_ports", lambda _count: [port])
            embedded = stack.enter_context(open_embedded(Embedded.STANDALONE))
        server = Server(embedded, password)
        if password is not None:
            with redis.Redis(port=embedded.port) as client:
                client.config_set("requirepass", password)
        try:
            yield server
        finally:
            server.close()


class KeptServer:
    """One real server for many tests. Each test gets it empty, with its initial settings and with counters of zero.
    If a test kills the server, pauses it or changes its settings, the next test gets a new one."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._server: Server | None = None
        self._settings: list[object] = []

    def start(self) -> None:
        """Start the server, if there is none."""
        if self._server is None:
            self._server = self._stack.enter_context(start_server())
            with _asking(self._server) as client:
                self._settings = _settings(client)

    @contextlib.contextmanager
    def lend(self, password: str | None = None) -> Iterator[Server]:
        """Lend the server to one test; with a password, the server requires it."""
        self.start()
        server = self._server
        assert server is not None
        if password is not None:
            with _asking(server) as client:
                client.config_set("requirepass", password)
            server.password = password
        try:
            yield server
        finally:
            if not self._is_as_before(server):
                self.stop()

    def stop(self) -> None:
        """End the server."""
        self._server = None
        self._stack.close()

    def _is_as_before(self, server: Server) -> bool:
        server.disconnect()
        try:
            with _asking(server) as client:
                client.config_set("requirepass", "")
                server.password = None
                client.client_unpause()
                for kind in ("normal", "pubsub", "replica"):
                    client.execute_command("CLIENT", "KILL", "TYPE", kind)
                for command in ("FLUSHALL", "FUNCTION FLUSH", "SCRIPT FLUSH", "SLOWLOG RESET", "CONFIG RESETSTAT"):
                    client.execute_command(*command.split())
                return _settings(client) == self._settings
        except (redis.RedisError, AssertionError):  # it was killed, paused, or wants a password
            return False


@contextlib.contextmanager
def _asking(server: Server) -> Iterator[Any]:
    """A client with a short timeout and without retries."""
    assert server.pid
    options: Any = {"password": server.password, "socket_timeout": 1.0, "retry": Retry(NoBackoff(), 0)}
    with redis.Redis(host=HOST, port=server.port, **options) as client:
        yield client


def _settings(client: Any) -> list[object]:
    return [client.config_get("*"), client.acl_list(), client.info("replication")["role"]]


def wire_bytes_of_others(asking: redis.Redis) -> tuple[int, int]:
    """(bytes in, bytes out) that the server counted for all clients except `asking`."""
    with asking.pipeline() as transaction:
        transaction.info("stats")
        transaction.client_info()
        total, own = transaction.execute()
    return (
        total["total_net_input_bytes"] - int(own["tot-net-in"]),
        total["total_net_output_bytes"] - int(own["tot-net-out"]),
    )


class SocketServer:
    """Listens on loopback, and answers each connection in the same way.

    greeting: sent on accept. reply: sent after each read. closes: close the connection after the greeting (without a
    reply) or after the first reply. `asked`: set when anything was received.
    """

    def __init__(self, *, greeting: bytes = b"", reply: bytes = b"", closes: bool = False) -> None:
        self._greeting, self._reply, self._closes = greeting, reply, closes
        self.asked = threading.Event()
        self._listener = socket.create_server((HOST, 0))
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="socket-server")
        self.port: int = self._listener.getsockname()[1]
        self._thread.start()

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def close(self) -> None:
        self._wake.close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    self._close_all()
                    return
                with contextlib.suppress(OSError):  # the peer may close at any time
                    self._accept() if key.fileobj is self._listener else self._answer(key.fileobj)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        self._selector.register(connection, selectors.EVENT_READ)
        connection.sendall(self._greeting)
        if self._closes and not self._reply:
            self._drop(connection)

    def _answer(self, connection: Any) -> None:
        received = b""
        try:
            received = connection.recv(65536)
            self.asked.set()
            connection.sendall(self._reply)
        finally:
            if not received or (self._closes and self._reply):
                self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()

    def _close_all(self) -> None:
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()


@contextlib.contextmanager
def deaf_port() -> Iterator[int]:
    """Yield a port that never answers connection requests, as behind a firewall that drops packets."""
    with contextlib.ExitStack() as open_sockets:
        listener = open_sockets.enter_context(socket.create_server((HOST, 0), backlog=0))
        port: int = listener.getsockname()[1]
        # The kernel queues one or two unaccepted connections, and ignores all others.
        for _ in range(8):
            filler = open_sockets.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((HOST, port))
        yield port
