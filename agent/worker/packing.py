"""The stream of operations of one thread as requests ready for the wire, block by block.

They are the operations that `draw_operations` draws with the same seed, thread and block, for mixes in which none
depends on a reply. In a cluster each block is split by the nodes that the slots of its requests belong to, after it was
drawn: so the plan's distribution holds over the whole key space, whoever owns it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from agent.worker.columns import Filler, Rows, Supplies
from agent.worker.drawing import Drawing, seed_sequence
from agent.worker.mix import CompiledCommand, Mix
from common.histogram import Ints
from common.target import slot_of

BLOCK = 4096
SLOTS = 16384
"""Slots of a cluster."""


@dataclass(slots=True)
class Packed:
    """A block of requests. payload: all of them, one behind the other, as RESP arrays of bulk strings. offsets: where
    each begins in it, and at last its length; count + 1 of them. rows: index into `Mix.names`, shape (count,). sizes:
    bytes of each request, shape (count,). node: which part of the cluster they belong to; 0 when nothing was split."""

    payload: bytes
    offsets: list[int]
    rows: Ints
    sizes: Ints
    node: int


class _Packer:
    """One entry of the mix in one thread: turns numbers into requests."""

    def __init__(self, command: CompiledCommand, supplies: Supplies) -> None:
        self._filler = Filler(command.template, supplies)

    def pack(self, rows: Rows) -> tuple[list[bytes], Ints, list[bytes] | None]:
        """Requests, their sizes and their first keys."""
        arguments, sizes = self._filler.fill(rows)
        return [_packed(each) for each in arguments], sizes, None


def _packed(arguments: tuple[str | bytes, ...]) -> bytes:
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        text = argument if isinstance(argument, bytes) else argument.encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(text), text))
    return b"".join(parts)
