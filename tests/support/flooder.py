"""Hostile participants: they send heartbeats as fast as they can, leave, and connect again.

python -m tests.support.flooder ENDPOINT TOKEN_FILE GO NAME...

Starts a process per name. The processes begin when the file GO exists, and run until they are killed. With an empty
NAME, a process sends no hello.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from common.clock import monotonic_ns
from common.protocol import codec
from common.protocol.messages import AgentMessage, AgentState, Envelope, incarnation_of
from common.protocol.token import agent_curve
from common.protocol.transport import Context, CurveClient, Dialer, LinkEvent, SocketPoller
from common.units import NS_PER_S
from tests.support.protocol import heartbeat, hello

VISIT_NS = 3 * NS_PER_S // 2


def flood(endpoint: str, token: Path, go: Path, name: str) -> None:
    """Visit the coordinator repeatedly."""
    curve = agent_curve(token)
    never = threading.Event()
    while not go.exists():
        never.wait(0.05)
    with Context() as context:
        while True:
            visit(context, endpoint, curve, name)


def visit(context: Context, endpoint: str, curve: CurveClient, name: str) -> None:
    """Connect, flood, and leave during the flood."""
    poller, is_up = SocketPoller(), False
    leave_ns = monotonic_ns() + VISIT_NS
    secret = f"the secret of {name}"
    beat = encoded(secret, heartbeat(AgentState.IDLE))
    with Dialer(context, endpoint, curve) as dialer:
        dialer.socket.linger = 0
        poller.watch(dialer)
        while monotonic_ns() < leave_ns:
            if name and not is_up and LinkEvent.UP in list(dialer.link_events()):
                is_up = dialer.send(encoded(secret, hello(name, secret=secret)))
                poller.wait(0.3)  # for the welcome
            while (is_up or not name) and monotonic_ns() < leave_ns and dialer.send(beat):
                pass
            poller.wait(0.01)
            for _ in dialer.receive():
                pass


def encoded(secret: str, message: AgentMessage) -> bytes:
    """A message of the agent process with this secret."""
    return codec.encode(Envelope(run_id="", incarnation=incarnation_of(secret), message=message))


if __name__ == "__main__":
    endpoint, token, go, *names = sys.argv[1:]
    for name in names:
        if not os.fork():
            flood(endpoint, Path(token), Path(go), name)
    while True:
        os.wait()
