"""What a pub/sub message of ours carries, so that whoever receives it knows whose it is, and how long it took.

    run 8 bytes | boot 8 | sender 4 | number 4 | sent_ns 8 | padding up to the plan's value size

run: a digest of the run's id; other runs' messages are foreign. boot: a digest of the sending host's boot, because
monotonic clocks can be compared within one boot of one host only. sender: the worker's number in the fleet. number:
counts the sender's messages from 1, by which one that a retry sent twice is told. sent_ns: the sender's clock.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import blake2b

STAMP_BYTES = 32
"""No message of ours is shorter."""

_FORM = struct.Struct("<8s8sIIQ")
_NUMBERS = 1 << 32
assert _FORM.size == STAMP_BYTES


def is_after(number: int, last: int) -> bool:
    """Whether a sender's message of this number came after the one of number `last`; numbers begin anew at 2**32."""
    return 0 < (number - last) % _NUMBERS < _NUMBERS // 2


def _tag(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=8).digest()


class Stamper:
    """Stamps the messages of one sender, whose number lies in 0..2**32 - 1."""

    def __init__(self, run_id: str, boot_id: str, sender: int) -> None:
        self._run, self._boot, self._sender = _tag(run_id), _tag(boot_id), sender
        self._number = 0

    def stamp(self, blank: bytes, sent_ns: int) -> bytes:
        """A message of the length of `blank`, of which it keeps what lies behind the stamp; STAMP_BYTES at least."""
        self._number = (self._number + 1) % _NUMBERS
        return _FORM.pack(self._run, self._boot, self._sender, self._number, sent_ns) + blank[STAMP_BYTES:]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a message of our run says. sent_ns: by our own clock; None when its sender's cannot be compared to it."""

    sender: int
    number: int
    sent_ns: int | None


class StampReader:
    """Reads the messages of one run on one host."""

    def __init__(self, run_id: str, boot_id: str) -> None:
        self._run, self._boot = _tag(run_id), _tag(boot_id)

    def read(self, message: bytes) -> Stamp | None:
        """None for a message that is not of this run."""
        if len(message) < STAMP_BYTES:
            return None
        run, boot, sender, number, sent_ns = _FORM.unpack_from(message)
        if run != self._run:
            return None
        return Stamp(sender, number, sent_ns if boot == self._boot else None)
