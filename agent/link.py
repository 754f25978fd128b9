"""What an agent knows of its link to the coordinator: whether it is there, when it was last heard, how its clock runs.
Pure: the time is an argument."""

from __future__ import annotations

from common.clock import ClockSync, clock_sample
from common.messages import HeartbeatReply, Welcome
from common.units import NS_PER_S

HELLO_EVERY_NS = NS_PER_S
HEARTBEAT_EVERY_NS = NS_PER_S
FIRST_HEARTBEATS_EVERY_NS = NS_PER_S // 20
FIRST_HEARTBEATS = 8
"""A clock estimate is wanted soon after the welcome: the first exchanges follow each other quickly."""
REFUSED_FOR_NS = 2 * NS_PER_S
"""Handshakes that fail for so long are not an accident of a coordinator that was just starting or ending."""
DEFAULT_LEASE_NS = 30 * NS_PER_S


class Link:
    """The control link. `up` is what ZeroMQ says; `welcome` is the coordinator's answer to hello, None before it."""

    def __init__(self, now_ns: int) -> None:
        self.up = False
        self.welcome: Welcome | None = None
        self.clock = ClockSync()
        self.lease_ns = DEFAULT_LEASE_NS
        self._heard_ns = now_ns
        self._hello_due_ns = now_ns
        self._heartbeat_due_ns = now_ns
        self._refused_since_ns: int | None = None

    def came_up(self, now_ns: int) -> None:
        """The handshake succeeded: say hello at once."""
        self.up, self._refused_since_ns, self._hello_due_ns = True, None, now_ns

    def went_down(self) -> bool:
        """The link was lost; whether we were welcome on it."""
        was_welcome = self.welcome is not None
        self.up, self.welcome = False, None
        return was_welcome

    def refused(self, now_ns: int) -> None:
        """The handshake failed."""
        self._refused_since_ns = self._refused_since_ns or now_ns

    def refused_for_good(self, now_ns: int) -> bool:
        """The handshake has failed ever since for so long that it will not succeed."""
        return self._refused_since_ns is not None and now_ns - self._refused_since_ns > REFUSED_FOR_NS

    def heard(self, now_ns: int) -> None:
        """A message of the coordinator has come."""
        self._heard_ns = now_ns

    def silent_ns(self, now_ns: int) -> int:
        """How long nothing was heard of a coordinator, from the agent's start if there never was one."""
        return now_ns - self._heard_ns

    def welcomed(self, welcome: Welcome, now_ns: int) -> bool:
        """Hello was answered; whether that is news."""
        if self.welcome is not None:
            return False
        self.welcome = welcome
        self.lease_ns = round(welcome.lease_s * NS_PER_S)
        self.clock = ClockSync()  # another coordinator may have answered, with another clock
        self._heartbeat_due_ns = now_ns
        return True

    def replied(self, reply: HeartbeatReply, now_ns: int) -> None:
        """A heartbeat came back with the coordinator's stamps."""
        self.clock.add(clock_sample(reply.sent_ns, reply.received_ns, reply.replied_ns, now_ns))

    def hello_is_due(self, now_ns: int) -> bool:
        """Whether to say hello now; then the next one is due a second later."""
        if not self.up or self.welcome is not None or now_ns < self._hello_due_ns:
            return False
        self._hello_due_ns = now_ns + HELLO_EVERY_NS
        return True

    def heartbeat_is_due(self, now_ns: int) -> bool:
        """Whether to send a heartbeat now; then the next one is due a second later, sooner just after the welcome."""
        if self.welcome is None or now_ns < self._heartbeat_due_ns:
            return False
        quick = self.clock.count < FIRST_HEARTBEATS
        self._heartbeat_due_ns = now_ns + (FIRST_HEARTBEATS_EVERY_NS if quick else HEARTBEAT_EVERY_NS)
        return True
