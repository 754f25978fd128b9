"""Tracks the TCP connections of a listening port, from the events of a ZeroMQ monitor. Pure.

libzmq reports the file descriptor of a connection when it is accepted and when it ends, but not when its handshake
succeeds or fails. So a connection counts as a stranger (its handshake is not complete) until its first message.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from common.protocol.inbox import Connection
from common.units import NS_PER_S

PENALTY_NS = 5 * NS_PER_S
"""How long new connections from an address are limited after its last flood."""
CONNECTS_PER_S = 4
_MOST_ADDRESSES = 1_000


class Penalties:
    """Limits new connections from addresses that have flooded us, because messages must be read before they can be
    discarded. The limit also applies to other peers at the same address, but their open connections stay."""

    def __init__(self) -> None:
        self._last_flood_ns: dict[str, int] = {}
        self._next_connect_ns: dict[str, int] = {}

    def flooded(self, address: str, now_ns: int) -> None:
        """A connection from this address was cut."""
        self._last_flood_ns.pop(address, None)
        self._last_flood_ns[address] = now_ns
        if len(self._last_flood_ns) > _MOST_ADDRESSES:
            self._forgive(next(iter(self._last_flood_ns)))

    def may_connect(self, address: str, now_ns: int) -> bool:
        """Whether another connection from this address may be made now."""
        last_flood_ns = self._last_flood_ns.get(address)
        if last_flood_ns is None:
            return True
        if now_ns - last_flood_ns > PENALTY_NS:
            self._forgive(address)
            return True
        if now_ns < self._next_connect_ns.get(address, 0):
            return False
        self._next_connect_ns[address] = now_ns + NS_PER_S // CONNECTS_PER_S
        return True

    def _forgive(self, address: str) -> None:
        del self._last_flood_ns[address]
        self._next_connect_ns.pop(address, None)


@dataclass(slots=True, eq=False)
class Peer:
    """A TCP connection. connection: None until its first message. quiet_from: bytes received at the first check after
    its last message; None if a message came since the last check."""

    fileno: int
    accepted_ns: int
    connection: Connection | None = None
    quiet_from: int | None = None


class Peers:
    """All open TCP connections, and how many ended without a handshake. silent_cause: the cause to count if the monitor
    reported none."""

    def __init__(self, handshake_s: float, silent_cause: str) -> None:
        self._silent_cause = silent_cause
        self._silent = 0
        self._handshake_ns = round((handshake_s + 1) * NS_PER_S)
        self._open: dict[int, Peer] = {}
        self._strangers: dict[int, Peer] = {}  # the oldest first
        self._failed: Counter[str] = Counter()
        self._pending = 0  # accepted, less handshakes that succeeded and those that failed

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, fileno: int) -> bool:
        return fileno in self._open

    def accepted(self, fileno: int, now_ns: int) -> None:
        """A connection was made."""
        self._open[fileno] = self._strangers[fileno] = Peer(fileno, now_ns)
        self._pending += 1

    def succeeded(self) -> None:
        """The handshake of some connection succeeded."""
        self._pending -= 1

    def failed(self, cause: str) -> None:
        """The handshake of some connection failed."""
        self._pending -= 1
        self._failed[cause] += 1

    def refused(self) -> Counter[str]:
        """How many connections ended without a handshake, by cause."""
        return self._failed + Counter({self._silent_cause: self._silent})

    def postponed(self) -> None:
        """We ended a connection in its handshake, and the peer may try again later. Does not count as a refusal."""
        self._pending -= 1

    def disconnected(self, fileno: int) -> Connection | None:
        """A TCP connection has ended. Returns its `Connection`, None if no message came on it."""
        self._strangers.pop(fileno, None)
        peer = self._open.pop(fileno, None)
        return None if peer is None else peer.connection

    def first_message(self, fileno: int, connection: Connection) -> None:
        """The first message has come on a connection."""
        self._strangers.pop(fileno, None)
        if (peer := self._open.get(fileno)) is not None:
            peer.connection = connection

    def message_received(self, fileno: int) -> None:
        """A message has come."""
        if (peer := self._open.get(fileno)) is not None:
            peer.quiet_from = None

    def check(self, now_ns: int, most: int) -> list[int]:
        """Update the count of refusals. Returns the oldest strangers beyond `most`, by file descriptor."""
        for peer in list(self._strangers.values()):
            if now_ns - peer.accepted_ns <= self._handshake_ns:
                break
            # Its handshake is complete: otherwise ZeroMQ would have cut it by now.
            del self._strangers[peer.fileno]
        # ZeroMQ reports nothing about some peers, such as those that do not speak ZMTP. Open strangers may still
        # succeed.
        self._silent = max(self._silent, self._pending - len(self._strangers))
        return list(self._strangers)[: max(0, len(self._strangers) - most)]

    def endless(self, received: dict[int, int], most: int) -> list[Peer]:
        """Peers that have sent more than `most` bytes since their last message. received: bytes by file descriptor."""
        found = []
        for fileno, count in received.items():
            peer = self._open.get(fileno)
            if peer is None:
                continue
            if peer.quiet_from is None:
                peer.quiet_from = count
            elif count - peer.quiet_from > most:
                found.append(peer)
        return found

    def filenos(self) -> list[int]:
        """File descriptors of all open connections."""
        return list(self._open)
