"""A server of RESP3 on loopback that sends maintenance notifications at given commands."""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections.abc import Mapping
from typing import Any, Self

import hiredis

from common.units import counted

HOST = "127.0.0.1"
_LAST_SLOT = 16383


def encoded(value: object, sign: bytes = b"*") -> bytes:
    """A value as RESP: integers, text, and lists of values. sign: of the list."""
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, str):
        return b"$%d\r\n%s\r\n" % (len(value), value.encode())
    assert isinstance(value, list)
    return b"%s%d\r\n" % (sign, len(value)) + b"".join(map(encoded, value))


def push(*message: object) -> bytes:
    """A push message."""
    return encoded(list(message), b">")


class NotifyingServer:
    """Answers HELLO, CLIENT, PING, GET, SET, and what a cluster client asks of its only node.

    at: push messages by the number of the GET or SET, from 1 on over all connections, before whose reply the server
    sends them. knows_notifications: otherwise CLIENT MAINT_NOTIFICATIONS is an error. endpoint_types: what connections
    have asked for. accepted: how many connections there were.
    """

    def __init__(self, at: Mapping[int, bytes] | None = None, *, knows_notifications: bool = True) -> None:
        self._at, self._knows = dict(at or {}), knows_notifications
        self.endpoint_types: list[str] = []
        self.accepted = self.operations = 0
        self._listener = socket.create_server((HOST, 0))
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for end in (self._listener, self._woken):
            self._selector.register(end, selectors.EVENT_READ)
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="notifying server")
        self._thread.start()

    def __repr__(self) -> str:
        return f"NotifyingServer({counted(self.operations, 'operation')})"

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.address}"

    def send_at(self, number: int, message: bytes) -> None:
        """Send a push message before the reply to this GET or SET."""
        self._at[number] = message

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wake.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._woken:
                    for each in list(self._selector.get_map().values()):
                        each.fileobj.close()  # type: ignore[union-attr]
                    self._selector.close()
                    return
                with contextlib.suppress(OSError):  # a client may close at any time
                    if key.fileobj is self._listener:
                        self._accept()
                    else:
                        self._answer(key.fileobj, key.data)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        self.accepted += 1
        self._selector.register(connection, selectors.EVENT_READ, hiredis.Reader())

    def _answer(self, connection: Any, reader: Any) -> None:
        received = b""
        try:
            received = connection.recv(65536)
            reader.feed(received)
            while (command := reader.gets()) is not False:
                connection.sendall(self._reply([str(each, "latin-1") for each in command]))
        finally:
            if not received:
                self._selector.unregister(connection)
                connection.close()

    def _reply(self, command: list[str]) -> bytes:
        match command[0].upper(), *command[1:]:
            case "HELLO", *_:
                return b"%2\r\n" + b"".join(map(encoded, ["server", "redis", "proto", 3]))
            case "CLIENT", "MAINT_NOTIFICATIONS", *rest:
                self.endpoint_types.append(rest[-1])
                return b"+OK\r\n" if self._knows else b"-ERR unknown subcommand\r\n"
            case "PING", *_:
                return b"+PONG\r\n"
            case "CLUSTER", "SLOTS":
                return encoded([[0, _LAST_SLOT, [HOST, self.port, "a" * 40]]])
            case "COMMAND", *_:
                rows = (("get", 2), ("set", -3))
                return encoded([[name, arity, ["fast"], 1, 1, 1, [], [], [], []] for name, arity in rows])
            case ("GET" | "SET") as name, *_:
                self.operations += 1
                return self._at.get(self.operations, b"") + (b"_\r\n" if name == "GET" else b"+OK\r\n")
            case "CLIENT" | "READONLY", *_:
                return b"+OK\r\n"
            case "INFO", *_:
                return encoded("# Server\r\nredis_version:8.0.0\r\nredis_mode:standalone\r\n")
        return b"-ERR unknown command\r\n"
