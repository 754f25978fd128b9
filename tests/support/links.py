"""A listener and dialers for tests that read them step by step."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from common.protocol.listener import Listener
from common.protocol.transport import Context, CurveClient, CurveServer, Dialer, LinkEvent, SocketPoller, new_key_pair

T = TypeVar("T")

ANYWHERE = "tcp://127.0.0.1:*"
PATIENCE_S = 20.0
COORDINATOR, AGENT = new_key_pair(), new_key_pair()
SERVER = CurveServer(COORDINATOR, AGENT.public)
CLIENT = CurveClient(AGENT, COORDINATOR.public)


class Bench:
    """One listener and several dialers. Each wait reads from all of them."""

    def __init__(self, stack: ExitStack, curve: CurveServer | None, endpoint: str = "") -> None:
        self._stack = stack
        self._poller = SocketPoller()
        self._there = stack.enter_context(Context())
        self._here = stack.enter_context(Context())
        self.listener = stack.enter_context(Listener(self._there, endpoint or ANYWHERE, curve))
        self._poller.watch(self.listener)
        self.events: dict[Dialer, list[LinkEvent]] = {}
        self.received: list[tuple[bytes, bytes]] = []
        self.answers: dict[Dialer, list[bytes]] = {}

    @property
    def heard(self) -> list[bytes]:
        """All messages that the listener received."""
        return [data for _, data in self.received]

    def answer(self, said: bytes, data: bytes) -> bool:
        """Answer the sender of this message. Returns whether the listener accepted the answer."""
        routing_id = next(routing_id for routing_id, heard in self.received if heard == said)
        return self.listener.send(routing_id, data)

    def dial(self, curve: CurveClient | None, endpoint: str | None = None) -> Dialer:
        endpoint = self.listener.endpoint if endpoint is None else endpoint
        dialer = self._stack.enter_context(Dialer(self._here, endpoint, curve))
        self._poller.watch(dialer)
        self.events[dialer], self.answers[dialer] = [], []
        return dialer

    def hang_up(self, dialer: Dialer) -> None:
        self._poller.forget(dialer)
        dialer.close()
        del self.events[dialer]

    def listen_again(self, curve: CurveServer | None) -> None:
        """Replace the listener by another one at the same address, as a restart of the coordinator does."""
        endpoint = self.listener.endpoint
        self._poller.forget(self.listener)
        self.listener.close()
        self._there.close()
        self._there = self._stack.enter_context(Context())
        self.listener = self._stack.enter_context(Listener(self._there, endpoint, curve))
        self._poller.watch(self.listener)

    def read(self) -> None:
        self._poller.wait(0.05)
        self.received += self.listener.receive()
        for dialer, events in self.events.items():
            events += dialer.link_events()
            self.answers[dialer] += dialer.receive()

    def until(self, is_so: Callable[[], T]) -> T:
        """Wait until the condition is true. Fails the test after a timeout."""
        give_up_s = time.monotonic() + PATIENCE_S
        while not (found := is_so()):
            assert time.monotonic() < give_up_s, (self.events, self.heard, self.listener.count_refused())
            self.read()
        return found

    def until_up(self, dialer: Dialer) -> None:
        self.until(lambda: LinkEvent.UP in self.events[dialer])
