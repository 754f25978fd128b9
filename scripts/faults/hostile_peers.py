"""Hostile peers of a coordinator, as a program: a peer with the token that floods, or strangers without the token.

usage: python -m scripts.faults.hostile_peers flood|strangers|garbage PORT SECONDS TOKEN_FILE
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import time
from pathlib import Path

import zmq

from common.protocol import codec
from common.protocol.messages import AgentState, Envelope, Heartbeat
from common.protocol.token import agent_curve

HOST = "127.0.0.1"
STRANGERS = 300
_GARBAGE = (b"GET / HTTP/1.1\r\nHost: me\r\n\r\n", b"\x00" * 64, b"*1\r\n$4\r\nPING\r\n", b"\xff" + bytes(range(63)))


def flood(port: int, seconds: float, token: Path) -> None:
    """Send heartbeats as fast as possible, and never read a reply. Opens a new connection after 30,000 heartbeats."""
    curve = agent_curve(token)
    heartbeat = Heartbeat(
        sent_ns=1,
        state=AgentState.RUNNING,
        offset_ns=None,
        rtt_ns=None,
        cpu_percent=0.0,
        cpu_percent_busiest=0.0,
        lag_ms=0.0,
        frames_held=0,
        processes_alive=1,
    )
    data = codec.encode(Envelope(run_id="", incarnation="0" * 16, message=heartbeat))
    until_s = time.monotonic() + seconds
    context = zmq.Context()
    while time.monotonic() < until_s:
        with context.socket(zmq.DEALER) as dealer:
            dealer.curve_serverkey = curve.server
            dealer.curve_publickey = curve.keys.public
            dealer.curve_secretkey = curve.keys.secret
            dealer.setsockopt(zmq.LINGER, 0)
            dealer.connect(f"tcp://{HOST}:{port}")
            for _ in range(30_000):
                if time.monotonic() > until_s or not dealer.poll(50, zmq.POLLOUT):
                    break
                with contextlib.suppress(zmq.Again):
                    dealer.send(data, zmq.NOBLOCK)
    context.term()


def strangers(port: int, seconds: float, *, garbage: bool) -> None:
    """Open connections again and again, and keep the last `STRANGERS`. They send nothing, or garbage."""
    until_s = time.monotonic() + seconds
    opened: list[socket.socket] = []
    with selectors.DefaultSelector() as waiting:
        while time.monotonic() < until_s:
            with contextlib.suppress(OSError):
                opened.append(socket.create_connection((HOST, port), timeout=0.2))
                if garbage:
                    opened[-1].sendall(_GARBAGE[len(opened) % len(_GARBAGE)])
            if len(opened) > STRANGERS:
                opened.pop(0).close()
            waiting.select(0.002)
    for connection in opened:
        connection.close()


def main() -> None:
    kind, port, seconds, token = sys.argv[1:5]
    if kind == "flood":
        flood(int(port), float(seconds), Path(token))
    else:
        strangers(int(port), float(seconds), garbage=kind == "garbage")


if __name__ == "__main__":
    main()
