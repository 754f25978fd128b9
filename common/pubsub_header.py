"""The header of our pub/sub messages, and of the values of visibility: the sender, and the time of sending.

    run 8 bytes | boot 8 | sender 4 | number 4 | sent_ns 8 | padding up to the plan's value size

run: a digest of the run id; messages of other runs are foreign. boot: a digest of the sender's boot id, because
monotonic clocks can be compared within one boot of one host only. sender: the worker's number in the fleet. number:
counts the sender's messages from 1. A message whose number does not rise was sent twice, by a retry. sent_ns: the
sender's monotonic clock when the message was sent.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import blake2b

HEADER_BYTES = 32
"""Size of the header, and so the minimum size of our messages."""

_LAYOUT = struct.Struct("<8s8sIIQ")
_NUMBERS = 1 << 32
assert _LAYOUT.size == HEADER_BYTES


def is_after(number: int, last: int) -> bool:
    """Whether a sender used `number` after `last`. Numbers wrap around at 2**32."""
    return 0 < (number - last) % _NUMBERS < _NUMBERS // 2


def _digest(name: str) -> bytes:
    return blake2b(name.encode(), digest_size=8).digest()


class HeaderWriter:
    """Adds headers to the messages of one sender. sender: 0 to 2**32 - 1."""

    def __init__(self, run_id: str, boot_id: str, sender: int) -> None:
        self._run, self._boot, self._sender = _digest(run_id), _digest(boot_id), sender
        self._number = 0

    def write(self, message: bytes, sent_ns: int) -> bytes:
        """Replace the first HEADER_BYTES bytes of a message by a header. A shorter message grows to HEADER_BYTES."""
        self._number = (self._number + 1) % _NUMBERS
        return _LAYOUT.pack(self._run, self._boot, self._sender, self._number, sent_ns) + message[HEADER_BYTES:]


@dataclass(frozen=True, slots=True)
class MessageHeader:
    """The header of a message of our run. sent_ns: None if the sender's clock cannot be compared with ours."""

    sender: int
    number: int
    sent_ns: int | None


class HeaderReader:
    """Reads the headers of one run's messages on one host."""

    def __init__(self, run_id: str, boot_id: str) -> None:
        self._run, self._boot = _digest(run_id), _digest(boot_id)

    def read(self, message: bytes) -> MessageHeader | None:
        """The header; None if the message does not belong to this run."""
        if len(message) < HEADER_BYTES:
            return None
        run, boot, sender, number, sent_ns = _LAYOUT.unpack_from(message)
        if run != self._run:
            return None
        return MessageHeader(sender, number, sent_ns if boot == self._boot else None)
