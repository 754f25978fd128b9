"""Converts messages and journal records to msgpack and back. The only module that imports msgpack.

An envelope is the array [protocol version, run id, incarnation, message]. Decoding checks messages of peers once,
against the types in `messages`. Changing a message requires a new protocol version.

Decoding follows the types byte by byte and stops at the first byte that does not fit. So containers of another type,
lengths beyond the data, and nesting deeper than the types cost nothing. Three things have separate limits:

- Size: between coordinator and agents `MAX_MESSAGE_BYTES`, which ZeroMQ checks too. The pipe of a worker process and
  the journal have no such limit: the pipe leads to a process of our own, and a record of the journal is larger than its
  message.
- Quantities of the plan, the only fields that msgspec decodes before it knows their type. Only a coordinator sends
  plans, so `_MOST_CONTAINERS` limits the lists and maps in a coordinator's message.
- Nesting in unknown fields of metrics, which a later release may send and which are skipped: msgspec's recursion limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any, NamedTuple, TypeVar, cast

import msgpack
import msgspec

from common.errors import ProtocolError
from common.metrics.histogram import Histogram, check_histograms
from common.metrics.intervals import histograms_of
from common.protocol.messages import (
    MAX_MESSAGE_BYTES,
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    AgentMessage,
    CoordinatorMessage,
    Envelope,
    Identifier,
    MetricsFrame,
    WorkerMessage,
    WorkerOrder,
)
from common.serde import parse_quantity, to_builtins
from common.units import printable

T = TypeVar("T")

_CONTAINER_BYTES = bytes([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
"""Bytes that begin a list or a map. Text and numbers may contain them too."""
_MOST_CONTAINERS = 1 << 16
"""Limit of these bytes in a coordinator's message: an empty list takes one byte in a message, but sixty in memory."""


def pack(value: Any) -> bytes:
    """Any of our types as msgpack."""
    return msgpack.packb(to_builtins(value), use_bin_type=True)  # type: ignore[no-any-return]


def unpack(data: bytes, kind: type[T]) -> T:
    """Inverse of `pack`. Raises ProtocolError for bytes that are not msgpack or not of this type."""
    try:
        return cast(T, _decoder(cast(Any, kind)).decode(data))
    except (ValueError, RecursionError, msgspec.DecodeError) as error:
        # ValidationError and UnicodeDecodeError are ValueErrors. The text may quote the data, so it is shortened.
        what = printable(str(error)[:200])
        raise ProtocolError(
            f"expected msgpack of {getattr(kind, '__name__', 'a message')}, got {len(data)} bytes: {what}"
        ) from error


@cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind, dec_hook=parse_quantity)


def packed_map(texts: Mapping[str, str], name: str, packed: bytes) -> bytes:
    """A packed map of `texts` and one more entry `name`, whose value is `packed`."""
    packer = msgpack.Packer(use_bin_type=True)
    entries = [packer.pack(text) for entry in texts.items() for text in entry]
    return b"".join([packer.pack_map_header(len(texts) + 1), *entries, packer.pack(name), packed])


def encode(envelope: Envelope, protocol: int = PROTOCOL_MAX) -> bytes:
    """An envelope as one message part."""
    message = to_builtins(envelope.message)
    return msgpack.packb(  # type: ignore[no-any-return]
        [protocol, envelope.run_id, envelope.incarnation, message], use_bin_type=True
    )


class DecodedMessage(NamedTuple):
    """A decoded envelope of an agent, and the bytes of its message, which the journal writes without packing again."""

    envelope: Envelope
    packed: bytes


def decode_from_agent(data: bytes) -> Envelope:
    """An agent's message. Raises ProtocolError for anything that an agent must not send."""
    [result] = decode_from_agents([data])
    if isinstance(result, ProtocolError):
        raise result
    return result.envelope


def decode_from_agents(many: Sequence[bytes]) -> list[DecodedMessage | ProtocolError]:
    """Decodes many messages of agents together, which is much cheaper than one by one. The result is in the order of
    `many`, with an error in place of each invalid message."""
    decoded: list[DecodedMessage | ProtocolError] = []
    for data in many:
        try:
            decoded.append(_decode(data, AgentMessage))
        except ProtocolError as error:
            decoded.append(error)
    valid = [each for each in decoded if isinstance(each, DecodedMessage)]
    if _histogram_error(chain.from_iterable(map(_histograms_in, valid))) is None:
        return decoded
    errors = [None if isinstance(each, ProtocolError) else _histogram_error(_histograms_in(each)) for each in decoded]
    return [error or each for each, error in zip(decoded, errors, strict=True)]


def _histograms_in(decoded: DecodedMessage) -> list[Histogram]:
    message = decoded.envelope.message
    if not isinstance(message, MetricsFrame):
        return []
    if len(message.intervals) == 1:
        return histograms_of(message.intervals[0])
    return [histogram for interval in message.intervals for histogram in histograms_of(interval)]


def _histogram_error(histograms: Iterable[Histogram]) -> ProtocolError | None:
    try:
        check_histograms(histograms)
    except ValueError as error:
        return ProtocolError(str(error))
    return None


def decode_from_coordinator(data: bytes) -> Envelope:
    """A coordinator's message. Raises ProtocolError for anything that a coordinator must not send."""
    if len(data) > _MOST_CONTAINERS:
        containers = len(data) - len(data.translate(None, _CONTAINER_BYTES))
        if containers > _MOST_CONTAINERS:
            raise ProtocolError(f"expected at most {_MOST_CONTAINERS:,} lists and maps, got {containers:,}")
    return _decode(data, CoordinatorMessage).envelope


def decode_from_worker(data: bytes) -> WorkerMessage:
    """A worker process's message. Raises ProtocolError."""
    message: WorkerMessage = unpack(data, cast(Any, WorkerMessage))
    return message


def decode_worker_order(data: bytes) -> WorkerOrder:
    """An agent's order to its worker process. Raises ProtocolError."""
    order: WorkerOrder = unpack(data, cast(Any, WorkerOrder))
    return order


def _decode(data: bytes, messages: Any) -> DecodedMessage:
    if len(data) > MAX_MESSAGE_BYTES:
        raise ProtocolError(f"expected at most {MAX_MESSAGE_BYTES:,} bytes, got {len(data):,}")
    # Hello and Refused are the same in every protocol version, so sides without a common version can report that.
    version, run_id, incarnation, raw = unpack(data, tuple[int, Identifier, Identifier, msgspec.Raw])
    packed = bytes(raw)
    message = unpack(packed, messages)
    if not PROTOCOL_MIN <= version <= PROTOCOL_MAX and type(message).__name__ not in ("Hello", "Refused"):
        raise ProtocolError(f"expected protocol {PROTOCOL_MIN}..{PROTOCOL_MAX}, got version {version}")
    return DecodedMessage(Envelope(run_id=run_id, incarnation=incarnation, message=message), packed)
