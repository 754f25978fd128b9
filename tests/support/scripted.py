"""A server that answers as a small Redis does, except for commands whose answers the test sets."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Mapping
from typing import Self

from coordinator.embedded import HOST

Reply = bytes | None
"""Bytes of a reply; None: no reply."""


def bulk(text: str) -> bytes:
    """A bulk string."""
    data = text.encode()
    return b"$%d\r\n%s\r\n" % (len(data), data)


def array(*items: bytes) -> bytes:
    """An array of encoded values."""
    return b"*%d\r\n%s" % (len(items), b"".join(items))


INFO = {
    "SERVER": "redis_version:7.0.0\r\nredis_mode:standalone\r\nrun_id:abc\r\n",
    "REPLICATION": "role:master\r\n",
    "CLIENTS": "connected_clients:1\r\nmaxclients:10000\r\n",
    "MEMORY": "used_memory:1\r\nmaxmemory:0\r\n",
    "COMMANDSTATS": "cmdstat_get:calls=1,usec=1,usec_per_call=1.0,rejected_calls=0,failed_calls=0\r\n",
}
OK, ONE, NONE = b"+OK\r\n", b":1\r\n", b"$-1\r\n"


class ScriptedServer:
    """Listens on loopback, with a thread per connection. answers: by command, or command and subcommand, in capital
    letters ("INFO", "CLUSTER SLOTS"); may be changed at any time."""

    def __init__(self, answers: Mapping[str, Reply] | None = None) -> None:
        self.answers: dict[str, Reply] = dict(answers or {})
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name="scripted-server")]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """The URL of the server."""
        return f"redis://{HOST}:{self.port}"

    def close(self) -> None:
        """End all threads."""
        for one in (self._listener, *self._connections):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), name="scripted-connection")
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError), connection, connection.makefile("rb") as received:
            while first := received.readline():
                words = []
                for _ in range(int(first[1:])):
                    size = int(received.readline()[1:])
                    words.append(received.read(size + 2)[:-2].decode(errors="replace"))
                reply = self._answer(words)
                if reply is not None:
                    connection.sendall(reply)

    def _answer(self, words: list[str]) -> Reply:
        command, rest = words[0].upper(), [word.upper() for word in words[1:]]
        for name in (" ".join([command, *rest[:1]]), command):
            if name in self.answers:
                return self.answers[name]
        match command, *rest:
            case ["PING"]:
                return b"+PONG\r\n"
            case ["INFO", *sections]:
                return bulk("".join(text for name, text in INFO.items() if not sections or name in sections))
            case ["COMMAND", "INFO", *_]:
                return array(array(bulk("get"), b":-2\r\n"))
            case ["COMMAND", "LIST", *_]:
                return array(bulk("set"))
            case ["COMMAND", "GETKEYS", _, key, *_]:
                return array(bulk(key))
            case ["CONFIG", "GET", *_]:
                return array(bulk("maxclients"), bulk("10000"))
            case ["DBSIZE" | "UNLINK" | "DEL"]:
                return ONE
            case ["UNLINK" | "DEL", *_]:
                return ONE
            case ["SCAN", *_]:
                return array(bulk("0"), array(bulk("load:1")))
            case ["TIME"]:
                return array(bulk("1700000000"), bulk("1"))
            case ["GET", *_]:
                return NONE
            case ["HELLO", *_]:
                return b"-ERR unknown command 'HELLO'\r\n"
        return OK
