"""A null server, as a program: answers +OK to each request, as fast as possible.

It shows how fast a generator is when the server costs nothing. Although written in Python, it is faster than any
generator here: hiredis parses a request in a seventh of a microsecond, and one send answers everything that one read
returned. It parses requests as a server does, so values may contain any bytes and requests may arrive in any pieces.
During the handshake of a connection (HELLO, CLIENT, ...) it answers as redis-py expects. From the first other request
on, it answers only +OK, even to GET.

    stdin: each line asks for the counters; the end of stdin ends the program
    stdout: the port; then for each line the number of requests served, without handshakes, and of open connections
"""

from __future__ import annotations

import contextlib
import gc
import select
import socket
import sys
from collections.abc import Callable
from typing import Any

import hiredis

OK = b"+OK\r\n"
_HELLO = b"$6\r\nserver\r\n$4\r\nnull\r\n$5\r\nproto\r\n"
_HANDSHAKE: dict[bytes, Callable[[list[bytes]], bytes]] = {
    b"HELLO": lambda request: b"%2\r\n" + _HELLO + b":3\r\n" if b"3" in request else b"*4\r\n" + _HELLO + b":2\r\n",
    b"PING": lambda _: b"+PONG\r\n",
    **dict.fromkeys((b"CLIENT", b"AUTH", b"SELECT", b"CONFIG", b"COMMAND"), lambda _: OK),
}
_READ_BYTES = 1 << 18


class RequestParser:
    """Parses the requests of one connection, in any pieces. served: number of requests after the handshake."""

    __slots__ = ("_feed", "_in_handshake", "_next", "served")

    def __init__(self) -> None:
        reader = hiredis.Reader()
        self._feed, self._next = reader.feed, reader.gets
        self._in_handshake = True
        self.served = 0

    def replies(self, piece: bytes) -> bytes:
        """The replies to all requests that this piece completes. Raises hiredis.ProtocolError."""
        self._feed(piece)
        requests = [*iter(self._next, False)]
        if self._in_handshake:
            return self._handshake_replies(requests)
        self.served += len(requests)
        return OK * len(requests)

    def _handshake_replies(self, requests: list[Any]) -> bytes:
        replies = []
        for request in requests:
            reply = _HANDSHAKE.get(request[0].upper()) if self._in_handshake else None
            if reply is None:
                self._in_handshake = False
                self.served += 1
            replies.append(reply(request) if reply else OK)
        return b"".join(replies)


class _NullServer:
    """The event loop. _open: connections by file descriptor."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._poll = select.epoll()
        self._open: dict[int, tuple[socket.socket, Callable[[int], bytes], RequestParser]] = {}
        self._served_before = 0

    def serve(self) -> None:
        """Serve until stdin ends."""
        listening = self._listener.fileno()
        self._poll.register(listening, select.EPOLLIN)
        self._poll.register(sys.stdin.fileno(), select.EPOLLIN)
        wait, connections = self._poll.poll, self._open
        while True:
            for number, _ in wait():
                if number in connections:
                    self._reply(number)
                elif number == listening:
                    self._accept()
                elif not sys.stdin.readline():
                    return
                else:
                    served = self._served_before + sum(parser.served for _, _, parser in connections.values())
                    print(served, len(connections), flush=True)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._open[connection.fileno()] = (connection, connection.recv, RequestParser())
        self._poll.register(connection, select.EPOLLIN)

    def _reply(self, number: int) -> None:
        connection, receive, parser = self._open[number]
        try:
            if piece := receive(_READ_BYTES):
                # A blocking send: the replies to the requests in flight are far smaller than the socket's buffer.
                connection.sendall(parser.replies(piece))
                return
        except (OSError, hiredis.ProtocolError):
            pass
        self._served_before += parser.served
        del self._open[number]
        with contextlib.suppress(OSError):
            self._poll.unregister(connection)
        connection.close()


def main() -> None:
    gc.disable()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(listener.getsockname()[1], flush=True)
        _NullServer(listener).serve()


if __name__ == "__main__":
    main()
